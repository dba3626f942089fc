"""Norms, deviations, addmm and masked updates in elementary ops: the same numbers; what is something else stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Wrapped, apply, aten, count, exported, outputs, randn, same
from torch import Tensor, fx
from torch.nn import functional as F

from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, decompose, merge_equal_nodes

TARGETS = [aten.layer_norm, aten.std, aten.var, aten.addmm, aten.index_put]
TARGETS += [aten.hardsigmoid, aten.hardswish, aten.mish, aten.log_sigmoid]
X = randn(7, 4, 6) * 3 + 1
CASES: dict[str, Callable[..., Any]] = {
    "layer_norm": lambda m, x: F.layer_norm(x, [6], m.w, m.b, 1e-3),
    "layer_norm without weights": lambda m, x: F.layer_norm(x, [4, 6]),
    "std, biased": lambda m, x: x.std(unbiased=False),
    "std over axes": lambda m, x: x.std((0, -1), unbiased=True, keepdim=True),
    "std of PyG's norm": lambda m, x: x / (x.std(dim=1, unbiased=False, keepdim=True) + 1e-5),
    "std of known size": lambda m, x: x.std(),
    "var": lambda m, x: x.var(dim=0, correction=2),
    "addmm": lambda m, x: torch.addmm(m.b, x[:, 0], m.a, beta=0.5, alpha=2.0),
    "addmm of tensors": lambda m, x: torch.addmm(x[:, 0], x[:, 1], x[:, 2].t() @ x[:, 3]),
    "hardsigmoid": lambda m, x: F.hardsigmoid(x),
    "hardswish": lambda m, x: F.hardswish(x - 2),
    "mish": lambda m, x: F.mish(x),
    "log_sigmoid": lambda m, x: F.logsigmoid(x),
    "masked rows": lambda m, x: x.index_put([x[:, 0, 0] > 1], x[x[:, 0, 0] > 1].neg()),
    "masked update": lambda m, x: x.index_put([x > 1], (x[x > 1] * 2 - 1).relu()),
}


def graph(function: Callable[..., Any], **constants: Tensor) -> fx.GraphModule:
    """With an open first axis: what a mask picks has no size that is known."""
    axes = [{0: torch.export.Dim.DYNAMIC}] if function not in STATIC else None
    gm = trace(Wrapped(function, constants), (X,), open_axes=axes)
    canonicalise.run(gm)
    merge_equal_nodes.run(gm)
    return gm


STATIC = [
    CASES[name] for name in ("std over axes", "std of known size", "var")
]  # of an unbiased deviation the count must be known


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers(name: str) -> None:
    constants = {"w": randn(6, seed=1), "b": randn(6, seed=2), "a": randn(6, 6, seed=3)}
    gm = graph(CASES[name], **constants)
    assert count(gm, *TARGETS) == 1
    expected = outputs(gm, X)[0]
    assert decompose.run(gm).rewrites == 1
    assert count(gm, *TARGETS) == 0
    same(outputs(gm, X)[0], expected, 0.0 if "masked" in name else 1e-6)


def test_what_is_no_update_of_the_masked_rows_stays() -> None:
    for function in (
        lambda m, x: x.index_put([x > 1], torch.tensor(1.0), accumulate=True),
        lambda m, x: x.index_put([x > 1], x[x > 1].cumsum(0)),
        lambda m, x: x.index_put([torch.tensor([0, 2])], torch.tensor(1.0)),
        lambda m, x: x.index_put([x > 1], x[:1, 0, 0]),
    ):
        gm = graph(function)
        assert decompose.run(gm).rewrites == 0
        assert count(gm, aten.index_put) == 1


GROUPED = {
    "two": (lambda m, x: F.conv1d(x, m.two, m.bias, groups=2), 2),
    "with a window": (lambda m, x: F.conv1d(x, m.wide, groups=2, padding=1), 2),
    "of computed weights": (lambda m, x: F.conv1d(x, m.two.sign(), groups=2), 2),
    "depthwise": (lambda m, x: F.conv1d(x, m.one, m.bias, groups=6), 0),
    "a multiplier": (lambda m, x: F.conv1d(x, m.more, groups=6), 6),
}


@pytest.mark.parametrize("kind", GROUPED)
def test_grouped_convolutions(kind: str) -> None:
    function, left = GROUPED[kind]
    x = randn(2, 6, 5)
    constants = {
        "two": randn(6, 3, 1), "wide": randn(8, 3, 3), "one": randn(6, 1, 1), "more": randn(12, 1, 1), "bias": randn(6),
    }  # fmt: skip
    gm = exported(function, x, **constants)
    assert apply(decompose.run, gm, x, tolerance=1e-6).rewrites == 1
    assert count(gm, aten.conv1d) == left
    assert apply(decompose.run, gm, x).rewrites == 0


def test_a_plain_convolution_stays() -> None:
    x = randn(2, 6, 5)
    gm = exported(lambda m, v: F.conv1d(v, m.w), x, w=randn(4, 6, 1))
    assert apply(decompose.run, gm, x).rewrites == 0
