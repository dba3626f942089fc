"""Self-loops added to a graph's edges, or taken away, in whatever spelling.

    edges without loops, joined with (0..n-1, 0..n-1)         with_self_loops(edge_index, n, "one")
    edges joined with (0..n-1, 0..n-1)                        with_self_loops(edge_index, n, "more")
    edge_index[:, edge_index[0] != edge_index[1]]             with_self_loops(edge_index, 0, "none")

What edges carry (weights) goes the same way, in two steps; where both are there, a `cat` along axis 0 joins them:

    weight[edge_index[0] != edge_index[1]]                    drop_loops(weight, edge_index)
    base[edge_index[0][loops]] = weight[loops]                loop_rows(weight, edge_index, base)

Lists and masks are found by what they compute: the part of the graph is run on small graphs with loops, double edges
and isolated nodes, and compared. Exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import merge_equal_nodes
from bgnn.passes.expressions import attempt
from bgnn.passes.graph import (
    PassResult,
    above,
    arg,
    aten,
    calls,
    compute_meta,
    is_call,
    is_constant,
    is_list,
    remove_dead_code,
    replace,
    shape_of,
)

MAKES = ("with_self_loops", "drop_loops", "loop_rows")

bgnn = torch.ops.bgnn

# What gives sizes, or numbers that become sizes, by values: their symbols stay as traced.
BY_VALUES = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
# (nodes, edges): loops, double edges, isolated nodes, no edges
PROBES: list[tuple[int, list[list[int]]]] = [
    (4, [[0, 1, 2, 3, 3, 1, 1], [1, 1, 0, 2, 3, 2, 2]]),
    (6, [[5, 0, 2, 4], [5, 0, 2, 4]]),
    (3, [[0, 1], [1, 0]]),
    (2, [[], []]),
]


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces every list of edges with other self-loops, and what goes with it."""
    result = PassResult()
    for targets, rule in (([aten.cat], _added), ([aten.index], _dropped), ([aten.index_put], _loop_rows)):
        for node in calls(gm.graph, *targets):
            new = rule(node)
            if new is not None:
                replace(node, new)
                if is_call(new, bgnn.with_self_loops):
                    _count_anew(new)
                result.rewrites += 1
    remove_dead_code(gm)
    merge_equal_nodes.run(gm)  # layers that add the self-loops each for itself share them
    chosen = _chosen_sizes(gm)
    for node in gm.graph.nodes:
        if node in chosen:
            value = node.meta["val"]
            node.meta["val"] = torch.empty(chosen[node], dtype=value.dtype, device="meta")
        elif node.op == "call_function" and not any(tag in getattr(node.target, "tags", ()) for tag in BY_VALUES):
            # what cannot run without values is no op of a graph network: it is refused by name later
            with contextlib.suppress(RuntimeError, TypeError, NotImplementedError):
                compute_meta(node)
    return result


def _chosen_sizes(gm: fx.GraphModule) -> dict[fx.Node, list[Any]]:
    """The shapes of what is picked by values: one symbol where the same is picked, though each was traced with its own.

    A list with one loop at each node is as long as that without loops, and the number of nodes.
    """
    counts: dict[fx.Node, Any] = {}
    shapes: dict[fx.Node, list[Any]] = {}
    for node in calls(gm.graph, bgnn.drop_loops, bgnn.with_self_loops, aten.index):
        picked = _picked(node)
        if picked is not None:
            axis, key = picked
            shapes[node] = list(shape_of(node))
            shapes[node][axis] = counts.setdefault(key, shapes[node][axis])
    for node in calls(gm.graph, bgnn.with_self_loops):
        edges, n = cast(tuple[fx.Node, fx.Node | int], node.args[:2])
        if node not in shapes:
            counted = arg(node, 2, "loops", "one") == "one" and edges in counts
            nodes = n.meta["val"] if isinstance(n, fx.Node) else n
            shapes[node] = [2, counts[edges] + nodes if counted else shape_of(node)[1]]
    return shapes


def _picked(node: fx.Node) -> tuple[int, fx.Node] | None:
    """(axis, what says which) where a call picks along an axis: a mask, or the edges whose loops it leaves out."""
    if is_call(node, bgnn.drop_loops):
        return 0, cast(fx.Node, node.args[1])
    if is_call(node, bgnn.with_self_loops):
        return (1, cast(fx.Node, node.args[0])) if arg(node, 2, "loops", "one") == "none" else None
    masks = [(axis, mask) for axis, mask in enumerate(cast(list[Any], node.args[1])) if mask is not None]
    return masks[0] if len(masks) == 1 and masks[0][1].meta["val"].dtype == torch.bool else None


def _added(node: fx.Node) -> fx.Node | None:
    leaves = _leaves(node) if is_list(node.meta["val"]) else None
    if leaves is None:
        return None
    edges, n = leaves
    for loops in ("one", "more"):
        if _computes(node, edges, partial(bgnn.with_self_loops, loops=loops), n):
            return _new(node, bgnn.with_self_loops.default, edges, n, loops)
    return None


