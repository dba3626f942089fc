"""The project's own operators as TFLite custom operators, which its delegate runs: see `converter.own_operators`.

Options are flexbuffer maps of integers, as LCE's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import fx

from bgnn.converter.code_operands import packed_weights
from bgnn.converter.own_operators import MOST_AXES, Lowering, OwnOperators, fits
from bgnn.converter.tflite import builtin_ops, graph_ops, int8_ops
from bgnn.converter.tflite.builder import Codes, Value
from bgnn.converter.tflite.lce_ops import flexbuffer
from bgnn.converter.tflite.walk import FLOAT, INT, INT8, SHIFT, Walk
from bgnn.passes.graph import arg, is_call

aten = torch.ops.aten
bgnn = torch.ops.bgnn


class _Operators(OwnOperators):
    stock = int8_ops

    def add(
        self, walk: Walk, node: fx.Node, op: str, inputs: Sequence[Value | None],
        codes: tuple[float, int] | None = None, **attributes: Any,
    ) -> Value:  # fmt: skip
        return _own(walk, op, inputs, walk.shape(node), walk.dtype(node), codes, **attributes)

    def csr(self, walk: Walk, edges: fx.Node) -> tuple[Value, Value, Value]:
        """The last two have room for all edges that there could be."""
        listed, size = cast(fx.Node, edges.args[0]), edges.args[1]
        nodes = walk.known(size)
        key = ("csr", listed, nodes)
        if key not in walk.shared:
            looped = is_call(listed, bgnn.with_self_loops) and arg(listed, 2, "loops", "one") == "one"
            one_each = looped and str(listed.args[1]) == str(size)
            value = walk.value(cast(fx.Node, listed.args[0]) if one_each else listed)
            entries = value.shape[1] + (nodes if one_each else 0)
            outs = [walk.result(shape, INT) for shape in ((nodes + 1,), (entries,), (entries,))]
            options = flexbuffer({"self_loops": "add_remaining" if one_each else "none"})
            walk.builder.custom("BgnnCooToCsr", [value, walk.indices([nodes])], outs, options)
            walk.shared[key] = tuple(outs)
        return cast(tuple[Value, Value, Value], walk.shared[key])

    def grouped(self, walk: Walk, index: fx.Node, size: int) -> tuple[Value, Value]:
        if is_call(index, aten.select) and is_call(index.args[0], bgnn.edge_csr):
            bounds, _, places = self.csr(walk, cast(fx.Node, index.args[0]))
            return bounds, places
        key = ("grouped", index, size)
        if key not in walk.shared:
            value = walk.value(index)
            outs = [walk.result((size + 1,), INT), walk.result(value.shape, INT)]
            walk.builder.custom("BgnnIndexToCsr", [value, walk.indices([size])], outs, b"")
            walk.shared[key] = tuple(outs)
        return cast(tuple[Value, Value], walk.shared[key])

    def segment(self, reduce: str) -> Lowering:
        own, stock = super().segment(reduce), graph_ops.LOWERINGS[f"bgnn.segment_{reduce}.default"]

        def lower(walk: Walk, node: fx.Node, values: fx.Node, *rest: Any) -> Any:
            takes = walk.dtype(node) == FLOAT and len(walk.shape(values)) <= MOST_AXES
            return (own if takes else stock)(walk, node, values, *rest)

        return lower

    def q_segment_max(self, walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, index: fx.Node, size: int) -> Value:
        value = super().q_segment_max(walk, node, m, m_zero, index, size)
        return walk.recoded(value, walk.value(m).codes or Codes((1.0,)))


def _own(
    walk: Walk, op: str, inputs: Sequence[Value | None], shape: Sequence[int], dtype: Any,
    codes: tuple[float, int] | None = None, **options: int | float | str,
) -> Value:  # fmt: skip
    """`codes`: the scale and the zero point of what has any; None: entries of a table."""
    given = list(inputs)
    while given[-1] is None:
        given.pop()
    scale, zero = codes or (1.0, SHIFT)
    out = walk.result(shape, dtype, Codes((float(np.float32(scale)),), zero - SHIFT) if dtype == INT8 else None)
    walk.builder.custom(f"Bgnn{op}", given, [out], flexbuffer(options) if options else b"")
    return out


def edge_csr(walk: Walk, node: fx.Node, edges: fx.Node, *_: Any) -> Value:
    """The list itself, for what reads it as such; the operators below find it sorted."""
    return walk.value(edges)


def neighbour_table(walk: Walk, node: fx.Node, index: fx.Node, *_: Any) -> Value:
    """The index itself, which is sorted for what reads it."""
    return walk.value(index)


def edge_product(walk: Walk, node: fx.Node, a: fx.Node, edges: fx.Node, b: fx.Node) -> Value:
    """BgnnEdgeProduct."""
    bounds, sources, _ = _OWN.csr(walk, edges)
    return _own(walk, "EdgeProduct", [walk.value(a), bounds, sources, walk.value(b)], sources.shape, FLOAT)


def edge_places(walk: Walk, node: fx.Node, table: fx.Node) -> None:
    """Nothing: what is read through them stays in the order that aggregations want."""


def index_select(walk: Walk, node: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> Any:
    """The builtin's, but for what is in the edges' sorted order."""
    if is_call(index, bgnn.edge_places):
        return None
    return builtin_ops.LOWERINGS["aten.index_select.default"](walk, node, x, dim, index)


def q_segment_sum_float(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int
) -> Value:
    """BgnnAggregateInt32, and its sums times m_scale."""
    if len(walk.shape(m)) > MOST_AXES:
        return int8_ops.q_segment_sum_float(walk, node, m, m_scale, m_zero, index, size)
    rows, *graph = _OWN.rows_and_graph(walk, m, index, size)
    codes = walk.cast(walk.recoded(rows, Codes((1.0,))), INT)
    if m_zero != SHIFT:
        inputs = [codes, walk.constant(np.array(m_zero - SHIFT, INT))]
        codes = walk.op("SUB", inputs, codes.shape, INT, schema.SubOptionsT())
    total = walk.cast(_own(walk, "AggregateInt32", [codes, *graph], walk.shape(node), INT), FLOAT)
    return walk.op("MUL", [total, walk.constant(np.float32(m_scale))], total.shape, FLOAT, schema.MulOptionsT())


# --- dense layers ---

_LAYERS = (bgnn.q_linear, bgnn.q_linear_float)


def quantize(walk: Walk, node: fx.Node, x: fx.Node, scale: float, zero: int, low: int, high: int) -> Value:
    """BgnnQuantize; or nothing where one of the layers below alone reads the codes, and makes them itself."""
    if len(walk.shape(node)) > MOST_AXES:
        return int8_ops.quantize(walk, node, x, scale, zero, low, high)
    real, layer = walk.operand(x, FLOAT), walk.only_user(node)
    if layer is not None and is_call(layer, *_LAYERS) and layer.args[2] == zero and fits(node):
        walk.shared["codes of", node] = float(scale), low, high
        return real
    return _OWN.add(walk, node, "Quantize", [real], (scale, zero), scale=float(scale), zero=zero, low=low, high=high)


def _layer(
    walk: Walk, node: fx.Node, op: str, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node,
    w_zero: int, added: fx.Node | None, y_scale: float = 1.0, **result: int,
) -> Value:  # fmt: skip
    """Weights without a zero point where they are int8 without it."""
    numbers, factors = int8_ops.weights_of(walk, node, weight, w_scales)
    left = w_zero if np.abs(numbers - w_zero).max(initial=0) > 127 else 0
    value, (scale, least, most) = walk.value(x), walk.shared.get(("codes of", x), (float(x_scale), 0, 255))
    own = [None, value] if value.dtype == FLOAT else [value, None]
    weights = packed_weights((numbers - (w_zero - left)).astype(INT8))
    bias = None if added is None else walk.value(added)
    inputs = [*own, walk.constant(weights), walk.constant(np.float32(x_scale) * factors / np.float32(y_scale)), bias]
    quantiser = {"x_scale": scale, "x_zero": x_zero, "x_low": least, "x_high": most, "w_zero": left}
    return _OWN.add(walk, node, op, inputs, (y_scale, result.get("y_zero", 0)), **quantiser, **result)


def q_linear(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node, w_zero: int,
    bias: fx.Node | None, y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """BgnnQLinear."""
    layer = x, x_scale, x_zero, weight, w_scales, w_zero
    if not fits(x):
        return int8_ops.q_linear(walk, node, *layer, bias, y_scale, y_zero, low, high)
    return _layer(walk, node, "QLinear", *layer, bias, y_scale, y_zero=y_zero, low=low, high=high)


def q_linear_float(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node, w_zero: int,
    bias: fx.Node | None,
) -> Value:  # fmt: skip
    """BgnnQLinearFloat."""
    layer = x, x_scale, x_zero, weight, w_scales, w_zero
    if not fits(x):
        return int8_ops.q_linear_float(walk, node, *layer, bias)
    return _layer(walk, node, "QLinearFloat", *layer, bias)


_OWN = _Operators()
LOWERINGS: dict[str, Callable[..., Any]] = {
    **_OWN.lowerings(),
    "bgnn.edge_csr.default": edge_csr,
    "bgnn.edge_places.default": edge_places,
    "bgnn.edge_product.default": edge_product,
    "bgnn.neighbour_table.default": neighbour_table,
    "aten.index_select.default": index_select,
    "bgnn.q_segment_sum_float.default": q_segment_sum_float,
    "bgnn.quantize.default": quantize,
    "bgnn.q_linear.default": q_linear,
    "bgnn.q_linear_float.default": q_linear_float,
}
