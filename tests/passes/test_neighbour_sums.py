"""Which sums are over neighbours, what they add up, and where each is complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import bgnn, graph, randn
from torch import Tensor
from torch.nn import functional as F

from bgnn.passes.neighbour_sums import neighbour_sums

X, W = randn(12, 5), randn(7, 5, seed=1)
SOURCES, TABLE = torch.arange(24) % 12, torch.randint(25, (12,), generator=torch.Generator().manual_seed(0))
CONSTANTS = {
    "w": W, "i": SOURCES, "t": TABLE, "zero": torch.zeros(1, 5), "n": torch.rand(4, 1) + 1,
    "order": torch.tensor([2, 0, 1]),
    "weight": torch.rand(24, 1), "near": torch.arange(24).reshape(1, 12, 2) % 12,
}  # fmt: skip


def padded(m: Any, edges: Tensor) -> Tensor:
    return torch.cat([edges, m.zero]).index_select(0, m.t)


def softmax(m: Any, x: Tensor) -> Tensor:
    powers = x.index_select(0, m.i).exp().reshape(8, 3, 5)
    return powers / (powers.sum(1) + 1e-16)[:, None]


FOUND: dict[str, tuple[tuple[str, bool] | None, Callable[..., Tensor]]] = {
    "rows of nodes": (("sum", False), lambda m, x: x.index_select(0, m.i).reshape(8, 3, 5).sum(1)),
    "weighted edges": (
        ("sum", True),
        lambda m, x: padded(m, m.weight * x.index_select(0, m.i)).reshape(4, 3, 5).sum(1),
    ),
    "a layer on edges": (("mean", True), lambda m, x: F.linear(bgnn.gather_nodes(x[None], m.near), m.w).relu().mean(2)),
    "means by lengths": (("mean", False), lambda m, x: padded(m, x.index_select(0, m.i)).reshape(4, 3, 5).sum(1) / m.n),
    "no gathers": (None, lambda m, x: F.linear(x, m.w).relu().reshape(1, 12, 7).mean(1)),
    "channels": (None, lambda m, x: x.index_select(0, m.i).sum(1)),
    "a softmax": (None, softmax),
}


@pytest.mark.parametrize("name", FOUND)
def test_forms(name: str) -> None:
    expected, function = FOUND[name]
    found = list(neighbour_sums(graph(function, X, **CONSTANTS).graph).values())
    assert [(one.how, one.on_edges) for one in found] == ([expected] if expected else [])


def test_nodes_of_several_degrees_are_one_sum_and_a_read_out_of_them_none() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        edges = padded(m, x.index_select(0, m.i))
        parts = [edges[:8].reshape(2, 4, 5).sum(1), edges[8:9], m.zero]
        return torch.cat(parts).index_select(0, m.order).relu().mean(0)

    gm = graph(function, X, **CONSTANTS)
    (end,) = neighbour_sums(gm.graph)
    assert str(end.target) == "aten.cat.default"
    assert end.meta["val"].shape == (4, 5)
