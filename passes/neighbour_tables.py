"""Sums over edges by neighbour tables, which the host makes (the runtime's graphs.py): they become data by name.

    segment_sum(values, index, n)          segment_sum(values, neighbour_table(index, n), n)
    segment_sum(full(E, c), index, n)      degrees(neighbour_table(index, n), n) * c
    values = norm[source] * norm[target]   values' in the table's order, and back by index_select(values', edge_places)

A table's entries are edges, node by node; what is one number for each edge (GCN's norms) is made once along them, and
not by small operators for every bucket of nodes. A sum becomes one over a table only where the emitter never needs its
edge tensors whole (converter/onnx/tables.py): all that leads to them from tensors of nodes is done on each edge alone.
Exact: a table keeps the order of a node's edges.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.graph import PassResult, above, arg, call, is_call, remove_dead_code, replace, shape_of, size_of

NEEDS = ("segment_sum", "segment_mean", "segment_max", "q_segment_sum", "q_segment_sum_float", "q_segment_mean",
         "q_segment_max", "with_self_loops", "join_edges", "drop_loops")  # fmt: skip
MAKES = ("neighbour_table", "degrees", "edge_order", "edge_places", "edge_list")

aten = torch.ops.aten
bgnn = torch.ops.bgnn

# How many buckets: 4, 8, 12, 16 took 45, 31, 29, 27 ms on a power-law graph of 2M edges, 0.26, 0.25, 0.27, 0.30 ms on
# Cora. Of codes, whose free entries cost a quarter, 6, 8, 10, 12: 476, 469, 448, 463 ms with 10M edges, 0.70, 0.70,
# 0.73, 0.75.
BUCKETS, BUCKETS_OF_CODES = 12, 8

CODE_SUMS = [bgnn.q_segment_sum, bgnn.q_segment_sum_float, bgnn.q_segment_mean]  # of codes
CODES = [*CODE_SUMS, bgnn.q_segment_max]
SEGMENTS = [bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max, *CODES]
# Ops on each edge alone. What else touches an edge tensor needs all of it, as [E, ...].
EDGEWISE = [*ops.having("elementwise"), bgnn.prelu, aten.linear]
FILLED = ops.having("filling", "-elementwise")
QUANTISED = [*ops.having("fake"), *ops.having("codes", "-segment", "-summed")]
COPIES = [*ops.having("same"), aten._to_copy]
COLUMNS = [aten.reshape, aten.view, aten.unsqueeze, aten.squeeze]  # [E] as [E, 1] and back


@dataclasses.dataclass(frozen=True)
class Index:
    """An index vector: row `row` of a list of edges, or an input (None).

    The list is an input, `join_edges` of one, `with_self_loops` of either, or these sorted.
    """

    source: fx.Node
    row: int | None


@dataclasses.dataclass
class _Table:
    """A table to be: of how many nodes, and what its sums want of it."""

    size: Any  # as the host counts it
    buckets: int = 0
    powers_of_two: bool = False
    uses: list[fx.Node] = dataclasses.field(default_factory=list)
    node: fx.Node | None = None


HostSize = Callable[[Any, Mapping[fx.Node, str]], Any]


def run(gm: fx.GraphModule, host_size: HostSize) -> PassResult:
    """Gives every sum over edges that can have one its table.

    `host_size`: how a number of nodes follows from the inputs, None where it does not (`converter.sizes`): the host
    makes the tables before the file runs.
    """
    result, edges, tables = PassResult(), Edges(gm), dict[Index, _Table]()
    names = {node: node.name for node in gm.graph.nodes if node.op == "placeholder"}
    for node in list(gm.graph.nodes):
        if not is_call(node, *SEGMENTS) or not all(isinstance(size, int) for size in shape_of(node)[1:]):
            continue
        values, index, size = operands(node)
        of, counted = index_of(index), host_size(size, names)
        filled = is_call(node, bgnn.segment_sum) and number_on_edges(values) is not None
        if of is None or counted is None:
            continue
        if is_call(of.source, bgnn.with_self_loops) and host_size(of.source.args[1], names) is None:
            continue
        if not filled and (
            (is_call(node, *CODE_SUMS) and len(shape_of(values)) < 2) or not edges.writable(values, of, size)
        ):
            continue
        table = tables.setdefault(of, _Table(counted))
        if table.size != counted:
            continue
        table.uses.append(node)
        if not filled:
            codes = is_call(node, bgnn.q_segment_sum, bgnn.q_segment_mean, bgnn.q_segment_max)
            table.buckets = table.buckets or (BUCKETS_OF_CODES if codes else BUCKETS)
            if is_call(node, bgnn.q_segment_sum):
                table.powers_of_two |= not _thirds_are_exact(cast(float, node.args[1]), cast(float, node.args[5]))
    for of, table in tables.items():
        _, index, size = operands(table.uses[0])
        shape = (table.buckets or 1, table.powers_of_two)
        made = call(table.uses[0], bgnn.neighbour_table.default, index, size, *shape, like=table.uses[0])
        made._rename("neighbours")
        order = _InOrder(edges, of, made)
        for node in table.uses:
            values, index, size = operands(node)
            number = number_on_edges(values) if is_call(node, bgnn.segment_sum) else None
            if number is not None:
                new = call(node, bgnn.degrees.default, made, size)
                replace(node, new if number == 1 else call(node, aten.mul.Tensor, new, number))
            else:
                node.replace_input_with(index, made)
                if values in edges.list_of:
                    node.replace_input_with(values, order.read(values, node))
            result.rewrites += 1
    remove_dead_code(gm)
    return result


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node, int | fx.Node]:
    """Values, index and number of nodes of a segment op."""
    given = cast(Any, node.target)._schema.arguments
    at = next(i for i, one in enumerate(given) if one.name == "index")
    return cast(fx.Node, node.args[0]), cast(fx.Node, node.args[at]), cast(Any, node.args[at + 1])


def _thirds_are_exact(m_scale: float, y_scale: float) -> bool:
    """Whether m / ((y / 3) * 3) is m / y in float32: then it is for every width of 3 * 2^k."""
    m, y, three = np.float32(m_scale), np.float32(y_scale), np.float32(3)
    return bool(m / ((y / three) * three) == m / y)


def number_on_edges(values: fx.Node) -> float | None:
    """The number that a tensor [E] was filled with: its sums are degrees."""
    if values.meta["val"].dim() != 1 or not is_call(values, *FILLED):
        return None
    name = str(values.target)
    if "full" in name:
        return float(arg(values, 2 if "new_full" in name else 1, "fill_value"))
    return 1.0 if "ones" in name else 0.0


def index_of(node: fx.Node) -> Index | None:
    """What an index vector is, if tables can be made for it."""
    while is_call(node, *COPIES, bgnn.neighbour_table):
        node = cast(fx.Node, node.args[0])
    if is_call(node, aten.select) and node.args[1] == 0 and isinstance(node.args[2], int):
        source, row = cast(fx.Node, node.args[0]), node.args[2] % 2
    elif is_call(node, operator.getitem) and is_call(node.args[0], aten.unbind):
        source, row = cast(fx.Node, cast(fx.Node, node.args[0]).args[0]), cast(int, node.args[1])
    elif node.op == "placeholder" and len(node.meta["val"].shape) == 1 and node.meta["val"].dtype == torch.int64:
        return Index(node, None)
    else:
        return None
    value = source.meta["val"]
    list_input = source.args[0] if is_call(source, bgnn.edge_csr) else source
    list_input = cast(fx.Node, list_input).args[0] if is_call(list_input, bgnn.with_self_loops) else list_input
    list_input = cast(fx.Node, list_input).args[0] if is_call(list_input, bgnn.join_edges) else list_input
    if not isinstance(list_input, fx.Node) or list_input.op != "placeholder" or value.dim() != 2:
        return None
    if value.dtype != torch.int64 or value.shape[0] != 2:
        return None
    return Index(source, row)


def is_listed(node: fx.Node) -> bool:
    """Whether an edge tensor comes as a whole list: an input, rows of edges joined with rows of loops, "is a loop"."""
    if is_call(node, aten.cat):
        return cast(int, arg(node, 1, "dim", 0)) % len(shape_of(node)) == 0
    return node.op == "placeholder" or is_call(node, bgnn.drop_loops) or _compared_ends(node) is not None


def _compared_ends(node: fx.Node) -> fx.Node | None:
    """The edges whose two ends are compared."""
    if not is_call(node, aten.eq, aten.ne) or not all(isinstance(end, fx.Node) for end in node.args[:2]):
        return None
    ends = [index_of(cast(fx.Node, end)) for end in node.args[:2]]
    return ends[0].source if ends[0] is not None and ends[1] is not None and ends[0].source is ends[1].source else None


class Edges:
    """`list_of`: the nodes whose first axis runs along a list of edges, each with its list."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.list_of = _edge_tensors(gm)

    def one_number(self, node: fx.Node) -> bool:
        """Whether an edge tensor is one number for each edge and computed of such: GCN's norms.

        A sign that is compared stays one of the edges in their order; codes are made again from what makes them.
        """
        made = node
        while is_call(made, *COPIES, *COLUMNS):
            made = cast(fx.Node, made.args[0])
        if is_listed(made) or is_call(made, aten.index_select):
            return False  # a gather costs the same in the bucket

        def small(one: fx.Node) -> bool:
            if one not in self.list_of:
                return True
            if one is not node and "tap" in one.meta and not is_call(one, *QUANTISED):
                return False
            if int(np.prod(shape_of(one)[1:])) != 1 or is_call(one, bgnn.segment_softmax, *FILLED):
                return False
            begins = is_listed(one) or is_call(one, aten.index_select)
            return begins or all(small(source) for source in one.all_input_nodes)

        return small(node)

    def writable(self, node: fx.Node, index: Index, size: int | fx.Node) -> bool:
        """Whether all that leads to an edge tensor is done on each edge alone."""
        if index.row is None:
            return node not in self.list_of
        if node not in self.list_of:
            return False

        def is_made(one: fx.Node) -> bool:
            """Whether it is computed of other tensors of edges."""
            return one in self.list_of and not is_call(one, aten.index_select, *FILLED) and not is_listed(one)

        for one in above(node, through=is_made):
            if one not in self.list_of:
                continue
            if self.list_of[one] is not index.source or not self._edgewise(one, index, size):
                return False
            if is_made(one) and any(a not in self.list_of and _has_rows(a) for a in one.all_input_nodes):
                return False  # of edges, but of no list that is known
        return True

    def _edgewise(self, node: fx.Node, index: Index, size: int | fx.Node) -> bool:
        shape = shape_of(node)
        if not all(isinstance(dim, int) for dim in shape[1:]):
            return False
        if is_call(node, bgnn.segment_softmax):  # over a row of the table
            return index_of(cast(fx.Node, node.args[1])) == index and str(size_of(node.args[2])) == str(size_of(size))
        if is_listed(node) or is_call(node, *EDGEWISE, *FILLED, *QUANTISED, aten.index_select):
            return True
        rank = len(shape_of(node.args[0])) if isinstance(node.args[0], fx.Node) else len(shape)
        if is_call(node, *COLUMNS, aten.expand, aten.permute):
            source = cast(fx.Node, node.args[0])
            if is_call(node, aten.permute) and cast(list[int], node.args[1])[0] % rank != 0:
                return False
            return source not in self.list_of or str(shape_of(source)[0]) == str(shape[0])
        if is_call(node, aten.cat):
            return arg(node, 1, "dim", 0) % len(shape) != 0
        if is_call(node, aten.slice, aten.select):
            return arg(node, 1, "dim", 0) % rank != 0
        if is_call(node, *ops.having("softmax"), aten.sum, aten.mean, aten.amax, aten.amin):
            given = arg(node, 1, "dim")
            axes: list[int] = [given] if isinstance(given, int) else list(given or [])
            return bool(axes) and all(axis % rank != 0 for axis in axes)
        return False


