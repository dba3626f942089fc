"""The integer ops, as ONNX's and ONNX Runtime's 8-bit operators.

Activations are uint8 and weights int8 (int8 by int8 is several times slower on x86). Scales and zero points are
scalars of rank 0, as ONNX Runtime's kernels want them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from bgnn.converter.code_operands import quotient, requantised, scales_and_zeros, table_of
from bgnn.converter.onnx.builder import Value
from bgnn.converter.onnx.float_ops import reduce
from bgnn.converter.onnx.graph_ops import counts, scatter, zeros
from bgnn.converter.onnx.tables import Bucket
from bgnn.converter.onnx.walk import BOOL, FLOAT, I8, I32, I64, U8, Walk
from bgnn.passes import ops
from bgnn.passes.depthwise import depthwise
from bgnn.passes.graph import is_call
from bgnn.passes.insert_fake_quant import is_edge_tensor

aten, bgnn = torch.ops.aten, torch.ops.bgnn


_DENSE = ops.having("dense")
_SEEN_THROUGH = [
    aten.reshape, aten.view, aten.permute, aten.transpose, aten.unsqueeze, aten.squeeze, aten.expand, aten.slice,
    aten.select, aten.cat, aten.index_select, aten.relu, aten.clamp, aten.relu6, aten.hardtanh, aten.clone, aten.amax,
]  # fmt: skip


def _scale(walk: Walk, number: float) -> Value:
    return walk.constant(np.float32(number))


def _zero(walk: Walk, number: int, dtype: np.dtype = U8) -> Value:
    return walk.constant(np.array(number, dtype=dtype))


def _clamped(walk: Walk, codes: Value, low: int, high: int) -> Value:
    """Codes saturate at 0 and 255 by themselves."""
    if (low, high) == (0, 255):
        return codes
    bounds = [_zero(walk, low) if low > 0 else None, _zero(walk, high) if high < 255 else None]
    return walk.op("Clip", [codes, *bounds], U8)


def quantize(walk: Walk, node: fx.Node, x: fx.Node, scale: float, zero: int, low: int, high: int) -> Value:
    """QuantizeLinear."""
    codes = walk.op("QuantizeLinear", [walk.value(x), _scale(walk, scale), _zero(walk, zero)], U8)
    return _clamped(walk, codes, low, high)


def dequantize(walk: Walk, node: fx.Node, x: fx.Node, scale: float, zero: int) -> Value:
    """DequantizeLinear, or its arithmetic where ONNX Runtime's optimiser would take it for half of a QDQ pair.

    Between two quantisers it merges them (of different scales as well), and weights behind one it quantises anew.
    """
    value = walk.value(x)
    if not walk.naive and not _reaches_a_quantiser(node):
        return walk.op("DequantizeLinear", [value, _scale(walk, scale), _zero(walk, zero)], FLOAT)
    shifted = walk.op("Sub", [walk.cast(value, FLOAT), _scale(walk, zero)], FLOAT) if zero else walk.cast(value, FLOAT)
    return walk.op("Mul", [shifted, _scale(walk, scale)], FLOAT)


def _reaches_a_quantiser(node: fx.Node) -> bool:
    """Whether real values go to a quantiser or a dense layer with nothing but moves and clamps between."""
    for user in node.users:
        if is_call(user, bgnn.quantize, bgnn.fake_quant, *_DENSE):
            return True
        if is_call(user, *_SEEN_THROUGH) and _reaches_a_quantiser(user):
            return True
    return False


def fake_quant(walk: Walk, node: fx.Node, x: fx.Node, scale: float, zero: int, low: int, high: int) -> Value:
    """Step by step, as Degree-Quant computes it."""
    return _faked(walk, walk.value(x), _scale(walk, scale), _scale(walk, zero), low, high)


def fake_quant_channel(
    walk: Walk, node: fx.Node, x: fx.Node, scales: fx.Node, zeros: fx.Node, axis: int, low: int, high: int
) -> Value:
    """The same with a scale for each index of an axis."""
    scale, zero = (walk.constant(a) for a in scales_and_zeros(walk, node, scales, zeros, walk.rank(x), axis))
    return _faked(walk, walk.value(x), scale, zero, low, high)


def _faked(walk: Walk, value: Value, scale: Value, zero: Value, low: int, high: int) -> Value:
    shifted = walk.op("Add", [walk.op("Div", [value, scale], FLOAT), zero], FLOAT)
    bounds = [_scale(walk, low), _scale(walk, high)]
    codes = walk.op("Clip", [walk.op("Round", [shifted], FLOAT), *bounds], FLOAT)
    return walk.op("Mul", [walk.op("Sub", [codes, zero], FLOAT), scale], FLOAT)


def requantize(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, slope: float, y_scale: float, y_zero: int,
    low: int, high: int,
) -> Value:  # fmt: skip
    """A depthwise layer where one gives the same codes, else QLinearLeakyRelu: a table of 256 entries, slower."""
    table = requantised(x_scale, x_zero, slope, y_scale, y_zero, low, high)
    layer = _depthwise(walk, node, x, table)
    if layer is not None:
        return layer
    scales = [_scale(walk, x_scale), _zero(walk, x_zero), _scale(walk, y_scale), _zero(walk, y_zero)]
    codes = walk.contrib("QLinearLeakyRelu", [walk.value(x), *scales], U8, alpha=float(slope))
    return _clamped(walk, codes, low, high)


def q_table(walk: Walk, node: fx.Node, x: fx.Node, table: fx.Node) -> Value:
    """A depthwise layer where one gives the same codes, else a Gather (of the channels' tables one after the other)."""
    entries = table_of(walk, node, table)
    layer = _depthwise(walk, node, x, entries)
    if layer is not None:
        return layer
    codes = walk.cast(walk.value(x), I32)
    if len(entries) > 1:
        codes = walk.op("Add", [codes, walk.constant(np.arange(len(entries), dtype=np.int32) * 256)], I32)
    return walk.op("Gather", [walk.constant(entries.reshape(-1)), codes], U8, axis=0)


def _depthwise(walk: Walk, node: fx.Node, x: fx.Node, tables: np.ndarray) -> Value | None:
    """A QLinearConv of as many groups as channels; scales of 1 and zero points of 0 leave the layer's own numbers.

    None where no such layer gives the tables' codes.
    """
    channels = walk.dims(node)[-1] if walk.rank(node) > 1 else None
    layer = depthwise(tables, channels) if channels is not None else None
    if channels is None or layer is None:
        return None
    each = [np.broadcast_to(a, channels) for a in (layer.weight, layer.scale, layer.bias)]
    one, zero = _scale(walk, 1), _zero(walk, 0)
    inputs = [
        walk.reshape(walk.value(x), [1, -1, channels]), one, zero, walk.constant(each[0][:, None, None]),
        walk.constant(each[1]), walk.constant(np.zeros(channels, I8)), one, zero, walk.constant(each[2]),
    ]  # fmt: skip
    codes = _layer(walk, x, inputs, channels, group=channels)
    return _clamped(walk, _as_rows_of(walk, node, x, codes), layer.low, layer.high)


def _weights(walk: Walk, node: fx.Node, weight: fx.Node, scales: fx.Node) -> tuple[np.ndarray, np.ndarray]:
    numbers, factors = walk.array(weight), walk.array(scales)
    if numbers is None or factors is None:
        walk.refuse(node, "has weights that are not constant", "make them parameters of the model")
    return numbers, factors.astype(np.float32)


def q_linear(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node, w_zero: int,
    bias: fx.Node | None, y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """A 1x1 QLinearConv over [1, rows, channels]: twice as fast as QLinearMatMul, and it takes the bias."""
    numbers, factors = _weights(walk, node, weight, w_scales)
    per_channel = factors.size > 1
    inputs = [
        walk.reshape(walk.value(x), [1, -1, numbers.shape[1]]), _scale(walk, x_scale), _zero(walk, x_zero),
        walk.constant(numbers[:, :, None]), walk.constant(factors if per_channel else factors.reshape([])),
        walk.constant(np.full(factors.shape if per_channel else [], w_zero, dtype=I8)),
        _scale(walk, y_scale), _zero(walk, y_zero),
    ]  # fmt: skip
    if bias is not None:
        inputs.append(walk.operand(bias, I32))
    codes = _layer(walk, x, inputs, walk.trailing(node)[-1])
    return _clamped(walk, _as_rows_of(walk, node, x, codes), low, high)


def _layer(walk: Walk, x: fx.Node, inputs: list[Value], channels: int, **attributes: int) -> Value:
    """QLinearConv over [1, rows, C], which refuses no rows: a graph may have nodes and no edges."""
    if walk.bucket is not None or not is_edge_tensor(x):  # a bucket has rows
        return walk.contrib("QLinearConv", inputs, U8, channels_last=1, kernel_shape=[1], **attributes)
    builder, branches = walk.builder, {}
    rows = walk.op("Size", [inputs[0]], I64)
    for branch in ("then_branch", "else_branch"):
        with builder.body() as nodes:
            if branch == "then_branch":
                made = walk.contrib("QLinearConv", inputs, U8, channels_last=1, kernel_shape=[1], **attributes)
            else:
                made = walk.op("Identity", [walk.constant(np.zeros((1, 0, channels), np.uint8))], U8)
        branches[branch] = builder.graph(made.name, nodes, [], [made])
    return walk.op("If", [walk.op("Greater", [rows, walk.constant(np.array(0))], BOOL)], U8, **branches)


def _as_rows_of(walk: Walk, node: fx.Node, x: fx.Node, flat: Value) -> Value:
    """[1, rows, O] with the leading axes of `x`, whichever form it has here."""
    rank, channels = walk.rank(x) + walk.lead - 1, walk.trailing(node)[-1]
    if rank == 2:
        return walk.reshape(flat, [-1, channels])
    leading = walk.op("Shape", [walk.value(x)], I64, start=0, end=rank - 1)
    return walk.op("Reshape", [flat, walk.op("Concat", [leading, walk.indices([channels])], I64, axis=0)], flat.dtype)


def q_linear_float(
    walk: Walk, node: fx.Node, x: fx.Node, x_scale: float, x_zero: int, weight: fx.Node, w_scales: fx.Node, w_zero: int,
    bias: fx.Node | None,
) -> Value:  # fmt: skip
    """MatMulIntegerToFloat: the product, the scales and the bias in one."""
    numbers, factors = _weights(walk, node, weight, w_scales)
    inputs = [
        walk.value(x), walk.constant(numbers.T), _scale(walk, x_scale),
        walk.constant(factors if factors.size > 1 else factors.reshape([])), _zero(walk, x_zero),
        walk.constant(np.full(factors.shape if factors.size > 1 else [], w_zero, dtype=I8)),
    ]  # fmt: skip
    if bias is not None:
        inputs.append(walk.operand(bias, FLOAT))
    return walk.contrib("MatMulIntegerToFloat", inputs, FLOAT)


def _two_codes(op: str) -> Callable[..., Value]:
    def lower(
        walk: Walk, node: fx.Node, a: fx.Node, a_scale: float, a_zero: int, b: fx.Node, b_scale: float, b_zero: int,
        y_scale: float, y_zero: int, low: int, high: int,
    ) -> Value:  # fmt: skip
        inputs = [
            walk.value(a), _scale(walk, a_scale), _zero(walk, a_zero),
            walk.value(b), _scale(walk, b_scale), _zero(walk, b_zero),
            _scale(walk, y_scale), _zero(walk, y_zero),
        ]  # fmt: skip
        return _clamped(walk, walk.contrib(op, inputs, U8), low, high)

    return lower


def _requantized(walk: Walk, total: Value, multiplier: Value, y_zero: int, low: int, high: int) -> Value:
    """int32 to codes: QuantizeLinear by 1 rounds to even, adds the zero point and saturates."""
    real = walk.op("Mul", [walk.cast(total, FLOAT), multiplier], FLOAT)
    return _clamped(walk, walk.op("QuantizeLinear", [real, _scale(walk, 1), _zero(walk, y_zero)], U8), low, high)


def q_segment_sum(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int | fx.Node,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """In a bucket of width w QLinearGlobalAveragePool, whose output scale y_scale / w makes the average a sum."""

    def in_bucket(bucket: Bucket, value: Value) -> Value:
        if walk.rank(m) > 2:  # one axis of channels
            value = walk.reshape(value, [0, 0, -1])
        by_width = bucket.over_width(y_scale)
        inputs = [value, _scale(walk, m_scale), _zero(walk, m_zero), by_width, _zero(walk, y_zero)]
        codes = walk.contrib("QLinearGlobalAveragePool", inputs, U8, channels_last=1)
        return _clamped(walk, codes, low, high)  # [rows, 1, channels]; `segment` reshapes what Scan stacks up

    if walk.tables is not None:
        empty = min(max(y_zero, low), high)
        made = walk.tables.segment(node, m, index, float(m_zero), empty, U8, in_bucket)
        if made is not None:
            return made
    total = _scattered_total(walk, node, m, m_zero, index, size)
    return _requantized(walk, total, walk.constant(np.float32(m_scale) / np.float32(y_scale)), y_zero, low, high)


def _scattered_total(walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, index: fx.Node, size: int | fx.Node) -> Value:
    codes = walk.op("Sub", [walk.cast(walk.value(m), I32), _zero(walk, m_zero, I32)], I32)
    return scatter(walk, zeros(walk, node, size, I32), codes, walk.rank(m), walk.value(index), "add")


def _total(walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, index: fx.Node, size: int | fx.Node) -> Value:
    """The exact sum as int32, in a bucket a product of ones with the table's codes."""

    def in_bucket(bucket: Bucket, value: Value) -> Value:
        if walk.rank(m) > 2:
            value = walk.reshape(value, [0, 0, -1])
        taken = walk.cast(walk.op("Not", [bucket.mask(0)], np.dtype(np.bool_)), U8)
        taken = walk.op("Unsqueeze", [taken, walk.indices([1])], U8)
        total = walk.op("MatMulInteger", [taken, value, _zero(walk, 0), _zero(walk, m_zero)], I32)
        return walk.reshape(total, [0, *walk.trailing(node)])

    total = None
    if walk.tables is not None:
        total = walk.tables.segment(node, m, index, float(m_zero), 0, I32, in_bucket)
    return _scattered_total(walk, node, m, m_zero, index, size) if total is None else total


def q_segment_sum_float(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int | fx.Node
) -> Value:
    """The exact sum, times m_scale."""
    total = walk.cast(_total(walk, node, m, m_zero, index, size), FLOAT)
    return walk.op("Mul", [total, _scale(walk, m_scale)], FLOAT)


def q_segment_mean(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: int | fx.Node,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """The exact sum times m_scale / (y_scale * length)."""
    total = _total(walk, node, m, m_zero, index, size)
    length = walk.reshape(counts(walk, index, size), [-1, *[1] * (walk.rank(m) - 1)])
    divisor = walk.op("Mul", [_scale(walk, y_scale), length], FLOAT)
    return _requantized(walk, total, walk.op("Div", [_scale(walk, m_scale), divisor], FLOAT), y_zero, low, high)


def _axis_total(walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, axis: int) -> Value:
    """The exact sum as int32: a product with ones, several times as fast as a ReduceSum of int32."""
    ones = walk.constant(np.ones((1, int(m.meta["val"].shape[axis])), U8))
    total = walk.op("MatMulInteger", [ones, walk.value(m), _zero(walk, 0), _zero(walk, m_zero)], I32)
    return walk.op("Squeeze", [total, walk.indices([axis])], I32)


def q_sum(
    walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, axis: int, length: fx.Node | None,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Value:  # fmt: skip
    """The exact sum times m_scale / (y_scale * length)."""
    total = _axis_total(walk, node, m, m_zero, axis)
    multiplier = quotient(walk, node, m_scale, y_scale, length)
    return _requantized(walk, total, walk.constant(multiplier), y_zero, low, high)


def q_sum_float(walk: Walk, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, axis: int) -> Value:
    """The exact sum, times m_scale."""
    total = walk.cast(_axis_total(walk, node, m, m_zero, axis), FLOAT)
    return walk.op("Mul", [total, _scale(walk, m_scale)], FLOAT)


def q_segment_max(walk: Walk, node: fx.Node, m: fx.Node, m_zero: int, index: fx.Node, size: int | fx.Node) -> Value:
    """ReduceMax of codes in a bucket; scattered, of int32."""

    def in_bucket(bucket: Bucket, value: Value) -> Value:
        return reduce(walk, "ReduceMax", value, [-walk.rank(m)])

    if walk.tables is not None:
        made = walk.tables.segment(node, m, index, 0.0, m_zero, U8, in_bucket)
        if made is not None:
            return made
    start = zeros(walk, node, size, I32, -1)
    largest = scatter(walk, start, walk.cast(walk.value(m), I32), walk.rank(m), walk.value(index), "max")
    empty = walk.op("Equal", [largest, _zero(walk, -1, I32)], np.dtype(np.bool_))
    return walk.cast(walk.op("Where", [empty, _zero(walk, m_zero, I32), largest], I32), U8)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.quantize.default": quantize,
    "bgnn.dequantize.default": dequantize,
    "bgnn.fake_quant.default": fake_quant,
    "bgnn.fake_quant_channel.default": fake_quant_channel,
    "bgnn.requantize.default": requantize,
    "bgnn.q_table.default": q_table,
    "bgnn.q_linear.default": q_linear,
    "bgnn.q_linear_float.default": q_linear_float,
    "bgnn.q_mul.default": _two_codes("QLinearMul"),
    "bgnn.q_add.default": _two_codes("QLinearAdd"),
    "bgnn.q_segment_sum.default": q_segment_sum,
    "bgnn.q_segment_sum_float.default": q_segment_sum_float,
    "bgnn.q_segment_mean.default": q_segment_mean,
    "bgnn.q_segment_max.default": q_segment_max,
    "bgnn.q_sum.default": q_sum,
    "bgnn.q_sum_float.default": q_sum_float,
}
