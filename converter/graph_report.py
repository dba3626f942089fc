"""The report of a graph network's conversion: each dense layer and each sum over edges, what it became, and why.

Multiply-accumulates and memory are those of the sample inputs: a graph's size is open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.converter.onnx.inspect import operators
from bgnn.converter.report import Layer, Report
from bgnn.converter.verify_codes import CodeCheck
from bgnn.passes.graph import PassResult, aten, is_call

bgnn = torch.ops.bgnn

INTEGER_DENSE = [bgnn.q_linear, bgnn.q_linear_float]
DENSE = [aten.linear, aten.matmul, aten.bmm, aten.mm]
INTEGER_SUMS = [
    bgnn.q_segment_sum, bgnn.q_segment_mean, bgnn.q_segment_max, bgnn.q_aggregate, bgnn.q_gat_aggregate,
]  # fmt: skip
SUMS = [bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max, bgnn.aggregate, bgnn.gat_aggregate]


def build_graph_report(
    gm: fx.GraphModule, inputs: Sequence[Tensor], log: list[tuple[str, list[tuple[str, PassResult]]]],
    checks: list[CodeCheck], target: str, optimize: int, kernels: str, name: str, data: bytes | None,
) -> Report:  # fmt: skip
    """The report, complete or stopped early (`data` None)."""
    refusals = [(step, label, why) for _, results in log for step, r in results for label, why in r.refusals]
    shapes, peak = _run(gm, inputs)
    layers = [_layer(node, shapes, refusals) for node in gm.graph.nodes if _is_layer(node)]
    return Report(
        name=name,
        target=target,
        optimize=optimize,
        kernels=kernels,
        bytes=None if data is None else len(data),
        operators={} if data is None else operators(data),
        macs={
            "INT8": sum(layer.integer_macs for layer in layers),
            "float": sum(layer.float_macs for layer in layers),
        },
        peak_activation_bytes=peak,
        layers=layers,
        rewrites=[(stage, step, r.rewrites) for stage, results in log for step, r in results],
        refusals=refusals,
        checks=list(checks),
        sign_zeros=0,
    )


def _is_layer(node: fx.Node) -> bool:
    return is_call(node, *INTEGER_DENSE, *DENSE, *INTEGER_SUMS, *SUMS) and len(node.meta["val"].shape) > 1


def _run(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> tuple[dict[fx.Node, tuple[int, ...]], int]:
    """Every tensor's shape on the samples, and the bytes of all that is alive at the worst moment."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    sizes: dict[fx.Node, int] = {}

    class Sizes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = tuple(value.shape)
                sizes[n] = value.numel() * value.element_size() if n.op != "get_attr" else 0
            return value

    with torch.no_grad():
        Sizes(gm).run(*inputs)
    order = list(gm.graph.nodes)
    last = {source: i for i, node in enumerate(order) for source in node.all_input_nodes}
    live = peak = 0
    for i, node in enumerate(order):
        live += sizes.get(node, 0)
        peak = max(peak, live)
        live -= sum(sizes.get(source, 0) for source in set(node.all_input_nodes) if last[source] == i)
    return shapes, peak


def _layer(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]], refusals: list[tuple[str, str, str]]) -> Layer:
    label = str(node.meta.get("layer", node.name))
    why = "; ".join(dict.fromkeys(f"{step}: {reason}" for step, at, reason in refusals if at == label))
    x = cast(fx.Node, node.args[0])
    if is_call(node, *INTEGER_DENSE, *DENSE):
        integer = is_call(node, *INTEGER_DENSE)
        macs = math.prod(shapes[node]) * shapes[x][-1]
        became = "INT8" if is_call(node, bgnn.q_linear) else "INT8, float out" if integer else "float"
        was = "dense layer"
    else:
        integer = is_call(node, *INTEGER_SUMS)
        fused = is_call(node, bgnn.q_aggregate, bgnn.q_gat_aggregate, bgnn.aggregate, bgnn.gat_aggregate)
        edges = next((a for a in node.args if isinstance(a, fx.Node) and len(shapes.get(a, ())) == 2
                      and a.meta["val"].dtype == torch.int64), None)  # fmt: skip
        count = shapes[edges][1] if fused and edges is not None else shapes[x][0]
        macs = count * math.prod(shapes[node][1:])
        became = f"{'INT8' if integer else 'float'}{', fused: no tensor of edges' if fused else ''}"
        was = "sum over edges"
    reason = why or ("inputs and weights are quantised" if integer else "its inputs are not quantised")
    return Layer(label, was, became, 0, 0 if integer else macs, reason, macs if integer else 0)
