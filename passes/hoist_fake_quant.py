"""A quantiser of gathered or reshaped values gives the same codes before the move: once per node, not once per edge.

    fake_quant(x[index])  ->  fake_quant(x)[index]

And a quantiser of values that have its codes already does nothing: Degree-Quant's layers quantise what the layer
before quantised, often with the same range. That is evaluated for all codes. Exact.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from bgnn.passes import ops
from bgnn.passes.graph import PassResult, call, is_call, is_constant, rewrite

NEEDS = ("fake_quant",)

bgnn = torch.ops.bgnn

MOST = 1 << 16  # codes of which each is looked at
MOVES = ops.having("move", "one")


def run(gm: fx.GraphModule) -> PassResult:
    """Moves every quantiser up as far as it goes, and drops those that change nothing."""
    return rewrite(gm, [([bgnn.fake_quant], _hoisted), ([bgnn.fake_quant], _repeated)], again=True)


def _hoisted(node: fx.Node) -> fx.Node | None:
    move = cast(fx.Node, node.args[0])
    if not is_call(move, *MOVES) or is_constant(move.args[0]):
        return None
    inner = call(node, node.target, move.args[0], *node.args[1:])
    inner.meta.update({key: node.meta[key] for key in ("as_written", "stays_float") if key in node.meta})
    return call(node, move.target, inner, *move.args[1:], like=move)


def _repeated(node: fx.Node) -> fx.Node | None:
    source = cast(fx.Node, node.args[0])
    if not is_call(source, bgnn.fake_quant) or cast(int, source.args[4]) - cast(int, source.args[3]) > MOST:
        return None
    values = every_value(source)
    same = torch.equal(cast(Any, node.target)(values, *node.args[1:]), values)
    return source if same else None


def every_value(quantiser: fx.Node) -> torch.Tensor:
    """All values that a `fake_quant` can give: f32 `[codes]`."""
    scale, zero_point, low, high = cast(tuple[float, int, int, int], quantiser.args[1:])
    codes = torch.arange(low, high + 1, dtype=torch.float32)
    return (codes - zero_point) * scale
