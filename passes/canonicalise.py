"""One spelling for each operation, so that later passes match one form and not five.

Reshapes of every kind become `reshape`, transpositions `permute`, repetitions `expand`, poolings over a whole axis
`amax` or `mean`, products with a constant matrix `linear`; what does nothing in inference goes. Exact, but for the
order in which a product is summed, and for `topk` and `sort`, whose open tie order becomes the lowest-index rule
(`topk_lowest`).
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.graph import (
    PassResult,
    Rule,
    arg,
    aten,
    call,
    constant,
    getitem,
    is_call,
    is_constant,
    is_list,
    is_static,
    literal,
    rewrite,
    shape_of,
    value_of,
)
from bgnn.passes.index_limits import inputs_of

MAKES = ("topk_lowest",)

bgnn = torch.ops.bgnn

VIEWS = [
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.unsqueeze, aten.squeeze,
    aten.view_as, aten.reshape_as,
]  # fmt: skip
PERMUTES = [aten.permute, aten.transpose, aten.t, aten.movedim, aten.swapaxes, aten.numpy_T, aten.mT]
NO_OPS = ops.having("same")
MADE = ops.having("filling")


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites every node that has another spelling; runs until nothing changes."""
    return rewrite(gm, RULES, again=True)


def reshape(before: fx.Node, x: fx.Node, shape: tuple[int, ...], like: fx.Node | None = None) -> fx.Node:
    """`x` in another shape; looks through views, and gives the node itself where the shape is its own."""
    while is_call(x, aten.reshape) and can_reshape(cast(fx.Node, x.args[0]), shape):
        x = cast(fx.Node, x.args[0])
    if shape_of(x) == tuple(shape):
        return x
    sizes: list[Any] | None = literal(shape)
    if sizes is None:
        assert can_reshape(x, shape), "a reshape to several open sizes, which are not its own"
        own, sizes = [str(size) for size in shape_of(x)], list(shape)
        for axis, size in enumerate(shape):
            if not isinstance(size, int):
                known = str(size) in own
                sizes[axis] = call(before, aten.sym_size.int, x, own.index(str(size)), like=like) if known else -1
    return call(before, aten.reshape.default, x, sizes, like=like)


def can_reshape(x: fx.Node, shape: Sequence[Any]) -> bool:
    """Whether a shape can be told of `x`: at most one of its open sizes is not one of `x` itself."""
    return can_tell(shape_of(x), shape)


def can_tell(before: Sequence[Any], shape: Sequence[Any]) -> bool:
    """`can_reshape`, of a tensor of the shape `before`."""
    own = [str(size) for size in before]
    new = [size for size in shape if not isinstance(size, int) and str(size) not in own]
    return literal(shape) is not None or len(new) <= 1


def expand(before: fx.Node, x: fx.Node, shape: Sequence[Any], like: fx.Node | None = None) -> fx.Node:
    """`x` repeated to a shape; an open size that is not its own is asked of a tensor before that has it."""
    sizes, own = list(shape), (1,) * (len(shape) - len(shape_of(x))) + shape_of(x)
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            continue
        sizes[axis] = -1
        if str(own[axis]) != str(size):
            source, dim = next(
                (n, i)
                for n in before.graph.nodes
                if n < before and isinstance(n.meta.get("val"), Tensor)
                for i, known in enumerate(shape_of(n))
                if str(known) == str(size)
            )
            sizes[axis] = call(before, aten.sym_size.int, source, dim, like=like)
    return call(before, aten.expand.default, x, sizes, like=like)


def permute(before: fx.Node, x: fx.Node, dims: tuple[int, ...], like: fx.Node | None = None) -> fx.Node:
    """`x` with its axes reordered; merges with an earlier permute, and gives the node itself where nothing moves."""
    dims = tuple(d % len(dims) for d in dims)
    if is_call(x, aten.permute):
        inner = [d % len(dims) for d in cast(list[int], x.args[1])]
        return permute(before, cast(fx.Node, x.args[0]), tuple(inner[d] for d in dims), like)
    if dims == tuple(range(len(dims))):
        return x
    return call(before, aten.permute.default, x, list(dims), like=like)


def _view(node: fx.Node) -> fx.Node | None:
    if node.target is aten.view.dtype:
        return None  # the bits under another type: no reshape
    if literal(shape_of(node)) is None:
        x = cast(fx.Node, node.args[0])
        if str(shape_of(x)) == str(shape_of(node)):
            return x
        inner = cast(fx.Node, x.args[0]) if is_call(x, aten.reshape) else x
        spelled = is_call(node, aten.reshape) and inner is x
        return None if spelled or not can_reshape(inner, shape_of(node)) else reshape(node, x, shape_of(node), node)
    new = reshape(node, cast(fx.Node, node.args[0]), shape_of(node))
    same = is_call(node, aten.reshape) and is_call(new, aten.reshape) and new.args[0] is node.args[0]
    if same and list(cast(list[int], node.args[1])) == literal(shape_of(node)):
        new.graph.erase_node(new)
        return None
    return new


def _permute(node: fx.Node) -> fx.Node | None:
    x = cast(fx.Node, node.args[0])
    rank = len(shape_of(x))
    if is_call(node, aten.permute):
        dims = tuple(d % rank for d in cast(list[int], node.args[1]))
        if list(dims) == list(cast(list[int], node.args[1])) and not is_call(x, aten.permute):
            return None if dims != tuple(range(rank)) else x
    else:
        # The op itself tells the order of axes: apply it to a tensor whose strides name its axes.
        probe = torch.empty([2 + i for i in range(rank)], device="meta")
        moved = cast(Callable[..., Tensor], node.target)(probe, *node.args[1:], **node.kwargs)
        dims = tuple(size - 2 for size in moved.shape)
    return permute(node, x, dims)


