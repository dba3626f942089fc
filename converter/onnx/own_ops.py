"""Message passing by this project's operators (`--kernels bgnn`; runtime_bench/kernels/ops implements them).

Edges enter as they are, and one operator sorts them by target (CSR); every aggregation over the same edges shares
it. A tensor of edges is made only where no fused operator does without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from bgnn.converter.onnx import graph_ops, int8_ops
from bgnn.converter.onnx.builder import OWN, Value
from bgnn.converter.onnx.walk import FLOAT, I32, I64, U8, Walk
from bgnn.passes.graph import arg, is_call
from bgnn.passes.neighbour_tables import COLUMNS, EDGEWISE, index_of, number_on_edges

aten = torch.ops.aten
bgnn = torch.ops.bgnn

_MOST_AXES = 4  # of what QTable takes
_TABLE_INPUT = 5  # QAggregate's, behind weight and edges
_NO_WEIGHT = {"w_scale": 1.0, "w_zero": 0}
_NO_MESSAGE = {"msg_scale": 0.0, "msg_zero": 0, "msg_low": 0, "msg_high": 255}


def _own(walk: Walk, op: str, inputs: Sequence[Value | None], dtype: Any, **attributes: Any) -> Any:
    return walk.builder.op(op, inputs, dtype, domain=OWN, **attributes)


def _csr(walk: Walk, edges: fx.Node, size: int | fx.Node) -> tuple[Value, Value, Value]:
    """A list of edges sorted by target: the rows' bounds, the sources, and each entry's place in the list."""
    key = ("csr", edges, size)
    if key not in walk.shared:
        looped = is_call(edges, bgnn.with_self_loops) and arg(edges, 2, "loops", "one") == "one"
        one_each = looped and edges.args[1] is size  # in a bipartite layer only nodes that both sides have get a loop
        listed = cast(fx.Node, edges.args[0]) if one_each else edges
        inputs = [walk.value(listed), walk.size(size)]
        kind = "add_remaining" if one_each else "none"
        walk.shared[key] = _own(walk, "CooToCsr", inputs, [I32, I32, I32], self_loops=kind)
    return walk.shared[key]


def _grouped(walk: Walk, index: fx.Node, size: int | fx.Node) -> tuple[Value, Value]:
    """The elements sorted by segment: the segments' bounds, and each entry's place among the elements."""
    found = index_of(index)
    if found is not None and found.row == 1:
        indptr, _, places = _csr(walk, found.source, size)
        return indptr, places
    key = ("index", index, size)
    if key not in walk.shared:
        walk.shared[key] = _own(walk, "IndexToCsr", [walk.value(index), walk.size(size)], [I32, I32])
    return walk.shared[key]


def _rows_and_graph(walk: Walk, values: fx.Node, index: fx.Node, size: int | fx.Node) -> list[Value]:
    """What an aggregation reads: rows of nodes through the sources where edges only repeat them, else of edges."""
    target = index_of(index)
    if is_call(values, aten.index_select) and target is not None and target.row == 1:
        source = index_of(cast(fx.Node, values.args[2]))
        if source is not None and source.source is target.source and source.row == 0:
            indptr, sources, _ = _csr(walk, target.source, size)
            return [walk.value(cast(fx.Node, values.args[0])), indptr, sources]
    return [walk.value(values), *_grouped(walk, index, size)]


def _degrees(walk: Walk, index: fx.Node, size: int | fx.Node, one: float) -> Value:
    """The number of each segment's elements, times a number."""
    bounds, _ = _grouped(walk, index, size)
    count = _own(walk, "Degree", [bounds], FLOAT)
    return count if one == 1 else walk.op("Mul", [count, walk.constant(np.float32(one))], FLOAT)


def _weight(walk: Walk, weight: fx.Node, edges: fx.Node, size: int | fx.Node) -> list[Value]:
    """The edges' weights as an aggregation reads them: in the order of its entries, or with their places."""
    key = ("weight", weight, size)
    if key not in walk.shared:
        products: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
        if _by_nodes(weight, edges, products):
            walk.shared[key] = [_in_csr_order(walk, weight, edges, size, products)]
        else:
            walk.shared[key] = [walk.value(weight), _csr(walk, edges, size)[2]]
    return walk.shared[key]


