"""The project's own operators as TFLite custom operators, which its delegate runs (`--kernels bgnn`).

Inputs in the order of the dialect op's tensors; options are flexbuffer maps of integers, as LCE's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import fx

from bgnn.converter.code_operands import packed_weights, requantised
from bgnn.converter.tflite import builtin_ops, graph_ops, int8_ops
from bgnn.converter.tflite.builder import Codes, Value
from bgnn.converter.tflite.lce_ops import flexbuffer
from bgnn.converter.tflite.walk import FLOAT, INT, INT8, SHIFT, Walk
from bgnn.passes.graph import arg, is_call

aten = torch.ops.aten
bgnn = torch.ops.bgnn


def _custom(
    walk: Walk, node: fx.Node, name: str, inputs: list[fx.Node], options: Mapping[str, int], dtype: Any
) -> Value:
    out = walk.result(walk.shape(node), dtype)
    walk.builder.custom(name, [walk.value(x) for x in inputs], [out], flexbuffer(options) if options else b"")
    return out


def hamming_knn(walk: Walk, node: fx.Node, x: fx.Node, channels: int, k: int) -> Value:
    """BgnnHammingKnn: packed [B, N, W] to int32 [B, N, k]."""
    return _custom(walk, node, "BgnnHammingKnn", [x], {"channels": channels, "k": k}, INT)


def real_knn(walk: Walk, node: fx.Node, x: fx.Node, k: int) -> Value:
    """BgnnKnn: float [B, N, C] to int32 [B, N, k]."""
    return _custom(walk, node, "BgnnKnn", [x], {"k": k}, INT)


def gather_max(walk: Walk, node: fx.Node, x: fx.Node, index: fx.Node) -> Value:
    """BgnnGatherMax: float [B, N, C] and int32 [B, M, k] to float [B, M, C]."""
    return _custom(walk, node, "BgnnGatherMax", [x, index], {}, FLOAT)


def xor_edge_conv(
    walk: Walk, node: fx.Node, x: fx.Node, index: fx.Node, weight: fx.Node, thresholds: fx.Node, channels: int
) -> Value:
    """BgnnXorEdgeConv: packed [B, N, W] and a neighbour table to packed [B, N, ceil(O/32)]."""
    return _custom(walk, node, "BgnnXorEdgeConv", [x, index, weight, thresholds], {"channels": channels}, INT)


def bin_edge_conv(walk: Walk, node: fx.Node, bits: fx.Node, *tensors_and_channels: Any) -> Value:
    """BgnnBinEdgeConv: node bits, float features, neighbours, edge scale and shift, weights, the factors, slopes."""
    *tensors, channels = tensors_and_channels
    return _custom(walk, node, "BgnnBinEdgeConv", [bits, *tensors], {"channels": channels}, FLOAT)


def edge_max(walk: Walk, node: fx.Node, *tensors: fx.Node) -> Value:
    """BgnnEdgeMax: float [B, N, C] of neighbours and of nodes, the table, the factors, to float [B, N, C]."""
    return _custom(walk, node, "BgnnEdgeMax", list(tensors), {}, FLOAT)


def dense_pool(
    walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, scale: fx.Node | None, channels: int
) -> Value:  # fmt: skip
    """BgnnDensePool: packed [B, N, W] to float [B, 4, O]; with a factor per point BgnnScaledPool."""
    if scale is None:
        return _custom(walk, node, "BgnnDensePool", [x, weight], {"channels": channels}, FLOAT)
    return _custom(walk, node, "BgnnScaledPool", [x, weight, scale], {"channels": channels}, FLOAT)


# --- message passing: the operators of runtime_bench/kernels/ops, on edges sorted by target (CSR) ---

_MOST_AXES = 4
_NO_WEIGHT = {"w_scale": 1.0, "w_zero": 0}
_NO_MESSAGE = {"msg_scale": 0.0, "msg_zero": 0, "msg_low": 0, "msg_high": 255}


def _own(
    walk: Walk, op: str, inputs: Sequence[Value | None], shape: Sequence[int], dtype: Any, codes: Codes | None = None,
    **options: int | float | str,
) -> Value:  # fmt: skip
    given = list(inputs)
    while given[-1] is None:
        given.pop()
    out = walk.result(shape, dtype, codes)
    walk.builder.custom(f"Bgnn{op}", given, [out], flexbuffer(options) if options else b"")
    return out


def edge_csr(walk: Walk, node: fx.Node, edges: fx.Node, *_: Any) -> Value:
    """The list itself, for what reads it as such; the operators below find it sorted by `_csr`."""
    return walk.value(edges)


def _csr(walk: Walk, csr: fx.Node) -> tuple[Value, Value, Value]:
    """A list of edges sorted by target: the rows' bounds, the sources, and each entry's place in the list.

    The last two have room for all edges that there could be.
    """
    edges, size = cast(fx.Node, csr.args[0]), csr.args[1]
    nodes = walk.known(size)
    key = ("csr", edges, nodes)
    if key not in walk.shared:
        looped = is_call(edges, bgnn.with_self_loops) and arg(edges, 2, "loops", "one") == "one"
        one_each = looped and str(edges.args[1]) == str(size)
        listed = walk.value(cast(fx.Node, edges.args[0]) if one_each else edges)
        entries = listed.shape[1] + (nodes if one_each else 0)
        outs = [walk.result(shape, INT) for shape in ((nodes + 1,), (entries,), (entries,))]
        options = flexbuffer({"self_loops": "add_remaining" if one_each else "none"})
        walk.builder.custom("BgnnCooToCsr", [listed, walk.indices([nodes])], outs, options)
        walk.shared[key] = tuple(outs)
    return cast(tuple[Value, Value, Value], walk.shared[key])


def neighbour_table(walk: Walk, node: fx.Node, index: fx.Node, *_: Any) -> Value:
    """The index itself, which `_grouped` sorts."""
    return walk.value(index)


def _grouped(walk: Walk, index: fx.Node, size: int) -> tuple[Value, Value]:
    """The elements sorted by segment: the segments' bounds, and each entry's place among the elements."""
    if is_call(index, aten.select) and is_call(index.args[0], bgnn.edge_csr):
        bounds, _, places = _csr(walk, cast(fx.Node, index.args[0]))
        return bounds, places
    key = ("grouped", index, size)
    if key not in walk.shared:
        value = walk.value(index)
        outs = [walk.result((size + 1,), INT), walk.result(value.shape, INT)]
        walk.builder.custom("BgnnIndexToCsr", [value, walk.indices([size])], outs, b"")
        walk.shared[key] = tuple(outs)
    return cast(tuple[Value, Value], walk.shared[key])


def _rows_and_graph(walk: Walk, values: fx.Node, index: fx.Node, size: int) -> list[Value]:
    """What an aggregation reads: rows of nodes through the sources where edges only repeat them, else of edges."""
    if is_call(values, aten.index_select) and is_call(index, aten.select):
        ends, csr = cast(fx.Node, values.args[2]), cast(fx.Node, index.args[0])
        if is_call(csr, bgnn.edge_csr) and is_call(ends, aten.select) and ends.args[:3] == (csr, 0, 0):
            bounds, sources, _ = _csr(walk, csr)
            return [walk.value(cast(fx.Node, values.args[0])), bounds, sources]
    return [walk.value(values), *_grouped(walk, index, size)]


def degrees(walk: Walk, node: fx.Node, index: fx.Node, size: int) -> Value:
    """BgnnDegree."""
    return _own(walk, "Degree", _grouped(walk, index, size)[:1], (size,), FLOAT)


def edge_product(walk: Walk, node: fx.Node, a: fx.Node, edges: fx.Node, b: fx.Node) -> Value:
    """BgnnEdgeProduct."""
    bounds, sources, _ = _csr(walk, edges)
    return _own(walk, "EdgeProduct", [walk.value(a), bounds, sources, walk.value(b)], sources.shape, FLOAT)


def edge_places(walk: Walk, node: fx.Node, table: fx.Node) -> None:
    """Nothing: what is read through them stays in the order that aggregations want (`_weight`)."""


def index_select(walk: Walk, node: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> Any:
    """The builtin's, but for what is in the edges' sorted order."""
    if is_call(index, bgnn.edge_places):
        return None
    return builtin_ops.LOWERINGS["aten.index_select.default"](walk, node, x, dim, index)


def _weight(walk: Walk, weight: fx.Node | None, edges: fx.Node) -> list[Value | None]:
    """The edges' weights as an aggregation reads them: in the order of its entries, or with their places."""
    if weight is None:
        return [None, None]
    if is_call(weight, aten.index_select) and is_call(weight.args[2], bgnn.edge_places):
        return [walk.value(cast(fx.Node, weight.args[0])), None]
    return [walk.value(weight), _csr(walk, edges)[2]]


