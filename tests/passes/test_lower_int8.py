"""Quantisers become codes and arithmetic on codes; what cannot, stays float and says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import aten, bgnn, check_meta, count, exported, graph, only, outputs, randn
from torch import Tensor, fx

from bgnn.passes import (
    accumulators,
    canonicalise,
    decompose,
    keep_ties,
    lower_int8,
    recognise_binarize,
    recognise_fake_quant,
)
from bgnn.passes.graph import PassResult, Tap, snapshot, value_of

A, B, Y = (0.031, 5, -128, 127), (0.0173, -100, -128, 127), (0.047, -7, -128, 127)
INDEX, N = torch.tensor([0, 2, 2, 1, 2, 0]), 4
X, X2 = randn(6, 5), randn(6, 5, seed=1)
W, BIAS = randn(3, 5, seed=2), randn(3, seed=3)
FAKE = [bgnn.fake_quant, bgnn.fake_quant_channel]


def q(x: Tensor, quantiser: tuple[float, int, int, int]) -> Tensor:
    return bgnn.fake_quant(x, *quantiser)


def lowered(
    function: Callable[..., Any], *inputs: Tensor, tolerance: float = 1e-6, **constants: Tensor
) -> tuple[fx.GraphModule, PassResult]:
    """The graph after the pass; its outputs must be the function's."""
    inputs = inputs or (X,)
    gm = graph(function, *inputs, **constants)
    expected = outputs(gm, *inputs)[0]
    result = lower_int8.run(gm)
    check_meta(gm, *inputs)
    assert float((outputs(gm, *inputs)[0] - expected).abs().max()) <= tolerance
    assert count(gm, *FAKE) == 0
    return gm, result


RULES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "linear": (bgnn.q_linear, lambda m, x: q(F.linear(q(x, A), q(m.w, B)), Y)),
    "wide linear and bias": (bgnn.q_linear, lambda m, x: q(F.linear(q(x, A), q(m.wide, B), m.many), Y)),
    "narrow linear and bias": (bgnn.q_linear_float, lambda m, x: q(F.linear(q(x, A), q(m.w, B), m.b), Y)),
    "linear, real output": (bgnn.q_linear_float, lambda m, x: F.linear(q(x, A), q(m.w, B), m.b)),
    "product": (bgnn.q_mul, lambda m, x: q(q(x, A) * q(x.flip(0), B), Y)),
    "product with a column": (bgnn.q_mul, lambda m, x: q(q(x, A) * q(x[:, :1], B), Y)),
    "sum": (bgnn.q_add, lambda m, x: q(q(x, A) + q(x.flip(0), B), Y)),
    "segment sum": (bgnn.q_segment_sum, lambda m, x: q(bgnn.segment_sum(q(x, A), m.i, N), Y)),
    "segment sum, real output": (bgnn.q_segment_sum_float, lambda m, x: bgnn.segment_sum(q(x, A), m.i, N)),
    "segment mean": (bgnn.q_segment_mean, lambda m, x: q(bgnn.segment_mean(q(x, A), m.i, N), Y)),
    "sum along an axis": (bgnn.q_sum, lambda m, x: q(q(x, A).reshape(2, 3, 5).sum(1), Y)),
    "sum, real output": (bgnn.q_sum_float, lambda m, x: q(x, A).reshape(2, 3, 5).sum(-2)),
    "mean along an axis": (bgnn.q_sum, lambda m, x: q(q(x, A).reshape(1, 2, 3, 5).mean(2), Y)),
    "mean by lengths": (bgnn.q_sum, lambda m, x: q(q(x, A).reshape(2, 3, 5).sum(1) / m.n, Y)),
    "clamp": (bgnn.requantize, lambda m, x: q(x, A).clamp(0.0, 0.0)),
    "product with a constant of rows": (bgnn.q_mul, lambda m, x: q(q(x, A) * q(m.rows, B).reshape(-1, 1), Y)),
    "segment max": (bgnn.q_segment_max, lambda m, x: bgnn.segment_max(q(x, A), m.i, N)),
    "requantised": (bgnn.requantize, lambda m, x: q(q(x, A), Y)),
    "leaky": (bgnn.requantize, lambda m, x: q(F.leaky_relu(q(x, A), 0.2), Y)),
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    op, function = RULES[name]
    constants = {"w": W, "b": BIAS, "wide": W.repeat(22, 1), "many": BIAS.repeat(22), "i": INDEX}
    constants |= {"n": torch.tensor([[3.0], [2.0]])}
    constants["rows"] = torch.linspace(0.1, 1.9, 6)
    gm, result = lowered(function, X, tolerance=0.048 if "wide" in name else 1e-5, **constants)
    assert count(gm, op) == 1
    assert result.refusals == []
    real = [n for n in gm.graph.nodes if n.op == "call_function" and "aten" in str(n.target)]
    assert [n for n in real if not n.name.startswith(("flip", "slice", "select", "reshape"))] == []


