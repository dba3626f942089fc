"""How far the values of an index input may go: the number of rows of whatever they name rows of.

Row 0 of a graph's edges may gather from one kind of nodes while row 1 scatters into another (a bipartite layer, a
heterogeneous network). So nothing is taken from names or shapes: an index is followed from where it is used back to
the input that its values are copied from, and each use says how many rows there are.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.expressions import Tried, attempt
from bgnn.passes.graph import above, arg, aten, is_call, size_of

bgnn = torch.ops.bgnn

_COPIES = [
    aten.clone, aten.contiguous, aten.alias, aten.detach, aten.reshape, aten.view, aten.expand, aten.expand_as,
    aten.unsqueeze, aten.squeeze, aten.repeat,
]  # fmt: skip
_SAME_AXES = [*ops.having("same"), aten._to_copy, bgnn.neighbour_table]  # the whole tensor, as it was
# (the op, where its index stands, where the tensor whose rows it names)
_BY_AXIS = [
    (aten.index_select, "index", "self"), (aten.gather, "index", "self"), (aten.scatter, "index", "self"),
    (aten.scatter_add, "index", "self"), (aten.scatter_reduce, "index", "self"), (aten.index_add, "index", "self"),
]  # fmt: skip
_INDICES = (torch.int64, torch.int32)
_GATHERS = [aten.index_select, aten.gather]
_ALONG_AN_AXIS = [aten.scatter, aten.scatter_add, aten.scatter_reduce]  # by an index of as many axes
_SEGMENTS = ops.having("segment", "-fused")
_FUSED = ops.having("segment", "fused")

Origin = tuple[fx.Node, int | None]
"""An input and the row of it, None for all of a vector (or of more axes)."""


def limits(graph: fx.Graph) -> dict[Origin, list[Any]]:
    """For each index input, and row of edges, the numbers of rows that its values must stay below (may be open)."""
    found: dict[Origin, list[Any]] = {}
    for index, row, size, _ in _uses(graph):
        for origin in _origins(index, row):
            known = found.setdefault(origin, [])
            if not any(str(size) == str(one) for one in known):
                known.append(size)
    return found


def edge_inputs(graph: fx.Graph) -> list[fx.Node]:
    """The inputs that hold a graph's edges: lists `[2, E]`, or several `[E]`, by which rows are gathered or summed.

    What is gathered from follows from the inputs: labels, which pick rows of a weight, are no edges, nor is the one
    list that says which graph of a batch each node is of.
    """
    found: dict[fx.Node, None] = {}
    for index, _, _, named in _uses(graph):
        if named is None or inputs_of(named):
            found |= dict.fromkeys(inputs_of(index, whole_numbers=True))
    lengths = [str(node.meta["val"].shape[0]) for node in found if node.meta["val"].dim() == 1]

    def holds_edges(node: fx.Node) -> bool:
        shape = node.meta["val"].shape
        return str(shape[0]) == "2" if len(shape) == 2 else len(shape) == 1 and lengths.count(str(shape[0])) > 1

    return [node for node in found if holds_edges(node)]


def group_inputs(graph: fx.Graph) -> list[fx.Node]:
    """The inputs `[N]` of whole numbers that tell rows apart into groups, as a batch vector does.

    Rows are summed by them, a matrix of rows by rows follows from them alone (`batch[:, None] == batch[None]`), or
    PyG's k-NN search keeps to them.
    """
    found: dict[fx.Node, None] = {}
    of: dict[fx.Node, frozenset[fx.Node]] = {}  # of tensors that follow from such inputs and constants alone
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            if isinstance(value, Tensor) and value.dim() == 1 and value.dtype in _INDICES:
                of[node] = frozenset([node])
            continue
        tensors = [one for one in node.all_input_nodes if not isinstance(one.meta.get("val"), torch.SymInt)]
        if node.op == "output" or any(one not in of for one in tensors):
            continue
        of[node] = frozenset[fx.Node]().union(*(of[one] for one in tensors))
        sizes = [str(size) for size in value.shape] if isinstance(value, Tensor) else []
        lengths = [str(one.meta["val"].shape[0]) for one in of[node]]
        if sum(size in lengths for size in sizes) > 1 or str(node.target) == "bgnn.group_starts.default":
            found |= dict.fromkeys(of[node])
    for index, _, _, named in _uses(graph):
        if named is None and len(vectors := list(of.get(index, ()))) == 1:
            vector = vectors[0]
            along = next((_named(user, "dim") for user in index.users if is_call(user, *_ALONG_AN_AXIS)), 0)
            if str(index.meta["val"].shape[along]) == str(vector.meta["val"].shape[0]):  # no class of each row
                found[vector] = None
    return list(found)


def numbers_of_nodes(graph: fx.Graph) -> list[Any]:
    """How many rows a graph's edges tell apart: of what is gathered by them, where it follows from the inputs, and of
    sums, where their number is open."""
    edges = edge_inputs(graph)
    return [
        size
        for index, row, size, named in _uses(graph)
        if (inputs_of(named) if named is not None else not isinstance(size, int))
        and any(node in edges for node, _ in _origins(index, row))
    ]


def inputs_of(node: fx.Node, whole_numbers: bool = False) -> list[fx.Node]:
    """The inputs that a value follows from, if `whole_numbers` through tensors of such alone."""

    def counts(one: fx.Node) -> bool:
        value = one.meta.get("val")
        values = value if isinstance(value, (tuple, list)) else [value]
        whole = all(isinstance(v, Tensor) and v.dtype in _INDICES for v in values)
        return one is node or not whole_numbers or whole

    return [one for one in above(node, through=counts) if one.op == "placeholder" and counts(one)]


def _uses(graph: fx.Graph) -> Iterator[tuple[fx.Node, int | None, Any, fx.Node | None]]:
    """(an index, which row of it if it is a list of edges, the number of rows, what they are gathered from if so)."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        for op, index, named in _BY_AXIS:
            if is_call(node, op):
                x = cast(fx.Node, _named(node, named))
                if (rank := x.meta["val"].dim()) == 0:
                    continue
                size = x.meta["val"].shape[cast(int, _named(node, "dim")) % rank]
                yield cast(fx.Node, _named(node, index)), None, size, x if is_call(node, *_GATHERS) else None
        if is_call(node, aten.embedding):
            x = cast(fx.Node, _named(node, "weight"))
            yield cast(fx.Node, _named(node, "indices")), None, x.meta["val"].shape[0], x
        elif is_call(node, aten.index, aten.index_put):
            x = cast(fx.Node, node.args[0])
            for axis, index in enumerate(cast(list[Any], node.args[1])):
                if isinstance(index, fx.Node) and index.meta["val"].dtype == torch.int64:
                    yield index, None, x.meta["val"].shape[axis], x if is_call(node, aten.index) else None
        elif is_call(node, *_SEGMENTS):
            yield cast(fx.Node, _named(node, "index")), None, size_of(_named(node, "n")), None
        elif is_call(node, *_FUSED):
            edges, x = cast(fx.Node, _named(node, "edge_index")), cast(fx.Node, _named(node, "x"))
            yield edges, 0, x.meta["val"].shape[0], x
            yield edges, 1, size_of(_named(node, "n")), None


