"""A product with a vector per head, summed over channels, is a dense layer."""

from __future__ import annotations

from typing import Any

from graphs import apply, aten, bgnn, count, graph, only, randn
from torch import Tensor

from bgnn.passes import split_heads
from bgnn.passes.recognise_fake_quant import is_weight

X = randn(7, 6)
Q = (0.01, 3, -128, 127)


def scores(m: Any, x: Tensor) -> Tensor:
    return (x.reshape(-1, 2, 3) * m.a).sum(-1)


def test_a_score() -> None:
    gm = graph(scores, X, a=randn(1, 2, 3))
    assert apply(split_heads.run, gm, X, tolerance=1e-6).rewrites == 1
    assert count(gm, aten.sum, aten.mul) == 0
    matrix = getattr(gm, only(gm, aten.linear).args[1].target)
    assert matrix.shape == (2, 6)
    assert bool((matrix[0, 3:] == 0).all())


def test_with_a_quantised_vector() -> None:
    gm = graph(lambda m, x: (x.reshape(-1, 2, 3) * bgnn.fake_quant(m.a, *Q)).sum(-1), X, a=randn(1, 2, 3))
    assert apply(split_heads.run, gm, X, tolerance=1e-6).rewrites == 1
    assert is_weight(only(gm, aten.linear).args[1])


def test_other_sums_stay() -> None:
    for function in (
        lambda m, x: (x.reshape(-1, 2, 3) * m.a).sum(1),
        lambda m, x: (x.reshape(-1, 2, 3) * x.reshape(-1, 2, 3)).sum(-1),
        lambda m, x: (x.reshape(-1, 2, 3) + m.a).sum(-1),
        lambda m, x: (x.reshape(-1, 2, 3) * 2.0).sum(-1),
    ):
        gm = graph(function, X, a=randn(1, 2, 3))
        assert apply(split_heads.run, gm, X).rewrites == 0
