"""Norms beside dense layers with real weights disappear into them; beside binary layers they stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, bgnn, count, graph, only, randn, signs
from torch import Tensor

from bgnn.passes import fold_batch_norm
from bgnn.passes.graph import PassResult, aten

C, K = 5, 3
PARAMETERS = {
    "g": torch.tensor([-1.5, 0.0, 0.3, 2.0, -0.1]),
    "h": randn(C, seed=2),
    "mu": randn(C, seed=3),
    "va": randn(C, seed=4).abs() + 0.1,
    "w": randn(C, K, seed=5),
    "bias": randn(C, seed=6),
    "after": randn(4, C, seed=7),
    "after_bias": randn(4, seed=8),
    "sign": signs(C, K),
    "square": signs(C, C),
}


def bn(m: Any, x: Tensor) -> Tensor:
    return bgnn.batch_norm(x, m.g, m.h, m.mu, m.va, 1e-5)


def folded(function: Callable[..., Any], x: Tensor) -> tuple[Any, PassResult]:
    gm = graph(function, x, **PARAMETERS)
    return gm, apply(fold_batch_norm.run, gm, x, tolerance=1e-5)


X = randn(2, 4, K)
INTO_THE_LAYER_BEFORE = {
    "plain": lambda m, x: bn(m, F.linear(x, m.w)),
    "with a bias": lambda m, x: bn(m, F.linear(x, m.w, m.bias)),
    "norm without weight and bias": lambda m, x: bgnn.batch_norm(F.linear(x, m.w), None, None, m.mu, m.va, 1e-3),
    "norm without bias": lambda m, x: bgnn.batch_norm(F.linear(x, m.w), m.g, None, m.mu, m.va, 1e-5),
    "mean between": lambda m, x: bn(m, F.linear(x, m.w).mean(1)),
    "two means between": lambda m, x: bn(m, F.linear(x, m.w).mean(1, keepdim=True).mean(0)),
    "signs times real weights": lambda m, x: bn(m, F.linear(bgnn.binarize(x), m.w)),
    "real times signs": lambda m, x: bn(m, F.linear(x, m.sign)),
}


@pytest.mark.parametrize("name", INTO_THE_LAYER_BEFORE)
def test_into_the_layer_before(name: str) -> None:
    gm, result = folded(INTO_THE_LAYER_BEFORE[name], X)
    assert (result.rewrites, result.refusals) == (1, [])
    assert count(gm, bgnn.batch_norm) == 0
    assert len(only(gm, aten.linear).args) == 3


@pytest.mark.parametrize("bias", [False, True])
def test_into_the_layer_after(bias: bool) -> None:
    gm, result = folded(
        lambda m, x: F.linear(bn(m, F.linear(x, m.w).relu()), m.after, m.after_bias if bias else None), X
    )
    assert result.rewrites == 1
    assert count(gm, bgnn.batch_norm) == 0


def test_into_a_matrix_of_signs_after_it() -> None:
    """The norm's output is real, so nothing binary is lost."""
    gm, result = folded(lambda m, x: F.linear(bn(m, x), m.square), randn(2, C))
    assert result.rewrites == 1
    assert count(gm, bgnn.batch_norm) == 0


def test_a_chain_of_norms_folds_one_after_the_other() -> None:
    gm, result = folded(lambda m, x: bn(m, bn(m, F.linear(x, m.w))), X)
    assert result.rewrites == 2
    assert count(gm, bgnn.batch_norm) == 0


STAYS = {
    "binary layer before": lambda m, x: bn(m, F.linear(bgnn.binarize(x), m.sign)),
    "scaled binary layer before": lambda m, x: bn(m, F.linear(bgnn.binarize(x), m.sign * 1)),
    "maximum between": lambda m, x: bn(m, F.linear(x, m.w).amax(1)),
    "activation between": lambda m, x: bn(m, F.linear(x, m.w).relu()),
    "layer read elsewhere": lambda m, x: (lambda a: bn(m, a) + a)(F.linear(x, m.w)),
    "mean read elsewhere": lambda m, x: (lambda a: bn(m, a) + a)(F.linear(x, m.w).mean(1)),
    "norm read twice": lambda m, x: (lambda a: F.linear(a, m.after).sum() + a.sum())(bn(m, F.linear(x, m.w).relu())),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays_with_a_reason(name: str) -> None:
    gm, result = folded(STAYS[name], X)
    assert result.rewrites == 0
    assert count(gm, bgnn.batch_norm) == 1
    assert [why for _, why in result.refusals] == ["no dense layer with real weights beside it"]


@pytest.mark.parametrize("dim", [1, 2])
def test_a_mean_over_channels_is_no_mean_over_points(dim: int) -> None:
    """With as many points as channels the shapes cannot tell the two apart."""
    gm, result = folded(lambda m, x: bn(m, F.linear(x, m.w).mean(dim)), randn(2, C, K))
    assert result.rewrites == (1 if dim == 1 else 0)
    assert count(gm, bgnn.batch_norm) == (0 if dim == 1 else 1)
