"""The ops on signs, as 8-bit operators. ONNX Runtime has no binary kernels; its u8 by s8 products are the next best.

Where the IR holds a packed tensor int32 [..., W], the file holds its bits as codes u8 [..., 32 W]: 0 for bit 0 (+1),
255 for bit 1 (-1). 255 and not 1, because a comparison with a threshold is then one saturating operator. `packed_nodes`
finds these tensors; ops that only move them need not know.

For codes c and weights w of +-1 (bit b_w), the differing bits are p = sum(c w) / 255 + sum(b_w).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from bgnn.converter.dialect import WORD, packed_words
from bgnn.converter.onnx.builder import Value
from bgnn.converter.onnx.float_ops import reduce
from bgnn.converter.onnx.walk import BOOL, FLOAT, I8, I32, U8, Walk

_ONE = 255
_EACH_BIT = np.array([1 << i for i in range(WORD)], np.uint32).view(np.int32)


def bits(words: np.ndarray) -> np.ndarray:
    """int32 [..., W] as its bits, bool [..., 32 W]: bit i of word w is channel 32 w + i."""
    spread = words[..., None].astype(np.int64) >> np.arange(WORD) & 1
    return spread.astype(bool).reshape(*words.shape[:-1], -1)


def pack(walk: Walk, node: fx.Node, x: fx.Node) -> Value:
    """Codes of `x < 0`."""
    value = walk.operand(x, FLOAT)
    negative = walk.op("Less", [value, walk.constant(np.float32(0))], BOOL)
    codes = walk.op("Where", [negative, walk.constant(np.uint8(_ONE)), walk.constant(np.uint8(0))], U8)
    channels = int(x.meta["val"].shape[-1])
    missing = packed_words(channels) * WORD - channels
    if missing:
        ends = [0] * (2 * walk.rank(x) - 1) + [missing]
        codes = walk.op("Pad", [codes, walk.indices(ends), walk.constant(np.uint8(0))], U8)
    return codes


def unpack(walk: Walk, node: fx.Node, p: fx.Node, channels: int) -> Value:
    """+-1 in float32."""
    codes = walk.value(p)
    if channels % WORD:
        codes = walk.op("Slice", [codes, *(walk.indices([n]) for n in (0, channels, -1))], U8)
    chosen = [walk.constant(np.float32(-1)), walk.constant(np.float32(1))]
    return walk.op("Where", [walk.cast(codes, BOOL), *chosen], FLOAT)


def _weight(walk: Walk, node: fx.Node, weight: fx.Node) -> np.ndarray:
    words = walk.array(weight)
    if words is None:
        walk.refuse(node, "has a weight that is not a constant", "use torch.matmul on the signs")
    return bits(words)


def bconv(
    walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, channels_in: int, multiplier: fx.Node, bias: fx.Node
) -> Value:
    """MatMulInteger, then `p * (-2 multiplier) + (bias + K multiplier)`; exact where these are whole numbers."""
    ones, factor, shift = _weight(walk, node, weight), walk.array(multiplier), walk.array(bias)
    if factor is None or shift is None:
        walk.refuse(node, "has factors that are not constants", "make them parameters of the model")
    filters = walk.constant(np.where(ones, -1, 1).astype(np.int8).T)
    total = walk.cast(walk.op("MatMulInteger", [walk.value(x), filters], I32), FLOAT)
    differing = walk.op("Div", [total, walk.constant(np.float32(_ONE))], FLOAT)
    product = walk.op("Mul", [differing, walk.constant(np.float32(-2) * factor)], FLOAT)
    rest = shift.astype(np.float64) + (channels_in - 2 * ones.sum(1)) * factor.astype(np.float64)
    return walk.op("Add", [product, walk.constant(rest.astype(np.float32))], FLOAT)


def bconv_bits(walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, channels_in: int, threshold: fx.Node) -> Value:
    """QLinearConv: 255 (p - threshold) - 128 is above 0 where p > threshold, and 4 times that saturates."""
    ones, limits = _weight(walk, node, weight), walk.array(threshold)
    if limits is None:
        walk.refuse(node, "has thresholds that are not constants", "make them parameters of the model")
    limits = np.clip(limits.astype(np.int64), -1, ones.shape[1])  # beyond them nothing changes
    start = (_ONE * (ones.sum(1) - limits) - 128).astype(np.int32)
    one, quarter = walk.constant(np.float32(1)), walk.constant(np.float32(0.25))
    inputs = [
        walk.reshape(walk.value(x), [1, -1, ones.shape[1]]), one, walk.constant(np.uint8(0)),
        walk.constant(np.where(ones, -1, 1).astype(np.int8)[:, :, None]), one, walk.constant(I8.type(0)),
        quarter, walk.constant(np.uint8(0)), walk.constant(start),
    ]  # fmt: skip
    codes = walk.contrib("QLinearConv", inputs, U8, channels_last=1, kernel_shape=[1])
    missing = packed_words(len(ones)) * WORD - len(ones)
    if missing:
        codes = walk.op("Pad", [codes, walk.indices([0, 0, 0, 0, 0, missing]), walk.constant(np.uint8(0))], U8)
    return walk.reshape(codes, [-1 if dim is None else dim for dim in walk.dims(node)])


def packed_max(walk: Walk, node: fx.Node, x: fx.Node, dim: int) -> Value:
    """The largest sign is the least code."""
    return reduce(walk, "ReduceMin", walk.value(x), [walk.axis(x, dim)])


def bitwise_xor(walk: Walk, node: fx.Node, x: fx.Node, y: fx.Node) -> Value:
    """The product of signs; of booleans, whether they differ."""
    dtype = walk.dtype(node)
    op = "Xor" if dtype == BOOL else "BitwiseXor"
    return walk.op(op, [walk.value(x), walk.value(y)], dtype)


def words(walk: Walk, codes: Value, rank: int) -> Value:
    """Codes [..., 32 W] as packed int32 [..., W], as the IR has them."""
    split = walk.reshape(codes, [*[0] * (rank - 1), -1, WORD])
    ones = walk.cast(walk.cast(split, BOOL), I32)
    values = walk.op("Mul", [ones, walk.constant(_EACH_BIT)], I32)
    return reduce(walk, "ReduceSum", values, [-1])


def codes(walk: Walk, words: Value, rank: int) -> Value:
    """Packed int32 [..., W], an input that holds signs, as codes [..., 32 W]."""
    each = walk.op("Unsqueeze", [words, walk.indices([-1])], I32)
    ones = walk.cast(walk.op("BitwiseAnd", [each, walk.constant(_EACH_BIT)], I32), BOOL)
    spread = walk.op("Where", [ones, walk.constant(np.uint8(_ONE)), walk.constant(np.uint8(0))], U8)
    return walk.reshape(spread, [*[0] * (rank - 1), -1])


def packed_nodes(gm: fx.GraphModule) -> set[fx.Node]:
    """The nodes that hold packed signs, and the constants that stand for some."""
    packed = {node for node in gm.graph.nodes if node.op == "placeholder" and node.meta.get("packed")}
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        name = str(node.target)
        readers = ("bgnn.unpack", "bgnn.bconv.", "aten.sym_size")
        if name.startswith(("bgnn.pack.", "bgnn.bconv_bits")):
            packed.add(node)
        elif packed.intersection(node.all_input_nodes) and not name.startswith(readers):
            packed.add(node)
            packed.update(a for a in node.all_input_nodes if a.op == "get_attr" and "xor" in name)
    return packed


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.pack.default": pack,
    "bgnn.unpack.default": unpack,
    "bgnn.bconv.default": bconv,
    "bgnn.bconv_bits.default": bconv_bits,
    "bgnn.packed_max.default": packed_max,
    "aten.bitwise_xor.Tensor": bitwise_xor,
}
