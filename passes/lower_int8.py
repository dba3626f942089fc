"""Fake-quantisers become codes: integers from quantiser to quantiser.

Each `fake_quant` of an activation is `dequantize(quantize(x))`, with codes from 0 (a signed range is shifted: the same
codes). Then what stands between codes is computed on codes:

    quantize(linear(dequantize(q), fake_quant(W), b))      q_linear         a ReLU raises the lowest code
    quantize(dequantize(a) * dequantize(b))                q_mul            and their sums q_add
    quantize(segment_sum(dequantize(q)))                   q_segment_sum    and means
    segment_sum(dequantize(q))                             q_segment_sum_float, where nothing quantises the sum
    quantize(leaky_relu(dequantize(q)))                    requantize
    quantize(sum(dequantize(q), axis))                     q_sum, with a constant below it means; q_sum_float likewise
    gather(dequantize(q))                                  dequantize(gather(q)), all other moves, maxima
    quantize(max(linear(dequantize(q), ...)))              max(q_linear(...)): rounding keeps an order
    dequantize(q) * c                                      dequantize with another scale
    knn(dequantize(q))                                     knn of the codes less their zero point

Where codes meet no rule they are dequantised and the arithmetic stays float: the report says so. Rounds as ONNX Runtime
does: at most one code beside the model's (converter.decisions counts where). The bias of q_linear is rounded to the
accumulator's unit, which moves a result by at most half of it, BIAS_SLACK of a code; where the unit is coarser than
that, and in NARROW layers, the bias is added in float. Refused where a 32-bit sum could overflow.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import accumulators, ops
from bgnn.passes.graph import (
    PassResult,
    Rule,
    above,
    arg,
    aten,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    number_of,
    only_user,
    reduced_axes,
    remove_dead_code,
    replace,
    rewrite,
    shape_of,
    value_of,
)
from bgnn.passes.recognise_fake_quant import FAKE, NO_END, is_weight, written_out

NEEDS = ("fake_quant", "fake_quant_channel", "segment_sum", "segment_mean", "segment_max")
MAKES = (
    "quantize",
    "dequantize",
    "requantize",
    "q_linear",
    "q_linear_float",
    "q_mul",
    "q_add",
    "q_segment_sum",
    "q_segment_sum_float",
    "q_segment_mean",
    "q_segment_max",
    "q_sum",
    "q_sum_float",
)

bgnn = torch.ops.bgnn

MOVES = ops.having("move", "one")
EXTREMA = ops.having("extremum")
# Their last two arguments are the lowest and the highest code.
MAKERS = [
    bgnn.quantize, bgnn.requantize, bgnn.q_linear, bgnn.q_mul, bgnn.q_add, bgnn.q_segment_sum, bgnn.q_segment_mean,
    bgnn.q_sum,
]  # fmt: skip
BIAS_SLACK = 1 / 64  # of a code
EXACT_FLOATS = 1 << 24  # whole numbers up to here are float32
# In a layer of few channels the bias is added in float: it costs little there, and no code turns.
NARROW, EXACT = 64, 1e-6  # channels; of a code


@dataclasses.dataclass(frozen=True)
class Codes:
    """A tensor of codes and what they stand for."""

    node: fx.Node
    scale: float
    zero: int


def codes_of(node: Any) -> Codes | None:
    """The codes behind a dequantised tensor."""
    if not is_call(node, bgnn.dequantize):
        return None
    return Codes(*cast(tuple[fx.Node, float, int], cast(fx.Node, node).args))


def run(gm: fx.GraphModule, naive: bool = False, sums: bool = True) -> PassResult:
    """Lowers every quantiser; with `naive`, all arithmetic between them stays float.

    `sums`: the target's layers give their 32-bit sums as fast as codes, so that a bias may be added in float.
    """
    result = PassResult()
    _introduce(gm, result)
    if not naive:
        quantised = functools.partial(_quantize, narrow=NARROW if sums else 0)
        rules: list[tuple[Sequence[Any], Rule]] = [
            ([*MOVES, *EXTREMA], _move),
            ([aten.cat], _cat),
            ([bgnn.knn], _knn),
            ([bgnn.segment_max], _segment_max),
            ([aten.mul], _scaled),
            ([aten.relu], _relu),
            ([aten.clamp], _clamp),
            ([aten.sum, aten.mean], _sum),
            ([aten.linear], _linear),
            ([bgnn.quantize], quantised),
        ]
        rewrite(gm, rules, result, again=True)
        for layer in calls(gm.graph, aten.linear):
            reason = _why_float(layer)
            if reason is not None:
                result.refuse(layer, reason)
        for total in calls(gm.graph, bgnn.segment_sum, bgnn.segment_mean):
            codes = codes_of(total.args[0])
            if codes is None:
                continue
            if is_call(total, bgnn.segment_mean) or accumulators.of_segments(codes.zero) > accumulators.LARGEST:
                rounded = any(user.meta.get("own_ties") for user in total.users)
                how = "what quantises its sums does not round ties to even" if rounded else "nothing quantises its sums"
                result.refuse(total, f"it sums codes, but {how}: they stay real")
                continue
            replace(total, call(total, bgnn.q_segment_sum_float.default, *_triple(codes), *total.args[1:]))
            result.rewrites += 1
    _fold_weights(gm)
    remove_dead_code(gm)
    return result


def _introduce(gm: fx.GraphModule, result: PassResult) -> None:
    for node in calls(gm.graph, bgnn.fake_quant):
        if is_weight(node):
            if _is_of_rows(node):
                _introduce_constant(node)
            continue
        x, scale, zero, low, high = cast(tuple[fx.Node, float, int, int, int], node.args)
        if high - low > 255 or not 0 <= zero - low <= 255:
            reason = f"its codes {low}..{high} are {high - low + 1}, zero point {zero}: not those of 8 bits"
            if high - low >= NO_END:
                reason = node.meta.get("stays_float", "its codes have no lowest or no highest: clamp them")
            result.refuse(node, reason)
            node.meta["stays_float"] = reason
            continue
        codes = _exactly(node) if len(shape_of(node)) == 1 or node.meta.get("own_ties") else None
        if codes is None:
            codes = call(node, bgnn.quantize.default, x, scale, zero - low, 0, high - low)
        if "tap" in node.meta:
            codes.meta["tap"] = node.meta.pop("tap")
        real = call(node, bgnn.dequantize.default, codes, scale, zero - low)
        name = node.name
        replace(node, real)
        real._rename(f"{name}_real")
        codes.name = name
        codes.meta.pop("new", None)
        result.rewrites += 1


def _is_of_rows(constant: fx.Node) -> bool:
    """Whether a constant, perhaps moved, is a factor or a term of tensors, with numbers of its own for their rows.

    One that has a number for each channel goes into a table of codes (`tabulate`), or is a layer's weight.
    """
    readers = list(constant.users)
    while readers:
        reader = readers.pop()
        if is_call(reader, *MOVES):
            readers += reader.users
            continue
        operands = [a for a in reader.all_input_nodes if _stems_from(a, constant)]
        if not is_call(reader, aten.mul, aten.add) or all(s == 1 for a in operands for s in shape_of(a)[:-1]):
            return False
    return True


def _stems_from(node: fx.Node, constant: fx.Node) -> bool:
    while is_call(node, *MOVES):
        node = cast(fx.Node, node.args[0])
    return node is constant


def _introduce_constant(node: fx.Node) -> None:
    """The codes of a constant with a quantiser, as an activation's."""
    scale, zero, low, high = cast(tuple[float, int, int, int], node.args[1:])
    if high - low > 255 or not 0 <= zero - low <= 255:
        return
    codes = torch.round(_faked_weight(node) / scale) + zero - low
    made = constant(node, codes.to(torch.uint8), f"{cast(fx.Node, node.args[0]).target}_codes")
    replace(node, call(node, bgnn.dequantize.default, made, scale, zero - low))


