"""Finds PReLU and ReLU written in arithmetic: `max(x, 0) + a * min(x, 0)`, `where(x > 0, x, a * x)` and the like.

The elementwise expression is evaluated on a column of values per channel: the identity above 0 and one factor below
it is a PReLU with that slope. Only where every value comes out to the last bit, so the rewrite is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.expressions import around_constants, expressions
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    constant,
    is_call,
    is_constant,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

MAKES = ("prelu",)

bgnn = torch.ops.bgnn
ELEMENTWISE = ops.having("elementwise")
LONGEST = 8  # nodes in one expression
POINTS = torch.tensor([0.37, 1.0, 2.6180339, 11.3, 517.77, 3.14159e-3]).repeat_interleave(2) * torch.tensor(
    [1.0, -1.0] * 6
)


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces each such expression on channels-last tensors by `bgnn::prelu`, or `relu` where the slopes are 0."""
    result = PassResult()
    for node in reversed(list(gm.graph.nodes)):
        if node._erased or not node.users or not is_call(node, aten.add, aten.sub, aten.where, aten.maximum):
            continue
        if not node.meta["val"].is_floating_point() or not shape_of(node) or not isinstance(shape_of(node)[-1], int):
            continue  # a vector over open nodes or edges has no channels
        for source, inside in expressions(node, LONGEST, lambda n: is_call(n, *ELEMENTWISE), is_constant):
            if shape_of(source) != shape_of(node) or source.meta["val"].dtype != node.meta["val"].dtype:
                continue
            slope = _slope(node, source, inside)
            if slope is not None:
                replace(node, source if bool((slope == 1).all()) else _prelu(node, source, slope))
                result.rewrites += 1
                break
    remove_dead_code(gm)
    return result


def _prelu(node: fx.Node, source: fx.Node, slope: Tensor) -> fx.Node:
    if bool((slope == 0).all()):
        return call(node, aten.relu.default, source)
    same = bool((slope == slope[0]).all())
    return call(node, bgnn.prelu.default, source, constant(node, slope[:1] if same else slope, "slope"))


def _slope(node: fx.Node, source: fx.Node, inside: set[fx.Node]) -> Tensor | None:
    """The slopes `[C]` if the expression is a PReLU of the source."""
    channels = shape_of(node)[-1]
    points = torch.cat([POINTS, *around_constants(inside)])
    column = points[:, None].expand(-1, channels).contiguous()
    env: dict[fx.Node, Tensor] = {source: column}

    def value(n: fx.Node) -> Any:
        if n not in env:
            if n.op == "get_attr":
                env[n] = _per_channel(value_of(n), channels)
            else:
                args, kwargs = fx.node.map_arg((n.args, dict(n.kwargs)), value)
                env[n] = cast(Callable[..., Tensor], n.target)(*args, **kwargs)
        return env[n]

    try:
        out = torch.broadcast_to(value(node), column.shape)
    except (RuntimeError, TypeError, ValueError):
        return None
    slope = out[points == -1.0].neg()[0]
    return slope.clone() if torch.equal(out, torch.where(column > 0, column, column * slope)) else None


def _per_channel(value: Tensor, channels: int) -> Tensor:
    """A constant as it acts on a column: the same number everywhere, or one per channel."""
    if value.numel() and bool((value == value.flatten()[0]).all()):
        return value.flatten()[0]
    if tuple(value.shape) == (channels,):
        return value
    raise ValueError("not a constant per channel")
