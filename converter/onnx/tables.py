"""Aggregation without scatters (-O1): what happens on edges is written on neighbour tables, bucket by bucket.

In the IR an edge tensor is [E, ...]. Here it is never made. For a segment op over a `bgnn::neighbour_table` (which can
have one, passes/neighbour_tables.py says), everything between it and the tensors of nodes is written once for every
*bucket* of nodes (the runtime's graphs.py makes the tables), in the body of a Scan over the bucket's blocks, where an
edge tensor is [rows, width, ...]: a gather by the edges' sources reads the rows that the table names, a gather by their
targets is one row for a whole row of the table, [rows, 1, ...], and the segment op is a reduction of axis 1. Each of
these tensors fits the processor's cache.

Free entries of a table are -1: the last row of what is gathered, which holds whatever is neutral. `pads` says what an
edge tensor holds there, by the same ops run on these rows: None is "anything", and then the reduction masks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.converter.onnx.builder import ModelBuilder, Value
from bgnn.converter.onnx.walk import FLOAT, I32, Walk
from bgnn.converter.sizes import host_size
from bgnn.converter.tflite.walk import arguments
from bgnn.passes.graph import arg, calls, is_call, value_of
from bgnn.passes.neighbour_tables import Edges, Index, index_of, is_listed
from bgnn.runtime_bench.runtime.graphs import FREE

aten = torch.ops.aten
bgnn = torch.ops.bgnn

_CACHE = 512 * 1024  # bytes of one gathered block; half the second-level cache of a server's core
LOWEST = float(np.finfo(np.float32).min)

_MOVES = [
    aten.reshape, aten.view, aten.unsqueeze, aten.squeeze, aten.expand, aten.permute, aten.detach, aten.clone,
    aten.alias, aten.contiguous,
]  # fmt: skip


class TableSet:
    """The tables of one index: the graph's inputs that hold them, made when something reads them."""

    def __init__(self, builder: ModelBuilder, name: str, index: Index, host: dict[str, Any]) -> None:
        self.builder, self.name, self.index, self.host = builder, name, index, host
        self.inputs: dict[tuple[str, int | None], Value] = {}
        self.widest = 1  # bytes of the widest row gathered through it

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
                "rows": [blocks, rows], "widths": [self.host["buckets"]],
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
            "name": self.name, **self.host, "block": min(4096, block),
            "fields": sorted({field for field, _ in self.inputs}),
        }  # fmt: skip


class TableForm:
    """All tables of a file, and how segment ops are written with them."""

    def __init__(self, walk: Walk, gm: fx.GraphModule, names: Mapping[fx.Node, str]) -> None:
        self.walk = walk
        self.list_of = Edges(gm).list_of
        self.sets: dict[fx.Node, TableSet] = {}
        for node in calls(gm.graph, bgnn.neighbour_table):
            self.sets[node] = self._table_set(node, names)
        self._padded: dict[tuple[fx.Node, float], Value] = {}

    def _table_set(self, node: fx.Node, names: Mapping[fx.Node, str]) -> TableSet:
        """What a neighbour table is to the host; `names`: of the inputs."""
        index, size, buckets, powers_of_two = cast(tuple[fx.Node, Any, int, bool], node.args)
        found = index_of(index)
        assert found is not None
        source, loops = found.source, None
        if is_call(source, bgnn.with_self_loops):
            kind, nodes = arg(source, 2, "loops", "one"), host_size(source.args[1], names)
            source, loops = cast(fx.Node, source.args[0]), {"kind": kind, "nodes": nodes}
        host: dict[str, Any] = {"row": found.row, "self_loops": loops, "size": host_size(size, names)}
        if is_call(source, bgnn.join_edges):
            source, host["joined"] = cast(fx.Node, source.args[0]), list(cast(list[int], source.args[1]))
        host |= {"index": names[source], "buckets": buckets, "powers_of_two": powers_of_two}
        return TableSet(self.walk.builder, f"table{len(self.sets)}", found, host)

    def segment(
        self, node: fx.Node, values: fx.Node, index: fx.Node, neutral: float, empty: float, dtype: np.dtype,
        reduce: Callable[[Bucket, Value], Value],
    ) -> Value | None:  # fmt: skip
        """Writes a segment op; None where its index has no table.

        `neutral`: what free entries must hold. `reduce` writes the reduction of axis 1 of a bucket's values, in its
        body. `empty`, of `dtype`, is the result of a segment without elements.
        """
        if index not in self.sets:
            return None
        tables = self.sets[index]
        walk, builder = self.walk, self.walk.builder
        if values not in self.list_of:
            tables.widest = max(tables.widest, _row_bytes(values))
        parts = []
        for number in range(tables.host["buckets"]):
            bucket = Bucket(self, tables, number)
            with builder.body() as nodes, bucket.here():
                made = reduce(bucket, bucket.free_entries_hold(values, neutral))
            inner, outer = [v for _, v in bucket.fields.values()], [v for v, _ in bucket.fields.values()]
            body = builder.graph(f"{node.name}.{number}", nodes, inner, [made])
            rows = walk.op("Scan", outer, made.dtype, body=body, num_scan_inputs=len(outer))
            parts.append(walk.reshape(rows, [-1, *walk.trailing(node)]))
        parts.append(walk.constant(np.full([1, *walk.trailing(node)], empty, dtype=dtype)))
        rows = walk.op("Concat", parts, dtype, axis=0)
        return walk.op("Gather", [rows, tables.field("position")], dtype, axis=0)

    def describe(self) -> list[dict[str, Any]]:
        """What the host needs to make all tables."""
        return [tables.describe() for tables in self.sets.values() if tables.inputs]

    def padded(self, node: fx.Node, pad: float) -> Value:
        """A tensor of nodes or edges with one more row, of `pad`."""
        if (node, pad) not in self._padded:
            with self.walk.outside(), self.walk.builder.named_after(node.name):
                value = self.walk.value(node)
                row = self.walk.constant(np.full([1, *self.walk.trailing(node)], pad, dtype=value.dtype))
                self._padded[node, pad] = self.walk.op("Concat", [value, row], value.dtype, axis=0)
        return self._padded[node, pad]


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
        walk, buckets = self.walk, self.tables.host["buckets"]
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
        elif is_call(node, aten.index_select) and is_call(node.args[2], bgnn.edge_places):
            made, pad = self._gather(cast(fx.Node, node.args[0]), "places", self.wanted.get(node, 0.0))
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

    def _gather(self, source: fx.Node, field: str, pad: float) -> tuple[Value, Tensor]:
        """Rows of a tensor with one more behind it, and that row."""
        self.tables.widest = max(self.tables.widest, _row_bytes(source))
        padded = self.form.padded(source, pad)
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
        if is_call(node, bgnn.segment_softmax):
            return torch.zeros([1, *self.walk.trailing(node)])  # it masks its values
        known = {one: self.pads.get(one) for one in edges}
        if is_call(node, bgnn.q_mul):
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
        if is_call(node, bgnn.q_mul):
            a, _, a_zero, b, _, b_zero, *_ = arguments(node)
            return {one: float(zero) for one, zero in ((a, a_zero), (b, b_zero)) if one in self.form.list_of}
        return {}


def _edges_of(node: fx.Node, form: TableForm) -> list[fx.Node]:
    return [one for one in node.all_input_nodes if one in form.list_of]


def _row_bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    return int(np.prod([int(dim) for dim in value.shape[1:]])) * value.element_size()
