"""The stages of a graph network on its way to ONNX: the passes to each, and the ops that may stand after it.

traced    ATen as exported, over open numbers of nodes and edges; fake-quantisers and aggregations found.
semantic  norms and attention scores as what they are.
integer   quantisers as codes, arithmetic between them on codes (`onnx-int8-x86`).
target    only ops that converter/onnx writes; with `--kernels bgnn`, aggregations fused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import fx

from bgnn.passes import (
    cancel_opposites,
    canonicalise,
    decompose,
    fold_batch_norm,
    fold_constants,
    fuse_aggregation,
    graph_norms,
    hoist_fake_quant,
    legalise,
    lower_int8,
    merge_equal_nodes,
    quantised_weights,
    recognise_aggregation,
    recognise_fake_quant,
    recognise_self_loops,
    split_heads,
    tabulate,
    unpack_edges,
    write_out_quantisers,
)
from bgnn.passes.graph import PassResult, Tap, aten, calls, is_call, shape_of

bgnn = torch.ops.bgnn

TARGETS = ("onnx-x86", "onnx-int8-x86")

ARITHMETIC = [
    aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.abs, aten.exp, aten.log, aten.sqrt, aten.rsqrt, aten.pow,
    aten.reciprocal, aten.relu, aten.leaky_relu, aten.elu, aten.gelu, aten.silu, aten.softplus, aten.tanh, aten.sigmoid,
    aten.clamp, aten.hardtanh, aten.relu6, aten.maximum, aten.minimum, aten.ge, aten.gt, aten.le, aten.lt, aten.eq,
    aten.ne, aten.where, aten.masked_fill, aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax,
    aten.amax, aten.amin, aten.mean, aten.sum, aten._to_copy, aten.to, aten.round, bgnn.prelu,
]  # fmt: skip
MOVES = [
    aten.reshape, aten.permute, aten.expand, aten.cat, aten.slice, aten.select, aten.index_select, aten.arange,
    aten.ones, aten.zeros, aten.full, aten.new_ones, aten.new_zeros, aten.new_full, operator.getitem,
]  # fmt: skip
SIZES = [
    aten.sym_size, aten.item, aten._local_scalar_dense, operator.add, operator.sub, operator.mul, operator.floordiv,
]  # fmt: skip
DENSE = [aten.linear, aten.matmul, aten.bmm, aten.mm]
GRAPH = [
    bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max, bgnn.segment_softmax, bgnn.with_self_loops, bgnn.drop_loops,
    bgnn.loop_rows, bgnn.fake_quant, bgnn.fake_quant_channel,
]  # fmt: skip
INTEGER = [
    bgnn.quantize, bgnn.dequantize, bgnn.requantize, bgnn.q_linear, bgnn.q_linear_float, bgnn.q_mul, bgnn.q_add,
    bgnn.q_segment_sum, bgnn.q_segment_mean, bgnn.q_segment_max,
]  # fmt: skip
OWN = [bgnn.q_table, bgnn.q_aggregate, bgnn.q_gat_aggregate, bgnn.aggregate, bgnn.gat_aggregate]

FLOAT_OPS = [*ARITHMETIC, *MOVES, *SIZES, *DENSE, *GRAPH]
SPECS: dict[str, list[Any] | None] = {
    "traced": None,
    "semantic": [*FLOAT_OPS, bgnn.batch_norm],
    "integer": [*FLOAT_OPS, *INTEGER, bgnn.batch_norm],
    "target": [*FLOAT_OPS, *INTEGER, *OWN],
}

Step = tuple[str, Callable[[fx.GraphModule], PassResult]]


def _steps(*modules: ModuleType) -> list[Step]:
    return [(m.__name__.rsplit(".", 1)[-1], m.run) for m in modules]


def passes_to(stage: str, target: str, optimize: int, kernels: str) -> list[Step]:
    """The passes that lead from the stage before to `stage`."""
    naive = optimize == 0
    if stage == "traced":
        return _steps(
            cancel_opposites, canonicalise, decompose, write_out_quantisers, quantised_weights, fold_constants,
            recognise_fake_quant, fold_constants, canonicalise, merge_equal_nodes, recognise_self_loops, unpack_edges,
            canonicalise, merge_equal_nodes,
            recognise_aggregation, hoist_fake_quant, merge_equal_nodes, canonicalise,
        )  # fmt: skip
    if stage == "semantic":
        return _steps(graph_norms, *([] if naive else [split_heads]), canonicalise, merge_equal_nodes)
    if stage == "integer":
        steps: list[Step] = [] if naive else _steps(fold_batch_norm)
        if target == "onnx-int8-x86":
            steps.append(("lower_int8", lambda gm: lower_int8.run(gm, naive=naive)))
        return [*steps, *_steps(merge_equal_nodes)]
    steps = []
    if target == "onnx-int8-x86" and not naive:
        steps.append(("tabulate", lambda gm: tabulate.run(gm, any_table=kernels == "bgnn")))
    if kernels == "bgnn":
        steps += _steps(fuse_aggregation)
    return [*steps, *_steps(legalise, fold_constants, canonicalise, merge_equal_nodes)]


# A float network is calibrated with its norms folded: where a norm stood, its layer's output is what gets a range.
BEFORE_CALIBRATION = _steps(graph_norms, fold_batch_norm, merge_equal_nodes)


def mark_codes(gm: fx.GraphModule) -> None:
    """Taps the tensors that verification compares: the codes of every activation's quantiser."""
    for node in calls(gm.graph, bgnn.fake_quant):
        if not recognise_fake_quant.is_weight(node):
            node.meta["tap"] = Tap(node.name)


def name_layers(gm: fx.GraphModule) -> None:
    """Labels each dense layer and each sum over edges, so that the report can say what became of it."""
    sums = 0
    for node in calls(gm.graph, *DENSE, bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max):
        if not is_call(node, *DENSE):
            if len(shape_of(node)) > 1:
                sums += 1
                node.meta["layer"] = f"aggregation {sums}"
            continue
        weight: Any = node.args[1] if len(node.args) > 1 else None
        if is_call(weight, bgnn.fake_quant, bgnn.fake_quant_channel):
            weight = weight.args[0]
        source = weight.meta.get("source") if isinstance(weight, fx.Node) and weight.op == "get_attr" else None
        node.meta["layer"] = source or node.name
