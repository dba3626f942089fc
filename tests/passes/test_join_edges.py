"""Directed edges made undirected, however it is written: one op, of which rows and self-loops are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import awkward_graphs, random_graph, run
from graphs import Wrapped, bgnn, count
from torch import Tensor, fx
from torch_geometric.nn import GCNConv

from bgnn import convert
from bgnn.converter.sizes import check_open, graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, index_limits, join_edges, merge_equal_nodes
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel


def joined(function: Callable[..., Any]) -> fx.GraphModule:
    """The graph after the pass, which must compute on all other graphs what the function does."""
    example = random_graph(20, 70)
    gm = trace(Wrapped(function, {}), example, open_axes=graph_axes(example))
    canonicalise.run(gm)
    join_edges.run(gm)
    canonicalise.run(gm)
    merge_equal_nodes.run(gm)
    check_open(gm)
    for name, graph in awkward_graphs().items():
        assert torch.equal(run(gm, *graph), function(None, *graph)), name
    return gm


def summed(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, target, x[source])


def both_ways(edge_index: Tensor) -> Tensor:
    row, col = edge_index
    return torch.stack([torch.cat([row, col]), torch.cat([col, row])])


HABITS: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "flip": (lambda e: torch.cat([e, e.flip(0)], 1), [0, 1, 1, 0]),
    "flip, last axis": (lambda e: torch.cat((torch.flip(e, [0]), e), dim=-1), [1, 0, 0, 1]),
    "rows by number": (lambda e: torch.cat([e, e[[1, 0]]], dim=1), [0, 1, 1, 0]),
    "rows picked": (lambda e: torch.hstack([e, e.index_select(0, torch.tensor([1, 0]))]), [0, 1, 1, 0]),
    "stacked": (both_ways, [0, 1, 1, 0]),
    "rolled": (lambda e: torch.cat([e, e.roll(1, 0)], 1), [0, 1, 1, 0]),
    "columns": (lambda e: torch.cat([e.t(), e.t()[:, [1, 0]]]).t(), [0, 1, 1, 0]),
    "three times": (lambda e: torch.cat([e, e.flip(0), e], 1), [0, 1, 1, 0, 0, 1]),
}


@pytest.mark.parametrize("habit", HABITS)
def test_lists_in_every_spelling(habit: str) -> None:
    make, rows = HABITS[habit]
    gm = joined(lambda m, x, e: summed(x, *make(e)))
    (join,) = (node for node in gm.graph.nodes if node.target is bgnn.join_edges.default)
    assert list(join.args[1]) == rows
    assert len(join.users) == 2


def test_rows_that_are_never_stacked() -> None:
    gm = joined(lambda m, x, e: summed(x, torch.cat([e[1], e[0]]), torch.cat([e[0], e[1]])))
    assert count(gm, bgnn.join_edges) == 1


def test_what_is_no_copy_of_edges_stays() -> None:
    for function in (
        lambda m, x, e: summed(x, *torch.cat([e, e + 0 * e], 1)),
        lambda m, x, e: summed(x, *torch.cat([e, torch.arange(x.size(0)).expand(2, -1)], 1)),
        lambda m, x, e: summed(x, e[0], e[1]),
    ):
        assert count(joined(function), bgnn.join_edges) == 0


def test_each_row_of_the_input_is_checked() -> None:
    def both(m: Any, x: Tensor, e: Tensor) -> Tensor:
        row, col = torch.cat([e, e.flip(0)], 1)
        return x[row] + x[col]

    example = random_graph(20, 70)
    gm = trace(Wrapped(both, {}), example, open_axes=graph_axes(example))
    canonicalise.run(gm)
    join_edges.run(gm)
    assert {row for _, row in index_limits.limits(gm.graph)} == {0, 1}


class Undirected(torch.nn.Module):
    """GCN adds self-loops to edges that forward made undirected."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(6, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, torch.cat([edge_index, edge_index.flip(0)], 1))


@pytest.mark.parametrize("kernels", ["stock", "bgnn"])
def test_self_loops_of_joined_edges(kernels: str) -> None:
    torch.manual_seed(0)
    model = Undirected().eval()
    example = random_graph(20, 70)
    example = (torch.randn(20, 6), example[1])
    done = convert(model, example, target="onnx-x86", kernels=kernels)
    file = OnnxModel(done.model_bytes or b"")
    if kernels == "stock":
        assert file.tables, "on neighbour tables, which the runner makes of the joined edges"
    x, edge_index = torch.randn(9, 6), torch.randint(9, (2, 30))
    (found,) = file.run(x=x.numpy(), edge_index=edge_index.numpy()).values()
    assert torch.allclose(torch.from_numpy(found), model(x, edge_index), atol=1e-6)
    assert int(file.properties["bgnn.max_degree"]) * 2 <= 2**31
