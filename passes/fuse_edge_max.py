"""RF's first edge layer, whose factors keep the maximum from moving before the sum, as one operator (`--kernels bgnn`).

`max_j (((x_j + node_i) * beta_i) * gamma_j)`, x and node being the two halves that split_edge_linear made of the
layer and beta, gamma the rescaling per point and per neighbour (binary GNN paper, Eq. 11; in any order), becomes
`bgnn::edge_max`: no `[B, N, k, C]` tensor exists. Factors per channel are in the layer's weights already. The product
of the factors is rounded in the operator's order, within float tolerance.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

from bgnn.passes.canonicalise import reshape
from bgnn.passes.chains import rescaled
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    only_user,
    reduced_axes,
    remove_dead_code,
    replace,
    shape_of,
)

NEEDS = ("gather_nodes",)
MAKES = ("edge_max",)

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites each maximum over the neighbours of scaled sums of a gathered tensor and the node's own."""
    result = PassResult()
    for top in calls(gm.graph, aten.amax):
        source = cast(fx.Node, top.args[0])
        if reduced_axes(top) != [2] or len(shape_of(source)) != 4:
            continue
        _, points, neighbours, _ = shape_of(source)
        sizes = {"beta": (1, points, 1, 1), "gamma": (1, 1, neighbours, 1)}
        factors, total = rescaled(source, sizes, dict.fromkeys(sizes, torch.ones(1)))
        halves = _halves(total)
        if halves is None:
            continue
        gathered, node = halves
        x, index = cast(tuple[fx.Node, fx.Node], gathered.args)
        own = reshape(top, node, (*shape_of(total)[:2], shape_of(total)[3]))
        scales = [constant(top, factors[name], f"edge_{name}") for name in ("beta", "gamma")]
        new = call(top, bgnn.edge_max.default, x, own, index, *scales)
        replace(top, reshape(top, new, shape_of(top)))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _halves(total: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(gathered, the node's own `[B, N, 1, C]`) if `total` is their sum and nobody else reads it."""
    if not is_call(total, aten.add) or total.kwargs or only_user(total) is None:
        return None
    for gathered, node in (total.args[:2], total.args[1::-1]):
        if not is_call(gathered, bgnn.gather_nodes) or not isinstance(node, fx.Node):
            continue
        if is_call(node, aten.expand):
            node = cast(fx.Node, node.args[0])
        batch, points, _, channels = shape_of(total)
        x = cast(fx.Node, cast(fx.Node, gathered).args[0])
        floats = x.meta["val"].dtype == torch.float32 and shape_of(x) == (batch, points, channels)
        if floats and not is_constant(node) and shape_of(node) == (batch, points, 1, channels):
            return cast(fx.Node, gathered), node
    return None
