"""Operations that are several others: written with those, which every emitter and pass knows.

    layer_norm(x, w, b)                     (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b
    group_norm(x), instance_norm(x)         a norm of each group of channels, of each channel
    batch_norm(x) by x's own statistics     a norm of each channel over all rows
    std(x), var(x), var_mean(x)             of the mean square of x - mean
    attention(q, k, v)                      softmax(q @ k' / sqrt(C)) @ v
    selu(x), celu(x), log_sigmoid(x)        scaled elu(x), -softplus(-x)
    isinf(x), isnan(x)                      abs(x) == inf, x != x
    log1p(x), log2(x), log10(x)             log(1 + x), log(x) / log(2), log(x) / log(10)
    exp2(x), ldexp(x, y)                    2^x, x * 2^y
    atan2(y, x)                             atan(y / x), and half a turn more or less where x < 0
    trunc(x), fix(x)                        floor(max(x, 0)) + ceil(min(x, 0))
    frac(x)                                 x - trunc(x)
    remainder(x, y), fmod(x, y)             x - floor(x / y) * y, x - trunc(x / y) * y
    floor_divide(x, y), div by its mode     floor(x / y), trunc(x / y) (of real numbers, all of these)
    a & b, a | b, a ^ b, ~a of conditions   logical_and, logical_or, a != b, logical_not; so are a * b, a + b
    any(x), all(x)                          the largest, the least of x != 0 as 1 and 0, > 0
    eye(n) of an open number                arange(n) == arange(n) as a column
    pad(x) with a number                    cat with tensors of that number
    addmm(b, x, w)                          beta * b + alpha * (x @ w)
    x[1:] = y, x[:, ::2] = y, x[0] = y      cat of y and what is left of x, in the order of the places
    diagonal(x), and what is written to it  rows of x as a column of numbers, of known sizes
    flip(x), roll(x) of real numbers        x by the other order of each axis, of known size
    conv(x, w) of wider windows             the window's shifted slices of x side by side, then window 1
    conv(x, w, groups=g)                    g convolutions side by side; x * w if each has 1 channel, window 1

In float32 as in PyTorch up to the order of sums; the last is exact.
"""

from __future__ import annotations

import itertools
import math
import operator
import sys
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes.canonicalise import MOST_PLACES, reshape
from bgnn.passes.graph import (
    PassResult,
    Rule,
    arg,
    aten,
    call,
    constant,
    getitem,
    is_call,
    is_static,
    rewrite,
    shape_of,
)

CONVOLUTION = [(3, "stride", 1), (4, "padding", 0), (5, "dilation", 1)]


