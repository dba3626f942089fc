"""The edges of a k-NN search become rows of neighbours: as many for each node, and a mask of those that are there.

    pyg.knn(x, y, batch) -> [2, E]              table [M, k] of the nearest rows (topk); there[M * k], or all
    edges[:, mask], values[mask]                the same rows; there and mask
    segment_max(values[E, C], targets, M)       max over j of values[M, k, C], of those that are there
    segment_sum, segment_mean, segment_softmax  likewise; by another index, of what is there

How many edges there are depends on the data: a graph with fewer than k nodes has fewer, and `knn_graph` takes the
node itself away only where it is among its nearest. What is computed for each edge by itself is computed for all rows,
and only where rows are brought together those that are not there are left out. Exact.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.converter.errors import ConversionError
from bgnn.passes import ops, user_code
from bgnn.passes.expressions import attempt
from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    compute_meta,
    constant,
    is_call,
    literal,
    remove_dead_code,
    replace,
    shape_of,
)
from bgnn.passes.recognise_self_loops import BY_VALUES

NEEDS = ("segment_sum", "segment_mean", "segment_max", "segment_softmax")
MAKES = ("segment_sum", "topk_lowest")

bgnn = torch.ops.bgnn
SEARCHES = ("pyg.knn.default", "torch_cluster.knn.default")
SEGMENTS = [bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max, bgnn.segment_softmax]
LOWEST = -3e38  # below all that is compared with it
PROBE = torch.tensor([[3, 0, 2, 2], [1, 5, 0, 4]])

# What is computed for each row by itself, if the axis of rows is not the one that is worked on.
EACH = [
    *ops.having("elementwise"), *ops.having("channel"), *ops.having("fake"), *ops.having("filling"),
    *ops.having("reduction"), aten.batch_norm, aten.expand,
]  # fmt: skip
ALONG = [aten.softmax, aten.log_softmax, aten.cat, aten.stack, aten.slice, aten.select, aten.flip]
MADE = [aten.new_zeros, aten.new_ones, aten.new_full]
MOVED = [
    aten.select, aten.flip, aten.reshape, aten.slice, aten.permute, aten.cat, aten.stack, aten.index_select,
]  # fmt: skip
SHAPED = [aten.reshape, aten.expand, *ops.having("filling", "-elementwise")]
SIZES = [operator.add, operator.sub, operator.mul, aten.sym_size]


def is_search(node: fx.Node) -> bool:
    """Whether a node is PyG's k-NN search."""
    return node.op == "call_function" and str(node.target) in SEARCHES


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites every search and all that is computed on its edges."""
    result = PassResult()
    for node in list(gm.graph.nodes):
        if is_search(node):
            _Rows(node).rewrite()
            result.rewrites += 1
    if result.rewrites:
        remove_dead_code(gm)
    return result


class _Rows:
    """One search: its table of neighbours, and what is computed on its edges."""

    def __init__(self, search: fx.Node) -> None:
        self.search = search
        x, y = cast(fx.Node, search.args[0]), cast(fx.Node, search.args[1])
        self.k, self.count = cast(int, search.args[4]), shape_of(y)[0]
        groups = [_group(arg(search, 2, "ptr_x")), _group(arg(search, 3, "ptr_y"))]
        self.index = self._table(x, y, groups, bool(arg(search, 5, "cosine", False)))
        table, first = self.index, None
        self.filled = False  # whether a row that is not there repeats the nearest, so that no maximum changes
        if groups[0] is not None and groups[1] is not None:
            of = self._call(aten.index_select.default, groups[0], 0, self._flat(table))
            first = self._call(aten.eq.Tensor, of, self._each(groups[1]))
            self.filled = x is y and groups[0] is groups[1]
            if self.filled:  # a node is of its own graph
                zero = constant(search, torch.zeros(1, dtype=torch.int64), "nearest")
                nearest = self._call(aten.index_select.default, table, 1, zero)
                table = self._call(aten.where.self, self._shaped(first, (-1, self.k)), table, nearest)
        self.first = first
        size = self._call(aten.sym_size.int, y, 0) if isinstance(self.count, torch.SymInt) else self.count
        rows = self._call(aten.arange.default, size, dtype=torch.int64, device=torch.device("cpu"))
        self.rows = [self._each(rows), self._flat(table)]
        self.edges = self._call(aten.stack.default, self.rows)
        length = str(shape_of(search)[1])
        self.there: dict[str, fx.Node | None] = {length: first}  # by how many edges there are, which rows they are
        self.at: dict[fx.Node, str] = {self.edges: length}  # of what is computed on edges: how many
        self.axis: dict[fx.Node, int] = {self.edges: 1}

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return call(self.search, target, *args, **kwargs)

    def _shaped(self, x: fx.Node, sizes: tuple[int, ...]) -> fx.Node:
        return self._call(aten.reshape.default, x, list(sizes))

    def _flat(self, x: fx.Node) -> fx.Node:
        return self._shaped(x, (-1,))

    def _each(self, x: fx.Node) -> fx.Node:
        """`[M]` repeated for each neighbour: `[M * k]`."""
        return self._flat(self._call(aten.expand.default, self._shaped(x, (-1, 1)), [-1, self.k]))

    def _table(self, x: fx.Node, y: fx.Node, groups: list[fx.Node | None], cosine: bool) -> fx.Node:
        """The nearest rows, int64 `[M, k]`."""
        if cosine:
            turned = self._call(aten.permute.default, self._normalised(x), [1, 0])
            score = self._call(aten.matmul.default, self._normalised(y), turned)
        else:
            score = self._call(aten.cdist.default, y, x, 2.0, 2)  # by differences: no matrix product
        if groups[0] is not None and groups[1] is not None:
            apart = self._call(aten.ne.Tensor, self._shaped(groups[1], (-1, 1)), self._shaped(groups[0], (1, -1)))
            far = constant(self.search, torch.tensor(float("-inf" if cosine else "inf")), "far")
            score = self._call(aten.where.self, apart, far, score)
        return self._call(operator.getitem, self._call(bgnn.topk_lowest.default, score, self.k, 1, cosine), 1)

    def _normalised(self, x: fx.Node) -> fx.Node:
        square = self._call(aten.sum.dim_IntList, self._call(aten.mul.Tensor, x, x), [1], True)
        length = self._call(aten.clamp.default, self._call(aten.sqrt.default, square), 1e-12)
        return self._call(aten.div.Tensor, x, length)

    def rewrite(self) -> None:
        """Puts the rows in the place of the edges, and walks over all that follows, in the graph's order."""
        search, name = self.search, self.search.name
        after = [n for n in search.graph.nodes if n > search]
        search.replace_all_uses_with(self.edges)
        search.graph.erase_node(search)
        self.index.name = name
        changed = {self.edges}
        for node in after:
            if changed.isdisjoint(node.all_input_nodes):
                continue
            changed.add(node)
            if node.op == "output":
                for n in node.all_input_nodes:
                    if self._partly(n):
                        raise ConversionError(self._refusal(n, "is an output"))
                continue
            new = self._changed(node)
            if new is not None:
                changed.add(new)
                replace(node, new)
            elif not any(tag in getattr(node.target, "tags", ()) for tag in BY_VALUES) and not is_search(node):
                compute_meta(node)

    def _changed(self, node: fx.Node) -> fx.Node | None:
        """What takes the place of a node that depends on the edges; None if it stays, on rows."""
        value = node.meta.get("val")
        if is_call(node, aten.cat):
            self._join(node)
        mask = _mask(node)
        if mask in self.at and self.at[mask] in self.there:
            return self._picked(node, mask)
        if is_call(node, *SEGMENTS):
            new = self._segment(node)
            if new is not None:
                return new
        if is_call(node, aten.index_select) and node.args[2] is self.rows[0] and node.args[1] == 0:
            new = self._repeated(node)
            if new is not None:
                return new
        for row, expected in zip(self.rows, PROBE, strict=True):
            if node is not row and self._is(node, expected):
                return row
        if self._is(node, PROBE.flip(0)):
            new = call(node, aten.stack.default, [self.rows[1], self.rows[0]])
            self.at[new], self.axis[new] = str(shape_of(node)[1]), 1
            return new
        if isinstance(value, Tensor):
            lengths = [str(size) for size in value.shape if str(size) in self.there]
            parts = [n for n in node.all_input_nodes if self._partly(n)]
            if parts and not is_call(node, *SEGMENTS) and not self._is_alone(node, lengths):
                raise ConversionError(self._refusal(node, "takes rows together"))
            if lengths:
                self.at[node], self.axis[node] = lengths[0], _axis(node, lengths[0])
        elif isinstance(value, torch.SymInt) and self._counts(node):
            raise ConversionError(self._refusal(node, "counts them"))
        return None

    def _is(self, node: fx.Node, expected: Tensor) -> bool:
        """Whether a node is, of all edges, what `expected` is of `PROBE`."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.is_floating_point() or value.dim() != expected.dim():
            return False
        if str(value.shape[-1]) not in self.there or not is_call(node, *MOVED):
            return False
        found = attempt(node, {self.edges: PROBE, self.rows[0]: PROBE[0], self.rows[1]: PROBE[1]})
        return found is not None and torch.equal(found, expected)

    def _repeated(self, node: fx.Node) -> fx.Node | None:
        """Each node's own row, for all of its neighbours."""
        x = cast(fx.Node, node.args[0])
        if str(shape_of(x)[0]) != str(self.count) or literal(shape_of(x)) is None:
            return None
        length, rest = next(str(size) for size in shape_of(node) if str(size) in self.there), shape_of(x)[1:]
        rows = call(node, aten.reshape.default, x, literal((self.count, 1, *rest)))
        rows = call(node, aten.expand.default, rows, [-1, self.k, *rest])
        new = call(node, aten.reshape.default, rows, [-1, *rest])
        self.at[new], self.axis[new] = length, 0
        return new

    def _partly(self, node: fx.Node) -> bool:
        """Whether a node has a row for each edge, and not all of them are there."""
        return node in self.at and self.there[self.at[node]] is not None

    def _counts(self, size: fx.Node) -> bool:
        """Whether the number of edges is more than a size of tensors."""
        if self.there.get(str(size.meta["val"]), self.first) is None:
            return False
        return any(not is_call(user, *SHAPED, *SIZES) for user in size.users)

    def _refusal(self, node: fx.Node, what: str) -> str:
        return (
            f"{user_code.called(node)}{user_code.where(node)} {what}, of the edges of a k-NN graph, whose number "
            "depends on the data: reduce them by node (MessagePassing, scatter), as its layers do"
        )

    def _is_alone(self, node: fx.Node, lengths: list[str]) -> bool:
        """Whether a node computes each row from the same row of what it takes."""
        if is_call(node, *MADE):
            return True
        if len(lengths) != 1:
            return False
        axis = _axis(node, lengths[0])
        if is_call(node, *EACH):
            return True
        if is_call(node, aten.cat) and axis == arg(node, 1, "dim", 0) % len(shape_of(node)):
            return True  # see _join
        if is_call(node, *ALONG):
            dims = arg(node, 1, "dims" if is_call(node, aten.flip) else "dim", 0)
            rank = len(shape_of(node)) + is_call(node, aten.select)
            before = axis + (is_call(node, aten.select) and dims % rank <= axis)
            return before not in [d % rank for d in ([dims] if isinstance(dims, int) else dims)]
        x = cast(fx.Node, node.args[0])
        if is_call(node, aten.permute):
            return True
        if is_call(node, aten.reshape):
            return x in self.at and _size_of(shape_of(x)[: self.axis[x]]) == _size_of(shape_of(node)[:axis])
        if is_call(node, aten.linear):
            return x in self.at and axis != len(shape_of(node)) - 1
        if is_call(node, aten.matmul, aten.mm, aten.bmm):
            within = axis < len(shape_of(node)) - 2
            return x in self.at and (within or (axis == len(shape_of(node)) - 2 and node.args[1] not in self.at))
        if is_call(node, aten.index_select):
            picks = node.args[2] in self.at
            return picks != (x in self.at) and (not picks or axis == cast(int, node.args[1]) % len(shape_of(node)))
        return False

    def _picked(self, node: fx.Node, mask: fx.Node) -> fx.Node:
        """Some of the edges: the same rows, and fewer of them there."""
        values, index = cast(tuple[fx.Node, list[Any]], node.args[:2])
        length = str(shape_of(node)[len(index) - 1])
        before = self.there[self.at[mask]]
        if length not in self.there:
            both = mask if before is None else call(node, aten.logical_and.default, before, mask)
            self.there[length] = both
        new = call(node, aten.alias.default, values)
        self.at[new], self.axis[new] = length, self.axis[values]
        return new

    def _join(self, node: fx.Node) -> None:
        """Notes which rows are there of edges with more behind them (self-loops)."""
        parts, axis = cast(list[fx.Node], node.args[0]), arg(node, 1, "dim", 0) % len(shape_of(node))
        on_edges = [part for part in parts if part in self.at and self.axis[part] == axis]
        length = str(shape_of(node)[axis])
        if not on_edges or length in self.there:
            return
        there = [self.there[self.at[part]] if part in on_edges else None for part in parts]
        if any(one is not None for one in there):
            sizes = [call(node, aten.sym_size.int, part, axis) for part in parts]
            cpu = torch.device("cpu")
            ones = [call(node, aten.full.default, [n], True, dtype=torch.bool, device=cpu) for n in sizes]
            both = [one or every for one, every in zip(there, ones, strict=True)]
            self.there[length] = call(node, aten.cat.default, both, 0)
        else:
            self.there[length] = None

    def _segment(self, node: fx.Node) -> fx.Node | None:
        values, index, n = cast(tuple[fx.Node, fx.Node, Any], node.args)
        if values not in self.at:
            return None
        there = self.there[self.at[values]]
        count = n.meta["val"] if isinstance(n, fx.Node) else n
        if index is self.rows[0] and str(count) == str(self.count):
            return self._dense(node, values, there)
        return None if there is None else self._masked(node, values, index, n, there)

    def _dense(self, node: fx.Node, values: fx.Node, there: fx.Node | None) -> fx.Node:
        """A reduction over each node's neighbours."""
        rest = shape_of(values)[1:]
        rows = call(node, aten.reshape.default, values, literal((self.count, self.k, *rest)))
        mask = None
        if there is not None and not (is_call(node, bgnn.segment_max) and there is self.first and self.filled):
            mask = call(node, aten.reshape.default, there, literal((self.count, self.k, *[1] * len(rest))))
        if is_call(node, bgnn.segment_softmax):
            if mask is not None:
                rows = _where(node, mask, rows, LOWEST)
            shares = call(node, aten.softmax.int, rows, 1)
            new = call(node, aten.reshape.default, shares, literal((-1, *rest)))
            self.at[new], self.axis[new] = self.at[values], 0
            return new
        if is_call(node, bgnn.segment_max):
            if mask is None:
                return call(node, aten.amax.default, rows, [1])
            largest = call(node, aten.amax.default, _where(node, mask, rows, LOWEST), [1])
            some = call(node, aten.gt.Scalar, self._number(node, mask), 0)
            return _where(node, some, largest, 0.0)
        if mask is None:
            mean = is_call(node, bgnn.segment_mean)
            return call(node, aten.mean.dim if mean else aten.sum.dim_IntList, rows, [1])
        total = call(node, aten.sum.dim_IntList, _where(node, mask, rows, 0.0), [1])
        if is_call(node, bgnn.segment_sum):
            return total
        return call(node, aten.div.Tensor, total, self._at_least_one(node, self._number(node, mask)))

    def _number(self, node: fx.Node, mask: fx.Node) -> fx.Node:
        """How many neighbours are there, f32, in the mask's shape without axis 1."""
        return call(node, aten.sum.dim_IntList, _as_float(node, mask), [1])

    def _at_least_one(self, node: fx.Node, number: fx.Node) -> fx.Node:
        return call(node, aten.clamp.default, number, 1.0)

    def _masked(self, node: fx.Node, values: fx.Node, index: fx.Node, n: Any, there: fx.Node) -> fx.Node:
        """A reduction by another index, over what is there."""
        ones = [1] * (len(shape_of(values)) - 1)
        mask = call(node, aten.reshape.default, there, [-1, *ones])
        numbers = call(node, bgnn.segment_sum.default, _as_float(node, mask), index, n)
        if is_call(node, bgnn.segment_sum, bgnn.segment_mean):
            total = call(node, bgnn.segment_sum.default, _where(node, mask, values, 0.0), index, n)
            if is_call(node, bgnn.segment_sum):
                return total
            return call(node, aten.div.Tensor, total, self._at_least_one(node, numbers))
        lowered = _where(node, mask, values, LOWEST)
        new = call(node, node.target, lowered, index, n)
        if is_call(node, bgnn.segment_softmax):
            self.at[new], self.axis[new] = self.at[values], 0
            return new
        return _where(node, call(node, aten.gt.Scalar, numbers, 0), new, 0.0)