def test_sums_of_nodes_of_several_degrees_are_joined_as_codes() -> None:
    """A sum, a mean by lengths, rows of one edge, rows of none."""

    def parts(m: Any, x: Tensor) -> Tensor:
        x = q(x, A)
        joined = [x[:4].reshape(2, 2, 5).sum(1), x.reshape(2, 3, 5).sum(1) / m.n, x[4:], m.zero]
        return q(torch.cat(joined).index_select(0, m.order).relu(), Y)

    constants = {"n": torch.tensor([[3.0], [2.0]]), "zero": torch.zeros(1, 5), "order": torch.tensor([6, 0, 3, 2, 5])}
    gm, _ = lowered(parts, tolerance=1e-5, **constants)
    assert count(gm, bgnn.q_sum) == 2
    assert count(gm, aten.sum, aten.div, aten.relu, bgnn.q_sum_float) == 0
    assert only(gm, aten.cat).meta["val"].dtype == torch.uint8


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: q(q(x, A).sum(1), Y),  # of channels
        lambda m, x: q(q(x, A).reshape(2, 3, 5).sum((0, 1)), Y),  # of several axes
        lambda m, x: q(x.reshape(2, 3, 5).sum(1), Y),  # of real numbers
    ],
)
def test_other_sums_stay(function: Callable[..., Tensor]) -> None:
    gm, _ = lowered(function)
    assert count(gm, aten.sum) == 1


def test_a_clamp_between_codes_stays() -> None:
    gm, _ = lowered(lambda m, x: q(x, A).clamp(0.0, 0.04))
    assert count(gm, aten.clamp) == 1


def test_a_maximum_of_a_layers_results_is_one_of_codes() -> None:
    gm, _ = lowered(
        lambda m, x: q(F.linear(q(x, A), q(m.wide, B), m.many).amax([0], True).relu().reshape(6, 11), Y),
        tolerance=0.048, wide=W.repeat(22, 1), many=BIAS.repeat(22),
    )  # fmt: skip
    layer = only(gm, bgnn.q_linear)
    assert layer.args[-2] == 121  # the zero point: the ReLU
    assert only(gm, aten.amax).meta["val"].dtype == torch.uint8


def test_a_maximum_that_something_else_reads_stays_real() -> None:
    def shared(m: Any, x: Tensor) -> Tensor:
        y = F.linear(q(x, A), q(m.wide, B), m.many).amax([0], True)
        return q(y, Y) + y

    gm, _ = lowered(shared, tolerance=1e-5, wide=W.repeat(22, 1), many=BIAS.repeat(22))
    assert only(gm, aten.amax).meta["val"].dtype == torch.float32


def test_gathered_codes_and_their_maxima() -> None:
    index = torch.tensor([[[0, 1], [2, 2], [1, 0]]])
    gm, _ = lowered(lambda m, x: bgnn.gather_nodes(q(x, A), m.i).amax([2]), randn(1, 3, 5), i=index)
    assert only(gm, aten.amax).meta["val"].dtype == torch.uint8


@pytest.mark.parametrize("channels", [5, 500])
def test_neighbours_among_codes_are_those_of_whole_numbers(channels: int) -> None:
    """Equal distances are equal in float32 as well, as long as the sums are below 2^24."""
    gm = graph(lambda m, x: bgnn.knn(q(x, A), 3, "l2"), randn(1, 9, channels))
    lower_int8.run(gm)
    steps = 1.0 if channels == 5 else A[0]
    assert only(gm, bgnn.dequantize).args[1] == steps


def test_a_quantised_bias_is_a_bias() -> None:
    gm, result = lowered(
        lambda m, x: q(F.linear(q(x, A), q(m.w, B), q(m.b, A)), Y), tolerance=1e-5, w=W.repeat(22, 1), b=BIAS.repeat(22)
    )
    assert count(gm, bgnn.q_linear, bgnn.q_linear_float) == 1
    assert result.refusals == []


