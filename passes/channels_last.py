"""Moves the feature axis last, everywhere: TFLite's layout, and the one in which packing bits is possible.

PyTorch's layers want channels second, so models are full of permutes. Here convolutions with a window of 1
become `linear` and BatchNorm and PReLU act on the last axis; the permutes this needs are not inserted but
carried along: each tensor is known as `base.permute(order)`, elementwise ops, reductions and joins act on the
base, and the order is undone only where an op needs the axes as they were. Nearly all cancel. Exact.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.canonicalise import permute, reshape
from bgnn.passes.graph import (
    PassResult,
    Tap,
    arg,
    aten,
    call,
    constant,
    is_call,
    is_constant,
    reduced_axes,
    remove_dead_code,
    shape_of,
    value_of,
)
from bgnn.passes.recognise_fake_quant import is_weight

MAKES = ("batch_norm", "prelu")

bgnn = torch.ops.bgnn

UNARY = ops.having("elementwise", "one")
BINARY = ops.having("elementwise", "two")
REDUCE = ops.having("reduction")


@dataclasses.dataclass(frozen=True)
class Laid:
    """A traced tensor as `base.permute(order)`."""

    base: fx.Node
    order: tuple[int, ...]

    @property
    def moved(self) -> bool:
        return self.order != tuple(range(len(self.order)))

    def inverse(self) -> tuple[int, ...]:
        return tuple(self.order.index(i) for i in range(len(self.order)))


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites the whole graph; `rewrites` counts layers that became channels-last."""
    result = PassResult()
    laid: dict[fx.Node, Laid] = {}
    for node in list(gm.graph.nodes):
        if node.op == "output":
            node.args = _plain_args(laid, node)
        elif node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            if node.op == "call_function":
                node.args = _plain_args(laid, node)
            if isinstance(node.meta.get("val"), Tensor):
                laid[node] = _input(node) if node.op == "placeholder" else _as_is(node)
        else:
            new = _move(node, laid, result)
            if new is None:  # an op that needs its axes as they are
                node.args = _plain_args(laid, node)
                new = _as_is(node)
            elif new.base is not node:
                if "tap" in node.meta:
                    tap: Tap = node.meta["tap"]
                    moved = {"perm": new.order, "shape": shape_of(new.base)} if new.moved else {}
                    new.base.meta["tap"] = tap.changed(**moved)
                if new.base.meta.pop("new", False):  # it stands for this node now, and keeps its name
                    name = node.name
                    node._rename(f"{name}_as_traced")
                    new.base.name = name
            laid[node] = new
    remove_dead_code(gm)
    return result


def _as_is(node: fx.Node) -> Laid:
    return Laid(node, tuple(range(len(shape_of(node)))))


def _input(node: fx.Node) -> Laid:
    """An input that the model permutes first of all (channel-first points) is permuted once, for all its users."""
    for user in node.users:
        if is_call(user, aten.permute):
            order = tuple(cast(list[int], user.args[1]))
            with node.graph.inserting_after(node):
                base = node.graph.call_function(aten.permute.default, (node, list(order)))
            base.meta = {**user.meta}
            base.meta.pop("tap", None)
            return Laid(base, tuple(order.index(i) for i in range(len(order))))
    return _as_is(node)


def _plain(laid: dict[fx.Node, Laid], node: fx.Node, before: fx.Node) -> fx.Node:
    """The node with its axes as the traced program has them."""
    if node not in laid:  # several results
        return node
    known = laid[node]
    return permute(before, known.base, known.order) if known.moved else known.base


def _plain_args(laid: dict[fx.Node, Laid], node: fx.Node) -> Any:
    return fx.node.map_arg(node.args, lambda n: _plain(laid, n, node))


def _in_order(laid: dict[fx.Node, Laid], node: fx.Node, order: tuple[int, ...], before: fx.Node) -> fx.Node:
    """A base such that `base.permute(order)` is the node."""
    known = laid[node]
    if known.order == order:
        return known.base
    inverse = tuple(order.index(i) for i in range(len(order)))
    # base.permute(known.order) = wanted.permute(order)
    return permute(before, known.base, tuple(known.order[i] for i in inverse))


def _channel_second(rank: int) -> tuple[int, ...]:
    """The order that turns `[B, ..., C]` into `[B, C, ...]`."""
    return (0, rank - 1, *range(1, rank - 1)) if rank > 1 else (0,)


