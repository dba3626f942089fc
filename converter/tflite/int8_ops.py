"""The integer ops, as TFLite's own operators on int8 tensors, which say what their integers stand for.

A graph's codes are 0..255, a file's 128 less. XNNPACK, which LiteRT runs them with, multiplies a dense layer's 32-bit
sums by a float32 and rounds half to even: what the dialect computes, bit for bit. Its sums of two tensors work with 20
bits of each factor, and its products round before they add the zero point: there a code next to a tie may go to the
other side, as it may everywhere in the kernels without XNNPACK (fixed point, 31 bits), and converter/decisions.py
counts those. What XNNPACK computes with fewer bits (QUANTIZE from codes to codes has 8) is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from torch import fx

from bgnn.converter.code_operands import quotient, requantised, scales_and_zeros, table_of
from bgnn.converter.tflite import graph_ops
from bgnn.converter.tflite.builder import Codes, Value, numel
from bgnn.converter.tflite.builtin_ops import elementwise
from bgnn.converter.tflite.walk import BOOL, FLOAT, INT, INT8, SHIFT, Walk
from bgnn.passes.depthwise import depthwise

_ACTIVATION = schema.ActivationFunctionType
_PLAIN = Codes((1.0,))
_AS_THEY_ARE = Codes((1.0,), -SHIFT)  # 0..255 standing for themselves


def _codes(scale: float, zero: int) -> Codes:
    return Codes((float(np.float32(scale)),), zero - SHIFT)


def _activation(zero: int, low: int, high: int) -> int:
    """The activation that an operator computes by itself: a ReLU, which cuts at the zero point."""
    return _ACTIVATION.RELU if low == zero and high >= 255 else _ACTIVATION.NONE


def _clamped(walk: Walk, value: Value, zero: int, low: int, high: int, fused: int = _ACTIVATION.NONE) -> Value:
    """Codes from `low` to `high`; they saturate at 0 and 255 by themselves."""
    if fused:
        return value
    for op, bound, bites in (("MAXIMUM", low, low > 0), ("MINIMUM", high, high < 255)):
        if bites and op == "MAXIMUM" and bound == zero:
            value = walk.op("RELU", [value], value.shape, INT8)
        elif bites:
            limit = walk.builder.constant("limit", np.array(bound - SHIFT, dtype=INT8), value.codes)
            value = walk.op(op, [value, limit], value.shape, INT8, schema.MaximumMinimumOptionsT())
    return value


def quantize(walk: Walk, node: fx.Node, x: fx.Node, scale: float, zero: int, low: int, high: int) -> Value:
    """QUANTIZE."""
    inputs = [walk.operand(x, FLOAT)]
    value = walk.op("QUANTIZE", inputs, walk.shape(node), INT8, schema.QuantizeOptionsT(), _codes(scale, zero))
    return _clamped(walk, value, zero, low, high)


def dequantize(walk: Walk, node: fx.Node, x: fx.Node, scale: float, zero: int) -> Value:
    """DEQUANTIZE."""
    inputs = [walk.coded(x, _codes(scale, zero))]
    return walk.op("DEQUANTIZE", inputs, walk.shape(node), FLOAT, schema.DequantizeOptionsT())


def fake_quant(walk: Walk, node: fx.Node, x: fx.Node, scale: float, zero: int, low: int, high: int) -> Value:
    """Step by step, as Degree-Quant computes it."""
    number = walk.constant
    return _faked(walk, walk.value(x), number(np.float32(scale)), number(np.float32(zero)), low, high)


def fake_quant_channel(
    walk: Walk, node: fx.Node, x: fx.Node, scales: fx.Node, zeros: fx.Node, axis: int, low: int, high: int
) -> Value:
    """The same with a scale for each index of an axis."""
    scale, zero = (walk.constant(a) for a in scales_and_zeros(walk, node, scales, zeros, len(walk.shape(x)), axis))
    return _faked(walk, walk.value(x), scale, zero, low, high)


def _faked(walk: Walk, value: Value, scale: Value, zero: Value, low: int, high: int) -> Value:
    def step(op: str, value: Value, other: Value, options: Any) -> Value:
        return elementwise(walk, op, [value, other], value.shape, FLOAT, options)

    value = step("ADD", step("DIV", value, scale, schema.DivOptionsT()), zero, schema.AddOptionsT())
    value = walk.op("ROUND", [value], value.shape, FLOAT)
    for op, bound in (("MAXIMUM", low), ("MINIMUM", high)):
        value = step(op, value, walk.constant(np.float32(bound)), schema.MaximumMinimumOptionsT())
    return step("MUL", step("SUB", value, zero, schema.SubOptionsT()), scale, schema.MulOptionsT())


def requantize(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, slope: float, y_scale: float, y_zero: int,
    low: int, high: int,
) -> Value:  # fmt: skip
    """As a table of all codes."""
    table = requantised(x_scale, x_zero, slope, y_scale, y_zero, low, high)
    return walk.recoded(_looked_up(walk, node, x, table), _codes(y_scale, y_zero))


def q_table(walk: Walk, node: fx.Node, x: fx.Node, table: fx.Node) -> Value:
    """As `requantize`; who reads the codes says what they stand for."""
    return _looked_up(walk, node, x, table_of(walk, node, table))


def _looked_up(walk: Walk, node: fx.Node, x: fx.Node, tables: np.ndarray) -> Value:
    """A depthwise layer where one gives the same codes, else a GATHER (of the channels' tables one after the other)."""
    shape = walk.shape(node)
    layer = depthwise(tables, shape[-1]) if shape else None
    if layer is None:
        index = walk.op("CAST", [walk.coded(x, _AS_THEY_ARE)], shape, INT)
        starts = np.arange(len(tables), dtype=INT) * 256 + SHIFT
        index = elementwise(walk, "ADD", [index, walk.constant(starts)], shape, INT, schema.AddOptionsT())
        entries = (tables.reshape(-1).astype(INT) - SHIFT).astype(INT8)
        table = walk.builder.constant("table", entries, _AS_THEY_ARE)
        return walk.op("GATHER", [table, index], shape, INT8, schema.GatherOptionsT())
    channels = shape[-1]
    weight, scale, bias = (np.broadcast_to(a, channels) for a in (layer.weight, layer.scale, layer.bias))
    scales = tuple(float(s) for s in scale)
    view = (1, 1, numel(shape[:-1]), channels)
    inputs = [
        walk.copy(walk.coded(x, _AS_THEY_ARE), view),
        walk.builder.constant("weight", weight.reshape(1, 1, 1, channels).copy(), Codes(scales, axis=3)),
        walk.builder.constant("bias", bias.astype(INT), Codes(scales)),
    ]
    options = schema.DepthwiseConv2DOptionsT(
        padding=schema.Padding.VALID, strideW=1, strideH=1, depthMultiplier=1, dilationWFactor=1, dilationHFactor=1
    )
    value = walk.op("DEPTHWISE_CONV_2D", inputs, view, INT8, options, _AS_THEY_ARE)
    return walk.reshape(_clamped(walk, value, 0, layer.low, layer.high), shape)


def weights_of(walk: Walk, node: fx.Node, weight: fx.Node, scales: fx.Node) -> tuple[np.ndarray, np.ndarray]:
    """(the numbers `[O, I]`, a scale for each output `[O]`)."""
    numbers, factors = walk.array(weight), walk.array(scales)
    if numbers is None or factors is None:
        walk.refuse(node, "has weights that are not constant", "make them parameters of the model")
    return numbers.astype(np.int64), np.broadcast_to(factors.astype(np.float32), len(numbers))


def q_linear(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node, w_zero: int,
    bias: fx.Node | None, y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """FULLY_CONNECTED, a scale for each output; its weights have no zero point: they are what is left without it."""
    numbers, factors = weights_of(walk, node, weight, w_scales)
    whole, out = numbers - w_zero, _codes(y_scale, y_zero)
    if np.abs(whole).max() > 127:
        total = _sums(walk, node, x, x_zero, numbers, w_zero, bias)
        multiplier = walk.constant(np.float32(x_scale) * factors / np.float32(y_scale))
        real = walk.op("MUL", [walk.cast(total, FLOAT), multiplier], total.shape, FLOAT, schema.MulOptionsT())
        value = walk.op("QUANTIZE", [real], total.shape, INT8, schema.QuantizeOptionsT(), Codes((1.0,), out.zero))
        return _clamped(walk, walk.recoded(value, out), y_zero, low, high)
    units = np.float32(x_scale) * factors
    inputs = [
        walk.coded(x, _codes(x_scale, x_zero)),
        walk.builder.constant(weight.name, whole.astype(INT8), Codes(tuple(float(s) for s in factors))),
    ]
    if bias is not None:
        given = walk.array(bias)
        assert given is not None
        inputs.append(walk.builder.constant(bias.name, given, Codes(tuple(float(s) for s in units))))
    shape, fused = walk.shape(node), _activation(y_zero, low, high)
    if len(shape) == 1:  # FULLY_CONNECTED reads rows
        inputs[0] = walk.reshape(inputs[0], (1, *inputs[0].shape))
    options = schema.FullyConnectedOptionsT(keepNumDims=len(shape) != 2, fusedActivationFunction=fused)
    value = walk.op("FULLY_CONNECTED", inputs, (*inputs[0].shape[:-1], shape[-1]), INT8, options, out)
    return walk.reshape(_clamped(walk, value, y_zero, low, high, fused), shape)


def q_linear_float(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node, w_zero: int,
    bias: fx.Node | None,
) -> Value:  # fmt: skip
    """The exact sums, times the scales, plus the bias in float."""
    numbers, factors = weights_of(walk, node, weight, w_scales)
    total = _sums(walk, node, x, x_zero, numbers, w_zero, None)
    multiplier = walk.constant(np.float32(x_scale) * factors)
    real = walk.op("MUL", [walk.cast(total, FLOAT), multiplier], total.shape, FLOAT, schema.MulOptionsT())
    return real if bias is None else walk.op("ADD", [real, walk.value(bias)], real.shape, FLOAT, schema.AddOptionsT())


def _sums(
    walk: Walk, node: fx.Node, x: fx.Node, x_zero: int, numbers: np.ndarray, w_zero: int, bias: fx.Node | None
) -> Value:
    """int32 `sum (x - x_zero) * (w - w_zero) + bias`, exact: a BATCH_MATMUL, which takes no zero points.

    `sum x w` less what the zero points add: of the weights' one a multiple of `sum x`, one more column of ones.
    """
    rows, zero = numbers, x_zero - SHIFT
    if w_zero:
        rows = np.concatenate([numbers, np.ones((1, numbers.shape[1]), np.int64)])
    value, outputs = walk.coded(x, _PLAIN), len(numbers)
    inputs = [
        walk.reshape(value, (numel(value.shape[:-1]), value.shape[-1])),
        walk.builder.constant("weight", rows.astype(INT8), _PLAIN),
    ]
    options = schema.BatchMatMulOptionsT(adjY=True)
    total = walk.op("BATCH_MATMUL", inputs, (inputs[0].shape[0], len(rows)), INT, options)
    offset = -zero * (numbers - w_zero).sum(1)
    if bias is not None:
        given = walk.array(bias)
        assert given is not None
        offset = offset + given
    if w_zero:
        size = (total.shape[0], 1)
        ends = [walk.indices([0, outputs]), walk.indices(size)]
        ones = walk.op("SLICE", [total, *ends], size, INT, schema.SliceOptionsT())
        ones = walk.op("MUL", [ones, walk.constant(np.array(w_zero, INT))], size, INT, schema.MulOptionsT())
        size = (total.shape[0], outputs)
        ends = [walk.indices([0, 0]), walk.indices(size)]
        total = walk.op("SLICE", [total, *ends], size, INT, schema.SliceOptionsT())
        total = walk.op("SUB", [total, ones], size, INT, schema.SubOptionsT())
    if offset.any():
        added = [total, walk.constant(offset.astype(INT))]
        total = walk.op("ADD", added, total.shape, INT, schema.AddOptionsT())
    return walk.reshape(total, walk.shape(node))


def _two_codes(op: str, options: Callable[..., Any]) -> Callable[..., Value]:
    def lower(
        walk: Walk, node: fx.Node, a: fx.Node, a_scale: float, a_zero: int, b: fx.Node, b_scale: float, b_zero: int,
        y_scale: float, y_zero: int, low: int, high: int,
    ) -> Value:  # fmt: skip
        inputs = [walk.coded(a, _codes(a_scale, a_zero)), walk.coded(b, _codes(b_scale, b_zero))]
        shape, fused = walk.shape(node), _activation(y_zero, low, high)
        made = options(fusedActivationFunction=fused)
        value = elementwise(walk, op, inputs, shape, INT8, made, _codes(y_scale, y_zero))
        return _clamped(walk, value, y_zero, low, high, fused)

    return lower


# --- sums over edges: exact, in int32, by UNSORTED_SEGMENT_SUM ---


def _segment_total(walk: Walk, m: fx.Node, m_zero: int, index: fx.Node, size: int) -> Value:
    """int32 `sum (m - m_zero)` of each segment: the sum of the file's codes less that many zero points."""
    rows = walk.value(index)
    total = graph_ops.reduced(walk, "SUM", walk.cast(walk.coded(m, _PLAIN), INT), rows, size)
    if m_zero == SHIFT:
        return total
    count = walk.cast(graph_ops.counts(walk, rows, size), INT)
    inputs = [graph_ops.beside(walk, count, total.rank), walk.constant(np.array(m_zero - SHIFT, INT))]
    zeros = walk.op("MUL", inputs, (size, *[1] * (total.rank - 1)), INT, schema.MulOptionsT())
    return walk.op("SUB", [total, zeros], total.shape, INT, schema.SubOptionsT())


def _as_codes(walk: Walk, total: Value, multiplier: Value, scale: float, zero: int, low: int, high: int) -> Value:
    """Integers times a float32, as codes."""
    real = walk.op("MUL", [walk.cast(total, FLOAT), multiplier], total.shape, FLOAT, schema.MulOptionsT())
    codes = Codes((1.0,), zero - SHIFT)
    value = walk.op("QUANTIZE", [real], total.shape, INT8, schema.QuantizeOptionsT(), codes)
    return _clamped(walk, walk.recoded(value, _codes(scale, zero)), zero, low, high)


def q_segment_sum(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """The exact sum times m_scale / y_scale."""
    total = _segment_total(walk, m, m_zero, index, size)
    multiplier = walk.constant(np.float32(m_scale) / np.float32(y_scale))
    return _as_codes(walk, total, multiplier, y_scale, y_zero, low, high)


def q_segment_sum_float(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int
) -> Value:
    """The exact sum times m_scale."""
    total = walk.cast(_segment_total(walk, m, m_zero, index, size), FLOAT)
    inputs = [total, walk.constant(np.float32(m_scale))]
    return walk.op("MUL", inputs, total.shape, FLOAT, schema.MulOptionsT())


def q_segment_mean(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """The exact sum times m_scale / (y_scale * length)."""
    total = _segment_total(walk, m, m_zero, index, size)
    length = graph_ops.beside(walk, graph_ops.at_least_one(walk, walk.value(index), size), total.rank)
    inputs = [length, walk.constant(np.float32(y_scale))]
    divisor = walk.op("MUL", inputs, length.shape, FLOAT, schema.MulOptionsT())
    inputs = [walk.constant(np.float32(m_scale)), divisor]
    multiplier = walk.op("DIV", inputs, length.shape, FLOAT, schema.DivOptionsT())
    return _as_codes(walk, total, multiplier, y_scale, y_zero, low, high)


def _axis_total(walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, axis: int) -> Value:
    """The exact sum as int32: that of the file's codes less as many zero points."""
    codes = walk.cast(walk.coded(m, _PLAIN), INT)
    inputs = [codes, walk.indices([axis])]
    total = walk.op("SUM", inputs, walk.shape(node), INT, schema.ReducerOptionsT())
    if m_zero == SHIFT:
        return total
    zeros = walk.constant(np.array(codes.shape[axis] * (m_zero - SHIFT), INT))
    return walk.op("SUB", [total, zeros], total.shape, INT, schema.SubOptionsT())


def q_sum(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, axis: int, length: fx.Node | None,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """The exact sum times m_scale / (y_scale * length)."""
    total = _axis_total(walk, node, m, m_zero, axis)
    multiplier = walk.constant(quotient(walk, node, m_scale, y_scale, length))
    return _as_codes(walk, total, multiplier, y_scale, y_zero, low, high)


def q_sum_float(walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, axis: int) -> Value:
    """The exact sum, times m_scale."""
    total = walk.cast(_axis_total(walk, node, m, m_zero, axis), FLOAT)
    return walk.op("MUL", [total, walk.constant(np.float32(m_scale))], total.shape, FLOAT, schema.MulOptionsT())


def q_segment_max(walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, index: fx.Node, size: int) -> Value:
    """UNSORTED_SEGMENT_MAX of int32; a segment without elements, where it gives the lowest number, has m_zero."""
    value = walk.coded(m, _PLAIN)
    largest = graph_ops.reduced(walk, "MAX", walk.cast(value, INT), walk.value(index), size)
    some = walk.op("GREATER_EQUAL", [largest, walk.constant(np.array(-SHIFT, INT))], largest.shape, BOOL)
    inputs = [some, largest, walk.constant(np.array(m_zero - SHIFT, INT))]
    whole = walk.op("SELECT_V2", inputs, largest.shape, INT)
    return walk.op("CAST", [whole], whole.shape, INT8, codes=_PLAIN)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.quantize.default": quantize,
    "bgnn.dequantize.default": dequantize,
    "bgnn.fake_quant.default": fake_quant,
    "bgnn.fake_quant_channel.default": fake_quant_channel,
    "bgnn.requantize.default": requantize,
    "bgnn.q_table.default": q_table,
    "bgnn.q_linear.default": q_linear,
    "bgnn.q_linear_float.default": q_linear_float,
    "bgnn.q_segment_sum.default": q_segment_sum,
    "bgnn.q_segment_sum_float.default": q_segment_sum_float,
    "bgnn.q_segment_mean.default": q_segment_mean,
    "bgnn.q_segment_max.default": q_segment_max,
    "bgnn.q_sum.default": q_sum,
    "bgnn.q_sum_float.default": q_sum_float,
    "bgnn.q_mul.default": _two_codes("MUL", schema.MulOptionsT),
    "bgnn.q_add.default": _two_codes("ADD", schema.AddOptionsT),
}
