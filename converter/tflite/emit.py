"""A target-stage FX graph becomes a TFLite flatbuffer: one walk over the nodes, in their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import fx

from bgnn.converter.emitted_file import named_ends
from bgnn.converter.errors import ConversionError
from bgnn.converter.file_inputs import describe, symbols_of
from bgnn.converter.padding import GRAPHS, Sizes
from bgnn.converter.sizes import host_size
from bgnn.converter.tflite import bgnn_ops, builtin_ops, graph_ops, int8_ops, lce_ops
from bgnn.converter.tflite.builder import FileBuilder, Value
from bgnn.converter.tflite.resizing import Written, resized
from bgnn.converter.tflite.walk import INT, Walk, arguments, op_name
from bgnn.passes import ops
from bgnn.passes.graph import above, is_static

_STOCK: dict[str, Callable[..., Any]] = {
    **builtin_ops.LOWERINGS,
    **graph_ops.LOWERINGS,
    **int8_ops.LOWERINGS,
    **lce_ops.LOWERINGS,
}
# Of what both write, files of stock kernels have TFLite's own operators.
_LOWERINGS = {"stock": {**bgnn_ops.LOWERINGS, **_STOCK}, "bgnn": {**_STOCK, **bgnn_ops.LOWERINGS}}

_MAX_RANK = 6  # what XNNPACK and the builtin kernels of both runtimes take


def supported_ops(kernels: str = "stock") -> list[str]:
    """The ops that may stand in a target-stage graph, as `aten.add.Tensor`, sorted."""
    return sorted(_LOWERINGS["bgnn"] if kernels == "bgnn" else _STOCK)


def emit(
    gm: fx.GraphModule,
    *,
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, str],
    probes: Mapping[str, fx.Node] | None = None,
    most: Mapping[str, int] | None = None,
    kernels: str = "stock",
) -> bytes:
    """The TFLite file of a target-stage graph.

    `gm`: placeholders, get_attr constants, calls of `supported_ops()`, one output of a node or a tuple of
    nodes; every node's `meta["val"]` gives static shape and dtype (float32, int32, int64 or bool; int64
    means indices and is int32 in the file). `name` becomes the model's description. `input_names` and
    `output_names` name the file's inputs and outputs in the graph's order, as tensors and in the signature
    "serving_default". `metadata` is stored under its keys as UTF-8 text. `probes`: more nodes whose tensors
    the file returns after the outputs, in this order, under the keys as names; nothing is fused over them. `most`: the
    sizes that stand for a graph network's open ones (converter.padding). The file then tells under "bgnn.graph" what
    runtime_bench/padded.py needs to fill a graph up, and to cut its results: inputs as ONNX files have them
    (`file_inputs.describe`), `most`, and for each axis of each output how many rows are there. `kernels`: "stock", or
    "bgnn", where an operator of ours goes before TFLite's own.

    Equal arguments give equal bytes. Raises ConversionError for an op, dtype or size that TFLite cannot
    express, and UsageError where the names do not fit the graph.
    """
    inputs, wanted = named_ends(gm, input_names, output_names, probes or {})
    names = {node: input_name for input_name, node in inputs}
    needed = _needed([node for _, node in wanted])
    degree = int(metadata.get("bgnn.max_degree", 0))

    def build(sizes: Mapping[str, int]) -> Written:
        builder = FileBuilder(name)
        walk = Walk(builder, [node for _, node in wanted], Sizes(gm, sizes))
        walk.gaps = bool(most) or any(ops.name_of(node.target) == "bgnn.with_self_loops" for node in gm.graph.nodes)
        for input_name, node in inputs:
            walk.values[node] = builder.tensor(input_name, walk.shape(node), walk.dtype(node))
            walk.claim(walk.value(node), input_name)
        for node in gm.graph.nodes:
            if node.op == "get_attr":
                walk.arrays[node] = _array(walk, node, attrgetter(str(node.target))(gm))
            elif node.op == "call_function" and node in needed:
                walk.values[node] = _lower(walk, node, _LOWERINGS[kernels])
        given = [(input_name, walk.value(node)) for input_name, node in inputs]
        outputs = _outputs(walk, wanted, [value for _, value in given])
        if not most and all(is_static(node) for _, node in wanted):
            return Written(builder, given, outputs, None)
        more, rows = _rows(walk, wanted, names)
        return Written(builder, given, outputs + more, rows)

    file = build(most or {})
    if file.rows is not None:
        described = describe(gm, names, symbols_of(names))
        told = {"inputs": described, "most": dict(most or {}), "outputs": file.rows, "max_degree": degree}
        if kernels == "bgnn" and most:
            try:
                file = resized(build, gm, most, described)
                told["resizes"] = True
            except ConversionError as error:
                told["padded"] = str(error)
        metadata = {**metadata, "bgnn.graph": json.dumps(told)}
    return file.builder.finish(file.inputs, file.outputs, metadata)


def _needed(wanted: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that tensors of the file depend on: sizes are known."""

    def is_tensor(node: fx.Node) -> bool:
        return not isinstance(node.meta.get("val"), torch.SymInt)

    return {node for node in above(*wanted, through=is_tensor) if is_tensor(node)}