def _move(node: fx.Node, laid: dict[fx.Node, Laid], result: PassResult) -> Laid | None:
    x = node.args[0] if node.args else None
    if is_call(node, *BINARY):
        return _elementwise(node, laid)
    if not isinstance(x, fx.Node) and not is_call(node, aten.cat):
        return None
    x = cast(fx.Node, x)
    if is_call(node, aten.permute):
        known = laid[x]
        return Laid(known.base, tuple(known.order[d] for d in cast(list[int], node.args[1])))
    if is_call(node, *UNARY):
        known = laid[x]
        return Laid(call(node, node.target, known.base, *node.args[1:], like=node, **node.kwargs), known.order)
    if is_call(node, aten.conv1d, aten.conv2d):
        return _convolution(node, laid, result)
    if is_call(node, aten.batch_norm):
        weight, bias, mean, var, training, _, eps = node.args[1:8]
        if training:
            return None
        order = _channel_second(len(shape_of(x)))
        base = _in_order(laid, x, order, node)
        result.rewrites += 1
        return Laid(call(node, bgnn.batch_norm.default, base, weight, bias, mean, var, eps), order)
    if is_call(node, aten.prelu):
        slope = cast(fx.Node, node.args[1])
        known = laid[x]
        order = known.order if shape_of(slope) == (1,) else _channel_second(len(shape_of(x)))
        base = _in_order(laid, x, order, node)
        result.rewrites += 1
        return Laid(call(node, bgnn.prelu.default, base, slope), order)
    if is_call(node, aten.linear):
        known = laid[x]
        last = len(known.order) - 1
        if known.order[last] != last:
            return None
        return Laid(call(node, node.target, known.base, *node.args[1:]), known.order)
    if is_call(node, *REDUCE):
        return _reduce(node, laid[x])
    if is_call(node, aten.cat):
        return _cat(node, laid)
    if is_call(node, aten.slice):
        known = laid[x]
        dim = known.order[cast(int, node.args[1]) % len(known.order)]
        return Laid(call(node, node.target, known.base, dim, *node.args[2:]), known.order)
    if is_call(node, aten.expand):
        known = laid[x]
        sizes = shape_of(node)
        if len(sizes) != len(known.order) or not known.moved:
            return None
        grown = [sizes[i] for i in known.inverse()]
        return Laid(call(node, node.target, known.base, grown), known.order)
    if is_call(node, aten.reshape):
        return _reshape(node, laid[x])
    if is_call(node, *ops.having("softmax")):
        return _softmax(node, laid, x)
    return None


def _elementwise(node: fx.Node, laid: dict[fx.Node, Laid]) -> Laid | None:
    """Both sides in the order of the larger one; constants are permuted at conversion time."""
    rank = len(shape_of(node))
    tensors = [a for a in node.args if isinstance(a, fx.Node)]
    data = [a for a in tensors if not is_constant(a)]
    if not data or any(not isinstance(a.meta["val"], Tensor) or len(shape_of(a)) != rank for a in data):
        return None
    leader = max(data, key=lambda a: (a.meta["val"].numel(), laid[a].moved))
    order = laid[leader].order
    if order == tuple(range(rank)) and all(not laid[a].moved for a in data):
        return None
    sides: list[Any] = []
    for side in node.args:
        if isinstance(side, fx.Node) and is_constant(side):
            value = value_of(side)
            value = value.reshape((1,) * (rank - value.dim()) + tuple(value.shape))
            inverse = tuple(order.index(i) for i in range(rank))
            sides.append(constant(node, _drop_ones(value.permute(inverse)), side))
        elif isinstance(side, fx.Node):
            sides.append(_in_order(laid, side, order, node))
        else:
            sides.append(side)
    return Laid(call(node, node.target, *sides, like=node, **node.kwargs), order)


def _drop_ones(value: Tensor) -> Tensor:
    """Without leading axes of size 1, which broadcasting adds by itself: a factor per channel is `[C]`."""
    while value.dim() > 1 and value.shape[0] == 1:
        value = value.squeeze(0)
    return value


