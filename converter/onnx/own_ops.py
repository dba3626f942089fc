"""This project's operators in ONNX files (`--kernels bgnn`): see `converter.own_operators`.

They are the kernels of the TFLite delegate, behind ONNX Runtime's interface. Packed signs are int32 tensors in such a
file. Neighbours are int32 in the operators' inputs and outputs and int64 in the IR: a table that goes from one to the
other stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from bgnn.converter.onnx import graph_ops, int8_ops
from bgnn.converter.onnx.builder import OWN, Value
from bgnn.converter.onnx.walk import FLOAT, I32, I64, Walk
from bgnn.converter.own_operators import OwnOperators
from bgnn.passes.graph import arg, is_call

bgnn = torch.ops.bgnn


def _own(walk: Walk, op: str, inputs: Sequence[Value | None], dtype: Any, **attributes: Any) -> Any:
    return walk.builder.op(op, inputs, dtype, domain=OWN, **attributes)


class _Operators(OwnOperators):
    stock = int8_ops

    def add(
        self, walk: Walk, node: fx.Node, op: str, inputs: Sequence[Value | None], codes: Any = None, **attributes: Any
    ) -> Value:
        given = list(inputs)
        while given[-1] is None:
            given.pop()
        dtype = walk.dtype(node)
        made: Value = _own(walk, op, given, I32 if dtype == I64 else dtype, **attributes)
        if dtype == I64:  # neighbours
            wide = walk.cast(made, I64)
            walk.shared["narrow", wide.name] = made
            return wide
        return made

    def neighbours(self, walk: Walk, index: fx.Node) -> Value:
        wide = walk.value(index)
        return walk.shared.get(("narrow", wide.name)) or walk.cast(wide, I32)

    def csr(self, walk: Walk, edges: fx.Node) -> tuple[Value, Value, Value]:
        return cast(tuple[Value, Value, Value], walk.any_value(edges))

    def grouped(self, walk: Walk, index: fx.Node, size: Any) -> tuple[Value, Value]:
        sorted_ = index if is_call(index, bgnn.neighbour_table) else cast(fx.Node, index.args[0])
        bounds, *_, places = walk.any_value(sorted_)
        return bounds, places


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


def edge_product(walk: Walk, node: fx.Node, a: fx.Node, edges: fx.Node, b: fx.Node) -> Value:
    """EdgeProduct."""
    bounds, sources, _ = walk.any_value(edges)
    return cast(Value, _own(walk, "EdgeProduct", [walk.value(a), bounds, sources, walk.value(b)], FLOAT))


def with_self_loops(walk: Walk, node: fx.Node, edges: fx.Node, size: int | fx.Node, loops: str = "one") -> Value:
    """WithSelfLoops, which gives each node one; stock operators for the other kinds."""
    if loops != "one":
        return graph_ops.with_self_loops(walk, node, edges, size, loops)
    return cast(Value, _own(walk, "WithSelfLoops", [walk.value(edges), walk.size(size)], I64))


def q_segment_sum_float(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int | fx.Node
) -> Value:
    """AggregateInt32, and its sums times m_scale."""
    rows, *graph = _OWN.rows_and_graph(walk, m, index, size)
    codes = walk.op("Sub", [walk.cast(rows, I32), walk.constant(np.int32(m_zero))], I32)
    total = walk.cast(_own(walk, "AggregateInt32", [codes, *graph], I32), FLOAT)
    return walk.op("Mul", [total, walk.constant(np.float32(m_scale))], FLOAT)


def pack(walk: Walk, node: fx.Node, x: fx.Node) -> Value:
    """Pack."""
    return cast(Value, _own(walk, "Pack", [walk.operand(x, FLOAT)], I32))


def _dense(op: str) -> Callable[..., Value]:
    """A layer of packed inputs and weights, and the factors or thresholds of its results."""

    def lower(walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, channels_in: int, *more: fx.Node) -> Value:
        return _OWN.add(walk, node, op, [walk.value(one) for one in (x, weight, *more)], channels=channels_in)

    return lower


def packed_max(walk: Walk, node: fx.Node, x: fx.Node, dim: int) -> Value:
    """PackedMax over the middle of three axes."""
    sizes = [int(size) for size in x.meta["val"].shape]
    axis = dim % len(sizes)
    flat = [math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :])]
    made = _own(walk, "PackedMax", [walk.reshape(walk.value(x), flat)], I32)
    return walk.reshape(made, [*sizes[:axis], *sizes[axis + 1 :]])


_OWN = _Operators()
LOWERINGS: dict[str, Callable[..., Any]] = {
    **_OWN.lowerings(),
    "bgnn.edge_csr.default": edge_csr,
    "bgnn.neighbour_table.default": neighbour_table,
    "bgnn.edge_product.default": edge_product,
    "bgnn.with_self_loops.default": with_self_loops,
    "bgnn.q_segment_sum_float.default": q_segment_sum_float,
    "bgnn.pack.default": pack,
    "bgnn.unpack.default": _OWN.plain("Unpack"),
    "bgnn.bconv.default": _dense("BinaryDense"),
    "bgnn.bconv_bits.default": _dense("BinaryDenseBits"),
    "bgnn.packed_max.default": packed_max,
}
