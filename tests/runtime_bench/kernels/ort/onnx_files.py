"""ONNX files of one bgnn operator, and sessions that run them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from bgnn.runtime_bench.runtime.onnx_ops import library_path, session

F32, U8, I32, I64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64
_GRAPH = [("indptr", I32), ("indices", I32)]
_NEIGHBOURS = ("neighbours", I32)
_SCORES = [("source_score", F32), ("target_score", F32)]
_DENSE = [("x", U8), ("real", F32), ("weights", I32), ("multiplier", F32)]
INPUTS: dict[str, list[tuple[str, int]]] = {
    "WithSelfLoops": [("edge_index", I64), ("num_nodes", I64)],
    "CooToCsr": [("edge_index", I64), ("num_nodes", I64)],
    "IndexToCsr": [("index", I64), ("num_nodes", I64)],
    "QAggregate": [("x", U8), *_GRAPH, ("weight", U8), ("edges", I32), ("table", U8)],
    "QTable": [("x", U8), ("table", U8)],
    "Quantize": [("x", F32)],
    "QLinear": [*_DENSE, ("bias", I32)],
    "QLinearFloat": [*_DENSE, ("bias", F32)],
    "Aggregate": [("x", F32), *_GRAPH, ("weight", F32), ("edges", I32)],
    "AggregateInt32": [("x", I32), *_GRAPH],
    "SegmentSoftmax": [("values", F32), *_GRAPH],
    "GatAggregate": [("x", F32), *_GRAPH, *_SCORES],
    "QGatAggregate": [("x", U8), *_GRAPH, *_SCORES],
    "Degree": [("indptr", I32)],
    "EdgeProduct": [("source", F32), *_GRAPH, ("target", F32)],
    "QEdgeProduct": [("source", F32), *_GRAPH, ("target", F32)],
    "HammingKnn": [("x", I32)],
    "Knn": [("x", F32)],
    "XorEdgeConv": [("x", I32), _NEIGHBOURS, ("weights", I32), ("thresholds", I32)],
    "GatherMax": [("x", F32), _NEIGHBOURS],
    "BinEdgeConv": [
        *[("node_bits", I32), ("x", F32), _NEIGHBOURS, ("edge_scale", F32), ("edge_shift", F32), ("weights", I32)],
        *[(name, F32) for name in ("alpha", "beta", "gamma", "slope")],
    ],
    "EdgeMax": [("x", F32), ("node", F32), _NEIGHBOURS, ("beta", F32), ("gamma", F32)],
    "DensePool": [("x", I32), ("weights", I32)],
    "ScaledPool": [("x", I32), ("weights", I32), ("scale", F32)],
    "Pack": [("x", F32)],
    "Unpack": [("x", I32)],
    "BinaryDense": [("x", I32), ("weights", I32), ("multiplier", F32), ("bias", F32)],
    "BinaryDenseBits": [("x", I32), ("weights", I32), ("thresholds", I32)],
    "PackedMax": [("x", I32)],
}
OUTPUTS: dict[str, list[tuple[str, int]]] = {
    "WithSelfLoops": [("edge_index_out", I64)],
    "CooToCsr": [("indptr", I32), ("indices", I32), ("edges", I32)],
    "IndexToCsr": [("indptr", I32), ("edges", I32)],
    "QAggregate": [("out", U8)],
    "QTable": [("out", U8)],
    "Quantize": [("out", U8)],
    "QLinear": [("out", U8)],
    "QLinearFloat": [("out", F32)],
    "Aggregate": [("out", F32)],
    "AggregateInt32": [("out", I32)],
    "SegmentSoftmax": [("out", F32)],
    "GatAggregate": [("out", F32)],
    "QGatAggregate": [("out", U8)],
    "Degree": [("out", F32)],
    "EdgeProduct": [("out", F32)],
    "QEdgeProduct": [("out", U8)],
    "HammingKnn": [("out", I32)],
    "Knn": [("out", I32)],
    "XorEdgeConv": [("out", I32)],
    "GatherMax": [("out", F32)],
    "BinEdgeConv": [("out", F32)],
    "EdgeMax": [("out", F32)],
    "DensePool": [("out", F32)],
    "ScaledPool": [("out", F32)],
    "Pack": [("out", I32)],
    "Unpack": [("out", F32)],
    "BinaryDense": [("out", F32)],
    "BinaryDenseBits": [("out", I32)],
    "PackedMax": [("out", I32)],
}


def model(op: str, attributes: dict[str, Any], given: set[str], outputs: int | None = None) -> bytes:
    """A file with the one operator `op`, whose inputs are the graph's; those not in `given` are left out."""
    inputs = [name if name in given else "" for name, _ in INPUTS[op]]
    while inputs and not inputs[-1]:
        inputs.pop()
    outs = OUTPUTS[op][:outputs]
    node = helper.make_node(op, inputs, [name for name, _ in outs], name=f"the_{op}", domain="bgnn", **attributes)
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info(name, dtype, None) for name, dtype in INPUTS[op] if name in given],
        [helper.make_tensor_value_info(name, dtype, None) for name, dtype in outs],
    )
    # The oldest versions that hold what is used: older runtimes refuse newer files.
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bgnn", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def isa_here() -> str | None:
    """The instruction set that BGNN_ISA (or the processor) chooses; None where it cannot run here."""
    library = ctypes.CDLL(str(library_path()))
    library.bgnn_ort_isa.restype = ctypes.c_char_p
    name = library.bgnn_ort_isa()
    return name.decode() if name else None


def run(op: str, attributes: dict[str, Any], threads: int = 1, **inputs: np.ndarray) -> list[np.ndarray]:
    """One operator, in a session of its own."""
    return session(model(op, attributes, set(inputs)), threads).run(None, inputs)


def coo_to_csr(edge_index: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """indptr, sources and places in the list, sorted by destination, in numpy."""
    order = np.argsort(edge_index[1], kind="stable")
    counts = np.bincount(edge_index[1], minlength=nodes)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return indptr.astype(np.int32), edge_index[0][order].astype(np.int32), order.astype(np.int32)