def _segment(reduce: str, stock: Callable[..., Value]) -> Callable[..., Value]:
    def lower(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int) -> Value:
        if walk.dtype(node) != FLOAT or len(walk.shape(values)) > _MOST_AXES:
            return stock(walk, node, values, index, size)
        inputs = _rows_and_graph(walk, values, index, size)
        return _own(walk, "Aggregate", inputs, walk.shape(node), FLOAT, reduce=reduce)

    return lower


def _q_segment(reduce: str) -> Callable[..., Value]:
    def lower(
        walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int,
        y_scale: float, y_zero: int, low: int, high: int,
    ) -> Value:  # fmt: skip
        return _own(
            walk, "QAggregate", _rows_and_graph(walk, m, index, size), walk.shape(node), INT8,
            Codes((float(np.float32(y_scale)),), y_zero - SHIFT), reduce=reduce, x_scale=float(m_scale), x_zero=m_zero,
            y_scale=float(y_scale), y_zero=y_zero, low=low, high=high, **_NO_WEIGHT, **_NO_MESSAGE,
        )  # fmt: skip

    return lower


def q_segment_sum_float(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int
) -> Value:
    """BgnnAggregateInt32, and its sums times m_scale."""
    if len(walk.shape(m)) > _MOST_AXES:
        return int8_ops.q_segment_sum_float(walk, node, m, m_scale, m_zero, index, size)
    rows, *graph = _rows_and_graph(walk, m, index, size)
    codes = walk.cast(walk.recoded(rows, Codes((1.0,))), INT)
    if m_zero != SHIFT:
        inputs = [codes, walk.constant(np.array(m_zero - SHIFT, INT))]
        codes = walk.op("SUB", inputs, codes.shape, INT, schema.SubOptionsT())
    total = walk.cast(_own(walk, "AggregateInt32", [codes, *graph], walk.shape(node), INT), FLOAT)
    return walk.op("MUL", [total, walk.constant(np.float32(m_scale))], total.shape, FLOAT, schema.MulOptionsT())


