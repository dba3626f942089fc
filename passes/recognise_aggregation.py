"""Message passing, as PyG leaves it in a traced graph: scatters over repeated indices become segment reductions.

    scatter_add(zeros[n, F], 0, index[E] repeated F times, values[E, F])        segment_sum(values, index, n)
    scatter_reduce(zeros, 0, index..., values, "amax", include_self=False)      segment_max
    segment_sum(values) / clamp(segment_sum(ones), min=1)                       segment_mean
    segment_max(values[n * k, F], [0, 0, 0, 1, 1, 1, ...])                      amax of values[n, k, F]
    exp(v - max[index]) / (segment_sum(exp) + 1e-16)[index]                     segment_softmax

The last is found by what it computes: the part of the graph is run on small graphs with loops, double edges and
isolated nodes, and compared with the op. Exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from bgnn.passes.expressions import Tried, attempt
from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    calls,
    is_call,
    is_constant,
    literal,
    remove_dead_code,
    replace,
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
    result = PassResult()
    for targets, rule in (
        (SCATTERS, _segment),
        ([aten.mul], _times_one),
        ([aten.div], _mean),
        ([aten.div], _softmax),
        ([bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max], _each_row),
    ):
        for node in calls(gm.graph, *targets):
            new = rule(node)
            if new is not None:
                replace(node, new)
                result.rewrites += 1
    remove_dead_code(gm)
    return result


def is_filled(node: Any, value: float, makers: Sequence[Any]) -> bool:
    """Whether `node` is a tensor of one number, made of sizes alone, or a constant where those are known."""
    if is_constant(node):
        return bool((value_of(node) == value).all())
    if not is_call(node, *makers):
        return False
    if is_call(node, aten.full, aten.full_like):
        return cast(bool, arg(node, 1, "fill_value") == value)
    if is_call(node, aten.new_full):
        return cast(bool, arg(node, 2, "fill_value") == value)
    return True


def _first_size(node: fx.Node, before: fx.Node) -> Any:
    """The size of axis 0 of a tensor made of sizes, as its argument was: a node or a number."""
    if is_constant(node):
        return shape_of(node)[0]
    if not is_call(node, aten.new_zeros, aten.new_full, aten.zeros, aten.full):
        size = shape_of(node)[0]
        return size if isinstance(size, int) else call(before, aten.sym_size.int, node, 0)
    position = 1 if is_call(node, aten.new_zeros, aten.new_full) else 0
    return cast(Any, node.args[position])[0]


def _one_index(index: fx.Node, before: fx.Node) -> fx.Node | None:
    """The index `[E]` behind one that is repeated over trailing axes."""
    edges = shape_of(index)[0]
    found, column = (index if len(shape_of(index)) == 1 else None), None
    while is_call(index, aten.expand, aten.reshape):
        shape = shape_of(index)
        if shape[0] != edges or (is_call(index, aten.reshape) and any(size != 1 for size in shape[1:])):
            break
        column = index if all(size == 1 for size in shape[1:]) else column
        index = cast(fx.Node, index.args[0])
        if len(shape_of(index)) == 1 and shape_of(index)[0] == edges:
            found = index
    if found is None and column is not None:
        return call(before, aten.reshape.default, column, [-1])
    return found


def _segment(node: fx.Node) -> fx.Node | None:
    """A reduction of rows by an index, onto a tensor that may hold values itself."""
    if is_call(node, aten.index_put):
        base, indices, values = cast(tuple[fx.Node, list[Any], fx.Node], node.args[:3])
        if not arg(node, 3, "accumulate", False) or len(indices) != 1 or indices[0] is None:
            return None
        dim, index, how = 0, cast(fx.Node, indices[0]), "sum"
    else:
        base, dim, index, values = cast(tuple[fx.Node, int, fx.Node, fx.Node], node.args[:4])
        how = cast(str, node.args[4]) if is_call(node, aten.scatter_reduce, aten.index_reduce) else "sum"
    alone = arg(node, 5, "include_self", True) is False
    if dim % max(len(shape_of(values)), 1) != 0 or index.meta["val"].dtype == torch.bool:
        return None
    one = _one_index(index, node)
    if one is None or shape_of(base)[1:] != shape_of(values)[1:]:
        return None
    if len(shape_of(index)) > 1 and shape_of(index)[1:] != shape_of(values)[1:]:
        return None  # not all columns
    n = _first_size(base, node)
    if shape_of(one)[0] != shape_of(values)[0]:  # a scatter takes as many rows as the index has
        if is_call(node, aten.index_add, aten.index_put, aten.index_reduce):
            return None
        end = call(node, aten.sym_size.int, one, 0, like=node)
        values = _first_rows(node, values, end, shape_of(one)[0])
    if not values.meta["val"].is_floating_point():
        return _counted(node, base, one, values, n) if how == "sum" else None
    if node.kwargs.get("alpha", 1) != 1:
        values = call(node, aten.mul.Tensor, values, node.kwargs["alpha"], like=node)

    if how == "sum":
        result = call(node, bgnn.segment_sum.default, values, one, n, like=node)
    elif how == "mean":
        op = bgnn.segment_mean if alone else bgnn.segment_sum
        result = call(node, op.default, values, one, n, like=node)
    elif how == "amax":
        result = call(node, bgnn.segment_max.default, values, one, n, like=node)
    elif how == "amin":
        negative = call(node, aten.neg.default, values, like=node)
        largest = call(node, bgnn.segment_max.default, negative, one, n, like=node)
        result = call(node, aten.neg.default, largest, like=node)
    else:
        return None
    return _onto(node, base, result, how, alone, one, values, n)


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
        table = call(node, aten.reshape.default, values, sizes, like=node)
        if is_call(node, bgnn.segment_max):
            return call(node, aten.amax.default, table, [1], like=node)
        mean = is_call(node, bgnn.segment_mean)
        return call(node, aten.mean.dim if mean else aten.sum.dim_IntList, table, [1], like=node)
    return None


def _first_rows(node: fx.Node, values: fx.Node, end: fx.Node, count: Any) -> fx.Node:
    """The first `count` rows of `values`, a number that `end` gives when the file runs."""
    with node.graph.inserting_before(node):
        rows = node.graph.call_function(aten.slice.Tensor, (values, 0, 0, end))
    value = values.meta["val"]
    shape = [count, *value.shape[1:]]
    rows.meta = {**node.meta, "val": torch.empty(shape, dtype=value.dtype, device="meta")}
    return rows


def _onto(
    node: fx.Node, base: fx.Node, result: fx.Node, how: str, alone: bool, index: fx.Node, values: fx.Node, n: Any
) -> fx.Node:  # fmt: skip
    """What `base` becomes: with `alone`, its rows count only where nothing is reduced to them."""
    if is_filled(base, 0, ZEROS) and (alone or how == "sum"):
        return result  # a segment without elements is 0
    if how == "sum" and not alone:
        return call(node, aten.add.Tensor, base, result, like=node)
    edges = shape_of(values)[0]
    sizes = [edges if isinstance(edges, int) else call(node, aten.sym_size.int, values, 0, like=node)]
    sizes += [1] * (len(shape_of(values)) - 1)
    kind = values.meta["val"].dtype
    ones = call(node, aten.full.default, sizes, 1.0, dtype=kind, device=torch.device("cpu"), like=node)
    counts = call(node, bgnn.segment_sum.default, ones, index, n, like=node)
    if how == "mean" and not alone:
        both = call(node, aten.add.Tensor, base, result, like=node)
        return call(node, aten.div.Tensor, both, call(node, aten.add.Tensor, counts, 1, like=node), like=node)
    if not alone:
        extreme = aten.maximum.default if how == "amax" else aten.minimum.default
        result = call(node, extreme, base, result, like=node)
    some = call(node, aten.gt.Scalar, counts, 0, like=node)
    return call(node, aten.where.self, some, result, base, like=node)


def _counted(node: fx.Node, base: fx.Node, index: fx.Node, values: fx.Node, n: Any) -> fx.Node | None:
    """Elements counted in whole numbers: exact as a float sum up to 2^24 of them in a segment."""
    if not is_filled(base, 0, ZEROS) or not is_filled(values, 1, ONES):
        return None
    ones = call(node, aten._to_copy.default, values, dtype=torch.float32, like=node)
    total = call(node, bgnn.segment_sum.default, ones, index, n, like=node)
    return call(node, aten._to_copy.default, total, dtype=node.meta["val"].dtype, like=node)


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
    return call(node, bgnn.segment_mean.default, values, index, n, like=node)


def _softmax(node: fx.Node) -> fx.Node | None:
    powers = node.args[0]
    if not is_call(powers, aten.exp):
        return None
    difference = cast(fx.Node, powers).args[0]
    if not is_call(difference, aten.sub):
        return None
    values = cast(fx.Node, cast(fx.Node, difference).args[0])
    found = next((n for n in _above(node, values) if is_call(n, bgnn.segment_sum)), None)
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
    return call(node, bgnn.segment_softmax.default, values, index, n, like=node)


def _above(node: fx.Node, stop: fx.Node) -> list[fx.Node]:
    """What `node` is computed from, down to `stop`."""
    seen: dict[fx.Node, None] = {}
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in seen and current is not stop and current.op == "call_function":
            seen[current] = None
            stack += current.all_input_nodes
    return list(seen)
