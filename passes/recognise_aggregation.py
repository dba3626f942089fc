"""Message passing, as PyG leaves it in a traced graph: scatters over repeated indices become segment reductions.

    scatter_add(zeros[n, F], 0, index[E] repeated F times, values[E, F])        segment_sum(values, index, n)
    scatter_reduce(zeros, 0, index..., values, "amax", include_self=False)      segment_max
    gather(x, 0, index[E] repeated F times)                                     index_select(x, 0, index)
    segment_sum(values) / clamp(segment_sum(ones), min=1)                       segment_mean
    segment_max(values[n * k, F], [0, 0, 0, 1, 1, 1, ...])                      amax of values[n, k, F]
    exp(v - max[index]) / (segment_sum(exp) + 1e-16)[index]                     segment_softmax

The last is found by what it computes: the part of the graph is run on small graphs with loops, double edges and
isolated nodes, and compared with the op. Exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import fixed_edges
from bgnn.passes.canonicalise import reshape
from bgnn.passes.expressions import Tried, attempt
from bgnn.passes.graph import (
    PassResult,
    Rule,
    above,
    arg,
    aten,
    call,
    constant,
    is_call,
    is_constant,
    literal,
    rewrite,
    shape_of,
    value_of,
)
from bgnn.passes.recognise_self_loops import PROBES

NEEDS = ("rows of edges",)
MAKES = ("segment_sum", "segment_mean", "segment_max", "segment_softmax")

bgnn = torch.ops.bgnn

ZEROS = [aten.new_zeros, aten.zeros, aten.zeros_like, aten.full, aten.new_full, aten.full_like]
SCATTERS = [aten.scatter_add, aten.scatter_reduce, aten.index_add, aten.index_reduce, aten.index_put]
ONES = [aten.new_ones, aten.ones, aten.ones_like, aten.full, aten.new_full, aten.full_like]


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces every aggregation and softmax over neighbours."""
    result = rewrite(gm, [([aten.div], _fixed_mean)])
    return rewrite(gm, RULES, result, again=True)


def is_filled(node: Any, value: float, makers: Sequence[Any]) -> bool:
    """Whether `node` is a tensor of one number, made of sizes alone, or a constant where those are known."""
    while is_call(node, aten.permute):
        node = cast(fx.Node, node.args[0])
    if is_constant(node):
        return bool((value_of(node) == value).all())
    if not is_call(node, *makers):
        return False
    if is_call(node, aten.full, aten.full_like):
        return cast(bool, arg(node, 1, "fill_value") == value)
    if is_call(node, aten.new_full):
        return cast(bool, arg(node, 2, "fill_value") == value)
    return True


def _size_of(node: fx.Node, dim: int, before: fx.Node) -> Any:
    """The size of an axis of a tensor made of sizes, as its argument was: a node or a number."""
    size = shape_of(node)[dim]
    if isinstance(size, int):
        return size
    if not is_call(node, aten.new_zeros, aten.new_full, aten.zeros, aten.full):
        return call(before, aten.sym_size.int, node, dim)
    position = 1 if is_call(node, aten.new_zeros, aten.new_full) else 0
    return cast(Any, node.args[position])[dim]


def _one_index(index: fx.Node, dim: int, before: fx.Node) -> fx.Node | Tensor | None:
    """The index `[E]` behind one that is repeated over all axes but `dim`; its numbers if the model holds them."""
    edges, column = shape_of(index)[dim], None
    while is_call(index, aten.expand, aten.reshape):
        source = cast(fx.Node, index.args[0])
        shape = shape_of(source)
        if all(size == 1 for axis, size in enumerate(shape_of(index)) if axis != dim):
            column = index
        if is_call(index, aten.expand):
            dim -= len(shape_of(index)) - len(shape)
        elif any(size != 1 for axis, size in enumerate(shape_of(index)) if axis != dim):
            return None
        else:
            dim = next((axis for axis, size in enumerate(shape) if size is edges or bool(size == edges)), -1)
        if dim < 0 or not bool(shape[dim] == edges):  # made of a table: the column itself
            return None if column is None else reshape(before, column, (edges,))
        index = source
    if is_constant(index) and index.meta["val"].dtype == torch.int64:
        columns = value_of(index).movedim(dim, 0).reshape(edges, -1)
        return columns[:, 0] if columns.numel() and bool((columns == columns[:, :1]).all()) else None
    return index if len(shape_of(index)) == 1 and shape_of(index)[0] == edges else None


