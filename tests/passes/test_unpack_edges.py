"""Sources and targets of edges, however they are taken from the list, are rows of it; gathers go through rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import awkward_graphs, random_graph, run
from graphs import Wrapped, aten, bgnn, count
from torch import Tensor, fx

from bgnn.converter.sizes import check_open, graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, merge_equal_nodes, recognise_aggregation, unpack_edges


def unpacked(function: Callable[..., Any]) -> tuple[fx.GraphModule, int]:
    """The graph after the pass, which must compute on all other graphs what the function does."""
    example = random_graph(20, 70)
    gm = trace(Wrapped(function, {}), example, open_axes=graph_axes(example))
    canonicalise.run(gm)
    rewrites = unpack_edges.run(gm).rewrites
    canonicalise.run(gm)
    merge_equal_nodes.run(gm)
    check_open(gm)
    for name, graph in awkward_graphs().items():
        assert torch.equal(run(gm, *graph), function(None, *graph)), name
    return gm, rewrites


def summed(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, target, x[source])


def unpack(edge_index: Tensor) -> list[Tensor]:
    row, col = edge_index
    return [row, col]


HABITS: dict[str, Callable[[Tensor], Any]] = {
    "unpacked": unpack,
    "unbind": lambda e: e.unbind(0),
    "unbind along the last": lambda e: e.t().unbind(-1),
    "split": lambda e: [part.squeeze(0) for part in e.split(1)],
    "chunk": lambda e: [part.view(-1) for part in e.chunk(2)],
    "sizes": lambda e: [part[0] for part in torch.split(e, [1, 1], dim=0)],
    "slices": lambda e: [e[:1].reshape(-1), e[1:].flatten()],
    "columns": lambda e: [e.T[:, 0], e.T[:, 1]],
    "flipped": lambda e: e.flip(0)[[1, 0]].unbind(),
    "negative": lambda e: (e[-2], e[-1]),
    "stacked anew": lambda e: torch.stack([e[1], e[0]]).flip(0).unbind(0),
    "flat": lambda e: e.reshape(-1).view(2, -1).unbind(0),
    "rows by number": lambda e: (e.index_select(0, torch.tensor([0]))[0], e[torch.tensor(1)]),
    "narrow": lambda e: (e.narrow(0, 0, 1)[0], e.select(0, 1).clone()),
}


@pytest.mark.parametrize("habit", HABITS)
def test_rows_in_every_spelling(habit: str) -> None:
    gm, _ = unpacked(lambda m, x, e: summed(x, *HABITS[habit](e)))
    rows = [node.args for node in gm.graph.nodes if node.target is aten.select.int]
    edges = next(node for node in gm.graph.nodes if node.name.startswith("inputs_1") or node.name == "e")
    assert sorted(args[1:] for args in rows) == [(0, 0), (0, 1)]
    assert all(args[0] is edges for args in rows)
    assert len(edges.users) == 2
    assert recognise_aggregation.run(gm).rewrites == 1
    assert count(gm, bgnn.segment_sum) == 1


def test_repeated_over_channels() -> None:
    def function(m: Any, x: Tensor, e: Tensor) -> Tensor:
        source, target = e.split(1)
        return torch.zeros_like(x).scatter_add(0, target.t().expand(-1, x.shape[1]), x[source[0]])

    gm, _ = unpacked(function)
    assert recognise_aggregation.run(gm).rewrites == 1


GATHERS: dict[str, Callable[..., Any]] = {
    "both ends": lambda m, x, e: x[e],
    "both ends beside each other": lambda m, x, e: x[e.T].reshape(-1, 2 * x.shape[1]),
    "turned": lambda m, x, e: x[e.flip(0).t()].flatten(1),
    "unpacked afterwards": lambda m, x, e: (lambda a, b: a - 2 * b)(*x[e]),
    "rows beside rows": lambda m, x, e: x[torch.stack([e, e.flip(0)])].sum((0, 1)),
    "a table": lambda m, x, e: torch.nn.functional.embedding(e.t(), x),
    "summed": lambda m, x, e: torch.zeros_like(x).index_add(0, e[1], x[e.T].sum(1)),
}


@pytest.mark.parametrize("how", GATHERS)
def test_gathers_go_through_rows(how: str) -> None:
    gm, rewrites = unpacked(GATHERS[how])
    assert rewrites >= 1
    assert count(gm, aten.index, aten.embedding) == 0
    picked = [node for node in gm.graph.nodes if node.target is aten.index_select.default]
    assert len(picked) == 2
    assert all(node.args[2].target is aten.select.int for node in picked)


def test_what_is_no_row_stays() -> None:
    for function in (
        lambda m, x, e: x[e[0]] + x[torch.roll(e, 1, 1)[1]],  # of other edges
        lambda m, x, e: x[torch.cat([e[0], e[1]])],
        lambda m, x, e: x[e[0] // 2],
        lambda m, x, e: x[torch.minimum(e[0], e[1])],
    ):
        _, rewrites = unpacked(function)
        assert rewrites == 0
