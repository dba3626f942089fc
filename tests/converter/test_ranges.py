"""The ranges of post-training quantisation: what they leave out, and that they are never worse than min/max."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from graph_models import random_graph
from torch import Tensor, fx, nn

from bgnn.converter import calibrate, ranges, stages
from bgnn.converter.calibrate import Calibration
from bgnn.converter.sizes import graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import insert_fake_quant
from bgnn.passes.graph import aten, is_call, snapshot

Graph = tuple[Tensor, Tensor]


def traced(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    """As it stands before calibration."""
    gm = trace(model.eval(), inputs, open_axes=graph_axes(inputs))
    for _, run in [*stages.passes_to("traced", stages.Plan("onnx-int8-x86", 1, "stock")), *stages.BEFORE_CALIBRATION]:
        run(gm)
    stages.name_layers(gm)
    return gm


class Dense(nn.Module):
    """Two dense layers on nodes; the first reads x as it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def range_of_x(x: Tensor, percentile: float | None = None) -> ranges.Range:
    edge_index = torch.zeros(2, 2, dtype=torch.int64)
    gm = traced(Dense(), x, edge_index)
    site = next(n for n in gm.graph.nodes if n.name == "x")
    return ranges.choose(gm, site, [(x, edge_index)], percentile)[0]


def test_ends_move_while_every_error_falls() -> None:
    def errors(low: float, high: float) -> list[float]:
        return [(high - 2.0) ** 2 + (low + 3.0) ** 2 + 1, 1.0 + high]

    low, high = ranges.narrowed(errors, -6.0, 5.0)
    assert abs(high - 2.0) < 0.5
    assert -5.0 < low < -2.0
    assert ranges.narrowed(lambda low, high: [high, 1.0], -6.0, 5.0) == (-6.0, 5.0), "the second place gains nothing"
    assert ranges.narrowed(lambda low, high: [0.0, 0.0], -6.0, 5.0) == (-6.0, 5.0), "there is nothing to gain"
    assert ranges.narrowed(lambda low, high: [abs(high - 1)], 0.0, 4.0)[1] < 2, "an end at 0 stays there"


def test_one_far_value_among_many_is_left_out() -> None:
    x = torch.randn(1_000_000, 4, generator=torch.Generator().manual_seed(0))
    assert range_of_x(x).high > 3
    x[7, 1] = 60.0
    found = range_of_x(x)
    assert 3 < found.high < 50
    assert 0 < found.clipped < 1e-4


def test_a_few_large_nodes_are_not() -> None:
    """4 of 92 nodes: a percentile drops them, and with them half of the output's norm."""
    x = torch.randn(92, 4, generator=torch.Generator().manual_seed(0))
    x[-4:] *= 20
    found = range_of_x(x)
    assert found.high >= float(x.max())
    assert found.low <= float(x.min())
    assert found.clipped == 0
    assert range_of_x(x, 4.0).alone > 5 * found.alone


def test_percentiles_are_of_what_is_not_zero() -> None:
    x = torch.zeros(1000, 4)
    x[:100, 0] = torch.arange(1, 101)
    assert range_of_x(x, 0.0).high == pytest.approx(100, rel=2e-3)
    found = range_of_x(x, 10.0)
    assert found.high == pytest.approx(90, rel=0.02)
    assert found.low == 0
    assert found.clipped == pytest.approx(10 / 4000)


@pytest.mark.parametrize("step", [1.0, 0.25, 0.1, 3.0])
@pytest.mark.parametrize(("low", "high"), [(0, 104), (-7, 104), (-255, 0), (0, 1), (0, 255)])
def test_whole_numbers_of_steps_are_codes(low: int, high: int, step: float) -> None:
    every = torch.arange(low, high + 1)[:, None].expand(-1, 3) * step
    found = ranges.of_multiples(every)
    assert found is not None
    assert found[0] <= float(every.min())
    assert found[1] >= float(every.max())
    scale, zero = insert_fake_quant.scale_and_zero(*found)
    back = torch.ops.bgnn.fake_quant(every, scale, zero, 0, 255)
    torch.testing.assert_close(back, every, rtol=1e-5, atol=1e-5 * step)


@pytest.mark.parametrize(
    "every", [torch.randn(100, 4), torch.arange(257.0), torch.tensor([0.0, 1.0, 2.0**0.5]), torch.zeros(4),
              torch.zeros(0), torch.tensor([1.0, float("inf")])],
)  # fmt: skip
def test_other_values_are_no_whole_numbers_of_steps(every: Tensor) -> None:
    assert ranges.of_multiples(every) is None


def test_counts_lose_nothing() -> None:
    """104 at most: from least to largest, 1 would lie between two codes, and half of the ones be wrong by a fifth."""
    x = torch.zeros(300, 4)
    x[:200] = torch.arange(200)[:, None] % torch.tensor([2.0, 3.0, 2.0, 5.0])
    x[7] = 104.0
    assert range_of_x(x, 0.0).alone > 1e-3
    found = range_of_x(x)
    assert (found.low, found.high) == (0.0, 127.5)
    assert found.alone < 1e-6


def test_what_a_node_reaches() -> None:
    x, edge_index = random_graph(20, 60)
    gm = traced(pyg.GCN(6, 8, 2, 3), x, edge_index)
    nodes = {n.name: n for n in gm.graph.nodes}
    first, second = (n for n in gm.graph.nodes if is_call(n, aten.linear))
    path, layers, outputs = ranges.reached(nodes["x"])
    assert layers == [first]
    assert len(outputs) == 1
    assert second in path
    assert ranges.reached(first)[1] == [second]
    assert ranges.reached(second)[1:] == ([], outputs)


KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "GCN": lambda a, b: pyg.GCNConv(a, b),
    "GAT": lambda a, b: pyg.GATConv(a, b, heads=2, concat=False),
    "GATv2": lambda a, b: pyg.GATv2Conv(a, b),
    "mean": lambda a, b: pyg.SAGEConv(a, b),
    "max": lambda a, b: pyg.SAGEConv(a, b, aggr="max"),
    "many": lambda a, b: pyg.SAGEConv(a, b, aggr=["mean", "max", "sum"]),
    "GIN": lambda a, b: pyg.GINConv(pyg.MLP([a, b, b], norm=None)),
    "Edge": lambda a, b: pyg.EdgeConv(pyg.MLP([2 * a, b, b], norm=None)),
    "Transformer": lambda a, b: pyg.TransformerConv(a, b),
    "Graph": lambda a, b: pyg.GraphConv(a, b),
}


class Net(nn.Module):
    def __init__(self, kind: str, widths: Sequence[int], norm: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(KINDS[kind](a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(b, momentum=None) if norm else nn.Identity()  # type: ignore[arg-type]
            for b in widths[1:-1]
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = norm(conv(x, edge_index)).relu()
        return self.convs[-1](x, edge_index)


def sample(what: str, features: int, seed: int, nodes: int = 150) -> Graph:
    """`what` says: words (rows of a sparse matrix, else normal values), isolated (nodes), hubs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, features, generator=generator)
    if "words" in what:
        x = (torch.rand(nodes, features, generator=generator) < 0.06).float()
        x = x / x.sum(1, keepdim=True).clamp(min=1)
    last = nodes - 6 if "isolated" in what else nodes
    edges = torch.randint(0, last, (2, 4 * nodes), generator=generator)
    if "hubs" in what:
        sources = torch.randint(0, last, (nodes,), generator=generator)
        edges = torch.cat([edges, torch.stack([sources, torch.arange(nodes) % 3])], 1)
    return x, edges


NETWORKS: list[tuple[str, list[int], bool, str]] = [
    ("GCN", [32, 32, 7], False, "words"), ("GCN", [16, 64, 64, 7], True, "isolated"),
    ("GCN", [32, 32, 7], False, "hubs"), ("GCN", [16, 24, 24, 24, 24, 24, 7], True, ""),
    ("GAT", [32, 32, 7], False, "words"), ("GAT", [16, 32, 32, 7], True, "isolated"),
    ("GATv2", [16, 32, 7], False, ""), ("GATv2", [32, 16, 16, 7], True, "words hubs"),
    ("mean", [32, 256, 7], False, "words isolated"), ("mean", [16, 32, 32, 32, 7], True, "isolated hubs"),
    ("max", [32, 32, 7], False, "words"), ("max", [16, 32, 32, 7], True, "isolated"),
    ("GIN", [32, 32, 7], False, "words"), ("GIN", [16, 32, 7], True, "hubs"),
    ("Edge", [16, 16, 7], False, ""), ("Edge", [16, 16, 16, 7], True, "isolated"),
    ("many", [16, 32, 7], False, ""), ("many", [32, 32, 32, 7], True, "words hubs"),
    ("Transformer", [16, 32, 7], False, ""), ("Graph", [16, 32, 32, 7], True, "isolated hubs"),
]  # fmt: skip
FAST = [1, 4, 15]  # the numbers of those that are tried each time


@pytest.mark.parametrize(
    "number", [pytest.param(i, marks=() if i in FAST else pytest.mark.slow) for i in range(len(NETWORKS))]
)
def test_never_worse_than_least_to_largest(number: int) -> None:
    """Calibrated on one graph; there it may lose nothing, and on graphs that it has not seen a few per cent."""
    kind, widths, norm, what = NETWORKS[number]
    torch.manual_seed(number)
    model = Net(kind, widths, norm).train(norm)
    for seed in range(3):  # statistics for the norms
        model(*sample(what, widths[0], 100 + seed))
    own, unseen = [sample(what, widths[0], 2000)], [sample(what, widths[0], 3000 + seed) for seed in range(6)]
    plain = traced(model, *own[0])
    given = Calibration(({"x": own[0][0], "edge_index": own[0][1]},))
    chosen, widest = snapshot(plain), snapshot(plain)
    report = calibrate.quantise(chosen, given)
    calibrate.quantise(widest, dataclasses.replace(given, percentile=0.0))
    here, there = (error(plain, chosen, graphs) / error(plain, widest, graphs) for graphs in (own, unseen))
    assert here < 1.001
    assert there < 1.05
    assert report.output_error == pytest.approx(error(plain, chosen, own), rel=1e-3)


def error(plain: fx.GraphModule, coded: fx.GraphModule, graphs: Sequence[Graph]) -> float:
    def run(gm: fx.GraphModule, graph: Graph) -> Any:
        with torch.no_grad():
            return fx.Interpreter(gm).run(*graph)[0]

    pairs = [(run(plain, graph), run(coded, graph)) for graph in graphs]
    lost, size = sum((a - b).square().sum() for a, b in pairs), sum(a.square().sum() for a, _ in pairs)
    return float(lost / size) ** 0.5


def test_both_ends_are_there_to_choose() -> None:
    """Whatever is chosen, least to largest comes with it, for the whole network to be tried with."""
    inputs = sample("", 16, 0)
    gm = traced(Net("GCN", [16, 8, 7], False), *inputs)
    for site in insert_fake_quant.sites(gm):
        best, widest = ranges.choose(gm, site, [inputs])
        seen = ranges.values(gm, inputs, {site})[site]
        assert widest.low <= min(float(seen.min()), 0) <= max(float(seen.max()), 0) <= widest.high
        assert widest.clipped == 0
        assert widest.low <= best.low <= best.high <= widest.high
        assert best.alone <= widest.alone
