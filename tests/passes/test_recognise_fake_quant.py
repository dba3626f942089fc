"""Fake-quantisers of activations however they are written, and nothing that only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_models import OfficialQuantizer
from graphs import aten, bgnn, check_meta, count, exported, only, outputs, randn
from torch import Tensor, fx

from bgnn.passes import (
    cancel_opposites,
    canonicalise,
    fold_constants,
    hoist_fake_quant,
    recognise_fake_quant,
    write_out_quantisers,
)
from bgnn.passes.graph import PassResult
from bgnn.passes.recognise_fake_quant import NO_END, Staircase, as_written, ties

S, Z = 0.0371, 11.0
X = randn(40, 5)
CONSTANTS = {"s": torch.tensor(S), "z": torch.tensor(Z), "one": torch.tensor([S]), "alpha": torch.tensor(2.5)}


def before(m: Any, x: Tensor) -> Tensor:
    return (torch.clamp(torch.round(x / S + Z), -128, 127) - Z) * S


class Reciprocal(torch.autograd.Function):
    """Degree-Quant's own: in place, by the reciprocal, the zero point before rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero: float) -> Tensor:
        y = x.clone()
        y.mul_(1.0 / scale).add_(zero).round_().clamp_(-128.0, 127.0)
        return y.add_(-zero).mul_(scale)


class Ste(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)


def zero_made_in_forward(m: Any, x: Tensor) -> Tensor:
    scale = (m.alpha - -1.3) / 255
    zero = (-128 - torch.round(-1.3 / scale)).clamp(-128, 127)
    return (torch.clamp(torch.round(x / scale) + zero, -128, 127) - zero) * scale


