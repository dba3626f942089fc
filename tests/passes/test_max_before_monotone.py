"""The maximum over neighbours first, increasing functions after it: the same bits from fewer numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, count, graph, randn
from torch import Tensor

from bgnn.passes import max_before_monotone
from bgnn.passes.graph import PassResult, is_call

B, N, K, C = 2, 3, 4, 5
X = randn(B, N, K, C)
Y = randn(B, N, 1, C, seed=1)
CONSTANTS = {
    "positive": randn(C, seed=2).abs(),
    "mixed": randn(C, seed=3),
    "zero": torch.zeros(C),
    "mean": randn(C, seed=4),
    "var": randn(C, seed=5).abs() + 0.1,
    "steep": torch.tensor([0.0, 0.25, 1.0, 2.0, 0.5]),
    "rows": randn(N, 1, 1, seed=6),
    "neighbours": randn(K, 1, seed=7),
    "misleading": randn(N, K, 1, seed=8),
    "square": randn(K, K, 1, seed=8),
}


def moved(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, PassResult]:
    gm = graph(function, *inputs, **CONSTANTS)
    return gm, apply(max_before_monotone.run, gm, *inputs)


MOVES: dict[str, Callable[..., Any]] = {
    "relu": lambda m, x, y: x.relu(),
    "leaky relu": lambda m, x, y: F.leaky_relu(x, 0.2),
    "prelu": lambda m, x, y: bgnn.prelu(x, m.steep),
    "tanh": lambda m, x, y: x.tanh(),
    "clamp": lambda m, x, y: x.clamp(-0.5, 0.5),
    "gamma": lambda m, x, y: x * m.positive,
    "zero gamma": lambda m, x, y: x * m.zero,
    "bias": lambda m, x, y: x + m.mixed,
    "norm": lambda m, x, y: bgnn.batch_norm(x, m.positive, m.mixed, m.mean, m.var, 1e-5),
    "norm with scale zero": lambda m, x, y: bgnn.batch_norm(x, m.zero, m.mixed, m.mean, m.var, 1e-5),
    "term of the node": lambda m, x, y: x + y,
    "term of the node on the left": lambda m, x, y: y + x,
    "minus a term of the node": lambda m, x, y: x - y,
    "repeated term": lambda m, x, y: x + y.expand(-1, -1, K, -1),
    "chain": lambda m, x, y: bgnn.prelu(
        bgnn.batch_norm(x + y, m.positive, m.mixed, m.mean, m.var, 1e-5) * 2, m.steep
    ).tanh(),
}


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", MOVES)
def test_moves(name: str, keepdim: bool) -> None:
    gm, result = moved(lambda m, x, y: MOVES[name](m, x, y).amax(2, keepdim), X, Y)
    assert (result.rewrites, result.refusals) == (1, [])
    (top,) = (n for n in gm.graph.nodes if is_call(n, aten.amax))
    assert top.args[0].op == "placeholder"
    assert all(n.meta["val"].numel() <= B * N * C for n in gm.graph.nodes if n.op == "call_function")


@pytest.mark.parametrize("dims", [(1, 2), (2, 1), (0, 1, 2)])
def test_several_axes(dims: tuple[int, ...]) -> None:
    gm, result = moved(lambda m, x: (x * m.positive).relu().amax(dims), X)
    assert result.rewrites == 1
    del gm


STAYS: dict[str, Callable[..., Any]] = {
    "negative gamma": lambda m, x, y: (x * m.mixed).amax(2),
    "negated": lambda m, x, y: (-x).amax(2),
    "subtracted": lambda m, x, y: (m.mixed - x).amax(2),
    "negative slope": lambda m, x, y: bgnn.prelu(x, m.mixed).amax(2),
    "negative leaky slope": lambda m, x, y: F.leaky_relu(x, -0.1).amax(2),
    "norm with negative scale": lambda m, x, y: bgnn.batch_norm(x, m.mixed, m.mixed, m.mean, m.var, 1e-5).amax(2),
    "absolute value": lambda m, x, y: x.abs().amax(2),
}
STAYS_SILENTLY: dict[str, Callable[..., Any]] = {
    "node minus varying": lambda m, x, y: (y - x).amax(2),
    "two varying terms": lambda m, x, y: (x + x.flip(2)).amax(2),
    "itself": lambda m, x, y: (x + x).amax(2),
    "factor per neighbour": lambda m, x, y: (x * m.neighbours).amax(2),
    "term per neighbour": lambda m, x, y: (x + m.neighbours).amax(2),
    "term per point and neighbour": lambda m, x, y: (x + m.misleading).amax(2),
    "read elsewhere": lambda m, x, y: (lambda a: a.amax(2) + a.sum(2))(x.relu()),
    "over channels": lambda m, x, y: x.relu().amax(-1),
    "over channels too": lambda m, x, y: x.relu().amax((2, 3)),
    "softmax": lambda m, x, y: x.softmax(-1).amax(2),
    "nothing to pass": lambda m, x, y: x.amax(2),
    "bound that varies": lambda m, x, y: torch.clamp(x, max=y * x).amax(2),
    "constant bound per neighbour": lambda m, x, y: torch.clamp(x, min=m.misleading).amax(2),
    "minimum": lambda m, x, y: x.relu().amin(2),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_decreases_stays_and_says_so(name: str) -> None:
    _, result = moved(STAYS[name], X, Y)
    assert result.rewrites == 0
    assert result.refusals[0][1].startswith("not increasing in every channel")


@pytest.mark.parametrize("name", STAYS_SILENTLY)
def test_stays(name: str) -> None:
    _, result = moved(STAYS_SILENTLY[name], X, Y)
    assert result.rewrites == 0


def test_a_lower_rank_is_aligned_from_the_right() -> None:
    """With k points the sizes of [N, k, 1] cannot tell points from neighbours."""
    square = randn(B, K, K, C)
    _, result = moved(lambda m, x: (x + m.square).amax(2), square)
    assert result.rewrites == 0
    _, result = moved(lambda m, x: (x + m.square[:, :1]).amax(2), square)  # this one does not depend on neighbours


def test_stops_at_what_does_not_increase() -> None:
    gm, result = moved(lambda m, x: ((x * m.mixed) + 1).relu().amax(2), X)
    assert result.rewrites == 1
    (top,) = (n for n in gm.graph.nodes if is_call(n, aten.amax))
    assert is_call(top.args[0], aten.mul)
    assert count(gm, aten.relu) == 1
