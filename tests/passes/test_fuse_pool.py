"""A binary layer that is only pooled: four integers per channel give each pooling; maxima exact, means within float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, constants_of, count, graph, only, randn, signs
from torch import Tensor, fx

from bgnn.passes import fuse_pool, pack_bits
from bgnn.passes.graph import value_of

b = bgnn.binarize
POINTS, FAN_IN = 7, 33


def pooled(
    function: Callable[..., Any], filters: int = 9, times: int = 1, tolerance: float = 0.0, fan_in: int = FAN_IN,
    **constants: Tensor,
) -> tuple[fx.GraphModule, Any]:  # fmt: skip
    """`function(m, linear(sign(x)))` after the pass and after packing; both equal to PyTorch."""
    x = randn(3, POINTS, fan_in)

    def whole(m: Any, x: Tensor) -> Any:
        return function(m, F.linear(b(x), m.w))

    gm = graph(whole, x, w=signs(filters, fan_in), **constants)
    result = apply(fuse_pool.run, gm, x, tolerance=tolerance)
    assert result.rewrites == times
    assert count(gm, bgnn.dense_pool_layer) == times
    if times:
        assert count(gm, aten.linear) == 0
        packed = graph(whole, x, w=signs(filters, fan_in), **constants)
        fuse_pool.run(packed)
        apply(pack_bits.run, packed, x, tolerance=tolerance)
        assert count(packed, bgnn.dense_pool) == 1
    return gm, result


POOLINGS: dict[str, Callable[..., Any]] = {
    "amax": lambda y: y.amax(1),
    "amin": lambda y: y.amin(1),
    "mean": lambda y: y.mean(1),
    "amax, keepdim": lambda y: y.amax(1, True),
    "mean, keepdim": lambda y: y.mean(1, True),
    "amax and mean": lambda y: torch.cat([y.amax(1), y.mean(1)], 1),
    "all three": lambda y: y.amax(1) + 2 * y.amin(1) + 3 * y.mean(1),
}


@pytest.mark.parametrize("filters", [1, 31, 33])
@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_of_the_layer_itself(name: str, filters: int) -> None:
    pooled(lambda m, y: POOLINGS[name](y), filters, tolerance=1e-6 if "mean" in name or "all" in name else 0.0)


@pytest.mark.parametrize("slopes", ["positive", "negative", "zero", "mixed", "one"])
@pytest.mark.parametrize("name", ["amax", "mean", "amax and mean"])
def test_prelu(name: str, slopes: str) -> None:
    """A valley (a negative slope) has its maximum at the ends too."""
    slope = {
        "positive": randn(9).abs(), "negative": -randn(9).abs(), "zero": torch.zeros(9), "mixed": randn(9),
        "one": torch.tensor([-0.25]),
    }[slopes]  # fmt: skip
    pooled(lambda m, y: POOLINGS[name](bgnn.prelu(y, m.slope)), tolerance=1e-6 if "mean" in name else 0.0, slope=slope)


@pytest.mark.parametrize("name", POOLINGS)
def test_rescaling_and_prelu(name: str) -> None:
    """Gamma of both signs and a rising PReLU; a fall and a rise per channel."""
    gamma = randn(9, seed=3)
    assert bool((gamma < 0).any())
    pooled(
        lambda m, y: POOLINGS[name](bgnn.prelu(y * m.gamma, m.slope)),
        tolerance=0.0 if name in ("amax", "amin", "amax, keepdim") else 1e-6, gamma=gamma, slope=randn(9).abs(),
    )  # fmt: skip


CHAINS: dict[str, Callable[..., Any]] = {
    "relu": lambda m, y: torch.relu(y),
    "relu of minus": lambda m, y: torch.relu(-y) / 3,
    "leaky relu": lambda m, y: F.leaky_relu(y * m.gamma, 0.3),
    "leaky relu as keyword": lambda m, y: F.leaky_relu(y, negative_slope=0.3) * 0.5,
    "divided": lambda m, y: y / m.gamma,
    "factors": lambda m, y: y * m.gamma * -0.25 * m.gamma,
    "nothing left": lambda m, y: y * 0.0,
}


@pytest.mark.parametrize("pool", ["amax", "amin", "mean"])
@pytest.mark.parametrize("name", CHAINS)
def test_other_functions(name: str, pool: str) -> None:
    pooled(
        lambda m, y: POOLINGS[pool](CHAINS[name](m, y)), tolerance=1e-6 if pool == "mean" else 0.0,
        gamma=randn(9, seed=3),
    )  # fmt: skip


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "a ridge": (lambda m, y: (-y.abs()).amax(1), "extremum"),
    "a ridge from a prelu": (lambda m, y: (bgnn.prelu(y, m.slope) * -1.0).amax(1), "extremum"),
    "a valley": (lambda m, y: y.abs().amin(1), "extremum"),
    "a valley from a prelu": (lambda m, y: bgnn.prelu(y, m.slope).amin(1), "extremum"),
    "one ridge of many": (lambda m, y: bgnn.prelu(y, m.one_negative).amin(1), "extremum"),
    "a valley beside a maximum": (lambda m, y: (lambda z: z.amax(1) + z.amin(1))(y.abs()), "extremum"),
    "an addend": (lambda m, y: (y + m.gamma).mean(1), "factor on each side"),
    "a norm": (lambda m, y: bgnn.batch_norm(y, m.gamma, None, m.gamma, m.var, 1e-5).mean(1), "factor on each side"),
    "tanh": (lambda m, y: torch.tanh(y).mean(1), "factor on each side"),
    "a clip": (lambda m, y: y.clamp(-20, 20).mean(1), "factor on each side"),
    "another reader": (lambda m, y: y.amax(1) + y[:, 0], "more than poolings"),
    "another reader of the function": (lambda m, y: (lambda z: z.mean(1) * z.sum())(y * 0.5), "more than poolings"),
    "the layer is read": (lambda m, y: (y * 0.5).amax(1) + y.amax(1) * y[:, 0], "more than poolings"),
    "the result": (lambda m, y: y * 0.5, "more than poolings"),
    "a maximum over channels": (lambda m, y: y.amax(2), "more than poolings"),
    "a maximum of all": (lambda m, y: y.amax((1, 2)), "more than poolings"),
    "a maximum over the batch": (lambda m, y: y.amax(0), "more than poolings"),
    "a factor per point behind a PReLU": (
        lambda m, y: (bgnn.prelu(y, m.slope) * m.points).amax(1),
        "more than poolings",
    ),
    "a factor per point and channel": (lambda m, y: (y * m.whole).amax(1), "more than poolings"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    function, why = REFUSED[name]
    slope = -randn(9).abs() - 0.1
    one_negative = randn(9).abs()
    one_negative[4] = -0.5
    _, result = pooled(
        function, times=0, gamma=randn(9, seed=3), slope=slope, one_negative=one_negative, var=torch.ones(9),
        points=randn(POINTS, 1), whole=randn(POINTS, 9),
    )  # fmt: skip
    assert why in result.refusals[0][1]


def test_clips_beyond_the_tried_numbers() -> None:
    """A dot product of 1200 signs reaches 1200; a clip at 600 is no factor there."""
    x = torch.ones(1, 4, 1200)
    gm = graph(lambda m, x: F.linear(b(x), m.w).clamp(-600, 600).amax(1), x, w=torch.ones(3, 1200))
    apply(fuse_pool.run, gm, x)
    gm = graph(lambda m, x: F.linear(b(x), m.w).clamp(-600, 600).mean(1), x, w=torch.ones(3, 1200))
    apply(fuse_pool.run, gm, x, tolerance=1e-6)


LEFT: dict[str, Callable[..., Any]] = {
    "a bias": lambda m, x: F.linear(b(x), m.w, m.bias).amax(1),
    "real weights": lambda m, x: F.linear(b(x), m.w * 0.5).amax(1),
    "real features": lambda m, x: F.linear(x, m.w).amax(1),
    "edges": lambda m, x: F.linear(b(x)[:, :, None].expand(-1, -1, 2, -1), m.w).amax(2),
    "no points": lambda m, x: F.linear(b(x)[:, 0], m.w).amax(1),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name: str) -> None:
    x = randn(2, 5, 6)
    gm = graph(LEFT[name], x, w=signs(4, 6), bias=torch.ones(4))
    assert apply(fuse_pool.run, gm, x).rewrites == 0
    assert count(gm, bgnn.dense_pool_layer) == 0


def test_a_falling_function_takes_the_opposite_weights() -> None:
    """One end of the dot products is left, and one constant for the mean, where all slopes are one number."""
    gamma, slope = randn(9, seed=3), torch.tensor([0.3])
    assert bool((gamma < 0).any())
    assert bool((gamma > 0).any())
    gm, _ = pooled(
        lambda m, y: (lambda z: torch.cat([z.amax(1), z.mean(1)], 1))(bgnn.prelu(y * m.gamma, m.slope)),
        tolerance=1e-6, gamma=gamma, slope=slope,
    )  # fmt: skip
    assert count(gm, aten.maximum) == 0
    (weight,) = constants_of(only(gm, bgnn.dense_pool_layer))
    assert torch.equal(weight, signs(9, FAN_IN) * torch.sign(gamma)[:, None])
    per_channel = [value_of(n) for n in gm.graph.nodes if n.op == "get_attr" and value_of(n).numel() == 9]
    assert len(per_channel) == 2
    assert any(torch.equal(value, gamma.abs()) for value in per_channel)


@pytest.mark.parametrize("shape", [(POINTS, 1), (1, POINTS, 1)])
@pytest.mark.parametrize("name", POOLINGS)
def test_factors_per_point(name: str, shape: tuple[int, ...]) -> None:
    """beta of both signs between the other factors, and a PReLU after them."""
    gm, _ = pooled(
        lambda m, y: POOLINGS[name](bgnn.prelu(y * m.gamma * m.points * m.more * 0.5, m.slope)), tolerance=1e-6,
        gamma=randn(9, seed=3), points=randn(*shape), more=randn(*shape, seed=2), slope=randn(9).abs(),
    )  # fmt: skip
    scale = only(gm, bgnn.dense_pool_layer).args[2]
    assert isinstance(scale, fx.Node)
    assert torch.equal(value_of(scale), (randn(*shape, seed=2) * randn(*shape)).flatten())


def test_more_points_than_float_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_pool, "EXACT", POINTS * FAN_IN - 1)
    _, result = pooled(lambda m, y: y.mean(1), times=0)
    assert "integers" in result.refusals[0][1]


def test_flips_reach_the_weights() -> None:
    x = randn(2, 5, 33)
    gm = graph(lambda m, x: F.linear(b(x) * m.flips, m.w).amax(1), x, w=signs(8, 33), flips=signs(33, seed=2))
    assert apply(fuse_pool.run, gm, x).rewrites == 1
    apply(pack_bits.run, gm, x)
    assert count(gm, aten.bitwise_xor) == 0


def test_two_layers_of_one_tensor() -> None:
    x = randn(2, 5, 6)
    gm = graph(
        lambda m, x: F.linear(b(x), m.w).amax(1) + F.linear(b(x), m.v).amax(1), x, w=signs(4, 6), v=signs(4, 6, seed=1)
    )
    assert apply(fuse_pool.run, gm, x).rewrites == 2
