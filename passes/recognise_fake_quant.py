"""Finds fake-quantisers, however they were written: what rounds to codes and back is `bgnn::fake_quant`.

Degree-Quant's (section 2.2): `x / s + z`, round and clamp in either order, `- z`, `* s`; torch.ao's operators; a user's
own. Each holds a `round` of an elementwise expression of one tensor, and is an elementwise expression of it in turn.
The whole is evaluated where it matters (on both sides of every code's bounds, at ties, beyond both ends) and must give,
bit for bit, what the op with the same scale and zero point gives. The scale is read off two neighbouring codes.

The zero point may be added before rounding (`fake_quant`) or after it (`fake_quant_after`); the two differ at exact
ties if the zero point is odd, and where float32 rounds x / s + z. Weights are found as well: they stay
`fake_quant(constant)`, so that later passes know their codes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import fold_constants
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    constant,
    getitem,
    is_call,
    is_constant,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

bgnn = torch.ops.bgnn

ELEMENTWISE = [
    aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.clamp, aten.clamp_min, aten.clamp_max, aten.minimum,
    aten.maximum, aten.round, aten.floor, aten.reciprocal, aten._to_copy, aten.to,
]  # fmt: skip
MOVES = [aten.reshape, aten.permute, aten.slice, aten.select, aten.index_select]
PRODUCTS = [aten.mm, aten.matmul]
FAKE = [bgnn.fake_quant, bgnn.fake_quant_after, bgnn.fake_quant_channel]
TORCH_AO = [
    aten.fake_quantize_per_tensor_affine, aten.fake_quantize_per_tensor_affine_cachemask,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams, aten.fake_quantize_per_channel_affine,
    aten.fake_quantize_per_channel_affine_cachemask,
]  # fmt: skip
LONGEST = 12  # nodes in one quantiser
BITS = 16  # more codes than this is no quantiser that integers of 8 bits could follow


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces every fake-quantiser; folds constants on the way, but for the codes of weights."""
    result = PassResult()
    fold_constants.run(gm, keep=_roundings(gm))
    for node in calls(gm.graph, *TORCH_AO, operator.getitem):
        new = _torch_ao(node)
        if new is not None:
            replace(node, new)
            result.rewrites += 1
    for rounding in calls(gm.graph, aten.round):
        found = _quantiser(rounding)
        if found is not None:
            last, source, target, arguments = found
            replace(last, call(last, target, source, *arguments, like=last))
            result.rewrites += 1
    for node in calls(gm.graph, *MOVES, *PRODUCTS):
        _beneath(node)
    remove_dead_code(gm)
    for rounding in calls(gm.graph, aten.round):
        result.refuse(rounding, "rounds, but not as a quantiser with one scale and zero point does")
    return result


def is_weight(node: Any) -> bool:
    """Whether `node` is a constant with its quantiser."""
    return is_call(node, *FAKE) and is_constant(cast(fx.Node, node).args[0])


def _beneath(node: fx.Node) -> None:
    """What moves a quantised weight moves the weight; a product with one is a dense layer."""
    if is_call(node, *PRODUCTS):
        x, weight = cast(tuple[fx.Node, fx.Node], node.args[:2])
        if not is_weight(weight) or is_constant(x) or len(shape_of(weight)) != 2 or len(shape_of(x)) < 2:
            return
        turned = call(node, aten.permute.default, weight, [1, 0], like=node)
        moved = _moved(turned, weight)
        if moved is not None:
            replace(node, call(node, aten.linear.default, x, moved, like=node))
        return
    weight = cast(fx.Node, node.args[0])
    if is_weight(weight):
        moved = _moved(node, weight)
        if moved is not None:
            replace(node, moved)


def _moved(node: fx.Node, weight: fx.Node) -> fx.Node | None:
    """The quantised weight `weight` after the move `node`."""
    inner = cast(fx.Node, weight.args[0])
    rest = list(weight.args[1:])
    if is_call(weight, bgnn.fake_quant_channel):
        if not is_call(node, aten.permute):
            return None
        rest[2] = [d % len(shape_of(node)) for d in cast(list[int], node.args[1])].index(cast(int, rest[2]))
    with torch.no_grad():
        value = cast(Callable[..., Tensor], node.target)(value_of(inner), *node.args[1:], **node.kwargs)
    turned = constant(node, value, str(inner.target))
    if "source" in inner.meta:
        turned.meta["source"] = inner.meta["source"]
    return call(node, weight.target, turned, *rest, like=weight)


