"""What a file says of its inputs, for whoever runs it: names, sizes, and which of them are indices of which rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx

from bgnn.converter.sizes import host_size
from bgnn.passes import index_limits, ops
from bgnn.passes.graph import calls, is_call

bgnn = torch.ops.bgnn


def symbols_of(names: Mapping[fx.Node, str]) -> dict[str, str]:
    """A readable name for each dynamic dimension of the inputs: nodes, edges, or after the input it is of."""
    symbols: dict[str, str] = {}
    graph = next(iter(names)).graph if names else fx.Graph()
    edges = index_limits.edge_inputs(graph)
    counts = {str(size) for size in index_limits.numbers_of_nodes(graph)}
    known = [(size, "nodes") for node in names for size in node.meta["val"].shape if str(size) in counts]
    known += [(node.meta["val"].shape[-1], "edges") for node in names if node in edges]
    known += [(node.meta["val"].shape[0], "nodes") for node in names if not edges and node.meta["val"].dim() in (1, 2)]
    for size, words in known:
        if type(size) is not int and words not in symbols.values():
            symbols.setdefault(str(size), words)
    for node, name in names.items():
        for axis, dim in enumerate(node.meta["val"].shape):
            if type(dim) is not int:
                symbols.setdefault(str(dim), f"{name}_{axis}")
    return symbols


def dims_of(node: fx.Node, symbols: Mapping[str, str]) -> list[int | str]:
    shape = node.meta["val"].shape
    return [dim if type(dim) is int else symbols.get(str(dim), f"{node.name}_{axis}") for axis, dim in enumerate(shape)]


def describe(gm: fx.GraphModule, names: Mapping[fx.Node, str], symbols: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the user gives: name, dtype and shape; whose values are indices, of which row, below which sizes; and how
    long axes must be at least, since a search picks so many of what is along them."""
    indices: dict[str, list[dict[str, Any]]] = {}
    for one in index_rows(gm, names):
        indices.setdefault(one["name"], []).append({"row": one["row"], "below": one["below"]})
    described: list[dict[str, Any]] = []
    picked = _picked(gm)
    for node, name in names.items():
        value = node.meta["val"]
        dtype = str(value.dtype).removeprefix("torch.")
        one = {"name": name, "dtype": dtype, "shape": dims_of(node, symbols), "indices": indices.get(name, [])}
        least = [[axis, picked[str(size)]] for axis, size in enumerate(value.shape) if str(size) in picked]
        described.append(one | ({"least": least} if least else {}))
    return described


def _picked(gm: fx.GraphModule) -> dict[str, int]:
    """How many elements are picked, at most, of those along axes of an open size, by its symbol."""
    found: dict[str, int] = {}
    for node in calls(gm.graph, bgnn.topk_lowest, *ops.having("search", "fused")):
        x, axis = cast(fx.Node, node.args[0]), node.args[2] if is_call(node, bgnn.topk_lowest) else 1
        size, k = x.meta["val"].shape[cast(int, axis)], node.args[2 if is_call(node, bgnn.hamming_knn) else 1]
        if type(size) is not int:
            found[str(size)] = max(cast(int, k), found.get(str(size), 0))
    return found


def index_rows(gm: fx.GraphModule, names: Mapping[fx.Node, str]) -> list[dict[str, Any]]:
    """The inputs that are indices, and how many rows their values name: arguments of the runner's `check_rows`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for (node, row), sizes in index_limits.limits(gm.graph).items():
        below = [terms for terms in (host_size(size, names) for size in sizes) if terms is not None]
        found.setdefault(names[node], []).append({"name": names[node], "row": row, "below": below})
    for rows in found.values():
        if len(rows) == 2 and rows[0]["below"] == rows[1]["below"]:  # both ends of the edges are the same nodes
            rows[:] = [{**rows[0], "row": None}]
    return [one for rows in found.values() for one in rows]
