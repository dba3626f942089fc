"""Quantised weights, however they were made, keep their values and say their codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import aten, bgnn, check_meta, exported, only, outputs, randn
from torch import Tensor, fx

from bgnn.passes import (
    cancel_opposites,
    canonicalise,
    fold_constants,
    quantised_weights,
    recognise_fake_quant,
    write_out_quantisers,
)
from bgnn.passes.graph import PassResult, value_of
from bgnn.passes.lower_int8 import weight_codes
from bgnn.passes.recognise_fake_quant import is_weight

X, W = randn(7, 6), randn(4, 6, seed=1) * 0.3
AMAX = W.abs().amax(1)
CONSTANTS = {
    "w": W,
    "s": torch.tensor(0.011),
    "column": AMAX[:, None] / 127,
    "flat": AMAX / 127,
    "zeros": torch.zeros(4, dtype=torch.int32),
    "stored": torch.round(W / (AMAX[:, None] / 127)).to(torch.int8),
    "offset": randn(4, 6, seed=2),
}


def symmetric(w: Tensor, scale: Any, high: int = 127) -> Tensor:
    return torch.clamp(torch.round(w / scale), -high, high) * scale


def dorefa(w: Tensor, bits: int) -> Tensor:
    levels = 2**bits - 1
    w = torch.tanh(w)
    return 2 * torch.round((w / (2 * w.abs().max()) + 0.5) * levels) / levels - 1


# spelling: (one scale for each output, the weight)
WEIGHTS: dict[str, tuple[bool, Callable[[Any], Tensor]]] = {
    "one scale": (False, lambda m: symmetric(m.w, m.s)),
    "zero point": (False, lambda m: (torch.clamp(torch.round(m.w / m.s + 3), -128, 127) - 3) * m.s),
    "codes above 127": (False, lambda m: (torch.clamp(torch.round(m.w / m.s) + 90, 0, 255) - 90) * m.s),
    "estimator": (False, lambda m: (lambda v: (v.round() - v).detach() + v)((m.w / m.s).clamp(-128, 127)) * m.s),
    "scale of its own largest": (False, lambda m: torch.round(m.w / (m.w.abs().max() / 127)) * (m.w.abs().max() / 127)),
    "zero point made in forward": (
        False,
        lambda m: (lambda z: (torch.clamp(torch.round(m.w / m.s) + z, -128, 127) - z) * m.s)(
            (-128 - torch.round(m.w.min() / m.s)).clamp(-128, 127)
        ),
    ),
    "learned rounding": (False, lambda m: (torch.floor(m.w / m.s) + (m.offset > 0)).clamp(-127, 127) * m.s),
    "DoReFa": (False, lambda m: dorefa(m.w, 4)),
    "torch.ao": (False, lambda m: torch.fake_quantize_per_tensor_affine(m.w, 0.011, 0, -128, 127)),
    "cut off by a cast": (False, lambda m: (((m.w / m.s).clamp(-128, 127) + 128.5).int() - 128).float() * m.s),
    "column": (True, lambda m: symmetric(m.w, m.column)),
    "times the inverse": (True, lambda m: torch.clamp((m.w * (1 / m.column)).round(), -127, 127) / (1 / m.column)),
    "largest of each row": (True, lambda m: symmetric(m.w, m.w.abs().amax(1, keepdim=True) / 127)),
    "powers of 2 as scales": (True, lambda m: symmetric(m.w, torch.exp2(torch.ceil(torch.log2(m.column))))),
    "turned": (True, lambda m: symmetric(m.w.t(), m.flat).t()),
    "torch.ao by channel": (
        True, lambda m: torch.fake_quantize_per_channel_affine(m.w, m.flat, m.zeros, 0, -128, 127),
    ),
    "stored as int8": (True, lambda m: m.stored * m.column),
    "stored as int8, cast": (True, lambda m: m.stored.float() * m.column),
    "a row of zeros": (True, lambda m: symmetric(m.w * torch.tensor([[1.0], [0], [1], [1]]), m.column)),
    "powers of 2": (False, lambda m: m.w.sign() * 2 ** torch.round(torch.log2(m.w.abs().clamp(2**-6, 1)))),
    "a channel beyond the ends": (
        True, lambda m: symmetric(m.w.abs() + torch.tensor([[0.0], [9], [0], [-7]]), m.column),
    ),
}  # fmt: skip
OTHERS: dict[str, tuple[str, Callable[[Any], Tensor]]] = {
    "12 bits": ("more than the 256 of 8 bits", lambda m: symmetric(m.w, m.s / 16, 2047)),
    "DoReFa's 10 bits": ("more than the 256 of 8 bits", lambda m: dorefa(m.w, 10)),
    "a scale for each input and output": (
        "not whole multiples of one step", lambda m: symmetric(m.w, 0.01 + m.offset.abs() * 0.02),
    ),
    "uneven": ("not whole multiples of one step", lambda m: torch.exp(torch.round(m.w * 20) / 7)),
}  # fmt: skip


def found(weight: Callable[[Any], Tensor]) -> tuple[fx.GraphModule, PassResult, Tensor]:
    gm = exported(lambda m, x: F.linear(x, weight(m)), X, **CONSTANTS)
    for run in (cancel_opposites.run, canonicalise.run, write_out_quantisers.run):
        run(gm)
    result = quantised_weights.run(gm)
    fold_constants.run(gm)
    check_meta(gm, X)
    return gm, result, weight(type("", (), CONSTANTS))


@pytest.mark.parametrize("name", WEIGHTS)
def test_spellings(name: str) -> None:
    by_channel, function = WEIGHTS[name]
    gm, result, values = found(function)
    assert result.rewrites == 1
    assert result.refusals == []
    weight = only(gm, aten.linear).args[1]
    assert is_weight(weight)
    assert weight.target == (bgnn.fake_quant_channel.default if by_channel else bgnn.fake_quant.default)
    assert torch.allclose(value_of(weight.args[0]), values, atol=1e-7)
    codes, scales, zero = weight_codes(weight)
    assert torch.allclose((codes.float() - zero) * scales.reshape(-1, 1), values, rtol=1e-6, atol=1e-7)
    assert torch.allclose(outputs(gm, X)[0], F.linear(X, values), atol=1e-5)


def zero_points(w: Tensor) -> Tensor:
    """torch.ao's of symmetric channels: those of one sign have 256 codes on one side of 0."""
    w = w.abs() * torch.tensor([[1.0], [-1], [0], [1]]) + w * torch.tensor([[0.0], [0], [1], [0]])
    zeros = torch.tensor([[-128.0], [127], [0], [-128]])
    steps = w.abs().amax(1, True) / torch.tensor([[255.0], [255], [127], [255]])
    return (torch.clamp(torch.round(w / steps) + zeros, -128, 127) - zeros) * steps


