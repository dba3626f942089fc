"""A binary dense layer that is only pooled over the points never leaves the integers (`--kernels bgnn`).

For f with f(0) = 0 and one factor on each side of 0 (a rescaling and a PReLU), and integers a_n = W x_n: the maximum of
f(a_n) is at one of the ends of a, and the mean is (f(1) * sum of positive a + f(-1) * sum of negative |a|) / N. So
`bgnn::dense_pool` gives four integers per channel, and no `[points, channels]` tensor of numbers exists. A channel
where f falls takes the weights' opposite, so that it rises and its maximum is at one known end. A rescaling per point
(beta of the paper's Eq. 11) goes into the operator, before f. Maxima are exact, means (and what has a factor per point)
round differently from PyTorch, within float tolerance.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes import domains as dm
from bgnn.passes.canonicalise import reshape
from bgnn.passes.chains import data_of, evaluate, is_channel_op
from bgnn.passes.domains import EXACT
from bgnn.passes.graph import (
    PassResult,
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

MAKES = ("dense_pool_layer",)

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites each binary layer on `[B, N, K]` whose result, after channel ops, is read by reductions over N alone."""
    result = PassResult()
    domains = dm.analyse(gm)
    for layer in calls(gm.graph, aten.linear):
        x = cast(fx.Node, layer.args[0])
        if not is_constant(layer.args[1]) or len(shape_of(x)) != 3 or domains[x].kind != "binary":
            continue
        weight = value_of(cast(fx.Node, layer.args[1]))
        if domains[cast(fx.Node, layer.args[1])].kind != "binary" or (
            len(layer.args) > 2 and layer.args[2] is not None
        ):
            continue
        chain, factors, last = _functions(layer)
        users = list(last.users)
        if not users or not all(is_call(u, aten.amax, aten.amin, aten.mean) and reduced_axes(u) == [1] for u in users):
            result.refuse(layer, "its result is read by more than poolings over the points")
            continue
        if shape_of(x)[1] * shape_of(x)[2] > EXACT:
            result.refuse(layer, "sums over so many points could leave the exact integers")
            continue
        sides = _sides(chain, *weight.shape)
        if sides is None:
            result.refuse(layer, "the functions before the pooling are not a factor on each side of 0")
            continue
        if not all(_at_the_ends(u, *sides) for u in users):
            result.refuse(layer, "an extremum lies between the ends")
            continue
        _pool(layer, x, chain, factors, users, sides)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _functions(layer: fx.Node) -> tuple[list[fx.Node], Tensor | None, fx.Node]:
    """(channel ops after the layer, factors per point `[N]` among them if any, the last of all)."""
    points = shape_of(layer)[1]
    chain: list[fx.Node] = []
    factors: Tensor | None = None
    last = layer
    while (following := only_user(last)) is not None:
        if is_channel_op(following):
            chain.append(following)
        elif (
            all(is_call(op, aten.mul) for op in chain) and (factor := _factor_per_point(following, points)) is not None
        ):
            factors = factor if factors is None else factors * factor  # it passes other factors, but no PReLU
        else:
            break
        last = following
    return chain, factors, last


def _factor_per_point(node: fx.Node, points: int) -> Tensor | None:
    """The factors `[N]` if `node` multiplies `[B, N, C]` by a constant `[N, 1]`."""
    if not is_call(node, aten.mul):
        return None
    for value in node.args:
        if is_constant(value) and shape_of(cast(fx.Node, value)) in ((points, 1), (1, points, 1)):
            return value_of(cast(fx.Node, value)).flatten()
    return None


def _sides(chain: list[fx.Node], channels: int, fan_in: int) -> tuple[Tensor, Tensor] | None:
    """(f(1), -f(-1)) per channel if f is that factor times the value on each side of 0, for every value there is."""
    values = torch.arange(-fan_in, fan_in + 1, dtype=torch.float32)
    column = values[:, None].expand(-1, channels).contiguous()
    out = column
    for op in chain:
        out = evaluate(op, out)
    above, below = out[fan_in + 1], -out[fan_in - 1]
    expected = torch.where(column > 0, column * above, column * below)
    return (above, below) if torch.allclose(out, expected, rtol=1e-5, atol=0) else None