def q_segment_max(walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, index: fx.Node, size: int) -> Value:
    """BgnnQAggregate by maximum, which leaves codes as they are."""
    value = _q_segment("max")(walk, node, m, 1.0, m_zero, index, size, 1.0, m_zero, 0, 255)
    return walk.recoded(value, walk.value(m).codes or Codes((1.0,)))


def segment_softmax(walk: Walk, node: fx.Node, values: fx.Node, index: fx.Node, size: int) -> Value:
    """BgnnSegmentSoftmax."""
    return _own(walk, "SegmentSoftmax", [walk.value(values), *_grouped(walk, index, size)], walk.shape(node), FLOAT)


def aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, edges: fx.Node, weight: fx.Node | None, size: Any, reduce: str
) -> Value:
    """BgnnAggregate: float rows of nodes, and a weight for each edge."""
    bounds, sources, _ = _csr(walk, edges)
    inputs = [walk.value(x), bounds, sources, *_weight(walk, weight, edges)]
    return _own(walk, "Aggregate", inputs, walk.shape(node), FLOAT, reduce=reduce)


def q_aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, edges: fx.Node, weight: fx.Node | None,
    w_scale: float, w_zero: int, msg_scale: float, msg_zero: int, msg_low: int, msg_high: int,
    y_scale: float, y_zero: int, low: int, high: int, size: Any, table: fx.Node | None,
) -> Value:  # fmt: skip
    """BgnnQAggregate: codes, weights' codes, messages requantised, a table of the results'."""
    bounds, sources, _ = _csr(walk, edges)
    weights = _weight(walk, weight, edges)
    tables = None if table is None else walk.constant(walk.arrays[table])
    codes = Codes((float(np.float32(y_scale)),), y_zero - SHIFT) if table is None else Codes((1.0,))
    return _own(
        walk, "QAggregate", [walk.value(x), bounds, sources, *weights, tables], walk.shape(node), INT8, codes,
        reduce="sum", x_scale=float(x_scale), x_zero=x_zero, w_scale=float(w_scale), w_zero=w_zero,
        msg_scale=float(msg_scale), msg_zero=msg_zero, msg_low=msg_low, msg_high=msg_high,
        y_scale=float(y_scale), y_zero=y_zero, low=low, high=high,
    )  # fmt: skip


