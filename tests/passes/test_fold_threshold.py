"""A sign after a binary layer becomes thresholds on an integer: bit-equal, for every value the integer can take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, constants_of, count, graph, only, outputs, randn, signs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bgnn.passes import fold_threshold
from bgnn.passes.graph import PassResult

b = bgnn.binarize


def all_sums(fan_in: int) -> Tensor:
    """`[K+1, K]` of signs: with weights of +1 the dot products are -K, -K+2, ..., K."""
    return torch.where(torch.arange(fan_in) < torch.arange(fan_in + 1)[:, None], 1.0, -1.0)


def layers(thresholds: Tensor) -> int:
    """How many binary layers the thresholds cost: a row of constant signs costs none."""
    return max(1, int(((thresholds >= 0) & (thresholds != fold_threshold.NEVER)).any(1).sum()))


def dot_products(gm: Any) -> int:
    return layers(constants_of(only(gm, bgnn.dot_threshold))[1])


def folded(function: Callable[..., Any], *inputs: Tensor, **constants: Tensor) -> tuple[Any, PassResult]:
    """The graph after the pass; outputs and taps were compared bit for bit."""
    gm = graph(function, *inputs, **constants)
    return gm, apply(fold_threshold.run, gm, *inputs)


def rewritten(function: Callable[..., Any], *inputs: Tensor, **constants: Tensor) -> Any:
    gm, result = folded(function, *inputs, **constants)
    assert (result.rewrites, result.refusals) == (1, [])
    assert count(gm, bgnn.binarize) == 1  # the input's
    assert count(gm, bgnn.dot_threshold) == 1
    return gm


def norm(c: int, seed: int = 0, **changes: Tensor) -> dict[str, Tensor]:
    """BatchNorm parameters with positive, negative and zero scales."""
    weight = randn(c, seed=seed + 1)
    weight[::5] = 0.0
    values = {
        "g": weight,
        "h": randn(c, seed=seed + 2),
        "mu": randn(c, seed=seed + 3) * 3,
        "va": randn(c, seed=seed + 4).abs() + 0.1,
    }
    return values | changes


def bn(m: Any, x: Tensor) -> Tensor:
    return bgnn.batch_norm(x, m.g, m.h, m.mu, m.va, 1e-5)


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("fan_in", [1, 2, 7, 8, 33])
def test_plain_sign_with_odd_and_even_fan_in(fan_in: int, channels: int) -> None:
    """An even K reaches exact zeros, whose sign is +1."""
    x = torch.cat([all_sums(fan_in), randn(5, fan_in)])
    gm = rewritten(lambda m, x: b(F.linear(b(x), m.w)), x, w=signs(channels, fan_in))
    assert constants_of(only(gm, bgnn.dot_threshold))[1].shape == (1, channels)


def test_weights_of_one_reach_every_value() -> None:
    for fan_in in (3, 4):
        gm = rewritten(lambda m, x: b(F.linear(b(x), m.w)), all_sums(fan_in), w=torch.ones(1, fan_in))
        expected = torch.where(torch.arange(-fan_in, fan_in + 1, 2) >= 0, 1.0, -1.0)[:, None]
        assert torch.equal(outputs(gm, all_sums(fan_in))[0], expected)


@pytest.mark.parametrize("fan_in", [5, 6])
@pytest.mark.parametrize("slope", [-2.0, -1.0, -0.25, 0.0, 0.25, 1.0])
def test_prelu_norm_and_gamma(slope: float, fan_in: int) -> None:
    """Slopes, Gammas and BatchNorm scales of every sign; a negative slope makes an interval."""
    channels = 65
    gamma = randn(channels, seed=7)
    gamma[::4] = 0.0
    gm = rewritten(
        lambda m, x: b(bn(m, bgnn.prelu(F.linear(b(x), m.w) * m.gamma, m.slope))),
        all_sums(fan_in),
        w=torch.ones(channels, fan_in),
        gamma=gamma,
        slope=torch.tensor([slope]),
        **norm(channels),
    )
    assert dot_products(gm) == (2 if slope < 0 else 1)


def test_slopes_per_channel() -> None:
    channels = 33
    slopes = torch.linspace(-1, 1, channels)
    rewritten(
        lambda m, x: b(bn(m, bgnn.prelu(F.linear(b(x), m.w), m.slopes))),
        all_sums(9),
        w=torch.ones(channels, 9),
        slopes=slopes,
        **norm(channels),
    )


def test_ties_at_exactly_zero_after_the_norm() -> None:
    """Means that the sum itself reaches, no bias: the norm gives 0 or its own rounding, and the table must agree."""
    fan_in = 8
    mean = torch.arange(-fan_in, fan_in + 1, 2).float()
    channels = len(mean)
    for seed in range(8):
        parameters = norm(channels, seed, mu=mean, h=torch.zeros(channels))
        rewritten(
            lambda m, x: b(bn(m, F.linear(b(x), m.w))), all_sums(fan_in), w=torch.ones(channels, fan_in), **parameters
        )


def test_many_steps_from_the_outside_in() -> None:
    """|acc| > 2 in one channel, acc > 1 in the next, always -1 in the third: thresholds per channel."""
    gm = rewritten(
        lambda m, x: b((F.linear(b(x), m.w) * m.s).abs() - m.t),
        all_sums(6),
        w=torch.ones(3, 6),
        s=torch.tensor([1.0, 1.0, 1.0]),
        t=torch.tensor([3.0, 0.0, 9.0]),
    )
    thresholds = constants_of(only(gm, bgnn.dot_threshold))[1]
    assert dot_products(gm) == 2
    assert int((thresholds[:, 1] != fold_threshold.NEVER).sum()) == 0  # |acc| >= 0 always: no threshold at all
    assert int((thresholds[:, 2] != fold_threshold.NEVER).sum()) == 1  # never: one threshold below every count


def test_constant_signs() -> None:
    x = all_sums(4)
    for shift in (100.0, -100.0):
        rewritten(lambda m, x, shift=shift: b(F.linear(b(x), m.w) + shift), x, w=torch.ones(2, 4))


def test_a_table_with_too_many_steps_stays() -> None:
    """Nested absolute values zigzag: more than four steps."""

    def zigzag(m: Any, x: Tensor) -> Tensor:
        a = F.linear(b(x), m.w)
        for shift in (8.0, 4.0, 2.0):
            a = a.abs() - shift
        return b(a - 0.5)

    gm, result = folded(zigzag, all_sums(16), w=torch.ones(1, 16))
    assert result.rewrites == 0
    assert "steps, more than 4" in result.refusals[0][1]
    assert count(gm, bgnn.binarize) == 2


@pytest.mark.parametrize("bias", [torch.tensor([0.5, -1.5, 0.0]), torch.tensor([1.0, -2.0, 0.0])])
def test_bias(bias: Tensor) -> None:
    gm = rewritten(lambda m, x: b(F.linear(b(x), m.w, m.bias)), all_sums(5), w=torch.ones(3, 5), bias=bias)
    tap = only(gm, bgnn.dot_threshold).meta["tap"]
    assert tap.exact == bool((bias == bias.round()).all())


def test_weights_with_a_scale_per_row() -> None:
    """XNOR-Net's alpha in the weights: folded, but float sums of scaled weights are not promised exact."""
    weight = signs(4, 7) * torch.tensor([0.3, 1.7, 0.01, 5.0])[:, None]
    gm = rewritten(lambda m, x: b(F.linear(b(x), m.w) - 0.123), randn(20, 7), w=weight)
    assert not only(gm, bgnn.dot_threshold).meta["tap"].exact