def _by_nodes(node: fx.Node, edges: fx.Node, products: dict[fx.Node, tuple[fx.Node, fx.Node]]) -> bool:
    """Whether weights are functions of `a[source] * b[target]` (GCN's are); finds these products."""
    if node.op == "get_attr":
        return node.meta["val"].numel() == 1
    if is_call(node, aten.mul):
        ends = [_end(a, edges) for a in node.args[:2]]
        found = {row: vector for row, vector in ends if vector is not None}
        if set(found) == {0, 1}:
            products[node] = (found[0], found[1])
            return True
    inputs = node.all_input_nodes
    if not inputs or not is_call(node, *EDGEWISE, *COLUMNS, bgnn.quantize, bgnn.fake_quant):
        return False
    return all(_by_nodes(source, edges, products) for source in inputs)


def _end(node: Any, edges: fx.Node) -> tuple[int | None, fx.Node | None]:
    """(row of the edges, vector) where `node` is a number of each node, at one end of each edge."""
    if not is_call(node, aten.index_select):
        return None, None
    vector, index = cast(fx.Node, node.args[0]), index_of(cast(fx.Node, node.args[2]))
    if index is None or index.source is not edges or vector.meta["val"].dim() != 1:
        return None, None
    return index.row, vector


def _in_csr_order(
    walk: Walk, weight: fx.Node, edges: fx.Node, size: int | fx.Node, products: dict[fx.Node, tuple[fx.Node, fx.Node]]
) -> Value:
    """Weights made anew in the order of the aggregation's entries."""
    indptr, sources, _ = _csr(walk, edges, size)
    made: dict[fx.Node, Value] = {}

    def find(node: fx.Node) -> Value | None:
        if node not in made:
            if node in products:
                with walk.outside():
                    source, target = (walk.value(vector) for vector in products[node])
                made[node] = _own(walk, "EdgeProduct", [source, indptr, sources, target], FLOAT)
            elif node.op == "call_function" and _by_nodes(node, edges, {}):
                made[node] = walk.value(cast(fx.Node, node.args[0])) if is_call(node, *COLUMNS) else walk.lower(node)
            else:
                return None
        return made[node]

    before, walk.find = walk.find, find
    try:
        return walk.value(weight)
    finally:
        walk.find = before


def with_self_loops(walk: Walk, node: fx.Node, edges: fx.Node, size: int | fx.Node, loops: str = "one") -> Value:
    """WithSelfLoops, which gives each node one; stock operators for the other kinds."""
    if loops != "one":
        return graph_ops.with_self_loops(walk, node, edges, size, loops)
    return _own(walk, "WithSelfLoops", [walk.value(edges), walk.size(size)], I64)


def _segment(reduce: str) -> Callable[..., Value]:
    def lower(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
        one = number_on_edges(values)
        if reduce == "sum" and one is not None:
            return _degrees(walk, index, size, one)
        return _own(walk, "Aggregate", _rows_and_graph(walk, values, index, size), FLOAT, reduce=reduce)

    return lower


def _q_segment(reduce: str) -> Callable[..., Value]:
    def lower(
        walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int | fx.Node,
        y_scale: float, y_zero: int, low: int, high: int,
    ) -> Value:  # fmt: skip
        return _own(
            walk, "QAggregate", _rows_and_graph(walk, m, index, size), U8, reduce=reduce, x_scale=float(m_scale),
            x_zero=m_zero, y_scale=float(y_scale), y_zero=y_zero, low=low, high=high, **_NO_WEIGHT, **_NO_MESSAGE,
        )  # fmt: skip

    return lower


def q_segment_sum_float(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int | fx.Node
) -> Value:
    """AggregateInt32, and its sums times m_scale."""
    rows, *graph = _rows_and_graph(walk, m, index, size)
    codes = walk.op("Sub", [walk.cast(rows, I32), walk.constant(np.int32(m_zero))], I32)
    total = walk.cast(_own(walk, "AggregateInt32", [codes, *graph], I32), FLOAT)
    return walk.op("Mul", [total, walk.constant(np.float32(m_scale))], FLOAT)


def q_segment_max(walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, index: fx.Node, size: int | fx.Node) -> Value:
    """QAggregate by maximum, which leaves codes as they are."""
    return _q_segment("max")(walk, node, m, 1.0, m_zero, index, size, 1.0, m_zero, 0, 255)


def segment_softmax(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
    """SegmentSoftmax, over edges in their order."""
    return _own(walk, "SegmentSoftmax", [walk.value(values), *_grouped(walk, index, size)], FLOAT)


def aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, edges: fx.Node, weight: fx.Node | None, size: int | fx.Node, reduce: str
) -> Value:
    """Aggregate."""
    indptr, sources, _ = _csr(walk, edges, size)
    inputs = [walk.value(x), indptr, sources, *(_weight(walk, weight, edges, size) if weight is not None else [])]
    return _own(walk, "Aggregate", inputs, FLOAT, reduce=reduce)


def q_aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, edges: fx.Node, weight: fx.Node | None,
    w_scale: float, w_zero: int, msg_scale: float, msg_zero: int, msg_low: int, msg_high: int,
    y_scale: float, y_zero: int, low: int, high: int, size: int | fx.Node, table: fx.Node | None,
) -> Value:  # fmt: skip
    """QAggregate."""
    indptr, sources, _ = _csr(walk, edges, size)
    inputs: list[Value | None] = [walk.value(x), indptr, sources]
    if weight is not None:
        inputs += _weight(walk, weight, edges, size)
    if table is not None:
        inputs += [None] * (_TABLE_INPUT - len(inputs)) + [walk.value(table)]
    return _own(
        walk, "QAggregate", inputs, U8, reduce="sum", x_scale=float(x_scale), x_zero=x_zero, w_scale=float(w_scale),
        w_zero=w_zero, msg_scale=float(msg_scale), msg_zero=msg_zero, msg_low=msg_low, msg_high=msg_high,
        y_scale=float(y_scale), y_zero=y_zero, low=low, high=high,
    )  # fmt: skip