def _rows(
    walk: Walk, wanted: Sequence[tuple[str, fx.Node]], names: Mapping[fx.Node, str]
) -> tuple[list[tuple[str, Value]], list[list[Any]]]:
    """(outputs that tell which edges are there, for each axis of each output how many rows are: None for all, terms, or
    the name of such an output and the terms of the number that its values are below)."""
    more: dict[str, tuple[str, Value]] = {}
    rows: list[list[Any]] = []
    for _, node in wanted:
        axes: list[Any] = []
        for size in node.meta["val"].shape:
            if type(size) is int:
                axes.append(None)
                continue
            terms, listed = host_size(size, names), walk.edges.get(str(size))
            if listed is not None:
                index, nodes = listed
                if str(size) not in more:
                    name = f"rows/{len(more)}"
                    more[str(size)] = (name, walk.copy(index))
                    walk.builder.rename(more[str(size)][1], name)
                axes.append({"there": more[str(size)][0], "below": None if nodes is None else host_size(nodes, names)})
            elif terms is None or not (size.node.expr.is_Symbol or walk.sizes.counts_graphs(size)):
                walk.refuse(node, "has a row for each of some edges, whose number depends on the data", "sum them")
            else:
                axes.append({"rows": terms, **({"most": GRAPHS} if walk.sizes.counts_graphs(size) else {})})
        rows.append(axes)
    return list(more.values()), rows


def _array(walk: Walk, node: fx.Node, tensor: torch.Tensor) -> np.ndarray:
    """A constant in the file's dtype; 8-bit ones as they are, for the lowerings of the integer ops to place."""
    array = tensor.detach().cpu().contiguous().numpy()
    if tensor.dtype in (torch.uint8, torch.int8):
        return array
    dtype = walk.file_dtype(node, tensor.dtype)
    limits = np.iinfo(INT)
    if tensor.dtype == torch.int64 and array.size and not limits.min <= array.min() <= array.max() <= limits.max:
        walk.refuse(node, "holds an integer beyond 32 bits", "use smaller indices: TFLite's are int32")
    return array.astype(dtype, copy=False)


def _lower(walk: Walk, node: fx.Node, lowerings: Mapping[str, Callable[..., Any]]) -> Any:
    """Emits one call; returns its tensor, or tensors."""
    if node in walk.absorbed:
        return walk.value(node.args[0])  # type: ignore[arg-type]
    name = op_name(node)
    if name not in lowerings:
        walk.refuse(node, "is not supported by the TFLite targets", "rewrite this line with supported ops")
    if isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].dim() > _MAX_RANK:
        walk.refuse(node, f"gives a tensor of rank {node.meta['val'].dim()}", f"reshape to rank {_MAX_RANK} or less")
    given = node.args if name == "getitem" else [walk.known(one) for one in arguments(node)]
    walk.name_after(node)
    value = lowerings[name](walk, node, *given)
    if isinstance(value, Value):
        walk.claim(value, node.name)
    return value


def _outputs(walk: Walk, wanted: Sequence[tuple[str, fx.Node]], inputs: Sequence[Value]) -> list[tuple[str, Value]]:
    """The named outputs. An input, a constant or a tensor returned twice gets a copy of its own."""
    taken = {value.index for value in inputs}
    outputs = []
    for name, node in wanted:
        value = walk.value(node)
        if value.constant or value.index in taken:
            value = walk.copy(value)
        taken.add(value.index)
        walk.builder.rename(value, name)
        outputs.append((name, value))
    return outputs
