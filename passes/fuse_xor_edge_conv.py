"""An XOR edge layer from features to bits as one operator: gather, XOR, dot product, threshold, maximum.

For `--kernels bgnn`: `max_j dot_threshold([x_i, s x_i * x_j])` with j from a neighbour table becomes
`bgnn::xor_edge_layer(x, table, W, t)`, and no edge tensor exists. The join may have its halves in either order and the
product either sign (paper, Eq. 17: minus); both go into the weights. Exact.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes.canonicalise import reshape
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    constant,
    is_call,
    only_user,
    reduced_axes,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

NEEDS = ("dot_threshold", "gather_nodes")
MAKES = ("xor_edge_layer",)

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites each `amax(dot_threshold(cat(node half, edge half)), neighbours)`."""
    result = PassResult()
    for layer in calls(gm.graph, bgnn.dot_threshold):
        top = only_user(layer)
        joined = cast(fx.Node, layer.args[0])
        if top is None or not is_call(top, aten.amax) or not is_call(joined, aten.cat) or len(shape_of(joined)) != 4:
            continue
        if reduced_axes(top) != [2] or cast(int, joined.args[1]) % 4 != 3:
            continue
        found = _halves(cast(list[fx.Node], joined.args[0]))
        if found is None:
            result.refuse(layer, "its input is not [x_i, x_i * x_j] of one gathered tensor")
            continue
        x, index, order, sign = found
        channels = shape_of(x)[2]
        halves = torch.split(value_of(cast(fx.Node, layer.args[1])), channels, dim=1)
        weight = torch.cat([halves[order[0]], sign * halves[order[1]]], 1)
        name = str(cast(fx.Node, layer.args[1]).target)
        new = call(
            top, bgnn.xor_edge_layer.default, x, index, constant(top, weight, name), layer.args[2], like=layer
        )  # fmt: skip
        replace(top, reshape(top, new, shape_of(top), like=new))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _halves(parts: list[fx.Node]) -> tuple[fx.Node, fx.Node, tuple[int, int], float] | None:
    """(x, neighbour table, which part is node and which edge, the edge product's sign)."""
    if len(parts) != 2:
        return None
    for order in ((0, 1), (1, 0)):
        node, edge = parts[order[0]], parts[order[1]]
        x = repeated(node)
        if x is None:
            continue
        sign, left, right = _product(edge)
        for own, other in ((left, right), (right, left)):
            own_sign, own = _without_minus(own)
            other_sign, other = _without_minus(other)
            if own is None or other is None or repeated(own) is not x:
                continue
            if is_call(other, bgnn.gather_nodes) and other.args[0] is x:
                return x, cast(fx.Node, other.args[1]), order, sign * own_sign * other_sign
    return None


def repeated(node: fx.Node) -> fx.Node | None:
    """`x[B, N, C]` if the node is x repeated for every neighbour."""
    if not is_call(node, aten.expand):
        return None
    inner = cast(fx.Node, node.args[0])
    if not is_call(inner, aten.reshape) or len(shape_of(inner)) != 4 or shape_of(inner)[2] != 1:
        return None
    x = cast(fx.Node, inner.args[0])
    return x if len(shape_of(x)) == 3 and shape_of(x)[0] == shape_of(inner)[0] else None


def _without_minus(node: fx.Node | None) -> tuple[float, fx.Node | None]:
    sign = 1.0
    while node is not None and is_call(node, aten.neg):
        sign, node = -sign, cast(fx.Node, node.args[0])
    return sign, node


def _product(edge: fx.Node) -> tuple[float, fx.Node | None, fx.Node | None]:
    sign, inner = _without_minus(edge)
    if inner is None or not is_call(inner, aten.mul) or not all(isinstance(a, fx.Node) for a in inner.args):
        return sign, None, None
    left, right = cast(tuple[fx.Node, fx.Node], inner.args[:2])
    return sign, left, right


def packed_weight(weight: Tensor, channels: int) -> Tensor:
    """`[O, 2C]` signs as `[O, 2W]` words, each half padded by itself."""
    return torch.cat([torch.ops.bgnn.pack(half.contiguous()) for half in torch.split(weight, channels, dim=1)], 1)
