"""Norms of node features."""

from __future__ import annotations

import torch
from graphs import apply, bgnn, count, graph, randn
from torch.nn import functional as F

from bgnn.passes import graph_norms

C = 5
PARAMETERS = {"w": randn(C), "b": randn(C, seed=1), "mean": randn(C, seed=2), "var": randn(C, seed=3).abs() + 0.1}


def test_a_norm_of_node_features() -> None:
    gm = graph(lambda m, x: F.batch_norm(x, m.mean, m.var, m.w, m.b, eps=1e-3), randn(7, C), **PARAMETERS)
    assert apply(graph_norms.run, gm, randn(7, C)).rewrites == 1
    assert count(gm, bgnn.batch_norm) == 1


def test_other_norms_stay_with_a_reason() -> None:
    x = randn(7, C, 2)
    gm = graph(lambda m, x: F.batch_norm(x, m.mean, m.var, m.w, m.b), x, **PARAMETERS)
    result = apply(graph_norms.run, gm, x)
    assert result.rewrites == 0
    assert "[N, C]" in result.refusals[0][1]
    assert torch.is_tensor(x)
