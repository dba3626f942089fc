"""The ops on packed signs by this project's operators (`--kernels bgnn`): here the file holds packed int32 tensors.

They are the kernels of the TFLite delegate, behind ONNX Runtime's interface. Neighbours are int32 in their inputs and
outputs and int64 in the IR: a table that goes from one to the other stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from bgnn.converter.onnx.builder import OWN, Value
from bgnn.converter.onnx.walk import FLOAT, I32, I64, Walk


def _own(walk: Walk, op: str, inputs: list[Value], dtype: Any, **attributes: Any) -> Value:
    return walk.op(op, inputs, dtype, domain=OWN, **attributes)


def _table(walk: Walk, made: Value) -> Value:
    """An operator's neighbours int32 as the IR's int64."""
    wide = walk.cast(made, I64)
    walk.shared["narrow", wide.name] = made
    return wide


def _neighbours(walk: Walk, index: fx.Node) -> Value:
    wide = walk.value(index)
    return walk.shared.get(("narrow", wide.name)) or walk.cast(wide, I32)


def hamming_knn(walk: Walk, node: fx.Node, x: fx.Node, channels: int, k: int) -> Value:
    """HammingKnn."""
    return _table(walk, _own(walk, "HammingKnn", [walk.value(x)], I32, channels=channels, k=k))


def real_knn(walk: Walk, node: fx.Node, x: fx.Node, k: int) -> Value:
    """Knn."""
    return _table(walk, _own(walk, "Knn", [walk.value(x)], I32, k=k))


def gather_max(walk: Walk, node: fx.Node, x: fx.Node, index: fx.Node) -> Value:
    """GatherMax."""
    return _own(walk, "GatherMax", [walk.value(x), _neighbours(walk, index)], FLOAT)


def edge_max(
    walk: Walk, node: fx.Node, x: fx.Node, ends: fx.Node, index: fx.Node, beta: fx.Node, gamma: fx.Node
) -> Value:
    """EdgeMax."""
    inputs = [walk.value(x), walk.value(ends), _neighbours(walk, index), walk.value(beta), walk.value(gamma)]
    return _own(walk, "EdgeMax", inputs, FLOAT)


def xor_edge_conv(
    walk: Walk, node: fx.Node, x: fx.Node, index: fx.Node, weight: fx.Node, thresholds: fx.Node, channels: int
) -> Value:
    """XorEdgeConv."""
    inputs = [walk.value(x), _neighbours(walk, index), walk.value(weight), walk.value(thresholds)]
    return _own(walk, "XorEdgeConv", inputs, I32, channels=channels)


def bin_edge_conv(walk: Walk, node: fx.Node, bits: fx.Node, x: fx.Node, index: fx.Node, *rest: Any) -> Value:
    """BinEdgeConv."""
    *tensors, channels = rest
    inputs = [walk.value(bits), walk.value(x), _neighbours(walk, index), *(walk.value(t) for t in tensors)]
    return _own(walk, "BinEdgeConv", inputs, FLOAT, channels=channels)


def dense_pool(walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, scale: fx.Node | None, channels: int) -> Value:
    """DensePool; with a factor for each point ScaledPool."""
    inputs = [walk.value(x), walk.value(weight)]
    if scale is None:
        return _own(walk, "DensePool", inputs, FLOAT, channels=channels)
    return _own(walk, "ScaledPool", [*inputs, walk.value(scale)], FLOAT, channels=channels)


def pack(walk: Walk, node: fx.Node, x: fx.Node) -> Value:
    """Pack."""
    return _own(walk, "Pack", [walk.operand(x, FLOAT)], I32)


def unpack(walk: Walk, node: fx.Node, p: fx.Node, channels: int) -> Value:
    """Unpack."""
    return _own(walk, "Unpack", [walk.value(p)], FLOAT, channels=channels)


def bconv(
    walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, channels_in: int, multiplier: fx.Node, bias: fx.Node
) -> Value:
    """BinaryDense."""
    inputs = [walk.value(x), walk.value(weight), walk.value(multiplier), walk.value(bias)]
    return _own(walk, "BinaryDense", inputs, FLOAT, channels=channels_in)


def bconv_bits(walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, channels_in: int, threshold: fx.Node) -> Value:
    """BinaryDenseBits."""
    inputs = [walk.value(x), walk.value(weight), walk.value(threshold)]
    return _own(walk, "BinaryDenseBits", inputs, I32, channels=channels_in)


def packed_max(walk: Walk, node: fx.Node, x: fx.Node, dim: int) -> Value:
    """PackedMax over the middle of three axes."""
    sizes = [int(size) for size in x.meta["val"].shape]
    axis = dim % len(sizes)
    flat = [math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :])]
    made = _own(walk, "PackedMax", [walk.reshape(walk.value(x), flat)], I32)
    return walk.reshape(made, [*sizes[:axis], *sizes[axis + 1 :]])


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.hamming_knn.default": hamming_knn,
    "bgnn.real_knn.default": real_knn,
    "bgnn.gather_max.default": gather_max,
    "bgnn.edge_max.default": edge_max,
    "bgnn.xor_edge_conv.default": xor_edge_conv,
    "bgnn.bin_edge_conv.default": bin_edge_conv,
    "bgnn.dense_pool.default": dense_pool,
    "bgnn.pack.default": pack,
    "bgnn.unpack.default": unpack,
    "bgnn.bconv.default": bconv,
    "bgnn.bconv_bits.default": bconv_bits,
    "bgnn.packed_max.default": packed_max,
}