def points(batch: int, n: int, k: int, fan_in: int) -> Tensor:
    return randn(batch, n, k, fan_in, seed=5)


@pytest.mark.parametrize("channels", [1, 31, 33, 64])
@pytest.mark.parametrize("slope", [0.25, 0.0])
def test_norm_after_the_maximum(slope: float, channels: int) -> None:
    """BF1 (paper, Eq. 19): a negative scale turns the maximum into a minimum in that channel."""
    gm = rewritten(
        lambda m, x: b(bn(m, bgnn.prelu(F.linear(b(x), m.w), m.slope).amax(2))),
        points(2, 5, 4, 6),
        w=signs(channels, 6),
        slope=torch.tensor([slope]),
        **norm(channels),
    )
    assert count(gm, aten.amax) == 1
    assert count(gm, aten.mul) == int(channels > 1)  # the channels that take a minimum; channel 0 has scale 0


def test_norm_after_the_maximum_of_a_v_shaped_function() -> None:
    """A V-shaped function's maximum is one of signs under a positive scale, a minimum under a negative one."""
    for sign in (1.0, -1.0):
        gm, result = folded(
            lambda m, x: b((bgnn.prelu(F.linear(b(x), m.w), m.slope).amax(2) - 1.0) * m.sign),
            points(1, 4, 3, 6),
            w=signs(2, 6),
            slope=torch.tensor([-0.5]),
            sign=torch.tensor([sign, sign]),
        )
        assert result.rewrites == 1
        assert dot_products(gm) == 2


