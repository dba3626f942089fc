"""The half of an XOR edge that belongs to the node itself is multiplied once per node, and the largest sum decides.

A binary layer on `[x_i, -x_i * x_j]` (paper, Eq. 17) whose signs are then maximised over j has, for one threshold t per
channel, the result `sign(W1 x_i + max_j W2 e_ij - t)`: the maximum of signs is the sign of the maximum, and
`W1 x_i` does not depend on j. That halves the edge's popcounts and spends a real number per edge and channel, which
is done one batch element at a time so that the numbers of all edges never stand in memory together. Exact: all are
integers below 2^24.
Only for layers with one threshold: an interval needs every edge's own sum.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

from bgnn.converter.dialect import WORD
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    constant,
    is_call,
    only_user,
    reduced_axes,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

NEEDS = ("dot_threshold",)
MAKES = ("binarize",)

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites each `amax(dot_threshold(cat(per node, per edge)))` over the neighbours."""
    result = PassResult()
    for layer in calls(gm.graph, bgnn.dot_threshold):
        top = only_user(layer)
        joined = cast(fx.Node, layer.args[0])
        if top is None or not is_call(top, aten.amax) or reduced_axes(top) != [2] or not is_call(joined, aten.cat):
            continue
        parts = cast(list[fx.Node], joined.args[0])
        at_node = [_per_node(part) for part in parts]
        if len(shape_of(joined)) != 4 or all(n is None for n in at_node) or all(n is not None for n in at_node):
            continue
        if any(shape_of(p)[-1] % WORD for p in parts):
            result.refuse(layer, "the joined parts do not fill words of 32 channels")
            continue
        thresholds = value_of(cast(fx.Node, layer.args[2]))
        if len(thresholds) != 1:
            result.refuse(layer, "an interval of the dot product needs every edge's whole sum")
            continue
        _split(layer, top, parts, at_node)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _per_node(part: fx.Node) -> fx.Node | None:
    """`[B, N, 1, C]` if the part repeats it for every neighbour."""
    if is_call(part, aten.expand) and shape_of(cast(fx.Node, part.args[0]))[2:3] == (1,):
        return cast(fx.Node, part.args[0])
    return None


def _split(layer: fx.Node, top: fx.Node, parts: list[fx.Node], at_node: list[fx.Node | None]) -> None:
    weight = value_of(cast(fx.Node, layer.args[1]))
    threshold = value_of(cast(fx.Node, layer.args[2]))[0].double()
    fan_in = weight.shape[1]
    name = str(cast(fx.Node, layer.args[1]).target)
    columns = torch.split(weight, [shape_of(p)[-1] for p in parts], dim=1)
    # p > t with p = (K - dot)/2 is dot < K - 2t; a threshold that is never passed must not overflow the sum.
    bias = -(fan_in - 2 * threshold).clamp(-2.0 * fan_in - 2, 2.0 * fan_in + 2).float()
    total: fx.Node | None = None
    for node, matrix in zip(at_node, columns, strict=True):
        values = constant(top, matrix, f"{name}_part")
        if node is not None:
            offset = constant(top, bias, f"{name}_bias") if total is None else None
            term = call(top, aten.linear.default, node, values, offset, like=layer)
            total = term if total is None else call(top, aten.add.Tensor, total, term, like=layer)
    edges = [(p, m) for p, n, m in zip(parts, at_node, columns, strict=True) if n is None]
    edge = edges[0][0] if len(edges) == 1 else call(top, aten.cat.default, [p for p, _ in edges], 3, like=layer)
    edge_weight = constant(top, torch.cat([m for _, m in edges], 1), f"{name}_part")
    samples = []
    for b in range(shape_of(edge)[0]):
        one = call(top, aten.slice.Tensor, edge, 0, b, b + 1, 1, like=layer)
        dot = call(top, aten.linear.default, one, edge_weight, None, like=layer)
        samples.append(call(top, aten.amax.default, dot, [2], True, like=layer))
    largest = samples[0] if len(samples) == 1 else call(top, aten.cat.default, samples, 0, like=layer)
    assert total is not None
    sign = call(top, bgnn.binarize.default, call(top, aten.add.Tensor, largest, total, like=layer), like=layer)
    replace(top, call(top, aten.reshape.default, sign, list(shape_of(top)), like=layer))
