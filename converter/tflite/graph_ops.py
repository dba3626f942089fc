"""Message passing by TFLite's own operators: gathers, and UNSORTED_SEGMENT_SUM and _MAX.

Of the ways that TFLite has, a segment operator is the one whose work is that of the edges there are, whatever their
degrees: a neighbour table of fixed width is as wide as the largest hub, and a matrix of nodes by nodes costs their
square (`bgnn-bench table segments` measures the three).

Sizes are those of the largest graph (converter.padding). An edge that is not there has the index -1: a segment
operator leaves it out, and a GATHER, which takes no such index, reads row 0 for it, which nothing then reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from torch import fx

from bgnn.converter.tflite.builder import Value
from bgnn.converter.tflite.walk import BOOL, FLOAT, INT, Walk, op_name

ABSENT = -1


def gather(walk: Walk, value: Value, index: Value) -> Value:
    """The rows that an index names."""
    shape = (*index.shape, *value.shape[1:])
    return walk.op("GATHER", [value, walk.rows_there(index)], shape, value.dtype, schema.GatherOptionsT(axis=0))


def reduced(walk: Walk, op: str, values: Value, index: Value, size: int) -> Value:
    """UNSORTED_SEGMENT_SUM or _MAX: `[size, ...]`; an empty segment has 0, or the lowest number."""
    number = walk.constant(np.array(size, INT))
    return walk.op(f"UNSORTED_SEGMENT_{op}", [values, index, number], (size, *values.shape[1:]), values.dtype)


def counts(walk: Walk, index: Value, size: int) -> Value:
    """The number of elements of each segment: f32 `[size]`."""
    key = ("counts", index.index, size)
    if key not in walk.shared:
        walk.shared[key] = reduced(walk, "SUM", filled(walk, index.shape, 1, FLOAT), index, size)
    return walk.shared[key]


def at_least_one(walk: Walk, index: Value, size: int) -> Value:
    """The number of elements of each segment, 1 where there are none: f32 `[size]`."""
    key = ("at least one", index.index, size)
    if key not in walk.shared:
        inputs = [counts(walk, index, size), walk.constant(np.float32(1))]
        walk.shared[key] = walk.op("MAXIMUM", inputs, (size,), FLOAT, schema.MaximumMinimumOptionsT())
    return walk.shared[key]


def filled(walk: Walk, shape: Sequence[int], number: float, dtype: np.dtype) -> Value:
    """One number everywhere."""
    if not shape:
        return walk.constant(np.array(number, dtype))
    inputs = [walk.indices(shape), walk.constant(np.array(number, dtype))]
    return walk.op("FILL", inputs, shape, dtype, schema.FillOptionsT())


def counted(walk: Walk, start: int, size: int, step: int = 1) -> Value:
    """`size` whole numbers: int32 `[size]`."""
    bounds = [walk.constant(np.array(number, INT)) for number in (start, start + step * size, step)]
    return walk.op("RANGE", bounds, (size,), INT, schema.RangeOptionsT())


def beside(walk: Walk, value: Value, rank: int) -> Value:
    """`[n]` as `[n, 1, ...]`."""
    return walk.reshape(value, (*value.shape, *[1] * (rank - value.rank)))


def segment_sum(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int) -> Value:
    return reduced(walk, "SUM", walk.value(values), walk.value(index), size)


def segment_mean(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int) -> Value:
    """The sum by the number of elements, by 1 where there are none."""
    total = segment_sum(walk, node, values, index, size)
    inputs = [total, beside(walk, at_least_one(walk, walk.value(index), size), total.rank)]
    return walk.op("DIV", inputs, total.shape, FLOAT, schema.DivOptionsT())


def segment_max(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int) -> Value:
    """The largest; 0 where there is none."""
    rows = walk.value(index)
    return _or_zero(walk, reduced(walk, "MAX", walk.value(values), rows, size), rows, size)


def _or_zero(walk: Walk, value: Value, index: Value, size: int) -> Value:
    some = walk.op("GREATER", [counts(walk, index, size), walk.constant(np.float32(0))], (size,), BOOL)
    inputs = [beside(walk, some, value.rank), value, walk.constant(np.zeros((), value.dtype))]
    return walk.op("SELECT_V2", inputs, value.shape, value.dtype)


def segment_softmax(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int) -> Value:
    """exp(v - max) by its sum + 1e-16, over the elements of each segment."""
    value, rows = walk.value(values), walk.value(index)
    largest = gather(walk, _or_zero(walk, reduced(walk, "MAX", value, rows, size), rows, size), rows)
    powers = walk.op("SUB", [value, largest], value.shape, FLOAT, schema.SubOptionsT())
    powers = walk.op("EXP", [powers], value.shape, FLOAT)
    total = reduced(walk, "SUM", powers, rows, size)
    total = walk.op("ADD", [total, walk.constant(np.float32(1e-16))], total.shape, FLOAT, schema.AddOptionsT())
    return walk.op("DIV", [powers, gather(walk, total, rows)], value.shape, FLOAT, schema.DivOptionsT())


# --- lists of edges ---


def _row(walk: Walk, edges: Value, row: int) -> Value:
    key = ("row", edges.index, row)
    if key not in walk.shared:
        size = (1, edges.shape[1])
        part = walk.op("SLICE", [edges, walk.indices([row, 0]), walk.indices(size)], size, INT, schema.SliceOptionsT())
        walk.shared[key] = walk.reshape(part, size[1:])
    return walk.shared[key]


def _is_loop(walk: Walk, edges: Value) -> Value:
    """Which edges begin and end at the same node, those that are not there among them: bool `[E]`."""
    key = ("loops", edges.index)
    if key not in walk.shared:
        ends = [_row(walk, edges, 0), _row(walk, edges, 1)]
        walk.shared[key] = walk.op("EQUAL", ends, edges.shape[1:], BOOL)
    return walk.shared[key]


def with_self_loops(walk: Walk, node: fx.Node, edges: fx.Node, size: int, loops: str = "one") -> Value:
    """The loops that go become edges that are not there, in their places; the nodes' own follow."""
    kept = walk.value(edges)
    if loops != "more":
        inputs = [
            walk.reshape(_is_loop(walk, kept), (1, kept.shape[1])),
            walk.constant(np.array(ABSENT, INT)),
            kept,
        ]
        kept = walk.op("SELECT_V2", inputs, kept.shape, INT)
    if loops != "none":
        every = walk.reshape(counted(walk, 0, size), (1, size))
        kept = walk.concatenation([kept, walk.concatenation([every, every], 0)], 1)
    return _with_gaps(walk, node, kept, None if loops == "none" else node.args[1])


