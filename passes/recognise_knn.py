"""Finds k-nearest-neighbour searches by what the score computes, not by how it was written.

A `topk` over an `[B, N, N]` score is a k-NN search if the score is a decreasing function of the distance of
rows i and j of one tensor `[B, N, C]`. `-cdist(x, x)`, `2xy - |x|^2 - |y|^2`, `sum((x_i - x_j)^2)`,
`-(x x^T - d)` (binary GNN paper, Eq. 21) and `sum(x_i != x_j)` all are. The expression between tensor and score is
evaluated on random features (+-1 where the tensor is binary, so Hamming), and its order compared with the
distances'. Verification later compares the neighbours themselves, so a chance agreement cannot pass.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes import domains as dm
from bgnn.passes.canonicalise import permute, reshape
from bgnn.passes.expressions import evaluate, expressions
from bgnn.passes.graph import (
    PassResult,
    call,
    calls,
    getitem,
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
    for node in calls(gm.graph, bgnn.topk_lowest):
        x, k, dim, largest = node.args
        score = cast(fx.Node, x)
        shape = shape_of(score)
        if any(getitem(user) != (node, 1) for user in node.users):
            continue  # the distances themselves are used
        if len(shape) not in (2, 3) or shape[-1] != shape[-2] or cast(int, dim) % len(shape) != len(shape) - 1:
            continue
        found = _features_of(score, bool(largest), domains)
        if found is None:
            result.refuse(node, "its score is no distance between the rows of one tensor")
            continue
        features, channel_first, metric = found
        index = next(iter(node.users))
        batch = shape[0] if len(shape) == 3 else 1
        rows = permute(index, features, (0, 2, 1)) if channel_first else features
        rows = reshape(index, rows, (batch, shape[-1], rows.meta["val"].numel() // (batch * shape[-1])), like=node)
        new = call(index, bgnn.knn.default, rows, k, metric, like=node)
        if metric == "hamming" and "tap" in index.meta:
            index.meta["tap"] = index.meta["tap"].changed(exact=True)
        replace(index, reshape(index, new, shape_of(index), like=node))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _features_of(score: fx.Node, largest: bool, domains: dict[fx.Node, dm.Domain]) -> tuple[fx.Node, bool, str] | None:
    """(features, whether they are channel-first, metric) for a score that orders by distance."""
    nodes = shape_of(score)[-1]
    for x, _ in expressions(score, DEEPEST, lambda n: n.op == "call_function", is_constant):
        metric = "hamming" if domains[x].kind == "binary" else "l2"
        for channel_first in (False, True):
            if _fits(x, score, nodes, channel_first) and _orders_by_distance(score, x, channel_first, metric, largest):
                return x, channel_first, metric
    return None


def _fits(x: fx.Node, score: fx.Node, nodes: int, channel_first: bool) -> bool:
    if not isinstance(x.meta.get("val"), Tensor) or not x.meta["val"].is_floating_point():
        return False
    shape, batch = shape_of(x), shape_of(score)[:-2]
    if channel_first:
        return len(shape) == 3 and shape[2] == nodes and shape[:1] == batch
    if len(shape) == 3:
        return shape[1] == nodes and (shape[:1] == batch or (batch == () and shape[0] == 1))
    rows = nodes * (batch[0] if batch else 1)
    return len(shape) == 2 and shape[0] == rows


def _orders_by_distance(score: fx.Node, x: fx.Node, channel_first: bool, metric: str, largest: bool) -> bool:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape_of(x), generator=generator)
    if metric == "hamming":
        values = torch.where(values >= 0, 1.0, -1.0)
    values = values.to(x.meta["val"].dtype)
    try:
        out = evaluate(score, {x: values})
    except (RuntimeError, TypeError, ValueError):
        return False
    n = shape_of(score)[-1]
    out = (out if largest else -out).reshape(-1, n, n).double()
    rows = values.double().transpose(1, 2) if channel_first else values.double()
    rows = rows.reshape(out.shape[0], n, -1)
    pick = torch.randperm(n, generator=generator)[:16]  # some rows against all
    distance = torch.cdist(rows[:, pick], rows, compute_mode="donot_use_mm_for_euclid_dist")
    order = torch.argsort(distance, dim=-1, stable=True)
    near = torch.gather(distance, -1, order).diff(dim=-1)
    step = torch.gather(out[:, pick], -1, order).diff(dim=-1)
    if not bool(torch.isfinite(out).all()):
        return False
    if metric == "hamming":  # equal distances must have equal scores, or ties would be broken otherwise
        return bool((step[near > 1e-6] < 0).all()) and bool((step[near <= 1e-6] == 0).all())
    clear = near > 1e-3
    return bool((step[clear] < 0).all()) and bool(clear.any())
