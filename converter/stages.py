"""The stages of a conversion: which passes lead to each, and which ops may stand in the graph after it.

traced    ATen as exported, in one spelling; signs found, constants folded, tie order settled. The reference.
semantic  what the graph means: k-NN, gathers, channels last, one node per dense layer.
integer   norms, rescaling and signs folded into thresholds; binary tensors as bits.
target    only ops the emitter writes.

A stage is its spec: leaving it with an op that is not in it is an error that names the op and the line of the user's
model it came from. Specs follow from what the emitter can write, its lowerings, and from what passes owe
(passes/ops.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx

from bgnn.converter.errors import ConversionError
from bgnn.converter.onnx.emit import supported_ops as onnx_ops
from bgnn.converter.sizes import check_open, host_size
from bgnn.converter.sparse_matrices import WITHOUT_SPARSE
from bgnn.converter.targets import STAGES, TARGETS, names_with
from bgnn.converter.tflite.emit import supported_ops as tflite_ops
from bgnn.converter.trace import DENSE_BATCH, refuse_open
from bgnn.passes import (
    cancel_opposites,
    canonicalise,
    channels_last,
    decompose,
    dense_before_sum,
    fold_batch_norm,
    fold_constants,
    fold_sign,
    fold_threshold,
    fuse_aggregation,
    fuse_bin_edge_conv,
    fuse_edge_max,
    fuse_gather_max,
    fuse_pool,
    fuse_rescale,
    fuse_xor_edge_conv,
    hoist_binarize,
    hoist_fake_quant,
    join_edges,
    keep_ties,
    legalise,
    lower_int8,
    lower_knn,
    merge_equal_nodes,
    neighbour_rows,
    neighbour_sums,
    neighbour_tables,
    ops,
    pack_bits,
    quantised_weights,
    recognise_aggregation,
    recognise_binarize,
    recognise_fake_quant,
    recognise_gather,
    recognise_knn,
    recognise_prelu,
    recognise_self_loops,
    reduce_before_elementwise,
    sink_reshapes,
    sink_scales,
    sort_edges,
    split_edge_linear,
    split_heads,
    split_xor_edge,
    tabulate,
    two_levels,
    unpack_edges,
    user_code,
    write_out_quantisers,
)
from bgnn.passes.graph import PassResult, Tap, aten, calls, getitem, is_call, is_static, shape_of, snapshot
from bgnn.passes.index_limits import edge_inputs

bgnn = torch.ops.bgnn

SUMS = [bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max]
Pass = Callable[[fx.GraphModule], PassResult]
Step = tuple[str, Pass]


def _steps(*modules: ModuleType) -> list[Step]:
    return [(m.__name__.rsplit(".", 1)[-1], m.run) for m in modules]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a conversion aims at. `kernels`: "stock" (any LCE runtime) or "bgnn" (this project's operators too)."""

    target: str
    optimize: int = 1
    kernels: str = "stock"


def passes_to(stage: str, plan: Plan) -> list[Step]:
    """The passes that lead from the stage before to `stage`: one list for every model, which they leave if it has
    nothing for them."""
    target = TARGETS[plan.target]
    own, naive = plan.kernels == "bgnn", plan.optimize == 0
    if stage == "traced":
        # Twice: what is constant shows after the first round (`matmul(x, sign(w).T)` is a dense layer).
        return _steps(
            cancel_opposites, canonicalise, decompose, recognise_binarize, write_out_quantisers, quantised_weights,
            fold_constants, merge_equal_nodes, recognise_fake_quant, fold_constants, canonicalise, merge_equal_nodes,
            join_edges, merge_equal_nodes, recognise_self_loops, unpack_edges, canonicalise, merge_equal_nodes,
            recognise_aggregation, neighbour_rows, hoist_fake_quant, merge_equal_nodes, canonicalise,
        )  # fmt: skip
    if stage == "semantic":
        return _steps(
            recognise_knn, recognise_gather, canonicalise, channels_last, *([] if naive else [split_heads]),
            fold_constants, canonicalise, merge_equal_nodes, sink_reshapes, canonicalise, recognise_prelu,
            *([two_levels] if target.bits and not naive else []), merge_equal_nodes,
        )  # fmt: skip
    if stage == "integer":
        steps = [] if naive else _steps(fold_batch_norm, *([sink_scales] if target.bits else []), fuse_rescale)
        if target.codes:
            steps.append(("lower_int8", lambda gm: lower_int8.run(gm, naive=naive, sums=target.sums)))
        else:
            steps += _steps(keep_ties)
        if naive:
            return [*steps, ("pack_bits", lambda gm: pack_bits.run(gm, stay_packed=False))] if target.bits else steps
        if target.bits:
            steps += _steps(
                fold_threshold, *([fuse_xor_edge_conv, fold_sign, fuse_bin_edge_conv] if own else [split_xor_edge])
            )
        steps += _steps(split_edge_linear, reduce_before_elementwise, merge_equal_nodes)
        if own and target.bits:
            steps += _steps(fuse_pool)
        if target.bits:
            steps += _steps(
                hoist_binarize, fold_sign, merge_equal_nodes, pack_bits, sink_reshapes, reduce_before_elementwise
            )
        return steps
    steps = [("lower_knn", lambda gm: lower_knn.run(gm, naive=naive, popcount=own))]
    steps += _steps(fuse_edge_max, fuse_gather_max) if own else []
    if target.codes and not naive:
        steps.append(("tabulate", lambda gm: tabulate.run(gm, any_table=own)))
    if own:
        steps += _steps(fuse_aggregation)
    steps += _steps(legalise, fold_constants, canonicalise, merge_equal_nodes)
    if own:
        steps += _steps(sort_edges)
    elif target.format == "onnx" and not naive:
        steps.append(("neighbour_tables", lambda gm: neighbour_tables.run(gm, host_size)))
    return steps


