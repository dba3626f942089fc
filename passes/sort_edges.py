"""Edges sorted by target (CSR), for `--kernels bgnn`: one operator sorts them, every aggregation over them shares it.

    aggregate(x, edges, w, n)                  aggregate(x, edge_csr(edges, n), w, n)
    segment_sum(values, edges[1], n)           segment_sum(values, edge_csr(edges, n)[1], n)
    segment_sum(values, index, n)              segment_sum(values, neighbour_table(index, n), n)
    w = f(a[edges[0]] * b[edges[1]])           index_select(f(edge_product(a, edge_csr, b)), edge_places)

Weights that are functions of products of two numbers of nodes (GCN's norms) are made in the sorted order, from which
an aggregation reads them. Exact: the sort keeps the order of a node's edges.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from bgnn.passes import ops
from bgnn.passes.graph import PassResult, call, calls, is_call, remove_dead_code, replace
from bgnn.passes.neighbour_tables import COLUMNS, EDGEWISE, copied, index_of, number_on_edges, operands

NEEDS = ("segment_sum", "segment_mean", "segment_max", "segment_softmax", "q_segment_sum", "q_segment_sum_float",
         "q_segment_mean", "q_segment_max", "aggregate", "gat_aggregate", "q_aggregate", "q_gat_aggregate")  # fmt: skip
MAKES = ("edge_csr", "edge_product", "edge_places", "neighbour_table", "degrees")

aten = torch.ops.aten
bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Names what the aggregations' operators are given."""
    result, sort = PassResult(), _Sort()
    for node in calls(gm.graph, *ops.having("segment")):
        if is_call(node, *ops.having("fused")):
            _fused(node, sort)
        else:
            _segment(node, sort)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _segment(node: fx.Node, sort: _Sort) -> None:
    values, index, size = operands(node)
    found = index_of(index)
    if found is None or found.row != 1:
        grouped = sort.once(node, bgnn.neighbour_table.default, index, size, 1, False)
    else:
        csr = sort.once(node, bgnn.edge_csr.default, found.source, size)
        grouped = sort.once(node, aten.select.int, csr, 0, 1)
        if (rows := _sources(values, found.source)) is not None:
            ends = sort.once(node, aten.select.int, csr, 0, 0)
            node.replace_input_with(values, sort.once(node, aten.index_select.default, rows, 0, ends))
    number = number_on_edges(values) if is_call(node, bgnn.segment_sum) else None
    if number is None:
        node.replace_input_with(index, grouped)
    else:
        counted = sort.once(node, bgnn.degrees.default, grouped, size)
        replace(node, counted if number == 1 else call(node, aten.mul.Tensor, counted, number))


def _fused(node: fx.Node, sort: _Sort) -> None:
    at = {one.name: place for place, one in enumerate(cast(Any, node.target)._schema.arguments)}
    edges = cast(fx.Node, node.args[at["edge_index"]])
    csr = sort.once(node, bgnn.edge_csr.default, edges, node.args[at["n"]])
    weight = node.args[at["weight"]] if "weight" in at else None
    if isinstance(weight, fx.Node) and sort.by_nodes(weight, edges):
        places = sort.once(node, bgnn.edge_places.default, sort.once(node, aten.select.int, csr, 0, 1))
        made = sort.sorted(node, weight, edges, csr)
        node.replace_input_with(weight, sort.once(node, aten.index_select.default, made, 0, places))
    node.replace_input_with(edges, csr)


def _sources(values: fx.Node, edges: fx.Node) -> fx.Node | None:
    """x, where values are its rows at the edges' sources."""
    if not is_call(values, aten.index_select):
        return None
    index = index_of(cast(fx.Node, values.args[2]))
    here = index is not None and index.source is edges and index.row == 0
    return cast(fx.Node, values.args[0]) if here else None


class _Sort:
    """What was made, once for all aggregations."""

    def __init__(self) -> None:
        self.made: dict[Any, fx.Node] = {}

    def once(self, before: fx.Node, op: Any, *args: Any) -> fx.Node:
        key = (op, *args)
        if key not in self.made:
            self.made[key] = call(before, op, *args)
            self.made[key]._rename(str(op).split(".")[1].removeprefix("edge_"))
        return self.made[key]

    def by_nodes(self, node: fx.Node, edges: fx.Node) -> bool:
        """Whether weights are functions of `a[source] * b[target]` (GCN's are)."""
        if node.op == "get_attr":
            return bool(node.meta["val"].numel() == 1)
        if _product(node, edges) is not None:
            return True
        inputs = node.all_input_nodes
        if not inputs or not is_call(node, *EDGEWISE, *COLUMNS, bgnn.quantize, bgnn.fake_quant):
            return False
        return all(self.by_nodes(source, edges) for source in inputs)

    def sorted(self, before: fx.Node, node: fx.Node, edges: fx.Node, csr: fx.Node) -> fx.Node:
        """Weights in the order of `csr`; a column is a list."""
        key = ("sorted", node, csr)
        if key not in self.made:
            ends = _product(node, edges)
            if ends is not None:
                self.made[key] = self.once(before, bgnn.edge_product.default, ends[0], csr, ends[1])
            elif node.op == "get_attr":
                return node
            elif is_call(node, *COLUMNS):
                self.made[key] = self.sorted(before, cast(fx.Node, node.args[0]), edges, csr)
            else:
                inputs = {one: self.sorted(before, one, edges, csr) for one in node.all_input_nodes}
                self.made[key] = copied(node, inputs, before)
                self.made[key].meta.pop("tap", None)  # the same numbers elsewhere
        return self.made[key]


def _product(node: fx.Node, edges: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(a, b) of `a[source] * b[target]`, a number for each node."""
    if not is_call(node, aten.mul):
        return None
    found: dict[int | None, fx.Node] = {}
    for end in node.args[:2]:
        if is_call(end, aten.index_select):
            vector, index = (cast(fx.Node, cast(fx.Node, end).args[at]) for at in (0, 2))
            of = index_of(index)
            if of is not None and of.source is edges and vector.meta["val"].dim() == 1:
                found[of.row] = vector
    return (found[0], found[1]) if set(found) == {0, 1} else None
