"""Gather, message and segment sum become one operator, exactly; what is something else stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_models import random_graph
from graphs import Wrapped, aten, bgnn, count, outputs, randn
from torch import Tensor, fx

from bgnn.converter.sizes import graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, fuse_aggregation

X, EDGES = random_graph(12, 40)
Q, M, Y = (0.03, 120, 0, 255), (0.011, 100, 0, 255), (0.05, 90, 0, 255)


def opened(function: Callable[..., Any], **constants: Tensor) -> fx.GraphModule:
    """The function over open sizes, where an edge's ends are selections of rows."""
    gm = trace(Wrapped(function, constants), (X, EDGES), open_axes=graph_axes((X, EDGES)))
    canonicalise.run(gm)
    return gm


def codes(x: Tensor) -> Tensor:
    return bgnn.quantize(x, *Q)


def weight(x: Tensor, e: Tensor) -> Tensor:
    """A number for each edge."""
    return x.sum(1).index_select(0, e[1])


def attention(m: Any, x: Tensor, e: Tensor, quantised: bool) -> Tensor:
    a, b = F.linear(x, m.a), F.linear(x, m.b)
    score = a.index_select(0, e[0]) + b.index_select(0, e[1])
    if quantised:
        score = bgnn.dequantize(bgnn.quantize(score, *M), *M[:2])
    return bgnn.segment_softmax(F.leaky_relu(score, 0.2), e[1], 12).reshape(-1, 2, 1)


FUSED: dict[str, tuple[Any, Callable[..., Any]]] = {
    "sum": (bgnn.aggregate, lambda m, x, e: bgnn.segment_sum(x.index_select(0, e[0]), e[1], 12)),
    "mean": (bgnn.aggregate, lambda m, x, e: bgnn.segment_mean(x.index_select(0, e[0]), e[1], 12)),
    "max": (bgnn.aggregate, lambda m, x, e: bgnn.segment_max(x.index_select(0, e[0]), e[1], 12)),
    "weighted": (
        bgnn.aggregate,
        lambda m, x, e: bgnn.segment_sum(x.index_select(0, e[0]) * weight(x, e).relu().reshape(-1, 1), e[1], 12),
    ),
    "codes": (
        bgnn.q_aggregate,
        lambda m, x, e: bgnn.q_segment_sum(codes(x).index_select(0, e[0]), *Q[:2], e[1], 12, *Y),
    ),
    "weighted codes": (
        bgnn.q_aggregate,
        lambda m, x, e: bgnn.q_segment_sum(
            bgnn.q_mul(codes(x).index_select(0, e[0]), *Q[:2], codes(weight(x, e)).reshape(-1, 1), *Q[:2], *M),
            *M[:2], e[1], 12, *Y,
        ),
    ),
    "weight first": (
        bgnn.q_aggregate,
        lambda m, x, e: bgnn.q_segment_sum(
            bgnn.q_mul(codes(weight(x, e)).reshape(-1, 1), *Q[:2], codes(x).index_select(0, e[0]), *Q[:2], *M),
            *M[:2], e[1], 12, *Y,
        ),
    ),
    "attention": (
        bgnn.gat_aggregate,
        lambda m, x, e: bgnn.segment_sum(
            attention(m, x, e, False) * x.reshape(-1, 2, 3).index_select(0, e[0]), e[1], 12
        ),
    ),
    "attention on codes": (
        bgnn.q_gat_aggregate,
        lambda m, x, e: bgnn.q_segment_sum(
            bgnn.quantize(
                attention(m, x, e, True)
                * bgnn.dequantize(codes(x).reshape(-1, 2, 3).index_select(0, e[0]), *Q[:2]),
                *M,
            ),
            *M[:2], e[1], 12, *Y,
        ),
    ),
}  # fmt: skip
CONSTANTS = {"a": randn(2, 6, seed=6), "b": randn(2, 6, seed=7)}


@pytest.mark.parametrize("name", FUSED)
def test_fused_exactly(name: str) -> None:
    op, function = FUSED[name]
    gm = opened(function, **CONSTANTS)
    expected = outputs(gm, X, EDGES)[0]
    assert fuse_aggregation.run(gm).rewrites == 1
    assert torch.equal(outputs(gm, X, EDGES)[0], expected)
    assert count(gm, op) == 1
    assert count(gm, bgnn.q_mul, bgnn.segment_softmax) == 0
    assert count(gm, aten.index_select) == (1 if name.startswith("weight") else 0)  # the weights' own


def aggregated(x: Tensor, e: Tensor) -> Tensor:
    return bgnn.q_segment_sum(codes(x).index_select(0, e[0]), *Q[:2], e[1], 12, *Y)


@pytest.mark.parametrize("channels", [1, 6])
def test_a_table_behind_an_aggregation_becomes_its_last_step(channels: int) -> None:
    table = torch.randint(0, 256, (channels, 256), dtype=torch.uint8)
    gm = opened(lambda m, x, e: bgnn.q_table(aggregated(x, e), m.t), t=table)
    expected = outputs(gm, X, EDGES)[0]
    assert fuse_aggregation.run(gm).rewrites == 2
    assert torch.equal(outputs(gm, X, EDGES)[0], expected)
    assert count(gm, bgnn.q_aggregate) == 1
    assert count(gm, bgnn.q_table) == 0


def test_only_the_first_table_and_only_where_nobody_else_reads() -> None:
    table = torch.randint(0, 256, (1, 256), dtype=torch.uint8)
    gm = opened(lambda m, x, e: bgnn.q_table(bgnn.q_table(aggregated(x, e), m.t), m.t), t=table)
    expected = outputs(gm, X, EDGES)[0]
    assert fuse_aggregation.run(gm).rewrites == 2
    assert count(gm, bgnn.q_table) == 1
    assert torch.equal(outputs(gm, X, EDGES)[0], expected)

    def read_twice(m: Any, x: Tensor, e: Tensor) -> Tensor:
        a = aggregated(x, e)
        return bgnn.q_table(a, m.t).to(torch.int32) + a.to(torch.int32)

    gm = opened(read_twice, t=table)
    assert fuse_aggregation.run(gm).rewrites == 1
    assert count(gm, bgnn.q_table) == 1


STAYS: dict[str, Callable[..., Any]] = {
    "gathered by target": lambda m, x, e: bgnn.segment_sum(x.index_select(0, e[1]), e[1], 12),
    "a weight for each channel": lambda m, x, e: bgnn.segment_sum(x.index_select(0, e[0]) * m.c, e[1], 12),
    "a function of both ends": lambda m, x, e: bgnn.segment_sum(
        (x.index_select(0, e[0]) - x.index_select(0, e[1])).relu(), e[1], 12
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    gm = opened(STAYS[name], c=randn(6))
    result = fuse_aggregation.run(gm)
    assert result.rewrites == 0
    assert "gathered rows" in result.refusals[0][1]


def test_signs_stay_for_what_they_are() -> None:
    gm = opened(lambda m, x, e: bgnn.segment_sum(bgnn.unpack(bgnn.pack(x).index_select(0, e[0]), 6), e[1], 12))
    result = fuse_aggregation.run(gm)
    assert result.rewrites == 0
    assert "its messages are signs, gathered as bits" in result.refusals[0][1]