def _no_op(node: fx.Node) -> fx.Node | None:
    if is_call(node, aten.dropout, aten.feature_dropout, aten.alpha_dropout) and arg(node, 2, "train", True):
        return None  # a dropout that drops: left for the spec to name
    return cast(fx.Node, node.args[0])


def _cast(node: fx.Node) -> fx.Node | None:
    x = cast(fx.Node, node.args[0])
    dtype = node.meta["val"].dtype
    if x.meta["val"].dtype == dtype:
        return x
    return call(node, aten._to_copy.default, x, dtype=dtype) if is_call(node, aten.type_as) else None


def _copy(node: fx.Node) -> fx.Node | None:
    """`x.copy_(y)` is y, in the shape and type of x."""
    x, y = cast(tuple[fx.Node, fx.Node], node.args[:2])
    if x.meta["val"].dtype != y.meta["val"].dtype:
        y = call(node, aten._to_copy.default, y, dtype=x.meta["val"].dtype)
    if shape_of(y) == shape_of(node):
        return y
    return call(node, aten.expand.default, y, list(shape_of(node))) if is_static(node) else None


def _expand(node: fx.Node) -> fx.Node | None:
    x = cast(fx.Node, node.args[0])
    shape = shape_of(node)
    if shape == shape_of(x):
        return x
    sizes = _expanded(node, x)
    if sizes is None:
        return None
    if len(shape) == len(shape_of(x)) and list(arg(node, 1, "size")) == sizes and is_call(node, aten.expand):
        return None
    x = reshape(node, x, (1,) * (len(shape) - len(shape_of(x))) + shape_of(x))
    return x if shape == shape_of(x) else call(node, aten.expand.default, x, sizes)


def _expanded(node: fx.Node, x: fx.Node) -> list[Any] | None:
    """The sizes of an expand as arguments: -1 where `x` has an open size, a node where it grows to one."""
    shape, old = shape_of(node), shape_of(x)
    old = (1,) * (len(shape) - len(old)) + old
    sizes: list[Any] = [size if isinstance(size, int) else -1 for size in shape]
    for i, size in enumerate(sizes):
        if size == -1 and isinstance(old[i], int):
            given = arg(node, 1, "size") if is_call(node, aten.expand, aten.broadcast_to) else None
            if given is None or not isinstance(given[i], fx.Node):
                return None
            sizes[i] = given[i]
    return sizes


def _repeat(node: fx.Node) -> fx.Node | None:
    """`repeat` is an expand of an axis of size 1 beside each repeated one."""
    x = cast(fx.Node, node.args[0])
    times = cast(list[int], node.args[1])
    if any(isinstance(t, fx.Node) for t in times):
        return None
    times = [1] * (len(shape_of(x)) - len(times)) + list(times)
    if len(times) == len(shape_of(x)) and all(t == 1 or n == 1 for t, n in zip(times, shape_of(x), strict=True)):
        return call(node, aten.expand.default, x, [-1 if t == 1 else t for t in times])
    sizes = (1,) * (len(times) - len(shape_of(x))) + shape_of(x)
    repeats_open = any(t != 1 and not isinstance(size, int) for t, size in zip(times, sizes, strict=True))
    if repeats_open or literal(sizes) is None:
        return None
    split: list[int] = []
    grown: list[int] = []
    for count, size in zip(times, sizes, strict=True):
        split += [size] if count == 1 or size == 1 else [1, size]
        grown += [size] if count == 1 else ([count] if size == 1 else [count, size])
    x = reshape(node, x, tuple(split))
    if tuple(grown) != tuple(split):
        x = call(node, aten.expand.default, x, literal(grown))
    return reshape(node, x, shape_of(node))


def _repeat_each(node: fx.Node) -> fx.Node | None:
    """`repeat_interleave(x, k, dim)` is an expand of an axis of size 1 behind the repeated one."""
    x, times, dim = cast(fx.Node, node.args[0]), node.args[1], arg(node, 2, "dim")
    if not isinstance(times, int) or (dim is None and len(shape_of(x)) != 1):
        return None
    axis, shape = cast(int, dim or 0) % len(shape_of(x)), shape_of(x)
    apart, grown = (*shape[: axis + 1], 1, *shape[axis + 1 :]), (*shape[: axis + 1], times, *shape[axis + 1 :])
    if not can_reshape(x, apart):
        return None
    return reshape(node, expand(node, reshape(node, x, apart), grown), shape_of(node))


def _batch_norm(node: fx.Node) -> fx.Node | None:
    source = getitem(node)
    if source is None or source[1] != 0 or not is_call(source[0], aten._native_batch_norm_legit_no_training):
        return None
    x, weight, bias, mean, var, _, eps = source[0].args
    return call(node, aten.batch_norm.default, x, weight, bias, mean, var, False, 0.1, eps, False, like=source[0])


MOST_PICKED = 64  # numbers of which one is picked by looking at each
MOST_PLACES = 1 << 22  # of a tensor whose elements are taken one by one
REDUCTIONS = {aten.max.dim: aten.amax.default, aten.min.dim: aten.amin.default}


