"""What the aggregations' operators are given has names: edges sorted by target, weights in that order. Bit for bit."""

from __future__ import annotations

import torch
from graphs import count, only, outputs, randn
from onnx_graphs import open_graph
from torch import Tensor, fx

from bgnn.passes import sort_edges
from bgnn.passes.graph import calls

aten, bgnn = torch.ops.aten, torch.ops.bgnn
EDGES = torch.tensor([[0, 3, 3, 1, 4, 0, 2], [2, 0, 2, 2, 4, 2, 0]])


def rewritten(function, *inputs: Tensor) -> tuple[fx.GraphModule, int]:
    """The graph after the pass, which gives the same bits; and the count of rewrites."""
    gm = open_graph(function, *inputs)
    before = outputs(gm, *inputs)[0]
    rewrites = sort_edges.run(gm).rewrites
    assert torch.equal(outputs(gm, *inputs)[0], before)
    return gm, rewrites


def gather(x: Tensor, edges: Tensor, row: int) -> Tensor:
    return x.index_select(0, edges.select(0, row))


def test_aggregations_over_the_same_edges_share_one_sort() -> None:
    def layer(m, x, edges):
        hidden = bgnn.aggregate(x, edges, None, x.shape[0], "sum")
        return bgnn.segment_max(gather(hidden, edges, 0).relu(), edges.select(0, 1), x.shape[0])

    gm, rewrites = rewritten(layer, randn(5, 3), EDGES)
    assert rewrites == 2
    csr = only(gm, bgnn.edge_csr)
    assert only(gm, bgnn.aggregate).args[1] is csr
    assert only(gm, bgnn.segment_max).args[1].args[:3] == (csr, 0, 1)


def test_rows_of_nodes_are_read_through_the_sorted_sources() -> None:
    def layer(m, x, edges):
        return bgnn.segment_mean(gather(x, edges, 0), edges.select(0, 1), x.shape[0])

    gm, _ = rewritten(layer, randn(5, 3), EDGES)
    assert only(gm, aten.index_select).args[2].args[:3] == (only(gm, bgnn.edge_csr), 0, 0)


def test_weights_of_both_ends_are_made_in_the_sorted_order() -> None:
    def layer(m, x, edges):
        a, b = x.sum(1), x.amax(1)
        weight = (gather(a, edges, 0) * gather(b, edges, 1)).relu()
        return bgnn.aggregate(x, edges, weight, x.shape[0], "sum") + bgnn.aggregate(x, edges, weight, x.shape[0], "sum")

    gm, rewrites = rewritten(layer, randn(5, 3), EDGES)
    assert rewrites == 2
    assert count(gm, bgnn.edge_product) == count(gm, bgnn.edge_places) == count(gm, aten.relu) == 1
    assert len({node.args[2] for node in calls(gm.graph, bgnn.aggregate)}) == 1


def test_weights_of_the_edges_stay_in_their_order() -> None:
    def layer(m, x, edges, weight):
        return bgnn.aggregate(x, edges, weight * gather(x.sum(1), edges, 0), x.shape[0], "sum")

    gm, _ = rewritten(layer, randn(5, 3), EDGES, randn(7))
    assert count(gm, bgnn.edge_product, bgnn.edge_places) == 0


def test_other_indices_are_grouped_and_degrees_counted() -> None:
    def layer(m, x, edges):
        back = bgnn.segment_sum(gather(x, edges, 1), edges.select(0, 0), x.shape[0])
        ones = torch.full([edges.shape[1]], 2.0)
        return back * bgnn.segment_sum(ones, edges.select(0, 1), x.shape[0]).reshape(-1, 1)

    gm, rewrites = rewritten(layer, randn(5, 3), EDGES)
    assert rewrites == 2
    assert count(gm, bgnn.neighbour_table) == count(gm, bgnn.degrees) == count(gm, bgnn.edge_csr) == 1
    assert count(gm, aten.full) == 0