def test_what_follows_the_maximum_must_be_monotone() -> None:
    gm, result = folded(lambda m, x: b(F.linear(b(x), m.w).amax(2).abs() - 2.5), points(1, 4, 3, 6), w=signs(2, 6))
    assert result.rewrites == 0
    assert result.refusals[0][1] == "what follows the maximum is not monotone"
    assert count(gm, bgnn.binarize) == 2


@pytest.mark.parametrize("channels", [1, 31, 33, 64])
@pytest.mark.parametrize("slope", [0.25, 0.0, -0.25])
def test_norm_before_the_maximum(slope: float, channels: int) -> None:
    """BF2 (Eq. 20): sign(max_j f_j) is the maximum of the signs, whatever f is."""
    gm = rewritten(
        lambda m, x: b(bn(m, bgnn.prelu(F.linear(b(x), m.w), m.slope)).amax(2)),
        points(2, 5, 4, 6),
        w=signs(channels, 6),
        slope=torch.tensor([slope]),
        **norm(channels),
    )
    assert count(gm, aten.mul) == 0


@pytest.mark.parametrize("keepdim", [False, True])
def test_two_maxima_in_a_row(keepdim: bool) -> None:
    rewritten(lambda m, x: b(F.linear(b(x), m.w).amax(2, keepdim).amax(1) - 1), points(2, 5, 4, 6), w=signs(3, 6))
    rewritten(lambda m, x: b(F.linear(b(x), m.w).amax((1, 2), keepdim) - 1), points(2, 5, 4, 6), w=signs(3, 6))


def test_operations_between_two_maxima_are_refused() -> None:
    _, result = folded(lambda m, x: b(F.linear(b(x), m.w).amax(2).abs().amax(1) - 1), points(2, 5, 4, 6), w=signs(3, 6))
    assert result.refusals[0][1] == "there are operations between two maxima"


def test_reshapes_on_the_way() -> None:
    gm = rewritten(
        lambda m, x: b((F.linear(b(x).reshape(-1, 6), m.w) + 1).reshape(2, 5, 4, 3).amax(2).reshape(10, 3)),
        points(2, 5, 4, 6),
        w=signs(3, 6),
    )
    assert outputs(gm, points(2, 5, 4, 6))[0].shape == (10, 3)