def _group(ptr: fx.Node | None) -> fx.Node | None:
    """The graph of each row, behind where graphs begin."""
    if ptr is None or is_call(ptr, bgnn.group_starts):
        return cast(fx.Node, ptr.args[0]) if ptr is not None else None
    raise ConversionError(
        f"{user_code.called(ptr)}{user_code.where(ptr)} tells a k-NN search where each graph begins: call PyG's "
        "knn_graph or knn with the batch vector"
    )


def _mask(node: fx.Node) -> Any:
    """The one mask `[E]` of `values[mask]`, `edges[:, mask]`; else None."""
    if not is_call(node, aten.index):
        return None
    masks = [mask for mask in cast(list[Any], node.args[1]) if mask is not None]
    one = len(masks) == 1 and masks[0].meta["val"].dtype == torch.bool and masks[0].meta["val"].dim() == 1
    return masks[0] if one else None


def _axis(node: fx.Node, length: str) -> int:
    return next(axis for axis, size in enumerate(shape_of(node)) if str(size) == length)


def _size_of(sizes: tuple[Any, ...]) -> Any:
    product: Any = 1
    for size in sizes:
        product = product * size
    return product


def _as_float(node: fx.Node, mask: fx.Node) -> fx.Node:
    return call(node, aten._to_copy.default, mask, dtype=torch.float32)


def _where(node: fx.Node, mask: fx.Node, values: fx.Node, other: float) -> fx.Node:
    number = torch.tensor(other, dtype=values.meta["val"].dtype)
    return call(node, aten.where.self, mask, values, constant(node, number, "left_out"))
