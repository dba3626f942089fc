"""Message passing: lists of edges and segment ops, on neighbour tables (-O1) or naively.

The naive form scatters: `ScatterElements`, with an index for every element, as `torch.onnx.export` writes it.
`ScatterND` would be several times as fast, but ONNX Runtime's races when it adds with more than one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from bgnn.converter.onnx.builder import Value
from bgnn.converter.onnx.float_ops import reduce
from bgnn.converter.onnx.tables import LOWEST, Bucket
from bgnn.converter.onnx.walk import BOOL, FLOAT, I64, Walk
from bgnn.passes.graph import is_call


def with_self_loops(walk: Walk, node: fx.Node, edges: fx.Node, size: int | fx.Node, loops: str = "one") -> Value:
    """The edges between different nodes, or all, then a loop at every node."""
    kept = walk.value(edges)
    if loops != "more":
        kept = walk.op("Compress", [kept, walk.op("Not", [_is_loop(walk, edges)], BOOL)], I64, axis=1)
    if loops == "none":
        return kept
    bounds = [walk.constant(np.array(0)), walk.size(size), walk.constant(np.array(1))]
    every = walk.op("Unsqueeze", [walk.op("Range", bounds, I64), walk.indices([0])], I64)
    return walk.op("Concat", [kept, walk.op("Expand", [every, walk.indices([2, 1])], I64)], I64, axis=1)


def join_edges(walk: Walk, node: fx.Node, edges: fx.Node, rows: list[int]) -> Value:
    """The edges several times over, with these rows of theirs as sources and targets."""
    pairs = [walk.indices(list(pair)) for pair in zip(rows[::2], rows[1::2], strict=True)]
    parts = [walk.op("Gather", [walk.value(edges), pair], I64, axis=0) for pair in pairs]
    return walk.op("Concat", parts, I64, axis=1) if len(parts) > 1 else parts[0]


def _is_loop(walk: Walk, edges: fx.Node) -> Value:
    """Which edges begin and end at the same node."""
    if ("loops", edges) not in walk.shared:
        ends = [walk.op("Gather", [walk.value(edges), walk.constant(np.array(row))], I64, axis=0) for row in (0, 1)]
        walk.shared["loops", edges] = walk.op("Equal", ends, BOOL)
    return cast(Value, walk.shared["loops", edges])


def drop_loops(walk: Walk, node: fx.Node, values: fx.Node, edges: fx.Node) -> Value:
    """The rows where an edge is no loop."""
    keep = walk.op("Not", [_is_loop(walk, edges)], BOOL)
    return walk.op("Compress", [walk.value(values), keep], walk.dtype(node), axis=0)


def loop_rows(walk: Walk, node: fx.Node, values: fx.Node, edges: fx.Node, base: fx.Node) -> Value:
    """The rows of loops, written over those of their nodes; ONNX Runtime writes one after the other."""
    loops = _is_loop(walk, edges)
    rows = walk.op("Compress", [walk.value(values), loops], walk.dtype(node), axis=0)
    source = walk.op("Gather", [walk.value(edges), walk.constant(np.array(0))], I64, axis=0)
    index = walk.op("Compress", [source, loops], I64, axis=0)
    return scatter(walk, walk.value(base), rows, walk.rank(values), index, "none")


def node_shape(walk: Walk, node: fx.Node, size: int | fx.Node, values: Value | None = None) -> Value:
    """[n, ...] as an int64 vector; with an open number of graphs beside the nodes, the rest of `values`' shape."""
    if values is None or None not in walk.dims(node)[1:]:
        return walk.shape([size, *walk.trailing(node)])
    rest = walk.op("Shape", [values], I64, start=1)
    return walk.op("Concat", [walk.shape([size]), rest], I64, axis=0)


def scatter(walk: Walk, start: Value, values: Value, rank: int, index: Value, reduction: str) -> Value:
    """`start` [n, ...] with `values` [E, ...] reduced into its rows."""
    if rank > 1:
        index = walk.reshape(index, [-1, *[1] * (rank - 1)])
    wide = walk.op("Expand", [index, walk.op("Shape", [values], I64)], I64)
    return walk.op("ScatterElements", [start, wide, values], start.dtype, axis=0, reduction=reduction)


def zeros(
    walk: Walk, node: fx.Node, size: int | fx.Node, dtype: np.dtype, number: float = 0, values: Value | None = None
) -> Value:  # fmt: skip
    """[n, ...] of one number."""
    shape = node_shape(walk, node, size, values)
    return walk.op("Expand", [walk.constant(np.array(number, dtype=dtype)), shape], dtype)


