"""The scaled maximum of gathered sums as one operator: factors in any order, halves on either side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import apply, aten, bgnn, constants_of, count, graph, only, randn
from torch import Tensor

from bgnn.passes import fuse_edge_max

POINTS, K = 6, 4
INDEX = torch.randint(0, POINTS, (2, POINTS, K), generator=torch.Generator().manual_seed(5))
FACTORS = {"beta": randn(POINTS, 1, 1, seed=2), "gamma": randn(K, 1, seed=3), "more": randn(1, POINTS, 1, 1, seed=4)}


def edges(x: Tensor, y: Tensor, index: Tensor, node_first: bool = False, repeated: bool = False) -> Tensor:
    node, gathered = y[:, :, None], bgnn.gather_nodes(x, index)
    node = node.expand(gathered.shape) if repeated else node
    return node + gathered if node_first else gathered + node


@pytest.mark.parametrize("repeated", [True, False])
@pytest.mark.parametrize("node_first", [True, False])
@pytest.mark.parametrize("names", [n for r in range(4) for n in itertools.permutations(FACTORS, r)])
def test_factors_in_any_order(names: tuple[str, ...], node_first: bool, repeated: bool) -> None:
    def function(m: Any, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        z = edges(x, y, i, node_first, repeated)
        for position, name in enumerate(names):
            z = z * getattr(m, name) if position % 2 else getattr(m, name) * z
        return z.amax(2)

    inputs = randn(2, POINTS, 5), randn(2, POINTS, 5, seed=1), INDEX
    gm = graph(function, *inputs, **FACTORS)
    assert apply(fuse_edge_max.run, gm, *inputs, tolerance=1e-6).rewrites == 1
    assert count(gm, bgnn.gather_nodes, aten.amax, aten.mul) == 0
    beta, gamma = constants_of(only(gm, bgnn.edge_max))
    expected = torch.ones(1)
    for name in ("beta", "more"):
        if name in names:
            expected = expected * FACTORS[name].flatten()
    assert torch.equal(beta, expected)
    assert torch.equal(gamma, FACTORS["gamma"].flatten() if "gamma" in names else torch.ones(1))


@pytest.mark.parametrize("keepdim", [True, False])
def test_in_the_papers_order_bit_for_bit(keepdim: bool) -> None:
    inputs = randn(2, POINTS, 33), randn(2, POINTS, 33, seed=1), INDEX
    gm = graph(lambda m, x, y, i: (edges(x, y, i) * m.beta * m.gamma).amax(2, keepdim), *inputs, **FACTORS)
    assert apply(fuse_edge_max.run, gm, *inputs).rewrites == 1


LEFT: dict[str, Callable[..., Any]] = {
    "a mean": lambda m, x, y, i: (edges(x, y, i) * m.gamma).mean(2),
    "over the points": lambda m, x, y, i: (edges(x, y, i) * m.gamma).amax(1),
    "factors per channel": lambda m, x, y, i: (edges(x, y, i) * m.channels).amax(2),
    "factors per edge": lambda m, x, y, i: (edges(x, y, i) * m.each).amax(2),
    "no sum": lambda m, x, y, i: (bgnn.gather_nodes(x, i) * m.gamma).amax(2),
    "a difference": lambda m, x, y, i: ((bgnn.gather_nodes(x, i) - y[:, :, None]) * m.gamma).amax(2),
    "two gathers": lambda m, x, y, i: (bgnn.gather_nodes(x, i) + bgnn.gather_nodes(y, i)).amax(2),
    "a constant for the node": lambda m, x, y, i: (bgnn.gather_nodes(x, i) + m.node).amax(2),
    "edges that others read": lambda m, x, y, i: (lambda e: (e * m.gamma).amax(2) + e.mean(2))(edges(x, y, i)),
    "another table's rows": lambda m, x, y, i: (bgnn.gather_nodes(x[:, :3], i % 3) + y[:, :, None]).amax(2),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name: str) -> None:
    inputs = randn(2, POINTS, 5), randn(2, POINTS, 5, seed=1), INDEX
    more = {"channels": randn(5), "each": randn(POINTS, K, 1), "node": randn(2, POINTS, 1, 5)}
    gm = graph(LEFT[name], *inputs, **FACTORS, **more)
    assert apply(fuse_edge_max.run, gm, *inputs).rewrites == 0
    assert count(gm, bgnn.edge_max) == 0
