"""Finds fake-quantisers of activations, however they were written: any staircase is a `bgnn::fake_quant`.

An elementwise expression of one tensor that holds a rounding is evaluated, not read. What is rounded is, in some
range, a straight line of the tensor: its slope is one over the scale. From there on each whole multiple of the scale,
and points to both sides of it up to the ties, must give the same multiple of one height, from a lowest to a highest
code, and the ends beyond: then the expression is

    fake_quant(x, scale, zero_point, low, high) * height / scale

of which the factor is mostly 1. So clamps before or behind the rounding, `x * (1 / s)`, floor(x + .5), a ReLU, PACT's
absolute values, DoReFa's `round(x * 255) / 255` are one. Where the expression is not the op bit for bit (a tie rounds
otherwise, or the product by 1 / s), the node keeps it, as `meta["as_written"]`: verification takes the model's codes
from there, and a layer that quantises one number an edge computes it as the model does. So does every quantiser whose
ties go another way, as those of floor(x / s + .5) go up: steps that are powers of 2 meet ties everywhere.

What stays is refused with its reason: levels of which none is 0, a scale for each channel, or a scale made
from the activations themselves (dynamic quantisation). Its rounding is then a quantiser in steps of 1 without ends, so
that verification compares its decisions as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.expressions import attempt, expressions
from bgnn.passes.graph import (
    PassResult,
    above,
    aten,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

MAKES = ("fake_quant",)

bgnn = torch.ops.bgnn

ELEMENTWISE = ops.having("elementwise")
LATER = [aten.relu, aten.relu6]  # behind a quantiser they are lower_int8's: codes are shared with what reads them plain
ROUNDINGS = [aten.round, aten.floor, aten.ceil, aten.trunc]
CASTS = [aten._to_copy, aten.to]
REDUCTIONS = [aten.amax, aten.amin, aten.max, aten.min, aten.mean, aten.sum, aten.std, aten.var, aten.aminmax]
PRODUCTS = [aten.mm, aten.matmul]
FAKE = [bgnn.fake_quant, bgnn.fake_quant_channel]
LONGEST = 48  # nodes in one quantiser
REACH = 1 << 16  # codes to each side of 0 that are looked at
NO_END = 1 << 31  # the lowest or highest code where there is none: no float32 beyond it has a fraction
SAME = 1e-3  # of a step: as far as a value may lie beside its level
BESIDE = [0.0, 0.2, -0.2, 0.4, -0.4, 0.49, -0.49]  # of a step: no tie

NO_QUANTISER = "rounds, but not as a quantiser with one scale and zero point does"
DYNAMIC = "its scale is computed from the activations themselves (dynamic quantisation): codes need a constant one"
CHANNELS = "it has a scale for each channel, where codes of activations have one"
NO_ZERO = "0 is none of its levels, which codes with a zero point need"
NOT_NEAREST = "it does not round to the nearest of even steps"
UNEVEN = "what it rounds is no straight line of the tensor"


@dataclasses.dataclass(frozen=True)
class Staircase:
    """`fake_quant(x, scale, zero_point, low, high) * factor`."""

    scale: float
    zero_point: int
    low: int
    high: int
    factor: float

    @property
    def arguments(self) -> tuple[float, int, int, int]:
        """The op's, behind x."""
        return self.scale, self.zero_point, self.low, self.high


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces every fake-quantiser of an activation; a product with a quantised weight becomes a dense layer."""
    result = PassResult()
    for rounding in calls(gm.graph, *ROUNDINGS, *CASTS):
        if not rounding._erased and rounding.users and (not is_call(rounding, *CASTS) or to_whole_numbers(rounding)):
            _recognise(rounding, result)
    for node in calls(gm.graph, *PRODUCTS):
        _layer(node)
    remove_dead_code(gm)
    for rounding in calls(gm.graph, *ROUNDINGS):
        reason = rounding.meta.get("stays_float", NO_QUANTISER)
        result.refuse(rounding, reason)
        if rounding.target is aten.round.default and rounding.meta["val"].is_floating_point():
            new = call(rounding, bgnn.fake_quant.default, rounding.args[0], 1.0, 0, -NO_END, NO_END)
            new.meta["stays_float"] = reason
            replace(rounding, new)
    remove_dead_code(gm)
    return result


def to_whole_numbers(node: fx.Node) -> bool:
    """Whether a node is the cast of real numbers to integers, which cuts off their fractions: `(x / s + 0.5).int()`."""
    source = node.args[0] if is_call(node, *CASTS) else None
    if not isinstance(source, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    kind = node.meta["val"].dtype
    return source.meta["val"].is_floating_point() and not (kind.is_floating_point or kind == torch.bool)


def is_weight(node: Any) -> bool:
    """Whether `node` is a constant with its quantiser."""
    return is_call(node, *FAKE) and is_constant(cast(fx.Node, node).args[0])


def as_written(x: Tensor, node: fx.Node) -> Tensor:
    """What a `fake_quant` node gives for `x` in the model's own arithmetic."""
    written = node.meta.get("as_written")
    if written is None:
        return cast(Callable[..., Tensor], node.target)(x, *node.args[1:])
    with torch.no_grad():
        return cast(Tensor, fx.Interpreter(written).run(x)[1])


