"""A graph network cut at its aggregations: the graph of the integer stage becomes a chain of small graphs.

What an op needs of other rows decides, and nothing else. A value has a row for each node, a row for each edge, or none
of these (`Rows`); ops act on each row alone, gather rows by an end of the edges, or reduce the edges of each node. The
*level* of a value of nodes is how many times rows of other nodes must be known before it:

    relu(x), x W                   that of x              each row alone
    gathered by the targets        that of x              the edges of a node stand in the part that the node is in
    gathered by the sources        that of x, and 1       all nodes of x must be there
    reduced over a node's edges    that of the messages, 1 or more

One graph computes the values of one level, for some nodes (*destinations*) and all their edges: it is given those rows
of earlier values, the rows of the edges' sources, and the edges' own values. Values of edges are never kept: each graph
makes them again. Where only the destinations' rows of a value are read, it is made where it is read if what it is made
of is no wider (a dense layer beside the aggregation); and of gathered rows what crosses is the narrowest that the rest
follows from row by row: codes instead of the numbers they stand for, packed signs.

Reductions over all nodes (pooling) stand in graphs of their own, which are given all rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, cast

import sympy
import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic

from bgnn.converter.emitted_file import results_of
from bgnn.converter.errors import ConversionError
from bgnn.passes import ops, user_code
from bgnn.passes.graph import arg, aten, compute_meta, getitem, is_call, reduced_axes, value_of
from bgnn.passes.index_limits import edge_inputs, numbers_of_nodes
from bgnn.passes.neighbour_tables import index_of, operands

bgnn = torch.ops.bgnn

# What a value has rows of: `constant` and `size` have none, `whole` is computed of all nodes, `list` and `end` are
# edges and one end of each.
NODES, EDGES, WHOLE, CONSTANT, SIZE, LIST, END = "nodes", "edges", "whole", "constant", "size", "list", "end"

_EACH_ELEMENT = (
    *ops.having("elementwise"), *ops.having("channel"), *ops.having("fake"),
    *ops.having("codes", "-segment", "-summed", "-fused"), bgnn.pack, bgnn.unpack,
)  # fmt: skip
_DENSE = (*ops.having("dense"), bgnn.bconv, bgnn.bconv_bits)
_CODE_DENSE = (bgnn.q_linear, bgnn.q_linear_float)
_SUMMED = ops.having("codes", "summed")
_SEGMENTS = ops.having("segment", "-fused")
_LISTS = (bgnn.with_self_loops, bgnn.join_edges)
_FILLED = ops.having("filling", "-elementwise")
# Made again of narrower rows for each part that reads them: these cost less than the reading.
_LIGHT = (*_EACH_ELEMENT, *ops.having("move", "one", "-lookup"))


@dataclasses.dataclass(frozen=True)
class EdgeSet:
    """The in-edges of nodes by one end of a list of edges: `edges` [2, E] (an input, or `join_edges` of one), `target`
    the row that a part's destinations are in."""

    edges: fx.Node
    target: int

    @property
    def pairs(self) -> list[list[int]]:
        """[source, target] rows of the input's list, for each copy of it."""
        rows = cast(list[int], self.edges.args[1]) if is_call(self.edges, bgnn.join_edges) else [0, 1]
        return [[rows[i + 1 - self.target], rows[i + self.target]] for i in range(0, len(rows), 2)]


@dataclasses.dataclass(frozen=True)
class Given:
    """An input of a stage's graph: which value, and which rows of it: "destinations", "sources", "edges" (of `edges`),
    "all", "list" (the edges themselves), "whole" (it has no rows) or "total" (of a node's pieces:
    split_layers_hubs.py)."""

    node: fx.Node
    value: fx.Node | None
    rows: str
    edges: EdgeSet | None = None
    total: str = ""


@dataclasses.dataclass
class Stage:
    """One graph of the chain: `results` are the values that it makes, in the order of its outputs.

    `kind`: "nodes" (each row alone), "edges" (with in-edges) or "whole" (of all rows at once).
    """

    kind: str
    gm: fx.GraphModule
    given: list[Given]
    results: list[fx.Node]
    reduced: list[fx.Node] = dataclasses.field(
        default_factory=list
    )  # over edges, by the nodes of the graph that is cut
    builder: Callable[[type[Builder]], Builder] | None = None  # another one for the same values


