"""Finds the sign function, however it was written: what takes two values, one below a threshold, is a sign.

`torch.sign(x)`, `where(x >= 0, 1, -1)`, `(x >= 0).float() * 2 - 1`, `where(sign(x) == 0, 1, sign(x))`,
`where(x >= t_c, alpha_c, -alpha_c)`, `(x > 0).float()`, `2 * round(sigmoid(x)) - 1`: each is an elementwise expression
of one tensor, with constants. The expression is evaluated, for each position of its constants (a channel), on numbers
of every size: if it has the value a below some t and b from t on, it is `s * binarize(x - t) + o` (binary GNN paper,
Eq. 8), with s = (b - a)/2 and o = (b + a)/2. t is found by bisection over all float32 numbers, so the comparison
decides exactly as PyTorch does.

What it gives at exactly 0 decides the form: with b it is `binarize(x)`, with a `-binarize(-x)`, and something between
(`torch.sign`'s 0) is settled as b (`--sign-zero plus`; verification counts the zeros it meets). A scale or an offset is
taken out only where a dense layer follows, which can take it (sink_scales); a mask stays a mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.expressions import attempt, evaluate, expressions, numbers_in
from bgnn.passes.float_order import number, order
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

MAKES = ("binarize",)

bgnn = torch.ops.bgnn

ELEMENTWISE = ops.having("elementwise")
MOVES = [*ops.having("move"), *ops.having("extremum"), *ops.having("same")]
AFFINE = [aten.mul, aten.div, aten.add, aten.sub, aten.neg]
DENSE = ops.having("dense")
LONGEST = 40  # nodes in one expression
MOST_POSITIONS = 1 << 12  # of constants: each is a function of its own
LARGEST = 1e30
DENORMAL = torch.finfo(torch.float32).tiny  # what is smaller is 0 to runtimes that flush it

# Zeros, and numbers of every size from the smallest to 2^60, four to an octave.
_SIZES = torch.tensor([1e-44, 1e-38, 1e30]).tolist() + [
    part * 2.0**power for power in range(-60, 60) for part in (1.0, 1.2, 1.45, 1.7)
]
POINTS = torch.tensor([0.0, -0.0] + [sign * size for size in _SIZES for sign in (1.0, -1.0)])
FEW = torch.tensor([-1e30, -40.123, -0.9137, 0.3071, 1.3113, 1e30])


@dataclasses.dataclass(frozen=True)
class Step:
    """`below` for x under `threshold`, `above` from it on; f32 tensors over the positions of the constants.

    `width`: from the threshold so far on, the expression gives something between, which was settled (None: nowhere).
    """

    threshold: Tensor
    below: Tensor
    above: Tensor
    width: float | None

    @property
    def is_sign(self) -> bool:
        """Whether its values are -1 and +1, in either order."""
        return bool(((self.below.abs() == 1) & (self.above == -self.below)).all())


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces each maximal sign expression; runs on constants' expressions too (binary weights)."""
    result = PassResult()
    fixed: set[fx.Node] = set()  # what depends on constants alone
    for node in gm.graph.nodes:
        inputs = node.all_input_nodes
        if is_constant(node) or (node.op == "call_function" and inputs and all(n in fixed for n in inputs)):
            fixed.add(node)
    for node in reversed(list(gm.graph.nodes)):  # the last node of an expression first: it is the whole one
        if not node.users and node.op == "call_function":  # it was part of one that has been replaced
            gm.graph.erase_node(node)
            continue
        if not _is_elementwise(node) or is_call(node, bgnn.binarize) or node.meta["val"].dtype != torch.float32:
            continue
        found = _step_of(node, fixed)
        if found is None:
            continue
        source, step = found
        if not step.is_sign and (node in fixed or not _feeds_a_dense_layer(node)):
            continue
        new = _written(node, source, step)
        if new is not None:
            replace(node, new)
            result.rewrites += 1
    remove_dead_code(gm)
    return result


def _is_elementwise(node: Any) -> bool:
    return is_call(node, *ELEMENTWISE) and isinstance(node.meta.get("val"), Tensor)


def _step_of(node: fx.Node, fixed: set[fx.Node]) -> tuple[fx.Node, Step] | None:
    """(x, the step of x that `node` is), if it is one; the nearest such x."""

    def is_given(n: fx.Node) -> bool:
        if node not in fixed:
            return n in fixed
        return (is_constant(n) and value_of(n).numel() == 1) or (is_constant(n) and _is_filled(n))

    denormal = None
    for source, inside in expressions(node, LONGEST, _is_elementwise, is_given):
        value = source.meta.get("val")
        if not isinstance(value, Tensor) or shape_of(source) != shape_of(node) or value.dtype != torch.float32:
            continue
        step = _evaluate(node, source, inside, is_given)
        if step is None:
            continue
        tiny = (step.threshold != 0) & (step.threshold.abs() < DENORMAL)
        if not bool(tiny.any()):
            return source, step
        # `exp(u) > 0` turns at a denormal number, which some runtimes take for 0: in u it turns at an ordinary one.
        denormal = denormal or (source, step)
    return denormal


def _is_filled(node: fx.Node) -> bool:
    """A constant that is the same everywhere; a parameter of equal values is still a parameter."""
    value = value_of(node)
    return value.numel() > 0 and node.meta.get("source") is None and bool((value == value.flatten()[0]).all())


