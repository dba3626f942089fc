"""What users of PyTorch Geometric write: which layers, norms and read-outs convert, and what the others are told.

Each model is converted from one graph and compared with PyTorch on graphs it has not seen: loops, double edges,
isolated nodes, no edges. The fast tests take some models on neighbour tables (-O1, stock kernels), the slow ones all of
them, and in 8 bits. docs/ops.md has the same list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from graph_models import awkward_graphs, random_graph
from onnx_graphs import FORMS, Form
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.utils import add_remaining_self_loops, add_self_loops, degree, dropout_edge, remove_self_loops

from bgnn.converter.api import convert
from bgnn.converter.calibrate import Calibration
from bgnn.converter.errors import BgnnError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

GRAPH, WEIGHTS, BATCH = ("x", "edge_index"), ("x", "edge_index", "edge_weight"), ("x", "edge_index", "batch")


class Net(nn.Module):
    """A function of the graph and of some layers: `function(self, x, edge_index)`, `m.a`, `m.b` being the layers."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.function(self, x, edge_index)


class Weighted(Net):
    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:  # type: ignore[override]
        return self.function(self, x, edge_index, edge_weight)


class Batched(Net):
    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:  # type: ignore[override]
        return self.function(self, x, edge_index, batch)


def layer(a: nn.Module) -> Net:
    return Net(lambda m, x, e: m.a(x, e), a=a)


def weighted(a: nn.Module) -> Net:
    return Weighted(lambda m, x, e, w: m.a(x, e, w), a=a)


def attributed(a: nn.Module) -> Net:
    return Weighted(lambda m, x, e, w: m.a(x, e, w[:, None]), a=a)


def after_gcn(a: nn.Module) -> Net:
    """A norm, or whatever else takes the nodes alone."""
    return Net(lambda m, x, e: m.a(m.gcn(x, e)).relu(), gcn=pyg.GCNConv(6, 6), a=a)


def pooled(a: Callable[..., Tensor]) -> Net:
    return Batched(lambda m, x, e, b: m.a(m.gcn(x, e), b), gcn=pyg.GCNConv(6, 4), a=a)


def mlp(*widths: int) -> nn.Module:
    return pyg.MLP(list(widths), norm=None)


class Graphs(nn.Module):
    """The usual network for graphs of a batch: every layer's sum is read out."""

    def __init__(self) -> None:
        super().__init__()
        widths = [6, 8, 8]
        self.convs = nn.ModuleList(pyg.GINConv(pyg.MLP([w, 8, 8], norm="batch_norm")) for w in widths)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        states = []
        for conv in self.convs:
            x = conv(x, edge_index).relu()
            states.append(pyg.global_add_pool(x, batch))
        return self.out(F.dropout(torch.cat(states, 1), 0.5, self.training)).log_softmax(-1)


def with_jumps(mode: str) -> Net:
    def forward(m: Any, x: Tensor, e: Tensor) -> Tensor:
        first = m.first(x, e).relu()
        return m.jump([first, m.second(first, e).relu()])

    jump = pyg.JumpingKnowledge(mode, 8, 2)
    return Net(forward, first=pyg.GCNConv(6, 8), second=pyg.GCNConv(8, 8), jump=jump)


def sequential() -> Net:
    steps = [(pyg.GCNConv(6, 8), "x, e -> x"), nn.ReLU(), (nn.Dropout(0.5), "x -> x"), (pyg.GCNConv(8, 4), "x, e -> x")]
    return layer(pyg.Sequential("x, e", steps))


def looped(change: Callable[..., Any]) -> Net:
    return Net(lambda m, x, e: m.a(x, change(e, num_nodes=x.size(0))[0]), a=pyg.SAGEConv(6, 4))