def walk(
    gm: fx.GraphModule, plan: Plan, calibrate: Pass | Callable[[fx.GraphModule], None] | None = None
) -> Iterator[tuple[str, list[tuple[str, PassResult]]]]:
    """Runs the passes stage after stage, in place; yields each stage's name and its passes' results.

    `calibrate` puts quantisers into the traced graph of a float network.
    """
    for stage in STAGES:
        results = [(name, run(gm)) for name, run in passes_to(stage, plan)]
        if stage == "traced":
            if calibrate is not None:
                mark_decisions(gm)
                results += [(name, run(gm)) for name, run in BEFORE_CALIBRATION]
                mark_decisions(gm)
                name_layers(gm)
                check_ahead(gm, plan)
                calibrate(gm)
            mark_decisions(gm)
            fixed = all(is_static(n) for n in gm.graph.nodes if n.op == "placeholder")
            if fixed and not edge_inputs(gm.graph):
                refuse_open(gm)
        check_spec(gm, stage, plan)
        check_sizes(gm, plan)
        if stage == "semantic":
            name_layers(gm)
        gm.graph.lint()
        gm.recompile()
        yield stage, results


def check_ahead(gm: fx.GraphModule, plan: Plan) -> None:
    """Raises ConversionError for an op that no pass will take: found out on a copy, before the samples are run."""
    trial = snapshot(gm)
    for _, run in passes_to("semantic", plan):
        run(trial)
    check_spec(trial, "semantic", plan)


# A float network is calibrated with its norms folded (where a norm stood, its layer's output is what gets a range), and
# with its dense layers on nodes, not on edges, and in front of sums over edges where that is no more work.
BEFORE_CALIBRATION = _steps(
    recognise_knn, recognise_gather, channels_last, canonicalise, fold_batch_norm, split_edge_linear,
    reduce_before_elementwise, dense_before_sum, merge_equal_nodes,
)  # fmt: skip


def mark_decisions(gm: fx.GraphModule) -> None:
    """Taps what verification compares: every sign, every choice of neighbours, the codes of activations' quantisers."""
    for node in gm.graph.nodes:
        picked = getitem(node)
        if (
            is_call(node, bgnn.binarize, bgnn.knn)
            or (is_call(node, bgnn.fake_quant) and not recognise_fake_quant.is_weight(node))
            or (picked is not None and is_call(picked[0], bgnn.topk_lowest) and picked[1] == 1)
        ):
            exact = is_call(node, bgnn.knn) and node.args[2] == "hamming"
            node.meta["tap"] = Tap(node.name, exact=exact)


def name_layers(gm: fx.GraphModule) -> None:
    """Labels each dense layer, k-NN and sum over edges, so that the report can say what became of it.

    Layers that share a weight, or have parts of one (a grouped convolution), are numbered.
    """
    searches = sums = 0
    named: dict[str, list[fx.Node]] = {}
    held = {s.parts[0]: (*s.parts, end) for end, s in neighbour_sums.neighbour_sums(gm.graph).items() if s.held}
    for node in calls(gm.graph, *ops.having("dense", "-owed"), *SUMS, bgnn.knn, aten.sum, aten.mean):
        if is_call(node, bgnn.knn):
            searches += 1
            node.meta["layer"] = f"k-NN {searches}"
        elif is_call(node, *SUMS):
            if len(shape_of(node)) > 1:
                sums += 1
                node.meta["layer"] = f"aggregation {sums}"
        elif is_call(node, aten.sum, aten.mean):
            sums += node in held
            for part in held.get(node, ()):  # of nodes of one degree each
                part.meta["layer"] = f"aggregation {sums}"
        else:
            weight: Any = node.args[1] if len(node.args) > 1 else None
            if is_call(weight, bgnn.fake_quant, bgnn.fake_quant_channel):
                weight = weight.args[0]
            source = weight.meta.get("source") if isinstance(weight, fx.Node) and weight.op == "get_attr" else None
            named.setdefault(source or user_code.short(node), []).append(node)
    for label, nodes in named.items():
        for number, node in enumerate(nodes, start=1):
            node.meta["layer"] = label if len(nodes) == 1 else f"{label} {number} of {len(nodes)}"


