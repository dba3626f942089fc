"""XOR edge layers become one operator: every spelling of the join, every table of thresholds, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import apply, aten, bgnn, constants_of, count, graph, only, outputs, randn, signs, up_to
from torch import Tensor, fx

from bgnn.converter import stages
from bgnn.passes import fold_threshold, fuse_xor_edge_conv, lower_knn, pack_bits

b = bgnn.binarize
BATCH, POINTS, K = 2, 6, 4
INDEX = torch.randint(0, POINTS, (BATCH, POINTS, K), generator=torch.Generator().manual_seed(5))


def joined(x: Tensor, index: Tensor, order: str = "node first", sign: str = "x * y") -> Tensor:
    """`[B, N, k, 2C]`: the node's features and the product with the neighbours', in one of the spellings."""
    other = bgnn.gather_nodes(x, index)
    node = x[:, :, None].expand(other.shape)
    edge = {
        "x * y": lambda: node * other,
        "y * x": lambda: other * node,
        "-(x * y)": lambda: -(node * other),
        "-x * y": lambda: -node * other,
        "y * -x": lambda: other * -node,
        "-y * x": lambda: -other * node,
        "-x * -y": lambda: -node * -other,
        "-(-x * y)": lambda: -(-node * other),
    }[sign]()
    return torch.cat([node, edge] if order == "node first" else [edge, node], 3)


def layer(m: Any, x: Tensor, index: Tensor, **spelling: str) -> Tensor:
    return bgnn.dot_threshold(joined(x, index, **spelling), m.w, m.t).amax(2)


def thresholds(steps: int, channels: int, fan_in: int, seed: int = 0) -> Tensor:
    """Rising thresholds per channel, some never or always passed."""
    rows = torch.randint(-1, fan_in + 1, (steps, channels), generator=torch.Generator().manual_seed(seed))
    rows = rows.sort(0)[0].int()
    rows[-1, ::5] = torch.iinfo(torch.int32).max
    rows[0, 1::7] = -1
    return rows


def fused(
    function: Callable[..., Any], *inputs: Tensor, times: int = 1, **constants: Tensor
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graph after the pass, and one that the bits pass has seen too; all three equal."""
    gm = graph(function, *inputs, **constants)
    result = apply(fuse_xor_edge_conv.run, gm, *inputs, keeps_taps=False)
    assert (result.rewrites, result.refusals) == (times, [])
    assert count(gm, bgnn.xor_edge_layer) == times
    assert count(gm, bgnn.dot_threshold, aten.cat, bgnn.gather_nodes) == 0
    packed = graph(function, *inputs, **constants)
    fuse_xor_edge_conv.run(packed)
    apply(pack_bits.run, packed, *inputs)
    assert count(packed, bgnn.xor_edge_conv) == times
    assert count(packed, bgnn.xor_edge_layer) == 0
    return gm, packed


@pytest.mark.parametrize("sign", ["x * y", "y * x", "-(x * y)", "-x * y", "y * -x", "-y * x", "-x * -y", "-(-x * y)"])
@pytest.mark.parametrize("order", ["node first", "edge first"])
def test_spellings(order: str, sign: str) -> None:
    c, o = 5, 9
    gm, _ = fused(
        lambda m, x, i: layer(m, b(x), i, order=order, sign=sign), randn(BATCH, POINTS, c), INDEX,
        w=signs(o, 2 * c, seed=1), t=thresholds(1, o, 2 * c),
    )  # fmt: skip
    original = signs(o, 2 * c, seed=1)
    halves = original.split(c, 1) if order == "node first" else original.split(c, 1)[::-1]
    minus = -1 if sign.count("-") % 2 else 1
    weight = constants_of(only(gm, bgnn.xor_edge_layer))[0]
    assert torch.equal(weight, torch.cat([halves[0], minus * halves[1]], 1))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (31, 33), (32, 32), (33, 31), (64, 40), (70, 65)])
def test_sizes_and_tables(channels: int, filters: int, steps: int) -> None:
    fused(
        lambda m, x, i: layer(m, b(x), i, order="edge first", sign="-x * y"), randn(BATCH, POINTS, channels), INDEX,
        w=signs(filters, 2 * channels), t=thresholds(steps, filters, 2 * channels),
    )  # fmt: skip


@pytest.mark.parametrize("keepdim", [True, False])
def test_the_shape_of_the_maximum_stays(keepdim: bool) -> None:
    fused(
        lambda m, x, i: bgnn.dot_threshold(joined(b(x), i), m.w, m.t).amax(2, keepdim), randn(BATCH, POINTS, 6), INDEX,
        w=signs(3, 12), t=thresholds(1, 3, 12),
    )  # fmt: skip


