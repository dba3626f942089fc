"""The second graph has what examples lack, fits the model, and is left out, with a reason, where there is none."""

from __future__ import annotations

import re

import torch
from graph_models import GCN, random_graph
from rich.console import Console
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv, global_mean_pool

from bgnn.converter.api import convert
from bgnn.converter.second_graph import HUB, second_graphs
from bgnn.converter.sizes import graph_axes
from bgnn.converter.trace import trace


def made(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return next(second_graphs(trace(model.eval(), inputs, open_axes=graph_axes(inputs)), inputs)).inputs


def test_it_has_what_examples_lack() -> None:
    x, edges = random_graph(61, 100)
    features, index = made(GCN(), (x, edges))
    nodes = features.shape[0]
    assert nodes != 61
    assert index.shape[1] not in (100, nodes)
    assert 0 <= int(index.min()) <= int(index.max()) < nodes
    degrees = torch.bincount(index[1], minlength=nodes)
    assert int(degrees.max()) >= HUB > 200
    assert int(((degrees == 0) & (torch.bincount(index[0], minlength=nodes) == 0)).sum()) >= 2
    pairs = [tuple(pair) for pair in index.t().tolist()]
    assert len(set(pairs)) < len(pairs)
    assert any(a == b for a, b in pairs)
    assert sum((b, a) not in pairs for a, b in pairs if a != b) > 100
    assert all((x == row).all(1).any() for row in features)


class Everything(nn.Module):
    """Edges' numbers, two kinds of edges, categories and a batch vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.table = GCNConv(6, 4), GCNConv(4, 4), nn.Embedding(9, 6)

    def forward(self, x: Tensor, a: Tensor, weight: Tensor, b: Tensor, kind: Tensor, batch: Tensor) -> Tensor:
        x = self.first(x + self.table(kind), a, weight).relu()
        return global_mean_pool(self.second(x, b), batch, 3)


def everything() -> tuple[Tensor, ...]:
    x, a = random_graph(20, 70)
    kind = torch.randint(9, (20,), generator=torch.Generator().manual_seed(0))
    return x, a, torch.rand(70), random_graph(20, 31, 1)[1], kind, torch.arange(20) // 7


def test_inputs_of_all_kinds_fit_each_other() -> None:
    inputs = everything()
    x, a, weight, b, kind, batch = made(Everything(), inputs)
    assert (weight.shape[0], kind.shape[0], batch.shape[0]) == (a.shape[1], x.shape[0], x.shape[0])
    assert max(int(a.max()), int(b.max())) < x.shape[0]
    assert batch.unique().tolist() == [0, 1, 2]
    assert bool((batch.diff() >= 0).all())
    done = convert(Everything(), inputs, target="onnx-x86")
    assert [c.what for c in done.report.checks][-2:] == ["emitted file, second graph", "emitted file"]


class Fixed(nn.Module):
    """A number of nodes that is a constant of the model."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return x.new_zeros(20, x.shape[1]).index_add(0, edge_index[1], x[edge_index[0]])


class Inverse(nn.Module):
    """Divides by degrees: nodes without edges give infinities."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        degree = torch.zeros(x.shape[0]).index_add(0, edge_index[1], torch.ones(edge_index.shape[1]))
        return (x + 1) * degree.pow(-0.5)[:, None]


def test_a_network_that_takes_no_other_graph_says_so() -> None:
    done = convert(Fixed(), random_graph(20, 70), target="onnx-x86")
    (note,) = [c.note for c in done.report.checks if c.what == "second graph"]
    assert "other graphs are not verified: the model fails when PyTorch runs it: " in note
    assert "out of bounds" in note


def test_where_isolated_nodes_give_infinities_the_graph_has_none() -> None:
    x, edges = random_graph(20, 70)
    done = convert(Inverse(), (x, torch.cat([edges, torch.arange(20).expand(2, -1)], 1)), target="onnx-x86")
    (note,) = [c.note for c in done.report.checks if c.what == "stage traced, second graph"]
    assert "hub" in note
    assert "isolated" not in note


def test_the_report_says_how_long_it_took() -> None:
    """Of the whole conversion; no test decides on how long."""
    done = convert(GCN().eval(), random_graph(20, 70), target="onnx-int8-x86")
    assert 0 < done.report.to_json()["seconds"]["second graph"] < done.report.to_json()["seconds"]["conversion"]
    console = Console(record=True, width=200)
    done.report.print(console)
    assert re.search(r"time +│ [\d.]+ s, [\d.]+ s of it on the second graph", console.export_text())
    fixed = convert(GCN().eval(), random_graph(20, 70), target="onnx-int8-x86", fixed_sizes=["x=20", "edge_index=70"])
    assert list(fixed.report.seconds) == ["conversion"]


def test_targets_that_are_the_first_sources() -> None:
    """NeighborSampler's idiom: the layer's targets are as many of the first sources as another input has rows."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = SAGEConv((6, 6), 4)

        def forward(self, x: Tensor, edge_index: Tensor, targets: Tensor) -> Tensor:
            return self.layer((x, x[: targets.size(0)]), edge_index) + targets

    x, edges = random_graph(20, 70)
    report = convert(First(), (x, edges % torch.tensor([[20], [8]]), torch.randn(8, 4)), target="onnx-x86").report
    assert any(check.compared and "second graph" in check.what for check in report.checks)
