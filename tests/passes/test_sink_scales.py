"""Scales and offsets of binary inputs go behind the layer, and only where that leaves it binary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, count, graph, only, randn, signs
from torch import Tensor

from bgnn.passes import domains as dm
from bgnn.passes import sink_scales
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.graph import value_of

X = randn(4, 5, 8)
W = signs(6, 8, seed=1) * torch.tensor([0.1, 2.0, 1.0, 0.3, 0.7, 5.0])[:, None]
CONSTANTS = {"w": W, "b": randn(6, seed=2), "o": randn(8, seed=3), "s": signs(8, seed=4) * 0.3, "real": randn(6, 8)}
CONSTANTS["columns"] = signs(6, 8, seed=5) / (torch.arange(8) + 1)

FORMS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "one scale": lambda m, x, v: 0.7 * v,
    "division": lambda m, x, v: v / 3,
    "offset": lambda m, x, v: 0.5 * v + 0.5,
    "offsets": lambda m, x, v: (v - m.o) * 2,
    "minus": lambda m, x, v: 1 - v * 0.2,
    "rows": lambda m, x, v: v * x.abs().mean(-1, keepdim=True),
    "rows first": lambda m, x, v: x.abs().sum(2, True) * v,
    "rows and scale": lambda m, x, v: (0.5 * v + m.o) * x.abs().mean(-1, keepdim=True) * 0.25,
    "rows, then an offset": lambda m, x, v: v * x.abs().mean(-1, keepdim=True) + m.o,
    "signs per channel": lambda m, x, v: v * m.s,
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_what_is_left_of_the_layer_is_binary(name: str, with_bias: bool) -> None:
    def layer(m: Any, x: Tensor) -> Tensor:
        return F.linear(FORMS[name](m, x, bgnn.binarize(x)), m.w, m.b if with_bias else None)

    gm = graph(layer, X, **CONSTANTS)
    assert apply(sink_scales.run, gm, X, tolerance=1e-5).rewrites == 1
    node = only(gm, aten.linear)
    assert dm.analyse(gm)[node.args[0]].kind == "binary"
    assert binary_rows(value_of(node.args[1])) is not None


def test_a_scale_per_channel_that_makes_the_weights_signs() -> None:
    gm = graph(lambda m, x: F.linear(bgnn.binarize(x) * m.c, m.w), X, c=torch.arange(8.0) + 1, w=CONSTANTS["columns"])
    assert apply(sink_scales.run, gm, X, tolerance=1e-5).rewrites == 1
    assert count(gm, aten.mul) == 0


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: F.linear(bgnn.binarize(x) * m.o, m.w), "a scale for each channel"),
        (lambda m, x: F.linear(bgnn.binarize(x) * 0.5, m.real), None),
        (lambda m, x: F.linear(bgnn.binarize(x) * x, m.w), None),
        (lambda m, x: F.linear(bgnn.binarize(x), m.w), None),
        (lambda m, x: F.linear((bgnn.binarize(x) * x.mean(2, True) + 1) * x.mean(2, True), m.w), None),
        (lambda m, x: F.linear(x * 0.5, m.w), None),
    ],
)
def test_other_layers_stay(function: Callable[..., Any], reason: str | None) -> None:
    gm = graph(function, X, **CONSTANTS)
    result = apply(sink_scales.run, gm, X)
    assert result.rewrites == 0
    assert [r for _, r in result.refusals if reason is None or reason not in r] == []
    assert len(result.refusals) == (reason is not None)


def test_who_else_reads_the_scaled_signs_still_can() -> None:
    gm = graph(lambda m, x: (lambda v: F.linear(v, m.w) + v.sum(2, True))(0.5 * bgnn.binarize(x)), X, w=W)
    assert apply(sink_scales.run, gm, X, tolerance=1e-5).rewrites == 1
