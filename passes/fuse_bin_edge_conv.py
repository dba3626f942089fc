"""RF's edge layer as one operator (`--kernels bgnn`): differences, signs, dot product, rescaling, PReLU and maximum.

`max_j PReLU(Gamma * W sign([x_i, x_j - x_i] - t))` (binary GNN paper, Eq. 12-13; the norm is already the comparison
with t that fold_sign makes of it) becomes `bgnn::bin_edge_layer`: the node's half is a sign per node, an edge is made
and used in registers. Gamma is a product of factors per channel, per point and per neighbour (Eq. 11), in any order.
The signs are exact; the rescaling may round in another order than PyTorch, within float tolerance.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.canonicalise import reshape
from bgnn.passes.chains import rescaled
from bgnn.passes.fuse_xor_edge_conv import repeated
from bgnn.passes.graph import (
    PassResult,
    Tap,
    aten,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    only_user,
    reduced_axes,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

NEEDS = ("sign(x - t)", "gather_nodes", "prelu")
MAKES = ("bin_edge_layer",)

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites each such layer whose edges are differences of one gathered tensor."""
    result = PassResult()
    for top in calls(gm.graph, aten.amax):
        if reduced_axes(top) != [2] or len(shape_of(cast(fx.Node, top.args[0]))) != 4:
            continue
        if not isinstance(shape_of(cast(fx.Node, top.args[0]))[1], int):
            continue  # a factor for each point: their number is known
        layer, factors, slope = _down_to_layer(top)
        if layer is None:
            continue
        rows = binary_rows(value_of(cast(fx.Node, layer.args[1])))
        signs = _signs(cast(fx.Node, layer.args[0]))
        if rows is None or signs is None:
            continue
        joined, threshold, flip, tap = signs
        halves = _halves(joined)
        if halves is None:
            result.refuse(layer, "its edges are not [x_i, x_j - x_i] of one gathered tensor")
            continue
        x, index, order = halves
        weight = rows[0] if flip is None else rows[0] * flip
        factors["alpha"] = factors["alpha"] * rows[1]
        fused = _fuse(top, layer, x, index, order, weight, threshold, factors, slope)
        if tap is not None:
            fused.meta["tap"] = tap.changed(inside=order)
        replace(top, reshape(top, fused, shape_of(top), like=layer))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _down_to_layer(top: fx.Node) -> tuple[fx.Node | None, dict[str, Tensor], Tensor]:
    """(the dense layer, factors per channel, point and neighbour, PReLU slopes) below a maximum over neighbours."""
    _, points, neighbours, channels = shape_of(cast(fx.Node, top.args[0]))
    sizes = {"alpha": (1, 1, channels), "beta": (points, 1, 1), "gamma": (1, neighbours, 1)}
    factors = {name: torch.ones(max(size)) for name, size in sizes.items()}
    slope = torch.ones(1)
    current = cast(fx.Node, top.args[0])
    if only_user(current) is not None and is_call(current, bgnn.prelu, aten.relu):
        slope = value_of(cast(fx.Node, current.args[1])) if is_call(current, bgnn.prelu) else torch.zeros(1)
        current = cast(fx.Node, current.args[0])
    factors, current = rescaled(current, sizes, factors)
    plain = is_call(current, aten.linear) and only_user(current) is not None and is_constant(current.args[1])
    if not plain or (len(current.args) > 2 and current.args[2] is not None):
        return None, factors, slope
    return current, factors, slope


def _signs(x: fx.Node) -> tuple[fx.Node, Tensor, Tensor | None, Tap | None] | None:
    """(z, t, s, tap) if x is `s * sign(z - t)` on a joined z, t and s per channel; tap tells of `sign(z - t)`."""
    flip: Tensor | None = None
    channels = shape_of(x)[-1]
    tap = cast("Tap | None", x.meta.get("tap"))
    if is_call(x, aten.mul) and is_constant(x.args[1]) and shape_of(cast(fx.Node, x.args[1])) == (channels,):
        flip, x = value_of(cast(fx.Node, x.args[1])), cast(fx.Node, x.args[0])
        tap = _turned(tap, flip) if tap is not None else x.meta.get("tap")
    if not is_call(x, bgnn.binarize):
        return None
    z = cast(fx.Node, x.args[0])
    if is_call(z, aten.sub) and is_constant(z.args[1]) and shape_of(cast(fx.Node, z.args[1])) == (channels,):
        return cast(fx.Node, z.args[0]), value_of(cast(fx.Node, z.args[1])), flip, tap
    return z, torch.zeros(channels), flip, tap


def _turned(tap: Tap, flip: Tensor) -> Tap:
    """The tap of `s * y` as one of y."""
    twins = tuple(_turned(twin, flip) for twin in tap.twins)
    return dataclasses.replace(tap, flip=flip if tap.flip is None else tap.flip * flip, twins=twins)


def _halves(joined: fx.Node) -> tuple[fx.Node, fx.Node, tuple[int, int]] | None:
    """(x, neighbour table, which part is the node's and which the edge's)."""
    if not is_call(joined, aten.cat) or cast(int, joined.args[1]) % 4 != 3:
        return None
    parts = cast(list[fx.Node], joined.args[0])
    for order in ((0, 1), (1, 0)) if len(parts) == 2 else ():
        node, edge = parts[order[0]], parts[order[1]]
        x = repeated(node)
        if x is None or not is_call(edge, aten.sub) or edge.args[1] is not node:
            continue
        other = cast(fx.Node, edge.args[0])
        if is_call(other, bgnn.gather_nodes) and other.args[0] is x:
            return x, cast(fx.Node, other.args[1]), order
    return None


def _fuse(
    top: fx.Node, layer: fx.Node, x: fx.Node, index: fx.Node, order: tuple[int, int], weight: Tensor,
    threshold: Tensor, factors: dict[str, Tensor], slope: Tensor,
) -> fx.Node:  # fmt: skip
    channels = shape_of(x)[2]
    weights, limits = torch.split(weight, channels, dim=1), torch.split(threshold, channels)
    name = str(cast(fx.Node, layer.args[1]).target)
    shifted = call(top, aten.sub.Tensor, x, constant(top, limits[order[0]], f"{name}_node_threshold"), like=layer)
    node_signs = call(top, bgnn.binarize.default, shifted, like=layer)
    values = [
        constant(top, torch.ones(channels), f"{name}_edge_scale"),
        constant(top, -limits[order[1]], f"{name}_edge_shift"),
        constant(top, torch.cat([weights[order[0]], weights[order[1]]], 1), name),
        *(constant(top, factors[n], f"{name}_{n}") for n in factors),
        constant(top, slope, f"{name}_slope"),
    ]
    return call(top, bgnn.bin_edge_layer.default, node_signs, x, index, *values, like=layer)