MODELS: dict[str, Callable[[], nn.Module]] = {
    # self-loops and norms of edges
    "GCNConv": lambda: layer(pyg.GCNConv(6, 4)),
    "GCNConv(normalize=False)": lambda: layer(pyg.GCNConv(6, 4, normalize=False)),
    "GCNConv(improved=True)": lambda: layer(pyg.GCNConv(6, 4, improved=True)),
    "GCNConv(add_self_loops=False)": lambda: layer(pyg.GCNConv(6, 4, add_self_loops=False)),
    "ARMAConv": lambda: layer(pyg.ARMAConv(6, 4)),
    "GatedGraphConv": lambda: layer(pyg.GatedGraphConv(6, 2)),
    "Set2Set": lambda: pooled(pyg.Set2Set(4, 2)),
    "GCNConv(cached=True)": lambda: layer(pyg.GCNConv(6, 4, cached=True)),
    "GCNConv, weights": lambda: weighted(pyg.GCNConv(6, 4)),
    "GCNConv(improved=True), weights": lambda: weighted(pyg.GCNConv(6, 4, improved=True)),
    "GCNConv(normalize=False), weights": lambda: weighted(pyg.GCNConv(6, 4, normalize=False)),
    "GCNConv, target to source, weights": lambda: weighted(pyg.GCNConv(6, 4, flow="target_to_source")),
    "add_self_loops": lambda: looped(add_self_loops),
    "add_remaining_self_loops": lambda: looped(add_remaining_self_loops),
    "remove_self_loops": lambda: looped(lambda e, num_nodes: remove_self_loops(e)),
    "add_self_loops, weights": lambda: Weighted(
        lambda m, x, e, w: m.a(x, *add_self_loops(e, w, 0.5, x.size(0))), a=pyg.GraphConv(6, 4)
    ),
    "SGConv": lambda: layer(pyg.SGConv(6, 4, K=2)),
    "APPNP": lambda: Net(lambda m, x, e: m.b(m.a(x), e), a=nn.Linear(6, 4), b=pyg.APPNP(3, 0.1)),
    "ChebConv": lambda: layer(pyg.ChebConv(6, 4, K=3)),
    "TAGConv": lambda: layer(pyg.TAGConv(6, 4, K=2)),
    "GCN2Conv": lambda: Net(lambda m, x, e: m.a(x, x, e), a=pyg.GCN2Conv(6, 0.1, 0.5, 1)),
    # aggregations and attention
    "SAGEConv(aggr=max)": lambda: layer(pyg.SAGEConv(6, 4, aggr="max")),
    "SAGEConv(aggr=add)": lambda: layer(pyg.SAGEConv(6, 4, aggr="add")),
    "SAGEConv(normalize=True, project=True)": lambda: layer(pyg.SAGEConv(6, 4, normalize=True, project=True)),
    "GraphConv, weights": lambda: weighted(pyg.GraphConv(6, 4)),
    "GATConv(concat=False)": lambda: layer(pyg.GATConv(6, 4, heads=2, concat=False)),
    "GATConv(edge_dim=1)": lambda: attributed(pyg.GATConv(6, 4, edge_dim=1)),
    "GATv2Conv": lambda: layer(pyg.GATv2Conv(6, 4, heads=2)),
    "TransformerConv": lambda: layer(pyg.TransformerConv(6, 4, heads=2)),
    "EdgeConv": lambda: layer(pyg.EdgeConv(mlp(12, 8, 4))),
    "PNAConv": lambda: layer(pyg.PNAConv(6, 4, ["mean", "max", "std"], ["amplification"], torch.tensor([1, 2, 5]))),
    # read-outs
    "global_mean_pool": lambda: pooled(pyg.global_mean_pool),
    "global_max_pool": lambda: pooled(pyg.global_max_pool),
    "global_add_pool": lambda: pooled(pyg.global_add_pool),
    "global_mean_pool(size=3)": lambda: pooled(lambda x, b: pyg.global_mean_pool(x, b, 3)),
    "a mean over the only graph": lambda: after_gcn(pyg.MeanAggregation()),
    "AttentionalAggregation": lambda: pooled(pyg.AttentionalAggregation(nn.Linear(4, 1))),
    "a score for each edge": lambda: Net(
        lambda m, x, e: (lambda z: (z[e[0]] * z[e[1]]).sum(-1))(m.a(x, e)), a=pyg.GCNConv(6, 4)
    ),
    "the first node": lambda: Net(lambda m, x, e: m.a(x, e)[0] - x[-1, :4], a=pyg.GCNConv(6, 4)),
    # networks, norms, odds and ends
    "EdgeCNN": lambda: layer(pyg.EdgeCNN(6, 8, 2, 4)),
    "GIN for graphs": Graphs,
    "Sequential with dropout": sequential,
    "JumpingKnowledge(cat)": lambda: with_jumps("cat"),
    "JumpingKnowledge(max)": lambda: with_jumps("max"),
    "JumpingKnowledge(lstm)": lambda: with_jumps("lstm"),
    "residual": lambda: Net(lambda m, x, e: x + m.a(x, e).relu(), a=pyg.GCNConv(6, 6)),
    "torch's LayerNorm": lambda: after_gcn(nn.LayerNorm(6)),
    "LayerNorm": lambda: after_gcn(pyg.LayerNorm(6)),
    "GraphNorm": lambda: after_gcn(pyg.GraphNorm(6)),
    "GraphNorm, batch": lambda: Batched(lambda m, x, e, b: m.a(x, b), a=pyg.GraphNorm(6)),
    "PairNorm": lambda: after_gcn(pyg.PairNorm()),
    "BatchNorm": lambda: after_gcn(pyg.BatchNorm(6)),
    "dropout_edge": lambda: Net(
        lambda m, x, e: m.a(x, dropout_edge(e, training=m.training)[0]), a=pyg.GCNConv(6, 4)
    ),
    "degrees as features": lambda: Net(
        lambda m, x, e: m.a(torch.cat([x, degree(e[1], x.size(0))[:, None]], 1)), a=nn.Linear(7, 4)
    ),
}  # fmt: skip

