"""A target-stage FX graph becomes an ONNX model: a walk over the nodes that its outputs need."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from bgnn.converter.emitted_file import named_ends
from bgnn.converter.onnx import float_ops, graph_ops, int8_ops, own_ops, own_sign_ops, sign_ops
from bgnn.converter.onnx.builder import ModelBuilder
from bgnn.converter.onnx.tables import TableForm
from bgnn.converter.onnx.walk import Walk
from bgnn.converter.sizes import host_size
from bgnn.passes import code_ranges, index_limits, ops
from bgnn.passes.graph import calls, is_call
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.saturation import SaturationWarning

bgnn = torch.ops.bgnn

_LOWERINGS: dict[str, Callable[..., Any]] = {
    **float_ops.LOWERINGS,
    **graph_ops.LOWERINGS,
    **int8_ops.LOWERINGS,
    **sign_ops.LOWERINGS,
}
_OWN_LOWERINGS = {**_LOWERINGS, **own_ops.LOWERINGS, **own_sign_ops.LOWERINGS}


def supported_ops(kernels: str = "stock") -> list[str]:
    """The ops that may stand in a target-stage graph, as `aten.add.Tensor`, sorted."""
    return sorted(_OWN_LOWERINGS if kernels == "bgnn" else _LOWERINGS)


_SUMS = [op for op in ops.having("segment") if op is not bgnn.segment_softmax]


def emit(
    gm: fx.GraphModule,
    *,
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, str],
    probes: Mapping[str, fx.Node] | None = None,
    optimize: int = 1,
    kernels: str = "stock",
    seen: Mapping[str, float] | None = None,
) -> bytes:
    """The ONNX file of a target-stage graph.

    `gm`: placeholders, get_attr constants, calls of `supported_ops()`, one output of a node or a tuple of nodes;
    every node's `meta["val"]` gives dtype and shape, a dimension that is no int being dynamic. With `optimize` 1
    edges enter as neighbour tables (tables.py); the property "bgnn.neighbour_tables" tells the host how to make them,
    and "bgnn.inputs" what the user gives (`OnnxModel` does both). With 0 they enter as they are, and
    with `kernels` "bgnn", which takes this project's operators for whatever works on edges.
    `input_names` and `output_names` name inputs and outputs in the graph's order; `metadata` becomes the model's
    properties. `probes`: more nodes whose tensors the file returns after the outputs, in this order, under the keys
    as names. `seen`: by name, the share of a sum's codes at the ends of their range on the example graph
    (runtime_bench/runtime/saturation.py).

    Equal arguments give equal bytes. Raises ConversionError for an op, dtype or size that the file cannot
    hold, and UsageError where the names do not fit the graph.
    """
    inputs, wanted = named_ends(gm, input_names, output_names, probes or {})
    builder = ModelBuilder(name)
    own = kernels == "bgnn"
    walk = Walk(builder, _OWN_LOWERINGS if own else _LOWERINGS)
    names = {node: input_name for input_name, node in inputs}
    walk.naive = optimize == 0
    walk.packed = set() if own else sign_ops.packed_nodes(gm)
    symbols = _symbols(names)
    for node, input_name in names.items():
        walk.values[node] = builder.input(input_name, walk.dtype(node), _dims(node, symbols))
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            walk.arrays[node] = _array(walk, node, attrgetter(str(node.target))(gm))
    if optimize and not own:
        walk.tables = TableForm(walk, gm, names)

    for node in gm.graph.nodes:  # layer by layer in the graph's order: a deep network is no deep recursion
        if is_call(node, *_SUMS) and (walk.tables is None or node not in walk.tables.list_of):
            walk.value(node)
    made = []
    for output_name, node in wanted:
        value = walk.value(node)
        if node in walk.packed:
            value = sign_ops.words(walk, value, walk.rank(node))
        # A name of its own, also for an input, a constant or a tensor returned twice; the runtime drops the copy.
        made.append((builder.op("Identity", [value], value.dtype, name=output_name), _dims(node, symbols)))
    results = [value for value, _ in made]
    properties = {**metadata, "bgnn.sums": json.dumps(_sums(gm, walk, builder.made(results), seen))}
    properties |= {"bgnn.inputs": json.dumps(_describe(gm, names, symbols))}
    edges: set[str] = set()
    if walk.tables is not None:
        properties["bgnn.neighbour_tables"] = json.dumps(walk.tables.describe())
        edges = {tables.host["index"] for tables in walk.tables.sets.values()}
    return builder.finish(made, properties, kept_inputs=[n for n in input_names if n not in edges])


def _sums(
    gm: fx.GraphModule, walk: Walk, made: Collection[str], seen: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    """The property "bgnn.sums": what the file holds of `code_ranges.of_sums`."""
    return [
        {"tensor": walk.values[node].name, "name": name, "ends": ends, "seen": (seen or {}).get(name)}
        for node, name, ends in code_ranges.of_sums(gm.graph)
        if node in walk.values and walk.values[node].name in made
    ]


def _array(walk: Walk, node: fx.Node, tensor: torch.Tensor) -> np.ndarray:
    """A constant in the file's dtype."""
    array = tensor.detach().cpu().contiguous().numpy()
    if node in walk.packed:
        return np.where(sign_ops.bits(array), 255, 0).astype(np.uint8)
    return array.astype(walk.file_dtype(node, tensor.dtype), copy=False)


def _symbols(names: Mapping[fx.Node, str]) -> dict[str, str]:
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


def _dims(node: fx.Node, symbols: Mapping[str, str]) -> list[int | str]:
    shape = node.meta["val"].shape
    return [dim if type(dim) is int else symbols.get(str(dim), f"{node.name}_{axis}") for axis, dim in enumerate(shape)]


def _describe(gm: fx.GraphModule, names: Mapping[fx.Node, str], symbols: Mapping[str, str]) -> list[dict[str, Any]]:
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
        one = {"name": name, "dtype": dtype, "shape": _dims(node, symbols), "indices": indices.get(name, [])}
        least = [[axis, picked[str(size)]] for axis, size in enumerate(value.shape) if str(size) in picked]
        described.append(one | ({"least": least} if least else {}))
    return described


def _picked(gm: fx.GraphModule) -> dict[str, int]:
    """How many elements are picked, at most, of those along axes of an open size, by its symbol."""
    found: dict[str, int] = {}
    for node in calls(gm.graph, *ops.having("search")):
        if is_call(node, operator.getitem):
            continue
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


def run_file(data: bytes, inputs: Sequence[np.ndarray], threads: int = 1) -> list[np.ndarray]:
    """Runs a file once on ONNX Runtime; inputs and outputs in its own order, the tables made on the way."""
    return list(_run(data, inputs, threads)[1].values())


def saturated_shares(data: bytes, inputs: Sequence[torch.Tensor]) -> dict[str, float]:
    """The share of each sum's codes that an example graph brings to the ends of their range: `seen`, for `emit`."""
    return {one.name: one.share for one in _run(data, [value.numpy() for value in inputs])[0].saturation}


def _run(data: bytes, inputs: Sequence[np.ndarray], threads: int = 1) -> tuple[OnnxModel, dict[str, np.ndarray]]:
    model = OnnxModel(data, threads)
    with warnings.catch_warnings():  # what the example shows is what later graphs are compared with
        warnings.simplefilter("ignore", SaturationWarning)
        return model, model.run(**dict(zip(model.input_names, inputs, strict=True)))