def _roundings(gm: fx.GraphModule) -> set[fx.Node]:
    """The nodes of constants' quantisers: what rounds more than one number, what leads there, and what follows."""
    kept: set[fx.Node] = set()
    kept.update(calls(gm.graph, *TORCH_AO))
    kept.update(n for n in calls(gm.graph, operator.getitem) if is_call(n.args[0], *TORCH_AO))
    for rounding in calls(gm.graph, aten.round, *FAKE):
        shape = shape_of(rounding)
        if rounding.meta["val"].numel() <= 1:
            continue
        stack = [rounding]
        while stack:
            node = stack.pop()
            if is_call(node, *ELEMENTWISE, *FAKE) and shape_of(node) == shape:
                kept.add(node)
                stack += node.all_input_nodes
    return kept


def _torch_ao(node: fx.Node) -> fx.Node | None:
    """One of torch.ao's operators, plain or with the mask of its gradient."""
    picked = getitem(node)
    source = node if picked is None else picked[0]
    if (picked is not None and picked[1] != 0) or not is_call(source, *TORCH_AO):
        return None
    x, scale, zero_point = source.args[:3]
    last = cast(tuple[int, ...], source.args[3:])
    if is_call(source, aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams):
        enabled, *last_two = source.args[3:]
        if _number(enabled) != 1:
            return None
        last = cast(tuple[int, ...], tuple(last_two))
    if is_call(source, aten.fake_quantize_per_channel_affine, aten.fake_quantize_per_channel_affine_cachemask):
        if not is_constant(scale) or not is_constant(zero_point):
            return None
        if is_constant(x):  # its codes as torch.ao finds them: from them on, both ways to round agree
            plain = cast(fx.Node, x)
            with torch.no_grad():
                zeros = value_of(cast(fx.Node, zero_point)).to(torch.int32)
                values = aten.fake_quantize_per_channel_affine(
                    value_of(plain), value_of(cast(fx.Node, scale)), zeros, *last
                )
            x = constant(node, values, str(plain.target))
            x.meta.update({k: v for k, v in plain.meta.items() if k == "source"})
        points = constant(node, value_of(cast(fx.Node, zero_point)).float(), f"{node.name}_zero_points")
        return call(node, bgnn.fake_quant_channel.default, x, scale, points, *last, like=source)
    numbers = [_number(scale), _number(zero_point)]
    if None in numbers:
        return None
    arguments = (cast(float, numbers[0]), int(cast(float, numbers[1])), *last)
    return call(node, bgnn.fake_quant_after.default, x, *arguments, like=source)


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    if is_constant(value) and value_of(value).numel() == 1:
        return float(value_of(value))
    return None


def _quantiser(rounding: fx.Node) -> tuple[fx.Node, fx.Node, Any, tuple[Any, ...]] | None:
    """(last node, its tensor, op, the op's arguments) of the quantiser around a `round`."""
    if shape_of(rounding) == ():
        return None
    lasts = list(_after(rounding))
    for source in _before(rounding):
        for last in reversed(lasts):  # the longest first: it is the whole
            found = _read(last, source)
            if found is not None:
                return last, source, *found
    return None


def _after(rounding: fx.Node) -> Iterator[fx.Node]:
    """The nodes that the rounding becomes, one operation after the other."""
    node, steps = rounding, 0
    while steps < LONGEST:
        yield node
        users = list(node.users)
        if len(users) != 1 or not is_call(users[0], *ELEMENTWISE) or not _alone(users[0], node):
            return
        node, steps = users[0], steps + 1


def _before(rounding: fx.Node) -> Iterator[fx.Node]:
    """The tensors that the rounding is an expression of, farthest first: x before x / s."""
    found: list[fx.Node] = []
    node = rounding
    while len(found) < LONGEST and is_call(node, *ELEMENTWISE):
        data = [n for n in node.all_input_nodes if shape_of(n) == shape_of(rounding) and _alone(node, n)]
        if len(data) != 1:
            break
        node = data[0]
        found.append(node)
    return reversed(found)