def _evaluate(node: fx.Node, source: fx.Node, inside: set[fx.Node], is_given: Callable[[fx.Node], bool]) -> Step | None:
    """The step that the expression from `source` to `node` is, else None."""
    rank = len(shape_of(source))
    known: dict[fx.Node, Tensor] = {}
    for given in {n for member in inside for n in member.all_input_nodes if n is not source and n not in inside}:
        value = attempt(given, {})
        if not isinstance(value, Tensor) or value.dim() > rank:
            return None
        filled = value.numel() > 0 and bool((value == value.flatten()[0]).all())
        value = value.flatten()[0] if filled else value
        known[given] = value.reshape((1,) * (rank - value.dim()) + tuple(value.shape))
    try:
        shape = torch.broadcast_shapes((1,) * rank, *(v.shape for v in known.values()))
    except RuntimeError:
        return None
    if torch.Size(shape).numel() > MOST_POSITIONS:
        return None

    def at(points: Tensor, settled: bool = False) -> Tensor:
        """The expression's values at points `[V, *positions]`."""
        return evaluate(node, {**known, source: points}, SETTLED if settled else {}).expand(points.shape)

    def column(values: Tensor) -> Tensor:
        return values.reshape(-1, *(1,) * rank).expand(-1, *shape)

    try:
        few = at(column(FEW))
        if not bool(((few == few[:1]) | (few == few[-1:])).all(0).any()) or bool((few[0] == few[-1]).any()):
            return None
        numbers = [torch.tensor(n).expand(shape) for n in numbers_in(inside)]
        numbers += [v.float().expand(shape) for v in known.values()]
        near = [p for c in numbers for p in (c, c * 0.999, c * 1.001, c - 1, c + 1, c - 0.01, c + 0.01)]
        points = torch.cat([column(POINTS), *(p[None] for p in near), *(-p[None] for p in near)])
        return _step(at, points, shape)
    except (RuntimeError, TypeError, ValueError, IndexError):  # no expression of one tensor after all
        return None


SETTLED: dict[Any, Callable[..., Tensor]] = {
    aten.sign.default: torch.ops.bgnn.binarize,
    aten.sgn.default: torch.ops.bgnn.binarize,
}


def _step(at: Callable[..., Tensor], points: Tensor, shape: torch.Size) -> Step | None:
    """The step that a function of points `[V, *shape]` is; None if it is another function."""
    lowest, highest = order(torch.full(shape, -LARGEST)), order(torch.full(shape, LARGEST))
    below, above = at(number(lowest)[None])[0], at(number(highest)[None])[0]
    if bool((below == above).any()) or not bool((torch.isfinite(below) & torch.isfinite(above)).all()):
        return None

    # The orders of the first numbers from which on the value is not `below`, and is `above`, searched for side by side.
    low, high = torch.stack([lowest, lowest]), torch.stack([highest, highest])
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        values = at(number(middle))
        there = torch.stack([values[0] != below, values[1] == above])
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    first, last = high
    # 0 comes in two forms of the same order
    steps = torch.stack([number(first + d) for d in (-2, -1, 0, 1, 2)] + [number(last + d) for d in (-2, -1, 0, 1, 2)])
    points = torch.cat([points, steps])
    values = at(points)
    under, over = order(points) < first, order(points) >= last
    between = ~(under | over)
    wrong = (under & (values != below)) | (over & (values != above))
    width: float | None = None
    if bool(((first != last) | wrong).any()):
        settled = at(points, settled=True)
        zeros = (points == 0) & (first == 0) & ((last == 1) | (last == 0))
        if bool((wrong & ~zeros).any()):
            return None
        if bool((between & ~zeros & (settled != above)).any()):
            return None
        width = float((number(last - 1) - number(first)).clamp(min=0).max())
    return Step(number(first), below, above, width)


def _feeds_a_dense_layer(node: fx.Node) -> bool:
    """Whether a dense layer reads it, perhaps after moves and rescalings."""
    seen, stack = {node}, [node]
    while stack:
        current = stack.pop()
        for user in current.users:
            if is_call(user, *DENSE):
                return True
            others = [a for a in user.all_input_nodes if a is not current]
            rescales = is_call(user, *AFFINE) and all(
                is_constant(a) or (isinstance(a.meta.get("val"), Tensor) and shape_of(a) != shape_of(user))
                for a in others
            )
            if user not in seen and (rescales or is_call(user, *MOVES)):
                seen.add(user)
                stack.append(user)
    return False


def _written(node: fx.Node, source: fx.Node, step: Step) -> fx.Node | None:
    """`s * binarize(x - t) + o`, or with both signs turned where t would be a denormal number; None if it has to be."""
    threshold, below, above = step.threshold, step.below, step.above
    tiny = (threshold != 0) & (threshold.abs() < DENORMAL)
    x = source
    if bool(tiny.any()):
        if step.width is not None:
            return None
        threshold = -number(order(threshold) - 1)  # x >= t is not(-x >= -(the number before t))
        if bool(((threshold != 0) & (threshold.abs() < DENORMAL)).any()):
            return None
        below, above = above, below
        x = call(node, aten.neg.default, x)
    if bool((threshold != 0).any()):
        x = call(node, aten.sub.Tensor, x, _operand(node, threshold, "sign_threshold"))
    new = call(node, bgnn.binarize.default, x)
    if step.width is not None:
        new.meta["zero_was_zero"] = True
        new.meta["zero_width"] = step.width
    scale, offset = (above - below) / 2, (above + below) / 2
    if bool((scale == -1).all()):
        new = call(node, aten.neg.default, new)
    elif bool((scale != 1).any()):
        new = call(node, aten.mul.Tensor, new, _operand(node, scale, "sign_scale"))
    if bool((offset != 0).any()):
        new = call(node, aten.add.Tensor, new, _operand(node, offset, "sign_offset"))
    return new


def _operand(node: fx.Node, value: Tensor, name: str) -> Any:
    """A number where it is the same everywhere, or a constant."""
    if bool((value == value.flatten()[0]).all()):
        return float(value.flatten()[0])
    while value.dim() > 1 and value.shape[0] == 1:
        value = value[0]
    return constant(node, value, name)
