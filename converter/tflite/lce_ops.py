"""The packed ops, as Larq Compute Engine's custom operators (encodings: LCE 0.16's own converter).

A packed tensor is int32 `[..., W]`; LCE's convolution and pooling want rank 4, so other ranks pass through a
4-D view. A view costs a RESHAPE, which the runtimes copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flatbuffers import flexbuffers
from torch import fx

from bgnn.converter.tflite.builder import Value, numel
from bgnn.converter.tflite.walk import BOOL, FLOAT, INT, Walk

_VALID = 1  # LCE's code for no padding
_NO_ACTIVATION = 0


def flexbuffer(options: Mapping[str, int | float | str]) -> bytes:
    """A flexbuffer map of integers and texts, of float32 numbers their bits; keys are sorted in the file."""
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in options.items():
            if isinstance(value, str):
                builder.String(key, value)
            else:
                builder.Int(key, value if isinstance(value, int) else int(np.float32(value).view(np.int32)))
    return bytes(builder.Finish())


def pack(walk: Walk, node: fx.Node, x: fx.Node) -> Value:
    """LceQuantize: bit 1 where `x < 0`."""
    out = walk.result(walk.shape(node), INT)
    # It reads float32; integers that a float32 rounds keep their sign.
    walk.builder.custom("LceQuantize", [walk.operand(x, FLOAT)], [out], b"")
    return out


def unpack(walk: Walk, node: fx.Node, p: fx.Node, channels: int) -> Value:
    """LceDequantize. It cannot infer how many channels the last word holds: the file's shape says so."""
    out = walk.result(walk.shape(node), FLOAT)
    walk.builder.custom("LceDequantize", [walk.value(p)], [out], b"")
    return out


def bconv(
    walk: Walk,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    channels_in: int,
    multiplier: fx.Node,
    bias: fx.Node,
) -> Value:
    """LceBconv2d with float output.

    With p differing bits LCE computes p * (-2 multiplier) + (bias + channels_in * multiplier), which rounds
    otherwise than dot * multiplier + bias: by up to 2^-23 * channels_in * |multiplier|. Multiplier 1 and bias
    0 give the exact integers.
    """
    per_channel = [walk.value(multiplier), walk.value(bias), None]
    return _bconv(walk, node, x, weight, channels_in, per_channel, FLOAT)


def bconv_bits(walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, channels_in: int, threshold: fx.Node) -> Value:
    """LceBconv2d with packed output."""
    return _bconv(walk, node, x, weight, channels_in, [None, None, walk.value(threshold)], INT)


def _bconv(
    walk: Walk,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    channels_in: int,
    per_channel: list[Value | None],
    dtype: Any,
) -> Value:
    value, filters = walk.value(x), walk.array(weight)
    if filters is None:
        # LCE's fast kernels pack the filter once and keep it: a changing one is wrong from the second run on.
        walk.refuse(node, "has a weight that is not a constant", "use torch.matmul on the unpacked signs")
    out_channels, words = filters.shape
    shape = walk.shape(node)
    # Any 4-D view is as fast: [8,1024,20,W], [1,163840,1,W], [163840,1,1,W], ... differ by less than 2 %.
    view = value.shape if value.rank == 4 else (1, numel(value.shape[:-1]), 1, words)
    out = walk.result((*view[:-1], shape[-1]), dtype)
    options = {
        "channels_in": channels_in,
        "dilation_height_factor": 1,
        "dilation_width_factor": 1,
        "fused_activation_function": _NO_ACTIVATION,
        "pad_values": 0,
        "padding": _VALID,
        "stride_height": 1,
        "stride_width": 1,
    }
    ohwi = walk.constant(filters.reshape(out_channels, 1, 1, words))
    inputs = [walk.reshape(value, view), ohwi, *per_channel]
    walk.builder.custom("LceBconv2d", inputs, [out], flexbuffer(options))
    return walk.reshape(out, shape)


def packed_max(walk: Walk, node: fx.Node, x: fx.Node, dim: int) -> Value:
    """LceBMaxPool2d over one axis: a window as long as that axis."""
    value, axis = walk.value(x), walk.axis(x, dim)
    return walk.reshape(_and_over(walk, value, axis), walk.shape(node))


def bitwise_and(walk: Walk, node: fx.Node, x: fx.Node, y: fx.Node) -> Value:
    """LOGICAL_AND of booleans. TFLite has no AND of integers; LceBMaxPool2d over the stacked pair is one."""
    shape, dtype = walk.shape(node), walk.dtype(node)
    pair = [walk.operand(x, dtype), walk.operand(y, dtype)]
    if dtype == BOOL:
        return walk.op("LOGICAL_AND", pair, shape, dtype)
    rows = [walk.reshape(walk.broadcast(value, shape), (1, 1, 1, numel(shape))) for value in pair]
    stacked = walk.concatenation(rows, 1)
    return walk.reshape(_and_over(walk, stacked, 1), shape)


def _and_over(walk: Walk, value: Value, axis: int) -> Value:
    """The bitwise AND over one axis; the result is 4-D, in the elements' order.

    The axis becomes the window's width in the view [1, before, axis, after]: for [8,1024,20,4] 0.2 ms on one
    x86 thread, against 0.6 ms as the height of [before, axis, 1, after].
    """
    length = value.shape[axis]
    if value.rank == 4 and axis == 2:
        view = value.shape  # as it stands, without a RESHAPE
    else:
        view = (1, numel(value.shape[:axis]), length, numel(value.shape[axis + 1 :]))
    out = walk.result((view[0], view[1], 1, view[3]), INT)
    options = {
        "filter_height": 1,
        "filter_width": length,
        "padding": _VALID,
        "stride_height": 1,
        "stride_width": length,
    }
    walk.builder.custom("LceBMaxPool2d", [walk.reshape(value, view)], [out], flexbuffer(options))
    return out


LOWERINGS: dict[str, Callable[..., Value]] = {
    "bgnn.pack.default": pack,
    "bgnn.unpack.default": unpack,
    "bgnn.bconv.default": bconv,
    "bgnn.bconv_bits.default": bconv_bits,
    "bgnn.packed_max.default": packed_max,
    "aten.bitwise_and.Tensor": bitwise_and,
}
