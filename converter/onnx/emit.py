"""A target-stage FX graph becomes an ONNX model: a walk over the nodes that its outputs need."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import fx

from bgnn.converter.emitted_file import named_ends
from bgnn.converter.file_inputs import describe, dims_of, symbols_of
from bgnn.converter.onnx import float_ops, graph_ops, int8_ops, own_ops, sign_ops
from bgnn.converter.onnx.builder import ModelBuilder
from bgnn.converter.onnx.tables import TableForm
from bgnn.converter.onnx.walk import I32, Walk
from bgnn.passes import code_ranges, ops
from bgnn.passes.graph import is_call
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.saturation import SaturationWarning

_LOWERINGS: dict[str, Callable[..., Any]] = {
    **float_ops.LOWERINGS,
    **graph_ops.LOWERINGS,
    **int8_ops.LOWERINGS,
    **sign_ops.LOWERINGS,
}
_OWN_LOWERINGS = {**_LOWERINGS, **own_ops.LOWERINGS}


def supported_ops(kernels: str = "stock") -> list[str]:
    """The ops that may stand in a target-stage graph, as `aten.add.Tensor`, sorted."""
    return sorted(_OWN_LOWERINGS if kernels == "bgnn" else _LOWERINGS)


_SUMS = [op for op in ops.having("segment") if op is not torch.ops.bgnn.segment_softmax]


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
    symbols = symbols_of(names)
    for node, input_name in names.items():
        dtype = I32 if node in walk.packed else walk.dtype(node)
        walk.values[node] = builder.input(input_name, dtype, dims_of(node, symbols))
        if node in walk.packed:
            walk.values[node] = sign_ops.codes(walk, walk.values[node], walk.rank(node))
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
        made.append((builder.op("Identity", [value], value.dtype, name=output_name), dims_of(node, symbols)))
    results = [value for value, _ in made]
    properties = {**metadata, "bgnn.sums": json.dumps(_sums(gm, walk, builder.made(results), seen))}
    properties |= {"bgnn.inputs": json.dumps(describe(gm, names, symbols))}
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
