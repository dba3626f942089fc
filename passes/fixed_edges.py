"""Sums and maxima over edges that the model holds itself: its neighbour tables are constants.

    scatter_add(zeros[n, F], 0, index[E] constant, values[E, F])     sum(values_and_zero[table[n, W]], 1)
    scatter_reduce(..., "amax")                                      amax(values[table[n, W]], 1), 0 without edges

along any axis, so for [batch, nodes, features] too. `table` names each node's edges; where it has fewer than W, the sum
reads a row of zeros behind them, and the maximum its first edge again. Nodes of very different degrees stand in several
tables, and are brought back into their order. Exact but for the order of a sum.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.passes.canonicalise import reshape
from bgnn.passes.graph import aten, call, constant, literal, shape_of
from bgnn.runtime_bench.runtime.graphs import FREE, segments

BUCKETS = 4  # of nodes of like degree, where one table would be several times as long as the edges
ONE_BLOCK = 1 << 40


def reduced(node: fx.Node, dim: int, index: Tensor, size: int, values: fx.Node, how: str) -> fx.Node:
    """`values` reduced along axis `dim` into `size` rows by the constant `index` [E]: "sum", "mean" or "amax"."""
    edges = index.numel()
    degrees = torch.bincount(index, minlength=size)
    crowded = size * int(degrees.max()) > 4 * edges
    made = segments(index.numpy(), size, buckets=BUCKETS if crowded else 1, block=ONE_BLOCK)
    shape = list(shape_of(values))
    source = values
    regular = bool((degrees == degrees[0]).all())
    if how != "amax" and not regular:
        source = _with_zeros(node, values, dim)
    channels = shape[dim + 1 :]
    if how != "amax" and len(channels) > 1:
        channels = [math.prod(channels)]  # sums of codes are along the axis before the last
    parts = []
    for bucket in made.buckets:
        table = bucket.items.reshape(-1, bucket.width)
        taken = table != FREE
        table = table[taken.any(1), : taken.sum(1).max()]  # a bucket may be wider than its widest row, or have none
        if not len(table):
            continue
        table = np.where(table == FREE, table[:, :1] if how == "amax" else edges, table)
        picked = source
        if table.size != edges or (table.reshape(-1) != np.arange(edges)).any():
            rows = constant(node, torch.from_numpy(table.reshape(-1).astype(np.int64)), "neighbours")
            picked = call(node, aten.index_select.default, source, dim, rows)
        apart = call(node, aten.reshape.default, picked, literal([*shape[:dim], *table.shape, *channels]))
        op = aten.amax.default if how == "amax" else aten.sum.dim_IntList
        op = aten.mean.dim if how == "mean" and regular else op
        part = call(node, op, apart, [dim + 1])
        if how == "mean" and not regular:
            count = torch.from_numpy(taken.sum(1)[taken.any(1)]).float().reshape(-1, *[1] * len(channels))
            part = call(node, aten.div.Tensor, part, constant(node, count, "degrees"))
        parts.append(part)
    rows = sum(part.meta["val"].shape[dim] for part in parts)
    if rows < size or (made.position != np.arange(size)).any():  # back into the order of nodes; those without edges: 0
        together = parts[0] if len(parts) == 1 else call(node, aten.cat.default, parts, dim)
        if rows < size:
            together = _with_zeros(node, together, dim)
        order = constant(node, torch.from_numpy(np.minimum(made.position, rows).astype(np.int64)), "position")
        parts = [call(node, aten.index_select.default, together, dim, order)]
    return reshape(node, parts[0], (*shape[:dim], size, *shape[dim + 1 :]))


def _with_zeros(node: fx.Node, x: fx.Node, dim: int) -> fx.Node:
    """One more row of zeros along an axis."""
    shape = [*shape_of(x)[:dim], 1, *shape_of(x)[dim + 1 :]]
    if all(isinstance(size, int) for size in shape):
        row = constant(node, torch.zeros(shape), "zeros")
    else:  # of an open number of graphs
        row = call(node, aten.slice.Tensor, x, dim, 0, 1)
        row = call(node, aten.clamp.default, row, 0.0, 0.0)
    return call(node, aten.cat.default, [x, row], dim)