def _exactly(node: fx.Node) -> fx.Node | None:
    """The codes of a quantiser computed as the model does it; None where they could not be held on the way.

    For a number of each edge or node: what the model rounds (`x / scale + zero_point`, or as it is written) in float32,
    and that number quantised in steps of 1. It is cheap there, and where it shows: a GCN's norms are 1 / sqrt(d_i d_j),
    which meet ties. And for quantisers that do not round ties to even, as everything does that runs on codes.
    """
    x, scale, zero, low, high = cast(tuple[fx.Node, float, int, int, int], node.args)
    real, value = written_out(node) or (None, None)
    if value is None:
        real = call(node, aten.add.Tensor, call(node, aten.div.Tensor, x, scale), float(zero))
    unit, origin = (scale, zero) if real is None else (1.0, 0)
    if not 0 <= origin - low <= 255:
        return None
    codes = real if real is not None else value
    return call(node, bgnn.quantize.default, codes, unit, origin - low, 0, high - low)


def _move(node: fx.Node) -> fx.Node | None:
    codes = codes_of(node.args[0])
    if codes is None:
        return None
    moved = call(node, node.target, codes.node, *node.args[1:], like=node, **node.kwargs)
    return call(node, bgnn.dequantize.default, moved, codes.scale, codes.zero)