def _at_the_ends(user: fx.Node, above: Tensor, below: Tensor) -> bool:
    """Whether the reduction of f over a set is f at the set's largest or smallest member, in every channel."""
    if is_call(user, aten.amax):
        return not bool(((above < 0) & (below > 0)).any())  # a ridge: the maximum is next to 0
    if is_call(user, aten.amin):
        return not bool(((above > 0) & (below < 0)).any())  # a valley
    return True


def _pool(
    layer: fx.Node, x: fx.Node, chain: list[fx.Node], factors: Tensor | None, users: list[fx.Node],
    sides: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    above, below = sides
    before = min(users)
    weight = cast(fx.Node, layer.args[1])
    falls = (above <= 0) & (below <= 0) & ((above < 0) | (below < 0))
    flip = torch.where(falls, -1.0, 1.0)
    if bool(falls.any()):
        above, below = torch.where(falls, -below, above), torch.where(falls, -above, below)
        weight = constant(before, value_of(weight) * flip[:, None], str(weight.target))
    rising = bool(((above >= 0) & (below >= 0)).all())
    scale = None if factors is None else constant(before, factors, "per_point")
    pooled = call(before, bgnn.dense_pool_layer.default, x, weight, scale, like=layer)

    def row(i: int) -> fx.Node:
        return call(before, aten.slice.Tensor, pooled, 1, i, i + 1, 1, like=layer)

    def applied(value: fx.Node) -> fx.Node:
        ops = chain
        if bool(falls.any()):
            value, ops = _turned(before, value, chain, flip)
        for op in ops:
            value = call(before, op.target, *(value if a is data_of(op) else a for a in op.args), like=op, **op.kwargs)
        return value

    pairs: list[tuple[fx.Node, fx.Node]] = []
    for user in users:
        if is_call(user, aten.mean):
            new = _mean(before, row(2), row(3), above, below, shape_of(x)[1], user)
        elif rising:
            new = applied(row(0 if is_call(user, aten.amax) else 1))
        else:
            pick = aten.maximum if is_call(user, aten.amax) else aten.minimum
            new = call(before, pick.default, applied(row(0)), applied(row(1)), like=user)
        pairs.append((user, reshape(before, new, shape_of(user), like=user)))
    for user, new in pairs:
        replace(user, new)


def _turned(before: fx.Node, value: fx.Node, chain: list[fx.Node], flip: Tensor) -> tuple[fx.Node, list[fx.Node]]:
    """(chain's first factor, or +-1, with the flipped channels' sign applied to `value`, the rest of the chain)."""
    channels = len(flip)
    first = chain[0]
    if is_call(first, aten.mul):
        factor = next(a for a in first.args if a is not data_of(first))
        number = value_of(factor) if isinstance(factor, fx.Node) else torch.tensor(float(cast(float, factor)))
        flip, chain = number.expand(channels) * flip, chain[1:]
    return call(before, aten.mul.Tensor, value, constant(before, flip, "turned"), like=first), chain


def _mean(
    before: fx.Node, up: fx.Node, down: fx.Node, above: Tensor, below: Tensor, points: int, user: fx.Node
) -> fx.Node:
    """`(up * above + down * below) / points`; with one constant per channel where below / above is one number."""
    ratio = below / above
    if bool((above > 0).all()) and torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-6, atol=0):
        slope = float(ratio[0])
        both = call(before, aten.mul.Tensor, down, slope, like=user) if slope != 1 else down
        total = call(before, aten.add.Tensor, up, both, like=user)
        return call(before, aten.mul.Tensor, total, constant(before, above / points, "above_zero"), like=user)
    parts = []
    for part, factor, name in ((up, above, "above_zero"), (down, below, "below_zero")):
        parts.append(call(before, aten.mul.Tensor, part, constant(before, factor / points, name), like=user))
    return call(before, aten.add.Tensor, *parts, like=user)
