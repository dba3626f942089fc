"""The maximum over neighbours is taken first, and increasing functions are applied to its result.

`max_j f(z_j) = f(max_j z_j)` for an increasing f (a rescaling by positive factors, ReLU, PReLU with slopes >= 0,
BatchNorm with scales >= 0), and `max_j (z_j + c) = (max_j z_j) + c` for a c that does not depend on j. So activations
and norms run per node, k times less. Exact: rounding is monotone too.
"""

from __future__ import annotations

from typing import cast

from torch import fx

from bgnn.passes.canonicalise import reshape
from bgnn.passes.chains import data_of, is_channel_op, is_increasing
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    is_call,
    leaves_channels,
    only_user,
    reduced_axes,
    remove_dead_code,
    replace,
    shape_of,
)


def run(gm: fx.GraphModule) -> PassResult:
    """Pulls each maximum up as far as it goes."""
    result = PassResult()
    for top in calls(gm.graph, aten.amax):
        if not leaves_channels(top):
            continue
        dims = reduced_axes(top)
        passed: list[tuple[fx.Node, fx.Node]] = []  # (op, its operand that varies along the axes)
        z = cast(fx.Node, top.args[0])
        while only_user(z) is not None:
            varying = _passes(z, dims, result)
            if varying is None:
                break
            passed.append((z, varying))
            z = varying
        if not passed:
            continue
        new = call(top, aten.amax.default, z, dims, True, like=top)
        for op, varying in reversed(passed):
            args = [new if a is varying else a for a in op.args]
            new = call(top, op.target, *args, like=op, **op.kwargs)
        replace(top, reshape(top, new, shape_of(top), like=top))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _passes(z: fx.Node, dims: list[int], result: PassResult) -> fx.Node | None:
    """The operand of z that the maximum can be taken of first, if z allows it."""
    if is_channel_op(z):
        if is_increasing(z):
            return data_of(z)
        result.refuse(z, "not increasing in every channel, so the maximum stays after it")
        return None
    if is_call(z, aten.add, aten.sub) and not z.kwargs:
        for side in z.args:
            other = z.args[1] if side is z.args[0] else z.args[0]
            if not isinstance(side, fx.Node) or not isinstance(other, fx.Node) or side is other:
                continue
            if is_call(z, aten.sub) and side is z.args[1]:
                continue  # the maximum of c - z_j is a minimum
            still = _without_expand(other, len(shape_of(z)), dims)
            if still is not None and shape_of(side) == shape_of(z):
                if still is not other:
                    z.replace_input_with(other, still)
                return side
    return None


def _without_expand(node: fx.Node, rank: int, dims: list[int]) -> fx.Node | None:
    """A tensor of size 1 along the axes, or what it is made of by repetition along them."""
    if is_call(node, aten.expand):
        node = cast(fx.Node, node.args[0])
    shape = shape_of(node)
    return node if len(shape) == rank and all(shape[d] == 1 for d in dims) else None
