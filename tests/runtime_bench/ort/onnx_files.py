"""ONNX files of one bgnn operator, and the operators in numpy: the reference for all instruction sets.

It needs numpy, onnx and onnxruntime alone, so that it also runs in an environment of another ONNX Runtime.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

F32, U8, I32, I64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64
INPUTS: dict[str, list[tuple[str, int]]] = {
    "WithSelfLoops": [("edge_index", I64), ("num_nodes", I64)],
    "CooToCsr": [("edge_index", I64), ("num_nodes", I64)],
    "QAggregate": [("x", U8), ("indptr", I32), ("indices", I32), ("weight", U8), ("edges", I32)],
    "Aggregate": [("x", F32), ("indptr", I32), ("indices", I32), ("weight", F32), ("edges", I32)],
    "AggregateInt32": [("x", I32), ("indptr", I32), ("indices", I32)],
    "GatAggregate": [("x", F32), ("indptr", I32), ("indices", I32), ("alpha_source", F32), ("alpha_target", F32)],
}
OUTPUTS: dict[str, list[tuple[str, int]]] = {
    "WithSelfLoops": [("edge_index_out", I64)],
    "CooToCsr": [("indptr", I32), ("indices", I32), ("edges", I32)],
    "QAggregate": [("out", U8)],
    "Aggregate": [("out", F32)],
    "AggregateInt32": [("out", I32)],
    "GatAggregate": [("out", F32)],
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


# ---------------------------------------------------------------------------------- references


def with_self_loops(edge_index: np.ndarray, nodes: int) -> np.ndarray:
    kept = edge_index[:, edge_index[0] != edge_index[1]]
    loops = np.arange(nodes, dtype=np.int64)
    return np.concatenate([kept, np.stack([loops, loops])], axis=1)


def coo_to_csr(edge_index: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(edge_index[1], kind="stable")
    counts = np.bincount(edge_index[1], minlength=nodes)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return indptr.astype(np.int32), edge_index[0][order].astype(np.int32), order.astype(np.int32)


def code(acc: np.ndarray, multiplier: np.float32, zp: int, low: int, high: int) -> np.ndarray:
    return np.clip(np.rint(acc.astype(np.float32) * multiplier) + zp, low, high).astype(np.int64)


def targets(indptr: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def q_aggregate(
    x: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    weight: np.ndarray | None = None,
    edges: np.ndarray | None = None,
    *,
    x_scale: float,
    x_zp: int,
    w_scale: float,
    w_zp: int,
    msg_scale: float,
    msg_zp: int,
    y_scale: float,
    y_zp: int,
    low: int,
    high: int,
) -> np.ndarray:
    f32 = np.float32
    messages = x[indices].astype(np.int64) - x_zp
    scale = f32(x_scale)
    if weight is not None:
        flat = weight.reshape(-1)
        messages *= (flat[edges] if edges is not None else flat).astype(np.int64)[:, None] - w_zp
        scale = scale * f32(w_scale)
    if msg_scale:
        messages = code(messages, scale / f32(msg_scale), msg_zp, low, high) - msg_zp
        scale = f32(msg_scale)
    acc = np.zeros((len(indptr) - 1, x.shape[1]), np.int64)
    np.add.at(acc, targets(indptr), messages)
    return code(acc, scale / f32(y_scale), y_zp, low, high).astype(np.uint8)


def aggregate(
    x: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    weight: np.ndarray | None = None,
    edges: np.ndarray | None = None,
    *,
    reduce: str,
) -> np.ndarray:
    messages = x[indices]
    if weight is not None:
        flat = weight.reshape(-1)
        messages = messages * (flat[edges] if edges is not None else flat)[:, None]
    out = np.zeros((len(indptr) - 1, x.shape[1]), x.dtype)
    if reduce == "max":
        out[:] = -np.inf
        np.maximum.at(out, targets(indptr), messages)
        out[np.diff(indptr) == 0] = 0
        return out
    np.add.at(out, targets(indptr), messages)  # one after the other, in the entries' order
    if reduce == "mean":
        out /= np.maximum(np.diff(indptr), 1).astype(np.float32)[:, None]
    return out


def gat_aggregate(
    x: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    alpha_source: np.ndarray,
    alpha_target: np.ndarray,
    *,
    negative_slope: float,
) -> np.ndarray:
    """In float64: what the operator must come close to."""
    x, alpha_source, alpha_target = (a.astype(np.float64) for a in (x, alpha_source, alpha_target))
    nodes, to = len(indptr) - 1, targets(indptr)
    e = alpha_source[indices] + alpha_target[to]
    e = np.where(e > 0, e, e * np.float32(negative_slope))
    most = np.full((nodes, e.shape[1]), -np.inf)
    np.maximum.at(most, to, e)
    e = np.exp(e - most[to])
    total = np.zeros_like(most)
    np.add.at(total, to, e)
    weights = e / (total[to] + 1e-16)
    out = np.zeros((nodes, *x.shape[1:]))
    np.add.at(out, to, x[indices] * weights[:, :, None])
    return out
