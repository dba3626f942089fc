"""Quantisers move above gathers and reshapes, and go where they change nothing."""

from __future__ import annotations

import torch
from graphs import apply, aten, bgnn, count, graph, only, randn

from bgnn.passes import hoist_fake_quant

X, INDEX = randn(6, 4), torch.tensor([3, 3, 0, 5, 1])
Q = (0.05, 3, -128, 127)


def test_above_a_gather_and_a_reshape() -> None:
    gm = graph(lambda m, x, i: bgnn.fake_quant(x.reshape(-1, 2, 2).index_select(0, i), *Q), X, INDEX)
    assert apply(hoist_fake_quant.run, gm, X, INDEX).rewrites == 2
    assert only(gm, bgnn.fake_quant).args[0].op == "placeholder"
    assert count(gm, aten.index_select) == 1


def test_the_same_quantiser_twice_is_one() -> None:
    gm = graph(lambda m, x: bgnn.fake_quant(bgnn.fake_quant(x, *Q), *Q), X)
    assert apply(hoist_fake_quant.run, gm, X).rewrites == 1
    assert count(gm, bgnn.fake_quant) == 1


def test_a_wider_quantiser_of_the_same_codes_goes() -> None:
    gm = graph(lambda m, x: bgnn.fake_quant(bgnn.fake_quant(x, 0.05, 3, 0, 15), *Q), X)
    assert apply(hoist_fake_quant.run, gm, X).rewrites == 1


def test_another_scale_or_a_narrower_range_stays() -> None:
    for second in ((0.051, 3, -128, 127), (0.05, 3, 0, 15)):
        gm = graph(lambda m, x, q=second: bgnn.fake_quant(bgnn.fake_quant(x, *Q), *q), X)
        assert apply(hoist_fake_quant.run, gm, X).rewrites == 0


def test_codes_without_end_are_not_looked_at_one_by_one() -> None:
    gm = graph(lambda m, x: bgnn.fake_quant(bgnn.fake_quant(x, 0.05, 0, -(2**31), 2**31), *Q), X)
    assert apply(hoist_fake_quant.run, gm, X).rewrites == 0


def test_not_above_arithmetic() -> None:
    gm = graph(lambda m, x: bgnn.fake_quant(x.relu(), *Q), X)
    assert apply(hoist_fake_quant.run, gm, X).rewrites == 0
