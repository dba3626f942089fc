"""Aggregation without scatters (-O1): what happens on edges is written on neighbour tables, bucket by bucket.

In the IR an edge tensor is [E, ...]. Here it is never made. For a segment op over edges, everything between it and
the tensors of nodes is written once for every *bucket* of nodes (the runtime's graphs.py makes the tables), in the
body of a Scan over the bucket's blocks, where an edge tensor is [rows, width, ...]: a gather by the edges' sources
reads the rows that the table names, a gather by their targets is one row for a whole row of the table,
[rows, 1, ...], and the segment op is a reduction of axis 1. Each of these tensors fits the processor's cache.

Free entries of a table are -1: the last row of what is gathered, which holds whatever is neutral. `pads` says what an
edge tensor holds there, by the same ops run on these rows: None is "anything", and then the reduction masks them.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.converter.onnx.builder import ModelBuilder, Value
from bgnn.converter.onnx.walk import FLOAT, I32, U8, Walk
from bgnn.converter.sizes import host_size
from bgnn.converter.tflite.walk import arguments
from bgnn.passes import ops
from bgnn.passes.graph import arg, is_call, value_of
from bgnn.runtime_bench.runtime.graphs import FREE

aten = torch.ops.aten
bgnn = torch.ops.bgnn

# How many: 4, 8, 12, 16 took 45, 31, 29, 27 ms on a power-law graph of 2M edges, 0.26, 0.25, 0.27, 0.30 ms on Cora. Of
# codes, whose free entries cost a quarter, 6, 8, 10, 12: 476, 469, 448, 463 ms with 10M edges, 0.70, 0.70, 0.73, 0.75.
BUCKETS, BUCKETS_OF_CODES = 12, 8
_CACHE = 512 * 1024  # bytes of one gathered block; half the second-level cache of a server's core
LOWEST = float(np.finfo(np.float32).min)

SEGMENTS = (
    "segment_sum", "segment_mean", "segment_max", "q_segment_sum", "q_segment_sum_float", "q_segment_mean",
    "q_segment_max",
)  # fmt: skip
# Ops on each edge alone. What else touches an edge tensor needs all of it, as [E, ...].
EDGEWISE = [*ops.having("elementwise"), bgnn.prelu, aten.linear]
FILLED = ops.having("filling", "-elementwise")
_QUANTISED = (
    "fake_quant", "fake_quant_channel", "quantize", "dequantize", "requantize", "q_table",
    "q_linear", "q_linear_float", "q_mul", "q_add",
)  # fmt: skip
_MOVES = [
    aten.reshape, aten.view, aten.unsqueeze, aten.squeeze, aten.expand, aten.permute, aten.detach, aten.clone,
    aten.alias, aten.contiguous,
]  # fmt: skip
_COPIES = [*ops.having("same"), aten._to_copy]


def named(node: Any, *names: str) -> bool:
    """Whether `node` calls one of these bgnn ops; by name, since not every build defines all of them."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    text = str(node.target)
    return text.startswith("bgnn.") and text.split(".")[1] in names


@dataclasses.dataclass(frozen=True)
class Index:
    """An index vector: row `row` of a list of edges, or an input (None).

    The list is an input, `join_edges` of one, or `with_self_loops` of either.
    """

    source: fx.Node
    row: int | None


def index_of(node: fx.Node) -> Index | None:
    """What an index vector is, if tables can be made for it."""
    while is_call(node, *_COPIES):
        node = cast(fx.Node, node.args[0])
    if is_call(node, aten.select) and node.args[1] == 0 and isinstance(node.args[2], int):
        source, row = cast(fx.Node, node.args[0]), node.args[2] % 2
    elif is_call(node, operator.getitem) and is_call(node.args[0], aten.unbind):
        source, row = cast(fx.Node, cast(fx.Node, node.args[0]).args[0]), cast(int, node.args[1])
    elif node.op == "placeholder" and len(node.meta["val"].shape) == 1 and node.meta["val"].dtype == torch.int64:
        return Index(node, None)
    else:
        return None
    list_input, value = source.args[0] if named(source, "with_self_loops") else source, source.meta["val"]
    list_input = cast(fx.Node, list_input).args[0] if named(list_input, "join_edges") else list_input
    if not isinstance(list_input, fx.Node) or list_input.op != "placeholder" or value.dim() != 2:
        return None
    if value.dtype != torch.int64 or value.shape[0] != 2:
        return None
    return Index(source, row)


