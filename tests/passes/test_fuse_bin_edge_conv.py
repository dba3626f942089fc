"""RF's edge layers become one operator: both orders of halves, any factors, any activation, norms folded before."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, constants_of, count, graph, only, randn, signs
from torch import Tensor, fx

from bgnn.passes import fold_sign, fuse_bin_edge_conv, pack_bits

b = bgnn.binarize
BATCH, POINTS, K = 2, 6, 4
INDEX = torch.randint(0, POINTS, (BATCH, POINTS, K), generator=torch.Generator().manual_seed(5))


def joined(x: Tensor, index: Tensor, order: str = "node first") -> Tensor:
    other = bgnn.gather_nodes(x, index)
    node = x[:, :, None].expand(other.shape)
    return torch.cat([node, other - node] if order == "node first" else [other - node, node], 3)


def fused(
    function: Callable[..., Any], channels: int = 5, tolerance: float = 0.0, **constants: Tensor
) -> fx.GraphModule:
    """`function(m, x, index)` after the pass, and after packing; both equal to PyTorch."""
    inputs = randn(BATCH, POINTS, channels), INDEX
    gm = graph(function, *inputs, **constants)
    result = apply(fuse_bin_edge_conv.run, gm, *inputs, tolerance=tolerance)
    assert (result.rewrites, result.refusals) == (1, [])
    assert count(gm, bgnn.bin_edge_layer) == 1
    assert count(gm, bgnn.gather_nodes, aten.linear, aten.cat) == 0
    packed = graph(function, *inputs, **constants)
    fuse_bin_edge_conv.run(packed)
    apply(pack_bits.run, packed, *inputs, tolerance=tolerance)
    assert (count(packed, bgnn.bin_edge_conv), count(packed, bgnn.unpack)) == (1, 0)
    return gm


@pytest.mark.parametrize("order", ["node first", "edge first"])
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (3, 33), (31, 32), (32, 31), (33, 9), (70, 40)])
def test_no_factors(channels: int, filters: int, order: str) -> None:
    gm = fused(lambda m, x, i: F.linear(b(joined(x, i, order)), m.w).amax(2), channels, w=signs(filters, 2 * channels))
    _, _, weight, alpha, beta, gamma, slope = constants_of(only(gm, bgnn.bin_edge_layer))
    halves = signs(filters, 2 * channels).split(channels, 1)
    assert torch.equal(weight, torch.cat(halves if order == "node first" else halves[::-1], 1))
    for value, size in ((alpha, filters), (beta, POINTS), (gamma, K), (slope, 1)):
        assert torch.equal(value, torch.ones(size))


@pytest.mark.parametrize("order", ["node first", "edge first"])
@pytest.mark.parametrize("flips", [True, False])
def test_thresholds_and_flips(order: str, flips: bool) -> None:
    """What fold_sign makes of a norm: each half of t goes to its half, the falling channels into the weights."""
    c = 33

    def function(m: Any, x: Tensor, i: Tensor) -> Tensor:
        s = b(joined(x, i, order) - m.t)
        return F.linear(s * m.flips if flips else s, m.w).amax(2)

    fused(function, c, w=signs(9, 2 * c), t=randn(2 * c, seed=2), flips=signs(2 * c, seed=3))


@pytest.mark.parametrize("order", ["node first", "edge first"])
def test_after_fold_sign(order: str) -> None:
    c = 7
    norm = {"g": randn(14, seed=1), "h": randn(14, seed=2), "mu": randn(14, seed=3), "va": randn(14, seed=4) ** 2 + 1}
    gm = graph(
        lambda m, x, i: F.linear(b(bgnn.batch_norm(joined(x, i, order), m.g, m.h, m.mu, m.va, 1e-5)), m.w).amax(2),
        x := randn(BATCH, POINTS, c), INDEX, w=signs(9, 2 * c), **norm,
    )  # fmt: skip
    assert apply(fold_sign.run, gm, x, INDEX).rewrites == 1
    assert apply(fuse_bin_edge_conv.run, gm, x, INDEX).rewrites == 1
    apply(pack_bits.run, gm, x, INDEX)
    assert count(gm, bgnn.batch_norm, bgnn.gather_nodes) == 0


FACTORS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "channels": lambda m, y: y * m.alpha,
    "points": lambda m, y: y * m.beta,
    "neighbours": lambda m, y: y * m.gamma,
    "number": lambda m, y: y * -1.5,
}
ACTIVATIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "none": lambda m, y: y,
    "relu": lambda m, y: torch.relu(y),
    "prelu": lambda m, y: bgnn.prelu(y, m.slope),
    "prelu of one slope": lambda m, y: bgnn.prelu(y, m.one),
}


def rescaling(filters: int) -> dict[str, Tensor]:
    """Factors of both signs, so that order and side matter; slopes of both signs too."""
    return {
        "alpha": randn(filters, seed=1), "beta": randn(POINTS, 1, 1, seed=2), "gamma": randn(K, 1, seed=3),
        "slope": randn(filters, seed=4), "one": torch.tensor([-0.3]),
    }  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("names", list(itertools.permutations(FACTORS, 3)))
def test_factors_in_any_order(names: tuple[str, ...], activation: str) -> None:
    def function(m: Any, x: Tensor, i: Tensor) -> Tensor:
        y = F.linear(b(joined(x, i)), m.w)
        for name in names:
            y = FACTORS[name](m, y)
        return ACTIVATIONS[activation](m, y).amax(2)

    fused(function, tolerance=1e-6, w=signs(9, 10), **rescaling(9))


def test_a_factor_on_the_left() -> None:
    fused(lambda m, x, i: (m.gamma * F.linear(b(joined(x, i)), m.w)).amax(2), w=signs(9, 10), gamma=randn(K, 1))


@pytest.mark.parametrize("shape", [(9,), (1,), (), (1, 9), (1, 1, 9), (1, 1, 1, 9), (1, POINTS, 1, 1), (1, 1, K, 1)])
def test_shapes_of_a_factor(shape: tuple[int, ...]) -> None:
    fused(
        lambda m, x, i: (F.linear(b(joined(x, i)), m.w) * m.factor).amax(2), tolerance=1e-6, w=signs(9, 10),
        factor=randn(*shape, seed=2),
    )  # fmt: skip


def test_a_scale_in_the_weights() -> None:
    """XNOR-Net's alpha, stored in the weights themselves."""
    scale = randn(9).abs() + 0.1
    gm = fused(
        lambda m, x, i: (F.linear(b(joined(x, i)), m.w) * 2.0).amax(2), tolerance=1e-6, w=signs(9, 10) * scale[:, None]
    )
    torch.testing.assert_close(constants_of(only(gm, bgnn.bin_edge_layer))[3], 2 * scale)


