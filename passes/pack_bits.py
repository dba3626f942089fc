"""Binary tensors become bits, 32 channels to an int32 word, and stay bits from one binary layer to the next.

Moves (gather, repeat, reshape, join where channels fill words) act on words; the maximum of signs is the AND of
bits; the product of two binaries (the XOR edge, paper Eq. 17) is the XOR of words. Signs that are known per channel
(the minus of the XOR edge, channels that take a minimum) are carried along beside the words and
end in the next layer's weights. A binary dense layer with real output becomes `bconv`, with the rescaling, bias and
norm after it as its multiplier and bias. Everything else that reads a binary tensor gets it unpacked.

With `stay_packed=False` only the dense layers' inputs are packed, as the papers' route does (`-O0`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.converter.dialect import WORD
from bgnn.passes import domains as dm
from bgnn.passes.binary_rows import binary_rows, why_not
from bgnn.passes.canonicalise import expand, reshape
from bgnn.passes.chains import affine_of
from bgnn.passes.fuse_xor_edge_conv import packed_weight
from bgnn.passes.graph import (
    PassResult,
    Tap,
    arg,
    aten,
    call,
    constant,
    is_call,
    is_constant,
    leaves_channels,
    only_user,
    reduced_axes,
    remove_dead_code,
    replace,
    set_tap,
    shape_of,
    value_of,
)

NEEDS = ("binarize", "dot_threshold", "xor_edge_layer", "bin_edge_layer", "dense_pool_layer", "gather_nodes")
MAKES = ("pack", "unpack", "bconv", "bconv_bits", "packed_max", "xor_edge_conv", "bin_edge_conv", "dense_pool")

bgnn = torch.ops.bgnn


@dataclasses.dataclass(frozen=True)
class Bits:
    """A binary tensor: `unpack(words) * flip`, with a sign per channel (None: all +1)."""

    words: fx.Node
    channels: int
    flip: Tensor | None = None

    def times(self, other: Tensor | None) -> Tensor | None:
        """This flip and another one together."""
        if self.flip is None or other is None:
            return self.flip if other is None else other
        product = self.flip * other
        return None if bool((product == 1).all()) else product


def run(gm: fx.GraphModule, stay_packed: bool = True) -> PassResult:
    """One walk in order; `rewrites` counts binary dense layers."""
    result = PassResult()
    domains = dm.analyse(gm)
    packed: dict[fx.Node, Bits] = {}
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node._erased or not isinstance(node.meta.get("val"), Tensor):
            continue
        if is_call(node, aten.linear) and is_constant(node.args[1]):
            if domains[cast(fx.Node, node.args[0])].kind == "binary":
                _dense(node, packed, result, fuse_affine=stay_packed)
            continue
        if is_call(node, bgnn.dense_pool_layer, bgnn.bin_edge_layer):
            (_pooled_layer if is_call(node, bgnn.dense_pool_layer) else _real_edge_layer)(node, packed)
            result.rewrites += 1
            continue
        if domains[node].kind != "binary":
            continue
        bits = _bits(node, packed) if stay_packed else None
        if bits is not None:
            packed[node] = bits
            if "tap" in node.meta:
                tap = cast(Tap, node.meta.pop("tap"))
                set_tap(bits.words, tap.changed(channels=bits.channels, flip=bits.flip))
    for node, bits in packed.items():  # those who still read +-1 numbers get them unpacked
        if node.users:
            first = next(n for n in gm.graph.nodes if n in node.users)
            node.replace_all_uses_with(_unpacked(first, bits))
    remove_dead_code(gm)
    if not stay_packed:
        _quantise_signs(gm)
    return result


def _has_channels(node: fx.Node) -> bool:
    """Whether there is an axis to pack along: not of a single sign, nor of one of each edge."""
    return isinstance(next(reversed(shape_of(node)), None), int)


def _bits(node: fx.Node, packed: dict[fx.Node, Bits]) -> Bits | None:
    """The node as bits, built from its operands' bits; None if it has to stay numbers."""
    if not _has_channels(node):
        return None
    channels = shape_of(node)[-1]
    x = node.args[0]
    if is_call(node, bgnn.binarize):
        return Bits(call(node, bgnn.pack.default, x), channels)
    if is_call(node, bgnn.dot_threshold):
        return _threshold_layer(node, packed)
    if is_call(node, bgnn.xor_edge_layer):
        return _edge_layer(node, packed)
    if is_call(node, aten.cat):
        return _join(node, packed)
    if not isinstance(x, fx.Node):
        return None
    if is_call(node, aten.mul):
        return _product(node, packed)
    if x not in packed:
        return None
    bits = packed[x]
    rank = len(shape_of(x))
    same_channels = shape_of(x)[-1:] == (channels,)
    if is_call(node, aten.neg):
        return Bits(bits.words, channels, bits.times(-torch.ones(channels)))
    if is_call(node, aten.amax, aten.amin):
        return _maximum(node, bits)
    if is_call(node, aten.reshape) and same_channels:
        shape = (*shape_of(node)[:-1], shape_of(bits.words)[-1])
        return Bits(reshape(node, bits.words, shape), channels, bits.flip)
    if is_call(node, aten.expand) and same_channels:
        shape_list = [*shape_of(node)[:-1], shape_of(bits.words)[-1]]
        return Bits(expand(node, bits.words, shape_list), channels, bits.flip)
    if is_call(node, bgnn.gather_nodes):
        return Bits(call(node, node.target, bits.words, node.args[1]), channels, bits.flip)
    moves_rows = is_call(node, aten.slice, aten.index_select) and cast(int, node.args[1]) % rank != rank - 1
    keeps_last = is_call(node, aten.permute) and cast(list[int], node.args[1])[-1] % rank == rank - 1
    if moves_rows or keeps_last:
        return Bits(call(node, node.target, bits.words, *node.args[1:]), channels, bits.flip)
    return None