def is_listed(node: fx.Node) -> bool:
    """Whether an edge tensor comes as a whole list: an input, rows of edges joined with rows of loops, "is a loop"."""
    if is_call(node, aten.cat):
        return cast(int, arg(node, 1, "dim", 0)) % len(node.meta["val"].shape) == 0
    return node.op == "placeholder" or named(node, "drop_loops") or _compared_ends(node) is not None


def _compared_ends(node: fx.Node) -> fx.Node | None:
    """The edges whose two ends are compared."""
    if not is_call(node, aten.eq, aten.ne) or not all(isinstance(end, fx.Node) for end in node.args[:2]):
        return None
    ends = [index_of(cast(fx.Node, end)) for end in node.args[:2]]
    return ends[0].source if ends[0] is not None and ends[1] is not None and ends[0].source is ends[1].source else None


class TableSet:
    """The tables of one index: the graph's inputs that hold them, made when something reads them."""

    def __init__(self, builder: ModelBuilder, name: str, index: Index, host: dict[str, Any]) -> None:
        self.builder, self.name, self.index, self.host = builder, name, index, host
        self.inputs: dict[tuple[str, int | None], Value] = {}
        self.widest = 1  # bytes of the widest row gathered through it
        self.powers_of_two = False
        self.buckets: int | None = None  # how many; the first aggregation says

    def field(self, field: str, bucket: int | None = None) -> Value:
        """`position`, `counts` [N], `widths` [buckets]; for each bucket `rows` [B, R], the others [B, R, W].

        `list` [2, E] holds the edges in the order of the tables, where `places` finds them; `order` [E] and `items` say
        where they were before.
        """
        key = (field, bucket)
        if key not in self.inputs:
            place = f"{self.name}.{bucket}" if bucket is not None else self.name
            blocks, rows, width = (f"{place}.{d}" for d in ("blocks", "rows", "width"))
            dims: dict[str, list[int | str]] = {
                "others": [blocks, rows, width], "items": [blocks, rows, width], "places": [blocks, rows, width],
                "rows": [blocks, rows], "widths": [self.buckets or 1],
                "position": [self.name + ".size"], "counts": [self.name + ".size"], "list": [2, self.name + ".edges"],
                "order": [self.name + ".edges"],
            }  # fmt: skip
            dtype = FLOAT if field == "widths" else I32
            self.inputs[key] = self.builder.input(f"{place}.{field}", dtype, dims[field])
        return self.inputs[key]

    def describe(self) -> dict[str, Any]:
        """What the host needs to make the tables."""
        block = max(256, _CACHE // self.widest)
        return {
            "name": self.name, **self.host, "buckets": self.buckets or 1, "block": min(4096, block),
            "powers_of_two": self.powers_of_two, "fields": sorted({field for field, _ in self.inputs}),
        }  # fmt: skip


class TableForm:
    """All tables of a file, and how segment ops are written with them."""

    def __init__(self, walk: Walk, gm: fx.GraphModule, names: Mapping[fx.Node, str]) -> None:
        self.walk, self.names = walk, names  # names: of the inputs
        self.list_of = _edge_tensors(gm)
        self.sets: dict[Index, TableSet] = {}
        self._padded: dict[tuple[fx.Node, float, TableSet | None], Value] = {}
        self._flat: dict[tuple[fx.Node, TableSet], Value] = {}

    def table_set(self, index: fx.Node, size: int | fx.Node) -> TableSet | None:
        """The tables for an index vector and a number of segments; None where the host could not make them."""
        found = index_of(index)
        counted = host_size(size, self.names)
        if found is None or counted is None:
            return None
        if found not in self.sets:
            source, loops = found.source, None
            if named(source, "with_self_loops"):
                at = host_size(source.args[1], self.names)
                if at is None:
                    return None
                source, loops = cast(fx.Node, source.args[0]), {"kind": arg(source, 2, "loops", "one"), "nodes": at}
            host: dict[str, Any] = {"row": found.row, "self_loops": loops, "size": counted}
            if named(source, "join_edges"):
                source, host["joined"] = cast(fx.Node, source.args[0]), list(cast(list[int], source.args[1]))
            host["index"] = self.names[source]
            self.sets[found] = TableSet(self.walk.builder, f"table{len(self.sets)}", found, host)
        known = self.sets[found]
        return known if known.host["size"] == counted else None

    def segment(
        self, node: fx.Node, values: fx.Node, index: fx.Node, size: int | fx.Node, neutral: float, empty: Value,
        reduce: Callable[[Bucket, Value], Value],
    ) -> Value | None:  # fmt: skip
        """Writes a segment op; None where its edges have no table form.

        `neutral`: what free entries must hold. `reduce` writes the reduction of axis 1 of a bucket's values, in its
        body. `empty` [1, ...] is the result of a segment without elements.
        """
        tables = self.table_set(index, size)
        if tables is None or not self._writable(values, tables.index):
            return None
        walk, builder = self.walk, self.walk.builder
        if values not in self.list_of:
            tables.widest = max(tables.widest, _row_bytes(values))
        parts = []
        if tables.buckets is None:
            tables.buckets = BUCKETS_OF_CODES if empty.dtype == U8 else BUCKETS
        for number in range(tables.buckets):
            bucket = Bucket(self, tables, number)
            with builder.body() as nodes, bucket.here():
                made = reduce(bucket, bucket.free_entries_hold(values, neutral))
            inner, outer = [v for _, v in bucket.fields.values()], [v for v, _ in bucket.fields.values()]
            body = builder.graph(f"{node.name}.{number}", nodes, inner, [made])
            rows = walk.op("Scan", outer, made.dtype, body=body, num_scan_inputs=len(outer))
            parts.append(walk.reshape(rows, [-1, *walk.trailing(node)]))
        rows = walk.op("Concat", [*parts, empty], empty.dtype, axis=0)
        return walk.op("Gather", [rows, tables.field("position")], empty.dtype, axis=0)

    def describe(self) -> list[dict[str, Any]]:
        """What the host needs to make all tables."""
        return [tables.describe() for tables in self.sets.values() if tables.inputs]

    def padded(self, node: fx.Node, pad: float, tables: TableSet | None = None) -> Value:
        """A tensor of nodes or edges with one more row, of `pad`; with `tables`, of their edges in a list."""
        key = (node, pad, tables)
        if key not in self._padded:
            with self.walk.outside(), self.walk.builder.named_after(node.name):
                value = self.walk.value(node) if tables is None else self._on_list(node, tables)
                row = self.walk.constant(np.full([1, *self.walk.trailing(node)], pad, dtype=value.dtype))
                self._padded[key] = self.walk.op("Concat", [value, row], value.dtype, axis=0)
        return self._padded[key]

    def one_number(self, node: fx.Node) -> bool:
        """Whether an edge tensor is one number for each edge and computed of such: GCN's norms.

        It is then made on the whole list of edges: once for all layers, and not by small operators in every bucket.
        """
        made = node
        while is_call(made, *_COPIES, aten.reshape, aten.view, aten.unsqueeze, aten.squeeze):
            made = cast(fx.Node, made.args[0])
        if is_listed(made) or is_call(made, aten.index_select):
            return False  # a gather costs the same in the bucket

        def small(one: fx.Node) -> bool:
            if one not in self.list_of:
                return True
            if int(np.prod(self.walk.trailing(one))) != 1 or named(one, "segment_softmax") or is_call(one, *FILLED):
                return False
            begins = is_listed(one) or is_call(one, aten.index_select)
            return begins or all(small(source) for source in one.all_input_nodes)

        return small(node)

    def _on_list(self, node: fx.Node, tables: TableSet) -> Value:
        """An edge tensor [E, ...] along the host's list of edges; `one_number` of it holds."""
        walk = self.walk

        def find(one: fx.Node) -> Value | None:
            index, key = index_of(one) if one.op == "call_function" else None, (one, tables)
            if key in self._flat:
                return self._flat[key]
            if index is not None and index.source is tables.index.source:
                row = walk.constant(np.array(index.row))
                self._flat[key] = walk.op("Gather", [tables.field("list"), row], I32, axis=0)
            elif one in self.list_of and is_listed(one):
                with walk.outside():
                    value = walk.value(one)
                self._flat[key] = walk.op("Gather", [value, tables.field("order")], value.dtype, axis=0)
            elif one in self.list_of:
                self._flat[key] = walk.lower(one)
            return self._flat.get(key)

        with walk.outside():
            walk.find = find
            return walk.value(node)

    def _writable(self, node: fx.Node, index: Index) -> bool:
        """Whether all that leads to an edge tensor is done on each edge alone."""
        if index.row is None:
            return node not in self.list_of
        if node not in self.list_of:
            return False
        seen, pending = set(), [node]
        while pending:
            one = pending.pop()
            if one in seen or one not in self.list_of:
                continue
            seen.add(one)
            if self.list_of[one] is not index.source or not self._edgewise(one):
                return False
            if not is_call(one, aten.index_select, *FILLED) and not is_listed(one):
                if any(source not in self.list_of and _has_rows(source) for source in one.all_input_nodes):
                    return False  # of edges, but of no list that is known
                pending += one.all_input_nodes
        return True

    def _edgewise(self, node: fx.Node) -> bool:
        dims = self.walk.dims(node)
        if None in dims[1:]:
            return False
        if is_listed(node) or is_call(node, *EDGEWISE, *FILLED, aten.index_select):
            return True
        if named(node, *_QUANTISED, "segment_softmax"):
            return True
        rank = len(node.args[0].meta["val"].shape) if isinstance(node.args[0], fx.Node) else len(dims)
        if is_call(node, aten.reshape, aten.view, aten.unsqueeze, aten.squeeze, aten.expand, aten.permute):
            source = cast(fx.Node, node.args[0])
            if is_call(node, aten.permute) and cast(list[int], node.args[1])[0] % rank != 0:
                return False
            return source not in self.list_of or str(source.meta["val"].shape[0]) == str(node.meta["val"].shape[0])
        if is_call(node, aten.cat):
            return arg(node, 1, "dim", 0) % len(dims) != 0
        if is_call(node, aten.slice, aten.select):
            return arg(node, 1, "dim", 0) % rank != 0
        if is_call(node, aten.softmax, aten._softmax, aten.log_softmax, aten.sum, aten.mean, aten.amax, aten.amin):
            given = arguments(node)[1] if len(node.args) > 1 else None
            axes: list[int] = [given] if isinstance(given, int) else list(given or [])
            return bool(axes) and all(axis % rank != 0 for axis in axes)
        return False


class Bucket:
    """One bucket's body: edge tensors as [rows, width, ...]."""

    def __init__(self, form: TableForm, tables: TableSet, number: int) -> None:
        self.form, self.walk, self.tables, self.number = form, form.walk, tables, number
        self.fields: dict[str, tuple[Value, Value]] = {}  # name: the graph's input, the body's input
        self.local: dict[fx.Node, Any] = {}
        self.pads: dict[fx.Node, Tensor | None] = {}
        self.wanted: dict[fx.Node, float] = {}
        self._mask: Value | None = None

    @contextmanager
    def here(self) -> Iterator[None]:
        """While the block lasts, edge tensors are this bucket's."""
        walk = self.walk
        before = (walk.find, walk.lead, walk.bucket)
        walk.find, walk.lead, walk.bucket = self.find, 2, self
        try:
            yield
        finally:
            walk.find, walk.lead, walk.bucket = before

    def field(self, name: str) -> Value:
        """A table of this bucket, in its body: one block of it."""
        if name not in self.fields:
            outer = self.tables.field(name, self.number)
            self.fields[name] = (outer, self.walk.builder.fresh(name, outer.dtype))
        return self.fields[name][1]

    def over_width(self, number: float) -> Value:
        """`number` by the bucket's width: float32 [1], made in the graph for all buckets at once."""
        walk, buckets = self.walk, self.tables.buckets or 1
        key = ("over widths", self.tables.name, number)
        if key not in walk.shared:
            with walk.outside():
                each = walk.op("Div", [walk.constant(np.float32(number)), self.tables.field("widths")], FLOAT)
                parts = walk.builder.op("Split", [each, walk.indices([1] * buckets)], [FLOAT] * buckets, axis=0)
            walk.shared[key] = parts
        return walk.shared[key][self.number]

    def find(self, node: fx.Node) -> Any:
        """The bucket's form of an edge tensor; None for what is not one."""
        if node in self.local:
            return self.local[node]
        if node not in self.form.list_of or self.tables.index.row is None:
            return None
        if is_listed(node):
            made, pad = self._gather(node, "items", self.wanted.get(node, 0.0))
        elif is_call(node, aten.index_select):
            source = cast(fx.Node, node.args[0])
            index = index_of(cast(fx.Node, node.args[2]))
            assert index is not None
            if index.row == self.tables.index.row:
                made, _ = self._gather(source, "rows", self.wanted.get(node, 0.0))
                made = self.walk.op("Unsqueeze", [made, self.walk.indices([1])], made.dtype)
                pad = None
            else:
                made, pad = self._gather(source, "others", self.wanted.get(node, 0.0))
        elif self.form.one_number(node):
            made, pad = self._gather(node, "places", self.wanted.get(node, 0.0), self.tables)
        else:
            pad = self._pad(node)
            made = self.walk.lower(node)
        self.local[node], self.pads[node] = made, pad
        return made

    def ask(self, node: fx.Node, pad: float) -> Value:
        """An edge tensor that had best hold `pad` in free entries: a gather can, for nothing."""
        self.wanted.setdefault(node, pad)
        return self.walk.value(node)

    def holds(self, node: fx.Node, number: float) -> bool:
        """Whether the free entries of an edge tensor, once it is written, hold this number and nothing else."""
        pad = self.pads.get(node)
        return pad is not None and bool((pad == number).all())

    def mask(self, extra: int) -> Value:
        """True at free entries: [rows, width, 1, ...] with `extra` more axes."""
        walk = self.walk
        if self._mask is None:
            table = self.field(next((name for name in ("others", "items", "places") if name in self.fields), "items"))
            self._mask = walk.op("Equal", [table, walk.constant(np.array(FREE, I32))], np.dtype(np.bool_))
        return walk.reshape(self._mask, [0, 0, *[1] * extra]) if extra else self._mask

    def free_entries_hold(self, node: fx.Node, neutral: float) -> Value:
        """An edge tensor [rows, width, ...] with `neutral` in its free entries."""
        if self.tables.index.row is None:
            self.local[node], self.pads[node] = self._gather(node, "items", neutral)
            return cast(Value, self.local[node])
        value = self.ask(node, neutral)
        if self.holds(node, neutral):
            return value
        filler = self.walk.constant(np.array(neutral, dtype=value.dtype))
        return self.walk.op("Where", [self.mask(self.walk.rank(node) - 1), filler, value], value.dtype)

    def _gather(self, source: fx.Node, field: str, pad: float, on_list: TableSet | None = None) -> tuple[Value, Tensor]:
        """Rows of a tensor with one more behind it, and that row."""
        self.tables.widest = max(self.tables.widest, _row_bytes(source))
        padded = self.form.padded(source, pad, on_list)
        row = torch.full([1, *self.walk.trailing(source)], pad, dtype=source.meta["val"].dtype)
        return self.walk.op("Gather", [padded, self.field(field)], padded.dtype, axis=0), row

    def _pad(self, node: fx.Node) -> Tensor | None:
        """What free entries of an op's result will hold, [1, ...]; writes the operands on the way.

        The op itself says so, run on what its operands hold there. None where one of them is not known: it may be
        infinite, and a product with 0 is then no 0.
        """
        edges = _edges_of(node, self.form)
        for operand, wish in self._wishes(node).items():
            self.ask(operand, wish)
        for operand in edges:
            self.walk.any_value(operand)
        if named(node, "segment_softmax"):
            return torch.zeros([1, *self.walk.trailing(node)])  # it masks its values
        known = {one: self.pads.get(one) for one in edges}
        if named(node, "q_mul"):
            # codes are finite, whatever they are
            a, _, a_zero, b, _, b_zero, _, y_zero, low, high = arguments(node)
            if any(one in known and self.holds(one, zero) for one, zero in ((a, a_zero), (b, b_zero))):
                row = [1, *self.walk.trailing(node)]
                return torch.full(row, min(max(y_zero, low), high), dtype=torch.uint8)
        if any(pad is None for pad in known.values()):
            return None
        rows = node.meta["val"].shape[0]
        for one in node.all_input_nodes:
            if one not in known:
                value = one.meta["val"]
                if one.op == "get_attr":
                    known[one] = value_of(one)
                elif isinstance(value, torch.SymInt) and str(value) == str(rows):
                    known[one] = cast(Any, 1)
                else:
                    return None
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda one: known[one])
        with torch.no_grad():
            made = cast(Callable[..., Any], node.target)(*args, **kwargs)
        return made if isinstance(made, Tensor) and tuple(made.shape) == (1, *self.walk.trailing(node)) else None

    def _wishes(self, node: fx.Node) -> dict[fx.Node, float]:
        """What operands had best hold in free entries: what is wanted of a move's result, of factors a 0."""
        if is_call(node, *_MOVES):
            return {source: self.wanted[node] for source in _edges_of(node, self.form) if node in self.wanted}
        if is_call(node, aten.mul):
            return dict.fromkeys(_edges_of(node, self.form), 0.0)
        if named(node, "q_mul"):
            a, _, a_zero, b, _, b_zero, *_ = arguments(node)
            return {one: float(zero) for one, zero in ((a, a_zero), (b, b_zero)) if one in self.form.list_of}
        return {}


def _edges_of(node: fx.Node, form: TableForm) -> list[fx.Node]:
    return [one for one in node.all_input_nodes if one in form.list_of]


def _has_rows(node: fx.Node) -> bool:
    """Whether the first axis of a tensor, no index vector, is open."""
    value = node.meta.get("val")
    open_rows = isinstance(value, torch.Tensor) and value.dim() > 0 and type(value.shape[0]) is not int
    return open_rows and index_of(node) is None


def _row_bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    return int(np.prod([int(dim) for dim in value.shape[1:]])) * value.element_size()


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
        if not isinstance(value, torch.Tensor) or value.dim() == 0 or index_of(node) is not None:
            continue
        if is_call(node, aten.index_select) and node.args[1] in (0, -value.dim()):
            index = index_of(cast(fx.Node, node.args[2]))
            if index is not None and index.row is not None and node.args[0] not in found:
                found[node] = index.source
            continue
        if named(node, *SEGMENTS):
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