@pytest.mark.parametrize("ternary", [False, True])
def test_weights_of_signs_are_codes(ternary: bool) -> None:
    """Binary and ternary weights between 8-bit activations: each row has one magnitude."""
    weight = torch.where(W >= 0, 1.0, -1.0) * torch.tensor([[0.3], [0.7], [1.1]]) * (W.abs() > 0.3 * ternary)
    gm, result = lowered(lambda m, x: q(F.linear(q(x, A), m.w), Y), tolerance=1e-5, w=weight)
    layer = only(gm, bgnn.q_linear)
    assert set(value_of(layer.args[3]).unique().tolist()) == ({-1, 0, 1} if ternary else {-1, 1})
    assert result.refusals == []


@pytest.mark.parametrize("shift", ["number", "one", "channels", "minus"])
def test_codes_plus_a_constant_are_codes_and_a_bias(shift: str) -> None:
    """LSQ+: its offset need not be a whole multiple of its step."""
    shifts = {"number": lambda m, x: x + 0.17, "one": lambda m, x: x + m.d, "minus": lambda m, x: x - 0.17}
    moved = shifts.get(shift, lambda m, x: x + m.c)
    gm, result = lowered(
        lambda m, x: F.linear(moved(m, q(x, A)), q(m.w, B), m.b),
        tolerance=1e-5,
        w=W,
        b=BIAS,
        c=randn(5, seed=4),
        d=randn(1),
    )
    assert count(gm, bgnn.q_linear_float) == 1
    assert count(gm, aten.add, aten.sub) == 0
    assert result.refusals == []


def test_signs_that_take_real_numbers_say_so() -> None:
    gm = graph(lambda m, x: F.linear(x, m.w), X, w=torch.sign(W))
    assert [why for _, why in lower_int8.run(gm).refusals] == [
        "its weights are signs, but its input is real: --calibrate gives it 8 bits"
    ]


def test_a_bias_made_of_the_inputs_is_named() -> None:
    gm = graph(lambda m, x: F.linear(q(x, A), q(m.w, B), x[0, :3]), X, w=W)
    assert [why for _, why in lower_int8.run(gm).refusals] == ["its bias is computed from the inputs"]


def test_where_sums_cost_more_than_codes_a_narrow_layer_rounds_its_bias() -> None:
    gm = graph(lambda m, x: q(F.linear(q(x, A), q(m.w, B), m.b), Y), X, w=W, b=BIAS)
    lower_int8.run(gm, sums=False)
    assert count(gm, bgnn.q_linear) == 1


# Each rounds ties its own way: up, down, away from 0, towards 0.
TIES: dict[str, Callable[[Tensor], Tensor]] = {
    "up": lambda v: torch.floor(v + 0.5),
    "down": lambda v: torch.ceil(v - 0.5),
    "away from 0": lambda v: v.sign() * torch.floor(v.abs() + 0.5),
    "away from 0, cut off": lambda v: torch.trunc(v + 0.5 * v.sign()),
    "down, turned": lambda v: -torch.floor(0.5 - v),
    "of a cast": lambda v: (v + 100.5).int() - 100.0,
    "up, by the remainder": lambda v: v + 0.5 - torch.remainder(v + 0.5, 1.0),
    "up, with a zero point": lambda v: torch.clamp(torch.floor(v + 0.5) + 101, 0, 255) - 101,
}


@pytest.mark.parametrize("name", TIES)
@pytest.mark.parametrize("step", [0.25, 0.5])
def test_ties_go_where_the_model_rounds_them(name: str, step: float) -> None:
    """In front of a layer and behind it: with steps that are powers of 2 every other sum is one."""

    def quantised(x: Tensor) -> Tensor:
        return TIES[name](x / step).clamp(-100, 100) * step

    points = (torch.arange(-200, 200) / 8).reshape(80, 5)
    weight = torch.arange(-7, 8).reshape(3, 5) / 4

    def layers(m: Any, x: Tensor) -> Tensor:
        return quantised(F.linear(quantised(x), bgnn.fake_quant(m.w, 0.25, 0, -128, 127)))

    gm = exported(layers, points, w=weight)
    for run in (decompose.run, canonicalise.run, recognise_binarize.run, recognise_fake_quant.run):
        run(gm)
    for way in ("codes", "float"):
        lowered = snapshot(gm)
        result = lower_int8.run(lowered) if way == "codes" else keep_ties.run(lowered)
        assert torch.equal(outputs(lowered, points)[0], layers(type("", (), {"w": weight}), points))
        assert count(lowered, bgnn.q_linear_float) == (way == "codes")
        assert result.refusals == []
        assert result.rewrites > 0


