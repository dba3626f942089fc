"""Gather, message and segment sum as one operator of the project's own (`--kernels bgnn`): no tensor of edges is left.

    segment_sum(x[source] * w, target)                                    aggregate(x, edges, w)
    q_segment_sum(q_mul(x[source], w), target)                            q_aggregate(x, edges, w)
    segment_sum(segment_softmax(leaky_relu(a[source] + b[target])) * x[source], target)      gat_aggregate
    the same with quantised scores and messages                           q_gat_aggregate
    q_table(q_aggregate(x, edges))                                        q_aggregate(x, edges, table)

The fused operators compute the same numbers in the same order of operations (converter.dialect_int8). Exact.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    calls,
    is_call,
    only_user,
    remove_dead_code,
    replace,
    shape_of,
)

NEEDS = ("segment_sum", "segment_mean", "segment_max", "segment_softmax", "q_segment_sum", "q_mul", "q_table")
MAKES = ("aggregate", "gat_aggregate", "q_aggregate", "q_gat_aggregate")

bgnn = torch.ops.bgnn
OTHERS = "its messages are no gathered rows times a number for each edge"
SIGNS = "its messages are signs, gathered as bits, and the fused operator reads floats or 8-bit codes"
NO_QUANTISER = (0.0, 0, 0, 255)
TABLE = 16  # q_aggregate's argument, its last


def run(gm: fx.GraphModule) -> PassResult:
    """Fuses what it can; a sum over edges that is something else stays, with the reason."""
    result = PassResult()
    for node in calls(gm.graph, bgnn.q_segment_sum, bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max):
        new = _integer(node) if is_call(node, bgnn.q_segment_sum) else _float(node)
        if new is not None:
            replace(node, new)
            result.rewrites += 1
        elif len(shape_of(node)) > 1 and _ends(node) is not None:
            messages = cast(fx.Node, node.args[0])
            signs = any(is_call(n, bgnn.unpack) for n in (messages, *messages.all_input_nodes))
            result.refuse(node, SIGNS if signs else OTHERS)
    for node in calls(gm.graph, bgnn.q_table):
        codes, table = cast(tuple[fx.Node, fx.Node], node.args)
        if is_call(codes, bgnn.q_aggregate) and only_user(codes) is node and arg(codes, TABLE, "table") is None:
            replace(node, call(node, bgnn.q_aggregate.default, *codes.args[:TABLE], table, like=codes))
            result.rewrites += 1
    remove_dead_code(gm)
    return result


def _row(node: Any, row: int) -> fx.Node | None:
    """The edges whose sources (row 0) or targets (row 1) `node` is."""
    if is_call(node, aten.select) and node.args[1] == 0 and node.args[2] == row:
        return cast(fx.Node, node.args[0])
    return None


def _ends(node: fx.Node) -> fx.Node | None:
    """The edges that a segment reduction sums over by target."""
    return _row(node.args[3 if is_call(node, bgnn.q_segment_sum) else 1], 1)


def _gathered(node: Any, edges: fx.Node, row: int = 0) -> fx.Node | None:
    """`x` if `node` is x gathered by these edges' sources (or targets)."""
    if is_call(node, aten.index_select) and node.args[1] == 0 and _row(node.args[2], row) is edges:
        return cast(fx.Node, node.args[0])
    return None


def _column(node: Any) -> fx.Node | None:
    """The tensor `[E]` behind one reshaped to `[E, 1]`."""
    if is_call(node, aten.reshape) and len(shape_of(node)) == 2 and shape_of(node)[1] == 1:
        source = cast(fx.Node, node.args[0])
        return source if len(shape_of(source)) == 1 else None
    return None


