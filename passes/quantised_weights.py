"""Finds quantised weights, however they were made: constants whose values are whole multiples of a step.

A weight's quantiser has constants alone before it, so its values are known; what is asked is their step. Rounding
tells it: where what was rounded is one more or one less, the value is a step more or less, whatever stands before the
rounding (a learned offset, a scale from the weight's own largest value, tanh) and behind it (zero points, moves). A
weight stored as int8 is as good as rounded. Found so, `values` become

    fake_quant(values, step)  or  fake_quant_channel(values, steps, zeros, axis)

which say which codes the values are, and change none of them. Where the levels lie half a step beside 0 (DoReFa's),
the step is half of theirs; of 256 such levels, W = A + h with codes for A, and the layer is `linear(x, A)` and the sum
of x times h, another layer of one output. So it is with a zero point for each output channel (torch.ao's, of channels
of one sign), where h is a number for each. What does not fit 8 bits is a constant, with the reason in
`meta["stays_float"]`.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor, fx

from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.expressions import attempt
from bgnn.passes.graph import (
    PassResult,
    above,
    arg,
    aten,
    call,
    constant,
    is_call,
    is_constant,
    is_static,
    remove_dead_code,
    replace,
)
from bgnn.passes.recognise_binarize import AFFINE, MOVES
from bgnn.passes.recognise_fake_quant import to_whole_numbers

MAKES = ("fake_quant", "fake_quant_channel")

bgnn = torch.ops.bgnn

ROUNDINGS = [aten.round, aten.floor, aten.ceil, aten.trunc, aten.fix]
FAKE = [bgnn.fake_quant, bgnn.fake_quant_channel]
BYTES = [torch.int8, torch.uint8]
LAYERS = [aten.linear, aten.conv1d, aten.conv2d]
FEW = 4  # numbers of which each could be a multiple of the smallest by chance
SAME = 1e-3  # of a step: as far as a value may lie beside a multiple of it


@dataclasses.dataclass(frozen=True)
class Grid:
    """Steps f32 `[]` or, for each index of `axis`, `[C]`; the zero point that makes the codes fit int8.

    `beside`: how far all levels lie above those that are codes; f32 `[]`, or `[C, 1, ...]` for each output channel.
    """

    steps: Tensor
    axis: int | None
    zero: int
    beside: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(()))

    @property
    def is_beside(self) -> bool:
        """Whether the levels are no codes themselves."""
        return bool((self.beside != 0).any())


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces every quantised weight by its values and the quantiser that leaves them as they are."""
    result = PassResult()
    known = _known(gm)
    for node in list(gm.graph.nodes):
        if node not in known or is_constant(node) or is_call(node, *FAKE) or all(user in known for user in node.users):
            continue
        roundings = _roundings(node)
        value = node.meta["val"]
        if not roundings or value.numel() <= 1 or not value.is_floating_point():
            continue
        values = attempt(node, {})
        found = None if values is None else grid(node, values, roundings)
        if values is None or found is None or _is_of_signs(node, values):
            continue
        origin = _origin(node, values)
        if origin is None:
            continue
        if isinstance(found, Grid) and found.is_beside and not all(_takes(user, node) for user in node.users):
            found = "its levels lie beside the whole multiples of its steps, and no dense layer takes them"
        made = constant(node, values - found.beside if isinstance(found, Grid) else values, origin)
        if isinstance(found, str):
            result.refuse(roundings[0], found)
            made.meta["stays_float"] = found
            replace(node, made)
            continue
        arguments = (found.zero, -128, 127)
        if found.axis is None:
            new = call(node, bgnn.fake_quant.default, made, float(found.steps), *arguments)
        else:
            steps = constant(node, found.steps, f"{made.target}_steps")
            zeros = constant(node, torch.full_like(found.steps, found.zero), f"{made.target}_zeros")
            new = call(node, bgnn.fake_quant_channel.default, made, steps, zeros, found.axis, *arguments[1:])
        for layer in list(node.users) if found.is_beside else []:
            _add_sums(layer, values, found.beside, made.meta.get("source"))
        replace(node, new)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _takes(user: fx.Node, weight: fx.Node) -> bool:
    return is_call(user, *LAYERS) and user.args[1] is weight and arg(user, 6, "groups", 1) == 1


def _add_sums(layer: fx.Node, values: Tensor, beside: Tensor, source: str | None) -> None:
    """Adds to a dense layer the sum of what it takes, times `beside`: an 8-bit layer of one output."""
    unit = float(beside) if beside.dim() == 0 else 1.0
    row = constant(layer, torch.full_like(values[:1], unit), "beside")
    row.meta.update({"source": f"{source}, sums"} if source else {})
    codes = call(layer, bgnn.fake_quant.default, row, unit, 0, -128, 127)
    rest = [None, *layer.args[3:]] if len(layer.args) > 3 else []
    users = list(layer.users)
    sums = call(layer, layer.target, layer.args[0], codes, *rest)
    layer.append(sums)  # behind the layer, with what it is added to
    if beside.dim():
        each = beside.flatten() if is_call(layer, aten.linear) else beside[:, 0]  # [O], or [O, 1] of channels first
        factors = constant(layer, each, "beside")
        with layer.graph.inserting_after(sums):
            scaled = layer.graph.call_function(aten.mul.Tensor, (sums, factors))
        scaled.meta = dict(layer.meta)
        sums = scaled
    whole = layer.graph.call_function(aten.add.Tensor, (layer, sums))
    sums.append(whole)
    whole.meta = dict(layer.meta)
    for user in users:
        user.replace_input_with(layer, whole)