def test_relu_raises_the_lowest_code() -> None:
    gm, _ = lowered(lambda m, x: q(F.linear(q(x, A), q(m.w, B)), Y).relu(), w=W)
    assert only(gm, bgnn.q_linear).args[-2:] == (121, 255)
    assert count(gm, aten.relu, bgnn.requantize) == 0


def test_relu_before_the_quantiser() -> None:
    gm, _ = lowered(lambda m, x: q(x.relu(), Y))
    assert only(gm, bgnn.quantize).args[-2:] == (121, 255)
    assert count(gm, aten.relu) == 0


def test_relu_of_codes_that_are_read_elsewhere() -> None:
    gm, _ = lowered(lambda m, x: (lambda y: y.relu() + y)(q(x, Y)))
    assert only(gm, bgnn.quantize).args[-2:] == (0, 255)
    assert count(gm, bgnn.requantize) == 1


def test_a_relu_leaves_a_note_for_verification() -> None:
    gm = graph(lambda m, x: q(x, Y).relu(), X)
    only(gm, bgnn.fake_quant).meta["tap"] = Tap("y")
    lower_int8.run(gm)
    tap = only(gm, bgnn.quantize).meta["tap"]
    assert (tap.name, tap.floor) == ("y", 121)


def test_moves_move_codes() -> None:
    gm, _ = lowered(lambda m, x: q(x, A).index_select(0, m.i).reshape(3, 10).permute(1, 0), i=INDEX)
    last = only(gm, bgnn.dequantize)
    assert last.args[0].target == aten.permute.default
    assert last.args[0].meta["val"].dtype == torch.uint8


def test_a_factor_goes_into_the_scale() -> None:
    gm, _ = lowered(lambda m, x: q(1.5 * q(x, A) + q(x.flip(0), B), Y))
    assert only(gm, bgnn.q_add).args[1] == pytest.approx(1.5 * A[0])


def test_joined_codes_of_one_scale() -> None:
    gm, _ = lowered(lambda m, x: torch.cat([q(x, A), q(x.flip(0), A)], 1))
    assert count(gm, bgnn.dequantize) == 1
    gm, _ = lowered(lambda m, x: torch.cat([q(x, A), q(x.flip(0), B)], 1))
    assert count(gm, bgnn.dequantize) == 2


def test_the_same_codes_again_are_no_work() -> None:
    gm, _ = lowered(lambda m, x: q(q(x, A) * 1.0001, (A[0] * 1.0001, *A[1:])))
    assert count(gm, bgnn.requantize) == 0


def test_four_bits() -> None:
    gm, _ = lowered(lambda m, x: q(x, (0.2, -3, -8, 7)))
    assert only(gm, bgnn.quantize).args[1:] == (0.2, 5, 0, 15)


def test_one_number_for_each_edge_is_quantised_exactly() -> None:
    """At exact ties with an odd zero point, where a quantiser that adds it afterwards is one code off."""
    ties = (torch.arange(-20, 20) + 0.5) * 0.5
    gm = graph(lambda m, x: q(x, (0.5, 3, -128, 127)), ties)
    expected = outputs(gm, ties)[0]
    lower_int8.run(gm)
    assert torch.equal(outputs(gm, ties)[0], expected)
    assert only(gm, bgnn.quantize).args[1:] == (1.0, 128, 0, 255)


def test_a_coarse_bias_stays_float() -> None:
    """Two inputs of few steps: half a unit of the sum would be a good part of a code."""
    function = lambda m, x: q(F.linear(q(x, (0.5, 0, -128, 127)), q(m.w, (0.5, 0, -128, 127)), m.b), Y)  # noqa: E731
    gm, _ = lowered(function, X, w=W, b=BIAS)
    assert count(gm, bgnn.q_linear) == 0
    assert count(gm, bgnn.q_linear_float) == 1


