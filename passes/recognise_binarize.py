"""Finds the sign function, however it was written: what computes a sign is a sign.

`torch.sign(x)`, `where(x >= 0, 1, -1)`, `(x >= 0).float() * 2 - 1`, `where(sign(x) == 0, 1, sign(x))`,
`(sign(x) - x).detach() + x`: each is an elementwise expression of one tensor. The expression is evaluated on
numbers around zero and far from it; if it gives the sign there, it becomes `bgnn::binarize` (binary GNN
paper, Eq. 8). What it gives at exactly 0 decides the form: +1 is `binarize(x)`, -1 is `-binarize(-x)`, and
`torch.sign`'s 0 is settled as +1 (`--sign-zero plus`; verification counts the zeros it meets).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes.expressions import around_constants, expressions
from bgnn.passes.graph import PassResult, aten, call, is_call, remove_dead_code, replace, shape_of, value_of

bgnn = torch.ops.bgnn

ELEMENTWISE = [
    aten.sign, aten.where, aten.ge, aten.gt, aten.le, aten.lt, aten.eq, aten.ne, aten.add, aten.sub, aten.mul,
    aten.div, aten.neg, aten._to_copy, aten.to, aten.abs, aten.clamp, aten.hardtanh, aten.logical_not,
    aten.bitwise_not, aten.heaviside, aten.copysign, aten.detach,
    aten.sgn, aten.masked_fill,
]  # fmt: skip
LONGEST = 12  # nodes in one expression
# Zeros of both signs, the smallest numbers, and ordinary ones.
POINTS = torch.tensor(
    [0.0, -0.0]
    + [sign * size for size in (1e-38, 1e-7, 1e-3, 0.3, 0.5, 1.0, 1.7, 40.0, 1e3, 1e5) for sign in (1.0, -1.0)]
)


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces each maximal sign expression; runs on constants' expressions too (binary weights)."""
    result = PassResult()
    for node in reversed(list(gm.graph.nodes)):  # the last node of an expression first: it is the whole one
        if node._erased or not _is_elementwise(node) or not node.meta["val"].is_floating_point():
            continue
        found = _sign_of(node)
        if found is None:
            continue
        source, at_zero = found
        if at_zero == -1.0:
            inside = call(node, aten.neg.default, source, like=node)
            new = call(node, aten.neg.default, call(node, bgnn.binarize.default, inside, like=node), like=node)
        else:
            new = call(node, bgnn.binarize.default, source, like=node)
            if at_zero == 0.0:
                new.meta["zero_was_zero"] = True
        replace(node, new)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _is_elementwise(node: Any) -> bool:
    return is_call(node, *ELEMENTWISE)


def _sign_of(node: fx.Node) -> tuple[fx.Node, float] | None:
    """(x, value at 0) if `node` is the sign of `x`; the nearest such x."""
    for source, inside in expressions(node, LONGEST, _is_elementwise, _is_number):
        same = isinstance(source.meta.get("val"), Tensor) and shape_of(source) == shape_of(node)
        if same and source.meta["val"].is_floating_point():
            at_zero = _evaluate(node, source, inside)
            if at_zero is not None:
                return source, at_zero
    return None


def _is_number(node: fx.Node) -> bool:
    """A constant that is the same everywhere, so that it means the same on the points."""
    if node.op != "get_attr":
        return False
    value = value_of(node)
    if value.numel() == 1:
        return True
    filled = value.numel() > 0 and bool((value == value.flatten()[0]).all())
    return filled and node.meta.get("source") is None  # a parameter of equal values is still a parameter


def _evaluate(node: fx.Node, source: fx.Node, inside: set[fx.Node]) -> float | None:
    """The value at 0 if the expression from `source` to `node` is a sign, else None."""
    points = torch.cat([POINTS, *around_constants(inside)]).to(source.meta["val"].dtype)
    env: dict[fx.Node, Tensor] = {source: points}

    def value(n: fx.Node) -> Tensor:
        if n not in env:
            if n.op == "get_attr":
                env[n] = value_of(n).flatten()[:1].expand(points.shape)
            else:
                args, kwargs = fx.node.map_arg((n.args, dict(n.kwargs)), value)
                env[n] = cast(Callable[..., Tensor], n.target)(*args, **kwargs)
        return env[n]

    try:
        out = value(node)
    except (RuntimeError, TypeError):  # not an expression of one tensor after all
        return None
    positive, negative, zero = points > 0, points < 0, points == 0
    # A straight-through estimator in arithmetic, (sign(x) - x) + x, misses +-1 by its own rounding.
    allowed = 1e-5 + 1e-6 * points.abs()
    close = bool(((out - torch.sign(points)).abs() <= allowed)[positive | negative].all())
    at_zero = float(out[zero][0])
    if not close or at_zero not in (-1.0, 0.0, 1.0) or not bool((out[zero] == at_zero).all()):
        return None
    return at_zero