def _knn(node: fx.Node) -> fx.Node | None:
    """Neighbours among codes, by distances in steps: whole numbers, which float32 holds, so that ties are ties."""
    codes = codes_of(node.args[0])
    if codes is None or codes.scale == 1.0 or node.args[2] != "l2":
        return None
    if 3 * shape_of(codes.node)[-1] * accumulators.reach(codes.zero) ** 2 >= EXACT_FLOATS:  # 2 x y - y y
        return None
    steps = call(node, bgnn.dequantize.default, codes.node, 1.0, codes.zero)
    return call(node, node.target, steps, *node.args[1:])


def _cat(node: fx.Node) -> fx.Node | None:
    given = cast(list[fx.Node], node.args[0])
    first = next((codes for part in given if (codes := codes_of(part)) is not None), None)
    if first is None:
        return None
    parts = [codes_of(part) or _as_codes(part, first) for part in given]
    if any(p is None or (p.scale, p.zero) != (first.scale, first.zero) for p in parts):
        return None
    joined = call(node, aten.cat.default, [cast(Codes, p).node for p in parts], *node.args[1:])
    return call(node, bgnn.dequantize.default, joined, first.scale, first.zero)


def _as_codes(part: fx.Node, like: Codes) -> Codes | None:
    """A constant in the codes of another tensor, where each of its numbers is one: zeros behind a tensor's rows."""
    if not is_constant(part) or not part.meta["val"].is_floating_point():
        return None
    codes = bgnn.quantize(value_of(part), like.scale, like.zero, 0, 255)
    if not torch.equal(bgnn.dequantize(codes, like.scale, like.zero), value_of(part)):
        return None
    return Codes(constant(part.next, codes, f"{part.target}_codes"), like.scale, like.zero)


def _sum(node: fx.Node) -> fx.Node | None:
    """A sum or a mean along the axis before the channels: of neighbours, or of a cloud's points."""
    codes, axes = codes_of(node.args[0]), reduced_axes(node)
    if codes is None or arg(node, 2, "keepdim", False) or arg(node, 3, "dtype") is not None:
        return None
    shape = shape_of(codes.node)
    if axes != [len(shape) - 2] or type(shape[axes[0]]) is not int:
        return None
    if shape[axes[0]] * accumulators.reach(codes.zero) > accumulators.LARGEST:
        return None
    total = call(node, bgnn.q_sum_float.default, *_triple(codes), axes[0])
    return call(node, aten.div.Tensor, total, shape[axes[0]]) if is_call(node, aten.mean) else total