def _getitem(node: fx.Node) -> fx.Node | None:
    source, index = cast(tuple[fx.Node, int], getitem(node))
    if is_call(source, aten._native_batch_norm_legit_no_training):
        return _batch_norm(node)
    if source.target in REDUCTIONS:
        x, dim = source.args[0], source.args[1]
        if index == 1:
            return _first_extreme(node, cast(fx.Node, x), cast(int, dim), source.target is aten.max.dim, source)
        return call(node, REDUCTIONS[source.target], x, [dim], arg(source, 2, "keepdim", False), like=source)
    if is_call(source, aten.adaptive_max_pool1d, aten.adaptive_max_pool2d) and index == 0:
        return _global_pool(node, source, aten.amax.default)
    if is_call(source, aten.max_pool2d_with_indices, aten.max_pool1d_with_indices) and index == 0:
        return _whole_axis_pool(source, node)
    if is_call(source, aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unbind):
        return _piece(node, source, index)
    if is_call(source, aten.sort):
        return _sort(node, source, index)
    if is_call(source, aten.topk) and not is_call(source, bgnn.topk_lowest):
        x = cast(fx.Node, source.args[0])
        dim, largest = arg(source, 2, "dim", -1), arg(source, 3, "largest", True)
        return _topk(node, source, x, cast(int, source.args[1]), dim % len(shape_of(x)), largest, index)
    if is_call(source, aten.median) and index == 0 and len(source.args) > 1:
        return _median(node, source)
    return None


def _topk(node: fx.Node, like: fx.Node, x: fx.Node, k: int, dim: int, largest: bool, index: int) -> fx.Node:
    for twin in x.users:  # values and indices of one topk stay one topk
        if is_call(twin, bgnn.topk_lowest) and twin.args == (x, k, dim, largest) and twin < node:
            break
    else:
        twin = call(node, bgnn.topk_lowest.default, x, k, dim, largest, like=like)
    return call(node, operator.getitem, twin, index, like=like)


def _first_extreme(node: fx.Node, x: fx.Node, dim: int, largest: bool, like: fx.Node) -> fx.Node | None:
    """The index of the first of the largest values along an axis, in the shape of `node`: a topk of one."""
    if not is_static(x) or not shape_of(x):
        return None
    return reshape(node, _topk(node, like, x, 1, dim % len(shape_of(x)), largest, 1), shape_of(node), like=like)


def _argmax(node: fx.Node) -> fx.Node | None:
    x, dim = cast(fx.Node, node.args[0]), arg(node, 1, "dim")
    if dim is None and is_static(x):
        x, dim = reshape(node, x, (x.meta["val"].numel(),)), 0
    return None if dim is None else _first_extreme(node, x, cast(int, dim), is_call(node, aten.argmax), node)


def _sort(node: fx.Node, source: fx.Node, index: int, k: int | None = None) -> fx.Node | None:
    """`sort` and `argsort` are a topk of everything; a slice of it asks for less (see `_fewer`), k for instance.

    Of an open number of nodes or edges it stays what it is.
    """
    x = cast(fx.Node, source.args[0])
    rank = len(shape_of(x))
    first = 2 if "stable" in str(source.target) and "stable" not in source.kwargs else 1  # (x, stable, dim, ...)
    along = cast(int, arg(source, first, "dim", -1)) % rank
    descending = bool(arg(source, first + 1, "descending", False))
    k = shape_of(x)[along] if k is None else k
    return _topk(node, source, x, k, along, descending, index) if isinstance(k, int) else None


def _fewer(node: fx.Node) -> fx.Node | None:
    """The first k of a topk's results are a smaller topk's; those behind the first few of them a slice of it."""
    sorted_ = cast(fx.Node, node.args[0])
    picked = (sorted_, 1) if is_call(sorted_, aten.argsort) else getitem(sorted_)
    dim, start, end = cast(int, arg(node, 1, "dim", 0)), arg(node, 2, "start", 0), arg(node, 3, "end")
    if picked is not None and is_call(picked[0], aten.sort, aten.argsort):
        whole = shape_of(sorted_)[dim % len(shape_of(sorted_))]
        few = arg(node, 4, "step", 1) == 1 and isinstance(end, int) and 0 <= (start or 0) < end < sys.maxsize
        if isinstance(whole, int) or not few:
            return None  # a number is sorted in whole, and then this
        new = _sort(node, picked[0], picked[1], cast(int, end))
        if new is not None and start:
            new = call(node, aten.slice.Tensor, new, dim, start, end)
        if new is None or str(shape_of(new)) == str(shape_of(node)):
            return new
        return None  # along another axis
    if picked is None or not is_call(picked[0], bgnn.topk_lowest):
        return None
    x, k, along, largest = cast(tuple[fx.Node, int, int, bool], picked[0].args)
    rank = len(shape_of(x))
    if along % rank != dim % rank or (start or 0) != 0 or arg(node, 4, "step", 1) != 1:
        return None
    if end is None or not 0 <= cast(int, end) < k:
        return None
    return _topk(node, picked[0], x, cast(int, end), along, largest, picked[1])


def _slice(node: fx.Node) -> fx.Node | None:
    fewer = _fewer(node)
    if fewer is not None:
        return fewer
    x = cast(fx.Node, node.args[0])
    if shape_of(node) == shape_of(x) and arg(node, 4, "step", 1) == 1:
        return x
    dim = arg(node, 1, "dim", 0) % len(shape_of(x))
    start, end = arg(node, 2, "start", 0) or 0, arg(node, 3, "end", None)
    size = shape_of(x)[dim]
    if not isinstance(size, int):
        return None
    start = max(start + size, 0) if start < 0 else min(start, size)
    end = size if end is None else (max(end + size, 0) if end < 0 else min(end, size))
    step = arg(node, 4, "step", 1)
    if is_call(x, aten.cat) and step == 1 and arg(x, 1, "dim", 0) % len(shape_of(x)) == dim:
        offset = 0
        for part in cast(list[fx.Node], x.args[0]):  # a slice that is one of the joined parts
            length = shape_of(part)[dim]
            if (start, end) == (offset, offset + length):
                return part
            offset += length
    if list(node.args) == [x, dim, start, end, step] or (step == 1 and list(node.args) == [x, dim, start, end]):
        return None
    return call(node, aten.slice.Tensor, x, dim, start, end, step)