def test_flips_before_and_after() -> None:
    """Minus on some channels: the node half's weights turn, the product's do not; the next layer gets the rest."""
    c, o = 33, 40

    def function(m: Any, x: Tensor, i: Tensor) -> Tensor:
        first = layer(m, b(x) * m.before, i, sign="-x * y")
        return torch.nn.functional.linear(first * m.after, m.v)

    fused(
        function, randn(BATCH, POINTS, c), INDEX, w=signs(o, 2 * c), t=thresholds(2, o, 2 * c), v=signs(7, o),
        before=signs(c, seed=3), after=signs(o, seed=4),
    )  # fmt: skip


def test_two_layers_stay_in_bits() -> None:
    c = 33

    def function(m: Any, x: Tensor, i: Tensor) -> Tensor:
        x = layer(m, b(x), i) * m.flips
        return bgnn.dot_threshold(joined(x, i.flip(1), sign="-x * y"), m.w2, m.t2).amax(2)

    _, packed = fused(
        function, randn(BATCH, POINTS, c), INDEX, times=2, w=signs(c, 2 * c), t=thresholds(1, c, 2 * c),
        w2=signs(35, 2 * c, seed=2), t2=thresholds(2, 35, 2 * c, seed=2), flips=signs(c, seed=8),
    )  # fmt: skip
    assert (count(packed, bgnn.pack), count(packed, bgnn.unpack)) == (1, 1)


def test_a_neighbour_table_of_another_tensor() -> None:
    """Which neighbours is free: only the features must be the node's own."""
    c = 8
    x = randn(BATCH, POINTS, c)

    def function(m: Any, x: Tensor, points: Tensor) -> Tensor:
        return layer(m, b(x), bgnn.knn(points, 3, "l2"))

    gm, _ = fused(function, x, randn(BATCH, POINTS, 3, seed=4), w=signs(5, 2 * c), t=thresholds(1, 5, 2 * c))
    lower_knn.run(gm, popcount=True)
    assert count(gm, bgnn.real_knn) == 1


def norm_constants(channels: int) -> dict[str, Tensor]:
    return {
        "g": randn(channels, seed=1),
        "h": randn(channels, seed=2),
        "mu": randn(channels, seed=3),
        "va": randn(channels, seed=4).abs() + 0.1,
    }


