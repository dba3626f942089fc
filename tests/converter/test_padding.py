"""Graph networks in TFLite files: a file takes all graphs up to a size; what is behind one changes none of its bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from graph_models import GCN as QuantisedGCN
from graph_models import BinarySAGE, TorchQuantizer, random_graph
from torch import Tensor, nn
from torch_geometric import nn as gnn
from torch_geometric.utils import remove_self_loops

from bgnn.converter.api import convert
from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.tflite.inspect import operators
from bgnn.runtime_bench.runtime.tflite_model import TfliteModel

MOST = ("nodes=30", "edges=120")


class Net(nn.Module):
    """Two layers of PyG; `pooled`: one row for each graph of a batch."""

    def __init__(self, first: nn.Module, second: nn.Module, pooled: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.pooled = first, second, pooled

    def forward(self, x: Tensor, edge_index: Tensor, *rest: Tensor) -> Tensor:
        weights = rest if self.pooled is None else ()
        x = self.second(self.first(x, edge_index, *weights).relu(), edge_index, *weights)
        return x if self.pooled is None else self.pooled(x, rest[0])


class WithBatch(Net):
    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, edge_index, batch)


class Weighted(Net):
    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, edge_index, weight)


class Plain(Net):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, edge_index)


class Scores(nn.Module):
    """A number for each edge, self-loops among them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = gnn.GCNConv(6, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h, (source, target) = self.layer(x, edge_index), edge_index
        return (h[source] * h[target]).sum(-1)


class ScoresWithoutLoops(nn.Module):
    """A number for each edge that is no self-loop: how many there are depends on the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edges, _ = remove_self_loops(edge_index)
        h = self.layer(x)
        return (h[edges[0]] * h[edges[1]]).sum(-1)


class EdgeMatrices(nn.Module):
    """A matrix for each edge, as NNConv has it."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.Linear(1, 6 * 4)

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        matrices = self.matrices(weight[:, None]).view(-1, 6, 4)
        messages = torch.matmul(x[edge_index[0]].unsqueeze(1), matrices).squeeze(1)
        return x.new_zeros(x.size(0), 4).index_add(0, edge_index[1], messages)


def mlp(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, out))


NETS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gcn": (lambda: Plain(gnn.GCNConv(6, 8), gnn.GCNConv(8, 3)), ""),
    "weighted gcn": (lambda: Weighted(gnn.GCNConv(6, 8), gnn.GCNConv(8, 3)), "weight"),
    "sage": (lambda: Plain(gnn.SAGEConv(6, 8), gnn.SAGEConv(8, 3, aggr="max")), ""),
    "gat": (lambda: Plain(gnn.GATConv(6, 4, heads=2), gnn.GATConv(8, 3)), ""),
    "gin": (lambda: WithBatch(gnn.GINConv(mlp(6, 8)), gnn.GINConv(mlp(8, 3)), gnn.global_mean_pool), "batch"),
    "edge scores": (Scores, ""),
    "scores without loops": (ScoresWithoutLoops, ""),
    "matrices of edges": (EdgeMatrices, "weight"),
}


def inputs_of(kind: str, nodes: int, edges: int, seed: int = 0) -> tuple[Tensor, ...]:
    """A graph; with `edges` 0 no edges, else some self-loops and nodes that no edge goes to."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, 6, generator=generator)
    index = torch.randint(max(1, nodes), (2, edges), generator=generator)
    rest: tuple[Tensor, ...] = ()
    if kind == "weight":
        rest = (torch.rand(edges, generator=generator),)
    if kind == "batch":
        rest = (torch.arange(nodes) * 2 // max(nodes, 1),)
    return x, index, *rest


@functools.lru_cache(4)  # so that one file's calls grow and shrink
def opened(data: bytes) -> TfliteModel:
    return TfliteModel(data)


def run(data: bytes | None, inputs: tuple[Tensor, ...]) -> np.ndarray:
    """A graph's result; of a file that may be resized, in that way and filled up, to the same bits."""
    assert data is not None
    model = opened(data)
    assert model.padding is not None
    given = {name: t.numpy() for name, t in zip(model.padding.input_names, inputs, strict=True)}
    (found,) = model.run(**given).values()
    if model.padding.resizes:
        filled = TfliteModel(data)
        assert filled.padding is not None
        filled.padding.resizes = False
        (other,) = filled.run(**given).values()
        assert (other.tobytes(), other.shape) == (found.tobytes(), found.shape)
    return found