def q_table(walk: Walk, node: fx.Node, x: fx.Node, table: fx.Node) -> Value:
    """BgnnQTable; what has more axes than it takes goes by TFLite's own operators."""
    if not 1 <= len(walk.shape(node)) <= _MOST_AXES:
        return int8_ops.q_table(walk, node, x, table)
    inputs = [walk.value(x), walk.constant(walk.arrays[table])]
    return _own(walk, "QTable", inputs, walk.shape(node), INT8, Codes((1.0,)))


def requantize(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, slope: float, y_scale: float, y_zero: int,
    low: int, high: int,
) -> Value:  # fmt: skip
    """BgnnQTable of one code."""
    quantisers = x_scale, x_zero, slope, y_scale, y_zero, low, high
    if not 1 <= len(walk.shape(node)) <= _MOST_AXES:
        return int8_ops.requantize(walk, node, x, *quantisers)
    codes = Codes((float(np.float32(y_scale)),), y_zero - SHIFT)
    inputs = [walk.value(x), walk.constant(requantised(*quantisers))]
    return _own(walk, "QTable", inputs, walk.shape(node), INT8, codes)


# --- dense layers ---

_LAYERS = (bgnn.q_linear, bgnn.q_linear_float)


def quantize(walk: Walk, node: fx.Node, x: fx.Node, scale: float, zero: int, low: int, high: int) -> Value:
    """BgnnQuantize; or nothing where one of the layers below alone reads the codes, and makes them itself."""
    if len(walk.shape(node)) > _MOST_AXES:
        return int8_ops.quantize(walk, node, x, scale, zero, low, high)
    real, layer = walk.operand(x, FLOAT), walk.only_user(node)
    if layer is not None and is_call(layer, *_LAYERS) and layer.args[2] == zero and _fits(walk, node):
        walk.shared["codes of", node] = float(scale), low, high
        return real
    codes = Codes((float(np.float32(scale)),), zero - SHIFT)
    return _own(
        walk, "Quantize", [real], walk.shape(node), INT8, codes, scale=float(scale), zero=zero, low=low, high=high
    )


def _fits(walk: Walk, x: fx.Node) -> bool:
    return 1 <= len(walk.shape(x)) <= _MOST_AXES


