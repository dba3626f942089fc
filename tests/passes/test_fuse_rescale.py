"""Factors and shifts per channel go into a dense layer with real weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, count, graph, only, randn, signs

from bgnn.passes import fuse_rescale
from bgnn.passes.graph import PassResult

C, K = 5, 3
X = randn(2, 4, 6, K)
CONSTANTS = {
    "w": randn(C, K),
    "bias": randn(C, seed=1),
    "gamma": torch.tensor([-2.0, 0.0, 0.5, 1.0, -0.1]),
    "shift": randn(C, seed=2),
    "points": randn(4, 1, 1, seed=3),
    "neighbours": randn(6, 1, seed=4),
    "sign": signs(C, K),
    "divisor": torch.tensor([-2.0, 4.0, 0.5, 1.0, 3.0]),
}


def fused(function: Callable[..., Any]) -> tuple[Any, PassResult]:
    gm = graph(function, X, **CONSTANTS)
    return gm, apply(fuse_rescale.run, gm, X, tolerance=1e-5)


FUSED: dict[str, tuple[int, Callable[..., Any]]] = {
    "product": (1, lambda m, x: F.linear(x, m.w) * m.gamma),
    "product, layer with bias": (1, lambda m, x: F.linear(x, m.w, m.bias) * m.gamma),
    "constant on the left": (1, lambda m, x: m.gamma * F.linear(x, m.w)),
    "number": (1, lambda m, x: F.linear(x, m.w) * 0.3),
    "sum": (1, lambda m, x: F.linear(x, m.w) + m.shift),
    "difference": (1, lambda m, x: F.linear(x, m.w) - m.shift),
    "difference the other way": (1, lambda m, x: m.shift - F.linear(x, m.w, m.bias)),
    "quotient": (1, lambda m, x: F.linear(x, m.w) / m.divisor),
    "chain": (3, lambda m, x: (F.linear(x, m.w) * m.gamma + m.shift) * 2),
    "signs times real weights": (1, lambda m, x: F.linear(bgnn.binarize(x), m.w) * m.gamma),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused(name: str) -> None:
    rewrites, function = FUSED[name]
    gm, result = fused(function)
    assert (result.rewrites, result.refusals) == (rewrites, [])
    assert count(gm, aten.mul, aten.add, aten.sub, aten.div) == 0
    assert only(gm, aten.linear)


def test_rank_one_factors_stay_a_broadcast_and_say_so() -> None:
    """Paper, Eq. 11: alpha over channels, beta over points, gamma over neighbours."""
    gm, result = fused(lambda m, x: F.linear(x, m.w) * m.gamma * m.points * m.neighbours)
    assert result.rewrites == 1  # alpha
    assert count(gm, aten.mul) == 2
    ((_, why),) = result.refusals  # both factors are of one line
    assert "Eq. 11" in why


STAYS = {
    "binary layer": lambda m, x: F.linear(bgnn.binarize(x), m.sign) * m.gamma,
    "layer read elsewhere": lambda m, x: (lambda a: a * m.gamma + a.sum())(F.linear(x, m.w)),
    "no layer": lambda m, x: x.relu() * 2,
    "activation between": lambda m, x: F.linear(x, m.w).relu() * m.gamma,
    "sum of two layers": lambda m, x: F.linear(x, m.w) + F.linear(x, m.sign),
    "square": lambda m, x: (lambda a: a * a)(F.linear(x, m.w)),
    "divisor": lambda m, x: m.gamma / F.linear(x, m.w),
    "layer of constants on the right": lambda m, x: F.linear(x, m.w) @ F.linear(x, m.w).transpose(2, 3),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    _, result = fused(STAYS[name])
    assert result.rewrites == 0
