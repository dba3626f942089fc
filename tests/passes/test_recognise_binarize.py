"""The sign function however it is written, and nothing that only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import aten, bgnn, check_meta, count, exported, outputs, randn, same
from torch import Tensor

from bgnn.converter.stages import mark_decisions
from bgnn.converter.verify import Reference
from bgnn.passes import canonicalise, recognise_binarize

X = torch.cat([randn(5, 3), torch.tensor([[1e-30, -1e-30, 40.0], [1e5, -1e5, -3e-6]])])  # no zeros: those differ
ZEROS = torch.tensor([[0.0, -0.0, 1.0]])
CONSTANTS = {"one": torch.tensor(1.0), "minus_one": torch.tensor(-1.0), "zero": torch.zeros(3)}
LEVELS = {"alpha": torch.tensor(0.6), "w": torch.tensor([0.5, 2.0, 1.25]), "t": torch.tensor([0.25, -0.75, 0.1])}


class SignSTE(torch.autograd.Function):
    """A straight-through estimator as people write it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


# The value at 0 that the expression itself gives.
SIGNS: dict[str, tuple[float, Callable[..., Any]]] = {
    "torch.sign": (0, lambda m, x: torch.sign(x)),
    "method": (0, lambda m, x: x.sign()),
    "sgn": (0, lambda m, x: torch.sgn(x)),
    "where ge": (1, lambda m, x: torch.where(x >= 0, 1.0, -1.0)),
    "where gt": (-1, lambda m, x: torch.where(x > 0, 1.0, -1.0)),
    "where lt": (1, lambda m, x: torch.where(x < 0, -1.0, 1.0)),
    "where le": (-1, lambda m, x: torch.where(x <= 0, -1.0, 1.0)),
    "where, number on the left": (1, lambda m, x: torch.where(x >= 0, 1.0, -1.0)),
    "where of integers": (1, lambda m, x: torch.where(x >= 0, 1, -1).float()),
    "where of like": (1, lambda m, x: torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))),
    "where of full": (1, lambda m, x: torch.where(x >= 0, torch.full_like(x, 1), torch.full_like(x, -1))),
    "where of tensors": (1, lambda m, x: torch.where(x >= 0, torch.tensor(1.0), torch.tensor(-1.0))),
    "where of buffers": (1, lambda m, x: torch.where(x >= 0, m.one, m.minus_one)),
    "where compared with a tensor": (1, lambda m, x: torch.where(x >= torch.zeros_like(x), 1.0, -1.0)),
    "ge arithmetic": (1, lambda m, x: (x >= 0).float() * 2 - 1),
    "gt arithmetic": (-1, lambda m, x: 2 * (x > 0).to(x.dtype) - 1),
    "type of x": (1, lambda m, x: (x >= 0).type_as(x) * 2.0 - 1.0),
    "two comparisons": (0, lambda m, x: (x > 0).float() - (x < 0).float()),
    "half shift": (1, lambda m, x: ((x >= 0).float() - 0.5) * 2),
    "one minus": (1, lambda m, x: 1 - 2 * (x < 0).float()),
    "not": (1, lambda m, x: (~(x < 0)).float() * 2 - 1),
    "zeros settled": (1, lambda m, x: torch.where(torch.sign(x) == 0, torch.ones_like(x), torch.sign(x))),
    "zeros settled by equality": (1, lambda m, x: torch.sign(x) + (x == 0).float()),
    "zeros settled by masked_fill": (1, lambda m, x: torch.sign(x).masked_fill(x == 0, 1.0)),
    "sign of sign": (0, lambda m, x: torch.sign(torch.sign(x))),
    "sign of clamp": (0, lambda m, x: torch.sign(torch.clamp(x, -1, 1))),
    "sign of hardtanh": (0, lambda m, x: torch.sign(F.hardtanh(x))),
    "sign of a multiple": (0, lambda m, x: torch.sign(3 * x)),
    "estimator": (0, lambda m, x: SignSTE.apply(x)),
    "heaviside": (1, lambda m, x: torch.heaviside(x, torch.tensor(1.0)) * 2 - 1),
    "copy of": (0, lambda m, x: torch.sign(x).clone().detach()),
    "double negation": (-1, lambda m, x: -torch.where(-x >= 0, 1.0, -1.0)),
    "quotient": (1, lambda m, x: torch.where(x >= 0, 2.0, -2.0) / 2),
}