def spec(stage: str, plan: Plan) -> frozenset[str] | None:
    """The ops that may stand after a stage, without their overloads (`aten.add`); None: whatever torch.export gives."""
    if stage == "traced":
        return None
    target = TARGETS[plan.target]
    supported = onnx_ops(plan.kernels) if target.format == "onnx" else tflite_ops(plan.kernels)
    written = {name.rsplit(".", 1)[0] for name in supported}
    simulates = target.codes or target.format == "onnx"  # a quantiser in float: onnx-x86 keeps it, TFLite refuses
    for trait, has in (("codes", target.codes), ("fake", simulates), ("bits", target.bits or plan.kernels == "bgnn")):
        if not has:
            written -= {ops.name_of(op) for op in ops.having(trait)}
    return frozenset(written if stage == "target" else written | {ops.name_of(op) for op in ops.having("owed")})


@functools.cache
def _on_onnx() -> frozenset[str]:
    return frozenset(name.rsplit(".", 1)[0] for name in onnx_ops("stock"))


def check_spec(gm: fx.GraphModule, stage: str, plan: Plan) -> None:
    """Raises ConversionError for the first op that may not stand after `stage`."""
    node = misplaced(gm, stage, plan)
    if node is None:
        return
    owing = ops.OWED_BY.get(getattr(node.target, "overloadpacket", None))
    if stage == "target" and owing is not None:
        raise AssertionError(f"{node.target} is left at the end: {owing} owes it{user_code.where(node)}")
    raise ConversionError(unsupported(node, plan.target))


def misplaced(gm: fx.GraphModule, stage: str, plan: Plan) -> fx.Node | None:
    """The first node whose op may not stand after `stage`; None if all may."""
    allowed = spec(stage, plan)
    functions = (node for node in gm.graph.nodes if node.op == "call_function")
    return next((n for n in functions if allowed is not None and ops.name_of(n.target) not in allowed), None)


def check_sizes(gm: fx.GraphModule, plan: Plan) -> None:
    """Raises ConversionError if an open size was fixed; an op that is not supported is the likelier reason."""
    try:
        check_open(gm)
    except ConversionError:
        check_spec(gm, "semantic", plan)
        raise


def unsupported(node: fx.Node, target: str = "") -> str:
    """One line on an op that cannot be converted: the user's call, its place in their model, what to do."""
    by = f" by {target}" if target else ""
    what = user_code.called(node)
    if is_call(node, bgnn.fake_quant, bgnn.fake_quant_channel):
        what = f"the quantiser that ends in {what}"
    return f"{what} is not supported{by}{user_code.where(node)}: {way_out(node, target)}"


def way_out(node: fx.Node, target: str) -> str:
    """What a user can do about an op that the target has not: another target, or other words."""
    over_edges = [
        aten.scatter_add,
        aten.scatter_reduce,
        aten.index_add,
        aten.scatter,
        bgnn.segment_sum,
        aten.index_reduce,
    ]
    if is_call(node, bgnn.fake_quant, bgnn.fake_quant_channel):
        return f"its 8-bit codes need --target {' or '.join(names_with('codes'))}"
    edges = edge_inputs(node.graph)
    open_targets = names_with("open")
    if target and target not in open_targets and ops.name_of(node.target) in _on_onnx():
        return f"{'graph networks' if edges else 'models'} with it go to --target {' or '.join(open_targets)}"
    if is_call(node, *over_edges) and not edges:
        return "give the edges as an input of forward, edge_index int64 [2, E]: then sums over edges are converted"
    if "sparse" in str(node.target) or (node.all_input_nodes and "sparse" in str(node.all_input_nodes[0].target)):
        return WITHOUT_SPARSE
    if is_call(node, aten.sort, aten.argsort, aten.topk) and not is_static(node.all_input_nodes[0]):
        return (
            "it puts any number of rows in order (TopKPooling and SAGPooling do): keep all nodes, multiply them by "
            "their scores, and pool them by the batch vector (global_mean_pool)"
        )
    if "in to_dense_batch" in user_code.called(node):
        return DENSE_BATCH
    masks = [
        n for n in node.all_input_nodes if isinstance(value := n.meta.get("val"), Tensor) and value.dtype == torch.bool
    ]
    if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()) and (masks or not is_call(node, aten.index)):
        return "how many rows it gives depends on the values: keep all rows and mask them (torch.where)"
    return "rewrite this line with the operations of docs/ops.md, or do it before the model"