def _maximum(node: fx.Node, bits: Bits) -> Bits | None:
    if not leaves_channels(node):
        return None
    lowest = is_call(node, aten.amin)
    signs = bits.flip if bits.flip is not None else torch.ones(bits.channels)
    if lowest:
        signs = -signs
    if bool((signs == signs[0]).all()) and signs[0] < 0:  # max(-v) = -min(v), and AND is a maximum of v
        words = _flipped(node, bits.words, bits.channels, -torch.ones(bits.channels))
    else:
        words = _flipped(node, bits.words, bits.channels, signs)
    for dim in reversed(reduced_axes(node)):
        words = call(node, bgnn.packed_max.default, words, dim)
    shape = (*shape_of(node)[:-1], shape_of(words)[-1])
    flip = -torch.ones(bits.channels) if lowest else None
    return Bits(reshape(node, words, shape), bits.channels, flip)


def _product(node: fx.Node, packed: dict[fx.Node, Bits]) -> Bits | None:
    left, right = node.args[:2]
    channels = shape_of(node)[-1]
    if not isinstance(left, fx.Node) or left not in packed:
        left, right = right, left
    if not isinstance(left, fx.Node) or left not in packed:
        return None
    bits = packed[left]
    if isinstance(right, (int, float)):
        return Bits(bits.words, channels, bits.times(torch.full((channels,), float(right))))
    other = cast(fx.Node, right)
    if is_constant(other):
        signs = value_of(other)
        if tuple(signs.shape) not in ((), (1,), (channels,)) or shape_of(left) != shape_of(node):
            return None
        return Bits(bits.words, channels, bits.times(signs.float().expand(channels).clone()))
    if other not in packed or shape_of(other)[-1] != shape_of(left)[-1]:
        return None
    twin = packed[other]
    words = call(node, aten.bitwise_xor.Tensor, bits.words, twin.words)
    return Bits(words, channels, bits.times(twin.flip))


def _join(node: fx.Node, packed: dict[fx.Node, Bits]) -> Bits | None:
    parts = cast(list[fx.Node], node.args[0])
    rank = len(shape_of(node))
    dim = arg(node, 1, "dim", 0) % rank
    if any(p not in packed for p in parts):
        return None
    bits = [packed[p] for p in parts]
    flip: Tensor | None = None
    if dim == rank - 1:
        if any(b.channels % WORD for b in bits[:-1]):
            return None
        if any(b.flip is not None for b in bits):
            flip = torch.cat([b.flip if b.flip is not None else torch.ones(b.channels) for b in bits])
        words = [b.words for b in bits]
    else:
        words = [_flipped(node, b.words, b.channels, b.flip) for b in bits]
    return Bits(call(node, aten.cat.default, words, dim), shape_of(node)[-1], flip)


def _flipped(before: fx.Node, words: fx.Node, channels: int, flip: Tensor | None) -> fx.Node:
    """The words with the flipped channels' bits turned over."""
    if flip is None or bool((flip == 1).all()):
        return words
    mask = torch.ops.bgnn.pack(flip)
    return call(before, aten.bitwise_xor.Tensor, words, constant(before, mask, "flip_mask"))


def _unpacked(before: fx.Node, bits: Bits) -> fx.Node:
    words = _flipped(before, bits.words, bits.channels, bits.flip)
    return call(before, bgnn.unpack.default, words, bits.channels, like=bits.words)


def _threshold_layer(node: fx.Node, packed: dict[fx.Node, Bits]) -> Bits | None:
    x, weight, thresholds = cast(tuple[fx.Node, fx.Node, fx.Node], node.args)
    bits = packed.get(x) or Bits(call(node, bgnn.pack.default, x), shape_of(x)[-1])
    signs = value_of(weight) if bits.flip is None else value_of(weight) * bits.flip
    filters = constant(node, torch.ops.bgnn.pack(signs), str(weight.target))
    rows = list(value_of(thresholds))
    # always passed, or never: no dot product; but bits have to come from somewhere
    fixed = [bool(((row == -1) | (row == torch.iinfo(torch.int32).max)).all()) for row in rows]
    fixed[0] &= not all(fixed)
    words: fx.Node | None = None
    inverted = torch.ones(shape_of(node)[-1])
    for row, is_fixed in zip(rows, fixed, strict=True):
        if is_fixed:
            inverted = inverted * torch.where(row == -1, -1.0, 1.0)
            continue
        step = call(
            node, bgnn.bconv_bits.default, bits.words, filters, bits.channels,
            constant(node, row, str(thresholds.target)),
        )  # fmt: skip
        words = step if words is None else call(node, aten.bitwise_xor.Tensor, words, step)
    assert words is not None
    channels = shape_of(node)[-1]
    return Bits(_flipped(node, words, channels, inverted), channels)