def _closed_sum(node: fx.Node, last: tuple[float, int, int, int]) -> fx.Node | None:
    """`quantize(q_sum_float(...))`, and of such a sum by constant lengths, on integers."""
    total, length = cast(fx.Node, node.args[0]), None
    if is_call(total, aten.div):
        total, length = cast(tuple[fx.Node, Any], total.args)
        if not isinstance(length, fx.Node):
            length = constant(node, torch.tensor(float(length)), "length")
        if not is_constant(length) or not bool((value_of(length) > 0).all()):
            return None
    if not is_call(total, bgnn.q_sum_float):
        return None
    return call(node, bgnn.q_sum.default, *total.args, length, *last, like=total)


def _segment_max(node: fx.Node) -> fx.Node | None:
    codes = codes_of(node.args[0])
    if codes is None:
        return None
    largest = call(node, bgnn.q_segment_max.default, codes.node, codes.zero, *node.args[1:])
    return call(node, bgnn.dequantize.default, largest, codes.scale, codes.zero)


def _scaled(node: fx.Node) -> fx.Node | None:
    """`dequantize(q) * c` for one number c > 0."""
    for data, factor in (node.args[:2], tuple(reversed(node.args[:2]))):
        codes = codes_of(data)
        number = number_of(factor)
        if codes is not None and number is not None and number > 0:
            scale = float(torch.tensor(codes.scale) * torch.tensor(number))
            return call(node, bgnn.dequantize.default, codes.node, scale, codes.zero)
    return None


def _relu(node: fx.Node) -> fx.Node | None:
    """A ReLU of codes: no code below the zero point. Taken in by what makes the codes, if nothing else reads them."""
    codes = codes_of(node.args[0])
    if codes is None:
        return None
    maker = codes.node
    readers = [user for real in maker.users for user in real.users]
    alone = all(is_call(real, bgnn.dequantize) for real in maker.users) and all(is_call(r, aten.relu) for r in readers)
    if alone and is_call(maker, *MAKERS):
        low, high = cast(tuple[int, int], maker.args[-2:])
        if low >= codes.zero:
            return cast(fx.Node, node.args[0])
        maker.args = (*maker.args[:-2], min(codes.zero, high), high)
        if "tap" in maker.meta:
            maker.meta["tap"] = maker.meta["tap"].changed(floor=codes.zero)
        return cast(fx.Node, node.args[0])
    same = (codes.scale, codes.zero)
    above = call(node, bgnn.requantize.default, codes.node, *same, 0.0, *same, codes.zero, 255)
    return call(node, bgnn.dequantize.default, above, *same)


def _clamp(node: fx.Node) -> fx.Node | None:
    """Codes between two, where the bounds are numbers that codes stand for."""
    codes, bounds = codes_of(node.args[0]), (arg(node, 1, "min"), arg(node, 2, "max"))
    if codes is None or any(isinstance(bound, fx.Node) for bound in bounds):
        return None
    given = [_code(codes, bound, end) for bound, end in zip(bounds, (0, 255), strict=True)]
    if None in given:
        return None
    same = (codes.scale, codes.zero)
    between = call(node, bgnn.requantize.default, codes.node, *same, 1.0, *same, *given)
    return call(node, bgnn.dequantize.default, between, *same)


def _code(codes: Codes, bound: Any, end: int) -> int | None:
    """The code that stands for a number, or for the `end` where there is none."""
    if bound is None:
        return end
    code = round(float(bound) / codes.scale) + codes.zero
    there = 0 <= code <= 255 and float(bgnn.dequantize(torch.tensor(code), codes.scale, codes.zero)) == bound
    return code if there else None


