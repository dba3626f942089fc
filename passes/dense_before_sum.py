"""A dense layer moves in front of a sum over edges, where it makes rows narrower or keeps their width.

    W (a x_i + sum_j x_j) + b  =  a y_i + sum_j y_j + b,  y = W x

A dense layer of 8 bits reads codes, and a sum over edges has the range of the node with most edges (a hub): few of the
256 are left to nodes with three. In front of the sum the layer reads the nodes' own values, and the sum, an exact
integer, is not rounded to codes at all (`insert_fake_quant`); edges carry narrower rows besides. Exact algebra, other
rounding. Between layer and nodes may stand what acts on each channel alike: gathers, unweighted and weighted sums over
edges, sums, differences, factors that are one number for each row. Means stay: they have no hubs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import fx

from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    calls,
    is_call,
    is_constant,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)
from bgnn.passes.insert_fake_quant import is_edge_tensor

bgnn = torch.ops.bgnn
NEEDS = ("segment_sum",)


def run(gm: fx.GraphModule) -> PassResult:
    """Moves each dense layer that reads such a sum, and nothing else does."""
    result = PassResult()
    for layer in calls(gm.graph, aten.linear):
        total, weight, bias = cast(fx.Node, layer.args[0]), layer.args[1], arg(layer, 2, "bias")
        if not is_constant(weight) or len(shape_of(total)) != 2:
            continue
        channels, features = value_of(cast(fx.Node, weight)).shape
        between: set[fx.Node] = set()
        nodes = _source(total, between)
        if channels > features or nodes is None or not _sums(between) or _read_elsewhere(between, layer):
            continue
        product = call(layer, aten.linear.default, nodes, weight)
        product.meta["before_sum"] = True  # for who reports what is in it
        known = {nodes: product}
        for node in [node for node in gm.graph.nodes if node in between]:
            known[node] = _again(node, known, layer)
        made = known[total]
        if bias is not None:
            made = call(layer, aten.add.Tensor, made, bias)
        replace(layer, made)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _again(node: fx.Node, known: Mapping[fx.Node, fx.Node], before: fx.Node) -> fx.Node:
    """A call once more, on what is `known` in place of its operands."""
    args = fx.node.map_arg(node.args, lambda a: known.get(a, a))
    return call(before, cast(Any, node.target), *args, like=node, **node.kwargs)


def _source(node: fx.Node, between: set[fx.Node]) -> fx.Node | None:
    """The one tensor of nodes that `node` is linear in, channel by channel; None: there is none, or several.

    Collects what stands between.
    """
    parts = _linear_in(node)
    if not parts:
        return None if is_edge_tensor(node) else node
    between.add(node)
    found = [_source(part, between) for part in parts]
    return found[0] if all(one is found[0] for one in found) else None


def _linear_in(node: fx.Node) -> list[fx.Node]:
    """The operands that a node is linear in, its channels theirs; none if it is anything else."""
    if is_call(node, bgnn.segment_sum) and is_edge_tensor(cast(fx.Node, node.args[0])):
        return [cast(fx.Node, node.args[0])]
    if is_call(node, aten.index_select) and node.args[1] == 0 and is_edge_tensor(node):
        return [cast(fx.Node, node.args[0])]
    if is_call(node, aten.mul, aten.div) and not node.kwargs:
        pairs = [node.args[:2], *([(node.args[1], node.args[0])] if is_call(node, aten.mul) else [])]
        return next(([cast(fx.Node, rows)] for rows, factor in pairs if _is_rows(rows, node) and _is_one(factor)), [])
    if is_call(node, aten.add, aten.sub) and not node.kwargs and all(_is_rows(a, node) for a in node.args):
        return [cast(fx.Node, a) for a in node.args]
    return []


def _is_rows(a: Any, node: fx.Node) -> bool:
    """Whether an operand has all the rows and channels of the result."""
    return isinstance(a, fx.Node) and not is_constant(a) and str(a.meta["val"].shape) == str(node.meta["val"].shape)


def _is_one(factor: Any) -> bool:
    """Whether a factor is one number for a row, or for all."""
    if not isinstance(factor, fx.Node):
        return isinstance(factor, (int, float))
    shape = shape_of(factor)
    return not shape or shape[-1] == 1


def _sums(between: Collection[fx.Node]) -> bool:
    return any(is_call(node, bgnn.segment_sum) for node in between)


def _read_elsewhere(between: Collection[fx.Node], layer: fx.Node) -> bool:
    """Whether moving leaves a sum to be computed a second time; gathers are no work."""
    computed = (node for node in between if not is_call(node, aten.index_select))
    return any(user is not layer and user not in between for node in computed for user in node.users)