@pytest.mark.parametrize("layer", [F.linear, F.conv1d, F.conv2d], ids=lambda f: f.__name__)
@pytest.mark.parametrize("weight", [lambda w: dorefa(w, 8), zero_points], ids=["dorefa", "zero_points"])
def test_levels_beside_codes_are_codes_and_a_sum(
    layer: Callable[..., Tensor], weight: Callable[[Tensor], Tensor]
) -> None:
    """DoReFa's 8 bits: 256 levels, of which none is 0. And a zero point for each output channel."""
    window = {F.linear: (), F.conv1d: (1,), F.conv2d: (1, 1)}[layer]
    x = X if layer is F.linear else X.t()[None].reshape(1, X.shape[1], -1, *window[1:])
    bias = torch.arange(float(len(W)))

    def function(m: Any, x: Tensor) -> Tensor:
        return layer(x, weight(m.w).reshape(*W.shape, *window), m.bias) * 2

    gm = exported(function, x, bias=bias, **CONSTANTS)
    canonicalise.run(gm)
    result = quantised_weights.run(gm)
    assert (result.rewrites, result.refusals) == (1, [])
    check_meta(gm, x)
    layers = [node for node in gm.graph.nodes if is_weight(node)]
    assert [weight_codes(weight) is not None for weight in layers] == [True, True]
    expected = function(type("", (), {**CONSTANTS, "bias": bias}), x)
    assert torch.allclose(outputs(gm, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_fit_8_bits_says_why(name: str) -> None:
    reason, function = OTHERS[name]
    gm, result, values = found(function)
    assert result.rewrites == 0
    assert [reason in why for _, why in result.refusals] == [True]
    weight = only(gm, aten.linear).args[1]
    assert weight.op == "get_attr"
    assert reason in weight.meta["stays_float"]
    assert torch.allclose(outputs(gm, X)[0], F.linear(X, values), atol=1e-6)


def test_constants_without_rounding_are_left_alone() -> None:
    gm, result, _ = found(lambda m: m.w * 2)
    assert (result.rewrites, result.refusals) == (0, [])
    assert only(gm, aten.linear).args[1].op == "get_attr"


@pytest.mark.parametrize("by_channel", [False, True])
def test_a_product_with_a_quantised_matrix_is_a_layer(by_channel: bool) -> None:
    scale = CONSTANTS["flat"] if by_channel else CONSTANTS["s"]
    gm = exported(lambda m, x: x @ symmetric(m.turned, m.scale), X, turned=W.t(), scale=scale)
    canonicalise.run(gm)
    quantised_weights.run(gm)
    recognise_fake_quant.run(gm)
    layer = only(gm, aten.linear)
    assert weight_codes(layer.args[1]) is not None
    assert torch.allclose(outputs(gm, X)[0], X @ symmetric(W.t(), scale), atol=1e-6)