def test_the_bias_moves_a_result_by_at_most_half_a_unit() -> None:
    weight, bias = randn(65, 5, seed=2), randn(65, seed=3)
    gm, _ = lowered(lambda m, x: q(F.linear(q(x, A), q(m.w, B), m.b), Y), w=weight, b=bias, tolerance=0.048)
    layer = only(gm, bgnn.q_linear)
    unit = layer.args[1] * float(getattr(gm, layer.args[4].target))
    assert float((getattr(gm, layer.args[6].target) * unit - bias).abs().max()) <= unit / 2 * 1.001
    assert unit / 2 <= lower_int8.BIAS_SLACK * Y[0]


def test_a_bias_of_whole_units_stays_integer_in_narrow_layers() -> None:
    whole = torch.tensor([3.0, -700.0, 0.0]) * A[0] * B[0]
    gm, _ = lowered(lambda m, x: q(F.linear(q(x, A), q(m.w, B), m.b), Y), w=W, b=whole, tolerance=1e-5)
    assert getattr(gm, only(gm, bgnn.q_linear).args[6].target).tolist() == [3, -700, 0]


STAYS: dict[str, tuple[str, Callable[..., Any]]] = {
    "weights not quantised": ("weights are not quantised", lambda m, x: q(F.linear(q(x, A), m.w), Y)),
    "input not quantised": ("input is not quantised", lambda m, x: q(F.linear(x, q(m.w, B)), Y)),
    "too many bits": ("not those of 8 bits", lambda m, x: q(x, (0.001, 0, -32768, 32767))),
    "input of too many bits": (
        "its input is rounded, but its codes",
        lambda m, x: F.linear(q(x, (0.001, 0, -32768, 32767)), q(m.w, B)),
    ),
    "input made of codes": (
        "computed from codes with real arithmetic",
        lambda m, x: F.linear(q(x, A) * q(x, A), q(m.w, B)),
    ),
    "means that nothing quantises": (
        "nothing quantises its sums",
        lambda m, x: bgnn.segment_mean(q(x, A), m.i, N),
    ),
    "zero has no code": ("not those of 8 bits", lambda m, x: q(x, (0.1, -9, -8, 7))),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_float_says_why(name: str) -> None:
    why, function = STAYS[name]
    gm = graph(function, X, w=W, i=INDEX)
    expected = outputs(gm, X)[0]
    result = lower_int8.run(gm)
    assert torch.allclose(outputs(gm, X)[0], expected)
    assert any(why in reason for _, reason in result.refusals)
    assert count(gm, bgnn.q_linear, bgnn.q_linear_float) == 0


def test_weights_of_layers_that_stay_float_are_constants() -> None:
    gm, _ = lowered(lambda m, x: F.linear(x, q(m.w, B)), w=W)
    assert only(gm, aten.linear).args[1].op == "get_attr"


def test_sums_that_could_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulators, "LARGEST", 1000)
    gm, result = lowered(lambda m, x: q(F.linear(q(x, A), q(m.w, B)), Y), w=W)
    assert count(gm, aten.linear) == 1
    assert any("overflow" in why for _, why in result.refusals)
    gm, _ = lowered(lambda m, x: q(bgnn.segment_sum(q(x, A), m.i, N), Y), i=INDEX)
    assert count(gm, bgnn.q_segment_sum) == 0
    gm, result = lowered(lambda m, x: bgnn.segment_sum(q(x, A), m.i, N), i=INDEX)
    assert count(gm, bgnn.q_segment_sum_float) == 0
    assert result.refusals


def test_naive_quantises_and_dequantises_and_no_more() -> None:
    gm = graph(lambda m, x: q(F.linear(q(x, A), q(m.w, B)), Y), X, w=W)
    expected = outputs(gm, X)[0]
    lower_int8.run(gm, naive=True)
    assert torch.allclose(outputs(gm, X)[0], expected)
    assert count(gm, bgnn.quantize) == count(gm, bgnn.dequantize) == 2
    assert count(gm, aten.linear) == 1


def test_a_network_of_signs_is_told_nothing_of_quantisers() -> None:
    """Why a layer among binary ones is float, pack_bits says."""
    for function, reasons in ((bgnn.binarize, 0), (torch.relu, 1)):
        gm = graph(lambda m, x, function=function: F.linear(function(x), m.w), randn(4, 8), w=randn(5, 8))
        assert len(lower_int8.run(gm).refusals) == reasons