# Two values beside a threshold: `s * binarize(x - t) + o`, where a dense layer follows.
STEPS: dict[str, Callable[..., Any]] = {
    "scale": lambda m, x: 0.7 * torch.where(x >= 0, 1.0, -1.0),
    "scale of a parameter": lambda m, x: torch.where(x >= 0, m.alpha, -m.alpha),
    "computed scale": lambda m, x: torch.where(x < 0, -torch.exp(m.alpha), torch.exp(m.alpha)),
    "scale per channel": lambda m, x: m.w * torch.where(x >= 0, 1.0, -1.0),
    "unipolar": lambda m, x: (x > 0).float(),
    "unipolar from 0 on": lambda m, x: (x >= 0).type_as(x),
    "any two levels": lambda m, x: torch.where(x < 0.3, -0.2, 1.7),
    "levels per channel": lambda m, x: torch.where(x >= m.t, m.w, m.t - 3),
    "falling": lambda m, x: torch.where(x >= 0.5, -1.0, 1.0),
    "threshold": lambda m, x: torch.where(x > 0.1, 1.0, -1.0),
    "small threshold": lambda m, x: torch.where(x > 1e-6, 1.0, -1.0),
    "threshold of a parameter": lambda m, x: torch.where(x >= m.t, 1.0, -1.0),
    "threshold below": lambda m, x: torch.where(x > m.t, 1.0, -1.0),
    "threshold subtracted": lambda m, x: ((x - m.t) >= 0).float() * 2 - 1,
    "one-bit quantiser": lambda m, x: torch.clamp(torch.round(x / 0.8), 0, 1) * 0.8,
    "rounded sigmoid": lambda m, x: 2 * torch.sigmoid(3 * x - 1).round() - 1,
    "magnitude": lambda m, x: x / x.abs(),
    "copysign": lambda m, x: torch.copysign(torch.full_like(x, 0.5), x),
    "masked copy": lambda m, x: torch.ones_like(x).masked_fill(x < 0, -0.25),
    "hand-made": lambda m, x: 1 - 2 * ((x < 1) & ~(x >= 1)).float(),
    "in double": lambda m, x: torch.sign(x.double() - 0.125).float(),
    "in half": lambda m, x: torch.sign(x.half()).float() * 2,
    "in int8": lambda m, x: ((x >= 0).to(torch.int8) * 2 - 1).float() * 0.1,
    "longer than a few operations": lambda m, x: (
        ((((torch.where(x * 2 >= 1, 1.0, -1.0) + 1) / 2) * 4 - 2) / 2 + 1) / 2 * 3 - 1.5
    ),
}

OTHERS: dict[str, Callable[..., Any]] = {
    "plus one": lambda m, x: torch.sign(x) + 1,
    "half": lambda m, x: torch.sign(x) * 0.5,
    "tanh": lambda m, x: torch.tanh(x),
    "steep tanh": lambda m, x: torch.tanh(x * 1000),
    "clamp": lambda m, x: torch.clamp(x, -1, 1),
    "steep clamp": lambda m, x: torch.clamp(x * 1e5, -1, 1),
    "hardtanh": lambda m, x: F.hardtanh(x),
    "step": lambda m, x: (x >= 0).float(),
    "ternary": lambda m, x: torch.where(x.abs() < 0.5, torch.zeros_like(x), torch.where(x > 0, 1.0, -1.0)),
    "another number below": lambda m, x: torch.where(x >= 0, 1.0, -2.0),
    "absolute": lambda m, x: torch.sign(x).abs(),
    "window": lambda m, x: torch.sign(x) * (x.abs() < 100).float(),
    "far window": lambda m, x: torch.sign(x) * (x.abs() < 3e4).float(),
    "notch": lambda m, x: torch.sign(x) * (1 - (x > 2).float() * (x < 3).float()),
    "relu": lambda m, x: x.relu(),
    "compared with another": lambda m, x: torch.where(x >= x.flip(0), 1.0, -1.0),
    "maximum of a row": lambda m, x: torch.where(x >= x.amax(1, True), 1.0, -1.0),
    "identity": lambda m, x: x + 0,
}


@pytest.mark.parametrize("name", SIGNS)
def test_spellings(name: str) -> None:
    at_zero, function = SIGNS[name]
    gm = exported(function, X, **CONSTANTS)
    canonicalise.run(gm)
    expected, zeros = outputs(gm, X)[0], outputs(exported(function, ZEROS, **CONSTANTS), ZEROS)[0]
    assert recognise_binarize.run(gm).rewrites >= 1
    check_meta(gm, X)
    assert count(gm, bgnn.binarize) == (2 if name == "sign of sign" else 1)
    assert torch.equal(outputs(gm, X)[0], expected)
    settled = at_zero or 1.0  # torch.sign's 0 becomes +1, and is counted
    assert zeros.tolist() == [[at_zero, at_zero, 1.0]]
    assert outputs(gm, ZEROS)[0].tolist() == [[settled, settled, 1.0]]
    marked = [n for n in gm.graph.nodes if n.meta.get("zero_was_zero")]
    assert len(marked) == (count(gm, bgnn.binarize) if at_zero == 0 else 0)


