"""Equal computations become one; what only looks equal stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import apply, aten, bgnn, count, graph, randn

from bgnn.passes import merge_equal_nodes
from bgnn.passes.graph import all_taps

X = randn(2, 3)
C = randn(3, seed=1)


def merged(function: Callable[..., Any], **constants: torch.Tensor) -> tuple[Any, int]:
    gm = graph(function, X, **constants)
    return gm, apply(merge_equal_nodes.run, gm, X).rewrites


def test_equal_calls_and_what_follows_from_them() -> None:
    gm, rewrites = merged(lambda m, x: (x * 2).relu() - (x * 2).relu())
    assert rewrites == 2
    assert count(gm, aten.mul, aten.relu) == 2


def test_equal_constants() -> None:
    gm, rewrites = merged(lambda m, x: (x * m.a).relu() + (x * m.b).relu(), a=C, b=C.clone())
    assert rewrites == 3
    assert len(list(gm.named_buffers())) == 1


def test_lists_and_keywords_count() -> None:
    _, rewrites = merged(lambda m, x: torch.cat([x, x.relu()], 1) + torch.cat([x, x.relu()], 1))
    assert rewrites == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.sum(0) + x.sum(1)[:1],
        lambda m, x: (lambda y: torch.cat([x, y], 1) + torch.cat([y, x], 1))(x.relu()),
        lambda m, x: x.clamp(min=0.5) + x.clamp(max=0.5),
        lambda m, x: (x - m.a) + (m.a - x),
        lambda m, x: x[:, :2] + x[:, 1:],
    ],
)
def test_what_differs_stays(function: Callable[..., Any]) -> None:
    _, rewrites = merged(function, a=C)
    assert rewrites == 0


def test_constants_of_another_type_shape_or_sign_of_zero_differ() -> None:
    one = torch.ones(3)
    _, rewrites = merged(
        lambda m, x: x * m.a + x * m.b + x * m.c + x * m.d,
        a=one,
        b=one.reshape(1, 3).double(),
        c=torch.zeros(3),
        d=-torch.zeros(3),
    )
    assert rewrites == 0


def test_both_taps_of_one_sign_are_kept() -> None:
    gm, rewrites = merged(lambda m, x: bgnn.binarize(x * 2) + bgnn.binarize(x * 2).relu())
    assert rewrites == 2
    assert sorted(tap.name for _, tap in all_taps(gm)) == ["binarize", "binarize_1"]


def test_three_taps_of_one_sign_are_kept() -> None:
    gm, _ = merged(lambda m, x: bgnn.binarize(x) + bgnn.binarize(x).relu() * bgnn.binarize(x).abs())
    assert len(list(all_taps(gm))) == 3
