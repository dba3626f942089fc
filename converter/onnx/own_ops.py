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

aten = torch.ops.aten
bgnn = torch.ops.bgnn

_MOST_AXES = 4  # of what QTable takes
_TABLE_INPUT = 5  # QAggregate's, behind weight and edges
_NO_WEIGHT = {"w_scale": 1.0, "w_zero": 0}
_NO_MESSAGE = {"msg_scale": 0.0, "msg_zero": 0, "msg_low": 0, "msg_high": 255}


def _own(walk: Walk, op: str, inputs: Sequence[Value | None], dtype: Any, **attributes: Any) -> Any:
    return walk.builder.op(op, inputs, dtype, domain=OWN, **attributes)


def edge_csr(walk: Walk, node: fx.Node, edges: fx.Node, size: int | fx.Node) -> tuple[Value, ...]:
    """CooToCsr: the rows' bounds, the sources, and each entry's place in the list. It adds the loops itself."""
    looped = is_call(edges, bgnn.with_self_loops) and arg(edges, 2, "loops", "one") == "one"
    one_each = looped and edges.args[1] is size  # in a bipartite layer only nodes that both sides have get a loop
    inputs = [walk.value(cast(fx.Node, edges.args[0]) if one_each else edges), walk.size(size)]
    kind = "add_remaining" if one_each else "none"
    return cast(tuple[Value, ...], _own(walk, "CooToCsr", inputs, [I32, I32, I32], self_loops=kind))


def neighbour_table(walk: Walk, node: fx.Node, index: fx.Node, size: int | fx.Node, *_: Any) -> tuple[Value, ...]:
    """IndexToCsr: the segments' bounds, and each entry's place among the elements."""
    return cast(tuple[Value, ...], _own(walk, "IndexToCsr", [walk.value(index), walk.size(size)], [I32, I32]))


def _grouped(walk: Walk, index: fx.Node) -> tuple[Value, Value]:
    """The elements sorted by segment: the segments' bounds, and each entry's place among the elements."""
    bounds, *_, places = walk.any_value(index if is_call(index, bgnn.neighbour_table) else cast(fx.Node, index.args[0]))
    return bounds, places


def _rows_and_graph(walk: Walk, values: fx.Node, index: fx.Node) -> list[Value]:
    """What an aggregation reads: rows of nodes through the sources where edges only repeat them, else of edges."""
    if is_call(values, aten.index_select) and is_call(index, aten.select):
        ends, csr = cast(fx.Node, values.args[2]), cast(fx.Node, index.args[0])
        if is_call(ends, aten.select) and ends.args[:3] == (csr, 0, 0):
            bounds, sources, _ = walk.any_value(csr)
            return [walk.value(cast(fx.Node, values.args[0])), bounds, sources]
    return [walk.value(values), *_grouped(walk, index)]