def segment_sum(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
    """Sums over the edges of each node."""

    def in_bucket(bucket: Bucket, value: Value) -> Value:
        return reduce(walk, "ReduceSum", value, [-walk.rank(values)])

    if walk.tables is not None:
        made = walk.tables.segment(node, values, index, 0.0, 0, FLOAT, in_bucket)
        if made is not None:
            return made
    start = zeros(walk, node, size, FLOAT, values=walk.value(values))
    return scatter(walk, start, walk.value(values), walk.rank(values), walk.value(index), "add")


def segment_max(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
    """The largest over the edges of each node; 0 without edges."""

    def in_bucket(bucket: Bucket, value: Value) -> Value:
        return reduce(walk, "ReduceMax", value, [-walk.rank(values)])

    if walk.tables is not None:
        made = walk.tables.segment(node, values, index, LOWEST, 0, FLOAT, in_bucket)
        if made is not None:
            return made
    return _scattered_max(walk, node, walk.value(values), walk.rank(values), walk.value(index), size)


def _scattered_max(
    walk: Walk, node: fx.Node, values: Value, rank: int, index: Value, size: int | fx.Node, dims: Value | None = None
) -> Value:
    start = walk.op("Expand", [walk.constant(np.float32(-np.inf)), dims or node_shape(walk, node, size, values)], FLOAT)
    largest = scatter(walk, start, values, rank, index, "max")
    empty = walk.op("Equal", [largest, walk.constant(np.float32(-np.inf))], BOOL)
    return walk.op("Where", [empty, walk.constant(np.float32(0)), largest], FLOAT)


def counts(walk: Walk, index: fx.Node, size: int | fx.Node) -> Value:
    """The number of elements of each segment, at least 1: f32 [n]."""
    return walk.op("Max", [degrees(walk, index, index, size), walk.constant(np.float32(1))], FLOAT)


def degrees(walk: Walk, node: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
    """The number of elements of each segment: f32 [n]."""
    if walk.tables is not None and index in walk.tables.sets:
        return walk.cast(walk.tables.sets[index].field("counts"), FLOAT)
    rows = walk.value(index)
    start = walk.op("Expand", [walk.constant(np.float32(0)), walk.shape([size])], FLOAT)
    ones = walk.op("Expand", [walk.constant(np.float32(1)), walk.op("Shape", [rows], I64)], FLOAT)
    return scatter(walk, start, ones, 1, rows, "add")


def neighbour_table(walk: Walk, node: fx.Node, index: fx.Node, *_: Any) -> Value:
    """The index; with -O1 `TableForm` reads the node, and nothing asks for its tensor."""
    return walk.value(index)


def _order(walk: Walk, node: fx.Node, table: fx.Node) -> Value:
    """Positions in the list of edges, in the table's order, and back; without tables that is the list's own."""
    if walk.tables is not None:
        assert is_call(node, torch.ops.bgnn.edge_order), "places are read in a bucket"
        return walk.tables.sets[table].field("order")
    rows = walk.reshape(walk.op("Shape", [walk.value(table)], I64), [])
    return walk.op("Range", [walk.constant(np.array(0)), rows, walk.constant(np.array(1))], I64)


def edge_list(walk: Walk, node: fx.Node, table: fx.Node, edges: fx.Node) -> Value:
    """The edges in the table's order."""
    return walk.tables.sets[table].field("list") if walk.tables is not None else walk.value(edges)


def segment_mean(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
    """The sum by the number of edges."""
    total = segment_sum(walk, node, values, index, size)
    count = walk.reshape(counts(walk, index, size), [-1, *[1] * (walk.rank(values) - 1)])
    return walk.op("Div", [total, count], FLOAT)


def segment_softmax(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int | fx.Node) -> Value:
    """exp(v - max) by its sum + 1e-16, over the edges of each node. In a bucket, over axis 1 of the table."""
    rank = walk.rank(values)
    if walk.bucket is not None:
        value = walk.bucket.free_entries_hold(values, LOWEST)
        largest = reduce(walk, "ReduceMax", value, [-rank], keep=True)
        powers = walk.op("Exp", [walk.op("Sub", [value, largest], FLOAT)], FLOAT)
        total = reduce(walk, "ReduceSum", powers, [-rank], keep=True)
    else:
        value, rows = walk.value(values), walk.value(index)
        sizes = node_shape(walk, node, size, value)
        largest = _scattered_max(walk, node, value, rank, rows, size, sizes)
        largest = walk.op("Gather", [largest, rows], FLOAT, axis=0)
        powers = walk.op("Exp", [walk.op("Sub", [value, largest], FLOAT)], FLOAT)
        start = walk.op("Expand", [walk.constant(np.float32(0)), sizes], FLOAT)
        total = walk.op("Gather", [scatter(walk, start, powers, rank, rows, "add"), rows], FLOAT, axis=0)
    return walk.op("Div", [powers, walk.op("Add", [total, walk.constant(np.float32(1e-16))], FLOAT)], FLOAT)


def index_put(
    walk: Walk, node: fx.Node, x: fx.Node, indices: list[fx.Node | None], values: fx.Node, accumulate: bool = False
) -> Value:
    """`x[i, j] = value` of a matrix, or `+=`: an adjacency matrix made of edges. Written, or summed, one by one.

    So are the rows of `x[i] = rows`.
    """
    found = [index for index in indices if index is not None]
    if len(indices) == len(found) == 1 and walk.rank(found[0]) == 1 and walk.dtype(found[0]) != BOOL:
        start, places = walk.value(x), walk.reshape(walk.value(found[0]), [-1, 1])
        shape = [walk.op("Shape", [places], I64), walk.op("Shape", [start], I64)]
        ends = [walk.constant(np.array([end])) for end in (0, 1, np.iinfo(np.int64).max)]
        first, rest = (walk.op("Slice", [s, *ends[i : i + 2]], I64) for i, s in enumerate(shape))
        rows = walk.op(
            "Expand", [walk.operand(values, start.dtype), walk.op("Concat", [first, rest], I64, axis=0)], start.dtype
        )
        how = "add" if accumulate else "none"
        return walk.op("ScatterND", [start, places, rows], start.dtype, reduction=how)
    vectors = len(found) == len(indices) == walk.rank(x) == 2
    if not vectors or any(walk.rank(one) != 1 or walk.dtype(one) == BOOL for one in found):
        walk.refuse(node, "writes to parts of a tensor", "use torch.where, or write x[i, j] of a matrix")
    start = walk.value(x)
    columns = walk.op("Gather", [walk.op("Shape", [start], I64), walk.constant(np.array(1))], I64)
    rows = walk.op("Mul", [walk.value(found[0]), columns], I64)
    places = walk.op("Add", [rows, walk.value(found[1])], I64)
    written = walk.op("Expand", [walk.value(values), walk.op("Shape", [places], I64)], start.dtype)
    flat = [walk.reshape(start, [-1]), places, written]
    done = walk.op("ScatterElements", flat, start.dtype, axis=0, reduction="add" if accumulate else "none")
    return walk.op("Reshape", [done, walk.op("Shape", [start], I64)], start.dtype)


def cumsum(walk: Walk, node: fx.Node, x: fx.Node, dim: int, *_: Any) -> Value:
    """Sums of all elements up to each."""
    axis = walk.constant(np.array(walk.axis(x, dim)))
    return walk.op("CumSum", [walk.cast(walk.value(x), walk.dtype(node)), axis], walk.dtype(node))


def item(walk: Walk, node: fx.Node, x: fx.Node) -> Value:
    """A tensor of one element as a size."""
    return walk.reshape(walk.cast(walk.value(x), I64), [])


def max_all(walk: Walk, node: fx.Node, x: fx.Node) -> Value:
    """The largest element."""
    return walk.op("ReduceMax", [walk.value(x)], walk.dtype(node), keepdims=0)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.with_self_loops.default": with_self_loops,
    "bgnn.join_edges.default": join_edges,
    "bgnn.drop_loops.default": drop_loops,
    "bgnn.loop_rows.default": loop_rows,
    "bgnn.neighbour_table.default": neighbour_table,
    "bgnn.degrees.default": degrees,
    "bgnn.edge_order.default": _order,
    "bgnn.edge_places.default": _order,
    "bgnn.edge_list.default": edge_list,
    "bgnn.segment_sum.default": segment_sum,
    "bgnn.segment_mean.default": segment_mean,
    "bgnn.segment_max.default": segment_max,
    "bgnn.segment_softmax.default": segment_softmax,
    "aten.index_put.default": index_put,
    "aten.cumsum.default": cumsum,
    "aten._local_scalar_dense.default": item,
    "aten.max.default": max_all,
}