class _InOrder:
    """Edge tensors as a table's sums read them: what is one number for each edge, by way of the table's order."""

    def __init__(self, edges: Edges, index: Index, table: fx.Node) -> None:
        self.edges, self.index, self.table = edges, index, table
        self.done: dict[Any, fx.Node] = {}

    def read(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """The same numbers for a sum; the node itself if nothing in it has another form. New calls stand `before`."""
        if node not in self.edges.list_of or is_listed(node) or is_call(node, aten.index_select, *FILLED):
            return node
        if node not in self.done:
            if self.edges.one_number(node):
                places = self._of_table(bgnn.edge_places.default, before)
                along = self._along(node, before)
                self.done[node] = call(before, aten.index_select.default, along, 0, places, like=node)
                self.done[node]._rename("edge")
                self.done[node].meta |= {"tap": node.meta["tap"]} if "tap" in node.meta else {}
            else:
                self.done[node] = copied(node, {one: self.read(one, before) for one in node.all_input_nodes}, before)
        return self.done[node]

    def _along(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """What is one number for each edge, in the table's order; what is of no edges is itself."""
        index, key = index_of(node) if node.op == "call_function" else None, (node, "along")
        if key in self.done:
            return self.done[key]
        if index is not None and index.source is self.index.source:
            listed = self._of_table(bgnn.edge_list.default, before, index.source)
            made = call(before, aten.select.int, listed, 0, index.row, like=node)
        elif node not in self.edges.list_of:
            return node
        elif is_listed(node):
            order = self._of_table(bgnn.edge_order.default, before)
            made = call(before, aten.index_select.default, node, 0, order, like=node)
        else:
            made = copied(node, {one: self._along(one, before) for one in node.all_input_nodes}, before)
            made.meta.pop("tap", None)  # the same numbers elsewhere
        made._rename("along")
        self.done[key] = made
        return made

    def _of_table(self, op: Any, before: fx.Node, *more: fx.Node) -> fx.Node:
        if op not in self.done:
            self.done[op] = call(before, op, self.table, *more, like=self.table)
            self.done[op]._rename(str(op).split(".")[1].removeprefix("edge_"))
        return self.done[op]


def copied(node: fx.Node, operands: dict[fx.Node, fx.Node], before: fx.Node) -> fx.Node:
    """The same call of other operands; the node itself where they are the same."""
    if all(old is new for old, new in operands.items()):
        return node
    with before.graph.inserting_before(before):
        new = before.graph.node_copy(node, lambda one: operands[one])
    new.meta = dict(node.meta)
    return new


def _has_rows(node: fx.Node) -> bool:
    """Whether the first axis of a tensor, no index vector, is open."""
    value = node.meta.get("val")
    open_rows = isinstance(value, Tensor) and value.dim() > 0 and type(value.shape[0]) is not int
    return open_rows and index_of(node) is None


def _edge_tensors(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """The nodes whose first axis runs along a list of edges, each with its list."""
    lists: dict[str, fx.Node] = {}  # by the symbol of their length
    found: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        index = index_of(node) if node.op == "call_function" else None
        if index is not None and index.row is not None:
            length = index.source.meta["val"].shape[1]
            if type(length) is not int:
                lists.setdefault(str(length), index.source)
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() == 0 or index_of(node) is not None:
            continue
        if is_call(node, aten.index_select) and node.args[1] in (0, -value.dim()):
            rows = cast(fx.Node, node.args[2])
            index = index_of(cast(fx.Node, rows.args[0]) if is_call(rows, bgnn.edge_places) else rows)
            if index is not None and index.row is not None and node.args[0] not in found:
                found[node] = index.source
            continue
        if is_call(node, *SEGMENTS):
            continue
        sources = {found[a] for a in node.all_input_nodes if a in found and not is_listed(node)}
        if len(sources) == 1 and node.op == "call_function":
            edges = next(iter(sources))
            if str(value.shape[0]) == str(edges.meta["val"].shape[1]):
                found[node] = edges
            continue
        starts = is_listed(node) or is_call(node, *FILLED)
        if starts and not sources and value.dtype != torch.int64 and str(value.shape[0]) in lists:
            found[node] = lists[str(value.shape[0])]
    return found