def join_edges(walk: Walk, node: fx.Node, edges: fx.Node, rows: list[int]) -> Value:
    """The edges several times over, with these rows of theirs as sources and targets."""
    value = walk.value(edges)
    parts = [walk.reshape(_row(walk, value, row), (1, value.shape[1])) for row in rows]
    pairs = [walk.concatenation(list(pair), 0) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return _with_gaps(walk, node, walk.concatenation(pairs, 1), None)


def _with_gaps(walk: Walk, node: fx.Node, edges: Value, nodes: Any) -> Value:
    """Notes what tells those of a list that are there, and how long it is in the file.

    `nodes`: how many there may be, where a list has the nodes' own loops behind it; else None.
    """
    length = node.meta["val"].shape[1]
    walk.sizes.bind(length, edges.shape[1])
    walk.edges.setdefault(str(length), (_row(walk, edges, 1), nodes))
    return edges


def drop_loops(walk: Walk, node: fx.Node, values: fx.Node, edges: fx.Node) -> Value:
    """All rows: those of loops stand where the list of edges has one that is not there."""
    value = walk.value(values)
    walk.sizes.bind(node.meta["val"].shape[0], value.shape[0])
    return value


def loop_rows(walk: Walk, node: fx.Node, values: fx.Node, edges: fx.Node, base: fx.Node) -> Value:
    """The row of each node's last loop, else of `base`."""
    value, other, listed = walk.value(values), walk.value(base), walk.value(edges)
    size, number = other.shape[0], listed.shape[1]
    absent = walk.constant(np.array(ABSENT, INT))
    inputs = [_is_loop(walk, listed), _row(walk, listed, 0), absent]
    index = walk.op("SELECT_V2", inputs, (number,), INT)
    last = reduced(walk, "MAX", counted(walk, 0, number), index, size)
    some = walk.op("GREATER", [last, absent], (size,), BOOL)
    picked = gather(walk, value, last)
    return walk.op("SELECT_V2", [beside(walk, some, other.rank), picked, other], other.shape, other.dtype)


# --- numbers ---


def _one_number(place: int | float) -> Callable[..., Value]:
    """A tensor of one number, given or an argument of the call."""

    def lower(walk: Walk, node: fx.Node, *given: Any) -> Value:
        number = place if isinstance(place, float) else given[place]
        return filled(walk, walk.shape(node), number, walk.dtype(node))

    return lower


def arange(walk: Walk, node: fx.Node, *given: Any) -> Value:
    """RANGE."""
    bounds = given[: {"default": 1, "start": 2, "start_step": 3}[op_name(node).rpartition(".")[2]]]
    start, step = (0, 1) if len(bounds) == 1 else (bounds[0], (*bounds, 1)[2])
    (size,) = walk.shape(node)
    return walk.cast(counted(walk, int(start), size, int(step)), walk.dtype(node))


def no_tensor(walk: Walk, node: fx.Node, *_: Any) -> Value:
    raise AssertionError(f"{node} is a size, which stands in no file")


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.segment_sum.default": segment_sum,
    "bgnn.segment_mean.default": segment_mean,
    "bgnn.segment_max.default": segment_max,
    "bgnn.segment_softmax.default": segment_softmax,
    "bgnn.with_self_loops.default": with_self_loops,
    "bgnn.join_edges.default": join_edges,
    "bgnn.drop_loops.default": drop_loops,
    "bgnn.loop_rows.default": loop_rows,
    "aten.ones.default": _one_number(1.0),
    "aten.zeros.default": _one_number(0.0),
    "aten.full.default": _one_number(1),
    "aten.new_ones.default": _one_number(1.0),
    "aten.new_zeros.default": _one_number(0.0),
    "aten.new_full.default": _one_number(2),
    "aten.ones_like.default": _one_number(1.0),
    "aten.zeros_like.default": _one_number(0.0),
    "aten.full_like.default": _one_number(1),
    **{f"aten.arange.{kind}": arange for kind in ("default", "start", "start_step")},
    **dict.fromkeys(
        (
            "aten.sym_size.int",
            "aten._local_scalar_dense.default",
            "add",
            "sub",
            "mul",
            "floordiv",
            "sym_min",
            "sym_max",
        ),
        no_tensor,
    ),
}