def written_out(node: fx.Node) -> tuple[fx.Node | None, fx.Node] | None:
    """A `fake_quant` node in its model's own arithmetic, its nodes added: (f32 numbers nearest to whose integers the
    codes are, or None; the value). None where nothing tells more than the op, or only float64 does.
    """
    written = node.meta.get("as_written")
    if written is None or any(n.meta["val"].dtype == torch.float64 for n in written.graph.nodes if "val" in n.meta):
        return None
    made: dict[fx.Node, fx.Node] = {}
    for inner in written.graph.nodes:
        if inner.op == "placeholder":
            made[inner] = cast(fx.Node, node.args[0])
        elif is_constant(inner):
            made[inner] = constant(node, value_of(inner), str(inner.target))
        elif inner.op == "call_function":
            args, kwargs = fx.node.map_arg((inner.args, dict(inner.kwargs)), lambda n: made[n])
            made[inner] = call(node, inner.target, *args, **kwargs)
        else:
            codes, value = inner.args[0]
    if codes is None:
        return None, made[value]
    real = made[codes].meta["val"].is_floating_point()
    return made[codes] if real else call(node, aten._to_copy.default, made[codes], dtype=torch.float32), made[value]


def _layer(node: fx.Node) -> None:
    x, weight = cast(tuple[fx.Node, fx.Node], node.args[:2])
    if not is_weight(weight) or is_constant(x) or len(shape_of(weight)) != 2 or len(shape_of(x)) < 2:
        return
    values = cast(fx.Node, weight.args[0])
    turned = constant(node, value_of(values).t(), values)
    rest = list(weight.args[1:])
    if is_call(weight, bgnn.fake_quant_channel):
        rest[2] = 1 - cast(int, rest[2]) % 2
    replace(node, call(node, aten.linear.default, x, call(node, weight.target, turned, *rest, like=weight)))


def _recognise(rounding: fx.Node, result: PassResult) -> None:
    """Replaces the quantiser around `rounding`, or notes why there is none."""
    lasts = list(_after(rounding))
    reasons: list[str] = []
    for source, _ in reversed(
        list(_expressions(cast(fx.Node, rounding.args[0])))
    ):  # the farthest first: x before x / s
        if shape_of(source) != shape_of(rounding) or not source.meta["val"].is_floating_point():
            continue
        for wanted in (True, False):  # one without a factor, if there is one
            for last in reversed(lasts):  # the longest first: it is the whole
                inside = next((inside for s, inside in _expressions(last) if s is source), None)
                if inside is None or not last.meta["val"].is_floating_point():
                    continue
                found = _staircase(source, rounding, last)
                if isinstance(found, str):
                    reasons.append(found)
                    continue
                part = _part_of_a_larger(source, last)
                if part is not None:
                    rounding.meta["stays_float"] = part
                    return
                if not wanted or found.factor == 1:
                    _replace(source, rounding, last, inside, found)
                    result.rewrites += 1
                    return
    rounding.meta["stays_float"] = _reason(rounding, reasons)


def _reason(rounding: fx.Node, reasons: list[str]) -> str:
    """The reason why a rounding is no quantiser: that of the largest expression of which there is one."""
    known = [r for r in reasons if r != UNEVEN] + reasons
    return known[0] if known else NO_QUANTISER


def _part_of_a_larger(source: fx.Node, last: fx.Node) -> str | None:
    """Why what was found is only the codes within a quantiser: the same scales stand before it and behind it."""
    for user in last.users:
        if not is_call(source, aten.mul, aten.div) or not is_call(user, aten.mul, aten.div):
            continue
        behind = _scales([n for n in user.all_input_nodes if n is not last])
        both = behind & _scales(source.all_input_nodes)
        if any(is_call(n, *REDUCTIONS) for n in both):
            return DYNAMIC
        if any(_differs(n) for n in behind) and any(_differs(n) for n in _scales(source.all_input_nodes)):
            return CHANNELS
    return None


def _scales(nodes: list[fx.Node]) -> set[fx.Node]:
    """Nodes, and what they are made of by arithmetic with numbers, up to reductions."""
    return set(above(*nodes, through=lambda n: is_call(n, *ELEMENTWISE, aten.reshape, aten.expand, aten.pow)))


