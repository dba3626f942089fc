"""Finds the gathering of neighbours' features by what it computes.

Flat indices with batch offsets, `x[batch, idx]`, `torch.gather` with expanded indices, a loop over the batch: all
move rows of one feature tensor to where one index tensor says. The moving ops between the two and the
result are run on features that carry their own address; if the result is `x[b, idx[b, n, j]]` in some
order of axes, it becomes `bgnn::gather_nodes`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes.canonicalise import can_reshape, permute, reshape
from bgnn.passes.expressions import Tried, attempt, is_size
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    getitem,
    is_call,
    is_constant,
    is_real,
    is_static,
    remove_dead_code,
    replace,
    shape_of,
)

MAKES = ("gather_nodes",)

bgnn = torch.ops.bgnn
LOOKUPS = [aten.index, aten.index_select, aten.gather]
MOVES = [aten.reshape, aten.permute, aten.expand, aten.slice, aten.cat, *LOOKUPS]
INDEX_MATHS = [aten.add, aten.sub, aten.mul, aten._to_copy, aten.to, *MOVES]
LARGEST = 60  # nodes in one expression
DRAWS = 3  # of indices that it is tried on


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces each expression, as soon as it is complete, by `gather_nodes` and the axes' order."""
    result = PassResult()
    for chosen in (False, True):  # first all that is made of whole index tensors
        for node in list(gm.graph.nodes):
            if node._erased or not is_call(node, *MOVES) or not is_real(node):
                continue
            for nearest in (False, True):
                found = _sources(node, nearest, chosen)
                new = _as_gather(node, *found) if found is not None else None
                if new is not None:
                    replace(node, new)
                    result.rewrites += 1
                    break
        remove_dead_code(gm)
    return result


def _sources(node: fx.Node, nearest: bool, chosen: bool) -> tuple[fx.Node, fx.Node] | None:
    """The one feature tensor and the one index tensor that `node` is moved from, if there is a lookup between.

    Features are followed to where they are computed, or, with `nearest`, only to what is looked up. Indices are
    followed to where they are computed, or, with `chosen`, only to where several are joined or some are picked.
    """
    features: set[fx.Node] = set()
    indices: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    looked_at: set[fx.Node] = set()
    stack, looked_up = [node], False
    while stack:
        current = stack.pop()
        if current in seen or is_constant(current) or is_size(current):
            continue
        seen.add(current)
        if len(seen) > LARGEST:
            return None
        if is_real(current):
            looked_up = looked_up or is_call(current, *LOOKUPS)
            moved = is_call(current, *MOVES) and not (nearest and current in looked_at)
            if is_call(current, *LOOKUPS):
                looked_at.add(cast(fx.Node, current.args[0]))
        else:
            moved = is_call(current, *INDEX_MATHS) and not (chosen and is_call(current, aten.cat, aten.slice))
        if moved:
            stack.extend(current.all_input_nodes)
        else:
            (features if is_real(current) else indices).add(current)
    if not looked_up or len(features) != 1 or len(indices) != 1:
        return None
    return features.pop(), indices.pop()


def _as_gather(node: fx.Node, features: fx.Node, index: fx.Node) -> fx.Node | None:
    if not isinstance(index.meta["val"], Tensor) or index.meta["val"].dtype not in (torch.int64, torch.int32):
        return None
    if len(shape_of(features)) not in (2, 3):
        return None
    if not is_static(index) and not _are_neighbours(index):
        return None  # edges that are given: a graph network gathers by them as they are
    for form in _forms(shape_of(index)):
        new = _of_form(node, features, index, form)
        if new is not None:
            return new
    return None


def _are_neighbours(index: fx.Node) -> bool:
    """Whether whole numbers are the neighbours that a search found, perhaps with some of them exchanged."""
    while is_call(index, aten.where, aten.reshape):
        index = cast(fx.Node, index.args[1 if is_call(index, aten.where) else 0])
    picked = getitem(index)
    return is_call(index, bgnn.knn) or (picked is not None and is_call(picked[0], bgnn.topk_lowest) and picked[1] == 1)


def _forms(shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(clouds, points, neighbours) that indices of a shape can be: one list for all, or one for each cloud."""
    if len(shape) == 3:
        return [(shape[0], shape[1], shape[2])]
    if len(shape) == 2:
        return [(1, shape[0], shape[1]), (shape[0], 1, shape[1])]
    return [(1, 1, shape[0]), (shape[0], 1, 1)] if shape else []


def _of_form(node: fx.Node, features: fx.Node, index: fx.Node, form: tuple[int, int, int]) -> fx.Node | None:
    tried = Tried()
    batch, m, k = (tried.size(size) for size in form)
    shape, of_features = tried.shape(index), tried.shape(features)
    size = math.prod(tried.shape(node))
    if size % (batch * m * k) or math.prod(of_features) > 1 << 24:
        return None
    channels = size // (batch * m * k)
    address = torch.arange(math.prod(of_features), dtype=torch.float64).reshape(of_features)
    known = tried.known(node.graph)
    for channel_first in (False, True):
        if channel_first and (len(of_features) != 3 or of_features[:2] != (batch, channels)):
            continue
        rows = address.transpose(1, 2) if channel_first else address
        if rows.numel() % (batch * channels) or rows.shape[-1] != channels:
            continue
        if not isinstance(shape_of(features)[1 if channel_first else -1], int):
            continue
        rows = rows.reshape(batch, -1, channels)
        generator = torch.Generator().manual_seed(0)
        orders = list(itertools.permutations(range(4)))  # of the axes of `expected[b, m, k, c]` in the result
        for _ in range(DRAWS):
            picked = torch.randint(0, rows.shape[1], (batch, m, k), generator=generator)
            given = {features: address, index: picked.reshape(shape).to(index.meta["val"].dtype)}
            out = attempt(node, {**known, **given})
            if out is None:
                return None
            expected, flat = bgnn.gather_nodes(rows, picked), out.flatten()
            orders = [order for order in orders if torch.equal(expected.permute(order).flatten(), flat)]
        if orders:
            return _build(node, features, index, channel_first, (*form, channels), orders[0])
    return None


def _build(
    node: fx.Node,
    features: fx.Node,
    index: fx.Node,
    channel_first: bool,
    sizes: tuple[Any, ...],
    order: tuple[int, ...],
) -> fx.Node | None:
    batch, m, k, channels = sizes
    rows = permute(node, features, (0, 2, 1)) if channel_first else features
    found = shape_of(rows)
    if len(found) == 2:
        if batch != 1 and not is_static(features):
            return None
        found = (batch, found[0] if batch == 1 else found[0] // batch, channels)
    rows = reshape(node, rows, found)
    table = reshape(node, index, (batch, m, k))
    gathered = call(node, bgnn.gather_nodes.default, rows, table)
    moved = permute(node, gathered, order)
    return reshape(node, moved, shape_of(node)) if can_reshape(moved, shape_of(node)) else None