@dataclasses.dataclass
class Chain:
    """The stages in order, the list of edges, the inputs with a row for each node and each edge, the results."""

    stages: list[Stage]
    edges: fx.Node
    node_inputs: list[fx.Node]
    edge_inputs: list[fx.Node]
    results: list[fx.Node]
    per: dict[fx.Node, str]

    def kept(self) -> list[fx.Node]:
        """The values that flow between the stages."""
        return list(dict.fromkeys(value for stage in self.stages for value in stage.results))


def split(gm: fx.GraphModule) -> Chain:
    """Cuts a graph of the integer stage, which stays as it is.

    Raises ConversionError for what cannot be cut, with the user's operation and its place.
    """
    cut = Cut(gm)
    results = results_of(gm)
    for node in results:
        if cut.rows[node] not in (NODES, WHOLE) or node.op == "placeholder":
            what = "gives a row for each edge" if cut.rows[node] == EDGES else "is an input or a constant"
            refuse(
                node, f"is a result that {what}", "cut a network whose results are of nodes, and do the rest after it"
            )
    wanted: dict[fx.Node, None] = dict.fromkeys(results)
    stages: list[Stage] = []
    for level in range(max(cut.level[node] for node in results), -1, -1):
        for kind in (WHOLE, NODES):
            here = [n for n in gm.graph.nodes if n in wanted and cut.rows[n] == kind and cut.level[n] == level]
            if not here:
                continue
            first = Builder(cut, level, wanted, []).build(here)
            read = [one.value for one in first.given if one.rows == "sources" and one.value is not None]
            stage = Builder(cut, level, wanted, read).build(here) if kind == NODES else first
            stages.append(stage)
            wanted |= {
                one.value: None for one in stage.given if one.value is not None and one.value.op != "placeholder"
            }
    return Chain(stages[::-1], cut.edges, cut.node_inputs, cut.edge_inputs, results, cut.rows)


def refuse(node: fx.Node, what: str, way_out: str) -> NoReturn:
    """Raises the one-line error."""
    raise ConversionError(f"--split-layers: {user_code.called(node)}{user_code.where(node)} {what}: {way_out}")


_WHOLE_FILE = "convert it without --split-layers, as one file for graphs that fit one process"


def width(node: fx.Node) -> int:
    """The bytes of a row."""
    value = node.meta["val"]
    return math.prod(size for size in value.shape[1:] if isinstance(size, int)) * value.dtype.itemsize