# spelling: (its step, its lowest and highest code counted from 0's)
QUANTISERS: dict[str, tuple[float, int, int, Callable[..., Any]]] = {
    "numbers": (S, -139, 116, before),
    "buffers": (S, -139, 116, lambda m, x: (torch.clamp(torch.round(x / m.s + m.z), -128, 127) - m.z) * m.s),
    "one-element buffer": (S, -11, 244, lambda m, x: (((x / m.one + m.z).round().clamp(0, 255)) - m.z) * m.one),
    "clamped first": (S, -139, 116, lambda m, x: (torch.round(torch.clamp(x / m.s + m.z, -128, 127)) - m.z) * m.s),
    "scale computed": (2 * S, -19, 4, lambda m, x: ((x / (m.s * 2) + m.z).round().clamp(-8, 15) - m.z) * (m.s * 2)),
    "no zero point": (S, -127, 127, lambda m, x: torch.clamp(torch.round(x / m.s), -127, 127) * m.s),
    "unsigned": (S, 0, 15, lambda m, x: torch.clamp(torch.round(x / m.s), 0, 15) * m.s),
    "nine bits": (S, -256, 255, lambda m, x: torch.clamp(torch.round(x / m.s), -256, 255) * m.s),
    "sixteen bits": (S, -32768, 32767, lambda m, x: torch.clamp(torch.round(x / m.s), -32768, 32767) * m.s),
    "official": (S, -139, 116, lambda m, x: OfficialQuantizer(S, int(Z))(x)),
    "by the reciprocal": (S, -139, 116, lambda m, x: Reciprocal.apply(x, S, Z)),
    "clamp in two": (S, -139, 116, lambda m, x: (torch.round(x / S + Z).clamp(min=-128).clamp(max=127) - Z) * S),
    "estimator of the whole": (S, -139, 116, lambda m, x: x + (before(m, x) - x).detach()),
    "estimator of the rounding": (
        S, -128, 127, lambda m, x: (lambda v: (v.round() - v).detach() + v)((x / m.s).clamp(-128, 127)) * m.s,
    ),
    "zero point after": (
        S, -139, 116, lambda m, x: (torch.clamp(torch.round(x / m.s) + m.z, -128, 127) - m.z) * m.s,
    ),
    "zero point after, by the reciprocal": (
        S, -139, 116, lambda m, x: (torch.clamp(torch.round(x * (1 / m.s)) + m.z, -128, 127) - m.z) * m.s,
    ),
    "zero point made in forward": (3.8 / 255, -87, 168, zero_made_in_forward),
    "hardtanh": (S, -8, 7, lambda m, x: torch.round(F.hardtanh(x / S, -8, 7)) * S),
    "relu6 of DoReFa's": (6 / 255, 0, 255, lambda m, x: torch.round(F.relu6(x) * (255 / 6)) / (255 / 6)),
    "DoReFa": (1 / 15, 0, 15, lambda m, x: Ste.apply(x.clamp(0, 1) * 15) / 15),
    "PACT": (2.5 / 15, 0, 15, lambda m, x: (0.5 * (x.abs() - (x - m.alpha).abs() + m.alpha) * 15 / m.alpha).round()
             * m.alpha / 15),
    "PACT, a ReLU and a minimum": (
        2.5 / 255, 0, 255, lambda m, x: (torch.minimum(x.relu(), m.alpha) / (m.alpha / 255)).round() * (m.alpha / 255),
    ),
    "by where": (
        S, -8, 7, lambda m, x: (lambda v: torch.where(v > 7, 7.0, torch.where(v < -8, -8.0, v)))((x / S).round()) * S,
    ),
    "times the inverse scale": (1 / 27.0, -127, 127, lambda m, x: torch.clamp((x * 27.0).round(), -127, 127) / 27.0),
    "from the minimum": (0.03, -120, 135, lambda m, x: torch.clamp(torch.round((x + 3.6) / 0.03), 0, 255) * 0.03 - 3.6),
    "floor": (S, -128, 127, lambda m, x: torch.clamp(torch.floor(x / S + 0.5), -128, 127) * S),
    "ceil": (S, -128, 127, lambda m, x: torch.clamp(torch.ceil(x / S - 0.5), -128, 127) * S),
    "away from 0": (S, -128, 127, lambda m, x: (v := (x / S).clamp(-128, 127), torch.trunc(v + v.sign() * 0.5) * S)[1]),
    "cut off by a cast": (
        S, -128, 127, lambda m, x: (((x / S).clamp(-128, 127) + 128.5).to(torch.int32) - 128) * S,
    ),
    "cut off on both sides": (
        S, -128, 127, lambda m, x: ((v := (x / S).clamp(-128, 127)) + 0.5 * v.sign()).long().float() * S,
    ),
    "integers between": (S, -128, 127, lambda m, x: torch.clamp(torch.round(x / S), -128, 127).to(torch.int8) * S),
    "no ends": (S, -NO_END, NO_END, lambda m, x: torch.round(x / S) * S),
    "one end": (S, 0, NO_END, lambda m, x: torch.round(x / S).clamp(min=0) * S),
    "torch.ao": (S, -139, 116, lambda m, x: torch.fake_quantize_per_tensor_affine(x, S, 11, -128, 127)),
    "torch.ao, of tensors": (
        S, -139, 116, lambda m, x: torch.fake_quantize_per_tensor_affine(x, m.s, m.z.to(torch.int32), -128, 127),
    ),
}  # fmt: skip
FACTORS: dict[str, tuple[float, Callable[..., Any]]] = {
    "codes": (1 / S, lambda m, x: torch.clamp(torch.round(x / S + Z), -128, 127) - Z),
    "shifted by part of a step": (1 / S, lambda m, x: (torch.clamp(torch.round(x / S + Z), -128, 127) - Z) - 0.25),
    "another factor": (1.01, lambda m, x: (torch.clamp(torch.round(x / S + Z), -128, 127) - Z) * (S * 1.01)),
}
OTHERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "floor": (recognise_fake_quant.NOT_NEAREST, lambda m, x: torch.clamp(torch.floor(x / S), -128, 127) * S),
    "channels": (recognise_fake_quant.CHANNELS, lambda m, x: torch.round(x / m.w).clamp(-128, 127) * m.w),
    "dynamic": (
        recognise_fake_quant.DYNAMIC,
        lambda m, x: (lambda s: torch.clamp(torch.round(x / s), -127, 127) * s)(x.abs().amax() / 127),
    ),
}


