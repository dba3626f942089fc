"""PReLU and ReLU written in arithmetic, and what only looks like them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import apply, aten, bgnn, count, graph, randn

from bgnn.passes import recognise_prelu

C = 5
X = torch.cat([randn(6, C) * 3, torch.zeros(1, C), torch.full((1, C), 2000.0), torch.full((1, C), 5e-5)])
CONSTANTS = {
    "a": torch.tensor([-0.5, 0.0, 0.25, 1.0, 2.0]),
    "one": torch.tensor([0.25]),
    "rows": randn(9, 1),
    "most": torch.tensor(1000.0),
    "nought": torch.tensor(0.0),
}

PRELU: dict[str, Callable[..., Any]] = {
    "where": lambda m, x: torch.where(x > 0, x, m.a * x),
    "where ge": lambda m, x: torch.where(x >= 0, x, x * m.a),
    "where turned": lambda m, x: torch.where(x < 0, x * m.a, x),
    "relus": lambda m, x: x.relu() - m.a * (-x).relu(),
    "clamps": lambda m, x: x.clamp(min=0) + m.a * x.clamp(max=0),
    "one slope": lambda m, x: torch.where(x > 0, x, m.one * x),
    "max and min": lambda m, x: torch.maximum(x, m.nought) + m.a * torch.minimum(x, m.nought),
}
RELU: dict[str, Callable[..., Any]] = {
    "where": lambda m, x: torch.where(x > 0, x, m.nought),
    "maximum": lambda m, x: torch.maximum(x, m.nought),
}
OTHERS: dict[str, Callable[..., Any]] = {
    "zero where masked": lambda m, x: torch.where(x > -1e8, x, 0.0),
    "shifted": lambda m, x: torch.where(x > 0.5, x, m.a * x),
    "elu-like": lambda m, x: torch.where(x > 0, x, m.a * x - 1),
    "factor above": lambda m, x: torch.where(x > 0, x * 2, m.a * x),
    "slope per row": lambda m, x: torch.where(x > 0, x, m.rows * x),
    "clipped": lambda m, x: torch.where(x < 1000, x.relu(), m.most),
    "dead zone": lambda m, x: torch.where(x > 1e-4, x, m.nought),
    "absolute plus": lambda m, x: x.abs() + x,
    "sum": lambda m, x: x + m.a,
    "negated": lambda m, x: torch.where(x > 0, -x, x * m.a),
}


@pytest.mark.parametrize("name", PRELU)
def test_prelu(name: str) -> None:
    gm = graph(PRELU[name], X, **CONSTANTS)
    assert apply(recognise_prelu.run, gm, X).rewrites >= 1
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"] == [bgnn.prelu.default]


@pytest.mark.parametrize("name", RELU)
def test_relu(name: str) -> None:
    gm = graph(RELU[name], X, **CONSTANTS)
    assert apply(recognise_prelu.run, gm, X).rewrites >= 1
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"] == [aten.relu.default]


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay(name: str) -> None:
    gm = graph(OTHERS[name], X, **CONSTANTS)
    assert apply(recognise_prelu.run, gm, X).rewrites == 0
    assert count(gm, bgnn.prelu) == 0


def test_two_tensors_are_no_activation() -> None:
    gm = graph(lambda m, x, y: torch.where(x > 0, y, m.a * x), X, X.clone() + 1, **CONSTANTS)
    assert apply(recognise_prelu.run, gm, X, X + 1).rewrites == 0
