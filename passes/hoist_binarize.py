"""The sign is taken before features are joined, repeated and gathered, so that bits are moved and not floats.

`sign(f(cat(a, b))) = cat(sign(f1(a)), sign(f2(b)))` for an f that acts per channel, and likewise for repetitions,
gathers and slices of rows. In RF's edges (paper, Eq. 12) the half that belongs to the node itself is
normalised and binarised once per node. Exact: the same operations on the same values. Joins are left whole where
a part's channels do not fill words of 32 bits, since its bits could not be joined.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from bgnn.converter.dialect import WORD
from bgnn.passes.canonicalise import reshape
from bgnn.passes.chains import data_of, is_channel_op
from bgnn.passes.graph import (
    PassResult,
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

NEEDS = ("binarize", "gather_nodes")
MAKES = ("binarize", "batch_norm")

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Moves each sign with its channel ops up through one move after the other."""
    result = PassResult()
    pending = [node for node in calls(gm.graph, bgnn.binarize) if shape_of(node)]
    while pending:
        node = pending.pop()
        chain: list[fx.Node] = []
        source = cast(fx.Node, node.args[0])
        while is_channel_op(source) and only_user(source) is not None:
            chain.append(source)
            source = data_of(source)
        chain.reverse()
        channels = shape_of(node)[-1]
        if is_call(source, aten.cat) and cast(int, source.args[1]) % len(shape_of(source)) == len(shape_of(source)) - 1:
            parts = cast(list[fx.Node], source.args[0])
            if any(shape_of(p)[-1] % WORD for p in parts[:-1]):
                result.refuse(node, "the joined parts do not fill words of 32 channels")
                continue
            signs, start = [], 0
            for part in parts:
                end = start + shape_of(part)[-1]
                signs.append(_sign(node, part, chain, slice(start, end), channels))
                start = end
            new = call(node, aten.cat.default, signs, source.args[1], like=source)
            pending += signs
        elif _moves_rows(source):
            sign = _sign(node, cast(fx.Node, source.args[0]), chain, slice(0, channels), channels)
            if is_call(source, aten.reshape):
                new = reshape(node, sign, shape_of(source), like=source)
            else:
                new = call(node, source.target, sign, *source.args[1:], like=source)
            pending.append(sign)
        else:
            continue
        replace(node, new)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _moves_rows(node: fx.Node) -> bool:
    """A move that leaves the axis of the features as it is."""
    if is_call(node, aten.index_select, aten.slice):
        return cast(int, node.args[1]) != len(shape_of(node)) - 1
    if is_call(node, aten.expand, aten.reshape):
        return shape_of(cast(fx.Node, node.args[0]))[-1:] == shape_of(node)[-1:]
    return is_call(node, bgnn.gather_nodes)


def _sign(before: fx.Node, x: fx.Node, chain: list[fx.Node], part: slice, channels: int) -> fx.Node:
    """The chain and the sign on x, with each channel constant cut to `part`."""
    current = x
    for op in chain:
        data = data_of(op)
        args: list[Any] = []
        for value in op.args:
            if value is data:
                args.append(current)
            elif is_constant(value) and shape_of(cast(fx.Node, value)) == (channels,) and channels > 1:
                cut = value_of(cast(fx.Node, value))[part]
                args.append(constant(before, cut, str(cast(fx.Node, value).target)))
            else:
                args.append(value)
        current = call(before, op.target, *args, like=op, **op.kwargs)
    return call(before, bgnn.binarize.default, current)