def _layer(
    walk: Walk, node: fx.Node, op: str, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node,
    w_zero: int, added: fx.Node | None, dtype: Any, codes: Codes | None = None, y_scale: float = 1.0, **result: int,
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
    return _own(walk, op, inputs, walk.shape(node), dtype, codes, **quantiser, **result)


def q_linear(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node, w_zero: int,
    bias: fx.Node | None, y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """BgnnQLinear."""
    layer = x, x_scale, x_zero, weight, w_scales, w_zero
    if not _fits(walk, x):
        return int8_ops.q_linear(walk, node, *layer, bias, y_scale, y_zero, low, high)
    codes = Codes((float(np.float32(y_scale)),), y_zero - SHIFT)
    return _layer(walk, node, "QLinear", *layer, bias, INT8, codes, y_scale, y_zero=y_zero, low=low, high=high)


def q_linear_float(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node, w_zero: int,
    bias: fx.Node | None,
) -> Value:  # fmt: skip
    """BgnnQLinearFloat."""
    layer = x, x_scale, x_zero, weight, w_scales, w_zero
    if not _fits(walk, x):
        return int8_ops.q_linear_float(walk, node, *layer, bias)
    return _layer(walk, node, "QLinearFloat", *layer, bias, FLOAT)


def gat_aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, source_score: fx.Node, target_score: fx.Node, edges: fx.Node, size: Any,
    negative_slope: float,
) -> Value:  # fmt: skip
    """BgnnGatAggregate."""
    bounds, sources, _ = _csr(walk, edges)
    inputs = [walk.value(x), bounds, sources, walk.value(source_score), walk.value(target_score)]
    return _own(walk, "GatAggregate", inputs, walk.shape(node), FLOAT, negative_slope=float(negative_slope))


def q_gat_aggregate(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, source_score: fx.Node, target_score: fx.Node,
    edges: fx.Node, score_scale: float, score_zero: int, score_low: int, score_high: int, negative_slope: float,
    msg_scale: float, msg_zero: int, msg_low: int, msg_high: int,
    y_scale: float, y_zero: int, low: int, high: int, size: Any,
) -> Value:  # fmt: skip
    """BgnnQGatAggregate."""
    bounds, sources, _ = _csr(walk, edges)
    inputs = [walk.value(x), bounds, sources, walk.value(source_score), walk.value(target_score)]
    return _own(
        walk, "QGatAggregate", inputs, walk.shape(node), INT8, Codes((float(np.float32(y_scale)),), y_zero - SHIFT),
        x_scale=float(x_scale), x_zero=x_zero, score_scale=float(score_scale), score_zero=score_zero,
        score_low=score_low, score_high=score_high, negative_slope=float(negative_slope), msg_scale=float(msg_scale),
        msg_zero=msg_zero, msg_low=msg_low, msg_high=msg_high, y_scale=float(y_scale), y_zero=y_zero, low=low,
        high=high,
    )  # fmt: skip


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.segment_sum.default": _segment("sum", graph_ops.segment_sum),
    "bgnn.segment_mean.default": _segment("mean", graph_ops.segment_mean),
    "bgnn.segment_max.default": _segment("max", graph_ops.segment_max),
    "bgnn.segment_softmax.default": segment_softmax,
    "bgnn.edge_csr.default": edge_csr,
    "bgnn.edge_places.default": edge_places,
    "bgnn.edge_product.default": edge_product,
    "bgnn.neighbour_table.default": neighbour_table,
    "bgnn.degrees.default": degrees,
    "aten.index_select.default": index_select,
    "bgnn.q_segment_sum.default": _q_segment("sum"),
    "bgnn.q_segment_sum_float.default": q_segment_sum_float,
    "bgnn.q_segment_mean.default": _q_segment("mean"),
    "bgnn.q_segment_max.default": q_segment_max,
    "bgnn.aggregate.default": aggregate,
    "bgnn.q_aggregate.default": q_aggregate,
    "bgnn.q_table.default": q_table,
    "bgnn.requantize.default": requantize,
    "bgnn.quantize.default": quantize,
    "bgnn.q_linear.default": q_linear,
    "bgnn.q_linear_float.default": q_linear_float,
    "bgnn.gat_aggregate.default": gat_aggregate,
    "bgnn.q_gat_aggregate.default": q_gat_aggregate,
    "bgnn.hamming_knn.default": hamming_knn,
    "bgnn.real_knn.default": real_knn,
    "bgnn.gather_max.default": gather_max,
    "bgnn.edge_max.default": edge_max,
    "bgnn.xor_edge_conv.default": xor_edge_conv,
    "bgnn.bin_edge_conv.default": bin_edge_conv,
    "bgnn.dense_pool.default": dense_pool,
}
