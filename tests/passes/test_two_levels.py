"""Weights of two levels a row become signs and a sum of the inputs; others are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import aten, bgnn, check_meta, count, graph, outputs, randn
from torch import Tensor

from bgnn.passes import sink_scales, two_levels
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.graph import calls, value_of

X, SIGNS = randn(9, 40), torch.where(randn(6, 40, seed=1) >= 0, 1.0, -1.0)
WEIGHTS = {
    "AdaBin": SIGNS * torch.rand(6, 1) + torch.linspace(-1, 1, 6)[:, None],
    "0 and 1": (SIGNS + 1) / 2,
    "one row of opposites": SIGNS * 0.3 + torch.tensor([[0.0], [0.1], [0.2], [0.3], [0.4], [0.5]]),
}
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "signs": lambda x: bgnn.binarize(x),
    "rescaled": lambda x: bgnn.binarize(x) * 0.7 + 0.2,
    "steps": lambda x: bgnn.binarize(x) * 0.5 + 0.5,
}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_both_products_are_of_signs(weight: str, inputs: str) -> None:
    gm = graph(lambda m, x: F.linear(INPUTS[inputs](x), m.w, m.b), X, w=WEIGHTS[weight], b=randn(6, seed=2))
    expected = outputs(gm, X)[0]
    assert two_levels.run(gm).rewrites == 1
    check_meta(gm, X)
    layers = list(calls(gm.graph, aten.linear))
    assert len(layers) == 2
    assert all(binary_rows(value_of(layer.args[1])) is not None for layer in layers)
    sink_scales.run(gm)
    assert torch.allclose(outputs(gm, X)[0], expected, atol=1e-4)
    assert two_levels.run(gm).rewrites == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.linear(x, m.levels),  # real inputs
        lambda m, x: F.linear(bgnn.binarize(x), m.signs),  # opposites: binary as they are
        lambda m, x: F.linear(bgnn.binarize(x), m.three),
        lambda m, x: F.linear(bgnn.binarize(x), m.real),
        lambda m, x: F.linear(bgnn.binarize(x) * m.channels, m.levels),
    ],
)
def test_others_stay(function: Callable[..., Any]) -> None:
    constants = {"levels": WEIGHTS["AdaBin"], "signs": SIGNS * 0.3, "real": randn(6, 40), "channels": torch.rand(40)}
    gm = graph(function, X, **constants, three=torch.round(randn(6, 40)).clamp(-1, 1) + 0.5)
    assert two_levels.run(gm).rewrites == 0
    assert count(gm, aten.linear) == 1