REFUSED = {
    "real weights": (lambda m, x: b(F.linear(b(x), m.real)), "the layer before it has real weights"),
    "read elsewhere": (lambda m, x: (lambda a: b(a) + a)(F.linear(b(x), m.w)), "is read as a number elsewhere too"),
    "norm read elsewhere": (
        lambda m, x: (lambda a: b(a) + a.sum())(F.linear(b(x), m.w) * 2),
        "is read as a number elsewhere too",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name: str) -> None:
    function, reason = REFUSED[name]
    gm, result = folded(function, randn(4, 6), w=signs(3, 6), real=randn(3, 6))
    assert result.rewrites == 0
    assert [why for _, why in result.refusals if reason in why]
    assert count(gm, bgnn.dot_threshold) == 0


LEFT_ALONE = {
    "real input": lambda m, x: b(F.linear(x, m.w)),
    "no layer": lambda m, x: b(b(x) * 2),
    "two layers' sum": lambda m, x: b(F.linear(b(x), m.w) + F.linear(b(-x), m.w)),
    "maximum over channels": lambda m, x: b(F.linear(b(x), m.w).amax(-1, True)),
    "mean": lambda m, x: b(F.linear(b(x), m.w).mean(0)),
    "softmax": lambda m, x: b(F.linear(b(x), m.w).softmax(-1) - 0.3),
    "reshape through channels": lambda m, x: b(F.linear(b(x), m.w).reshape(3, 4)),
    "factor per row": lambda m, x: b(F.linear(b(x), m.w) * m.rows),
    "matmul of two tensors": lambda m, x: b(b(x) @ b(x).t()),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name: str) -> None:
    gm, result = folded(LEFT_ALONE[name], randn(4, 6), w=signs(3, 6), rows=randn(4, 1))
    assert result.rewrites == 0
    assert count(gm, bgnn.dot_threshold) == 0


def test_two_signs_of_one_layer_stay_float() -> None:
    """The layer's number is read twice: the reason names the layer."""
    _, result = folded(lambda m, x: (lambda a: b(a - 1) + b(a + 1))(F.linear(b(x), m.w)), randn(4, 6), w=signs(3, 6))
    assert result.rewrites == 0
    assert all("linear is read" in why for _, why in result.refusals)


def test_two_layers_in_a_row() -> None:
    gm, result = folded(
        lambda m, x: b(F.linear(b(F.linear(b(x), m.w) - 1), m.v)), randn(9, 6), w=signs(5, 6), v=signs(4, 5)
    )
    assert result.rewrites == 2
    assert all(n.meta["tap"].exact for n in gm.graph.nodes if n.target == bgnn.dot_threshold.default)


def test_as_many_steps_as_allowed_with_a_channel_that_starts_at_minus_one() -> None:
    """Four turns and an inverted channel: the inversion is no step."""

    def zigzag(m: Any, x: Tensor) -> Tensor:
        a = F.linear(b(x), m.w)
        return b(((a.abs() - 8).abs() - 4) * m.side)

    gm = rewritten(zigzag, all_sums(16), w=torch.ones(2, 16), side=torch.tensor([1.0, -1.0]))
    assert dot_products(gm) == 4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_table_of_up_to_four_steps(data: st.DataObject) -> None:
    """`_thresholds` and the op together reproduce every table, in every channel."""
    fan_in = data.draw(st.integers(1, 12))
    channels = data.draw(st.integers(1, 4))
    columns = [
        data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=fan_in + 1, max_size=fan_in + 1))
        for _ in range(channels)
    ]
    table = torch.tensor(columns).t().contiguous()
    flips, thresholds = fold_threshold._thresholds(table)
    x = all_sums(fan_in).flip(0)  # p = 0 first, with weights of +1
    found = bgnn.dot_threshold(x, torch.ones(channels, fan_in) * flips[:, None], thresholds)
    assert torch.equal(found, table)
    turns = int((table[1:] != table[:-1]).sum(0).max())
    assert layers(thresholds) == max(turns, 1), "one binary layer for each turn, none for the start"
