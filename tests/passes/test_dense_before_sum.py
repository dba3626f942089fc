"""Dense layers in front of sums over edges: the same numbers, on narrower rows; and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as pyg
from graph_models import random_graph
from graphs import aten, bgnn, count
from torch import Tensor, fx, nn

from bgnn.converter import stages
from bgnn.converter.sizes import graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import dense_before_sum
from bgnn.passes.graph import calls, is_call, run, shape_of

WIDE = 9  # features


class Net(nn.Module):
    """`function(self, x, edge_index)`, with a narrowing, a widening and a square layer."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.plain = nn.Linear(WIDE, 4), nn.Linear(WIDE, 4, bias=False)
        self.wide, self.square = nn.Linear(WIDE, 12), nn.Linear(WIDE, WIDE)
        self.conv = pyg.GraphConv(WIDE, 5)
        self.eps = nn.Parameter(torch.tensor([0.3]))
        self.function = function

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.function(self, x, edge_index)


def total(x: Tensor, edge_index: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])


def attention(m: nn.Module, x: Tensor, e: Tensor) -> Tensor:
    """One weight for each edge, and hubs scaled down by a number for each node."""
    weight = (x[e[0]] * x[e[1]]).sum(1, keepdim=True)
    summed = x.new_zeros(x.shape).index_add_(0, e[1], x[e[0]] * weight)
    return m.narrow(summed / (x.abs().sum(1, keepdim=True) + 1))


MOVED: dict[str, Callable[..., Tensor]] = {
    "GIN": lambda m, x, e: m.narrow((1 + m.eps) * x + total(x, e)),
    "no bias": lambda m, x, e: m.plain(x - total(x, e) * 0.5),
    "as wide": lambda m, x, e: m.square(total(x, e) + x),
    "sum alone": lambda m, x, e: m.narrow(total(x, e)),
    "twice": lambda m, x, e: m.narrow(torch.zeros_like(x).index_add(0, e[1], total(x, e)[e[0]])),
    "GraphConv": lambda m, x, e: m.conv(x, e),
    "weighted": attention,
    "one sum twice": lambda m, x, e: (lambda s: m.narrow(s + s * 0.5 - x))(total(x, e)),
    "after an activation": lambda m, x, e: m.narrow(total(x.relu(), e) + x.relu()),
}
STAYS: dict[str, Callable[..., Tensor]] = {
    "wider": lambda m, x, e: m.wide(x + total(x, e)),
    "an activation between": lambda m, x, e: m.narrow(total(x, e).relu()),
    "on edges": lambda m, x, e: m.narrow(
        total(x, e) + torch.zeros_like(x).index_add(0, e[1], (x[e[0]] - x[e[1]]).relu())
    ),
    "two sources": lambda m, x, e: m.narrow(x + total(x.relu(), e)),
    "read elsewhere": lambda m, x, e: (lambda s: m.narrow(s) + s.sum(1, keepdim=True))(x + total(x, e)),
    "a factor for each channel": lambda m, x, e: m.narrow(total(x, e) * m.wide.weight[0]),
    "no sum": lambda m, x, e: m.narrow(x + x * 0.5),
    "a mean": lambda m, x, e: m.narrow(pyg.SimpleConv("mean")(x, e)),
}


def traced(function: Callable[..., Tensor]) -> tuple[fx.GraphModule, tuple[Tensor, Tensor]]:
    inputs = random_graph(20, 60, width=WIDE)
    gm = trace(Net(function).eval(), inputs, open_axes=graph_axes(inputs))
    for _, step in stages.passes_to("traced", stages.Plan("onnx-int8-x86")):
        step(gm)
    return gm, inputs


@pytest.mark.parametrize("name", MOVED)
def test_moves(name: str) -> None:
    gm, inputs = traced(MOVED[name])
    expected, layers = run(gm, inputs)[0], count(gm, aten.linear)
    assert dense_before_sum.run(gm).rewrites == 1
    torch.testing.assert_close(run(gm, inputs)[0], expected, rtol=1e-5, atol=1e-4)
    assert count(gm, aten.linear) == layers
    for node in calls(gm.graph, aten.linear):
        assert not any(is_call(source, bgnn.segment_sum) for source in node.all_input_nodes)
    for node in calls(gm.graph, bgnn.segment_sum):
        assert shape_of(node)[1] < WIDE or name == "as wide"
    other = random_graph(7, 30, seed=3, width=WIDE)
    torch.testing.assert_close(run(gm, other)[0], run(traced(MOVED[name])[0], other)[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    gm, _ = traced(STAYS[name])
    before = [node.name for node in gm.graph.nodes]
    assert dense_before_sum.run(gm).rewrites == 0
    assert [node.name for node in gm.graph.nodes] == before
