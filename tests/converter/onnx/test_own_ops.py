"""The fused ops of `--kernels bgnn` in a file, against their references on graphs not seen before."""

from __future__ import annotations

import pytest
import torch
from onnx_graphs import check, file_of, needs_ops, open_graph, random_edges
from torch.nn import functional as F

from bgnn.converter.api import convert
from bgnn.converter.errors import ConversionError
from bgnn.converter.onnx.inspect import operators
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

pytestmark = needs_ops
bgnn = torch.ops.bgnn
OWN = (1, "bgnn")
SOME = [("some", 40, random_edges(40, 300)), ("no edges", 6, torch.zeros(2, 0, dtype=torch.int64))]


def norm(edges: torch.Tensor, n: int) -> torch.Tensor:
    """GCN's weight of each edge."""
    root = bgnn.segment_sum(torch.ones(edges.shape[1]), edges.select(0, 1), n).pow(-0.5)
    root = root.masked_fill(root == float("inf"), 0)
    return root.index_select(0, edges.select(0, 0)) * root.index_select(0, edges.select(0, 1))


def q_gcn(m, x, edges):
    n = x.shape[0]
    looped = bgnn.with_self_loops(edges, n)
    weight = bgnn.quantize(norm(looped, n), 0.004, 3, 0, 255)
    codes = bgnn.quantize(x, 0.0231, 121, 0, 255)
    return bgnn.q_aggregate(
        codes, 0.0231, 121, looped, weight, 0.004, 3, 0.03, 110, 0, 255, 0.05, 120, 0, 255, n
    )  # fmt: skip


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_aggregate(reduce):
    def layer(m, x, edges):
        return bgnn.aggregate(x, edges, norm(edges, x.shape[0]), x.shape[0], reduce)

    check(layer, OWN, tolerance=1e-5, graphs=SOME)
    check(lambda m, x, e: bgnn.aggregate(x, e, None, x.shape[0], reduce), OWN, tolerance=1e-5, graphs=SOME)


def test_gcn_on_codes_needs_no_list_of_edges_with_loops():
    check(q_gcn, OWN)
    count = operators(file_of(open_graph(q_gcn, torch.randn(9, 8), random_edges(9, 20)), OWN))
    assert count["bgnn.CooToCsr"] == count["bgnn.Degree"] == count["bgnn.EdgeProduct"] == count["bgnn.QAggregate"] == 1
    assert "bgnn.WithSelfLoops" not in count


def test_weights_of_the_users_stay_in_their_order():
    """Weights that are no product of the ends' numbers are read through the entries' places."""

    def layer(m, x, edges):
        score = (x.sum(1).index_select(0, edges.select(0, 0)) - x.amax(1).index_select(0, edges.select(0, 1))).tanh()
        return bgnn.aggregate(x, edges, score, x.shape[0], "sum")

    check(layer, OWN, tolerance=1e-4, graphs=SOME)
    count = operators(file_of(open_graph(layer, torch.randn(9, 8), random_edges(9, 20)), OWN))
    assert "bgnn.EdgeProduct" not in count


def test_functions_of_products():
    """Everything between the product and the aggregation is done on each weight alone, in whichever order."""

    def layer(m, x, edges):
        weight = (norm(edges, x.shape[0]).view(-1, 1) * 3 - m.c).clamp(-1, 0.5).view(-1)
        return bgnn.aggregate(x, edges, weight, x.shape[0], "sum")

    check(layer, OWN, tolerance=1e-5, graphs=SOME, c=torch.tensor(0.25))
    count = operators(file_of(open_graph(layer, torch.randn(9, 8), random_edges(9, 20), c=torch.tensor(0.25)), OWN))
    assert count["bgnn.EdgeProduct"] == 1


@pytest.mark.parametrize("channels", [1, 8])
def test_tables(channels):
    """One for all channels or one for each, of nodes and of edges; with more axes than QTable takes too."""
    table = torch.randint(0, 256, (channels, 256), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def layer(m, x, edges):
        codes = bgnn.q_table(bgnn.quantize(x, 0.0231, 121, 0, 255), m.t)
        codes = bgnn.q_table(codes.index_select(0, edges.select(0, 0)), m.t)
        return bgnn.q_table(codes.reshape(-1, 1, 1, 1, 8), m.t).reshape(-1, 8)

    check(layer, OWN, graphs=SOME, t=table)
    count = operators(file_of(open_graph(layer, torch.randn(9, 8), random_edges(9, 20), t=table), OWN))
    assert count["bgnn.QTable"] == 2


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_requantised_by_a_table(slope):
    def layer(m, x, edges):
        return bgnn.requantize(bgnn.quantize(x, 0.0231, 121, 0, 255), 0.0231, 121, slope, 0.013, 5, 2, 250)

    check(layer, OWN, graphs=SOME)
    assert "bgnn.QTable" in operators(file_of(open_graph(layer, torch.randn(9, 8), random_edges(9, 20)), OWN))


@pytest.mark.parametrize("weighted", [False, True])
def test_table_of_an_aggregation(weighted):
    table = torch.randint(0, 256, (8, 256), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def layer(m, x, edges):
        weight = bgnn.quantize(norm(edges, x.shape[0]), 0.004, 3, 0, 255) if weighted else None
        message = (0.03, 110, 0, 255) if weighted else (0.0, 0, 0, 255)
        codes = bgnn.quantize(x, 0.0231, 121, 0, 255)
        return bgnn.q_aggregate(
            codes, 0.0231, 121, edges, weight, 0.004, 3, *message, 0.05, 120, 0, 255, x.shape[0], m.t
        )  # fmt: skip

    check(layer, OWN, t=table)


def test_attention():
    def layer(m, x, edges):
        h = F.linear(x, m.w).view(-1, 4, 5)
        source, target = (h * m.a).sum(-1), (h * m.b).sum(-1)
        return bgnn.gat_aggregate(h, source, target, edges, x.shape[0], 0.2)

    constants = {"w": torch.randn(20, 8), "a": torch.randn(4, 5), "b": torch.randn(4, 5)}
    check(layer, OWN, tolerance=1e-5, graphs=SOME, **constants)


def test_only_with_these_kernels():
    with pytest.raises(ConversionError, match=r"q_aggregate.* is not supported"):
        file_of(open_graph(q_gcn, torch.randn(9, 8), random_edges(9, 20)))


def test_signs_along_edges_where_there_are_none() -> None:
    """What crosses the edges as packed signs, and layers on edges, on graphs with edges and without."""
    weights = {"node": torch.randn(24, 80), "edge": torch.randn(24, 80)}

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            source, target = edge_index
            signs = torch.sign(x)
            total = torch.zeros_like(signs).index_add_(0, target, signs[source])
            node = F.linear(torch.sign(torch.cat([signs, total - 0.5], 1)), torch.sign(weights["node"]))
            edge = F.linear(torch.cat([signs[source], signs[target]], 1), torch.sign(weights["edge"]))
            return node + torch.zeros_like(node).index_add_(0, target, edge)

    x, edges = torch.randn(30, 40), random_edges(30, 90)
    done = convert(Net().eval(), (x, edges), target="onnx-int8-x86", kernels="bgnn")
    assert done.model_bytes is not None
    assert {"bgnn.Unpack", "bgnn.BinaryDense"} <= set(operators(done.model_bytes))
    model = OnnxModel(done.model_bytes, 1)
    for given in (edges, torch.zeros(2, 0, dtype=torch.int64)):
        (got,) = model.run(x=x.numpy(), edge_index=given.numpy()).values()
        torch.testing.assert_close(torch.from_numpy(got), Net()(x, given), rtol=0, atol=1e-4)