def _is_list(x: fx.Node) -> bool:
    """Whether a tensor has the form of a list of edges, whole numbers `[2, E]`, whose rows are not known one by one."""
    joined = is_call(x, aten.stack) or (is_call(x, aten.cat) and arg(x, 1, "dim", 0) in (0, -2))
    return is_list(x.meta["val"]) and not joined and not is_constant(x)


def _select(node: fx.Node) -> fx.Node | None:
    x, dim, index = cast(fx.Node, node.args[0]), cast(int, node.args[1]), cast(Any, node.args[2])
    if not x.meta["val"].is_floating_point() and (not is_static(x) or _is_list(x)):
        return None  # the sources or the targets of edges
    dim = dim % len(shape_of(x))
    if isinstance(index, fx.Node):  # x[int(i)] is x[i]
        if not is_call(index, aten.item, aten._local_scalar_dense):
            return None
        one = reshape(node, cast(fx.Node, index.args[0]), (1,))
        return reshape(node, call(node, aten.index_select.default, x, dim, one), shape_of(node))
    if not isinstance(shape_of(x)[dim], int):
        return None  # one of an open number of nodes
    index = index % shape_of(x)[dim]
    piece = call(node, aten.slice.Tensor, x, dim, index, index + 1, 1)
    return reshape(node, piece, shape_of(node))


def _written_at(node: fx.Node) -> fx.Node | None:
    """`x[:, i, j] = number` at places that are known is a choice: `adj[:, idx, idx] = 1` of PyG's dense layers."""
    base, indices, values = cast(tuple[fx.Node, list[Any], fx.Node], node.args[:3])
    first = next(axis for axis, index in enumerate(indices) if index is not None)
    known = all(index is None or is_constant(index) for index in indices)
    rest = shape_of(base)[first:]
    if not known or arg(node, 3, "accumulate", False) or math.prod(shape_of(values)) != 1:
        return None
    if not all(isinstance(size, int) for size in rest) or math.prod(rest) > MOST_PLACES:
        return None
    if values.meta["val"].dtype != base.meta["val"].dtype:
        return None
    at = [None if index is None else value_of(index) for index in indices[first:]]
    mask = torch.ops.aten.index_put(torch.zeros(rest, dtype=torch.bool), at, torch.tensor(True))
    number = reshape(node, values, ())
    return call(node, aten.where.self, constant(node, mask, f"{node.name}_places"), number, base)


def _piece(node: fx.Node, source: fx.Node, index: int) -> fx.Node:
    x = cast(fx.Node, source.args[0])
    position = 1 if is_call(source, aten.unbind) else 2
    dim = arg(source, position, "dim", 0) % len(shape_of(x))
    sizes = [1] * shape_of(x)[dim] if position == 1 else [v.shape[dim] for v in source.meta["val"]]
    if position == 1 and dim == 0 and _is_list(x):
        return call(node, aten.select.int, x, 0, index, like=source)
    start = sum(sizes[:index])
    piece = call(node, aten.slice.Tensor, x, dim, start, start + sizes[index], 1, like=source)
    return reshape(node, piece, shape_of(node), like=source)


def _stack(node: fx.Node) -> fx.Node:
    parts = cast(list[fx.Node], node.args[0])
    dim = arg(node, 1, "dim", 0) % len(shape_of(node))
    one = tuple(1 if i == dim else s for i, s in enumerate(shape_of(node)))
    return call(node, aten.cat.default, [reshape(node, p, one) for p in parts], dim)


def _cat(node: fx.Node) -> fx.Node | None:
    parts = cast(list[fx.Node], node.args[0])
    full = [p for p in parts if not is_static(p) or p.meta["val"].numel()]
    if len(full) == 1 and shape_of(full[0]) == shape_of(node) and full[0].meta["val"].dtype == node.meta["val"].dtype:
        return full[0]
    if 1 < len(full) < len(parts):  # `torch.tensor([])` may stand beside any shape
        return call(node, aten.cat.default, full, arg(node, 1, "dim", 0))
    return None


def _global_pool(node: fx.Node, source: fx.Node, reduce: Any) -> fx.Node | None:
    x = cast(fx.Node, source.args[0])
    sizes = cast(list[int], source.args[1])
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    if any(s != 1 for s in sizes):
        return None
    return call(node, reduce, x, list(range(-len(sizes), 0)), True, like=source)