@pytest.mark.parametrize("keepdim", [True, False])
def test_the_shape_of_the_maximum_stays(keepdim: bool) -> None:
    fused(lambda m, x, i: F.linear(b(joined(x, i)), m.w).amax(2, keepdim), w=signs(9, 10))


def test_points_neighbours_and_channels_of_one_size() -> None:
    """Sizes that are equal are told apart by their place."""
    x, index = randn(1, 4, 3), torch.randint(0, 4, (1, 4, 4), generator=torch.Generator().manual_seed(0))
    gm = graph(
        lambda m, x, i: (F.linear(b(joined(x, i)), m.w) * m.alpha * m.beta * m.gamma).amax(2), x, index,
        w=signs(4, 6), alpha=randn(4, seed=1), beta=randn(4, 1, 1, seed=2), gamma=randn(4, 1, seed=3),
    )  # fmt: skip
    assert apply(fuse_bin_edge_conv.run, gm, x, index, tolerance=1e-6).rewrites == 1


def test_a_sign_of_the_same_tensor_elsewhere() -> None:
    """The features are read by the next layer as well; only the edges must have one reader."""
    fused(lambda m, x, i: F.linear(b(joined(x, i)), m.w).amax(2) + x.sum(2, True), w=signs(9, 10))


REFUSED: dict[str, Callable[..., Any]] = {
    "edges of another tensor": lambda x, y, i, n, o: torch.cat([n, bgnn.gather_nodes(y, i) - n], 3),
    "nodes of another tensor": lambda x, y, i, n, o: torch.cat([y[:, :, None].expand(-1, -1, K, -1), o - n], 3),
    "the other way round": lambda x, y, i, n, o: torch.cat([n, n - o], 3),
    "sums": lambda x, y, i, n, o: torch.cat([n, o + n], 3),
    "neighbours": lambda x, y, i, n, o: torch.cat([n, o], 3),
    "three parts": lambda x, y, i, n, o: torch.cat([n[..., :2], n[..., 2:], o - n], 3),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_edges_are_refused(name: str) -> None:
    def function(m: Any, x: Tensor, y: Tensor) -> Tensor:
        other = bgnn.gather_nodes(x, m.index)
        node = x[:, :, None].expand(other.shape)
        return F.linear(b(REFUSED[name](x, y, m.index, node, other)), m.w).amax(2)

    x, y = randn(BATCH, POINTS, 5), randn(BATCH, POINTS, 5, seed=1)
    gm = graph(function, x, y, w=signs(9, 10), index=INDEX)
    result = apply(fuse_bin_edge_conv.run, gm, x, y)
    assert result.rewrites == 0
    assert "not [x_i, x_j - x_i]" in result.refusals[0][1]


LEFT: dict[str, Callable[..., Any]] = {
    "real edges": lambda m, e: F.linear(e, m.w).amax(2),
    "real weights": lambda m, e: F.linear(b(e), m.real).amax(2),
    "a bias": lambda m, e: F.linear(b(e), m.w, m.alpha).amax(2),
    "an addend": lambda m, e: (F.linear(b(e), m.w) + m.alpha).amax(2),
    "a factor per edge": lambda m, e: (F.linear(b(e), m.w) * m.edges).amax(2),
    "a factor per batch": lambda m, e: (F.linear(b(e), m.w) * m.batch).amax(2),
    "a factor from the input": lambda m, e: (F.linear(b(e), m.w) * e.sum()).amax(2),
    "a minimum": lambda m, e: F.linear(b(e), m.w).amin(2),
    "a mean": lambda m, e: F.linear(b(e), m.w).mean(2),
    "over the points": lambda m, e: F.linear(b(e), m.w).amax(1),
    "over both": lambda m, e: F.linear(b(e), m.w).amax((1, 2)),
    "two readers": lambda m, e: (lambda y: y.amax(2) + y.mean(2))(F.linear(b(e), m.w)),
    "two readers of a factor": lambda m, e: (lambda y: (y * 2.0).amax(2) + y.mean(2))(F.linear(b(e), m.w)),
    "a function before the factor": lambda m, e: (torch.relu(F.linear(b(e), m.w)) * m.alpha).amax(2),
    "a threshold per point": lambda m, e: F.linear(b(e - m.beta), m.w).amax(2),
    "a flip per point": lambda m, e: F.linear(b(e) * b(m.beta), m.w).amax(2),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name: str) -> None:
    x = randn(BATCH, POINTS, 5)
    gm = graph(
        lambda m, x, i: LEFT[name](m, joined(x, i)), x, INDEX, w=signs(9, 10), real=randn(9, 10),
        edges=randn(POINTS, K, 1), batch=randn(BATCH, 1, 1, 1), **rescaling(9),
    )  # fmt: skip
    assert apply(fuse_bin_edge_conv.run, gm, x, INDEX).rewrites == 0
    assert count(gm, bgnn.bin_edge_layer) == 0