def _convolution(node: fx.Node, laid: dict[fx.Node, Laid], result: PassResult) -> Laid | None:
    x, weight = cast(fx.Node, node.args[0]), cast(fx.Node, node.args[1])
    spatial = len(shape_of(weight)) - 2
    plain = (
        (is_constant(weight) or is_weight(weight))
        and all(s == 1 for s in shape_of(weight)[2:])
        and all(s == 1 for s in _numbers(arg(node, 3, "stride", [1] * spatial)))
        and all(p == 0 for p in _numbers(arg(node, 4, "padding", [0] * spatial)))
        and arg(node, 6, "groups", 1) == 1
        and len(shape_of(x)) == spatial + 2
    )
    if not plain:
        result.refuse(node, "a convolution with a window other than 1, a stride, padding or groups")
        return None
    order = _channel_second(len(shape_of(x)))
    base = _in_order(laid, x, order, node)
    values = weight if is_constant(weight) else cast(fx.Node, weight.args[0])
    matrix = constant(node, value_of(values).reshape(shape_of(weight)[:2]), values)
    matrix.meta.setdefault("source", values.target)
    if values is not weight:
        matrix = call(node, weight.target, matrix, *weight.args[1:], like=weight)
    result.rewrites += 1
    return Laid(call(node, aten.linear.default, base, matrix, arg(node, 2, "bias")), order)


def _numbers(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _reduce(node: fx.Node, known: Laid) -> Laid:
    keep = bool(arg(node, 2, "keepdim", False))
    moved = sorted(known.order[d] for d in reduced_axes(node))
    base = call(node, node.target, known.base, moved, keep)
    if keep:
        return Laid(base, known.order)
    left = [axis for axis in known.order if axis not in moved]  # base axes, in traced order
    place = {axis: i for i, axis in enumerate(sorted(left))}
    return Laid(base, tuple(place[axis] for axis in left))


def _softmax(node: fx.Node, laid: dict[fx.Node, Laid], x: fx.Node) -> Laid:
    """Over the last axis: the runtimes' softmax knows no other."""
    rank = len(shape_of(x))
    dim = cast(int, node.args[1]) % rank
    order = laid[x].order
    if order[dim] != rank - 1:
        axes = [d for d in range(rank) if d != dim]
        order = tuple(rank - 1 if d == dim else axes.index(d) for d in range(rank))
    base = _in_order(laid, x, order, node)
    return Laid(call(node, node.target, base, rank - 1, *node.args[2:]), order)


def _cat(node: fx.Node, laid: dict[fx.Node, Laid]) -> Laid | None:
    parts = cast(list[fx.Node], node.args[0])
    largest = max(parts, key=lambda p: (p.meta["val"].numel(), laid[p].moved))
    order = laid[largest].order
    dim = order[arg(node, 1, "dim", 0) % len(order)]
    bases = [_in_order(laid, p, order, node) for p in parts]
    return Laid(call(node, aten.cat.default, bases, dim), order)


def _reshape(node: fx.Node, known: Laid) -> Laid | None:
    """Axes of size 1 come and go without disturbing the order; any other reshape needs the axes as they were."""
    if not known.moved:
        return None
    before, after = [shape_of(known.base)[axis] for axis in known.order], list(shape_of(node))
    if [s for s in before if s != 1] != [s for s in after if s != 1]:
        big = [axis for axis in known.order if shape_of(known.base)[axis] != 1]
        if big == sorted(big):  # only axes of size 1 have moved: nothing is really out of place
            base = reshape(node, known.base, shape_of(node))
            return Laid(base, tuple(range(len(after))))
        return None
    # Base axes of size > 1, in traced order; the new axes of size 1 go beside their left neighbour, but
    # never behind the feature axis.
    big = [axis for axis in known.order if shape_of(known.base)[axis] != 1]
    columns: list[tuple[float, int]] = []  # (place in the base, index in the traced order)
    last = len(known.order) - 1
    following = iter(big)
    place = -1.0
    for index, size in enumerate(after):
        if size != 1:
            place = float(next(following))
            columns.append((place, index))
        else:
            beside = place if place != last or not big else last - 1.0
            columns.append((beside + 0.5 - 0.5 / (index + 2), index))
    columns.sort()
    base_shape = tuple(after[index] for _, index in columns)
    base = reshape(node, known.base, base_shape)
    at = {index: i for i, (_, index) in enumerate(columns)}
    return Laid(base, tuple(at[i] for i in range(len(after))))