def _quantize(node: fx.Node, narrow: int) -> fx.Node | None:
    x = cast(fx.Node, node.args[0])
    scale, zero, low, high = cast(tuple[float, int, int, int], node.args[1:])
    last = (scale, zero, low, high)
    if is_call(x, aten.relu) and low <= zero:
        return call(node, bgnn.quantize.default, x.args[0], scale, zero, min(zero, high), high)
    slope = 1.0
    source: Any = x
    if is_call(x, aten.leaky_relu):
        source, slope = x.args[0], cast(float, arg(x, 1, "negative_slope", 0.01))
    codes = codes_of(source)
    if codes is not None:
        if slope == 1.0 and _keeps(codes, last):
            return codes.node
        return call(node, bgnn.requantize.default, codes.node, codes.scale, codes.zero, slope, *last)
    if is_call(x, bgnn.segment_sum, bgnn.segment_mean):
        codes = codes_of(x.args[0])
        if codes is None or accumulators.of_segments(codes.zero) > accumulators.LARGEST:
            return None
        target = bgnn.q_segment_sum if is_call(x, bgnn.segment_sum) else bgnn.q_segment_mean
        return call(node, target.default, codes.node, codes.scale, codes.zero, *x.args[1:], *last, like=x)
    if is_call(x, aten.mul, aten.add) and not x.kwargs:
        a, b = (codes_of(side) for side in x.args[:2])
        if a is None or b is None:
            return None
        target = bgnn.q_mul if is_call(x, aten.mul) else bgnn.q_add
        return call(node, target.default, *_triple(a), *_triple(b), *last, like=x)
    if is_call(x, bgnn.q_linear_float) and only_user(x) is node:
        return _closed_linear(node, x, last, narrow)
    closed = _closed_sum(node, last)
    if closed is not None:
        return closed
    if _is_joined(x) and only_user(x) is node:
        parts = [call(node, bgnn.quantize.default, part, *last) for part in cast(list[fx.Node], x.args[0])]
        return call(node, aten.cat.default, parts, *x.args[1:])
    return _closed_before(node, last, narrow)


def _is_joined(x: fx.Node) -> bool:
    return is_call(x, aten.cat) and all(_is_total(part) for part in cast(list[fx.Node], x.args[0]))


def _is_total(part: fx.Node) -> bool:
    """Whether a part of what is quantised is codes, a sum of such, or a constant: each can be quantised alone."""
    while is_call(part, aten.div, *MOVES) and only_user(part) is not None:
        part = cast(fx.Node, part.args[0])
    return is_constant(part) or is_call(part, bgnn.q_sum_float, bgnn.dequantize)


def _closed_before(node: fx.Node, last: tuple[float, int, int, int], narrow: int) -> fx.Node | None:
    """Quantises a layer's results, or sums, before they are moved, cut by a ReLU or reduced to a maximum: exact.

    Rounding keeps an order; so the layer is an integer one.
    """
    scale, zero, low, high = last
    source = cast(fx.Node, node.args[0])
    chain: list[fx.Node] = []
    while is_call(source, *MOVES, *EXTREMA, aten.relu) and only_user(source) is not None:
        if not is_call(source, aten.relu):
            chain.append(source)
        elif low <= zero:
            low = min(zero, high)
        else:
            return None
        source = cast(fx.Node, source.args[0])
    if not chain or only_user(source) is None:
        return None
    value = None
    if is_call(source, bgnn.q_linear_float):
        value = _closed_linear(node, source, (scale, zero, low, high), narrow)
    elif _is_total(source) or _is_joined(source):
        value = call(node, bgnn.quantize.default, source, scale, zero, low, high)
    for step in reversed(chain) if value is not None else ():
        value = call(node, step.target, value, *step.args[1:], like=step, **step.kwargs)
    return value


def _triple(codes: Codes) -> tuple[fx.Node, float, int]:
    return codes.node, codes.scale, codes.zero


