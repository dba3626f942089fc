"""Binary tensors as bits: every move, every flip, every count of channels gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, count, graph, only, outputs, randn, signs
from onnx_graphs import open_graph
from torch import Tensor, fx

from bgnn.converter.sizes import check_open
from bgnn.passes import fold_threshold, pack_bits
from bgnn.passes.graph import PassResult, is_call

b = bgnn.binarize
SIZES = [1, 31, 32, 33, 64, 65]


def packed(
    function: Callable[..., Any], *inputs: Tensor, tolerance: float = 0.0, **constants: Tensor
) -> tuple[Any, PassResult]:
    gm = graph(function, *inputs, **constants)
    return gm, apply(pack_bits.run, gm, *inputs, tolerance=tolerance)


def ops_but_reshapes(gm: fx.GraphModule) -> list[str]:
    calls = [n for n in gm.graph.nodes if n.op == "call_function"]
    return [str(n.target) for n in calls if not is_call(n, aten.reshape)]


@pytest.mark.parametrize("stay_packed", [True, False])
@pytest.mark.parametrize("fan_in", SIZES)
def test_a_dense_layer_of_signs(fan_in: int, stay_packed: bool) -> None:
    x, w = randn(3, 4, fan_in), signs(5, fan_in)
    gm = graph(lambda m, x: F.linear(b(x), m.w), x, w=w)
    result = apply(lambda gm: pack_bits.run(gm, stay_packed), gm, x)
    assert (result.rewrites, result.refusals) == (1, [])
    assert count(gm, bgnn.pack, bgnn.bconv) == 2
    assert count(gm, bgnn.binarize, aten.linear) == 0
    assert only(gm, bgnn.bconv).args[2] == fan_in


@pytest.mark.parametrize("fan_in", [7, 32])
def test_what_follows_becomes_its_multiplier_and_bias(fan_in: int) -> None:
    gm, _ = packed(
        lambda m, x: bgnn.batch_norm(F.linear(b(x), m.w, m.bias) * m.gamma / 3 - 1, m.g, m.h, m.mu, m.va, 1e-5),
        randn(3, 4, fan_in),
        tolerance=1e-5,
        w=signs(6, fan_in) * (randn(6).abs() + 0.1)[:, None],
        bias=randn(6),
        gamma=torch.tensor([-1.0, 0, 2, 1, 1, 0.5]),
        g=randn(6),
        h=randn(6),
        mu=randn(6),
        va=randn(6).abs() + 0.1,
    )
    assert ops_but_reshapes(gm) == [
        "bgnn.pack.default",
        "bgnn.bconv.default",
    ]


def test_without_staying_packed_nothing_is_fused() -> None:
    x = randn(3, 6)
    gm = graph(lambda m, x: F.linear(b(x), m.w) * m.gamma, x, w=signs(5, 6), gamma=randn(5))
    apply(lambda gm: pack_bits.run(gm, stay_packed=False), gm, x)
    assert count(gm, aten.mul) == 1


def test_an_affine_that_is_read_twice_is_not_fused() -> None:
    gm, _ = packed(lambda m, x: (lambda a: a * 2 + a.sum())(F.linear(b(x), m.w)), randn(3, 6), w=signs(5, 6))
    assert count(gm, aten.mul) == 1


def test_real_weights_are_refused() -> None:
    gm, result = packed(lambda m, x: F.linear(b(x), m.w), randn(3, 6), w=randn(5, 6))
    assert result.refusals[0][1] == "binary input, but real weights"
    assert count(gm, aten.linear) == 1
    assert count(gm, bgnn.unpack) == 1


def test_real_inputs_stay() -> None:
    gm, result = packed(lambda m, x: F.linear(x, m.w), randn(3, 6), w=signs(5, 6))
    assert (result.rewrites, result.refusals) == (0, [])
    assert count(gm, aten.linear) == 1


INDEX = torch.tensor([[[0, 1, 1], [3, 2, 0]], [[1, 0, 3], [2, 2, 2]]])
MOVES: dict[str, Callable[..., Any]] = {
    "nothing": lambda m, x, i: x,
    "neg": lambda m, x, i: -x,
    "times -1": lambda m, x, i: x * -1.0,
    "flips": lambda m, x, i: m.flips * x,
    "flips twice": lambda m, x, i: -(x * m.flips),
    "gather": lambda m, x, i: bgnn.gather_nodes(x, i),
    "reshape": lambda m, x, i: x.reshape(4, 2, -1),
    "permute": lambda m, x, i: x.permute(1, 0, 2),
    "expand": lambda m, x, i: x[:, :, None].expand(-1, -1, 3, -1),
    "slice rows": lambda m, x, i: x[:, 1:3],
    "select rows": lambda m, x, i: x.index_select(1, i[0, 0]),
    "cat of rows": lambda m, x, i: torch.cat([x, -x * m.flips], 1),
    "cat of channels": lambda m, x, i: torch.cat([x, -x * m.flips], 2),
    "xor": lambda m, x, i: x * bgnn.gather_nodes(x, i[:, :, :1]).amax(2)[:, :1],
    "xor edge": lambda m, x, i: -bgnn.gather_nodes(x, i) * x[:, :2, None].expand(-1, -1, 3, -1),
    "xor edge, broadcast": lambda m, x, i: -bgnn.gather_nodes(x, i) * x[:, :2, None],
    "xor of flips": lambda m, x, i: (x * m.flips) * (-x)[:, :1],
    "maximum": lambda m, x, i: x.amax(1),
    "maximum, keepdim": lambda m, x, i: x.amax(1, True),
    "maximum of two axes": lambda m, x, i: x.amax((0, 1)),
    "maximum of flips": lambda m, x, i: (x * m.flips).amax(1),
    "maximum of negated": lambda m, x, i: (-x).amax(1),
    "minimum": lambda m, x, i: x.amin(1),
    "minimum of flips": lambda m, x, i: (x * m.flips).amin(1, True),
    "minimum of negated": lambda m, x, i: (-x).amin((0, 1)),
    "maximum of edges": lambda m, x, i: (bgnn.gather_nodes(x, i) * m.flips).amax(2),
    "through all": lambda m, x, i: (
        (-bgnn.gather_nodes(x * m.flips, i) * x[:, :2, None].expand(-1, -1, 3, -1)).amin(2).reshape(4, -1)
    ),
    "slice of channels": lambda m, x, i: x[:, :, ::2],
    "maximum of channels": lambda m, x, i: x.amax(2, True),
    "channels in front": lambda m, x, i: x.permute(2, 0, 1),
    "reshape through channels": lambda m, x, i: x.reshape(8, -1, 1),
}
ON_NUMBERS = ("slice of channels", "maximum of channels", "channels in front", "reshape through channels")


@pytest.mark.parametrize("channels", [1, 32, 33])
@pytest.mark.parametrize("name", MOVES)
def test_moves_on_words(name: str, channels: int) -> None:
    """Read as numbers at the end, and by a binary layer: flips must end in the numbers and in the weights."""
    flips = signs(channels, seed=3)
    x = randn(2, 4, channels)
    move = MOVES[name]
    gm, _ = packed(lambda m, x, i: move(m, b(x), i), x, INDEX, flips=flips)
    words_only = name not in ON_NUMBERS and not (name == "cat of channels" and channels % 32)
    assert count(gm, bgnn.pack) >= 1
    if words_only and channels > 1:
        result = next(n for n in gm.graph.nodes if n.op == "output").args[0][0]
        assert result.target == bgnn.unpack.default, "the last step is to unpack: all before it acts on words"
    fan_in = move(type("M", (), {"flips": flips}), x, INDEX).shape[-1]
    gm, result = packed(
        lambda m, x, i: F.linear(move(m, b(x), i), m.w), x, INDEX, flips=flips, w=signs(3, fan_in, seed=4)
    )
    assert result.rewrites == 1
    if words_only and channels > 1:
        assert count(gm, bgnn.unpack) == 0


@pytest.mark.parametrize("outputs", SIZES)
@pytest.mark.parametrize("fan_in", [1, 33, 64])
def test_layers_in_a_row_stay_in_bits(fan_in: int, outputs: int) -> None:
    x = randn(2, 5, fan_in)
    gm = graph(
        lambda m, x: F.linear(b(F.linear(b(x), m.w) - 0.5), m.v), x, w=signs(outputs, fan_in), v=signs(3, outputs)
    )
    apply(fold_threshold.run, gm, x)
    apply(pack_bits.run, gm, x)
    assert ops_but_reshapes(gm) == [
        "bgnn.pack.default",
        "bgnn.bconv_bits.default",
        "bgnn.bconv.default",
    ]


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("outputs", [1, 31, 33])
def test_several_thresholds_are_several_layers(outputs: int, side: float) -> None:
    """An interval costs two dot products; channels that start at -1 are inverted at no cost."""
    x = randn(20, 9)
    sides = torch.full((outputs,), side)
    sides[0] = 1.0
    gm = graph(
        lambda m, x: b((F.linear(b(x), m.w).abs() - m.t) * m.sides),
        x,
        w=signs(outputs, 9),
        t=torch.arange(outputs) % 3 * 2 + 2.0,
        sides=sides,
    )
    apply(fold_threshold.run, gm, x)
    apply(pack_bits.run, gm, x)
    assert count(gm, bgnn.bconv_bits) == 2


@pytest.mark.parametrize(("rows", "varying", "layers"), [(2, 0, 1), (1, 0, 1), (3, 1, 1), (4, 2, 2), (3, 0, 1)])
def test_thresholds_that_no_dot_product_decides(rows: int, varying: int, layers: int) -> None:
    """Always passed or never, in every channel: no dot product of their own, as long as there is another one."""
    x, always, never = randn(20, 9), -1, torch.iinfo(torch.int32).max
    fixed = torch.where(signs(rows, 33) > 0, always, never)
    fixed[:varying] = torch.arange(33) % 8
    gm = graph(lambda m, x: bgnn.dot_threshold(b(x), m.w, m.t), x, w=signs(33, 9), t=fixed.to(torch.int32))
    apply(pack_bits.run, gm, x)
    assert count(gm, bgnn.bconv_bits) == layers


def norm_constants(channels: int) -> dict[str, Tensor]:
    return {
        "g": randn(channels, seed=1),
        "h": randn(channels, seed=2),
        "mu": randn(channels, seed=3),
        "va": randn(channels, seed=4).abs() + 0.1,
    }


@pytest.mark.parametrize("channels", [1, 31, 32, 65])
@pytest.mark.parametrize("norm_first", [True, False])
def test_edge_layers_with_minimum_channels(norm_first: bool, channels: int) -> None:
    """BF2 (norm before the maximum) and BF1 (after): the flips of channels that take a minimum are carried along."""
    x, w, v = randn(2, 5, 4, 6), signs(channels, 6), signs(3, 2 * channels)

    def function(m: Any, x: Tensor) -> Tensor:
        a = F.linear(b(x), m.w)
        if norm_first:
            a = bgnn.batch_norm(a, m.g, m.h, m.mu, m.va, 1e-5).amax(2)
        else:
            a = bgnn.batch_norm(a.amax(2), m.g, m.h, m.mu, m.va, 1e-5)
        s = b(a)
        return F.linear(torch.cat([s, s * -1.0], -1), m.v)

    gm = graph(function, x, w=w, v=v, **norm_constants(channels))
    assert apply(fold_threshold.run, gm, x).rewrites == 1
    apply(pack_bits.run, gm, x)
    assert count(gm, bgnn.packed_max) == 1
    assert count(gm, bgnn.unpack) == (0 if channels % 32 == 0 else 2)


def test_a_sign_read_as_bits_and_as_numbers() -> None:
    for stay_packed in (True, False):
        x = randn(3, 40)
        gm = graph(lambda m, x: (lambda s: F.linear(s, m.w).sum() + s)(b(x)), x, w=signs(5, 40))
        apply(lambda gm, p=stay_packed: pack_bits.run(gm, p), gm, x)
        assert count(gm, bgnn.pack) == 1
        assert count(gm, bgnn.unpack) == 1


def test_signs_between_floats_go_through_bits_and_back() -> None:
    """LCE has no other sign."""
    for stay_packed in (True, False):
        x = randn(3, 33)
        gm = graph(lambda m, x: b(x) * x, x)
        apply(lambda gm, p=stay_packed: pack_bits.run(gm, p), gm, x)
        assert count(gm, bgnn.binarize) == 0
        assert count(gm, bgnn.pack, bgnn.unpack) == 2


def test_zero_counts_as_plus() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-30, -1e-30]])
    gm, _ = packed(lambda m, x: F.linear(b(x), m.w), x, w=torch.eye(4) * 2 - 1)
    assert count(gm, bgnn.bconv) == 1


@pytest.mark.parametrize("stay_packed", [True, False])
def test_a_sign_of_each_edge_has_no_channels(stay_packed: bool) -> None:
    """Their number is open: packed along it, a file would hold for the example's alone."""

    def layer(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        sign = b(x.sum(1).index_select(0, edges.select(0, 0)))
        return bgnn.segment_sum(sign.reshape(-1, 1) * x.index_select(0, edges.select(0, 1)), edges.select(0, 1), 5)

    inputs = (randn(5, 3), torch.tensor([[0, 3, 3, 1], [2, 0, 2, 4]]))
    gm = open_graph(layer, *inputs)
    before = outputs(gm, *inputs)
    pack_bits.run(gm, stay_packed)
    check_open(gm)
    assert count(gm, bgnn.pack, bgnn.unpack) == 0
    assert torch.equal(outputs(gm, *inputs)[0], before[0])