def _whole_axis_pool(source: fx.Node, node: fx.Node | None = None) -> fx.Node | None:
    """A pooling whose window covers whole axes and is 1 elsewhere is a reduction over those axes."""
    node = node if node is not None else source
    x = cast(fx.Node, source.args[0])
    kernel = cast(list[int], source.args[1])
    kernel = [kernel] if isinstance(kernel, int) else list(kernel)
    spatial = 2 if is_call(source, aten.max_pool2d, aten.avg_pool2d, aten.max_pool2d_with_indices) else 1
    kernel = kernel * spatial if len(kernel) == 1 else kernel
    padding = arg(source, 3, "padding", 0)
    if any(cast(list[int], padding) if isinstance(padding, (list, tuple)) else [padding]):
        return None
    sizes = shape_of(x)[-spatial:]
    dims = [i - spatial for i in range(spatial) if kernel[i] == sizes[i]]
    if any(kernel[i] not in (1, sizes[i]) for i in range(spatial)):
        return None
    average = is_call(source, aten.avg_pool1d, aten.avg_pool2d)
    if average and arg(source, 6, "divisor_override") is not None:
        return None
    reduced = tuple(1 if i - spatial in dims else s for i, s in enumerate(sizes))
    if shape_of(node)[-spatial:] != reduced:
        return None
    if not dims:
        return x
    return call(node, aten.mean.dim if average else aten.amax.default, x, dims, True, like=source)


def _median(node: fx.Node, source: fx.Node) -> fx.Node | None:
    """The lower median is the last of the n - (n-1)//2 largest values."""
    x, dim = cast(fx.Node, source.args[0]), cast(int, source.args[1])
    rank = len(shape_of(x))
    dim, n = dim % rank, shape_of(x)[dim]
    if not isinstance(n, int):
        return None
    k = n - (n - 1) // 2
    last_first = (*(d for d in range(rank) if d != dim), dim)
    top = call(node, bgnn.topk_lowest.default, permute(node, x, last_first), k, rank - 1, True, like=source)
    values = call(node, operator.getitem, top, 0, like=source)
    middle = call(node, aten.slice.Tensor, values, rank - 1, k - 1, k, 1, like=source)
    back = tuple(last_first.index(d) for d in range(rank))
    return reshape(node, permute(node, middle, back), shape_of(node), like=source)


def _linear(node: fx.Node) -> fx.Node | None:
    """A product with a constant matrix on the right, with or without a bias."""
    if is_call(node, aten.addmm):
        bias, x, weight = node.args[:3]
        if arg(node, 3, "beta", 1) != 1 or arg(node, 4, "alpha", 1) != 1 or node.kwargs:
            return None
    else:
        x, weight = node.args[:2]
        bias = None
    if not is_constant(weight) or is_constant(x):
        return None
    shape = shape_of(cast(fx.Node, weight))
    if len(shape) == 1:  # a product with a vector is one with a matrix of one row
        row = constant(node, value_of(cast(fx.Node, weight)).reshape(1, -1), cast(fx.Node, weight))
        return reshape(node, call(node, aten.linear.default, x, row), shape_of(node))
    if (len(shape) != 2 and shape[:-2] != (1,) * (len(shape) - 2)) or len(shape) > len(shape_of(cast(fx.Node, x))):
        return None
    if bias is not None and (not is_constant(bias) or len(shape_of(cast(fx.Node, bias))) != 1):
        return None
    matrix = cast(fx.Node, weight)
    turned = constant(node, value_of(matrix).reshape(shape[-2:]).t(), matrix)
    return call(node, aten.linear.default, x, turned, bias)


ROOTS = {0.5: aten.sqrt.default, -0.5: aten.rsqrt.default}


def _power(node: fx.Node) -> fx.Node | None:
    """Of a number: squares are products. A number's power, `2 ** x`, is `exp(x * log(2))`, but of constants."""
    base, power = node.args[0], 2 if is_call(node, aten.square) else _number(node.args[1], shape_of(node))
    if isinstance(base, fx.Node) and power is not None:
        if power in ROOTS and is_static(node):
            return call(node, ROOTS[power], base)
        if power == 2:
            return call(node, aten.mul.Tensor, base, base)
        spelled = is_call(node, aten.pow.Tensor_Scalar)
        return None if spelled else call(node, aten.pow.Tensor_Scalar, base, power)
    factor, x = _number(base, shape_of(node)), cast(fx.Node, node.args[1])
    if factor is None or factor <= 0 or not x.meta["val"].is_floating_point() or not inputs_of(x):
        return None
    return call(node, aten.exp.default, call(node, aten.mul.Tensor, x, math.log(factor)))


def _number(value: Any, shape: tuple[Any, ...]) -> float | None:
    """A number, or that of a constant of one element that does not make a result of this shape longer."""
    if not isinstance(value, fx.Node):
        return cast(float, value)
    one = is_constant(value) and value.meta["val"].numel() == 1 and len(shape_of(value)) < max(len(shape), 1)
    return cast(float, value_of(value).item()) if one else None


def _norm(node: fx.Node) -> fx.Node | None:
    """The Euclidean norm along axes, `sqrt(sum(x * x))`, and the sum of magnitudes, `sum(|x|)`."""
    x = cast(fx.Node, node.args[0])
    order, dims = (arg(node, 1, "ord", 2), arg(node, 2, "dim")) if is_call(node, aten.linalg_vector_norm) else (
        arg(node, 1, "p", 2), arg(node, 2, "dim"))  # fmt: skip
    if order not in (1, 2) or arg(node, 4, "dtype") is not None:
        return None
    axes = [dims] if isinstance(dims, int) else list(dims or range(len(shape_of(x))))
    if order == 1:
        size = call(node, aten.abs.default, x)
        return call(node, aten.sum.dim_IntList, size, axes, arg(node, 3, "keepdim", False))
    squares = call(node, aten.mul.Tensor, x, x)
    total = call(node, aten.sum.dim_IntList, squares, axes, arg(node, 3, "keepdim", False))
    return call(node, aten.sqrt.default, total)


def _clamp_min(node: fx.Node) -> fx.Node:
    bound = node.args[1]
    target = aten.maximum.default if isinstance(bound, fx.Node) else aten.clamp.default
    return call(node, target, node.args[0], bound)


