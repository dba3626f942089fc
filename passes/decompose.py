"""Operations that are several others: written with those, which every emitter and pass knows.

    layer_norm(x, w, b)                     (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b
    std(x), var(x)                          of the mean square of x - mean
    addmm(b, x, w)                          beta * b + alpha * (x @ w)
    hardsigmoid(x), hardswish(x)            clamp(x + 3, 0, 6) / 6, and x times that
    mish(x), log_sigmoid(x)                 x * tanh(softplus(x)), -softplus(-x)
    x[mask] = x[mask] - 1, x[mask] = 0      where(mask, x - 1, x), where(mask, 0, x)
    conv(x, w, groups=g)                    g convolutions side by side; x * w if each has 1 channel, window 1

In float32 as in PyTorch up to the order of sums; the last is exact.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import fx

from bgnn.passes import ops
from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    only_user,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

CONVOLUTION = [(3, "stride", 1), (4, "padding", 0), (5, "dilation", 1)]


def run(gm: fx.GraphModule) -> PassResult:
    """Takes apart what it knows; what it cannot stays, and is refused by name later."""
    result = PassResult()
    for targets, rule in (
        ([aten.layer_norm], _layer_norm),
        ([aten.std, aten.var], _spread),
        ([aten.addmm], _addmm),
        ([aten.index_put], _masked_update),
        ([aten.conv1d, aten.conv2d], _grouped),
        ([aten.hardswish], lambda node: _op(node, aten.mul.Tensor, node.args[0], _hard_sigmoid(node))),
        ([aten.hardsigmoid], _hard_sigmoid),
        ([aten.mish], lambda node: _op(node, aten.mul.Tensor, node.args[0], _tanh_of_softplus(node))),
        ([aten.log_sigmoid], _log_sigmoid),
    ):
        for node in calls(gm.graph, *targets):
            new = rule(node)
            if new is not None:
                replace(node, new)
                result.rewrites += 1
    remove_dead_code(gm)
    return result


def _op(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    return call(node, target, *args, like=node)


def _hard_sigmoid(node: fx.Node) -> fx.Node:
    risen = _op(node, aten.clamp.default, _op(node, aten.add.Tensor, node.args[0], 3.0), 0.0, 6.0)
    return _op(node, aten.div.Tensor, risen, 6.0)


def _tanh_of_softplus(node: fx.Node) -> fx.Node:
    return _op(node, aten.tanh.default, _op(node, aten.softplus.default, node.args[0]))


def _log_sigmoid(node: fx.Node) -> fx.Node:
    turned = _op(node, aten.neg.default, node.args[0])
    return _op(node, aten.neg.default, _op(node, aten.softplus.default, turned))


def _centred(node: fx.Node, x: fx.Node, axes: list[int], keep: bool) -> tuple[fx.Node, fx.Node]:
    """(x - mean, the mean of its square) over `axes`."""
    apart = _op(node, aten.sub.Tensor, x, _op(node, aten.mean.dim, x, axes, True))
    return apart, _op(node, aten.mean.dim, _op(node, aten.mul.Tensor, apart, apart), axes, keep)


def _layer_norm(node: fx.Node) -> fx.Node:
    x, shape = cast(tuple[fx.Node, list[int]], node.args[:2])
    rank = len(shape_of(x))
    apart, square = _centred(node, x, list(range(rank - len(shape), rank)), True)
    deviation = _op(node, aten.sqrt.default, _op(node, aten.add.Tensor, square, arg(node, 4, "eps", 1e-5)))
    made = _op(node, aten.div.Tensor, apart, deviation)
    for op, factor in ((aten.mul.Tensor, arg(node, 2, "weight")), (aten.add.Tensor, arg(node, 3, "bias"))):
        made = made if factor is None else _op(node, op, made, factor)
    return made


def _spread(node: fx.Node) -> fx.Node | None:
    """Overloads: `(x, unbiased)`, `(x, dim, unbiased, keepdim)`, `(x, dim, *, correction, keepdim)`."""
    x, shape = cast(fx.Node, node.args[0]), shape_of(cast(fx.Node, node.args[0]))
    overload = cast(Any, node.target)._overloadname
    dims: Any
    keep: Any
    if overload == "default":
        dims, correction, keep = None, int(arg(node, 1, "unbiased", True)), False
    elif overload == "dim":
        dims, correction = arg(node, 1, "dim"), int(arg(node, 2, "unbiased", True))
        keep = arg(node, 3, "keepdim", False)
    elif overload == "correction":
        dims, correction = arg(node, 1, "dim"), cast(Any, node.kwargs.get("correction", 1))
        keep = node.kwargs.get("keepdim", False)
    else:
        return None
    axes = [axis % len(shape) for axis in dims or range(len(shape))]
    _, square = _centred(node, x, axes, bool(keep))
    if correction:
        if any(not isinstance(shape[axis], int) for axis in axes):
            return None
        count = math.prod(shape[axis] for axis in axes)
        square = _op(node, aten.mul.Tensor, square, count / (count - correction) if count > correction else math.nan)
    return _op(node, aten.sqrt.default, square) if is_call(node, aten.std) else square


def _addmm(node: fx.Node) -> fx.Node:
    bias, x, weight = cast(tuple[fx.Node, ...], node.args[:3])
    parts = [bias, _op(node, aten.mm.default, x, weight)]
    for place, name in enumerate(("beta", "alpha")):
        if node.kwargs.get(name, 1) != 1:
            parts[place] = _op(node, aten.mul.Tensor, parts[place], node.kwargs[name])
    return _op(node, aten.add.Tensor, *parts)


def _masked_update(node: fx.Node) -> fx.Node | None:
    """`x[mask] = f(x[mask])` with f elementwise, or one number, over the first axes of x."""
    x, index, value = cast(tuple[fx.Node, list[Any], fx.Node], node.args[:3])
    if arg(node, 3, "accumulate", False) or len(index) != 1 or index[0].meta["val"].dtype != torch.bool:
        return None
    mask, steps = cast(fx.Node, index[0]), []
    masked = ops.having("elementwise")
    while is_call(value, *masked) and value.all_input_nodes == [value.args[0]] and only_user(value) is not None:
        steps.append(value)
        value = cast(fx.Node, value.args[0])
    if is_constant(value) and value_of(value).numel() == 1:
        new = constant(node, value_of(value).reshape(()), f"{node.name}_value")
    elif is_call(value, aten.index) and value.args[0] is x and list(cast(Any, value.args[1])) == [mask]:
        new = x
    else:
        return None
    for step in reversed(steps):
        new = _op(node, step.target, new, *step.args[1:])
    extra = len(shape_of(x)) - len(shape_of(mask))
    if extra:
        mask = _op(node, aten.reshape.default, mask, [-1, *shape_of(mask)[1:], *[1] * extra])
    return _op(node, aten.where.self, mask, new, x)


def _grouped(node: fx.Node) -> fx.Node | None:
    x, weight = cast(tuple[fx.Node, fx.Node], node.args[:2])
    groups, window = cast(int, arg(node, 6, "groups", 1)), shape_of(weight)[2:]
    if groups == 1 or len(shape_of(x)) != len(window) + 2:
        return None
    bias = arg(node, 2, "bias")
    outputs, inputs = shape_of(weight)[0] // groups, shape_of(weight)[1]
    one = [-1, *(1 for _ in window)]
    if inputs == outputs == 1 and shape_of(node) == shape_of(x) and all(size == 1 for size in window):
        made = _op(node, aten.mul.Tensor, x, _op(node, aten.reshape.default, weight, one))
        return made if bias is None else _op(node, aten.add.Tensor, made, _op(node, aten.reshape.default, bias, one))
    parts = []
    for group in range(groups):
        channels = _op(node, aten.slice.Tensor, x, 1, group * inputs, (group + 1) * inputs)
        rows = [
            None if t is None else _op(node, aten.slice.Tensor, t, 0, group * outputs, (group + 1) * outputs)
            for t in (weight, bias)
        ]
        rest = [arg(node, place, name, default) for place, name, default in CONVOLUTION]
        parts.append(_op(node, node.target, channels, *rows, *rest, 1))
    return _op(node, aten.cat.default, parts, 1)
