"""Writes through a mask are a choice: `x[mask] = y` is `where(mask, y, x)`.

    index_put(x, [mask], number)          where(mask, number, x), also of a row for each place
    index_put(x, [mask], f(v[mask]))      where(mask, f(v), x), f elementwise: `x[mask] -= 1`

What is written is then as large as `x`, however many places the mask has. Exact.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from bgnn.passes import merge_equal_nodes, ops
from bgnn.passes.graph import PassResult, arg, aten, call, calls, is_call, rewrite, shape_of

ELEMENTWISE = ops.having("elementwise")


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces every write through one mask, whose shape is that of the first axes."""
    if any(calls(gm.graph, aten.index_put)):
        merge_equal_nodes.run(gm)  # a mask that is written out twice is one
    return rewrite(gm, [([aten.index_put], _as_choice)])


def _as_choice(node: fx.Node) -> fx.Node | None:
    base, index, values = cast(tuple[fx.Node, list[Any], fx.Node], node.args[:3])
    if len(index) != 1 or index[0].meta["val"].dtype != torch.bool or arg(node, 3, "accumulate", False):
        return None
    if values.meta["val"].dtype != base.meta["val"].dtype:
        return None
    mask, rest = cast(fx.Node, index[0]), len(shape_of(base)) - len(shape_of(index[0]))
    steps, picked = [], values
    while is_call(picked, *ELEMENTWISE) and picked.all_input_nodes == [picked.args[0]]:
        steps.append(picked)
        picked = cast(fx.Node, picked.args[0])
    if is_call(picked, aten.index) and list(cast(list[Any], picked.args[1])) == [mask]:
        values = cast(fx.Node, picked.args[0])
        if str(shape_of(values)) != str(shape_of(base)):
            return None
        for step in reversed(steps):
            values = call(node, step.target, values, *step.args[1:], like=node, **step.kwargs)
    elif len(shape_of(values)) > rest:  # one for each place, in order
        return None
    for _ in range(rest):
        mask = call(node, aten.unsqueeze.default, mask, -1)
    return call(node, aten.where.self, mask, values, base)
