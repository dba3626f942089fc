"""Maxima and means over neighbours or points are taken first, and functions per channel are applied to the result.

`max_j f(z_j) = f(max_j z_j)` for an increasing f (ReLU, PReLU with slopes >= 0, a positive rescaling); `f(min_j z_j)`
for a decreasing one; and where channels differ, or f is a PReLU with negative slopes (falling, then rising), its
largest value is at one of the ends: `max(f(max_j z_j), f(min_j z_j))`. A mean commutes with what is affine. What does
not depend on j comes out of both: `max_j (z_j + c) = (max_j z_j) + c`. So activations and norms run per node, k times
less. Maxima are exact, since rounding is monotone too; means round differently, within float tolerance.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from bgnn.passes import ops
from bgnn.passes.canonicalise import reshape
from bgnn.passes.chains import affine_of, data_of, is_channel_op
from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    is_call,
    leaves_channels,
    reduced_axes,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

MAKES = ("batch_norm", "prelu")

bgnn = torch.ops.bgnn
EXTREMA = [aten.amax, aten.amin]


def run(gm: fx.GraphModule) -> PassResult:
    """Takes each function, last first, behind all the reductions that read it; only if nothing else reads it."""
    result = PassResult()
    for z in reversed(list(gm.graph.nodes)):
        users = list(z.users)
        if z._erased or not users or not all(is_call(u, *EXTREMA, aten.mean) and leaves_channels(u) for u in users):
            continue
        way = _way(z, users, result)
        if way is None:
            continue
        varying, direction = way
        for user in users:
            _swap(user, z, varying, direction)
            result.rewrites += 1
        gm.graph.erase_node(z)  # or it would still count among its operand's users
    remove_dead_code(gm)
    return result


def _way(z: fx.Node, users: list[fx.Node], result: PassResult) -> tuple[fx.Node, str] | None:
    """(the operand that varies along the axes, "rising" | "falling" | "ends") if all the reductions can go first."""
    means = any(is_call(u, aten.mean) for u in users)
    if is_channel_op(z):
        way = direction(z)
        if way is None or (way == "convex" and any(is_call(u, aten.amin) for u in users)):
            result.refuse(z, "not monotone, so the reduction stays after it")
            return None
        if means and affine_of(z) is None:
            result.refuse(z, "not affine, so the mean stays after it")
            return None
        return data_of(z), "ends" if way == "convex" else way
    if is_call(z, aten.add, aten.sub) and not z.kwargs:
        for side in z.args:
            other = z.args[1] if side is z.args[0] else z.args[0]
            if not isinstance(side, fx.Node) or not isinstance(other, fx.Node) or side is other:
                continue
            if shape_of(side) != shape_of(z) or (is_call(z, aten.sub) and side is z.args[1]):
                continue
            still = [_without_expand(other, len(shape_of(z)), reduced_axes(u)) for u in users]
            if all(s is not None for s in still) and len(set(still)) == 1:
                if still[0] is not other:
                    z.replace_input_with(other, cast(fx.Node, still[0]))
                return side, "rising"
    return None


def direction(op: fx.Node) -> str | None:
    """How a channel op goes: "rising", "falling", "ends" (monotone, each channel its own way), "convex" (a valley)."""
    if is_call(op, *ops.having("rising")):
        return "rising"
    if is_call(op, aten.abs):
        return "convex"
    if is_call(op, aten.leaky_relu):
        return "rising" if float(cast(float, arg(op, 1, "negative_slope", 0.01))) >= 0 else "convex"
    if is_call(op, bgnn.prelu):
        return "rising" if bool((value_of(cast(fx.Node, op.args[1])) >= 0).all()) else "convex"
    affine = affine_of(op)
    if affine is None:
        return None
    if bool((affine[0] >= 0).all()):
        return "rising"
    return "falling" if bool((affine[0] <= 0).all()) else "ends"


def _swap(user: fx.Node, z: fx.Node, varying: fx.Node, direction: str) -> None:
    """`reduce(f(x))` becomes `f(reduce(x))`, with the reductions that the direction asks for."""
    axes = reduced_axes(user)

    def of(reduce: Any) -> fx.Node:
        small = call(user, reduce, varying, axes, True)
        return call(user, z.target, *(small if a is varying else a for a in z.args), like=z, **z.kwargs)

    if is_call(user, aten.mean):
        new = of(aten.mean.dim)
    elif direction == "ends":
        pick = aten.maximum if is_call(user, aten.amax) else aten.minimum
        new = call(user, pick.default, of(aten.amax.default), of(aten.amin.default))
    else:
        largest = is_call(user, aten.amax) == (direction == "rising")
        new = of(aten.amax.default if largest else aten.amin.default)
    replace(user, reshape(user, new, shape_of(user)))


def _without_expand(node: fx.Node, rank: int, axes: list[int]) -> fx.Node | None:
    """A tensor of size 1 along the axes, or what it is made of by repetition along them."""
    if is_call(node, aten.expand):
        node = cast(fx.Node, node.args[0])
    shape = shape_of(node)
    return node if len(shape) == rank and all(shape[d] == 1 for d in axes) else None