def _keeps(codes: Codes, last: tuple[float, int, int, int]) -> bool:
    """Whether requantising changes no code that there can be."""
    maker = codes.node
    low, high = cast(tuple[int, int], maker.args[-2:]) if is_call(maker, *MAKERS) else (0, 255)
    every = torch.arange(low, high + 1).to(torch.uint8)
    return torch.equal(bgnn.quantize(bgnn.dequantize(every, codes.scale, codes.zero), *last), every)


def _linear(node: fx.Node) -> fx.Node | None:
    x, weight = cast(tuple[fx.Node, fx.Node], node.args[:2])
    shift = _shift(x) if codes_of(x) is None else None
    codes = codes_of(x if shift is None else x.args[0])
    if codes is None:
        return None
    found = weight_codes(weight) if is_weight(weight) else sign_codes(weight)
    if found is None:
        return None
    values, scales, zero = found
    if accumulators.of_linear(values, codes.zero, zero, None) > accumulators.LARGEST:
        return None
    bias = arg(node, 2, "bias")
    if is_weight(bias):  # its codes are lost in the unit of the sums
        bias = constant(node, _faked_weight(bias), str(cast(fx.Node, bias.args[0]).target))
    if bias is not None and not is_constant(bias):
        return None
    if shift is not None:  # W (x + c) + b = W x + (W c + b)
        real = (_faked_weight(weight) if is_weight(weight) else value_of(weight)).double()
        moved = real @ shift.double().expand(real.shape[1]) + (0 if bias is None else value_of(bias).double())
        bias = constant(node, moved.float(), f"{weight.name}_bias")
    source = cast(fx.Node, weight.args[0]) if is_weight(weight) else weight
    operands = [constant(node, values, source), constant(node, scales, f"{source.target}_scale")]
    return call(node, bgnn.q_linear_float.default, *_triple(codes), *operands, zero, bias)


def weight_codes(weight: fx.Node) -> tuple[Tensor, Tensor, int] | None:
    """(codes i8, scales f32 `[O]` or `[1]`, zero point) of a quantised weight, or None if int8 cannot hold them."""
    value = value_of(cast(fx.Node, weight.args[0]))
    if is_call(weight, bgnn.fake_quant_channel):
        scales, zeros, axis, low, high = cast(tuple[fx.Node, fx.Node, int, int, int], weight.args[1:])
        zero_points = value_of(zeros)
        if axis % value.dim() != 0 or bool((zero_points != zero_points[0]).any()):
            return None
        scale, zero = value_of(scales), int(zero_points[0])
        columns = scale.reshape(-1, *[1] * (value.dim() - 1))
    else:
        number, zero, low, high = cast(tuple[float, int, int, int], weight.args[1:])
        scale = torch.tensor([number], dtype=torch.float32)
        columns = scale
    codes = torch.round(_faked_weight(weight) / columns) + zero
    shift = 0 if low >= -128 and high <= 127 else low + 128
    if high - low > 255 or not -128 <= zero - shift <= 127:
        return None
    return (codes - shift).to(torch.int8), scale, zero - shift


def _shift(x: fx.Node) -> Tensor | None:
    """c f32 `[]`, `[1]` or `[C]` if x is codes' values plus a constant, as where 0 is no level (LSQ+'s offset)."""
    if not is_call(x, aten.add, aten.sub) or x.kwargs or codes_of(x.args[0]) is None:
        return None
    other = x.args[1]
    if isinstance(other, fx.Node) and not (is_constant(other) and value_of(other).dim() <= 1):
        return None
    value = value_of(other) if isinstance(other, fx.Node) else torch.tensor(float(cast(float, other)))
    return -value if is_call(x, aten.sub) else value


def sign_codes(weight: fx.Node) -> tuple[Tensor, Tensor, int] | None:
    """`weight_codes` of a constant whose rows are -s, +s and perhaps 0: signs and ternary weights; None of others."""
    if not is_constant(weight) or value_of(weight).dim() != 2 or value_of(weight).shape[1] < 2:
        return None
    value = value_of(weight)
    size = value.abs()
    scale = size.amax(1)
    if bool(((size > 0) & (size < scale[:, None] * (1 - 1e-6))).any()):
        return None
    return torch.sign(value).to(torch.int8), torch.where(scale > 0, scale, 1.0), 0