def found(function: Callable[..., Any], x: Tensor = X, **constants: Tensor) -> tuple[fx.GraphModule, PassResult]:
    gm = exported(function, x, **CONSTANTS, **constants)
    for run in (cancel_opposites.run, canonicalise.run, write_out_quantisers.run, fold_constants.run):
        run(gm)
    result = recognise_fake_quant.run(gm)
    check_meta(gm, x)
    return gm, result


@pytest.mark.parametrize("name", QUANTISERS)
def test_spellings(name: str) -> None:
    step, low, high, function = QUANTISERS[name]
    gm, result = found(function)
    assert result.rewrites == 1
    assert result.refusals == []
    quantiser = only(gm, bgnn.fake_quant)
    assert [n for n in gm.graph.nodes if n.op == "call_function"] == [quantiser]
    scale, zero, lowest, highest = quantiser.args[1:]
    assert scale == pytest.approx(step, rel=1e-6)
    assert (lowest - zero, highest - zero) == (low, high)
    # In the model's arithmetic bit for bit, ties and all, but for the estimators' own rounding.
    points = torch.cat([ties(Staircase(scale, zero, lowest, highest, 1)), 30 * randn(20_000)])[:, None].expand(-1, 5)
    given = outputs(exported(function, X, **CONSTANTS), points.contiguous())[0]
    mine = as_written(points, quantiser)
    assert float((mine - given).abs().max()) <= (1e-3 * step if "estimator" in name else 0)
    plain = outputs(gm, points)[0]  # and the op's own are one step beside it at most, at ties alone
    apart = (plain - given).abs() > 1e-3 * step
    assert bool(((points / step - 0.5 - torch.round(points / step - 0.5)).abs()[apart] < 1e-2).all())


@pytest.mark.parametrize("name", FACTORS)
def test_what_is_left_of_the_scale_is_a_factor(name: str) -> None:
    factor, function = FACTORS[name]
    gm, result = found(function)
    assert result.rewrites == 1
    assert only(gm, aten.mul).args[1] == pytest.approx(factor, rel=1e-6)
    assert torch.allclose(outputs(gm, X)[0], function(None, X), rtol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_stay_and_say_why(name: str) -> None:
    reason, function = OTHERS[name]
    channels = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.1])
    gm, result = found(function, w=channels)
    assert result.rewrites == 0
    steps = [n.args[1:] for n in gm.graph.nodes if n.target == bgnn.fake_quant.default]
    assert steps == ([] if name == "floor" else [(1.0, 0, -NO_END, NO_END)])  # a decision, for verification
    assert [why for _, why in result.refusals] == [reason]
    module = type("", (), {**CONSTANTS, "w": channels})
    assert torch.equal(outputs(gm, X)[0], function(module, X))


@pytest.mark.parametrize("zero", [4, 5])
def test_the_zero_point_before_or_after_rounding(zero: int) -> None:
    """With an odd zero point ties tell the two apart; the op then has the model's way beside it."""
    points = (torch.arange(-20, 20) + 0.5)[:, None] * 0.5
    for function in (
        lambda m, x: (torch.clamp(torch.round(x / 0.5) + zero, -128, 127) - zero) * 0.5,
        lambda m, x: (torch.clamp(torch.round(x / 0.5 + zero), -128, 127) - zero) * 0.5,
    ):
        gm, _ = found(function, points)
        assert torch.equal(as_written(points, only(gm, bgnn.fake_quant)), function(None, points))


def test_a_value_that_is_read_plain_and_quantised() -> None:
    gm, result = found(lambda m, x: before(m, x).relu() + before(m, x * 2))
    assert result.rewrites == 2
    assert count(gm, aten.relu) == 1  # it stays: codes are shared


def test_how_it_is_written_goes_along_with_what_moves_it() -> None:
    gm, _ = found(lambda m, x: Reciprocal.apply(x.reshape(5, 40), S, Z))
    written = only(gm, bgnn.fake_quant).meta["as_written"]
    hoist_fake_quant.run(gm)
    assert only(gm, bgnn.fake_quant).args[0].op == "placeholder"
    assert only(gm, bgnn.fake_quant).meta["as_written"] is written
