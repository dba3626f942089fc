"""Sums over edges get neighbour tables, and what is one number for each edge is made along them: bit for bit."""

from __future__ import annotations

import pytest
import torch
from graphs import randn
from onnx_graphs import open_graph
from torch import Tensor, fx

from bgnn.converter.sizes import host_size
from bgnn.passes import neighbour_tables
from bgnn.passes.graph import Tap, calls
from bgnn.passes.graph import run as outputs

aten, bgnn = torch.ops.aten, torch.ops.bgnn
EDGES = torch.tensor([[0, 3, 3, 1, 4, 0, 2], [2, 0, 2, 2, 4, 2, 0]])


def rewritten(function, *inputs: Tensor) -> tuple[fx.GraphModule, int]:
    """The graph after the pass, which gives the same bits; and the count of rewrites."""
    count = len(result) if isinstance(result := function(None, *inputs), tuple) else 1
    gm = open_graph(function, *inputs, outputs=count)
    before = outputs(gm, inputs)
    rewrites = neighbour_tables.run(gm, host_size).rewrites
    for found, expected in zip(outputs(gm, inputs), before, strict=True):
        assert torch.equal(found, expected)
    return gm, rewrites


def tables(gm: fx.GraphModule) -> list[tuple[int, bool]]:
    """Buckets and "powers of two" of each."""
    return [(node.args[2], node.args[3]) for node in calls(gm.graph, bgnn.neighbour_table)]


def gather(x: Tensor, edges: Tensor, row: int) -> Tensor:
    return x.index_select(0, edges.select(0, row))


def test_sums_of_one_direction_share_a_table() -> None:
    def layer(m, x, edges):
        hidden = bgnn.segment_sum(gather(x, edges, 0), edges.select(0, 1), x.shape[0])
        hidden = bgnn.segment_max(gather(hidden, edges, 0).relu(), edges.select(0, 1), x.shape[0])
        return hidden + bgnn.segment_mean(gather(x, edges, 1), edges.select(0, 0), x.shape[0])

    gm, rewrites = rewritten(layer, randn(5, 3), EDGES)
    assert rewrites == 3
    assert tables(gm) == [(12, False), (12, False)]


def test_sums_of_ones_are_degrees() -> None:
    def filled(m, x, edges):
        return bgnn.segment_sum(torch.full([edges.shape[1]], 2.5), edges.select(0, 1), x.shape[0])

    gm, rewrites = rewritten(filled, randn(5, 3), EDGES)
    assert rewrites == 1
    assert len(list(calls(gm.graph, bgnn.degrees))) == 1
    assert not list(calls(gm.graph, aten.full, bgnn.segment_sum))


def test_one_number_of_each_edge_is_made_in_the_tables_order() -> None:
    def layer(m, x, edges, weight):
        norm = gather(x.sum(1), edges, 0) * weight / gather(x.amax(1), edges, 1)
        messages = norm.view(-1, 1) * gather(x, edges, 0)
        back = bgnn.segment_sum(norm.view(-1, 1) * gather(x, edges, 1), edges.select(0, 0), x.shape[0])
        return bgnn.segment_sum(messages, edges.select(0, 1), x.shape[0]) + back, messages

    gm, rewrites = rewritten(layer, randn(5, 3), EDGES, randn(7))
    assert rewrites == len(tables(gm)) == 2
    assert len(list(calls(gm.graph, bgnn.edge_places))) == len(list(calls(gm.graph, bgnn.edge_order))) == 2
    assert len(list(calls(gm.graph, aten.div))) == 3, "the output's own, in the edges' order, and one for each table"


@pytest.mark.parametrize("on", ["product", "column"])
def test_signs_of_edges_are_told_in_the_edges_order(on: str) -> None:
    """What verification compares, wherever it stands on the way to one number for each edge."""

    def layer(m, x, edges):
        norm = gather(x.sum(1), edges, 0) * gather(x.amax(1), edges, 1)
        return bgnn.segment_sum((norm.view(-1, 1) * 2) * gather(x, edges, 0), edges.select(0, 1), x.shape[0])

    inputs = (randn(5, 3), EDGES)
    gm = open_graph(layer, *inputs)
    column = next(node for node in calls(gm.graph, aten.reshape) if node.meta["val"].dim() == 2)
    (column if on == "column" else column.args[0]).meta["tap"] = Tap("norm")
    assert neighbour_tables.run(gm, host_size).rewrites == len(list(calls(gm.graph, bgnn.edge_places))) == 1
    (tapped,) = [node for node in gm.graph.nodes if "tap" in node.meta]
    expected = inputs[0].sum(1)[EDGES[0]] * inputs[0].amax(1)[EDGES[1]]
    expected = expected[:, None] if on == "column" else expected
    interpreter = fx.Interpreter(gm, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*inputs)
    assert torch.equal(interpreter.env[tapped], expected)


def test_codes_take_fewer_buckets_and_widths_that_sum_exactly() -> None:
    def layer(scale, m, x, edges):
        codes = bgnn.quantize(x, 0.1, 3, 0, 255)
        rows = gather(codes, edges, 0)
        return bgnn.q_segment_sum(rows, 0.1, 3, edges.select(0, 1), x.shape[0], scale, 3, 0, 255)

    exact = [neighbour_tables._thirds_are_exact(0.1, scale) for scale in (0.1, 0.7)]
    for scale, thirds in zip((0.1, 0.7), exact, strict=True):
        gm, _ = rewritten(lambda *a, scale=scale: layer(scale, *a), randn(5, 3), EDGES)
        assert tables(gm) == [(8, not thirds)]


@pytest.mark.parametrize("along", [0, 1])
def test_a_softmax_by_another_index_keeps_its_edges_whole(along: int) -> None:
    """A row of the table holds the edges that end at a node: a softmax over those that begin at one is not in it."""

    def layer(m, x, edges):
        shares = bgnn.segment_softmax(gather(x, edges, 0), edges.select(0, along), x.shape[0])
        return bgnn.segment_sum(shares * gather(x, edges, 0), edges.select(0, 1), x.shape[0])

    assert rewritten(layer, randn(5, 3), EDGES)[1] == along


def test_edges_that_are_needed_whole_stay() -> None:
    def sorted_edges(m, x, edges):
        return bgnn.segment_sum(gather(x, edges, 0).cumsum(0), edges.select(0, 1), x.shape[0])

    assert rewritten(sorted_edges, randn(5, 3), EDGES)[1] == 0