def _known(gm: fx.GraphModule) -> set[fx.Node]:
    """The nodes that constants alone decide."""
    known: set[fx.Node] = set()
    for node in gm.graph.nodes:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if is_constant(node) or (
            node.op == "call_function"
            and all(n in known for n in node.all_input_nodes)
            and isinstance(node.meta.get("val"), Tensor)
            and is_static(node)
            and not random
        ):
            known.add(node)
    return known


def _roundings(last: fx.Node) -> list[fx.Node]:
    """What is rounded, or is stored in bytes, nearest to `last` on each way back from it.

    Of these, what another one is made of rounds no weight, but a scale: `round(w / s) * s` with s a power of 2.
    """

    def rounds(node: fx.Node) -> bool:
        return is_call(node, *ROUNDINGS) or node.meta["val"].dtype in BYTES or to_whole_numbers(node)

    way = above(last, through=lambda n: not rounds(n) and not is_call(n, *FAKE))
    found = [node for node in way if rounds(node)]
    before = set(above(*(n for node in found for n in node.all_input_nodes)))
    return [node for node in found if node not in before]


def grid(last: fx.Node, values: Tensor, roundings: list[fx.Node]) -> Grid | str | None:
    """The steps of a constant, or why it has none that int8 can hold; None where nothing was quantised."""
    moved = torch.zeros_like(values, dtype=torch.float64)
    inside = moved.clone()  # the same between codes next to 0, which no clamp holds back
    for node in roundings:
        rounded = attempt(node, {})
        if rounded is None:
            return None
        wide = rounded if rounded.is_floating_point() else rounded.to(torch.int32)
        near = [attempt(last, {node: torch.full_like(wide, code)}) for code in (-1, 0, 1)]
        ways = [(values, attempt(last, {node: wide + way})) for way in (1, -1)]
        for total, pairs in ((moved, ways), (inside, list(itertools.pairwise(near)))):
            for one, other in pairs:
                if one is None or other is None or one.shape != values.shape or other.shape != values.shape:
                    return None
                torch.maximum(total, (other.double() - one.double()).abs(), out=total)
    moved = torch.where(moved > 0, moved, inside)
    real = values.double()
    if not bool((moved > 0).any()):
        return None
    reason = "its levels are not whole multiples of one step"
    least = torch.where(real == 0, torch.inf, real.abs())  # of powers of 2 the smallest is the step of all
    for axis, smallest in itertools.product((None, *range(values.dim())), (False, True)):
        rest = [d for d in range(values.dim()) if d != axis]
        sizes = -least if smallest else moved
        steps = (sizes.amax() if axis is None else sizes.amax(rest, keepdim=True) if rest else sizes).abs()
        if bool(torch.isinf(steps).any()) or (smallest and values.numel() < FEW * steps.numel()):
            continue
        if bool((steps <= 0).any()):  # a channel of zeros
            steps = torch.where(steps > 0, steps, steps.amax())
        for fraction in (1, 2):
            codes = torch.round(real / (steps / fraction))
            squares = (codes * codes).sum(rest, keepdim=True) if rest else codes * codes
            products = (real * codes).sum(rest, keepdim=True) if rest else real * codes
            # The values together tell the step more exactly than one difference does.
            exact = torch.where(squares > 0, products / squares.clamp(min=1), steps / fraction)
            if bool(((real / exact - codes).abs() > SAME).any()):
                continue
            low, high = int(codes.min()), int(codes.max())
            odd = axis is None and fraction == 2 and bool((codes % 2 == 1).all())
            if odd and 255 < high - low <= 511:
                first, half = (low - 1) // 2, exact.float().reshape(())
                return Grid(2 * half, None, 0 if first >= -128 else -128 - first, half)
            if axis == 0 and fraction == 1 and values.dim() > 1:
                least, most = (torch.aminmax(codes.flatten(1), dim=1)[i].reshape(steps.shape) for i in (0, 1))
                zeros = torch.where((least >= -128) & (most <= 127), 0, least + 128)
                if bool((zeros != 0).any()) and bool((most - least <= 255).all()) and high - low > 255:
                    return Grid(exact.flatten().float(), 0, 0, (zeros * exact).float())
            if high - low > 255:
                reason = f"its codes {low}..{high} are more than the 256 of 8 bits"
                continue
            zero = 0 if low >= -128 and high <= 127 else -128 - low
            if not -128 <= zero <= 127:
                reason = f"its codes {low}..{high} do not hold 0"
                continue
            return Grid(exact.flatten().float() if axis is not None else exact.float().reshape(()), axis, zero)
    return reason


def _is_of_signs(node: fx.Node, values: Tensor) -> bool:
    """Whether these are the weights of a binary layer, whose scales alone were rounded (IR-Net's powers of two)."""
    if values.dim() < 2 or binary_rows(values.flatten(1)) is None:
        return False
    beside = [n for user in node.users for n in user.all_input_nodes if n is not node]
    return any(is_call(n, bgnn.binarize) for n in above(*beside, through=lambda n: is_call(n, *MOVES, *AFFINE)))


def _origin(node: fx.Node, values: Tensor) -> fx.Node | None:
    """The stored weight that a constant is made of; None if it is made of sizes alone (`eye`)."""

    def size(leaf: fx.Node) -> tuple[bool, int]:
        return leaf.meta["val"].numel() == values.numel(), leaf.meta["val"].numel()

    return max(filter(is_constant, above(node)), key=size, default=None)