def _alone(node: fx.Node, data: fx.Node) -> bool:
    """Whether all operands of `node` but `data` are numbers."""
    return all(n is data or (is_constant(n) and value_of(n).numel() == 1) for n in node.all_input_nodes)


def _read(last: fx.Node, source: fx.Node) -> tuple[Any, tuple[Any, ...]] | None:
    """(op, its arguments) if the expression from `source` to `last` is a fake-quantiser."""

    def function(points: Tensor) -> Tensor:
        env = {source: points}

        def value(n: fx.Node) -> Any:
            if n not in env:
                if n.op == "get_attr":
                    env[n] = value_of(n).flatten()[0]
                else:
                    args, kwargs = fx.node.map_arg((n.args, dict(n.kwargs)), value)
                    env[n] = cast(Callable[..., Tensor], n.target)(*args, **kwargs)
            return env[n]

        with torch.no_grad():
            return value(last)

    try:
        ends = function(torch.tensor([-torch.inf, torch.inf]))
        lowest, highest = ends.tolist()
        if not lowest <= 0 <= highest or lowest == highest or not torch.isfinite(ends).all():
            return None
        for scale in _scales(last, source):
            low_steps, high_steps = round(lowest / scale), round(highest / scale)
            if not 1 <= high_steps - low_steps < 2**BITS:
                continue
            found = _same_as(function, scale, low_steps, high_steps)
            if found is not None:
                return found
    except (RuntimeError, TypeError, ValueError):
        return None
    return None


def _scales(last: fx.Node, source: fx.Node) -> Iterator[float]:
    """Numbers in the expression that could be its scale: factors and divisors."""
    seen: set[float] = set()
    stack, inside = [last], set()
    while stack:
        node = stack.pop()
        if node is source or node in inside:
            continue
        inside.add(node)
        for operand in node.args[:2]:
            number = _number(operand)
            if number is not None and number > 0 and number not in seen:
                seen.add(number)
                yield number
        stack += [n for n in node.all_input_nodes if n.op == "call_function"]


def _same_as(
    function: Callable[[Tensor], Tensor], scale: float, low_steps: int, high_steps: int
) -> tuple[Any, tuple[Any, ...]] | None:
    """The op that is `function` on every probe: its zero point decides how ties round, if there is one.

    The values of the ends are `(low - z) * scale`: of the zero point z only its place among the codes is fixed by
    them, and its parity by the ties. So codes are numbered from 0, and both parities are tried.
    """
    points = probes(scale, low_steps, high_steps)
    given = function(points)
    count = high_steps - low_steps
    for target in (bgnn.fake_quant, bgnn.fake_quant_after):
        for shift in _shifts(count):
            arguments = (scale, -low_steps + shift, shift, shift + count)
            if torch.equal(target(points, *arguments), given):
                return target.default, arguments
    return None


def _shifts(count: int) -> list[int]:
    """Where codes usually start: 0, the most negative of a signed type, and one more for symmetric weights."""
    half = (count + 1) // 2
    return list(dict.fromkeys([0, -half, -half + 1, -128, -127, -8, -7, 1]))


def probes(scale: float, low_steps: int, high_steps: int) -> Tensor:
    """Points on and beside every tie between two codes, on the codes, and beyond both ends: f32 `[P]`."""
    steps = torch.arange(low_steps - 2, high_steps + 3, dtype=torch.float64)
    ties = ((steps + 0.5) * scale).float()
    beside = [torch.nextafter(ties, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    near = [(ties.double() * factor).float() for factor in (1 - 1e-6, 1 + 1e-6, 1 - 3e-5, 1 + 3e-5)]
    generator = torch.Generator().manual_seed(0)
    between = (torch.rand(4096, generator=generator) * (high_steps - low_steps + 8) + low_steps - 4) * scale
    far = torch.tensor([-1e9, -1e4, 1e4, 1e9, 0.0, -0.0]) * scale
    return torch.cat([ties, *beside, *near, (steps * scale).float(), between, far])