def _differs(node: fx.Node) -> bool:
    """Whether `node` is a constant of several numbers that are not all the same."""
    return is_constant(node) and len(value_of(node).unique()) > 1


def _after(rounding: fx.Node) -> Iterator[fx.Node]:
    """The nodes that all that is made of the rounding comes together in, one after the other, itself first."""
    inside, border = {rounding}, set(rounding.users)
    yield rounding
    while border and len(inside) < LONGEST:
        node = min(border)  # the first of them: no other leads to it
        if not is_call(node, *ELEMENTWISE) or is_call(node, *LATER):
            return
        inside.add(node)
        border = (border | set(node.users)) - inside
        if border == set(node.users):
            yield node


def _expressions(node: fx.Node) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """(source, nodes between) for each tensor that `node` is an expression of, itself first."""
    yield node, set()
    if not is_call(node, *ELEMENTWISE):
        return
    yield from expressions(
        node,
        LONGEST,
        lambda n: is_call(n, *ELEMENTWISE),
        lambda n: is_constant(n) or is_weight(n),
    )


def _staircase(source: fx.Node, rounding: fx.Node, last: fx.Node) -> Staircase | str:
    """The quantiser that `last` is of `source`, or why it is none."""
    rank = len(shape_of(source))

    def of(node: fx.Node) -> Callable[[Tensor], Tensor | None]:
        def evaluated(points: Tensor) -> Tensor | None:
            shaped = points.reshape(-1, *[1] * (rank - 1)) if rank else points
            value = attempt(node, {source: shaped})
            return value.flatten() if value is not None and value.numel() == points.numel() else None

        return evaluated

    function, rounded = of(last), of(rounding)
    slope = _slope(of(cast(fx.Node, rounding.args[0])))
    if slope is None:
        return CHANNELS if _by_channel(source, rounding) else UNEVEN
    step = 1 / slope
    codes = torch.arange(-REACH, REACH + 1, dtype=torch.float64)
    levels = function((codes * step).float())
    first = rounded(torch.zeros(1))
    if levels is None or first is None or not bool(torch.isfinite(levels).all()):
        return CHANNELS if _by_channel(source, last) else UNEVEN
    levels = levels.double()
    moves = levels.diff()
    height = float(moves.max())
    if height <= 0 or bool((moves < -SAME * height).any()):
        return UNEVEN
    rising = (moves > height / 2).nonzero().flatten()
    low, high = int(codes[rising[0]]), int(codes[rising[-1]]) + 1
    if abs(float(levels[REACH])) > SAME * height or not low <= 0 <= high:
        return NO_ZERO
    inner = codes[REACH + low : REACH + high + 1]
    height = float((levels[REACH + low : REACH + high + 1] * inner).sum() / (inner * inner).sum())
    within = torch.arange(low - 2, high + 3, dtype=torch.float64)
    points = torch.cat([(within + part) * step for part in BESIDE])
    far = [float(sign * times * (high - low) * step) for times in (2, 16, 256) for sign in (-1, 1)]
    points = torch.cat([points, torch.tensor(far, dtype=torch.float64)])
    given = function(points.float())
    low, high = (-NO_END if low == -REACH else low), (NO_END if high == REACH else high)
    expected = torch.round(points / step).clamp(low, high) * height
    if given is None or not bool(((given.double() - expected).abs() <= SAME * height + 1e-6 * expected.abs()).all()):
        return NOT_NEAREST
    zero = int(first) if bool(first == torch.round(first)) and abs(float(first)) < REACH else 0
    close = abs(height / step - 1) < 1e-5
    stairs = Staircase(step if not close else height, zero, low + zero, high + zero, 1 if close else height / step)
    return _exactest(function, stairs, is_call(rounding, aten.round))


def _exactest(function: Callable[[Tensor], Tensor | None], about: Staircase, to_even: bool) -> Staircase:
    """With the scale among neighbours in float32 with which the op agrees most often: in its codes, ties and all.

    Where ties do not go `to_even` codes it is in the values: no other scale's ties shall stand for the model's.
    """
    scale = torch.tensor(about.scale)
    near = [scale, *(torch.nextafter(scale, torch.tensor(end)) for end in (torch.inf, -torch.inf))]
    best, most = about, -1
    for candidate in near:
        stairs = dataclasses.replace(about, scale=float(candidate))
        points = ties(stairs)
        given, plain = function(points), bgnn.fake_quant(points, *stairs.arguments)
        assert given is not None
        if to_even:
            given, plain = torch.round(given.double() / (stairs.scale * about.factor)), plain.double() / stairs.scale
            same = given == torch.round(plain)
        else:
            same = given == plain * about.factor
        if int(same.sum()) > most:
            best, most = stairs, int(same.sum())
    return best


