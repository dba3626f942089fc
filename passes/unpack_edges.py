"""One spelling for the sources and the targets of edges: `select(edge_index, 0, row)`.

    row, col = edge_index; unbind, split, chunk, edge_index[:1].squeeze(0), edge_index.t()[:, 0], edge_index.flip(0)[1]
    x[edge_index.T]                       cat of x[row 0] and x[row 1], each [E, 1, F], along axis 1

Found by what they compute: what is only moved from a list `[R, E]` of indices is run on a list whose elements tell
their places. A tensor that turns out to be one row of it is that row; a gather through a tensor of several rows
becomes gathers through each. Exact.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.canonicalise import reshape
from bgnn.passes.expressions import attempt
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    is_call,
    is_constant,
    remove_dead_code,
    replace,
    shape_of,
)

MAKES = ("rows of edges",)

MOVES = ops.having("move")
MOST_ROWS = 16  # in one tensor of indices
LENGTHS = (5, 7)  # of the lists that moves are tried on


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites every row of a list of indices, and every gather through several rows."""
    result = PassResult()
    lists = moved_lists(gm)
    for node in calls(gm.graph, aten.index, aten.embedding):
        new = _gathers(node, lists)
        if new is not None:
            replace(node, new)
            result.rewrites += 1
    for node, source in lists.items():
        if node.users and not all(user in lists for user in node.users) and not _is_spelled(node, source):
            rows = _rows(node, source)
            if rows is not None and len(set(rows.flatten().tolist())) == 1:
                replace(node, _repeated(node, source, rows))
                result.rewrites += 1
    remove_dead_code(gm)
    return result


def moved_lists(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """What is only moved from a list of indices, and that list."""
    lists: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        source = _source(node, lists)
        if source is not None:
            lists[node] = source
    return lists


def copies(node: fx.Node, source: fx.Node) -> Tensor | None:
    """Of `[kE]` or `[R, kE]` moved from a list `[2, E]`: which of its rows each copy is, `[1 or R, k]`."""
    found: list[Tensor] = []
    for length in LENGTHS:
        value = _moved(node, source, length)
        if value is None or value.shape[-1] % length:
            return None
        value = value.reshape(-1, value.shape[-1] // length, length)
        rows = value[..., :1] // length
        if not torch.equal(value, rows * length + torch.arange(length)):
            return None
        found.append(rows[..., 0])
    return found[0] if torch.equal(*found) else None


def _moved(node: fx.Node, source: fx.Node, length: int) -> Tensor | None:
    """`node` of a list of so many columns, whose elements tell their places."""
    count, edges = shape_of(source)
    sizes = [n for n in node.graph.nodes if isinstance(n.meta.get("val"), torch.SymInt)]
    known: dict[fx.Node, Any] = {n: length for n in sizes if str(n.meta["val"]) == str(edges)}
    known[source] = torch.arange(count * length).reshape(count, length)
    return attempt(node, known)


def _source(node: fx.Node, lists: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The list `[R, E]`, E open, that a tensor of indices is moved from."""
    value = node.meta.get("val")
    turned = is_call(node, torch.ops.bgnn.join_edges) and len(cast(list[int], node.args[1])) == 2
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or not (turned or is_call(node, *MOVES)):
        return None
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor) and not is_constant(n)]
    sources = {lists.get(n, n) for n in tensors}
    source = sources.pop() if len(sources) == 1 else None
    return source if source is not None and _is_list(source) else None


def _is_list(node: fx.Node) -> bool:
    value = node.meta["val"]
    if value.dtype != torch.int64 or value.dim() != 2:
        return False
    return isinstance(value.shape[0], int) and not isinstance(value.shape[1], int)


def _rows(node: fx.Node, source: fx.Node) -> Tensor | None:
    """Which rows of the list stand in a tensor of indices, along its one open axis: of its shape, with 1 there."""
    shape = shape_of(node)
    axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if len(axes) != 1:
        return None
    found: list[Tensor] = []
    for length in LENGTHS:
        value = _moved(node, source, length)
        if value is None or value.shape != torch.Size(length if axis in axes else s for axis, s in enumerate(shape)):
            return None
        rows = value.narrow(axes[0], 0, 1) // length
        along = torch.arange(length).reshape([-1 if axis in axes else 1 for axis in range(len(shape))])
        if not torch.equal(value, rows * length + along):
            return None
        found.append(rows)
    return found[0] if torch.equal(*found) else None


def _row(node: fx.Node, source: fx.Node, row: int) -> fx.Node:
    return call(node, aten.select.int, source, 0, row)


def _repeated(node: fx.Node, source: fx.Node, rows: Tensor) -> fx.Node:
    """One row, along the open axis of `node` and the same in all others."""
    sizes = [size if isinstance(size, int) else -1 for size in shape_of(node)]
    flat = tuple(1 if isinstance(size, int) else size for size in shape_of(node))
    row = reshape(node, _row(node, source, int(rows.flatten()[0])), flat)
    return row if rows.numel() == 1 else call(node, aten.expand.default, row, sizes)


def _is_spelled(node: fx.Node, source: fx.Node) -> bool:
    while is_call(node, aten.expand, aten.reshape):
        node = cast(fx.Node, node.args[0])
    return is_call(node, aten.select) and node.args[:2] == (source, 0) and cast(int, node.args[2]) >= 0


def _gathers(node: fx.Node, lists: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """`x[indices]`, as gathers through one row of a list each, joined along the other axes of the indices."""
    given = [node.args[1]] if is_call(node, aten.embedding) else cast(list[Any], node.args[1])
    x, index = cast(fx.Node, node.args[0]), cast(fx.Node, given[0])
    source = lists.get(index, index)
    if len(given) != 1 or not _is_list(source) or len(shape_of(index)) == 1:
        return None
    rest = shape_of(x)[1:]
    rows = _rows(index, source)
    if rows is None or rows.numel() > MOST_ROWS or not all(isinstance(size, int) for size in rest):
        return None

    def gathered(rows: Tensor) -> fx.Node:
        axis = next((axis for axis, size in enumerate(rows.shape) if size > 1), None)
        if axis is not None:
            return call(node, aten.cat.default, [gathered(part) for part in rows.split(1, axis)], axis)
        picked = call(node, aten.index_select.default, x, 0, _row(node, source, int(rows)))
        edges = [1 if isinstance(size, int) else size for size in shape_of(index)]
        return reshape(node, picked, (*edges, *rest))

    return gathered(rows)