REFUSED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "ClusterGCNConv": (
        r"indexing x.* in ClusterGCNConv is not supported",
        lambda: layer(pyg.ClusterGCNConv(6, 4)),
    ),
    "MFConv": (r"is not supported", lambda: layer(pyg.MFConv(6, 4))),
    "TopKPooling": (
        r"torch\.sort in TopKPooling is not supported by onnx-x86",  # of all nodes, which is an open number
        lambda: Batched(lambda m, x, e, b: m.a(x, e, None, b)[0], a=pyg.TopKPooling(6)),
    ),
    "SAGEConv(aggr=median)": (r"is not supported", lambda: layer(pyg.SAGEConv(6, 4, "median"))),
}


def inputs_of(model: nn.Module, x: Tensor, edges: Tensor) -> tuple[Tensor, ...]:
    """What the model takes, of a graph."""
    generator = torch.Generator().manual_seed(len(x))
    if isinstance(model, Weighted):
        return x, edges, torch.rand(edges.shape[1], generator=generator) + 0.1
    if isinstance(model, (Batched, Graphs)):
        return x, edges, torch.arange(len(x)) * 3 // max(len(x), 1)
    return x, edges


def made(make: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = make().eval()
    return model, inputs_of(model, *random_graph(20, 60))


def agrees(name: str, form: Form) -> None:
    model, example = made(MODELS[name])
    done = convert(model, example, target="onnx-x86", optimize=form[0], kernels=form[1], verify=False)
    assert done.model_bytes is not None
    file = OnnxModel(done.model_bytes)
    for what, graph in awkward_graphs().items():
        inputs = inputs_of(model, *graph)
        for part in model.modules():
            if hasattr(part, "_cached_edge_index"):
                part._cached_edge_index = None
        with torch.no_grad():
            expected = model(*inputs).numpy()
        arrays = (value.numpy() for value in inputs)
        found = next(iter(file.run(**dict(zip(file.input_names, arrays, strict=True))).values()))
        assert found.shape == expected.shape, what
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=2e-5, err_msg=what)


QUICK = (
    "GCNConv(cached=True)", "GCNConv(improved=True), weights", "add_self_loops", "add_self_loops, weights",
    "remove_self_loops", "ChebConv", "GCN2Conv", "SAGEConv(aggr=max)", "GATConv(concat=False)", "PNAConv",
    "global_mean_pool", "a score for each edge", "the first node", "LayerNorm", "GraphNorm", "Sequential with dropout",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_converted_on_tables(name: str) -> None:
    agrees(name, (1, "stock"))


def in_turn(start: int) -> list[Any]:
    """Each layer in one form of file, the forms in turn: what tells the forms apart is tested in converter/onnx."""
    forms = [FORMS[(start + i) % len(FORMS)] for i in range(len(MODELS))]
    return [
        pytest.param(name, *form.values, id=f"{name}-{form.id}", marks=form.marks)
        for name, form in zip(MODELS, forms, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), in_turn(0))
def test_converted(name: str, form: Form) -> None:
    agrees(name, form)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), in_turn(1))
def test_calibrated(name: str, form: Form) -> None:
    """Verification compares every code, and the outputs."""
    model, example = made(MODELS[name])
    names = WEIGHTS if isinstance(model, Weighted) else BATCH if len(example) == 3 else GRAPH
    calibration = Calibration((dict(zip(names, example, strict=True)),))
    done = convert(
        model, example, target="onnx-int8-x86", optimize=form[0], kernels=form[1], calibration=calibration
    )  # fmt: skip
    assert done.report.checks[-1].what == "emitted file"


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    message, make = REFUSED[name]
    model, example = made(make)
    with pytest.raises(BgnnError, match=message) as error:
        convert(model, example, target="onnx-x86")
    assert "\n" not in str(error.value)