def _fixed_mean(node: fx.Node) -> fx.Node | None:
    """A sum over edges that the model holds by the number of each node's edges, at least 1."""
    total, count = node.args[:2]
    return _segment(total, node) if is_call(total, *SCATTERS) and is_constant(count) else None


def _segment(node: Any, divided: fx.Node | None = None) -> fx.Node | None:
    """A reduction of rows by an index, onto a tensor that may hold values itself; `divided`: the mean to be made."""
    if is_call(node, aten.index_put):
        base, indices, values = cast(tuple[fx.Node, list[Any], fx.Node], node.args[:3])
        if not arg(node, 3, "accumulate", False) or len(indices) != 1 or indices[0] is None:
            return None
        dim, index, how = 0, cast(fx.Node, indices[0]), "sum"
    else:
        base, dim, index, values = cast(tuple[fx.Node, int, fx.Node, fx.Node], node.args[:4])
        how = cast(str, node.args[4]) if is_call(node, aten.scatter_reduce, aten.index_reduce) else "sum"
    alone = arg(node, 5, "include_self", True) is False
    dim %= max(len(shape_of(values)), 1)
    if index.meta["val"].dtype == torch.bool or not shape_of(values):
        return None
    one = _one_index(index, dim if len(shape_of(index)) > 1 else 0, node)
    if one is None or _but(shape_of(base), dim) != _but(shape_of(values), dim):
        return None
    if len(shape_of(index)) > 1 and _but(shape_of(index), dim) != _but(shape_of(values), dim):
        return None  # not all columns
    n = _size_of(base, dim, node)
    if divided is not None and not isinstance(one, Tensor):
        return None
    if isinstance(one, Tensor):
        if not isinstance(n, int) or literal(shape_of(values)) is None or one.numel() != shape_of(values)[dim]:
            return None
        count = torch.bincount(one, minlength=n).float().reshape(-1, *[1] * (len(shape_of(values)) - dim - 1))
        reduce = partial(fixed_edges.reduced, node, dim, one, n)
        if divided is None:
            return _reduced(node, base, values, how, alone, reduce, lambda: constant(node, count, "degrees"))
        shape, given = shape_of(divided), value_of(cast(fx.Node, divided.args[1]))
        plain = how == "sum" and is_filled(base, 0, ZEROS) and node.kwargs.get("alpha", 1) == 1
        fits = given.dim() <= len(shape) and torch.equal(given.expand(shape), count.clamp(min=1).expand(shape))
        return reduce(values, "mean") if plain and fits else None
    if dim:  # the same with the nodes' axis as the first
        order = [dim, *(axis for axis in range(len(shape_of(values))) if axis != dim)]
        base, values = (call(node, aten.permute.default, x, order) for x in (base, values))
        found = _segments(node, base, values, one, n, how, alone)
        back = [order.index(axis) for axis in range(len(order))]
        return None if found is None else call(node, aten.permute.default, found, back)
    return _segments(node, base, values, one, n, how, alone)


def _but(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])


