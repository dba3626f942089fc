"""PyG's k-NN graphs as rows of neighbours: layers on them, masks, self-loops, graphs too small for k, equal points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import bgnn, count
from torch import Tensor, fx, nn
from torch_geometric import nn as pyg
from torch_geometric.nn import knn_graph, knn_interpolate
from torch_geometric.utils import add_self_loops, remove_self_loops

from bgnn.converter import stages
from bgnn.converter.errors import ConversionError
from bgnn.converter.pyg_knn import provide
from bgnn.converter.trace import trace
from bgnn.passes import neighbour_rows
from bgnn.passes.graph import run

provide()
OPEN = [{0: torch.export.Dim.DYNAMIC}] * 2


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


class On(nn.Module):
    """A layer, and how it is called."""

    def __init__(self, layer: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        return self.call(self.layer, x, batch)


def points(*sizes: int) -> tuple[Tensor, Tensor]:
    """Graphs of these sizes, some points of which are equal."""
    generator = torch.Generator().manual_seed(sum(sizes))
    x = torch.randn(sum(sizes), 3, generator=generator)
    x[3:7] = x[2]
    return x, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def dynamic(aggr: Any) -> On:
    return On(pyg.DynamicEdgeConv(mlp(6), 4, aggr), lambda m, x, b: m(x, b))


def on_graph(layer: nn.Module, **options: Any) -> On:
    return On(layer, lambda m, x, b: m(x, knn_graph(x, 3, b, **options)))


def by_length(layer: nn.Module, x: Tensor, batch: Tensor) -> Tensor:
    edges = knn_graph(x, 3, batch)
    return layer(x, edges, x[edges[0]] - x[edges[1]])


def by_hand(layer: nn.Module, x: Tensor, batch: Tensor) -> Tensor:
    source, target = knn_graph(x, 3, batch)
    return x.new_zeros(x.shape[0], 4).index_add(0, target, layer(torch.cat([x[source], x[target]], 1)))


LAYERS: dict[str, On] = {
    "dynamic max": dynamic("max"),
    "dynamic add": dynamic("add"),
    "dynamic mean and std": dynamic(["mean", "std"]),
    "of all points": On(pyg.DynamicEdgeConv(mlp(6), 4), lambda m, x, b: m(x)),
    "two tensors": On(pyg.DynamicEdgeConv(mlp(6), 4), lambda m, x, b: m((x, x * 0.5), (b, b))),
    "without itself": on_graph(pyg.EdgeConv(mlp(6))),
    "with itself": on_graph(pyg.EdgeConv(mlp(6), aggr="mean"), loop=True),
    "cosine": on_graph(pyg.EdgeConv(mlp(6)), cosine=True),
    "summed by source": on_graph(pyg.EdgeConv(mlp(6)), flow="target_to_source"),
    "mean by source": on_graph(pyg.EdgeConv(mlp(6), aggr="mean"), flow="target_to_source"),
    "both turned": on_graph(pyg.EdgeConv(mlp(6), flow="target_to_source"), flow="target_to_source"),
    "attention": on_graph(pyg.GATConv(3, 4, heads=2, add_self_loops=False)),
    "attention, loops added": on_graph(pyg.GATConv(3, 4, heads=2)),
    "attention by source": on_graph(pyg.GATConv(3, 4, add_self_loops=False), flow="target_to_source"),
    "GCN": on_graph(pyg.GCNConv(3, 4)),
    "SAGE": on_graph(pyg.SAGEConv(3, 4)),
    "features of edges": On(pyg.GMMConv(3, 4, 3, 2), by_length),
    "by hand": On(nn.Linear(6, 4), by_hand),
    "interpolation": On(nn.Linear(3, 4), lambda m, x, b: m(knn_interpolate(x, x, x * 0.9, b, b, k=3))),
    "GravNet": On(pyg.GravNetConv(3, 4, 2, 4, k=4), lambda m, x, b: m(x, b)),
    "loops removed": On(
        pyg.EdgeConv(mlp(6)), lambda m, x, b: m(x, remove_self_loops(knn_graph(x, 4, b, loop=True))[0])
    ),
    "loops added": On(
        pyg.EdgeConv(mlp(6)), lambda m, x, b: m(x, add_self_loops(knn_graph(x, 3, b), num_nodes=x.shape[0])[0])
    ),
}


def rewritten(model: nn.Module, inputs: tuple[Tensor, ...], is_open: bool) -> tuple[fx.GraphModule, int]:
    gm = trace(model.eval(), inputs, open_axes=OPEN if is_open else None)
    results = {name: step(gm) for name, step in stages.passes_to("traced", stages.Plan("onnx-x86"))}
    return gm, results["neighbour_rows"].rewrites


FIXED = ["dynamic max", "without itself", "mean by source", "attention, loops added"]


@pytest.mark.parametrize(("name", "is_open"), [*((name, True) for name in LAYERS), *((name, False) for name in FIXED)])
def test_layers_on_k_nn_graphs(name: str, is_open: bool) -> None:
    """The same values on graphs of all sizes, one and two points among them; no edges are left in the graph."""
    inputs = points(9, 2, 12)
    gm, rewrites = rewritten(LAYERS[name], inputs, is_open)
    assert rewrites == 1
    assert not any(neighbour_rows.is_search(node) for node in gm.graph.nodes)
    others = [points(5, 1, 20, 2), points(30), points(1, 9)] if is_open else [(points(23)[0], inputs[1])]
    for x, batch in [inputs, *others]:
        expected, found = LAYERS[name](x, batch), run(gm, [x, batch])[0]
        assert torch.allclose(found, expected, atol=1e-5), name


def test_maximum_over_a_table_needs_no_mask() -> None:
    """Where a node is among its own neighbours, the nearest stands in for those that are not there."""
    gm, _ = rewritten(LAYERS["dynamic max"], points(9, 9), True)
    assert count(gm, bgnn.segment_max) == 0
    masks = [n for n in gm.graph.nodes if n.target is torch.ops.aten.where.self and n.meta["val"].is_floating_point()]
    assert len(masks) == 1, "that of the distances to other graphs"


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "a mean of all edges": (lambda m, x, b: m(x[knn_graph(x, 3, b)[0]]).mean(0), "takes rows together"),
    "an output": (lambda m, x, b: m(x[knn_graph(x, 3, b)[0]]), "is an output"),
    "their number": (
        lambda m, x, b: m(x) / knn_graph(x, 3, b).shape[1], "counts them"
    ),
    "shares of all": (lambda m, x, b: m(x[knn_graph(x, 3, b)[0]]).softmax(0).sum(1), "takes rows together"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name: str) -> None:
    """What takes edges together, of which there may be fewer than rows, is refused with the user's line."""
    function, words = REFUSED[name]
    with pytest.raises(ConversionError, match=rf"test_neighbour_rows.py:\d+.*{words}"):
        rewritten(On(nn.Linear(3, 4), function), points(9, 9), True)
