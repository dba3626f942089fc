"""The maximum of gathered features as one operator: no `[B, N, k, C]` tensor of neighbours exists (`--kernels bgnn`).

`max_j x[table[i, j]]` is `bgnn::gather_max`; a minimum is minus the maximum of `-x`. Exact.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

from bgnn.passes.canonicalise import reshape
from bgnn.passes.graph import PassResult, aten, call, is_call, reduced_axes, rewrite, shape_of

NEEDS = ("gather_nodes",)
MAKES = ("gather_max",)

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites each `amax` or `amin` over the neighbours of a float `gather_nodes`."""
    return rewrite(gm, [([aten.amax, aten.amin], _fused)])


def _fused(top: fx.Node) -> fx.Node | None:
    gathered = cast(fx.Node, top.args[0])
    if not is_call(gathered, bgnn.gather_nodes) or reduced_axes(top) != [2]:
        return None
    if gathered.meta["val"].dtype != torch.float32:
        return None
    x, index = cast(tuple[fx.Node, fx.Node], gathered.args)
    if is_call(top, aten.amin):
        x = call(top, aten.neg.default, x)
    new = call(top, bgnn.gather_max.default, x, index)
    if is_call(top, aten.amin):
        new = call(top, aten.neg.default, new)
    return reshape(top, new, shape_of(top))