def _rsub(node: fx.Node) -> fx.Node:
    alpha = arg(node, 2, "alpha", 1)
    if alpha == 1:
        negative = call(node, aten.neg.default, node.args[0])
    else:
        negative = call(node, aten.mul.Tensor, node.args[0], -alpha)
    return call(node, aten.add.Tensor, negative, node.args[1])


def _add_alpha(node: fx.Node) -> fx.Node | None:
    """`add(x, y, alpha=a)` is `x + a*y`; and a scalar overload is the tensor one with a number."""
    alpha = node.kwargs.get("alpha", 1)
    target = aten.add.Tensor if is_call(node, aten.add) else aten.sub.Tensor
    x, y = node.args[:2]
    if alpha != 1:
        y = call(node, aten.mul.Tensor, y, alpha) if isinstance(y, fx.Node) else cast(Any, y) * alpha
    elif node.target == target and not node.kwargs and len(node.args) == 2:
        return _neutral(node, 0) or _plain_constants(node)
    return call(node, target, x, y)


def _neutral(node: fx.Node, element: float) -> fx.Node | None:
    """x + 0, x - 0, x * 1, x / 1, where neither shape nor dtype changes."""
    x, y = node.args[:2]
    same = isinstance(x, fx.Node) and shape_of(x) == shape_of(node) and x.meta["val"].dtype == node.meta["val"].dtype
    return cast(fx.Node, x) if same and not isinstance(y, fx.Node) and y == element else None


def _plain_constants(node: fx.Node) -> fx.Node | None:
    """A constant's leading axes of size 1 say nothing beside a tensor of higher rank; one number is a number."""
    changed = False
    sides: list[Any] = []
    for side, other in zip(node.args[:2], reversed(node.args[:2]), strict=True):
        if is_constant(side) and isinstance(other, fx.Node) and not is_constant(other):
            if not isinstance(other.meta["val"], Tensor):
                return None  # times an open size
            value = value_of(cast(fx.Node, side))
            small = value
            while small.dim() > (1 if value.numel() > 1 else 0) and small.shape[0] == 1:
                small = small.squeeze(0)
            same_type = value.dtype == other.meta["val"].dtype and shape_of(other) == shape_of(node)
            if small.dim() == 0 and same_type and other.meta["val"].dtype == torch.float32:
                side, changed = small.item(), True
            elif small.dim() < value.dim() and len(shape_of(other)) == len(shape_of(node)):
                side, changed = constant(node, small, cast(fx.Node, side)), True
        sides.append(side)
    if not changed or node.kwargs:
        return None
    if not isinstance(sides[0], fx.Node):
        if not is_call(node, aten.add, aten.mul):
            return None
        sides.reverse()
    return call(node, node.target, *sides)


def _mul(node: fx.Node) -> fx.Node | None:
    if node.target in (aten.mul.Scalar, aten.div.Scalar):
        target = aten.mul.Tensor if is_call(node, aten.mul) else aten.div.Tensor
        return call(node, target, *node.args)
    return (_neutral(node, 1) or _plain_constants(node)) if not node.kwargs else None


def _ones(node: fx.Node) -> fx.Node | None:
    """A tensor that depends on no data: `zeros_like(x)` and its kin."""
    if not is_static(node):
        return _like(node)
    shape, dtype = shape_of(node), node.meta["val"].dtype
    if is_call(node, aten.zeros_like, aten.new_zeros, aten.zeros):
        value = torch.zeros(shape, dtype=dtype)
    elif is_call(node, aten.ones_like, aten.new_ones, aten.ones):
        value = torch.ones(shape, dtype=dtype)
    else:
        value = torch.full(
            shape, cast(Any, arg(node, 2 if is_call(node, aten.new_full) else 1, "fill_value")), dtype=dtype
        )
    return constant(node, value, node.name)


def _like(node: fx.Node) -> fx.Node | None:
    """`zeros_like(x)` and its kin, of open sizes: a tensor made of the sizes of `x`."""
    if not is_call(node, aten.zeros_like, aten.ones_like, aten.full_like):
        return None
    x = cast(fx.Node, node.args[0])
    sizes = [
        size if isinstance(size, int) else call(node, aten.sym_size.int, x, axis)
        for axis, size in enumerate(shape_of(node))
    ]
    number = arg(node, 1, "fill_value") if is_call(node, aten.full_like) else int(is_call(node, aten.ones_like))
    kind = node.meta["val"].dtype
    return call(node, aten.full.default, sizes, number, dtype=kind, device=torch.device("cpu"))


def _filling(node: Any) -> Tensor | None:
    """The 0-d value of a tensor of open sizes that is the same everywhere: `-alpha * ones_like(x)`; else None."""
    if is_constant(node):
        return value_of(node).reshape(()) if value_of(node).numel() == 1 else None
    if is_call(node, *MADE):
        if is_call(node, aten.full, aten.full_like, aten.new_full):
            number = arg(node, 2 if is_call(node, aten.new_full) else 1, "fill_value")
        else:
            number = int(is_call(node, aten.ones, aten.ones_like, aten.new_ones))
        return None if isinstance(number, fx.Node) else torch.tensor(number, dtype=node.meta["val"].dtype)
    if not is_call(node, aten.neg, aten.mul, aten.div, aten.detach, aten.clone):
        return None
    values = {given: _filling(given) for given in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda given: values[given])
    return cast(Tensor, node.target(*args, **kwargs))