def run(gm: fx.GraphModule) -> PassResult:
    """Takes apart what it knows; what it cannot stays, and is refused by name later."""
    rules: list[tuple[list[Any], Rule]] = [
        ([aten.layer_norm], _layer_norm),
        ([aten.group_norm], _group_norm),
        ([aten.instance_norm], _instance_norm),
        ([aten.std, aten.var], _spread),
        ([operator.getitem], _spread_and_mean),
        ([operator.getitem], _batch_norm),
        ([aten.scaled_dot_product_attention], _attention),
        ([aten.elu], _scaled_elu),
        ([aten.celu], _celu),
        ([aten.log_sigmoid], _log_sigmoid),
        ([aten.isinf], lambda n: call(n, aten.eq.Scalar, call(n, aten.abs.default, n.args[0]), math.inf)),
        ([aten.isnan], lambda n: call(n, aten.ne.Tensor, n.args[0], n.args[0])),
        ([aten.atan2], _angle),
        ([aten.log1p], lambda n: call(n, aten.log.default, call(n, aten.add.Tensor, n.args[0], 1.0))),
        *(
            (
                [op],
                lambda n, base=base: call(n, aten.mul.Tensor, call(n, aten.log.default, n.args[0]), 1 / math.log(base)),
            )
            for op, base in ((aten.log2, 2), (aten.log10, 10))
        ),
        ([aten.exp2], lambda n: call(n, aten.pow.Scalar, 2.0, n.args[0])),
        ([aten.ldexp], lambda n: call(n, aten.mul.Tensor, n.args[0], call(n, aten.pow.Scalar, 2.0, n.args[1]))),
        ([aten.remainder, aten.fmod, aten.floor_divide, aten.div, aten.frac], _divided),
        ([aten.trunc, aten.fix], _truncated),
        ([aten.bitwise_and, aten.__and__, aten.mul, aten.minimum], _of_conditions(aten.logical_and.default)),
        ([aten.bitwise_or, aten.__or__, aten.add, aten.maximum], _of_conditions(aten.logical_or.default)),
        ([aten.bitwise_xor, aten.__xor__, aten.logical_xor], _of_conditions(aten.ne.Tensor)),
        ([aten.bitwise_not], _of_conditions(aten.logical_not.default)),
        ([aten.lt], _of_conditions(aten.logical_and.default, negated=0)),
        ([aten.gt], _of_conditions(aten.logical_and.default, negated=1)),
        ([aten.le], _of_conditions(aten.logical_or.default, negated=0)),
        ([aten.ge], _of_conditions(aten.logical_or.default, negated=1)),
        ([aten.any, aten.all], _any_or_all),
        ([aten.constant_pad_nd], _pad),
        ([aten.eye], _eye),
        ([aten.addmm], _addmm),
        ([aten.slice_scatter, aten.select_scatter], _written_slice),
        ([aten.diagonal, aten.as_strided], _strided),
        ([aten.flip, aten.roll], _reordered),
        ([aten.diagonal_scatter, aten.as_strided_scatter], _written_strided),
        ([aten.conv1d, aten.conv2d], _grouped),
        ([aten.conv1d, aten.conv2d], _window),
    ]
    return rewrite(gm, rules, again=True)


def _divided(node: fx.Node) -> fx.Node | None:
    """What drops the fraction of a quotient of real numbers, or keeps what that leaves."""
    x, y = node.args[0], node.args[1] if len(node.args) > 1 else None
    mode = {aten.remainder: "floor", aten.floor_divide: "floor", aten.fmod: "trunc", aten.frac: "trunc"}.get(
        cast(Any, node.target).overloadpacket, node.kwargs.get("rounding_mode")
    )
    if mode is None or not node.meta["val"].is_floating_point():
        return None
    share = x if y is None else call(node, aten.div.Tensor, x, y)
    whole = call(node, aten.floor.default, share) if mode == "floor" else _cut_off(node, share)
    if is_call(node, aten.div, aten.floor_divide):
        return whole
    return call(node, aten.sub.Tensor, x, whole if y is None else call(node, aten.mul.Tensor, whole, y))


def _truncated(node: fx.Node) -> fx.Node | None:
    return _cut_off(node, node.args[0]) if node.meta["val"].is_floating_point() else None


def _cut_off(node: fx.Node, x: Any) -> fx.Node:
    above, below = (call(node, aten.clamp.default, x, *ends) for ends in ((0,), (None, 0)))
    return call(node, aten.add.Tensor, call(node, aten.floor.default, above), call(node, aten.ceil.default, below))


def _of_conditions(target: Any, negated: int | None = None) -> Rule:
    """A rule for calls of conditions alone, of which one may have to be negated."""

    def rule(node: fx.Node) -> fx.Node | None:
        sides = list(node.args)
        if any(not isinstance(side, fx.Node) or side.meta["val"].dtype != torch.bool for side in sides):
            return None
        if negated is not None:
            sides[negated] = call(node, aten.logical_not.default, sides[negated])
        return call(node, target, *sides)

    return rule