def _segments(
    node: fx.Node, base: fx.Node, values: fx.Node, one: fx.Node, n: Any, how: str, alone: bool
) -> fx.Node | None:  # fmt: skip
    """A reduction of rows by an index that is computed, or an input."""
    if shape_of(one)[0] != shape_of(values)[0]:  # a scatter takes as many rows as the index has
        if is_call(node, aten.index_add, aten.index_put, aten.index_reduce):
            return None
        end = call(node, aten.sym_size.int, one, 0)
        values = _first_rows(node, values, end, shape_of(one)[0])
    if not values.meta["val"].is_floating_point():
        return _counted(node, base, one, values, n) if how == "sum" else None
    ops = {"sum": bgnn.segment_sum, "mean": bgnn.segment_mean, "amax": bgnn.segment_max}

    def reduce(what: fx.Node, by: str) -> fx.Node:
        return call(node, ops[by].default, what, one, n)

    def counts() -> fx.Node:
        edges = shape_of(values)[0]
        sizes = [edges if isinstance(edges, int) else call(node, aten.sym_size.int, values, 0)]
        sizes += [1] * (len(shape_of(values)) - 1)
        kind = values.meta["val"].dtype
        ones = call(node, aten.full.default, sizes, 1.0, dtype=kind, device=torch.device("cpu"))
        return reduce(ones, "sum")

    return _reduced(node, base, values, how, alone, reduce, counts)


def _reduced(
    node: fx.Node, base: fx.Node, values: fx.Node, how: str, alone: bool,
    reduce: Callable[[fx.Node, str], fx.Node], counts: Callable[[], fx.Node],
) -> fx.Node | None:  # fmt: skip
    """A reduction in terms of sums, means and maxima: with what `base` holds, or without (`alone`)."""
    if not values.meta["val"].is_floating_point() or how not in ("sum", "mean", "amax", "amin"):
        return None
    if node.kwargs.get("alpha", 1) != 1:
        values = call(node, aten.mul.Tensor, values, node.kwargs["alpha"])
    if how == "amin":
        largest = reduce(call(node, aten.neg.default, values), "amax")
        result = call(node, aten.neg.default, largest)
    else:
        result = reduce(values, "sum" if how == "mean" and not alone else how)
    return _onto(node, base, result, how, alone, counts)


def _each_row(node: fx.Node) -> fx.Node | None:
    """A reduction by `[0, 0, 0, 1, 1, 1, ...]`, k times each of n rows: over axis 1 of `[n, k, ...]`."""
    values, index, n = cast(tuple[fx.Node, fx.Node, Any], node.args)
    tried = Tried()
    count = n.meta["val"] if isinstance(n, fx.Node) else n
    edges, rows = shape_of(index)[0], tried.size(count)
    if is_call(index, aten.reshape) and rows and tried.size(edges) % rows == 0:
        k = tried.size(edges) // rows
        rest = shape_of(values)[1:]
        known = attempt(index, tried.known(node.graph))
        wanted = torch.arange(rows).repeat_interleave(k)
        sizes = literal((count, k, *rest))
        if known is None or not torch.equal(known, wanted) or str(edges) != str(count * k) or sizes is None:
            return None
        table = call(node, aten.reshape.default, values, sizes)
        if is_call(node, bgnn.segment_max):
            return call(node, aten.amax.default, table, [1])
        mean = is_call(node, bgnn.segment_mean)
        return call(node, aten.mean.dim if mean else aten.sum.dim_IntList, table, [1])
    return None


def _rows_gathered(node: fx.Node) -> fx.Node | None:
    """Whole rows, by an index that is repeated for each column."""
    x, dim, index = cast(tuple[fx.Node, int, fx.Node], node.args[:3])
    dim %= max(len(shape_of(x)), 1)
    if not shape_of(index) or _but(shape_of(index), dim) != _but(shape_of(x), dim):
        return None
    one = _one_index(index, dim, node)
    if one is None or isinstance(one, Tensor):
        return None
    return call(node, aten.index_select.default, x, dim, one)


def _first_rows(node: fx.Node, values: fx.Node, end: fx.Node, count: Any) -> fx.Node:
    """The first `count` rows of `values`, a number that `end` gives when the file runs."""
    with node.graph.inserting_before(node):
        rows = node.graph.call_function(aten.slice.Tensor, (values, 0, 0, end))
    value = values.meta["val"]
    shape = [count, *value.shape[1:]]
    rows.meta = {**node.meta, "val": torch.empty(shape, dtype=value.dtype, device="meta")}
    return rows