def _named(node: fx.Node, name: str) -> Any:
    """An argument by its name in the op's schema."""
    given = cast(Any, node.target)._schema.arguments
    position = next(i for i, one in enumerate(given) if one.name == name)
    return arg(node, position, name, given[position].default_value)


def _origins(index: fx.Node, row: int | None) -> list[Origin]:
    """The inputs, and rows of them, that the values of `index` (of its `row`) are copied from."""
    return _followed(index, row) or (_rows_of_list(index) if row is None else [])


def _followed(index: fx.Node, row: int | None) -> list[Origin]:
    """The same, operation by operation: of rows that are cut out in other ways nothing."""
    value = index.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype not in _INDICES:
        return []
    if index.op == "placeholder":
        return [(index, row)] if row is not None or not _is_list(index) else []
    if index.op != "call_function":
        return []
    source = index.args[0] if index.args else None
    if is_call(index, aten.select) and row is None:
        x = cast(fx.Node, source)
        axis, number = cast(int, index.args[1]) % x.meta["val"].dim(), index.args[2]
        x, axis = _turned(x, axis)
        if axis == 0 and _is_list(x):
            return _followed(x, number % x.meta["val"].shape[0]) if isinstance(number, int) else []
        return []  # a column of categories: the others have tables of their own
    if is_call(index, operator.getitem) and is_call(source, aten.unbind) and row is None:
        list_ = cast(fx.Node, cast(fx.Node, source).args[0])
        x, axis = _turned(list_, arg(cast(fx.Node, source), 1, "dim", 0) % list_.meta["val"].dim())
        return _followed(x, cast(int, index.args[1])) if axis == 0 and _is_list(x) else []
    if is_call(index, aten.cat):
        along = arg(index, 1, "dim", 0) % value.dim()
        if row is not None and along == 0:
            return []
        return [origin for part in cast(list[fx.Node], source) for origin in _followed(part, row)]
    if is_call(index, bgnn.join_edges):
        rows = cast(list[int], index.args[1])
        wanted = rows if row is None else rows[row::2]
        return [origin for one in sorted(set(wanted)) for origin in _followed(cast(fx.Node, source), one)]
    if is_call(index, bgnn.with_self_loops, bgnn.edge_csr):
        return _followed(cast(fx.Node, source), row)
    if is_call(index, bgnn.edge_list):
        return _followed(cast(fx.Node, index.args[1]), row)
    if is_call(index, aten.index):
        chosen = cast(list[Any], index.args[1])
        if row is not None and chosen[0] is not None:
            return []
        return _followed(cast(fx.Node, source), row)
    if is_call(index, aten.slice) and (row is None or cast(int, arg(index, 1, "dim", 0)) % value.dim() != 0):
        return _followed(cast(fx.Node, source), row)
    if is_call(index, *(_COPIES if row is None else _SAME_AXES), *_SAME_AXES):
        return _followed(cast(fx.Node, source), row)
    return []