def _centred(node: fx.Node, x: fx.Node, axes: list[int], keep: bool) -> tuple[fx.Node, fx.Node]:
    """(x - mean, the mean of its square) over `axes`."""
    apart = call(node, aten.sub.Tensor, x, call(node, aten.mean.dim, x, axes, True))
    return apart, call(node, aten.mean.dim, call(node, aten.mul.Tensor, apart, apart), axes, keep)


def _normed(node: fx.Node, x: fx.Node, axes: list[int], eps: Any) -> fx.Node:
    apart, square = _centred(node, x, axes, True)
    return call(node, aten.div.Tensor, apart, call(node, aten.sqrt.default, call(node, aten.add.Tensor, square, eps)))


def _scaled(node: fx.Node, x: fx.Node, weight: Any, bias: Any, shape: list[int] | None = None) -> fx.Node:
    for op, factor in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
        if factor is not None:
            x = call(node, op, x, factor if shape is None else call(node, aten.reshape.default, factor, shape))
    return x


def _layer_norm(node: fx.Node) -> fx.Node:
    x, shape = cast(tuple[fx.Node, list[int]], node.args[:2])
    rank = len(shape_of(x))
    made = _normed(node, x, list(range(rank - len(shape), rank)), arg(node, 4, "eps", 1e-5))
    return _scaled(node, made, arg(node, 2, "weight"), arg(node, 3, "bias"))