def resizes(data: bytes | None) -> bool:
    assert data is not None
    padding = opened(data).padding
    return padding is not None and padding.resizes


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        (name, kernels)
        for name in NETS
        for kernels in ("stock", "bgnn")
        if kernels == "stock" or name not in ("sage", "matrices of edges")
    ],
)
def test_what_is_behind_a_graph_changes_no_bit_of_it(name: str, kernels: str) -> None:
    make, kind = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    inputs = inputs_of(kind, 20, 70)
    told = ("graphs=5",) if kind == "batch" else ()
    exact = convert(model, inputs, target="tflite-arm64", kernels=kernels, verify=False)  # as large as the example
    larger = convert(
        model, inputs, target="tflite-arm64", kernels=kernels, fixed_sizes=(*MOST, *told), verify=kernels == "bgnn"
    )  # fmt: skip
    assert resizes(larger.model_bytes) == (kernels == "bgnn")
    first = run(larger.model_bytes, inputs)
    with torch.no_grad():
        np.testing.assert_allclose(first, model(*inputs).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(first, run(exact.model_bytes, inputs))

    # At the maximum, with a hub of all nodes, one node, without edges, without nodes.
    hub = list(inputs_of(kind, 30, 120, seed=1))
    hub[1][1, :60], hub[1][0, 60:90] = 7, torch.arange(30)
    hub[1][1, 60:90] = 3
    for given in (tuple(hub), inputs_of(kind, 2, 4), inputs_of(kind, 9, 0), inputs_of(kind, 1, 0)):
        with torch.no_grad():
            expected = model(*given).numpy()
        found = run(larger.model_bytes, given)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(run(larger.model_bytes, inputs_of(kind, 0, 0))) == 0
    np.testing.assert_array_equal(run(larger.model_bytes, inputs), first)


@pytest.mark.parametrize("kernels", ["stock", "bgnn"])
def test_codes_are_those_of_pytorch(kernels: str) -> None:
    model = QuantisedGCN(TorchQuantizer).eval()
    done = convert(
        model, random_graph(20, 70, 0), target="tflite-int8-arm64", kernels=kernels, fixed_sizes=MOST
    )  # fmt: skip
    became = {layer.became for layer in done.report.layers}
    assert "INT8" in became
    assert ("INT8, fused: no tensor of edges" in became) == (kernels == "bgnn")
    assert resizes(done.model_bytes) == (kernels == "bgnn")
    costs = "the file is resized to smaller" if kernels == "bgnn" else "smaller graphs are filled up and cost as much;"
    assert f"at most 30 nodes, 120 edges: {costs}" in done.report.inputs
    for nodes, edges in ((30, 100), (12, 40)):
        inputs = random_graph(nodes, edges, 3)
        with torch.no_grad():
            np.testing.assert_array_equal(run(done.model_bytes, inputs), model(*inputs).numpy())


def test_a_binary_network_keeps_its_signs() -> None:
    model = BinarySAGE().eval()
    inputs = random_graph(20, 70, 0)
    files = [
        convert(model, inputs, target="lce-arm64", kernels=kernels, fixed_sizes=MOST) for kernels in ("stock", "bgnn")
    ]
    assert "binary, float out" in {layer.became for layer in files[1].report.layers}
    given = random_graph(30, 110, 3)
    assert [resizes(one.model_bytes) for one in files] == [False, True]
    stock, own = (run(one.model_bytes, given) for one in files)
    with torch.no_grad():
        np.testing.assert_allclose(stock, model(*given).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stock, own)


def test_one_above_the_maximum_is_one_line() -> None:
    done = convert(
        NETS["gcn"][0]().eval(), inputs_of("", 20, 70), target="tflite-arm64", kernels="bgnn", fixed_sizes=MOST
    )  # fmt: skip
    used = operators(done.model_bytes)  # the edges are sorted once, with loops; norms are made in that order
    assert {name: used.get(name, 0) for name in ("BgnnCooToCsr", "BgnnEdgeProduct", "BgnnIndexToCsr", "GATHER")} == {
        "BgnnCooToCsr": 1, "BgnnEdgeProduct": 1, "BgnnIndexToCsr": 0, "GATHER": 0,
    }  # fmt: skip
    for nodes, edges, line in (
        (31, 70, "the graph has 31 nodes, and the file takes at most 30: convert the model with --fixed nodes=31"),
        (20, 121, "the graph has 121 edges, and the file takes at most 120: convert the model with --fixed edges=121"),
    ):
        with pytest.raises(UsageError) as error:
            run(done.model_bytes, inputs_of("", nodes, edges))
        assert str(error.value) == line
    x, index = inputs_of("", 20, 70)
    for bad in (20, -1):
        with pytest.raises(UsageError, match=rf"edge_index (names|holds).* {bad}|holds {bad}"):
            run(done.model_bytes, (x, torch.where(index == index[0, 0], bad, index)))


def test_more_graphs_than_the_file_has_room_for() -> None:
    make, kind = NETS["gin"]
    done = convert(make().eval(), inputs_of(kind, 20, 70), target="tflite-arm64", fixed_sizes=MOST)
    x, index, _ = inputs_of(kind, 20, 70)
    with pytest.raises(UsageError, match=r"the graph has 3 graphs, and the file takes at most 2: .*--fixed graphs=3"):
        run(done.model_bytes, (x, index, torch.arange(20) * 3 // 20))


def test_wrong_sizes() -> None:
    model, inputs = NETS["gcn"][0]().eval(), inputs_of("", 20, 70)
    for told, message in (
        ("nodes=19", r"--fixed nodes=19: the example has 20 nodes; give a smaller example"),
        ("graphs=2", r"--fixed graphs=2: the network has no open number of graphs; it has nodes, edges"),
        ("nodes=many", r"--fixed nodes=many: give the largest number of nodes, as in --fixed nodes=4096"),
        ("edges=0", r"--fixed edges=0: give the largest number of edges"),
    ):
        with pytest.raises(UsageError, match=message):
            convert(model, inputs, target="tflite-arm64", fixed_sizes=(told,))
    with pytest.raises(UsageError, match=r"--fixed nodes: onnx-x86 takes graphs of any size"):
        convert(model, inputs, target="onnx-x86", fixed_sizes=("nodes=40",))


class Mean(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]]).mean(0, keepdim=True)


class ByNumber(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]]) / x.size(0)


class Last(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])[-1:]


class Matrix(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return (torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]]) @ x.t()).softmax(-1) @ x


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (Mean, r"Tensor\.mean .*takes nodes or edges together"),
        (ByNumber, "computes with a number of nodes or edges"),
        (Last, "takes nodes or edges together"),
        (Matrix, "takes nodes or edges together"),
    ],
)
def test_what_takes_rows_together_is_refused(net: type[nn.Module], what: str) -> None:
    with pytest.raises(ConversionError, match=what + r".*--target onnx-x86"):
        convert(net().eval(), inputs_of("", 20, 70), target="tflite-arm64")
