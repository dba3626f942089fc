"""Sums and means over a table of neighbours, where no index tells which edges a node has.

    sum(f(x[neighbours]), axis of neighbours)                 neighbours that a search found
    cat(sum(f(...)[table]), sum(f(...)[table]), 0)[position]  edges that the model holds itself (fixed_edges)

They are told from other sums by what they add up: rows that were gathered, and computed with each by itself since. What
something is divided by (a softmax's sum) is none of them. Nothing is rewritten here: calibration asks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import fx

from bgnn.passes import ops
from bgnn.passes.graph import above, aten, calls, is_call, is_constant, only_user, reduced_axes, shape_of

bgnn = torch.ops.bgnn

GATHERS = [aten.index_select, bgnn.gather_nodes]
MOVES = ops.having("move", "one")
EACH_ROW = [*ops.having("elementwise"), *MOVES, *ops.having("channel"), aten.cat, aten.linear]


@dataclasses.dataclass(frozen=True)
class NeighbourSum:
    """`how`: "sum" or "mean". `values`: what is added up, before it is moved. `on_edges`: computed edge by edge.

    `held`: the edges are the model's own. `parts`: a sum for the nodes of each degree.
    """

    how: str
    values: fx.Node
    on_edges: bool
    held: bool
    parts: tuple[fx.Node, ...]


def neighbour_sums(graph: fx.Graph) -> dict[fx.Node, NeighbourSum]:
    """All of a graph, by the node where each is complete: divided by lengths, nodes of all degrees together."""
    found: dict[fx.Node, NeighbourSum] = {}
    for node in calls(graph, aten.sum, aten.mean):
        if reduced_axes(node) != [len(shape_of(cast(fx.Node, node.args[0]))) - 2]:
            continue
        source, gathers = cast(fx.Node, node.args[0]), []
        while is_call(source, *MOVES) or _is_padded(source):
            gathers += [source] if _gathers(source, found) else []
            first = source.args[0]
            source = cast(fx.Node, first[0] if isinstance(first, (list, tuple)) else first)
        on_edges = list(_on_edges(source, found))
        end = _end(node)
        if (gathers or on_edges) and not _is_divisor(end):
            lengths = is_call(node, aten.mean) or any(is_call(one, aten.div) for one in (end, *end.all_input_nodes))
            held = all(is_constant(one.args[-1]) for one in (*gathers, *on_edges))
            parts = (*found[end].parts, node) if end in found else (node,)
            found[end] = NeighbourSum("mean" if lengths else "sum", source, bool(on_edges), held, parts)
    return found


def _gathers(node: fx.Node, found: Mapping[fx.Node, NeighbourSum]) -> bool:
    """Whether rows are gathered; sums that are only brought into the order of nodes are not."""
    return is_call(node, *GATHERS) and node.args[0] not in found and not is_constant(node.args[0])


def _is_padded(node: fx.Node) -> bool:
    """Whether a tensor is another with constant rows behind it."""
    return is_call(node, aten.cat) and all(is_constant(part) for part in cast(list[fx.Node], node.args[0])[1:])


def _on_edges(node: fx.Node, found: Mapping[fx.Node, NeighbourSum]) -> Iterator[fx.Node]:
    """The gathers of rows that a tensor is computed of, with each row by itself."""
    way = above(node, through=lambda one: is_call(one, *EACH_ROW) and one not in found)
    return (one for one in way if _gathers(one, found))


def _end(total: fx.Node) -> fx.Node:
    """What a sum becomes when it is divided by constant lengths, and joined with those of other nodes."""
    end = total
    while (user := only_user(end)) is not None:
        divided = is_call(user, aten.div) and user.args[0] is end and is_constant(user.args[1])
        if not divided and not (is_call(user, aten.cat) and all(_is_part(p) for p in user.all_input_nodes)):
            break
        end = user
    return end


def _is_part(node: fx.Node) -> bool:
    """Whether a tensor is the sums of some nodes: of one edge each, they are its rows."""
    while is_call(node, aten.div, *MOVES):
        node = cast(fx.Node, node.args[0])
    return is_constant(node) or is_call(node, aten.sum) or _is_padded(node)


def _is_divisor(node: fx.Node) -> bool:
    """Whether something is divided by a tensor, perhaps moved, with a number added."""
    return any(
        (is_call(user, aten.div) and user.args[1] is node)
        or (is_call(user, aten.cat, *MOVES) and _is_divisor(user))
        or (is_call(user, aten.add) and isinstance(user.args[1], float) and _is_divisor(user))
        for user in node.users
    )
