"""A dense layer on edges is a sum of layers on nodes, wherever its input is linear in the nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, count, graph, randn, signs
from torch import Tensor

from bgnn.passes import merge_equal_nodes, split_edge_linear
from bgnn.passes.graph import PassResult, is_call

B, N, NEIGHBOURS, C, OUT = 2, 6, 4, 3, 5
X = randn(B, N, C)
INDEX = torch.randint(0, N, (B, N, NEIGHBOURS), generator=torch.Generator().manual_seed(0))


def gathered(x: Tensor, i: Tensor) -> Tensor:
    return bgnn.gather_nodes(x, i)


def centre(x: Tensor) -> Tensor:
    return x[:, :, None].expand(-1, -1, NEIGHBOURS, -1)


EDGES: dict[str, Callable[..., Any]] = {
    "node first": lambda x, i: torch.cat([centre(x), gathered(x, i) - centre(x)], -1),
    "edge first": lambda x, i: torch.cat([gathered(x, i) - centre(x), centre(x)], -1),
    "centre minus neighbour": lambda x, i: torch.cat([centre(x) - gathered(x, i), centre(x)], -1),
    "broadcast difference": lambda x, i: torch.cat([gathered(x, i) - x[:, :, None], centre(x)], -1),
    "negated": lambda x, i: torch.cat([-gathered(x, i), -centre(x)], -1),
    "three parts": lambda x, i: torch.cat([gathered(x, i), centre(x), gathered(x, i) + centre(x)], -1),
    "neighbour alone": lambda x, i: gathered(x, i),
    "repeated alone": lambda x, i: centre(x),
}


def split(function: Callable[..., Any], *inputs: Tensor, **constants: Tensor) -> tuple[Any, PassResult]:
    gm = graph(function, *inputs, **constants)
    merge_equal_nodes.run(gm)  # as in the pipeline: terms of one tensor are one term
    return gm, apply(split_edge_linear.run, gm, *inputs, tolerance=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", EDGES)
def test_per_node(name: str, bias: bool) -> None:
    width = EDGES[name](X, INDEX).shape[-1]
    gm, result = split(
        lambda m, x, i: F.linear(EDGES[name](x, i), m.w, m.bias if bias else None),
        X,
        INDEX,
        w=randn(OUT, width),
        bias=randn(OUT),
    )
    assert (result.rewrites, result.refusals) == (1, [])
    layers = [n for n in gm.graph.nodes if is_call(n, aten.linear)]
    assert len(layers) <= 2
    assert all(n.meta["val"].numel() == B * N * OUT for n in layers), "products over nodes, not over edges"
    assert sum(len(n.args) > 2 and n.args[2] is not None for n in layers) == int(bias)


def test_two_sources() -> None:
    """Coordinates and features, each with their own neighbours."""
    gm, result = split(
        lambda m, x, y, i: F.linear(torch.cat([gathered(x, i) - centre(x), gathered(y, i)], -1), m.w),
        X,
        randn(B, N, 7, seed=1),
        INDEX,
        w=randn(OUT, C + 7),
    )
    assert result.rewrites == 1
    assert count(gm, aten.linear) == 3


def test_signs_with_real_weights_are_real() -> None:
    _, result = split(lambda m, x, i: F.linear(gathered(bgnn.binarize(x), i), m.w), X, INDEX, w=randn(OUT, C))
    assert result.rewrites == 1


def test_a_binary_layer_is_refused() -> None:
    """One threshold per channel needs the whole dot product at the edge."""
    gm, result = split(
        lambda m, x, i: F.linear(torch.cat([centre(bgnn.binarize(x)), gathered(bgnn.binarize(x), i)], -1), m.w),
        X,
        INDEX,
        w=signs(OUT, 2 * C),
    )
    assert result.rewrites == 0
    assert result.refusals[0][1].startswith("binary layer")
    assert count(gm, aten.linear) == 1


STAYS: dict[str, Callable[..., Any]] = {
    "node layer": lambda m, x, i: F.linear(x, m.w),
    "xor edge": lambda m, x, i: F.linear(gathered(x, i) * centre(x), m.w),
    "activation": lambda m, x, i: F.linear(gathered(x, i).relu() - centre(x).relu(), m.w),
    "distance": lambda m, x, i: F.linear((gathered(x, i) - centre(x)).abs(), m.w),
    "norm between": lambda m, x, i: F.linear(bgnn.batch_norm(gathered(x, i), m.one, m.one, m.one, m.one, 1e-5), m.w),
    "constant added": lambda m, x, i: F.linear(gathered(x, i).relu() + m.one, m.w),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    gm, result = split(STAYS[name], X, INDEX, w=randn(OUT, C), one=torch.ones(C))
    assert result.rewrites == 0
    assert count(gm, aten.linear) == 1


def test_not_where_it_would_cost_more() -> None:
    """One neighbour per node: gathering first is as cheap."""
    _, result = split(
        lambda m, x, i: F.linear(gathered(x, i) - x[:, :, None], m.w), X, INDEX[:, :, :1], w=randn(OUT, C)
    )
    assert result.rewrites == 0


def test_few_of_many_points() -> None:
    """A layer on the gathered rows of a few: splitting would multiply all rows."""
    _, result = split(lambda m, x, i: F.linear(gathered(x, i), m.w), X, INDEX[:, :1, :2], w=randn(OUT, C))
    assert result.rewrites == 0