def _group_norm(node: fx.Node) -> fx.Node | None:
    x, groups = cast(tuple[fx.Node, int], node.args[:2])
    batch, channels, *rest = shape_of(x)
    if not all(isinstance(size, int) for size in rest):
        made = reshape(node, x, (batch, groups, channels // groups, *rest))
        made = _normed(node, made, list(range(2, 3 + len(rest))), arg(node, 4, "eps", 1e-5))
        made = reshape(node, made, (batch, channels, *rest))
        return _scaled(node, made, arg(node, 2, "weight"), arg(node, 3, "bias"), [channels, *(1 for _ in rest)])
    made = call(node, aten.reshape.default, x, [-1, groups, channels // groups * math.prod(rest)])
    made = call(node, aten.reshape.default, _normed(node, made, [2], arg(node, 4, "eps", 1e-5)), [-1, channels, *rest])
    return _scaled(node, made, arg(node, 2, "weight"), arg(node, 3, "bias"), [channels, *(1 for _ in rest)])


def _instance_norm(node: fx.Node) -> fx.Node:
    x, weight, bias, mean, var, of_input, _, eps, _ = node.args
    if not of_input:
        return call(node, aten.batch_norm.default, x, weight, bias, mean, var, False, 0.1, eps, False)
    _, channels, *rest = shape_of(cast(fx.Node, x))
    made = _normed(node, cast(fx.Node, x), list(range(2, 2 + len(rest))), eps)
    return _scaled(node, made, weight, bias, [channels, *(1 for _ in rest)])


def _batch_norm(node: fx.Node) -> fx.Node | None:
    """The norm of a training step, which `track_running_stats=False` keeps in inference."""
    source, index = cast(tuple[fx.Node, int], getitem(node))
    if not is_call(source, aten._native_batch_norm_legit, aten._native_batch_norm_legit_functional) or index != 0:
        return None
    x, weight, bias, *stored, of_input, _, eps = source.args
    if not of_input:
        return call(node, aten.batch_norm.default, x, weight, bias, *stored, False, 0.1, eps, False, like=source)
    _, channels, *rest = shape_of(cast(fx.Node, x))
    made = _normed(source, cast(fx.Node, x), [0, *range(2, 2 + len(rest))], eps)
    return _scaled(source, made, weight, bias, [channels, *(1 for _ in rest)])


def _angle(node: fx.Node) -> fx.Node:
    def is_below(one: fx.Node) -> fx.Node:
        """Whether it is less than 0, or -0.0."""
        less = [call(node, aten.lt.Scalar, value, 0.0) for value in (one, call(node, aten.reciprocal.default, one))]
        return call(node, aten.logical_or.default, *less)

    def chosen(condition: fx.Node, number: float) -> fx.Node:
        return call(node, aten.where.Scalar, condition, -number, number)

    y, x = cast(tuple[fx.Node, fx.Node], node.args)
    left = is_below(x)
    there = call(node, aten.where.self, call(node, aten.eq.Scalar, x, 0.0), chosen(left, 1e-37), x)  # 0: the limit
    angle = call(node, aten.atan.default, call(node, aten.div.Tensor, y, there))
    return call(node, aten.where.self, left, call(node, aten.add.Tensor, angle, chosen(is_below(y), math.pi)), angle)


def _any_or_all(node: fx.Node) -> fx.Node:
    """Overloads: `(x)`, `(x, dim, keepdim)`, with one axis or several."""
    x = cast(fx.Node, node.args[0])
    dims: Any = arg(node, 1, "dim")
    axes = [dims] if isinstance(dims, int) else list(dims or range(len(shape_of(x))))
    true = x if x.meta["val"].dtype == torch.bool else call(node, aten.ne.Scalar, x, 0)
    ones = call(node, aten._to_copy.default, true, dtype=torch.float32)
    extremum = aten.amax.default if is_call(node, aten.any) else aten.amin.default
    return call(node, aten.gt.Scalar, call(node, extremum, ones, axes, bool(arg(node, 2, "keepdim", False))), 0.0)


def _spread_and_mean(node: fx.Node) -> fx.Node | None:
    """`var_mean` and `std_mean`: a spread, and a mean of the same arguments."""
    source, index = cast(tuple[fx.Node, int], getitem(node))
    if not is_call(source, aten.var_mean, aten.std_mean):
        return None
    if index == 0:
        packet = aten.var if is_call(source, aten.var_mean) else aten.std
        return call(
            node, getattr(packet, cast(Any, source.target)._overloadname), *source.args, like=source, **source.kwargs
        )
    overload = cast(Any, source.target)._overloadname
    x, dims = source.args[0], None if overload == "default" else arg(source, 1, "dim")
    keep = overload != "default" and bool(arg(source, 3 if overload == "dim" else 4, "keepdim", False))
    axes = list(dims) if dims else list(range(len(shape_of(cast(fx.Node, x)))))
    return call(node, aten.mean.dim, x, axes, keep, like=source)


def _attention(node: fx.Node) -> fx.Node | None:
    query, keys, values = cast(tuple[fx.Node, fx.Node, fx.Node], node.args[:3])
    if arg(node, 5, "is_causal", False) or node.kwargs.get("enable_gqa", False):
        return None
    scale = node.kwargs.get("scale")
    scale = 1 / math.sqrt(shape_of(query)[-1]) if scale is None else scale
    scores = call(node, aten.matmul.default, query, call(node, aten.transpose.int, keys, -2, -1))
    scores = call(node, aten.mul.Tensor, scores, scale)
    mask = arg(node, 3, "attn_mask")
    if mask is not None and mask.meta["val"].dtype != torch.bool:
        scores, mask = call(node, aten.add.Tensor, scores, mask), None
    if mask is not None:
        low = constant(node, torch.tensor(torch.finfo(torch.float32).min), f"{node.name}_low")
        scores = call(node, aten.where.self, mask, scores, low)
    shares = call(node, aten.softmax.int, scores, -1)
    if mask is not None:  # a query without any key gives zeros
        shares = call(node, aten.where.self, mask, shares, constant(node, torch.tensor(0.0), f"{node.name}_none"))
    return call(node, aten.matmul.default, shares, values)


def _scaled_elu(node: fx.Node) -> fx.Node | None:
    """`scale * elu(x)`: SELU."""
    scale = arg(node, 2, "scale", 1)
    if scale == 1 or arg(node, 3, "input_scale", 1) != 1:
        return None
    return call(node, aten.mul.Tensor, call(node, aten.elu.default, node.args[0], arg(node, 1, "alpha", 1)), scale)


def _celu(node: fx.Node) -> fx.Node:
    x, alpha = node.args[0], arg(node, 1, "alpha", 1.0)
    if alpha == 1:
        return call(node, aten.elu.default, x)
    made = call(node, aten.elu.default, call(node, aten.div.Tensor, x, alpha))
    return call(node, aten.mul.Tensor, made, alpha)


def _log_sigmoid(node: fx.Node) -> fx.Node:
    negative = call(node, aten.neg.default, node.args[0])
    return call(node, aten.neg.default, call(node, aten.softplus.default, negative))


def _eye(node: fx.Node) -> fx.Node | None:
    sizes = [arg for arg in node.args if isinstance(arg, (int, fx.Node))]
    if not any(isinstance(size, fx.Node) for size in sizes):
        return None  # a constant
    device = torch.device("cpu")
    column, row = (call(node, aten.arange.default, size, device=device) for size in (sizes[0], sizes[-1]))
    same = call(node, aten.eq.Tensor, call(node, aten.reshape.default, column, [-1, 1]), row)
    return call(node, aten._to_copy.default, same, dtype=node.meta["val"].dtype)


def _pad(node: fx.Node) -> fx.Node | None:
    """Numbers before and after along the last axes, the last first; a negative number cuts."""
    made, widths, value = cast(fx.Node, node.args[0]), cast(list[int], node.args[1]), arg(node, 2, "value", 0)
    if not all(isinstance(width, int) for width in widths):
        return None
    for place in range(len(widths) // 2):
        axis, (before, after) = len(shape_of(made)) - 1 - place, widths[2 * place : 2 * place + 2]
        if not isinstance(shape_of(made)[axis], int) or (before, after) == (0, 0):
            if (before, after) != (0, 0):
                return None
            continue
        size = shape_of(made)[axis]
        if before < 0 or after < 0:
            made = call(node, aten.slice.Tensor, made, axis, max(-before, 0), size + min(after, 0))
        parts = [made]
        for width, first in ((before, True), (after, False)):
            if width > 0:
                sizes: list[Any] = [
                    width if one == axis else length if isinstance(length, int)
                    else call(node, aten.sym_size.int, made, one)
                    for one, length in enumerate(shape_of(made))
                ]  # fmt: skip
                kind = node.meta["val"].dtype
                filling = call(node, aten.full.default, sizes, value, dtype=kind, device=torch.device("cpu"))
                parts.insert(0 if first else len(parts), filling)
        made = call(node, aten.cat.default, parts, axis) if len(parts) > 1 else made
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
        count: Any = math.prod(shape[axis] for axis in axes if isinstance(shape[axis], int))
        for axis in axes:
            if not isinstance(shape[axis], int):
                count = call(node, operator.mul, call(node, aten.sym_size.int, x, axis), count)
        if isinstance(count, fx.Node):
            factor: Any = call(node, operator.truediv, count, call(node, operator.sub, count, correction))
        else:
            factor = count / (count - correction) if count > correction else math.nan
        square = call(node, aten.mul.Tensor, square, factor)
    return call(node, aten.sqrt.default, square) if is_call(node, aten.std) else square


def _addmm(node: fx.Node) -> fx.Node:
    bias, x, weight = cast(tuple[fx.Node, ...], node.args[:3])
    parts = [bias, call(node, aten.mm.default, x, weight)]
    for place, name in enumerate(("beta", "alpha")):
        if node.kwargs.get(name, 1) != 1:
            parts[place] = call(node, aten.mul.Tensor, parts[place], node.kwargs[name])
    return call(node, aten.add.Tensor, *parts)


def _written_slice(node: fx.Node) -> fx.Node | None:
    """Overloads: `(x, y, dim, start, end, step)`, and `(x, y, dim, index)`, whose y has no such axis."""
    x, y = cast(tuple[fx.Node, fx.Node], node.args[:2])
    axis = cast(int, arg(node, 2, "dim", 0)) % len(shape_of(x))
    size, step = shape_of(x)[axis], 1
    if is_call(node, aten.select_scatter):
        start: Any = arg(node, 3, "index")
        end: Any = start + 1 if isinstance(start, int) and start != -1 else None
        y = call(node, aten.unsqueeze.default, y, axis)
    else:
        start, end, step = arg(node, 3, "start") or 0, arg(node, 4, "end"), cast(int, arg(node, 5, "step", 1))
    if isinstance(size, int) and all(at is None or isinstance(at, int) for at in (start, end)):
        rows = list(range(size))
        written = rows[start:end:step]
        if step == 1 and written:
            start, end = written[0], written[-1] + 1
        else:  # y's rows behind x's: each place takes its own
            for number, row in enumerate(written):
                rows[row] = size + number
            both = call(node, aten.cat.default, [x, y], axis)
            return call(node, aten.index_select.default, both, axis, constant(node, torch.tensor(rows), "places"))
    elif step != 1 or any(isinstance(at, fx.Node) for at in (start, end)):
        return None  # how long what is left would be, only a run tells
    parts = [y]
    if start != 0:
        parts.insert(0, call(node, aten.slice.Tensor, x, axis, 0, start))
    if end is not None and not (isinstance(end, int) and end >= (size if isinstance(size, int) else sys.maxsize)):
        parts.append(call(node, aten.slice.Tensor, x, axis, end, sys.maxsize))
    return call(node, aten.cat.default, parts, axis) if len(parts) > 1 else y


def _numbered(x: fx.Node) -> Tensor | None:
    """The number of each place of `x`, in its shape."""
    size = math.prod(shape_of(x)) if is_static(x) else 0
    return torch.arange(size).reshape(shape_of(x)) if 0 < size <= MOST_PLACES else None


def _reordered(node: fx.Node) -> fx.Node | None:
    """Lists of edges stay: which of their rows is which, is found by what is done with them (unpack_edges)."""
    made = cast(fx.Node, node.args[0])
    shape, rolled = shape_of(made), is_call(node, aten.roll)
    axes = [axis % len(shape) for axis in cast(list[int], arg(node, 2 if rolled else 1, "dims", []))]
    sizes = [shape[axis] for axis in axes]
    if not axes or not node.meta["val"].is_floating_point() or not all(isinstance(size, int) for size in sizes):
        return None
    shifts = cast(list[int], node.args[1]) if rolled else [0] * len(axes)
    for axis, size, shift in zip(axes, sizes, shifts, strict=True):
        order = torch.arange(size).roll(shift) if rolled else torch.arange(size).flip(0)
        made = call(node, aten.index_select.default, made, axis, constant(node, order, "order"))
    return made


def _column(node: fx.Node, x: fx.Node) -> fx.Node:
    return call(node, aten.reshape.default, x, [math.prod(shape_of(x))])


def _strided(node: fx.Node) -> fx.Node | None:
    """Which places an op of strides takes, it tells itself."""
    x = cast(fx.Node, node.args[0])
    places = _numbered(x)
    if places is None:
        return None
    taken = cast(Tensor, cast(Any, node.target)(places, *node.args[1:], **node.kwargs))
    picked = constant(node, taken.flatten(), f"{node.name}_places")
    made = call(node, aten.index_select.default, _column(node, x), 0, picked)
    return call(node, aten.reshape.default, made, list(taken.shape))


def _written_strided(node: fx.Node) -> fx.Node | None:
    x, y = cast(tuple[fx.Node, fx.Node], node.args[:2])
    places = _numbered(x)
    if places is None or not is_static(y):
        return None
    behind = torch.arange(math.prod(shape_of(y))).reshape(shape_of(y)) + places.numel()
    from_both = cast(Tensor, cast(Any, node.target)(places, behind, *node.args[2:], **node.kwargs))
    picked = constant(node, from_both.flatten(), f"{node.name}_places")
    both = call(node, aten.cat.default, [_column(node, x), _column(node, y)], 0)
    made = call(node, aten.index_select.default, both, 0, picked)
    return call(node, aten.reshape.default, made, list(from_both.shape))


def _grouped(node: fx.Node) -> fx.Node | None:
    x, weight = cast(tuple[fx.Node, fx.Node], node.args[:2])
    groups, window = cast(int, arg(node, 6, "groups", 1)), shape_of(weight)[2:]
    if groups == 1 or len(shape_of(x)) != len(window) + 2:
        return None
    bias = arg(node, 2, "bias")
    outputs, inputs = shape_of(weight)[0] // groups, shape_of(weight)[1]
    one = [-1, *(1 for _ in window)]
    if inputs == outputs == 1 and shape_of(node) == shape_of(x) and all(size == 1 for size in window):
        made = call(node, aten.mul.Tensor, x, call(node, aten.reshape.default, weight, one))
        made.meta["depthwise"] = node.name
        return made if bias is None else call(node, aten.add.Tensor, made, call(node, aten.reshape.default, bias, one))
    parts = []
    for group in range(groups):
        channels = call(node, aten.slice.Tensor, x, 1, group * inputs, (group + 1) * inputs)
        rows = [
            None if t is None else call(node, aten.slice.Tensor, t, 0, group * outputs, (group + 1) * outputs)
            for t in (weight, bias)
        ]
        rest = [arg(node, place, name, default) for place, name, default in CONVOLUTION]
        parts.append(call(node, node.target, channels, *rows, *rest, 1))
    return call(node, aten.cat.default, parts, 1)


def _window(node: fx.Node) -> fx.Node | None:
    x, weight = cast(tuple[fx.Node, fx.Node], node.args[:2])
    window, sizes = shape_of(weight)[2:], shape_of(x)[2:]
    stride, padding, dilation = (arg(node, place, name, default) for place, name, default in CONVOLUTION)
    if arg(node, 6, "groups", 1) != 1 or len(shape_of(x)) != len(window) + 2:
        return None
    if not all(isinstance(size, int) for size in sizes):
        return None
    steps, gaps = ([given] * len(window) if isinstance(given, int) else list(given) for given in (stride, dilation))
    if len(steps) != len(window) or len(gaps) != len(window):  # one number for all axes
        steps, gaps = ((given * len(window))[: len(window)] for given in (steps, gaps))
    reach = [(size - 1) * gap for size, gap in zip(window, gaps, strict=True)]
    if isinstance(padding, str):
        around = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
    else:
        given = [padding] * len(window) if isinstance(padding, int) else (list(padding) * len(window))[: len(window)]
        around = [(size, size) for size in given]
    if all(size == 1 for size in (*window, *steps)) and not any(sum(pair) for pair in around):
        return None
    if any(sum(pair) for pair in around):
        x = call(node, aten.constant_pad_nd.default, x, [size for pair in reversed(around) for size in pair], 0.0)
        x = _pad(x) or x
    taps = []
    for places in itertools.product(*(range(size) for size in window)):
        tap = x
        for axis, (place, step, gap, far) in enumerate(zip(places, steps, gaps, reach, strict=True), start=2):
            start, end = place * gap, shape_of(x)[axis] - far + place * gap
            if (start, end, step) != (0, shape_of(x)[axis], 1):
                tap = call(node, aten.slice.Tensor, tap, axis, start, end, step)
        taps.append(tap)
    whole = call(node, aten.cat.default, taps, 1) if len(taps) > 1 else taps[0]
    last = list(range(2, 2 + len(window)))
    rows = call(node, aten.permute.default, weight, [0, *last, 1])
    rows = call(node, aten.reshape.default, rows, [shape_of(weight)[0], -1, *(1 for _ in window)])
    return call(node, cast(Any, node.target).overloadpacket.default, whole, rows, arg(node, 2, "bias"))