@pytest.mark.parametrize("slope", ["positive", "negative"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_whole_layer_of_the_paper(norm_first: bool, slope: str) -> None:
    """BF2 and BF1 with negative BatchNorm scales: channels that take a minimum, intervals for negative slopes."""
    c, o = 33, 31
    x, w = randn(BATCH, POINTS, c), signs(o, 2 * c)
    slopes = randn(o, seed=6).abs() * (1 if slope == "positive" else -1)

    def function(m: Any, x: Tensor, i: Tensor) -> Tensor:
        a = torch.nn.functional.linear(joined(b(x), i, "edge first", "-x * y"), m.w)
        if norm_first:
            a = bgnn.prelu(bgnn.batch_norm(a, m.g, m.h, m.mu, m.va, 1e-5), m.slopes).amax(2)
        else:
            a = bgnn.batch_norm(bgnn.prelu(a, m.slopes).amax(2), m.g, m.h, m.mu, m.va, 1e-5)
        return b(a)

    gm = graph(function, x, INDEX, w=w, slopes=slopes, **norm_constants(o))
    assert apply(fold_threshold.run, gm, x, INDEX).rewrites == 1
    assert apply(fuse_xor_edge_conv.run, gm, x, INDEX).rewrites == 1
    apply(pack_bits.run, gm, x, INDEX)
    assert count(gm, bgnn.xor_edge_conv) == 1
    assert count(gm, aten.prelu, bgnn.batch_norm, bgnn.gather_nodes) == 0


LEFT: dict[str, Callable[..., Any]] = {
    "edges of another tensor": lambda m, x, y, i: torch.cat(
        [x[:, :, None].expand(-1, -1, K, -1), x[:, :, None].expand(-1, -1, K, -1) * bgnn.gather_nodes(y, i)], 3
    ),
    "products of another tensor": lambda m, x, y, i: torch.cat(
        [x[:, :, None].expand(-1, -1, K, -1), y[:, :, None].expand(-1, -1, K, -1) * bgnn.gather_nodes(x, i)], 3
    ),
    "neighbours alone": lambda m, x, y, i: torch.cat([x[:, :, None].expand(-1, -1, K, -1), bgnn.gather_nodes(x, i)], 3),
    "products of neighbours": lambda m, x, y, i: torch.cat(
        [x[:, :, None].expand(-1, -1, K, -1), bgnn.gather_nodes(x, i) * bgnn.gather_nodes(x, i.flip(2))], 3
    ),
    "real edges": lambda m, x, y, i: torch.cat(
        [x[:, :, None].expand(-1, -1, K, -1), b(bgnn.gather_nodes(x, i) - x[:, :, None] + 0.5)], 3
    ),
    "neighbour and product": lambda m, x, y, i: torch.cat(
        [bgnn.gather_nodes(x, i), bgnn.gather_nodes(x, i) * x[:, :, None].expand(-1, -1, K, -1)], 3
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_other_edges_are_refused(name: str) -> None:
    c = 6
    x, y = randn(BATCH, POINTS, c), randn(BATCH, POINTS, c, seed=1)
    gm = graph(
        lambda m, x, y, i: bgnn.dot_threshold(LEFT[name](m, b(x), b(y), i), m.w, m.t).amax(2), x, y, INDEX,
        w=signs(4, 2 * c), t=thresholds(1, 4, 2 * c),
    )  # fmt: skip
    result = apply(fuse_xor_edge_conv.run, gm, x, y, INDEX)
    assert result.rewrites == 0
    assert "not [x_i, x_i * x_j]" in result.refusals[0][1]
    assert count(gm, bgnn.xor_edge_layer) == 0


POOLS: dict[str, Callable[..., Any]] = {
    "a maximum over the points": lambda y: y.amax(1),
    "a maximum over both": lambda y: y.amax((1, 2)),
    "a minimum": lambda y: y.amin(2),
    "a mean": lambda y: y.mean(2),
    "nothing": lambda y: y,
    "two readers": lambda y: y.amax(2) + y.mean(2),
}


@pytest.mark.parametrize("name", POOLS)
def test_other_poolings_are_left_alone(name: str) -> None:
    x = randn(BATCH, POINTS, 5)
    gm = graph(
        lambda m, x, i: POOLS[name](bgnn.dot_threshold(joined(b(x), i), m.w, m.t)), x, INDEX,
        w=signs(4, 10), t=thresholds(1, 4, 10),
    )  # fmt: skip
    assert apply(fuse_xor_edge_conv.run, gm, x, INDEX).rewrites == 0
    assert count(gm, bgnn.dot_threshold) == 1


def test_one_number_a_point_read_as_many_points() -> None:
    """x as [B, N*C, 1, 1], repeated over k and C, has an edge layer's ops but is no node half."""
    x, index = randn(1, 2, 3), torch.tensor([[[0], [1], [1], [0], [0], [1]]])

    def function(m: Any, x: Tensor, i: Tensor) -> Tensor:
        s = b(x)
        node = s.reshape(1, 6, 1, 1).expand(1, 6, 1, 3)
        return bgnn.dot_threshold(torch.cat([node, node * bgnn.gather_nodes(s, i)], 3), m.w, m.t).amax(2)

    gm = graph(function, x, index, w=signs(4, 6), t=thresholds(1, 4, 6))
    assert apply(fuse_xor_edge_conv.run, gm, x, index).rewrites == 0


def test_a_sign_before_the_maximum_is_still_compared() -> None:
    """The edge's own sign has no tensor any more; the maximum of signs is what the file can show."""
    x = randn(BATCH, POINTS, 5)
    gm = graph(
        lambda m, x, i: b(torch.nn.functional.linear(joined(b(x), i), m.w) - 0.5).amax(2), x, INDEX, w=signs(4, 10)
    )
    apply(fold_threshold.run, gm, x, INDEX)
    apply(fuse_xor_edge_conv.run, gm, x, INDEX, keeps_taps=False)
    assert count(gm, bgnn.xor_edge_layer) == 1


def test_through_the_stages() -> None:
    """From a traced function to the target stage: one search and one edge operator, and nothing per edge."""
    c = 33

    def function(m: Any, x: Tensor) -> Tensor:
        s = torch.where(x >= 0, 1.0, -1.0)
        i = (s @ s.transpose(1, 2)).topk(K, -1)[1]
        node = s[:, :, None].expand(-1, -1, K, -1)
        other = s[torch.arange(BATCH)[:, None, None], i]
        a = torch.nn.functional.linear(torch.cat([-other * node, node], 3), m.w)
        a = torch.nn.functional.batch_norm(a.amax(2).reshape(-1, 31), m.mu, m.va, m.g, m.h)
        return torch.where(a >= 0, 1.0, -1.0)

    x = randn(BATCH, POINTS, c)
    plan = stages.Plan("lce-arm64", kernels="bgnn")
    gm = up_to("target", function, x, plan=plan, w=signs(31, 2 * c), **norm_constants(31))
    assert (count(gm, bgnn.hamming_knn), count(gm, bgnn.xor_edge_conv)) == (1, 1)
    assert count(gm, bgnn.gather_nodes, aten.matmul, bgnn.bconv_bits) == 0
    found = outputs(gm, x)[0]
    stock = up_to("target", function, x, w=signs(31, 2 * c), **norm_constants(31))
    assert torch.equal(found, outputs(stock, x)[0])