def _edge_layer(node: fx.Node, packed: dict[fx.Node, Bits]) -> Bits:
    """A fused XOR edge layer. A flipped channel turns the node half's weight; x_i * x_j turns twice, so not at all."""
    x, index, weight, thresholds = cast(tuple[fx.Node, ...], node.args)
    bits = packed.get(x) or Bits(call(node, bgnn.pack.default, x), shape_of(x)[-1])
    signs = value_of(weight).clone()
    if bits.flip is not None:
        signs[:, : bits.channels] *= bits.flip
    filters = constant(node, packed_weight(signs, bits.channels), str(weight.target))
    words = call(
        node, bgnn.xor_edge_conv.default, bits.words, index, filters, thresholds, bits.channels
    )  # fmt: skip
    return Bits(words, shape_of(node)[-1])


def _pooled_layer(node: fx.Node, packed: dict[fx.Node, Bits]) -> None:
    """A fused dense layer and pooling."""
    x, weight = cast(tuple[fx.Node, fx.Node], node.args[:2])
    bits = packed.get(x) or Bits(call(node, bgnn.pack.default, x), shape_of(x)[-1])
    signs = value_of(weight) if bits.flip is None else value_of(weight) * bits.flip
    filters = constant(node, torch.ops.bgnn.pack(signs), str(weight.target))
    replace(node, call(node, bgnn.dense_pool.default, bits.words, filters, node.args[2], bits.channels))


def _real_edge_layer(node: fx.Node, packed: dict[fx.Node, Bits]) -> None:
    """A fused layer on real features, whose node half comes as bits."""
    signs, weight = cast(fx.Node, node.args[0]), cast(fx.Node, node.args[5])
    bits = packed.get(signs) or Bits(call(node, bgnn.pack.default, signs), shape_of(signs)[-1])
    values = value_of(weight).clone()
    if bits.flip is not None:
        values[:, : bits.channels] *= bits.flip
    filters = constant(node, packed_weight(values, bits.channels), str(weight.target))
    args = [bits.words, *node.args[1:5], filters, *node.args[6:], bits.channels]
    replace(node, call(node, bgnn.bin_edge_conv.default, *args))


def _dense(node: fx.Node, packed: dict[fx.Node, Bits], result: PassResult, fuse_affine: bool) -> None:
    """A dense layer on a binary tensor: bconv if its weights are binary too."""
    x, weight = cast(fx.Node, node.args[0]), cast(fx.Node, node.args[1])
    rows = binary_rows(value_of(weight))
    if rows is None:
        result.refuse(node, f"binary input, but {why_not(value_of(weight))}")
        return
    signs, multiplier = rows
    bias = torch.zeros(len(multiplier))
    if len(node.args) > 2 and node.args[2] is not None:
        bias = value_of(cast(fx.Node, node.args[2]))
    last = node
    while fuse_affine:
        following = only_user(last)
        affine = affine_of(following) if following is not None else None
        if affine is None or following is None or "tap" in following.meta:
            break
        multiplier, bias = multiplier * affine[0], bias * affine[0] + affine[1]
        last = following
    bits = packed.get(x)
    words = bits.words if bits is not None else call(node, bgnn.pack.default, x)
    if bits is not None and bits.flip is not None:
        signs = signs * bits.flip
    name = str(weight.target)
    shape = shape_of(words)
    if len(shape) < 4:  # LCE's convolution takes four axes; given here, the large result needs no reshape
        words = reshape(last, words, (*shape[:-1][:1], *(1,) * (4 - len(shape)), *shape[:-1][1:], shape[-1]), like=node)
    new = call(
        last, bgnn.bconv.default, words, constant(last, torch.ops.bgnn.pack(signs), name), signs.shape[1],
        constant(last, multiplier, f"{name}_multiplier"), constant(last, bias, f"{name}_bias"), like=node,
    )  # fmt: skip
    replace(last, reshape(last, new, (*shape[:-1], signs.shape[0]), like=node))
    result.rewrites += 1


def _quantise_signs(gm: fx.GraphModule) -> None:
    """A sign whose +-1 are read as numbers goes through bits and back: LCE has no other sign."""
    for node in list(gm.graph.nodes):
        if is_call(node, bgnn.binarize) and _has_channels(node):
            words = call(node, bgnn.pack.default, node.args[0])
            for user in list(node.users):
                if is_call(user, bgnn.pack):
                    replace(user, words)
            if node.users:
                tap: Any = node.meta.get("tap")
                replace(node, call(node, bgnn.unpack.default, words, shape_of(node)[-1]), tap)
            elif "tap" in node.meta:
                words.meta["tap"] = node.meta["tap"].changed(channels=shape_of(node)[-1])
    remove_dead_code(gm)
