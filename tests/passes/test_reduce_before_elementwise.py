"""Maxima and means over neighbours first, functions per channel after them: fewer numbers, the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, count, graph, randn
from torch import Tensor

from bgnn.passes import reduce_before_elementwise
from bgnn.passes.graph import PassResult, is_call

B, N, K, C = 2, 3, 4, 5
X = randn(B, N, K, C)
Y = randn(B, N, 1, C, seed=1)
CONSTANTS = {
    "positive": randn(C, seed=2).abs(),
    "negative": -randn(C, seed=2).abs(),
    "mixed": torch.tensor([-1.5, 0.0, 0.7, -0.2, 2.0]),
    "zero": torch.zeros(C),
    "mean": randn(C, seed=4),
    "var": randn(C, seed=5).abs() + 0.1,
    "steep": torch.tensor([0.0, 0.25, 1.0, 2.0, 0.5]),
    "neighbours": randn(K, 1, seed=7),
    "misleading": randn(N, K, 1, seed=8),
    "square": randn(K, K, 1, seed=8),
}


def norm(m: Any, x: Tensor, scale: Tensor) -> Tensor:
    return bgnn.batch_norm(x, scale, m.positive, m.mean, m.var, 1e-5)


def moved(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 0.0) -> tuple[Any, PassResult]:
    gm = graph(function, *inputs, **CONSTANTS)
    return gm, apply(reduce_before_elementwise.run, gm, *inputs, tolerance=tolerance)


RISING: dict[str, Callable[..., Any]] = {
    "relu": lambda m, x, y: x.relu(),
    "leaky relu": lambda m, x, y: F.leaky_relu(x, 0.2),
    "prelu": lambda m, x, y: bgnn.prelu(x, m.steep),
    "tanh": lambda m, x, y: x.tanh(),
    "clamp": lambda m, x, y: x.clamp(-0.5, 0.5),
    "gamma": lambda m, x, y: x * m.positive,
    "zero gamma": lambda m, x, y: x * m.zero,
    "bias": lambda m, x, y: x + m.mixed,
    "norm": lambda m, x, y: norm(m, x, m.positive),
    "norm with scale zero": lambda m, x, y: norm(m, x, m.zero),
    "term of the node": lambda m, x, y: x + y,
    "term of the node on the left": lambda m, x, y: y + x,
    "minus a term of the node": lambda m, x, y: x - y,
    "repeated term": lambda m, x, y: x + y.expand(-1, -1, K, -1),
}
FALLING: dict[str, Callable[..., Any]] = {
    "negated": lambda m, x, y: -x,
    "subtracted": lambda m, x, y: m.mixed - x,
    "negative factor": lambda m, x, y: x * -0.5,
    "divided": lambda m, x, y: x / -2.0,
    "norm, negative": lambda m, x, y: norm(m, x, m.negative),
}
BOTH: dict[str, Callable[..., Any]] = {
    "gamma of both signs": lambda m, x, y: x * m.mixed,
    "norm of both signs": lambda m, x, y: norm(m, x, m.mixed),
}
VALLEY: dict[str, Callable[..., Any]] = {
    "prelu with negative slopes": lambda m, x, y: bgnn.prelu(x, m.mixed),
    "leaky relu with a negative slope": lambda m, x, y: F.leaky_relu(x, -0.1),
    "absolute value": lambda m, x, y: x.abs(),
}
AFFINE = {
    *(n for n in RISING if n.startswith(("gamma", "zero", "bias", "norm", "term", "minus", "repeated"))),
    *FALLING,
    *BOTH,
}
ALL = RISING | FALLING | BOTH | VALLEY


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("reduce", [torch.amax, torch.amin])
def test_extrema_to_the_last_bit(name: str, keepdim: bool, reduce: Callable[..., Tensor]) -> None:
    gm, result = moved(lambda m, x, y: reduce(ALL[name](m, x, y), 2, keepdim), X, Y)
    if name in VALLEY and reduce is torch.amin:  # the least value of a valley is not at an end
        assert result.rewrites == 0
        assert "stays after it" in result.refusals[0][1]
        return
    assert (result.rewrites, result.refusals) == (1, [])
    tops = [n for n in gm.graph.nodes if is_call(n, aten.amax, aten.amin)]
    assert all(n.args[0].op == "placeholder" for n in tops)
    assert len(tops) == (2 if name in BOTH or name in VALLEY else 1)
    assert all(n.meta["val"].numel() <= B * N * C for n in gm.graph.nodes if n.op == "call_function")


@pytest.mark.parametrize("name", ALL)
def test_means_of_what_is_affine(name: str) -> None:
    gm, result = moved(lambda m, x, y: ALL[name](m, x, y).mean(2), X, Y, tolerance=1e-5)
    assert result.rewrites == int(name in AFFINE)
    if name in AFFINE:
        (top,) = (n for n in gm.graph.nodes if is_call(n, aten.mean))
        assert top.args[0].op == "placeholder"
    else:
        assert result.refusals


def test_chains_go_one_after_the_other() -> None:
    gm, result = moved(lambda m, x, y: bgnn.prelu(norm(m, x + y, m.positive) * -2, m.steep).tanh().amax(2), X, Y)
    assert result.rewrites == 5
    assert all(n.meta["val"].numel() <= B * N * C for n in gm.graph.nodes if n.op == "call_function")


@pytest.mark.parametrize("dims", [(1, 2), (2, 1), (0, 1, 2)])
def test_several_axes(dims: tuple[int, ...]) -> None:
    assert moved(lambda m, x: (x * m.positive).relu().amax(dims), X)[1].rewrites == 2


def test_two_readers_both_pools() -> None:
    """Maximum and mean pooling of one tensor."""
    gm, result = moved(
        lambda m, x: torch.cat([norm(m, x, m.mixed).amax(1), norm(m, x, m.mixed).mean(1)], -1), X, tolerance=1e-5
    )
    assert result.rewrites == 2
    gm, result = moved(
        lambda m, x: (lambda a: torch.cat([a.amax(1), a.mean(1)], -1))(norm(m, x, m.mixed)), X, tolerance=1e-5
    )
    assert result.rewrites == 2
    assert all(n.meta["val"].numel() <= B * K * 2 * C for n in gm.graph.nodes if n.op == "call_function")


def test_one_reader_that_cannot_keeps_both() -> None:
    _, result = moved(lambda m, x: (lambda a: a.amax(2) + a.mean(2))(x.relu()), X)
    assert result.rewrites == 0
    _, result = moved(lambda m, x: (lambda a: a.amax(2) + a.amin(2))(x.abs()), X)
    assert result.rewrites == 0


STAYS: dict[str, Callable[..., Any]] = {
    "node minus varying": lambda m, x, y: (y - x).amax(2),
    "two varying terms": lambda m, x, y: (x + x.flip(2)).amax(2),
    "itself": lambda m, x, y: (x + x).amax(2),
    "square": lambda m, x, y: (x * x).amax(2),
    "factor per neighbour": lambda m, x, y: (x * m.neighbours).amax(2),
    "term per neighbour": lambda m, x, y: (x + m.neighbours).amax(2),
    "term per point and neighbour": lambda m, x, y: (x + m.misleading).amax(2),
    "read elsewhere": lambda m, x, y: (lambda a: a.amax(2) + a.sum(2))(x.relu()),
    "over channels": lambda m, x, y: x.relu().amax(-1),
    "over channels too": lambda m, x, y: x.relu().amax((2, 3)),
    "mean over channels": lambda m, x, y: (x * m.mixed).mean(-1),
    "softmax": lambda m, x, y: x.softmax(-1).amax(2),
    "nothing to pass": lambda m, x, y: x.amax(2),
    "bound that varies": lambda m, x, y: torch.clamp(x, max=y * x).amax(2),
    "constant bound per neighbour": lambda m, x, y: torch.clamp(x, min=m.misleading).amax(2),
    "sum": lambda m, x, y: (x * 2).sum(2),
    "mean of a relu": lambda m, x, y: x.relu().mean(2),
    "constant over the value": lambda m, x, y: (m.positive / x).amax(2),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    assert moved(STAYS[name], X, Y)[1].rewrites == 0


def test_a_lower_rank_is_aligned_from_the_right() -> None:
    """With k points the sizes of [N, k, 1] cannot tell points from neighbours."""
    square = randn(B, K, K, C)
    assert moved(lambda m, x: (x + m.square).amax(2), square)[1].rewrites == 0
    moved(lambda m, x: (x + m.square[:, :1]).amax(2), square)  # free of j: may move, must be right


def test_stops_at_what_does_not_go() -> None:
    gm, result = moved(lambda m, x: ((x * m.neighbours) + 1).relu().amax(2), X)
    assert result.rewrites == 2
    (top,) = (n for n in gm.graph.nodes if is_call(n, aten.amax))
    assert is_call(top.args[0], aten.mul)
    assert count(gm, aten.relu) == 1
