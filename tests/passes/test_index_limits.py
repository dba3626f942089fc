"""What the values of index inputs name rows of: followed from each use, whatever the shapes are."""

from __future__ import annotations

import pytest
import torch
from onnx_graphs import open_graph

from bgnn.passes.index_limits import group_inputs, limits

bgnn = torch.ops.bgnn
aten = torch.ops.aten
EDGES = torch.zeros(2, 9, dtype=torch.int64)


def named(gm):
    """{(input, row): [an input that has so many rows, or the number]}."""
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    rows = {str(node.meta["val"].shape[0]): node.name for node in reversed(inputs)}
    found = limits(gm.graph).items()
    return {(node.name, row): [rows.get(str(size), size) for size in sizes] for (node, row), sizes in found}


def test_sources_and_targets_of_different_kinds():
    def layer(m, x, y, edges):
        source, target = edges.unbind(0)
        return torch.zeros(y.shape[0], 4).index_add(0, target, x[source]) + y

    gm = open_graph(layer, torch.ones(12, 4), torch.ones(12, 4), EDGES)
    x, y, edges = (node.name for node in gm.graph.nodes if node.op == "placeholder")
    assert named(gm) == {(edges, 0): [x], (edges, 1): [y]}


@pytest.mark.parametrize(
    "ends",
    [
        lambda edges: [part.squeeze(0) for part in edges.chunk(2)],
        lambda edges: [edges.flip(0)[1], edges.flip(0)[0]],
        lambda edges: [edges.reshape(-1)[: edges.size(1)], edges.reshape(-1)[edges.size(1) :]],
    ],
    ids=["chunk", "flip", "flat"],
)
def test_rows_by_what_they_turn_out_to_be(ends):
    """In the exported graph, which no pass has put into one spelling."""

    def layer(m, x, y, edges):
        source, target = ends(edges)
        return torch.zeros(y.shape[0], 4).index_add(0, target, x[source]) + y

    gm = open_graph(layer, torch.ones(12, 4), torch.ones(7, 4), EDGES)
    x, y, edges = (node.name for node in gm.graph.nodes if node.op == "placeholder")
    assert named(gm) == {(edges, 0): [x], (edges, 1): [y]}


def test_both_rows_gather_from_two_tensors_and_a_vector_has_one():
    def layer(m, x, y, edges, kind):
        pairs = edges.t()
        both = x.index_select(0, pairs[:, 0]) * x.index_select(0, pairs[:, 1]) + y.index_select(0, edges[0])
        return bgnn.segment_sum(both, edges[1], x.shape[0]) + torch.nn.functional.embedding(kind, m.table)

    gm = open_graph(
        layer, torch.ones(12, 4), torch.ones(7, 4), EDGES, torch.zeros(12, dtype=torch.int64), table=torch.ones(50, 4)
    )
    x, y, edges, kind = (node.name for node in gm.graph.nodes if node.op == "placeholder")
    found = named(gm)
    assert sorted(found[edges, 0]) == sorted([x, y])
    assert found[edges, 1] == [x]
    assert found[kind, None] == [50]


def test_through_other_self_loops_and_fused_operators():
    def layer(m, x, y, edges):
        looped = bgnn.with_self_loops(edges, x.shape[0])
        return bgnn.aggregate(x, looped, None, y.shape[0], "sum")

    gm = open_graph(layer, torch.ones(12, 4), torch.ones(7, 4), EDGES)
    x, y, edges = (node.name for node in gm.graph.nodes if node.op == "placeholder")
    assert named(gm) == {(edges, 0): [x], (edges, 1): [y]}


def test_what_is_computed_of_an_index_is_not_its_values():
    gm = open_graph(lambda m, x, index: x.index_select(0, index // 2), torch.ones(12, 4), torch.zeros(9).long())
    assert named(gm) == {}


def test_a_column_of_categories_says_nothing_of_the_others():
    """OGB's encoders: each column of an atom's categories has a table of its own."""

    def encoder(m, x):
        return sum(torch.nn.functional.embedding(x[:, i], t) for i, t in enumerate((m.many, m.few)))

    gm = open_graph(encoder, torch.zeros(12, 2, dtype=torch.int64), many=torch.ones(30, 4), few=torch.ones(5, 4))
    assert named(gm) == {}


ROWS, GROUP = torch.ones(12, 4), torch.arange(12) // 4
GROUPS = {
    "compared": lambda m, x, g: (g[:, None] == g[None]).float() @ x,
    "as numbers": lambda m, x, g: ((g.float().view(-1, 1) - g.view(1, -1)).abs() < 0.5).float() @ x,
    "one-hot, multiplied": lambda m, x, g: m.eye[g] @ m.eye[g].t() @ x,
    "summed by": lambda m, x, g: torch.zeros(3, 4).index_add(0, g, x),
    "summed by, scattered": lambda m, x, g: torch.zeros(3, 4).scatter_add(0, g[:, None].expand(-1, 4), x),
}
NONE = {
    "labels of a table": lambda m, x, g: x + m.eye[g].sum(1, keepdim=True),
    "one class of each row": lambda m, x, g: x + torch.zeros(x.shape[0], 4).scatter(1, g[:, None], 1.0),
    "rows that are picked": lambda m, x, g: x[g],
    "compared with a number": lambda m, x, g: torch.where(g[:, None] == 2, x, 0.0),
}


@pytest.mark.parametrize("name", [*GROUPS, *NONE])
def test_what_tells_rows_apart_into_groups(name):
    """A batch vector's length is a number of nodes, whatever is done with it; labels say nothing of rows."""
    gm = open_graph({**GROUPS, **NONE}[name], ROWS, GROUP, eye=torch.eye(3))
    batch = [node for node in gm.graph.nodes if node.op == "placeholder"][1]
    assert group_inputs(gm.graph) == ([batch] if name in GROUPS else [])
