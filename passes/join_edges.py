"""Edges joined with the same edges turned round, in whatever spelling: a directed list made undirected.

    cat([edge_index, edge_index.flip(0)], 1)                      join_edges(edge_index, [0, 1, 1, 0])
    stack([cat([row, col]), cat([col, row])])                     the same
    edge_index[[1, 0]]                                            join_edges(edge_index, [1, 0])
    cat([row, col]) and cat([col, row]), never stacked            rows 0 and 1 of the first

Found by what they compute: what is only moved from a list is run on a list whose elements tell their places. Exact.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

from bgnn.passes.graph import PassResult, aten, call, calls, is_call, remove_dead_code, replace, shape_of
from bgnn.passes.neighbour_rows import is_search
from bgnn.passes.unpack_edges import copies, moved_lists

bgnn = torch.ops.bgnn
MOST_COPIES = 4


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces every such list, and every vector that is one of its rows."""
    result = PassResult()
    for node, source in moved_lists(gm).items():
        if shape_of(source)[0] != 2 or is_call(node, aten.select, aten.expand) or not node.users:
            continue
        if is_search(source) or is_call(source, aten.index):  # of a k-NN search, masked: neighbour_rows takes those
            continue
        new = _joined(node, source)
        if new is not None:
            replace(node, new)
            result.rewrites += 1
    remove_dead_code(gm)
    return result


def most_copies(graph: fx.Graph) -> int:
    """How many times as many edges as the input names a node may have."""
    return max((len(cast(list[int], n.args[1])) // 2 for n in calls(graph, bgnn.join_edges)), default=1)


def _joined(node: fx.Node, source: fx.Node) -> fx.Node | None:
    shape = shape_of(node)
    if len(shape) not in (1, 2) or isinstance(shape[-1], int) or (len(shape) == 2 and shape[0] != 2):
        return None
    found = copies(node, source)  # [rows, copies]
    if found is None or not 1 <= found.shape[-1] <= MOST_COPIES:
        return None
    if len(shape) == 2:
        rows = cast(list[int], found.t().flatten().tolist())
        return source if rows == [0, 1] else call(node, bgnn.join_edges.default, source, rows)
    if found.shape[-1] == 1:
        return None  # a row of the list itself
    row = found.flatten()
    sources = row if int(row[0]) == 0 else 1 - row  # the list whose row 0 begins with the sources
    pairs = torch.stack([sources, 1 - sources], 1).flatten().tolist()
    joined = call(node, bgnn.join_edges.default, source, pairs)
    return call(node, aten.select.int, joined, 0, int(row[0]))