def _rows_of_list(index: fx.Node) -> list[Origin]:
    """The rows of an input that is a list, where the values of `index` turn out to be copied from it and no others.

    It is computed of a list whose elements tell their places, and of one with other numbers at those places.
    """
    lists = inputs_of(index, whole_numbers=True)
    if len(lists) != 1 or not _is_list(lists[0]):
        return []
    tried = Tried()
    known = tried.known(index.graph)
    count, length = tried.shape(lists[0])
    places = torch.arange(count * length).reshape(count, length)
    numbers = places.flip(0, 1) * 3 + 1
    found, others = (attempt(index, {**known, lists[0]: values}) for values in (places, numbers))
    if found is None or others is None or not bool(((found >= 0) & (found < count * length)).all()):
        return []
    copied = torch.equal(numbers.flatten()[found], others)
    return [(lists[0], number) for number in sorted(set((found // length).flatten().tolist()))] if copied else []


def _turned(x: fx.Node, axis: int) -> tuple[fx.Node, int]:
    """The tensor and axis behind permuted ones."""
    while True:
        rank = x.meta["val"].dim()
        if is_call(x, aten.permute):
            axis = cast(list[int], x.args[1])[axis] % rank
        elif is_call(x, aten.t):
            axis = rank - 1 - axis
        elif is_call(x, aten.transpose):
            a, b = (cast(int, dim) % rank for dim in x.args[1:3])
            axis = {a: b, b: a}.get(axis, axis)
        elif not is_call(x, *_SAME_AXES) and not (is_call(x, aten.slice) and _keeps(x, axis)):
            return x, axis
        x = cast(fx.Node, x.args[0])


def _keeps(piece: fx.Node, axis: int) -> bool:
    """Whether a slice leaves an axis as it was."""
    before, after = cast(fx.Node, piece.args[0]).meta["val"].shape, piece.meta["val"].shape
    return cast(int, arg(piece, 1, "dim", 0)) % len(after) != axis or (
        type(before[axis]) is int and before[axis] == after[axis]
    )


def _is_list(node: fx.Node) -> bool:
    """Whether a tensor is a list of indices [R, E], such as edges: sources in its row 0, targets in row 1."""
    value = node.meta["val"]
    return value.dim() == 2 and type(value.shape[0]) is int