def _dropped(node: fx.Node) -> fx.Node | None:
    """`edge_index[:, mask]` or `values[mask]`, the mask true where an edge is no loop."""
    values, index = cast(tuple[fx.Node, list[Any]], node.args[:2])
    masked = [mask for mask in index if mask is not None]
    edges = _edges_behind(masked[0]) if len(masked) == 1 else None
    if edges is None:
        return None
    if values is edges and is_list(node.meta["val"]):
        if _computes(node, edges, partial(bgnn.with_self_loops, loops="none")):
            return _new(node, bgnn.with_self_loops.default, edges, 0, "none")
        return None
    of_edges = index[0] is not None and shape_of(values)[0] == shape_of(edges)[1]
    if of_edges and _computes(masked[0], edges, lambda e, size: e[0] != e[1]):
        return _new(node, bgnn.drop_loops.default, values, edges)
    return None


def _loop_rows(node: fx.Node) -> fx.Node | None:
    """`base[edge_index[0][loops]] = values[loops]`."""
    base, index, rows = cast(tuple[fx.Node, list[Any], fx.Node], node.args[:3])
    if arg(node, 3, "accumulate", False) or len(index) != 1 or not is_call(rows, aten.index):
        return None
    values, masks = cast(tuple[fx.Node, list[Any]], rows.args[:2])
    edges = _edges_behind(index[0])
    if edges is None or len(masks) != 1 or _edges_behind(masks[0]) is not edges:
        return None
    if not _computes(masks[0], edges, lambda e, size: e[0] == e[1]):
        return None
    if not _computes(index[0], edges, lambda e, size: e[0][e[0] == e[1]]) or shape_of(values)[0] != shape_of(edges)[1]:
        return None
    return _new(node, bgnn.loop_rows.default, values, edges, base)


def _new(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A call in the place of `node`, of the same size: the one that the graph already speaks of."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args)
    new.meta = {**node.meta, "new": True}
    return new


def _computes(node: fx.Node, edges: fx.Node, expected: Callable[[Tensor, int], Tensor], n: Any = None) -> bool:
    """Whether `node` is this function of the edges, and of the number of nodes `n`, which may be known."""
    for nodes, pairs in PROBES:
        probe = torch.tensor(pairs, dtype=torch.int64)
        nodes = n if isinstance(n, int) else nodes
        given = attempt(node, {edges: probe} | ({n: nodes} if isinstance(n, fx.Node) else {}))
        if given is None or not torch.equal(given, expected(probe, nodes)):
            return False
    return True


def _count_anew(loops: fx.Node) -> None:
    """The number of edges is asked of the new edges, not counted beside them."""
    edges = shape_of(loops)[1]
    users = [n for n in loops.graph.nodes if n > loops and n.op == "call_function"]
    same = [n for n in users if isinstance(n.meta.get("val"), torch.SymInt) and n.meta["val"] == edges]
    if same:
        with loops.graph.inserting_after(loops):
            size = loops.graph.call_function(aten.sym_size.int, (loops, 1))
        size.meta["val"] = edges
        for node in same:
            node.replace_all_uses_with(size)


def _edges_behind(node: fx.Node) -> fx.Node | None:
    """The input of edges that `node` is computed from alone."""
    given = [n for n in above(node, through=lambda n: not _is_given(n)) if _is_given(n)]
    return given[0] if len(given) == 1 and is_list(given[0].meta["val"]) else None


def _is_given(node: fx.Node) -> bool:
    """Whether a node stands for a list of edges as it is given: an input, or one joined of an input's edges."""
    return node.op == "placeholder" or is_call(node, bgnn.join_edges)


def _counts_edges(size: fx.Node) -> bool:
    """Whether a size depends on how many edges there are. The number of nodes may be the smaller of two."""
    if is_call(size, aten.sym_size):
        value = cast(fx.Node, size.args[0]).meta["val"]
        return value.dim() == 2 and not value.is_floating_point()
    return any(_counts_edges(source) for source in size.all_input_nodes)


def _leaves(node: fx.Node) -> tuple[fx.Node, fx.Node | int] | None:
    """(edges, number of nodes) if `node` is made of these alone; a known number is that of the loops in a constant."""

    def counts(n: fx.Node) -> bool:
        return isinstance(n.meta.get("val"), torch.SymInt) and not _counts_edges(n)

    way = list(above(node, through=lambda n: not counts(n) and not _is_given(n)))
    sizes, lists = [n for n in way if counts(n)], [n for n in way if _is_given(n) and not counts(n)]
    if len(lists) != 1 or len(sizes) > 1:
        return None
    loops = [shape_of(n)[1] for n in way if is_constant(n) and len(shape_of(n)) == 2 and shape_of(n)[1] > 0]
    numbers: list[Any] = [*sizes, *loops]
    return (lists[0], numbers[0]) if numbers else None
