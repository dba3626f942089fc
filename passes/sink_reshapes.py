"""Moves reshapes of the leading axes down past ops that do not care, until they meet their inverse.

Code that works on flat rows (`x.reshape(-1, C)` around a layer, PyG's `[edges, C]`) hides that rows are points
and neighbours. An op that acts per row gives the same on `[B, N, k, C]` as on `[B*N*k, C]`. Exact.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import fx

from bgnn.passes.canonicalise import can_tell, expand, reshape
from bgnn.passes.channels_last import BINARY, REDUCE, UNARY
from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    is_call,
    is_constant,
    reduced_axes,
    rewrite,
    shape_of,
)

bgnn = torch.ops.bgnn
PER_ROW = [*UNARY, *BINARY, aten.linear, aten.cat, bgnn.batch_norm, bgnn.prelu]


def run(gm: fx.GraphModule) -> PassResult:
    """One walk in order: a reshape that moved past one op is seen again by the next."""
    return rewrite(gm, [(PER_ROW, _past_row_op), (REDUCE, _past_reduction), ([aten.reshape], _of_expand)])


def _source(node: fx.Node) -> fx.Node | None:
    """What a reshape of the leading axes was made from."""
    if is_call(node, aten.reshape):
        x = cast(fx.Node, node.args[0])
        while is_call(x, aten.reshape):
            x = cast(fx.Node, x.args[0])
        if shape_of(x) and shape_of(node) and shape_of(x)[-1] == shape_of(node)[-1]:
            return x
    return None


def _per_channel(node: fx.Node) -> bool:
    return is_constant(node) and (len(shape_of(node)) <= 1)


def _past_row_op(node: fx.Node) -> fx.Node | None:
    if is_call(node, aten.cat):
        operands = list(cast(list[fx.Node], node.args[0]))
        if arg(node, 1, "dim", 0) % len(shape_of(node)) != len(shape_of(node)) - 1:
            return None
    elif is_call(node, *BINARY):
        operands = [a for a in node.args if isinstance(a, fx.Node) and not _per_channel(a)]
    else:
        operands = [cast(fx.Node, node.args[0])]
    sources = [_source(o) for o in operands]
    if not sources or any(s is None for s in sources):
        return None
    if any(shape_of(o)[:-1] != shape_of(node)[:-1] for o in operands):
        return None  # broadcast against each other: the leading axes matter
    lead = max((shape_of(cast(fx.Node, s))[:-1] for s in sources), key=len)
    rows = [(*lead, shape_of(o)[-1]) for o in operands]
    told = zip(map(shape_of, cast(list[fx.Node], sources)), rows, strict=True)
    if not all(can_tell(*pair) for pair in told) or not can_tell(lead, shape_of(node)[:-1]):
        return None
    bases = [reshape(node, cast(fx.Node, s), shape) for s, shape in zip(sources, rows, strict=True)]
    by_operand = dict(zip(operands, bases, strict=True))
    if is_call(node, aten.cat):
        new = call(node, node.target, bases, len(lead))
    else:
        args = [by_operand.get(a, a) if isinstance(a, fx.Node) else a for a in node.args]
        new = call(node, node.target, *args, like=node, **node.kwargs)
    if "tap" in node.meta:
        new.meta["tap"] = node.meta["tap"]  # a tap reshapes by itself
    return reshape(node, new, shape_of(node))


def _past_reduction(node: fx.Node) -> fx.Node | None:
    """`[B*N, k, C]` reduced over k, made from `[B, N, k, C]`: axes counted from the end are the same."""
    x = _source(cast(fx.Node, node.args[0]))
    if x is None:
        return None
    old, new_shape = shape_of(cast(fx.Node, node.args[0])), shape_of(x)
    dims = [d - len(old) for d in reduced_axes(node)]
    depth = -min(dims)
    if depth > len(new_shape) or old[-depth:] != new_shape[-depth:] or len(new_shape) <= len(old):
        return None
    if not can_tell(new_shape, shape_of(node)):
        return None
    reduced = call(node, node.target, x, dims, arg(node, 2, "keepdim", False))
    return reshape(node, reduced, shape_of(node))


def _of_expand(node: fx.Node) -> fx.Node | None:
    """A reshape that leaves the grown axes whole can be made before they grow."""
    grown = cast(fx.Node, node.args[0])
    if not is_call(grown, aten.expand):
        return None
    x = cast(fx.Node, grown.args[0])
    before, after = shape_of(grown), shape_of(node)
    small: list[int] = []
    i = j = 0
    while i < len(before) or j < len(after):  # groups of axes with equal products
        ni, nj = i + 1, j + 1
        while math.prod(before[i:ni]) != math.prod(after[j:nj]):
            if math.prod(before[i:ni]) < math.prod(after[j:nj]):
                ni += 1
            else:
                nj += 1
            if ni > len(before) or nj > len(after):
                return None
        if any(shape_of(x)[d] != before[d] for d in range(i, min(ni, len(before)))):
            if ni - i != 1 or nj - j != 1:
                return None  # a grown axis would be split or merged
            small.append(1)
        else:
            small += list(after[j:nj])
        i, j = ni, nj
    if len(small) != len(after):
        return None
    return expand(node, reshape(node, x, tuple(small)), after)