def _onto(
    node: fx.Node, base: fx.Node, result: fx.Node, how: str, alone: bool, counts: Callable[[], fx.Node]
) -> fx.Node:  # fmt: skip
    """What `base` becomes: with `alone`, its rows count only where nothing is reduced to them."""
    if is_filled(base, 0, ZEROS) and (alone or how == "sum"):
        return result  # a segment without elements is 0
    if how == "sum" and not alone:
        return call(node, aten.add.Tensor, base, result)
    if how == "mean" and not alone:
        both = call(node, aten.add.Tensor, base, result)
        return call(node, aten.div.Tensor, both, call(node, aten.add.Tensor, counts(), 1))
    if not alone:
        extreme = aten.maximum.default if how == "amax" else aten.minimum.default
        result = call(node, extreme, base, result)
    some = call(node, aten.gt.Scalar, counts(), 0)
    return call(node, aten.where.self, some, result, base)


def _counted(node: fx.Node, base: fx.Node, index: fx.Node, values: fx.Node, n: Any) -> fx.Node | None:
    """Elements counted in whole numbers: exact as a float sum up to 2^24 of them in a segment."""
    if not is_filled(base, 0, ZEROS) or not is_filled(values, 1, ONES):
        return None
    ones = call(node, aten._to_copy.default, values, dtype=torch.float32)
    total = call(node, bgnn.segment_sum.default, ones, index, n)
    return call(node, aten._to_copy.default, total, dtype=node.meta["val"].dtype)


def _times_one(node: fx.Node) -> fx.Node | None:
    """`x * ones` of x's own shape, as edges without weights have it."""
    for x, other in (node.args[:2], tuple(reversed(node.args[:2]))):
        if isinstance(x, fx.Node) and is_filled(other, 1, ONES):
            val = x.meta["val"]
            if shape_of(x) == shape_of(node) and val.dtype == node.meta["val"].dtype:
                return x
    return None


def _mean(node: fx.Node) -> fx.Node | None:
    total, count = node.args[:2]
    while is_call(count, aten.reshape, aten.expand):
        count = cast(fx.Node, count).args[0]
    if not is_call(total, bgnn.segment_sum) or not is_call(count, aten.clamp, aten.clamp_min):
        return None
    values, index, n = cast(fx.Node, total).args
    ones, least = cast(fx.Node, count).args[0], arg(cast(fx.Node, count), 1, "min")
    if least != 1 or arg(cast(fx.Node, count), 2, "max") is not None or not is_call(ones, bgnn.segment_sum):
        return None
    ones = cast(fx.Node, ones)
    if not is_filled(ones.args[0], 1, ONES) or ones.args[1] is not index or ones.args[2] is not n:
        return None
    return call(node, bgnn.segment_mean.default, values, index, n)


def _softmax(node: fx.Node) -> fx.Node | None:
    powers = node.args[0]
    if not is_call(powers, aten.exp):
        return None
    difference = cast(fx.Node, powers).args[0]
    if not is_call(difference, aten.sub):
        return None
    values = cast(fx.Node, cast(fx.Node, difference).args[0])
    below = above(node, through=lambda n: n is not values)
    found = next((n for n in below if n is not values and is_call(n, bgnn.segment_sum)), None)
    if found is None:
        return None
    index, n = cast(tuple[fx.Node, Any], found.args[1:])
    generator = torch.Generator().manual_seed(0)
    for nodes, pairs in PROBES:
        target = torch.tensor(pairs, dtype=torch.int64)[1]
        shape = [len(target), *shape_of(values)[1:]]
        probe = 5 * torch.randn(shape, generator=generator)
        known: dict[fx.Node, Any] = {values: probe, index: target, **({n: nodes} if isinstance(n, fx.Node) else {})}
        given = attempt(node, known)
        if given is None or not torch.allclose(given, bgnn.segment_softmax(probe, target, nodes), 1e-6, 1e-7):
            return None
    return call(node, bgnn.segment_softmax.default, values, index, n)


RULES: list[tuple[Sequence[Any], Rule]] = [
    (SCATTERS, _segment),
    ([aten.gather], _rows_gathered),
    ([aten.mul], _times_one),
    ([aten.div], _mean),
    ([aten.div], _softmax),
    ([bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max], _each_row),
]