def _integer(node: fx.Node) -> fx.Node | None:
    messages, scale, zero, _, n, *last = cast(tuple[Any, ...], node.args)
    edges = _ends(node)
    if edges is None:
        return None
    if len(shape_of(messages)) == 2:
        x = _gathered(messages, edges)
        if x is not None:
            return call(node, bgnn.q_aggregate.default, x, scale, zero, edges, None, 1.0, 0, *NO_QUANTISER, *last, n)
    if is_call(messages, bgnn.q_mul) and only_user(messages) is node:
        a, b = messages.args[0:3], messages.args[3:6]
        for left, right in ((a, b), (b, a)):
            x, weight = _gathered(left[0], edges), _column(right[0])
            if x is not None and weight is not None and len(shape_of(x)) == 2:
                message = messages.args[6:]
                return call(
                    node, bgnn.q_aggregate.default, x, *left[1:], edges, weight, *right[1:], *message, *last, n
                )  # fmt: skip
    if is_call(messages, bgnn.quantize) and only_user(messages) is node:
        found = _attention(cast(fx.Node, messages.args[0]), edges)
        if found is not None and is_call(found[0], bgnn.dequantize):
            real, scores, slope, quantiser = found
            values, x_scale, x_zero = real.args
            x = _gathered(values, edges)
            if x is not None:
                return call(
                    node, bgnn.q_gat_aggregate.default, x, x_scale, x_zero, *scores, edges, *quantiser, slope,
                    *messages.args[1:], *last, n,
                )  # fmt: skip
    return None


def _float(node: fx.Node) -> fx.Node | None:
    messages, _, n = cast(tuple[fx.Node, fx.Node, Any], node.args)
    edges = _ends(node)
    if edges is None:
        return None
    reduce = {bgnn.segment_sum: "sum", bgnn.segment_mean: "mean", bgnn.segment_max: "max"}[
        cast(Any, node.target).overloadpacket
    ]
    if len(shape_of(messages)) == 2:
        x = _gathered(messages, edges)
        if x is not None:
            return call(node, bgnn.aggregate.default, x, edges, None, n, reduce)
        if is_call(messages, aten.mul) and only_user(messages) is node:
            for left, right in (messages.args[:2], tuple(reversed(messages.args[:2]))):
                x, weight = _gathered(left, edges), _column(right)
                if x is not None and weight is not None:
                    return call(node, bgnn.aggregate.default, x, edges, weight, n, reduce)
    if reduce == "sum":
        found = _attention(messages, edges)
        if found is not None and found[3] == NO_QUANTISER:
            x = _gathered(found[0], edges)
            if x is not None:
                return call(node, bgnn.gat_aggregate.default, x, *found[1], edges, n, found[2])
    return None


def _attention(
    product: fx.Node, edges: fx.Node
) -> tuple[fx.Node, tuple[fx.Node, fx.Node], float, tuple[float, int, int, int]] | None:
    """(x_j, (scores of sources, of targets), slope, the scores' quantiser) of `attention * x_j`."""
    if not is_call(product, aten.mul) or len(shape_of(product)) != 3:
        return None
    for x, attention in (product.args[:2], tuple(reversed(product.args[:2]))):
        if not is_call(attention, aten.reshape) or shape_of(cast(fx.Node, attention))[2] != 1:
            continue
        softmax = cast(fx.Node, cast(fx.Node, attention).args[0])
        if not is_call(softmax, bgnn.segment_softmax) or _row(softmax.args[1], 1) is not edges:
            continue
        activated = cast(fx.Node, softmax.args[0])
        if not is_call(activated, aten.leaky_relu):
            continue
        slope, total = cast(float, arg(activated, 1, "negative_slope", 0.01)), cast(fx.Node, activated.args[0])
        quantiser: tuple[float, int, int, int] = NO_QUANTISER
        if is_call(total, bgnn.dequantize):
            codes = cast(fx.Node, total.args[0])
            if not is_call(codes, bgnn.quantize) or codes.args[1:3] != total.args[1:]:
                continue
            quantiser, total = cast(Any, codes.args[1:]), cast(fx.Node, codes.args[0])
        if not is_call(total, aten.add) or total.kwargs:
            continue
        for left, right in (total.args[:2], tuple(reversed(total.args[:2]))):
            sources, targets = _gathered(left, edges, 0), _gathered(right, edges, 1)
            if sources is not None and targets is not None:
                return cast(fx.Node, x), (sources, targets), slope, quantiser
    return None