class Cut:
    """What each value has rows of, and its level."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        lists = edge_inputs(gm.graph)
        if len(lists) != 1 or lists[0].meta["val"].dim() != 2:
            given = ", ".join(node.name for node in lists) or "none"
            raise ConversionError(
                f"--split-layers cuts graph networks over one list of edges [2, edges] (here: {given}): {_WHOLE_FILE}"
            )
        self.edges = lists[0]
        sizes = {str(size): size for size in numbers_of_nodes(gm.graph)}
        if len(sizes) != 1 or any(isinstance(size, int) for size in sizes.values()):
            raise ConversionError(
                "--split-layers cuts networks over one kind of nodes, whose number is open (this one has "
                f"{len(sizes)} numbers of nodes: {', '.join(sizes)}): {_WHOLE_FILE}"
            )
        self.nodes_size, self.edges_size = next(iter(sizes)), str(self.edges.meta["val"].shape[1])
        self.lengths = {self.edges_size}  # of lists of edges, loops among them or not
        self.rows: dict[fx.Node, str] = {}
        self.sizes: dict[tuple[str, Any], torch.SymInt] = {}
        self.level: dict[fx.Node, int] = {}
        self.by_target: dict[tuple[fx.Node, int], int | None] = {}  # of edges: the level by the set's target row
        for node in gm.graph.nodes:
            if node.op != "output":
                self.rows[node] = self._rows(node)
                if self.rows[node] == LIST and isinstance(node.meta["val"], Tensor):
                    self.lengths.add(str(node.meta["val"].shape[1]))
                self._find_level(node)
        inputs: list[fx.Node] = [n for n in gm.graph.nodes if n.op == "placeholder" and n.users]
        self.node_inputs = [n for n in inputs if self.rows[n] == NODES]
        self.edge_inputs = [n for n in inputs if self.rows[n] == EDGES]

    def size(self, node: fx.Node) -> bool:
        """Whether a value is the number of nodes."""
        return isinstance(node.meta["val"], torch.SymInt) and str(node.meta["val"]) == self.nodes_size

    def another_size(self, size: torch.SymInt, of: Any) -> torch.SymInt:
        """A number that is not known, other than `size`: of the sources of a part, or of the edges of another set."""
        if (str(size), of) not in self.sizes:
            env = cast(Any, size).node.shape_env
            known = [int(one) for one in env.backed_var_to_val.values()]
            prime = int(sympy.nextprime(2 * max(known)))
            source = ConstantSource(f"another_{len(known)}")
            symbol = env.create_symbol(prime, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
            self.sizes[str(size), of] = cast(torch.SymInt, env.create_symintnode(symbol, hint=prime, source=source))
        return self.sizes[str(size), of]

    # What a value has rows of.

    def _rows(self, node: fx.Node) -> str:
        value = node.meta.get("val")
        if node.op == "get_attr":
            return CONSTANT
        if node.op == "placeholder":
            return self._rows_of_input(node)
        if not isinstance(value, Tensor):
            if isinstance(value, (torch.SymInt, int)):
                return SIZE
            if any(self.rows[n] == LIST for n in node.all_input_nodes):
                return LIST  # unbind
            refuse(node, "gives several tensors", _WHOLE_FILE)
        if is_call(node, *_LISTS) or (
            is_call(node, *ops.having("same")) and self.rows[node.all_input_nodes[0]] == LIST
        ):
            return LIST
        if index_of(node) is not None:
            return END
        sizes = [str(size) for size in value.shape]
        if is_call(node, *_FILLED) and sizes and sizes[0] in (self.nodes_size, *self.lengths):
            return NODES if sizes[0] == self.nodes_size else EDGES
        of = {n: self.rows[n] for n in node.all_input_nodes}
        kinds = set(of.values()) - {SIZE, CONSTANT}
        if is_call(node, *_SEGMENTS):
            return self._rows_of_segments(node)
        if is_call(node, bgnn.drop_loops):
            return EDGES
        if is_call(node, bgnn.loop_rows):
            return NODES
        if is_call(node, aten.index_select) and of[node.all_input_nodes[-1]] == END and cast(int, node.args[1]) == 0:
            if of[cast(fx.Node, node.args[0])] != NODES:
                refuse(node, "gathers rows of something that has no row for each node", _WHOLE_FILE)
            return EDGES
        if END in kinds:
            if kinds == {END} and is_call(node, aten.eq, aten.ne):
                return EDGES  # which edges are loops
            refuse(node, "computes with the numbers of nodes", _WHOLE_FILE)
        if LIST in kinds:
            refuse(node, "changes the list of edges", _WHOLE_FILE)
        if is_call(node, aten.cat) and kinds == {NODES, EDGES} and _axis(node, 1, value) == 0:
            return EDGES  # the rows of edges, then those of loops
        if kinds <= {WHOLE}:
            if {self.nodes_size, *self.lengths}.intersection(sizes):
                refuse(node, "makes rows of nodes or edges from their places", _WHOLE_FILE)
            return WHOLE if kinds or node.all_input_nodes == [] or SIZE in of.values() else CONSTANT
        if {NODES, EDGES} <= kinds:
            refuse(node, "brings rows of nodes and of edges together", "gather the nodes' rows by the edges first")
        rows = NODES if NODES in kinds else EDGES
        if self.acts_by_row(node):
            return rows
        if rows == NODES and not any(str(size) == self.nodes_size for size in value.shape):
            return WHOLE
        refuse(node, "mixes rows of different nodes or edges, and not by the edges", _WHOLE_FILE)

    def _rows_of_input(self, node: fx.Node) -> str:
        value = node.meta["val"]
        if node is self.edges:
            return LIST
        first = str(value.shape[0]) if value.dim() else ""
        if first in (self.nodes_size, self.edges_size) and all(isinstance(size, int) for size in value.shape[1:]):
            return NODES if first == self.nodes_size else EDGES
        if node.users:
            raise ConversionError(
                f"--split-layers: input {node.name} has a row for neither each node nor each edge: {_WHOLE_FILE}"
            )
        return WHOLE

    def _rows_of_segments(self, node: fx.Node) -> str:
        values, index, _ = operands(node)
        softmax = is_call(node, bgnn.segment_softmax)
        if self.rows[index] == END:
            if self.rows[values] != EDGES:
                refuse(node, "reduces rows that are not those of the edges", _WHOLE_FILE)
            return EDGES if softmax else NODES
        if softmax or self.rows[values] != NODES or self.rows[index] != NODES:
            refuse(node, "reduces rows by an index that is no end of the edges", _WHOLE_FILE)
        return WHOLE

    def acts_by_row(self, node: fx.Node) -> bool:
        """Whether each row of a result needs that row of what has rows, and no other."""
        value = node.meta["val"]
        if not isinstance(value, Tensor) or not value.dim() or not all(type(size) is int for size in value.shape[1:]):
            return False
        given = [n for n in node.all_input_nodes if self.rows[n] in (NODES, EDGES)]
        if any(str(n.meta["val"].shape[0]) != str(value.shape[0]) for n in given):
            return False
        rank, first = value.dim(), node.args[0] if node.args else None
        if any(isinstance(n.meta["val"], torch.SymInt) for n in node.all_input_nodes) and not is_call(
            node, *ops.having("move"), *_FILLED
        ):
            return False  # the number of nodes as a number
        if is_call(node, *_EACH_ELEMENT):
            return all(n.meta["val"].dim() == rank for n in given) and (
                not is_call(node, bgnn.pack, bgnn.unpack, bgnn.q_table, *ops.having("channel")) or rank > 1
            )
        if is_call(node, *_DENSE, *_CODE_DENSE):
            left = node.args[1] if is_call(node, aten.addmm) else first
            return rank > 1 and (given == [left] or (rank == 3 and all(n.meta["val"].dim() == 3 for n in given)))
        if is_call(node, bgnn.packed_max):
            return cast(int, node.args[1]) % (rank + 1) != 0
        if is_call(node, *_SUMMED):
            return cast(int, node.args[3]) % (rank + 1) != 0
        if is_call(node, *ops.having("reduction")):
            return 0 not in reduced_axes(node)
        if is_call(node, *ops.having("softmax"), aten.cumsum, aten.roll, aten.flip):
            dims = arg(
                node, 2 if is_call(node, aten.roll) else 1, "dims" if is_call(node, aten.roll, aten.flip) else "dim"
            )
            return all(dim % rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims]))
        if is_call(node, aten.cat):
            return _axis(node, 1, value) != 0
        if is_call(node, aten.index_select, aten.gather):
            return _axis(node, 1, value) != 0 or given == [node.args[2]]
        if is_call(node, aten.index):
            chosen = cast(list[Any], node.args[1])
            return given == [first if chosen[0] is None else chosen[0]] and (chosen[0] is None or len(chosen) == 1)
        if is_call(node, aten.embedding):
            return given == [node.args[1]]
        return is_call(node, *ops.having("move", "one", "-lookup"))

    # Levels.

    def _find_level(self, node: fx.Node) -> None:
        rows = self.rows[node]
        if rows == EDGES:
            for target in (0, 1):
                self.by_target[node, target] = self._level_of_edges(node, target)
            if all(self.by_target[node, target] is None for target in (0, 1)):
                refuse(node, "needs the edges of both of their ends", _WHOLE_FILE)
        elif rows in (NODES, WHOLE):
            self.level[node] = self._level(node)

    def _level(self, node: fx.Node) -> int:
        if node.op == "placeholder" or is_call(node, *_FILLED):
            return 0
        found = [0]
        edges = self.set_of(node)
        for one in node.all_input_nodes:
            if self.rows[one] == EDGES:
                found.append(max(1, self._by_target(one, edges)))
            elif self.rows[one] in (NODES, WHOLE):
                after = self.rows[node] == NODES and self.rows[one] == WHOLE
                found.append(self.level[one] + after)
        return max(found)

    def set_of(self, node: fx.Node) -> EdgeSet | None:
        """The edges that a value of nodes is reduced over."""
        if is_call(node, *_SEGMENTS) and self.rows[operands(node)[1]] == END:
            index = index_of(operands(node)[1])
            assert index is not None
            return EdgeSet(self.base(index.source), cast(int, index.row))
        if is_call(node, bgnn.loop_rows):
            target = 1 if self.by_target[cast(fx.Node, node.args[0]), 1] is not None else 0
            return EdgeSet(self.base(cast(fx.Node, node.args[1])), target)
        return None

    def base(self, edges: fx.Node) -> fx.Node:
        """The list of edges before loops were added: an input, or joined ones."""
        while is_call(edges, bgnn.with_self_loops, *ops.having("same")):
            edges = cast(fx.Node, edges.args[0])
        return edges

    def _by_target(self, node: fx.Node, edges: EdgeSet | None) -> int:
        assert edges is not None
        level = self.by_target[node, edges.target]
        if level is None:
            refuse(node, "is of the edges of one of their ends, and is reduced over the other", _WHOLE_FILE)
        return level

    def _level_of_edges(self, node: fx.Node, target: int) -> int | None:
        if node.op == "placeholder" or is_call(node, *_FILLED):
            return 0
        found: list[int | None] = [0]
        if is_call(node, aten.index_select) and self.rows[cast(fx.Node, node.args[2])] == END:
            index = index_of(cast(fx.Node, node.args[2]))
            assert index is not None
            return self.level[cast(fx.Node, node.args[0])] + (index.row != target)
        if is_call(node, bgnn.segment_softmax):
            index = index_of(operands(node)[1])
            found.append(1 if index is not None and index.row == target else None)
        for one in node.all_input_nodes:
            rows = self.rows[one]
            if rows == EDGES:
                found.append(self.by_target[one, target])
            elif rows in (NODES, WHOLE):
                found.append(self.level[one] + (rows == WHOLE))
        return None if None in found else max(cast(list[int], found))


def _axis(node: fx.Node, position: int, value: Tensor) -> int:
    return cast(int, arg(node, position, "dim", 0)) % value.dim()


class Builder:
    """Copies what one stage computes. `wanted`: the values that later stages read; `read`: those whose rows
    at the sources this one reads, as a first build of it found."""

    def __init__(self, cut: Cut, level: int, wanted: Iterable[fx.Node], read: Iterable[fx.Node]) -> None:
        self.cut, self.level, self.wanted, self.read = cut, level, set(wanted), set(read)
        self.arguments = (cut, level, self.wanted, self.read)
        self.graph, self.module = fx.Graph(), torch.nn.Module()
        self.given: dict[Any, Given] = {}
        self.made: dict[Any, fx.Node] = {}
        self.costs: dict[fx.Node, int] = {}
        self.sets: list[EdgeSet] = []
        self.reduced: list[fx.Node] = []
        self.whole = False

    def build(self, results: list[fx.Node]) -> Stage:
        """The stage that makes these values, which are all of nodes or all whole."""
        self.whole = self.cut.rows[results[0]] == WHOLE
        return self.finished([self._whole(node) if self.whole else self._row(node) for node in results], results)

    def finished(self, made: list[fx.Node], results: list[fx.Node]) -> Stage:
        """What was made as a stage."""
        self.graph.output(tuple(made))
        gm = fx.GraphModule(self.module, self.graph)
        order = {node: place for place, node in enumerate(gm.graph.nodes)}
        given = sorted(self.given.values(), key=lambda one: order[one.node])
        kind = "whole" if self.whole else "edges" if any(one.edges is not None for one in given) else "nodes"
        return Stage(kind, gm, given, results, self.reduced, lambda kind: kind(*self.arguments))

    # What is given.

    def _input(self, value: fx.Node, rows: str, edges: EdgeSet | None = None) -> fx.Node:
        key = (value, rows, edges)
        if key not in self.given:
            suffix = {"sources": "_sources", "list": f"_{edges.target}" if edges is not None else ""}.get(rows, "")
            node = self.placeholder(f"{value.name}{suffix}")
            node.meta = {key: value.meta[key] for key in ("val", "stack_trace") if key in value.meta}
            known = node.meta["val"]
            if rows == "sources":
                size = self.cut.another_size(known.shape[0], "sources")
                node.meta["val"] = torch.empty([size, *known.shape[1:]], dtype=known.dtype, device="meta")
            elif edges is not None:
                node.meta["val"] = self._of_set(known if rows == "edges" else edges.edges.meta["val"], edges)
            node.meta["packed"] = _holds_bits(value)
            self.given[key] = Given(node, None if rows == "list" else value, rows, edges)
        return self.given[key].node

    def placeholder(self, name: str) -> fx.Node:
        """A new input, behind the others."""
        first = next((node for node in self.graph.nodes if node.op != "placeholder"), None)
        with self.graph.inserting_before(first) if first is not None else contextlib.nullcontext():
            return self.graph.placeholder(name)

    def _of_set(self, value: Any, edges: EdgeSet) -> Any:
        """What is known of a value of edges, in the sizes of this set: each set has a number of edges of its own."""
        if not self.sets:
            self.sets.append(edges)
        if edges == self.sets[0]:
            return value

        def own(size: Any) -> Any:
            return self.cut.another_size(size, edges) if str(size) in self.cut.lengths else size

        if isinstance(value, Tensor):
            return torch.empty([own(size) for size in value.shape], dtype=value.dtype, device="meta")
        return tuple(self._of_set(one, edges) for one in value) if isinstance(value, tuple) else own(value)

    # Copies.

    def _row(self, node: fx.Node) -> fx.Node:
        """A value of nodes at the destinations."""
        if self.whole:
            return self._input(node, "all")
        earlier = self.cut.level[node] < self.level and not self._moves_here(node)
        if earlier or node.op == "placeholder":
            return self._input(node, "destinations")
        edges = self.cut.set_of(node)
        if edges is not None and node not in self.reduced:
            self.reduced.append(node)
        return self.copy(node, edges, "destinations")

    def _moves_here(self, node: fx.Node) -> bool:
        """Whether a value of an earlier level, read at the destinations alone, is made here."""
        if node.op == "placeholder" or node in self.wanted or node in self.read:
            return False
        return self.cut.set_of(node) is None and self._cost(node) <= width(node)

    def _cost(self, node: fx.Node) -> int:
        """The bytes of a row of what a value is made of here."""
        if node not in self.costs:
            rows = [one for one in node.all_input_nodes if self.cut.rows[one] == NODES]
            self.costs[node] = sum(
                0 if one in self.read else min(width(one), self._cost(one) if self._by_row(one) else width(one))
                for one in rows
            )
        return self.costs[node]

    def _by_row(self, node: fx.Node) -> bool:
        return node.op != "placeholder" and self.cut.set_of(node) is None

    def _source(self, node: fx.Node) -> fx.Node:
        """A value of nodes at the edges' sources, from the narrowest that it follows from."""
        best, one = node, node
        while is_call(one, *_LIGHT) and self.cut.rows[one] == NODES:
            rows = [n for n in one.all_input_nodes if self.cut.rows[n] == NODES]
            if len(rows) != 1 or any(self.cut.rows[n] in (WHOLE, SIZE) for n in one.all_input_nodes):
                break
            one = rows[0]
            if width(one) < width(best):
                best = one
        return self._follow(node, best)

    def _follow(self, node: fx.Node, start: fx.Node) -> fx.Node:
        if node is start:
            return self._input(node, "sources")
        key = (node, "sources")
        if key not in self.made:
            source = next(n for n in node.all_input_nodes if self.cut.rows[n] == NODES)
            before = self._follow(source, start)
            constants = {n: self._constant(n) for n in node.all_input_nodes if n is not source}
            self.made[key] = self.graph.node_copy(node, lambda n: before if n is source else constants[n])
            self.made[key].meta = _notes(node)
            compute_meta(self.made[key])
        return self.made[key]

    def _edge(self, node: fx.Node, edges: EdgeSet) -> fx.Node:
        """A value of edges, for the destinations' edges."""
        if node.op == "placeholder":
            if self.cut.base(edges.edges) is not self.cut.edges:
                refuse(node, "is of edges that are taken several times over", _WHOLE_FILE)
            return self._input(node, "edges", edges)
        if is_call(node, aten.index_select) and self.cut.rows[cast(fx.Node, node.args[2])] == END:
            key = (node, edges)
            if key not in self.made:
                x, end = cast(fx.Node, node.args[0]), cast(fx.Node, node.args[2])
                index = index_of(end)
                assert index is not None
                rows = self._row(x) if index.row == edges.target else self._source(x)
                places = self._end(end, edges)
                self.made[key] = self.graph.call_function(cast(Any, node.target), (rows, node.args[1], places))
                self.made[key].meta = {**_notes(node), "val": self._of_set(node.meta["val"], edges)}
            return self.made[key]
        return self.copy(node, edges, "edges")

    def _end(self, node: fx.Node, edges: EdgeSet) -> fx.Node:
        return self.copy(node, edges, "edges")

    def _list(self, node: fx.Node, edges: EdgeSet) -> fx.Node:
        if node is edges.edges:
            return self._input(self.cut.edges, "list", edges)
        if node.op == "placeholder" or is_call(node, bgnn.join_edges):
            refuse(node, "gives edges, and others are summed over", _WHOLE_FILE)
        return self.copy(node, edges, "edges")

    def _whole(self, node: fx.Node) -> fx.Node:
        """A value of no rows: computed here in a stage of all rows, unless it is kept for another; else given."""
        if not self.whole or (self.cut.level[node] < self.level and node in self.wanted):
            return self._input(node, "whole")
        return self.copy(node, None, "whole")

    def _constant(self, node: fx.Node) -> fx.Node:
        if node.op != "get_attr":
            return self.copy(node, None, "constant")
        key = (node, "constant")
        if key not in self.made:
            name = str(node.target).replace(".", "_")
            self.module.register_buffer(name, value_of(node))
            self.made[key] = self.graph.get_attr(name)
            self.made[key].meta = dict(node.meta)
        return self.made[key]

    def _nothing(self, node: fx.Node) -> fx.Node:
        """What `new_zeros` is called on: its dtype counts, and nothing else."""
        value = torch.zeros((), dtype=node.meta["val"].dtype)
        key = (value.dtype, "constant")
        if key not in self.made:
            name = f"of_{str(value.dtype).removeprefix('torch.')}"
            self.module.register_buffer(name, value)
            self.made[key] = self.graph.get_attr(name)
            self.made[key].meta["val"] = value.to("meta")
        return self.made[key]

    def _size(self, node: fx.Node, edges: EdgeSet | None) -> fx.Node:
        if self.whole:
            return self.copy(node, None, "whole")
        if self.cut.size(node):
            if "size" not in self.made:
                self.made["size"] = self.graph.call_function(aten.sym_size.int, (self._any_rows(), 0))
                self.made["size"].meta = _notes(node)
            return self.made["size"]
        if edges is None or not is_call(node, aten.sym_size):
            refuse(node, "computes with sizes", _WHOLE_FILE)
        return self.copy(node, edges, "edges")

    def _any_rows(self) -> fx.Node:
        """An input with a row for each destination: its length is their number."""
        given = [one for one in self.given.values() if one.rows == "destinations"]
        sources = [one.value for one in self.given.values() if one.rows == "sources"]
        if given:
            return given[0].node
        values: list[fx.Node] = [value for value in sources if value is not None] or self.cut.node_inputs
        return self._input(min(values, key=width), "destinations")

    def operand(self, node: fx.Node, edges: EdgeSet | None) -> fx.Node:
        """What a copy is given in place of an operand; `edges`: for which edges, if that is of edges."""
        rows = self.cut.rows[node]
        if rows in (LIST, END, EDGES):
            assert edges is not None
            return {LIST: self._list, END: self._end, EDGES: self._edge}[rows](node, edges)
        if rows == SIZE:
            return self._size(node, edges)
        return {NODES: self._row, WHOLE: self._whole, CONSTANT: self._constant}[rows](node)

    def call(self, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of another op, in the place of a node of the graph that is cut."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {key: like.meta[key] for key in ("stack_trace", "custom") if key in like.meta}
        compute_meta(node)
        return node

    def copy(self, node: fx.Node, edges: EdgeSet | None, form: str) -> fx.Node:
        """The same call of what stands here for its operands."""
        key = (node, edges if form == "edges" else form)
        if key not in self.made:
            filled = is_call(node, *_FILLED)
            known = {
                one: self._nothing(one) if filled and self.cut.rows[one] != SIZE else self.operand(one, edges)
                for one in node.all_input_nodes
            }
            self.made[key] = self.graph.node_copy(node, lambda n: known[n])
            self.made[key].meta = _notes(node)
            if form == "edges" and edges is not None:
                self.made[key].meta["val"] = self._of_set(node.meta["val"], edges)
        return self.made[key]


def _notes(node: fx.Node) -> dict[str, Any]:
    return {key: value for key, value in node.meta.items() if key != "tap"}


def _holds_bits(node: fx.Node) -> bool:
    """Whether a value is packed signs, perhaps moved."""
    while is_call(node, *ops.having("move")) or getitem(node) is not None or is_call(node, bgnn.packed_max):
        node = node.all_input_nodes[0]
    return is_call(node, bgnn.pack, bgnn.bconv_bits)
