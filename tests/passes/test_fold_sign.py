"""A norm before a sign is a comparison: it decides as PyTorch does for every float32 number, to the last one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import apply, aten, bgnn, constants_of, count, graph, only, outputs, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from bgnn.passes import float_order, fold_sign
from bgnn.passes.graph import all_taps

b = bgnn.binarize
INFINITY = torch.tensor(math.inf)


def norm(m: Any, x: Tensor) -> Tensor:
    return bgnn.batch_norm(x, m.g, m.h, m.mu, m.va, 1e-5)


def norm_constants(channels: int, seed: int = 0) -> dict[str, Tensor]:
    return {
        "g": randn(channels, seed=seed + 1),
        "h": randn(channels, seed=seed + 2),
        "mu": randn(channels, seed=seed + 3),
        "va": randn(channels, seed=seed + 4).abs() + 0.1,
    }


def around(threshold: Tensor) -> Tensor:
    """`[V, C]`: the thresholds, the 20 float32 numbers on either side of each, and numbers far away."""
    rows = [threshold]
    for direction in (INFINITY, -INFINITY):
        current = threshold
        for _ in range(20):
            current = torch.nextafter(current, direction)
            rows.append(current)
    scale = threshold.abs().clamp(1e-30, 1e30)
    rows += [threshold + f * scale for f in (-1e3, -2.0, -1.0, -1e-2, -1e-5, 1e-5, 1e-2, 1.0, 2.0, 1e3)]
    rows += [torch.full_like(threshold, f) for f in (0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e6, -1e6)]
    return torch.stack(rows).clamp(-1e37, 1e37)


def check(function: Callable[..., Any], channels: int, **constants: Tensor) -> tuple[fx.GraphModule, Tensor]:
    """The pass rewrites `binarize(function(x))` once; equal on random numbers and on every neighbour of t."""
    x = randn(7, channels, seed=9)
    gm = graph(lambda m, x: b(function(m, x)), x, **constants)
    before = graph(lambda m, x: b(function(m, x)), x, **constants)
    result = apply(fold_sign.run, gm, x)
    assert (result.rewrites, result.refusals) == (1, [])
    (threshold,) = constants_of(only(gm, aten.sub))
    near = around(threshold)
    assert torch.equal(outputs(gm, near)[0], outputs(before, near)[0])
    return gm, threshold


def test_a_norm_is_one_subtraction() -> None:
    gm, _ = check(norm, 33, **norm_constants(33))
    assert count(gm, bgnn.batch_norm) == 0
    assert [str(n.target) for n in gm.graph.nodes if n.op == "call_function"] == [
        "aten.sub.Tensor",
        "bgnn.binarize.default",
        "aten.mul.Tensor",
    ]


def test_rising_channels_need_no_minus() -> None:
    constants = norm_constants(6)
    gm, _ = check(norm, 6, **{**constants, "g": constants["g"].abs()})
    assert count(gm, aten.mul) == 0


def test_falling_channels_turn() -> None:
    constants = norm_constants(6)
    constants["g"] = torch.tensor([1.0, -1, 0.5, -0.5, 2, -2])
    gm, _ = check(norm, 6, **constants)
    assert constants_of(only(gm, aten.mul))[0].tolist() == [1, -1, 1, -1, 1, -1]


def test_the_threshold_is_where_the_norm_turns() -> None:
    _, threshold = check(
        norm, 2, g=torch.tensor([2.0, 2]), h=torch.tensor([1.0, -3]), mu=torch.tensor([5.0, 5]), va=torch.ones(2)
    )
    torch.testing.assert_close(threshold, torch.tensor([4.5, 6.5]), rtol=1e-5, atol=0)


def test_a_scale_of_zero_gives_one_sign_for_every_number() -> None:
    x = randn(50, 4) * 100
    constants = norm_constants(4)
    constants.update(g=torch.tensor([0.0, 0, 0, 1]), h=torch.tensor([1.0, -1, 0, 0]))
    gm = graph(lambda m, x: b(norm(m, x)), x, **constants)
    assert apply(fold_sign.run, gm, x).rewrites == 1
    assert outputs(gm, x)[0][:, :3].unique(dim=0).tolist() == [[1, -1, 1]]


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-6, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("var", [1e-12, 1.0, 1e12])
def test_huge_and_tiny_scales(scale: float, var: float) -> None:
    constants = norm_constants(9)
    check(norm, 9, **{**constants, "g": constants["g"] * scale, "va": constants["va"] * var})


@pytest.mark.parametrize("mean", [1e-20, 1e4, 1e20])
def test_huge_and_tiny_means(mean: float) -> None:
    constants = norm_constants(9)
    check(norm, 9, **{**constants, "mu": constants["mu"] * mean})


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1.0])
def test_a_norm_without_weight_and_bias(eps: float) -> None:
    check(lambda m, x: bgnn.batch_norm(x, None, None, m.mu, m.va, eps), 5, **norm_constants(5))


CHAINS: dict[str, Callable[..., Any]] = {
    "prelu, norm": lambda m, x: norm(m, bgnn.prelu(x, m.slope)),
    "norm, prelu": lambda m, x: bgnn.prelu(norm(m, x), m.slope),
    "one slope": lambda m, x: norm(m, bgnn.prelu(x, m.one)),
    "two norms": lambda m, x: norm(m, norm(m, x) + 0.25),
    "bias and factor": lambda m, x: (x + m.h) * m.g,
    "number minus": lambda m, x: (1.5 - x) * m.g,
    "divided": lambda m, x: x / m.va - m.h,
    "tanh of norm": lambda m, x: torch.tanh(norm(m, x)) - 0.3,
    "clamped": lambda m, x: norm(m, x).clamp(-1, 1) + 0.7,
    "leaky relu": lambda m, x: torch.nn.functional.leaky_relu(norm(m, x), 0.2) * m.g,
    "negated": lambda m, x: -norm(m, x),
    "relu below its bias": lambda m, x: torch.relu(norm(m, x)) - m.va,
    "always positive": lambda m, x: torch.relu(norm(m, x)) + m.va,
    "never positive": lambda m, x: torch.sigmoid(x * m.g) - 1.5,
}


@pytest.mark.parametrize("channels", [1, 31, 33])
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str, channels: int) -> None:
    slope = randn(channels, seed=7).abs()
    slope[::3] = 0
    gm, threshold = check(CHAINS[name], channels, slope=slope, one=slope[:1] + 0.5, **norm_constants(channels))
    assert count(gm, bgnn.batch_norm, bgnn.prelu, aten.tanh, aten.div) == 0
    assert threshold.shape == (channels,)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-(2.0**60), 2.0**60, width=32),
    st.floats(-(2.0**60), 2.0**60, width=32),
    st.floats(-(2.0**60), 2.0**60, width=32),
    st.floats(2.0**-60, 2.0**60, width=32),
    st.floats(0, 4, width=32),
)
def test_any_norm_and_slope(weight: float, bias: float, mean: float, var: float, slope: float) -> None:
    """`thresholds` itself: what it returns decides as the chain does, or it returns nothing."""
    chain = graph(
        lambda m, x: norm(m, bgnn.prelu(x, m.slope)),
        randn(3, 1),
        g=torch.tensor([weight]),
        h=torch.tensor([bias]),
        mu=torch.tensor([mean]),
        va=torch.tensor([var]),
        slope=torch.tensor([slope]),
    )
    ops = [n for n in chain.graph.nodes if n.op == "call_function"]
    found = fold_sign.thresholds(ops, 1)
    assert found is not None
    threshold, sign = found
    x = around(threshold)
    x = x[x.abs()[:, 0] < 1e36]
    assert torch.equal(outputs(chain, x)[0] >= 0, torch.where(x - threshold >= 0, sign, -sign) > 0)


def test_orders_of_numbers() -> None:
    x = torch.tensor([-math.inf, -3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3e38, math.inf])
    order = float_order.order(x)
    assert torch.equal(order, order.sort()[0])
    assert int(order[4]) == int(order[5]) == 0
    assert (int(order[3]), int(order[6])) == (-1, 1)
    assert torch.equal(float_order.number(order), x)


ALONE: dict[str, Callable[..., Any]] = {
    "nothing": lambda m, x: b(x),
    "a subtraction": lambda m, x: b(x - m.h),
    "a factor": lambda m, x: b(x * m.g),
    "a relu": lambda m, x: b(torch.relu(x)),
    "a slope": lambda m, x: b(bgnn.prelu(x, m.va)),
    "the norm is read elsewhere": lambda m, x: (lambda n: b(n) * n.sum())(norm(m, x)),
    "an addend per point": lambda m, x: b(x + m.points),
    "two tensors": lambda m, x: b(x + x.flip(0)),
    "a valley alone": lambda m, x: b(x.abs() - 1),
    "a number through the input": lambda m, x: b(torch.softmax(x, 1)),
}


@pytest.mark.parametrize("name", ALONE)
def test_left_alone(name: str) -> None:
    x = randn(5, 4)
    function = ALONE[name]
    gm = graph(function, x, points=randn(5, 1), **norm_constants(4))
    before = [str(n.target) for n in gm.graph.nodes]
    assert apply(fold_sign.run, gm, x).rewrites == 0
    assert [str(n.target) for n in gm.graph.nodes] == before


def test_two_ops_after_a_valley_fold_up_to_it() -> None:
    """What is no comparison of x is one of |x|; a PReLU with negative slopes is a valley too."""
    for valley in (lambda m, x: x.abs(), lambda m, x: bgnn.prelu(x, m.slope)):
        x = randn(40, 5)
        gm = graph(lambda m, x, f=valley: b(norm(m, f(m, x))), x, slope=-randn(5).abs() - 0.1, **norm_constants(5))
        assert apply(fold_sign.run, gm, x).rewrites == 1
        assert count(gm, bgnn.batch_norm) == 0
        assert count(gm, aten.abs, bgnn.prelu) == 1


def test_a_shared_tensor_ends_the_chain() -> None:
    x = randn(8, 4)
    gm = graph(lambda m, x: (lambda y: b(norm(m, y)) + y)(x * m.g + m.h), x, **norm_constants(4))
    assert apply(fold_sign.run, gm, x).rewrites == 1
    assert count(gm, bgnn.batch_norm) == 0
    assert count(gm, aten.mul, aten.add) >= 3, "y itself is still computed"


def test_a_constant_that_no_number_decides_is_refused() -> None:
    """x * 0 is NaN where x is infinite: the ends of float32 mislead the search, and the check notices."""
    x = randn(8, 2)
    gm = graph(lambda m, x: b(x * 1e10 * m.zero), x, zero=torch.tensor([0.0, 1.0]))
    result = apply(fold_sign.run, gm, x)
    assert result.rewrites == 0
    assert "no comparison" in result.refusals[0][1]


def test_every_sign_is_rewritten_and_stays_tapped() -> None:
    x = randn(3, 6, 4)
    gm = graph(lambda m, x: b(norm(m, b(norm(m, x)).cumsum(1) * 0.5 + x)), x, **norm_constants(4))
    names = {tap.name for _, tap in all_taps(gm)}
    assert len(names) == 2
    assert apply(fold_sign.run, gm, x).rewrites == 2
    assert {tap.name for _, tap in all_taps(gm)} == names
    again = apply(fold_sign.run, gm, x)
    assert again.rewrites == 0, "x - t is folded already"


def test_channels_last_at_any_rank() -> None:
    for shape in ((4,), (2, 4), (2, 3, 5, 4)):
        x = randn(*shape)
        gm = graph(lambda m, x: b((x + m.h) * m.g), x, **norm_constants(4))
        assert apply(fold_sign.run, gm, x).rewrites == 1


def test_double_precision_is_left_alone() -> None:
    x = randn(5, 4).double()
    gm = graph(lambda m, x: b((x + 1.0) * 2.0), x)
    assert apply(fold_sign.run, gm, x).rewrites == 0