def q_table(walk: Walk, node: fx.Node, x: fx.Node, table: fx.Node) -> Value:
    """QTable; what has more axes than it takes is a Gather, as with stock operators."""
    if not 1 <= walk.rank(node) <= _MOST_AXES:
        return int8_ops.q_table(walk, node, x, table)
    return _own(walk, "QTable", [walk.value(x), walk.value(table)], U8)


def requantize(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, slope: float, y_scale: float, y_zero: int,
    low: int, high: int,
) -> Value:  # fmt: skip
    """QTable: of one code."""
    quantisers = x_scale, x_zero, slope, y_scale, y_zero, low, high
    if not 1 <= walk.rank(node) <= _MOST_AXES:
        return int8_ops.requantize(walk, node, x, *quantisers)
    table = torch.ops.bgnn.requantize(torch.arange(256, dtype=torch.uint8), *quantisers)
    return _own(walk, "QTable", [walk.value(x), walk.constant(table[None].numpy())], U8)


def gat_aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, source_score: fx.Node, target_score: fx.Node, edges: fx.Node,
    size: int | fx.Node, negative_slope: float,
) -> Value:  # fmt: skip
    """GatAggregate."""
    indptr, sources, _ = _csr(walk, edges, size)
    inputs = [walk.value(x), indptr, sources, walk.value(source_score), walk.value(target_score)]
    return _own(walk, "GatAggregate", inputs, FLOAT, negative_slope=float(negative_slope))


def q_gat_aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, source_score: fx.Node, target_score: fx.Node,
    edges: fx.Node, score_scale: float, score_zero: int, score_low: int, score_high: int, negative_slope: float,
    msg_scale: float, msg_zero: int, msg_low: int, msg_high: int,
    y_scale: float, y_zero: int, low: int, high: int, size: int | fx.Node,
) -> Value:  # fmt: skip
    """QGatAggregate."""
    indptr, sources, _ = _csr(walk, edges, size)
    inputs = [walk.value(x), indptr, sources, walk.value(source_score), walk.value(target_score)]
    return _own(
        walk, "QGatAggregate", inputs, U8, x_scale=float(x_scale), x_zero=x_zero, score_scale=float(score_scale),
        score_zero=score_zero, score_low=score_low, score_high=score_high, negative_slope=float(negative_slope),
        msg_scale=float(msg_scale), msg_zero=msg_zero, msg_low=msg_low, msg_high=msg_high,
        y_scale=float(y_scale), y_zero=y_zero, low=low, high=high,
    )  # fmt: skip


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.with_self_loops.default": with_self_loops,
    "bgnn.segment_sum.default": _segment("sum"),
    "bgnn.segment_mean.default": _segment("mean"),
    "bgnn.segment_max.default": _segment("max"),
    "bgnn.segment_softmax.default": segment_softmax,
    "bgnn.q_segment_sum.default": _q_segment("sum"),
    "bgnn.q_segment_sum_float.default": q_segment_sum_float,
    "bgnn.q_segment_mean.default": _q_segment("mean"),
    "bgnn.q_segment_max.default": q_segment_max,
    "bgnn.aggregate.default": aggregate,
    "bgnn.q_aggregate.default": q_aggregate,
    "bgnn.q_table.default": q_table,
    "bgnn.requantize.default": requantize,
    "bgnn.gat_aggregate.default": gat_aggregate,
    "bgnn.q_gat_aggregate.default": q_gat_aggregate,
}
