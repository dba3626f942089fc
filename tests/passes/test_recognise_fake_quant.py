"""Fake-quantisers however they are written, and nothing that only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_models import OfficialQuantizer
from graphs import aten, bgnn, check_meta, count, exported, only, outputs, randn
from torch import Tensor, fx

from bgnn.passes import canonicalise, recognise_fake_quant
from bgnn.passes.recognise_fake_quant import is_weight, probes

S, Z = 0.0371, 11.0
X = randn(40, 5)
CONSTANTS = {"s": torch.tensor(S), "z": torch.tensor(Z), "one": torch.tensor([S])}


def before(m: Any, x: Tensor) -> Tensor:
    return (torch.clamp(torch.round(x / S + Z), -128, 127) - Z) * S


# (how the zero point is added, the spelling)
QUANTISERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "numbers": ("fake_quant", before),
    "buffers": ("fake_quant", lambda m, x: (torch.clamp(torch.round(x / m.s + m.z), -128, 127) - m.z) * m.s),
    "one-element buffer": (
        "fake_quant",
        lambda m, x: (torch.clamp(torch.round(x / m.one + m.z), 0, 255) - m.z) * m.one,
    ),
    "clamped first": ("fake_quant", lambda m, x: (torch.round(torch.clamp(x / m.s + m.z, -128, 127)) - m.z) * m.s),
    "scale computed": (
        "fake_quant",
        lambda m, x: (torch.clamp(torch.round(x / (m.s * 2) + m.z), -8, 15) - m.z + 0) * (m.s * 2),
    ),
    "no zero point": ("fake_quant", lambda m, x: torch.clamp(torch.round(x / m.s), -127, 127) * m.s),
    "unsigned": ("fake_quant", lambda m, x: torch.clamp(torch.round(x / m.s), 0, 15) * m.s),
    "official": ("fake_quant", lambda m, x: OfficialQuantizer(S, int(Z))(x)),
    "clamp in two": ("fake_quant", lambda m, x: (torch.round(x / S + Z).clamp(min=-128).clamp(max=127) - Z) * S),
    "estimator": ("fake_quant", lambda m, x: x + (before(m, x) - x).detach() * 1),
    "zero point after": (
        "fake_quant_after",
        lambda m, x: (torch.clamp(torch.round(x * (1 / m.s)) + m.z, -128, 127) - m.z) * m.s,
    ),
    "torch.ao": ("fake_quant_after", lambda m, x: torch.fake_quantize_per_tensor_affine(x, S, 11, -128, 127)),
    "torch.ao, of tensors": (
        "fake_quant_after",
        lambda m, x: torch.fake_quantize_per_tensor_affine(x, m.s, m.z.to(torch.int32), -128, 127),
    ),
}
OTHERS: dict[str, Callable[..., Any]] = {
    "round": lambda m, x: torch.round(x),
    "round to a step": lambda m, x: torch.round(x / S) * S,
    "another factor": lambda m, x: (torch.clamp(torch.round(x / S + Z), -128, 127) - Z) * (S * 1.01),
    "another zero point": lambda m, x: (torch.clamp(torch.round(x / S + Z), -128, 127) - Z - 0.25) * S,
    "floor": lambda m, x: (torch.clamp(torch.floor(x / S + Z), -128, 127) - Z) * S,
    "square": lambda m, x: torch.round(x / S).clamp(-128, 127) * torch.round(x / S).clamp(-128, 127) * S,
    "channels": lambda m, x: torch.round(x / m.w).clamp(-128, 127) * m.w,
    "codes": lambda m, x: torch.clamp(torch.round(x / S + Z), -128, 127),
    "zero has no code": lambda m, x: (torch.clamp(torch.round(x / S + Z), -8, 7) - Z) * S,
    "two codes of one side": lambda m, x: torch.clamp(torch.round(x / S), 3, 9) * S,
}


def found(function: Callable[..., Any], x: Tensor = X, **constants: Tensor) -> tuple[fx.GraphModule, int]:
    gm = exported(function, x, **CONSTANTS, **constants)
    canonicalise.run(gm)
    rewrites = recognise_fake_quant.run(gm).rewrites
    check_meta(gm, x)
    return gm, rewrites


@pytest.mark.parametrize("name", QUANTISERS)
def test_spellings(name: str) -> None:
    op, function = QUANTISERS[name]
    gm, rewrites = found(function)
    if name == "estimator":  # arithmetic around it rounds for itself: what is found is inside
        assert count(gm, bgnn.fake_quant) == 1
        return
    assert rewrites == 1
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"] == [getattr(bgnn, op).default]
    points = torch.cat([probes(S, -150, 150), 30 * randn(20_000)])[:, None].expand(-1, 5).contiguous()
    original = exported(function, X, **CONSTANTS)
    # Bit for bit, and at more points than the pass looked at.
    assert torch.equal(fx.Interpreter(gm).run(points)[0], fx.Interpreter(original).run(points)[0])


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_stay(name: str) -> None:
    gm, rewrites = found(OTHERS[name], w=torch.tensor([0.1, 0.2, 0.1, 0.3, 0.1]))
    assert rewrites == 0
    assert count(gm, bgnn.fake_quant, bgnn.fake_quant_after) == 0


@pytest.mark.parametrize("zero", [4, 5])
def test_the_zero_point_before_or_after_rounding(zero: int) -> None:
    """With an odd zero point ties tell the two apart; with an even one they agree there, and elsewhere float32 does."""

    def function(m: Any, x: Tensor) -> Tensor:
        return (torch.clamp(torch.round(x / 0.5) + zero, -128, 127) - zero) * 0.5

    ties = (torch.arange(-20, 20) + 0.5)[:, None] * 0.5
    gm, _ = found(function, ties)
    assert torch.equal(outputs(gm, ties)[0], function(None, ties))


def test_weights_keep_their_codes() -> None:
    weight = randn(4, 5)
    gm, _ = found(lambda m, x: F.linear(x, before(m, m.w)), w=weight)
    layer = only(gm, aten.linear)
    assert is_weight(layer.args[1])
    assert torch.allclose(outputs(gm, X)[0], F.linear(X, before(None, weight)))


def test_a_product_with_a_quantised_matrix_is_a_layer() -> None:
    weight = randn(5, 4)
    gm, _ = found(lambda m, x: x @ before(m, m.w), w=weight)
    assert is_weight(only(gm, aten.linear).args[1])
    assert torch.allclose(outputs(gm, X)[0], X @ before(None, weight), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_with_a_scale_for_each_channel(axis: int) -> None:
    weight, scales = randn(5, 5), torch.tensor([0.01, 0.02, 0.013, 0.5, 0.007])
    zeros = torch.zeros(5, dtype=torch.int32)

    def function(m: Any, x: Tensor) -> Tensor:
        w = torch.fake_quantize_per_channel_affine(m.w, m.scales, m.zeros, axis, -128, 127)
        return x @ w.t() if axis == 0 else x @ w

    gm, rewrites = found(function, w=weight, scales=scales, zeros=zeros)
    assert rewrites == 1
    expected = torch.fake_quantize_per_channel_affine(weight, scales, zeros, axis, -128, 127)
    assert torch.allclose(outputs(gm, X)[0], X @ (expected.t() if axis == 0 else expected), atol=1e-5)