def _filled(node: fx.Node) -> fx.Node | None:
    """`where(x >= 0, ones_like(x), -ones_like(x))` of open sizes: a number each, beside an operand of all sizes."""
    tensors = [a if isinstance(a, fx.Node) and isinstance(a.meta["val"], Tensor) else None for a in node.args]
    values = [_filling(a) if a is not None and shape_of(a) and not is_constant(a) else None for a in tensors]
    others = [a for a, value in zip(tensors, values, strict=True) if a is not None and value is None]
    if all(value is None for value in values) or not any(shape_of(a) == shape_of(node) for a in others):
        return None
    args = [a if v is None else constant(node, v, "filling") for a, v in zip(node.args, values, strict=True)]
    new = call(node, node.target, *args)
    if new.meta["val"].dtype == node.meta["val"].dtype:
        return new
    new.graph.erase_node(new)
    return None


def _one_hot(node: fx.Node) -> fx.Node | None:
    """Each class number compared with all."""
    x, classes = cast(fx.Node, node.args[0]), arg(node, 1, "num_classes", -1)
    if not isinstance(classes, int) or classes < 1 or literal(shape_of(x)) is None:
        return None
    column = reshape(node, x, (*shape_of(x), 1))
    same = call(node, aten.eq.Tensor, column, constant(node, torch.arange(classes), "classes"))
    return call(node, aten._to_copy.default, same, dtype=torch.int64)


def _written_columns(node: fx.Node) -> fx.Node | None:
    """`x.scatter(-1, columns, number)` is a choice: in each row the columns that are named, as one-hot by hand has."""
    base, index = cast(fx.Node, node.args[0]), cast(fx.Node, node.args[2])
    number, shape, rows = node.args[3], shape_of(base), shape_of(index)
    last = len(shape) - 1
    if (
        not is_call(node, aten.scatter.value)
        or base.meta["val"].dtype != torch.float32
        or cast(int, node.args[1]) % len(shape) != last
    ):
        return None
    classes, named = shape[-1], rows[-1]
    if not isinstance(classes, int) or not isinstance(named, int) or rows[:-1] != shape[:-1] or literal(rows) is None:
        return None
    every = constant(node, torch.arange(classes), "classes")
    if named == 1:
        same = call(node, aten.eq.Tensor, index, every)
    else:
        equal = call(node, aten.eq.Tensor, reshape(node, index, (*rows, 1)), every)
        counted = call(node, aten._to_copy.default, equal, dtype=torch.float32)
        most = call(node, aten.amax.default, counted, [last], False)
        same = call(node, aten.gt.Scalar, most, 0.5)
    written = constant(node, torch.tensor(float(cast(float, number))), "number")
    return call(node, aten.where.self, same, written, base)


def _picked_column(node: fx.Node) -> fx.Node | None:
    """`x.gather(-1, column)`, one of each row's few numbers: the sum of those whose place is named."""
    x, index = cast(fx.Node, node.args[0]), cast(fx.Node, node.args[2])
    shape, last = shape_of(x), len(shape_of(x)) - 1
    if not isinstance(shape[-1], int) or shape[-1] > MOST_PICKED or x.meta["val"].dtype != torch.float32:
        return None
    if cast(int, node.args[1]) % len(shape) != last or shape_of(index) != (*shape[:-1], 1):
        return None
    same = call(node, aten.eq.Tensor, index, constant(node, torch.arange(shape[-1]), "places"))
    picked = call(node, aten.where.self, same, x, constant(node, torch.tensor(0.0), "others"))
    return call(node, aten.sum.dim_IntList, picked, [last], True)


def _reduce_all(node: fx.Node) -> fx.Node | None:
    x = cast(fx.Node, node.args[0])
    table = {
        aten.max.default: aten.amax.default, aten.min.default: aten.amin.default,
        aten.mean.default: aten.mean.dim, aten.sum.default: aten.sum.dim_IntList,
    }  # fmt: skip
    if node.target not in table:
        return None
    return call(node, table[node.target], x, list(range(len(shape_of(x)))), False)


def _where(node: fx.Node) -> fx.Node | None:
    """Numbers in a `where` are 0-d tensors."""
    if any(isinstance(side, fx.Node) and not isinstance(side.meta["val"], Tensor) for side in node.args[1:]):
        return None  # an open size
    dtype = node.meta["val"].dtype
    sides = [
        side if isinstance(side, fx.Node) else constant(node, torch.tensor(cast(float, side), dtype=dtype), "number")
        for side in node.args[1:]
    ]
    return call(node, aten.where.self, node.args[0], *sides)


def _extremum(node: fx.Node) -> fx.Node:
    return call(node, aten.maximum.default if is_call(node, aten.max) else aten.minimum.default, *node.args)