def _faked_weight(weight: fx.Node) -> Tensor:
    """The values of a quantised weight."""
    with torch.no_grad():
        target = cast(Callable[..., Tensor], weight.target)
        return target(*[value_of(a) if isinstance(a, fx.Node) else a for a in weight.args])


def _closed_linear(node: fx.Node, x: fx.Node, last: tuple[float, int, int, int], narrow: int) -> fx.Node | None:
    """`quantize(q_linear_float(...))` as one integer layer, if the bias is fine enough in its unit."""
    codes, x_scale, x_zero, weight, scales, w_zero, bias = cast(tuple[Any, ...], x.args)
    units: fx.Node | None = None
    if bias is not None:
        unit = torch.tensor(x_scale, dtype=torch.float64) * value_of(scales).double()
        if float(unit.max()) / 2 > BIAS_SLACK * last[0]:
            return None
        exact = value_of(bias).double() / unit
        whole = torch.round(exact)
        if float(whole.abs().max()) > accumulators.LARGEST:
            return None
        moved = float(((exact - whole).abs() * unit).max()) / last[0]
        if len(whole) <= narrow and moved > EXACT:
            return None
        rounded = whole.to(torch.int32)
        if accumulators.of_linear(value_of(weight), x_zero, w_zero, rounded) > accumulators.LARGEST:
            return None
        units = constant(node, rounded, f"{bias.target}_units")
    return call(node, bgnn.q_linear.default, codes, x_scale, x_zero, weight, scales, w_zero, units, *last, like=x)


def _why_float(layer: fx.Node) -> str | None:
    """Why a dense layer stayed float; None in a network of signs without quantisers, where pack_bits tells."""
    weight = cast(fx.Node, layer.args[1])
    signs = not is_weight(weight) and sign_codes(weight) is not None
    if not is_weight(weight):
        reason = weight.meta.get("stays_float")
        if reason is not None:
            return f"its weights are rounded, but {reason}"
        quantised = bgnn.dequantize, bgnn.quantize, bgnn.q_linear  # that others are shows the way
        others = any(is_call(n, *quantised) for n in layer.graph.nodes)
        if not others and any(is_call(n, bgnn.binarize) for n in layer.graph.nodes):
            return None
        if not signs:
            return "its weights are not quantised" + ("" if others else ": --calibrate does that for a float model")
        if not others:
            return "its weights are signs, but its input is real: --calibrate gives it 8 bits"
    if not signs and weight_codes(weight) is None:
        return "its weights' codes do not fit int8 with one zero point"
    if codes_of(layer.args[0]) is None:
        return _why_real(cast(fx.Node, layer.args[0]))
    bias = arg(layer, 2, "bias")
    if bias is not None and not is_constant(bias) and not is_weight(bias):
        return "its bias is computed from the inputs"
    return "its 32-bit sums could overflow"


def _why_real(node: fx.Node) -> str:
    """Why a tensor is no codes: arithmetic, moves and sums over edges made it of codes, or of what rounds otherwise."""
    for current in above(node, through=lambda n: not is_call(n, aten.linear, bgnn.q_linear_float)):
        if is_call(current, bgnn.dequantize):
            return (
                "its input is computed from codes with real arithmetic, and not quantised again: a fake-quantiser in "
                "front of the layer makes it INT8"
            )
        if "stays_float" in current.meta:
            return f"its input is rounded, but {current.meta['stays_float']}"
    return "its input is not quantised"


def _fold_weights(gm: fx.GraphModule) -> None:
    """Quantised weights of layers that stay float are constants again."""
    for node in calls(gm.graph, *FAKE):
        if is_weight(node):
            source = cast(fx.Node, node.args[0])
            replace(node, constant(node, _faked_weight(node), source))