def ties(stairs: Staircase) -> Tensor:
    """Points on and beside every tie between two codes, on the codes, and beyond both ends: f32 `[P]`."""
    ends = max(stairs.low - stairs.zero_point, -REACH), min(stairs.high - stairs.zero_point, REACH)
    steps = torch.arange(ends[0] - 2, ends[1] + 3, dtype=torch.float64)
    between = ((steps + 0.5) * stairs.scale).float()
    beside = [torch.nextafter(between, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    near = [(between.double() * factor).float() for factor in (1 - 1e-6, 1 + 1e-6)]
    return torch.cat([between, *beside, *near, (steps * stairs.scale).float(), torch.tensor([0.0, -0.0])])


def _slope(function: Callable[[Tensor], Tensor | None]) -> float | None:
    """The steepness of a straight line, or one down and up again, with a clamp at one or both ends; None of others."""
    powers = torch.exp2(torch.arange(-24, 24, 1 / 32, dtype=torch.float64)).float()
    sides = []
    for points in (powers, -powers):
        values = function(points)
        if values is None:
            return None
        at, value = points.double(), values.double()
        steep = (value.diff().abs() > 1e-3 * (1 + value[:-1].abs())) & value.diff().isfinite()
        sides.append((at, value, steep))
    slopes = torch.cat([(value.diff() / at.diff()).abs()[steep] for at, value, steep in sides])
    if slopes.numel() < 8:
        return None
    rough = float(slopes.median())
    best, longest = None, 0.0
    for at, value, steep in sides:  # two points far apart on the line tell it to the last digits
        on = (steep & (((value.diff() / at.diff()).abs() - rough).abs() < 0.01 * rough)).nonzero().flatten()
        on = on[value[on].abs() < REACH]
        if len(on) > 1:
            rise, run = float(value[on[-1]] - value[on[0]]), float(at[on[-1]] - at[on[0]])
            if abs(run) > longest:
                best, longest = abs(rise / run), abs(run)
    return best if best else None


def _by_channel(source: fx.Node, last: fx.Node) -> bool:
    """Whether constants in the expression differ along an axis."""
    inside = next((inside for s, inside in _expressions(last) if s is source), set())
    return any(_differs(n) for member in inside | {last} for n in member.all_input_nodes)


def _replace(source: fx.Node, rounding: fx.Node, last: fx.Node, inside: set[fx.Node], found: Staircase) -> None:
    new = call(last, bgnn.fake_quant.default, source, *found.arguments)
    points = ties(found).reshape(-1, *[1] * (len(shape_of(source)) - 1)) if shape_of(source) else ties(found)[0]
    given = attempt(last, {source: points})
    exact = given is not None and torch.equal(given, bgnn.fake_quant(points, *found.arguments) * found.factor)
    if not exact:
        new.meta["as_written"] = _copied(source, rounding, last, inside | {last}, found)
        new.meta["own_ties"] = not is_call(rounding, aten.round)  # they do not go to even codes
    name = last.name
    replace(last, new if found.factor == 1 else call(last, aten.mul.Tensor, new, found.factor))
    if found.factor == 1:
        new.name = name


def _copied(
    source: fx.Node, rounding: fx.Node, last: fx.Node, inside: set[fx.Node], found: Staircase
) -> fx.GraphModule:
    """The expression as a graph of its own: x -> (numbers whose nearest integers are the codes, the value as x is).

    The former are what is rounded to the nearest, or what another rounding gives; None if codes are made of it later.
    """
    graph, constants = fx.Graph(), torch.nn.Module()
    copies = {source: graph.placeholder("x")}
    for node in source.graph.nodes:
        if node is source:
            continue
        if is_constant(node) and any(user in inside for user in node.users):
            constants.register_buffer(str(node.target), value_of(node))
            copies[node] = graph.get_attr(str(node.target))
        elif node in inside:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    codes = cast(fx.Node, rounding.args[0]) if is_call(rounding, aten.round) else rounding
    value = copies[last]
    if found.factor != 1:
        value = graph.call_function(aten.div.Tensor, (value, found.factor))
    graph.output((copies[codes] if _are_codes(codes, source, last, found) else None, value))
    return fx.GraphModule(constants, graph)


def _are_codes(numbers: fx.Node, source: fx.Node, last: fx.Node, found: Staircase) -> bool:
    """Whether the codes are the integers nearest to `numbers`, clamped."""
    points = ties(found).reshape(-1, *[1] * (len(shape_of(source)) - 1)) if shape_of(source) else ties(found)[0]
    given, value = attempt(numbers, {source: points}), attempt(last, {source: points})
    if given is None or value is None:
        return False
    codes = torch.round(value.double() / (found.scale * found.factor)) + found.zero_point
    return torch.equal(torch.round(given.double()).clamp(found.low, found.high), codes)
