"""Sums and maxima over constant edges: as PyTorch's scatters, with nodes of any degrees, along any axis."""

from __future__ import annotations

import pytest
import torch
from graph_models import GCN as QuantisedGCN
from graph_models import TorchQuantizer, random_graph
from graphs import Wrapped, aten
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from bgnn.converter.api import convert
from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, recognise_aggregation
from bgnn.passes.graph import calls, run
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_runner import run_file

N = 12
SCATTERS = (aten.scatter_add, aten.scatter_reduce, aten.index_add, aten.index_reduce, aten.index_put)


def edges(kind: str) -> Tensor:
    """Targets of edges: isolated nodes, a hub beside many leaves, every node as often, none isolated."""
    if kind == "hub":
        return torch.cat([torch.full((400,), 5), torch.arange(200) % 4])
    if kind == "regular":
        return torch.arange(N).repeat(3)
    if kind == "sorted":
        return torch.arange(N).repeat_interleave(2)
    return torch.randint(N - 2, (40,), generator=torch.Generator().manual_seed(0))


FORMS = {
    "index_add": lambda m, v: torch.zeros(3, N, 4).index_add(1, m.index, v.transpose(0, 1)).transpose(0, 1),
    "index_add, alpha": lambda m, v: torch.ones(N, 3, 4).index_add(0, m.index, v, alpha=-2),
    "scatter_add": lambda m, v: v.new_zeros(N, 3, 4).scatter_add(0, m.index[:, None, None].expand(-1, 3, 4), v),
    "scatter_add, rows as lists": lambda m, v: torch.zeros(3, 4, N).scatter_add(
        -1, m.index.expand(3, 4, -1), v.permute(1, 2, 0)
    ),
    "put, accumulated": lambda m, v: torch.zeros(N, 3, 4).index_put((m.index,), v, accumulate=True),
    "amax": lambda m, v: torch.zeros(N, 3, 4).index_reduce(0, m.index, v, "amax", include_self=False),
    "amax onto ones": lambda m, v: torch.ones(N, 3, 4).index_reduce(0, m.index, v, "amax"),
    "amin": lambda m, v: torch.zeros(N, 3, 4).index_reduce(0, m.index, v, "amin", include_self=False),
    "mean": lambda m, v: torch.zeros(N, 3, 4).index_reduce(0, m.index, v, "mean", include_self=False),
    "mean onto ones": lambda m, v: torch.ones(N, 3, 4).index_reduce(0, m.index, v, "mean"),
}


@pytest.mark.parametrize("kind", ["some", "hub", "regular", "sorted"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form(form: str, kind: str) -> None:
    index = edges(kind)
    values = torch.randn(len(index), 3, 4, generator=torch.Generator().manual_seed(1))
    gm = trace(Wrapped(FORMS[form], {"index": index}), (values,))
    (before,) = run(gm, (values,))
    canonicalise.run(gm)
    assert recognise_aggregation.run(gm).rewrites == 1
    assert not list(calls(gm.graph, *SCATTERS))
    torch.testing.assert_close(run(gm, (values,))[0], before, atol=1e-4, rtol=1e-4)
    if kind in ("regular", "sorted"):  # every node has as many: no row of zeros, no order to bring back
        assert len(list(calls(gm.graph, aten.index_select))) == (kind == "regular")
        assert not list(calls(gm.graph, aten.cat))


def test_a_hub_does_not_make_every_row_as_long() -> None:
    index = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.arange(1000)])
    values = torch.randn(len(index), 2)
    gm = trace(Wrapped(lambda m, v: torch.zeros(1000, 2).index_add(0, m.index, v), {"index": index}), (values,))
    recognise_aggregation.run(gm)
    tables = [n for n in gm.graph.nodes if n.op == "get_attr" and str(n.target).startswith("neighbours")]
    assert 1 < len(tables) <= 4
    assert sum(n.meta["val"].numel() for n in tables) < 2 * len(index)


def test_other_columns_with_other_indices_are_left_alone() -> None:
    index = torch.randint(N, (40, 4))
    gm = trace(
        Wrapped(lambda m, v: torch.zeros(N, 4).scatter_add(0, m.index, v), {"index": index}), (torch.randn(40, 4),)
    )
    assert recognise_aggregation.run(gm).rewrites == 0


class Skeleton(nn.Module):
    """Two of PyG's layers on edges of the model's own, some joints without any."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        index = torch.randint(N - 1, (2, 30), generator=torch.Generator().manual_seed(0))
        self.register_buffer("edge_index", index)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x, self.edge_index).relu(), self.edge_index)


NETS = {
    "GCN": lambda: Skeleton(GCNConv(6, 8), GCNConv(8, 3)),
    "SAGE, max": lambda: Skeleton(SAGEConv(6, 8, aggr="max"), SAGEConv(8, 3)),
    "GAT": lambda: Skeleton(GATConv(6, 4, heads=2), GATConv(8, 3)),
}


@pytest.mark.parametrize("target", ["tflite-arm64", "onnx-x86"])
@pytest.mark.parametrize(("net", "shape"), [("GCN", (2, N, 6)), ("SAGE, max", (2, N, 6)), ("GAT", (N, 6))])
def test_a_graph_in_a_buffer_goes_to_every_target(net: str, shape: tuple[int, ...], target: str) -> None:
    torch.manual_seed(0)
    model, x = NETS[net]().eval(), torch.randn(shape)
    data = convert(model, (torch.randn(shape),), target=target).model_bytes
    assert data is not None
    (found,) = OnnxModel(data).run(x=x.numpy()).values() if target == "onnx-x86" else run_file(data, [x.numpy()])
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), atol=1e-5, rtol=1e-4)


class Quantised(nn.Module):
    """Degree-Quant's layers on edges of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = QuantisedGCN(TorchQuantizer)
        self.register_buffer("edges", random_graph(N, 30)[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, self.edges)


@pytest.mark.parametrize(("target", "kernels"), [("onnx-int8-x86", "stock"), ("tflite-int8-arm64", "bgnn")])
def test_codes_are_summed_as_integers(target: str, kernels: str) -> None:
    """Messages are products of codes, with a constant's as well; converting compares every code with the model's."""
    done = convert(Quantised().eval(), (torch.randn(N, 6),), target=target, kernels=kernels)
    graph = done.graph.graph
    assert len(list(calls(graph, torch.ops.bgnn.q_mul))) == len(list(calls(graph, torch.ops.bgnn.q_sum))) == 2
    assert not list(calls(graph, aten.sum, aten.mul, aten.linear))
    sums = [layer for layer in done.report.layers if layer.name.startswith("aggregation")]
    assert [layer.was.split(",")[0] for layer in sums] == ["sum over edges that the model holds"] * 2
    assert all((layer.became, layer.why) == ("INT8", "its messages are quantised") for layer in sums)
    assert all(layer.integer_macs > 0 == layer.float_macs for layer in sums)


def test_an_open_batch() -> None:
    model = NETS["SAGE, max"]().eval()
    data = convert(model, (torch.randn(3, N, 6),), target="onnx-x86", open_axes=("x=batch",)).model_bytes
    assert data is not None
    x = torch.randn(5, N, 6)
    (found,) = OnnxModel(data).run(x=x.numpy()).values()
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), atol=1e-5, rtol=1e-4)