def _repeat_rows(node: fx.Node) -> fx.Node | None:
    """`x.index_select(0, [0,0,0,1,1,1,...])` repeats each row: an expand beside it."""
    if is_call(node, aten.index_select):
        x, dim, index = cast(tuple[fx.Node, int, fx.Node], node.args)
        if dim < 0:
            return call(node, aten.index_select.default, x, dim % len(shape_of(x)), index)
    elif is_call(node, aten.embedding):
        return None
    else:
        x, indices = cast(tuple[fx.Node, list[Any]], node.args[:2])
        if len(indices) != 1:
            return None
        dim, index = 0, indices[0]
    if not is_constant(index) or dim % len(shape_of(x)) != 0 or len(shape_of(index)) != 1:
        return None
    rows, wanted = shape_of(x)[0], value_of(index)
    if (
        rows == 0
        or len(wanted) % rows
        or not torch.equal(wanted, torch.arange(rows).repeat_interleave(len(wanted) // rows))
    ):
        return None
    times, rest = len(wanted) // rows, shape_of(x)[1:]
    if times == 1:
        return x
    grown = call(node, aten.expand.default, reshape(node, x, (rows, 1, *rest)), [rows, times, *rest])
    return reshape(node, grown, shape_of(node))


def _index(node: fx.Node) -> fx.Node | None:
    """`x[idx]` and `embedding(x, idx)` are a selection of rows, then a reshape."""
    if is_call(node, aten.embedding):
        x, index, dim = cast(fx.Node, node.args[0]), cast(fx.Node, node.args[1]), 0
    else:
        x, indices = cast(tuple[fx.Node, list[Any]], node.args[:2])
        used = [(d, i) for d, i in enumerate(indices) if i is not None]
        if len(used) > 1 and all(is_constant(i) for _, i in used):
            return _known_places(node, x, used)
        if len(used) != 1 or used[0][1].meta["val"].dtype == torch.bool:
            return None
        dim, index = used[0]
    repeated = _repeat_rows(node)
    if repeated is not None:
        return repeated
    if literal(shape_of(node)) is None and len(shape_of(index)) != 1:
        return None
    if literal(shape_of(index)) is None or (len(shape_of(index)) > 1 and _of_a_list(index)):
        return None
    if is_constant(index) and bool((value_of(index) < 0).any()):
        index = constant(node, value_of(index) % shape_of(x)[dim], str(index.target))
    rows = index if len(shape_of(index)) == 1 else reshape(node, index, (index.meta["val"].numel(),))
    picked = call(node, aten.index_select.default, x, dim, rows)
    return reshape(node, picked, shape_of(node))


def _of_a_list(index: fx.Node) -> bool:
    """Whether an index is moved from a list `[R, E]` of open length, whose rows unpack_edges takes apart."""
    while True:
        value = index.meta["val"]
        if value.dim() == 2 and isinstance(value.shape[0], int) and not isinstance(value.shape[1], int):
            return True
        if not is_call(index, *ops.having("move"), aten.stack):
            return False
        index = index.all_input_nodes[0]


def _known_places(node: fx.Node, x: fx.Node, used: list[tuple[int, Any]]) -> fx.Node | None:
    """`x[i, j]` with constants: rows of `x` with its first axes as one."""
    values, first = [value_of(index) for _, index in used], len(used)
    if [axis for axis, _ in used] != list(range(first)) or any(v.dtype == torch.bool for v in values):
        return None
    sizes = shape_of(x)[:first]
    if not is_static(x) or 0 in sizes:
        return None
    rows = torch.zeros((), dtype=torch.int64)
    for value, size in zip(values, sizes, strict=True):
        rows = rows * size + value % size
    flat = reshape(node, x, (math.prod(sizes), *shape_of(x)[first:]))
    places = constant(node, rows.flatten(), "places")
    return reshape(node, call(node, aten.index_select.default, flat, 0, places), shape_of(node))


def _mean(node: fx.Node) -> fx.Node | None:
    """A reduction over axes of size 1 only drops them."""
    x = cast(fx.Node, node.args[0])
    if x.meta["val"].numel() == node.meta["val"].numel() and x.meta["val"].dtype == node.meta["val"].dtype:
        return reshape(node, x, shape_of(node))
    return None


RULES: list[tuple[Sequence[Any], Rule]] = [
    (VIEWS, _view),
    (PERMUTES, _permute),
    (NO_OPS, _no_op),
    ([aten._to_copy, aten.to, aten.type_as], _cast),
    ([aten.copy], _copy),
    ([aten.expand, aten.expand_as, aten.broadcast_to], _expand),
    ([aten.repeat, aten.tile], _repeat),
    ([aten.repeat_interleave], _repeat_each),
    ([operator.getitem], _getitem),
    ([aten.argsort], lambda n: _sort(n, n, 1)),
    ([aten.index_put], _written_at),
    ([aten.argmax, aten.argmin], _argmax),
    ([aten.slice], _slice),
    ([aten.select], _select),
    ([aten.stack], _stack),
    ([aten.cat], _cat),
    ([aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten._adaptive_avg_pool2d],
     lambda n: _global_pool(n, n, aten.mean.dim)),
    ([aten.max_pool1d, aten.max_pool2d, aten.avg_pool1d, aten.avg_pool2d], _whole_axis_pool),
    ([aten.mm, aten.matmul, aten.bmm, aten.addmm], _linear),
    ([aten.pow, aten.square], _power),
    ([aten.linalg_vector_norm, aten.norm], _norm),
    ([aten.clamp_min], _clamp_min),
    ([aten.rsub], _rsub),
    ([aten.add, aten.sub], _add_alpha),
    ([aten.mul, aten.div], _mul),
    ([aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full,
      aten.zeros, aten.ones, aten.full], _ones),
    ([aten.one_hot], _one_hot),
    ([aten.scatter], _written_columns),
    ([aten.gather], _picked_column),
    ([aten.index_select], _repeat_rows),
    ([aten.index, aten.embedding], _index),
    ([aten.mean.default, aten.sum.default], _reduce_all),
    ([aten.amax, aten.amin, aten.mean, aten.sum], _mean),
    ([aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther], _where),
    ([aten.where.self, aten.maximum, aten.minimum, aten.ge, aten.gt, aten.le, aten.lt], _filled),
    ([aten.max.other, aten.min.other], _extremum),
    ([aten.max, aten.min], _reduce_all),
]  # fmt: skip