def degrees(walk: Walk, node: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
    """Degree."""
    return cast(Value, _own(walk, "Degree", [_grouped(walk, index)[0]], FLOAT))


def edge_product(walk: Walk, node: fx.Node, a: fx.Node, edges: fx.Node, b: fx.Node) -> Value:
    """EdgeProduct."""
    bounds, sources, _ = walk.any_value(edges)
    return cast(Value, _own(walk, "EdgeProduct", [walk.value(a), bounds, sources, walk.value(b)], FLOAT))


def _weight(walk: Walk, weight: fx.Node, edges: fx.Node) -> list[Value]:
    """The edges' weights as an aggregation reads them: in the order of its entries, or with their places."""
    if is_call(weight, aten.index_select) and is_call(weight.args[2], bgnn.edge_places):
        return [walk.value(cast(fx.Node, weight.args[0]))]
    return [walk.value(weight), walk.any_value(edges)[2]]


def with_self_loops(walk: Walk, node: fx.Node, edges: fx.Node, size: int | fx.Node, loops: str = "one") -> Value:
    """WithSelfLoops, which gives each node one; stock operators for the other kinds."""
    if loops != "one":
        return graph_ops.with_self_loops(walk, node, edges, size, loops)
    return _own(walk, "WithSelfLoops", [walk.value(edges), walk.size(size)], I64)


def _segment(reduce: str) -> Callable[..., Value]:
    def lower(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
        return _own(walk, "Aggregate", _rows_and_graph(walk, values, index), FLOAT, reduce=reduce)

    return lower


def _q_segment(reduce: str) -> Callable[..., Value]:
    def lower(
        walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int | fx.Node,
        y_scale: float, y_zero: int, low: int, high: int,
    ) -> Value:  # fmt: skip
        return _own(
            walk, "QAggregate", _rows_and_graph(walk, m, index), U8, reduce=reduce, x_scale=float(m_scale),
            x_zero=m_zero, y_scale=float(y_scale), y_zero=y_zero, low=low, high=high, **_NO_WEIGHT, **_NO_MESSAGE,
        )  # fmt: skip

    return lower


def q_segment_sum_float(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int | fx.Node
) -> Value:
    """AggregateInt32, and its sums times m_scale."""
    rows, *graph = _rows_and_graph(walk, m, index)
    codes = walk.op("Sub", [walk.cast(rows, I32), walk.constant(np.int32(m_zero))], I32)
    total = walk.cast(_own(walk, "AggregateInt32", [codes, *graph], I32), FLOAT)
    return walk.op("Mul", [total, walk.constant(np.float32(m_scale))], FLOAT)


def q_segment_max(walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, index: fx.Node, size: int | fx.Node) -> Value:
    """QAggregate by maximum, which leaves codes as they are."""
    return _q_segment("max")(walk, node, m, 1.0, m_zero, index, size, 1.0, m_zero, 0, 255)


def segment_softmax(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
    """SegmentSoftmax, over edges in their order."""
    return _own(walk, "SegmentSoftmax", [walk.value(values), *_grouped(walk, index)], FLOAT)


def aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, edges: fx.Node, weight: fx.Node | None, size: int | fx.Node, reduce: str
) -> Value:
    """Aggregate."""
    indptr, sources, _ = walk.any_value(edges)
    inputs = [walk.value(x), indptr, sources, *(_weight(walk, weight, edges) if weight is not None else [])]
    return _own(walk, "Aggregate", inputs, FLOAT, reduce=reduce)


def q_aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, edges: fx.Node, weight: fx.Node | None,
    w_scale: float, w_zero: int, msg_scale: float, msg_zero: int, msg_low: int, msg_high: int,
    y_scale: float, y_zero: int, low: int, high: int, size: int | fx.Node, table: fx.Node | None,
) -> Value:  # fmt: skip
    """QAggregate."""
    indptr, sources, _ = walk.any_value(edges)
    inputs: list[Value | None] = [walk.value(x), indptr, sources]
    if weight is not None:
        inputs += _weight(walk, weight, edges)
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
    indptr, sources, _ = walk.any_value(edges)
    inputs = [walk.value(x), indptr, sources, walk.value(source_score), walk.value(target_score)]
    return _own(walk, "GatAggregate", inputs, FLOAT, negative_slope=float(negative_slope))


def q_gat_aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, source_score: fx.Node, target_score: fx.Node,
    edges: fx.Node, score_scale: float, score_zero: int, score_low: int, score_high: int, negative_slope: float,
    msg_scale: float, msg_zero: int, msg_low: int, msg_high: int,
    y_scale: float, y_zero: int, low: int, high: int, size: int | fx.Node,
) -> Value:  # fmt: skip
    """QGatAggregate."""
    indptr, sources, _ = walk.any_value(edges)
    inputs = [walk.value(x), indptr, sources, walk.value(source_score), walk.value(target_score)]
    return _own(
        walk, "QGatAggregate", inputs, U8, x_scale=float(x_scale), x_zero=x_zero, score_scale=float(score_scale),
        score_zero=score_zero, score_low=score_low, score_high=score_high, negative_slope=float(negative_slope),
        msg_scale=float(msg_scale), msg_zero=msg_zero, msg_low=msg_low, msg_high=msg_high,
        y_scale=float(y_scale), y_zero=y_zero, low=low, high=high,
    )  # fmt: skip


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.edge_csr.default": edge_csr,
    "bgnn.neighbour_table.default": neighbour_table,
    "bgnn.degrees.default": degrees,
    "bgnn.edge_product.default": edge_product,
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
