"""Finds k-nearest-neighbour searches by what the score computes, not by how it was written.

A `topk` over an `[B, N, N]` score is a k-NN search if the score is a decreasing function of the distance of
rows i and j of one tensor `[B, N, C]`. `-cdist(x, x)`, `2xy - |x|^2 - |y|^2`, `sum((x_i - x_j)^2)`,
`-(x x^T - d)` (binary GNN paper, Eq. 21) and `sum(x_i != x_j)` all are. The expression between tensor and score is
evaluated on random features (+-1 where the tensor is binary, so Hamming), and its order compared with the distances'.
With whole numbers beside it, one for each row, it may be a search within each graph: rows of other graphs must then all
be equally far. Open sizes are tried as small numbers. Verification later compares the neighbours themselves, so a
chance agreement cannot pass.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import domains as dm
from bgnn.passes.canonicalise import permute, reshape
from bgnn.passes.expressions import Tried, evaluate, expressions, is_size
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    getitem,
    is_call,
    is_constant,
    remove_dead_code,
    replace,
    shape_of,
)

NEEDS = ("topk_lowest",)
MAKES = ("knn",)

bgnn = torch.ops.bgnn
DEEPEST = 25  # nodes between the features and the score


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites `topk(score(x), k)[1]` into `bgnn::knn(x, k, metric)`."""
    result = PassResult()
    domains = dm.analyse(gm)
    tried = Tried()
    for node in calls(gm.graph, bgnn.topk_lowest):
        x, k, dim, largest = node.args
        score = cast(fx.Node, x)
        shape = shape_of(score)
        if any(getitem(user) != (node, 1) for user in node.users):
            continue  # the distances themselves are used
        if len(shape) not in (2, 3) or shape[-1] != shape[-2] or cast(int, dim) % len(shape) != len(shape) - 1:
            continue
        found = _search_of(score, bool(largest), domains, tried)
        if found is None:
            result.refuse(node, "its score is no distance between the rows of one tensor")
            continue
        index = next(iter(node.users))
        batch = shape[0] if len(shape) == 3 else 1
        rows = permute(index, found.features, (0, 2, 1)) if found.channel_first else found.features
        rows = reshape(index, rows, (batch, shape[-1], found.channels), like=node)
        group = None if found.group is None else reshape(index, found.group, (batch, shape[-1]), like=node)
        metric = found.metric
        new = call(index, bgnn.knn.default, rows, k, metric, group, like=node)
        if metric == "hamming" and "tap" in index.meta:
            index.meta["tap"] = index.meta["tap"].changed(exact=True)
        replace(index, reshape(index, new, shape_of(index), like=node))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


@dataclasses.dataclass(frozen=True)
class _Search:
    """What a score compares: rows of `features`; with `group`, rows of one group alone."""

    features: fx.Node
    group: fx.Node | None
    channel_first: bool
    channels: int
    metric: str


def _search_of(score: fx.Node, largest: bool, domains: dict[fx.Node, dm.Domain], tried: Tried) -> _Search | None:
    """The search for a score that orders by distance."""
    nodes = shape_of(score)[-1]

    def is_given(n: fx.Node) -> bool:
        return is_constant(n) or is_size(n) or _is_whole(n)

    for x, inside in expressions(score, DEEPEST, lambda n: n.op == "call_function", is_given):
        groups = {_origin(n) for member in inside for n in member.all_input_nodes if n not in inside and _is_whole(n)}
        group = groups.pop() if groups else None
        if groups or (group is not None and not _is_group(group, score)):
            continue
        metric = "hamming" if domains[x].kind == "binary" else "l2"
        for channel_first in (False, True):
            channels = _channels(x, score, nodes, channel_first)
            if channels is None:
                continue
            found = _Search(x, group, channel_first, channels, metric)
            if _orders_by_distance(score, found, largest, tried):
                return found
    return None


def _is_whole(node: fx.Node) -> bool:
    """Whether a node holds whole numbers that the model is given, or computes: perhaps which graph each row is of."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32) and not is_constant(node)


def _origin(node: fx.Node) -> fx.Node:
    """Whole numbers as they were before they were only laid out otherwise."""
    while is_call(node, aten.reshape, aten.expand, aten.permute, aten._to_copy):
        source = cast(fx.Node, node.args[0])
        if not _is_whole(source):
            break
        node = source
    return node


def _is_group(group: fx.Node, score: fx.Node) -> bool:
    """Whether there is one number for each row."""
    shape = shape_of(score)
    return shape_of(group) in (shape[:-1], (1, *shape[:-1])) or (shape[0] == 1 and shape_of(group) == shape[1:-1])


def _channels(x: fx.Node, score: fx.Node, nodes: int, channel_first: bool) -> int | None:
    """How long rows of `x` are, if there is one for each node of the score; else None."""
    if not isinstance(x.meta.get("val"), Tensor) or not x.meta["val"].is_floating_point():
        return None
    shape, batch = shape_of(x), shape_of(score)[:-2]
    rest = shape[1] if channel_first and len(shape) == 3 else shape[-1] if shape else None
    if not isinstance(rest, int):
        return None
    if channel_first:
        fits = len(shape) == 3 and shape[2] == nodes and shape[:1] == batch
    elif len(shape) == 3:
        fits = shape[1] == nodes and (shape[:1] == batch or (batch == () and shape[0] == 1))
    else:
        fits = len(shape) == 2 and shape[0] == nodes * (batch[0] if batch else 1)
    return rest if fits else None


def _orders_by_distance(score: fx.Node, search: _Search, largest: bool, tried: Tried) -> bool:
    x, generator = search.features, torch.Generator().manual_seed(0)
    values = torch.randn(tried.shape(x), generator=generator)
    if search.metric == "hamming":
        values = torch.where(values >= 0, 1.0, -1.0)
    values = values.to(x.meta["val"].dtype)
    known: dict[fx.Node, Any] = {**tried.known(score.graph), x: values}
    if search.group is not None:
        group = torch.randint(3, tried.shape(search.group), generator=generator)
        known[search.group] = group.to(search.group.meta["val"].dtype)
    try:
        out = evaluate(score, known)
    except (RuntimeError, TypeError, ValueError):
        return False
    n = tried.size(shape_of(score)[-1])
    out = (out if largest else -out).reshape(-1, n, n).double()
    rows = values.double().transpose(1, 2) if search.channel_first else values.double()
    rows = rows.reshape(out.shape[0], n, -1)
    pick = torch.randperm(n, generator=generator)[:16]  # some rows against all
    distance = torch.cdist(rows[:, pick], rows, compute_mode="donot_use_mm_for_euclid_dist")
    out = out[:, pick]
    if search.group is not None:
        of = group.reshape(out.shape[0], n)
        apart = of[:, pick, None] != of[:, None, :]
        others = out[apart]
        if not bool(apart.any()) or not bool((others == others[0]).all()):
            return False  # those of other graphs must be equals, lower than all
        if not bool((out[~apart] > others[0]).all()):
            return False
        distance = distance.masked_fill(apart, 1e6)
        out = torch.where(apart, -1e12, out)
    order = torch.argsort(distance, dim=-1, stable=True)
    near = torch.gather(distance, -1, order).diff(dim=-1)
    step = torch.gather(out, -1, order).diff(dim=-1)
    if not bool(torch.isfinite(out).all()):
        return False
    if search.metric == "hamming":  # equal distances must have equal scores, or ties would be broken otherwise
        return bool((step[near > 1e-6] < 0).all()) and bool((step[near <= 1e-6] == 0).all())
    clear = near > 1e-3
    return bool((step[clear] < 0).all()) and bool(clear.any())