@pytest.mark.parametrize("name", STEPS)
def test_two_levels(name: str) -> None:
    """On numbers around the threshold and far from it, and at it; half's zeros become +1, as torch.sign's do."""
    x = torch.cat([X, torch.tensor([[0.25, -0.75, 0.1], [0.3, 0.5, 1.0], [1e-6, 0.4, 2e-6], [1e-20, 3e-8, -2e-7]])])
    x = x[x.abs().amin(1) > 1e-6] if name == "in half" else x
    gm = exported(lambda m, v: F.linear(STEPS[name](m, v), m.m), x, m=randn(2, 3), **LEVELS)
    canonicalise.run(gm)
    expected = outputs(gm, x)[0]
    assert recognise_binarize.run(gm).rewrites == 1
    check_meta(gm, x)
    assert count(gm, bgnn.binarize) == 1
    assert {str(n.target).split(".")[1] for n in gm.graph.nodes if n.op == "call_function"} <= {
        "binarize", "sub", "neg", "mul", "div", "add", "linear", "exp",
    }  # fmt: skip
    same(outputs(gm, x)[0], expected, 1e-6)


def test_zeros_of_a_cast_are_counted() -> None:
    """Half precision makes 0 of what is below 3e-8, and torch.sign 0 of that: settled as +1, and counted."""
    x = torch.tensor([[1e-8, -1e-8, 0.0, 1e-3, -1e-3, 4e-8]])
    gm = exported(lambda m, v: torch.sign(v.half()).float(), x)
    canonicalise.run(gm)
    recognise_binarize.run(gm)
    mark_decisions(gm)
    assert outputs(gm, x)[0].tolist() == [[1, 1, 1, 1, -1, 1]]
    assert list(Reference(gm, (x,)).zeros.values()) == [3]


def test_a_mask_stays_a_mask() -> None:
    """What is multiplied with other numbers, or is the result, is no input of a binary layer."""
    gm = exported(lambda m, x: (F.linear(x * (x > 0).float(), m.m), (x > 1).float()), X, outputs=2, m=randn(2, 3))
    canonicalise.run(gm)
    assert recognise_binarize.run(gm).rewrites == 0


def test_the_sign_of_what_sinks_below_the_smallest_numbers() -> None:
    """exp(-9 d) > 0 turns where float32 ends; runtimes that flush denormals end sooner, so the threshold is d's."""
    x = torch.linspace(0, 20, 4001)[:, None]
    gm = exported(lambda m, v: torch.where(torch.exp(-9 * v) > 0, 1.0, -1.0), x)
    canonicalise.run(gm)
    expected = outputs(gm, x)[0]
    assert recognise_binarize.run(gm).rewrites == 1
    assert count(gm, aten.exp) == 0
    same(outputs(gm, x)[0], expected)
    assert 0.5 < float((expected > 0).float().mean()) < 0.6


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_stay(name: str) -> None:
    function = OTHERS[name]
    gm = exported(function, X, **CONSTANTS, w=torch.full((3,), 0.25))
    canonicalise.run(gm)
    expected = outputs(gm, X)[0]
    recognise_binarize.run(gm)
    assert torch.equal(outputs(gm, X)[0], expected)
    last = next(n for n in gm.graph.nodes if n.op == "output").args[0][0]
    assert last.target not in (bgnn.binarize.default,), name


def test_weights_too() -> None:
    gm = exported(lambda m, x: F.linear(x, torch.sign(m.w.clamp(-1, 1))), X, w=randn(4, 3))
    canonicalise.run(gm)
    assert recognise_binarize.run(gm).rewrites == 1


def test_two_signs_of_one_tensor_and_a_shared_source() -> None:
    gm = exported(lambda m, x: torch.sign(x * m.w) + torch.sign(x * m.w).relu() + x, X, w=randn(3))
    canonicalise.run(gm)
    assert recognise_binarize.run(gm).rewrites == 2


def test_the_whole_expression_and_not_a_part() -> None:
    """where(sign(x) == 0, 1, sign(x)) is one sign, not an expression around one."""
    gm = exported(SIGNS["zeros settled"][1], X)
    canonicalise.run(gm)
    recognise_binarize.run(gm)
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"] == [bgnn.binarize.default]


def test_nan_is_minus_one() -> None:
    """As in where(x >= 0, 1, -1): the comparison is false."""
    assert bgnn.binarize(torch.tensor([float("nan")])).tolist() == [-1.0]
