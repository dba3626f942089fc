"""Which codes saturate when a graph's sums outgrow their range, and at which codes.

A sum over edges, or over the nodes of a graph, grows with the graph. What is computed of it before the next dense
layer (a product, GIN's own features added, a quantiser of a real sum) grows with it. A dense layer ends that: what
leaves its range follows from the sum before.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.graph import arg, aten, is_call, value_of

bgnn = torch.ops.bgnn

_SUMS = ops.having("sum")
_ENDS = [aten.linear, aten.matmul, aten.mm, aten.bmm, bgnn.q_linear, bgnn.q_linear_float]
_EDGES = [aten.index_select, aten.embedding]
_CODED = [
    bgnn.quantize, bgnn.q_add, bgnn.q_mul, bgnn.q_segment_sum, bgnn.q_segment_mean, bgnn.q_aggregate,
    bgnn.q_gat_aggregate,
]  # fmt: skip


def of_sums(graph: fx.Graph) -> list[tuple[fx.Node, str, list[int]]]:
    """(node, a name for it, its codes at the ends that saturation leads to) of all codes of sums."""
    grown: set[fx.Node] = set()
    found = []
    for node in graph.nodes:
        if node.op == "placeholder" and node.meta.get("of_sum"):  # its pieces were summed elsewhere
            grown.add(node)
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor) or is_call(node, *_ENDS, *_EDGES):
            continue
        if not is_call(node, *_SUMS) and not any(source in grown for source in node.all_input_nodes):
            continue
        grown.add(node)
        if is_call(node, *_CODED):
            ends = _ends(node)
            if ends:
                found.append((node, str(node.meta.get("layer") or node.name), ends))
    names = [name for _, name, _ in found]
    return [(node, name if names.count(name) == 1 else f"{name} ({node.name})", ends) for node, name, ends in found]


def _ends(node: fx.Node) -> list[int]:
    """The largest code; the smallest, unless it stands for 0: what a ReLU cuts is not lost."""
    names = [one.name for one in cast(Any, node.target)._schema.arguments]
    quantiser = "y_zero" if "y_zero" in names else "zero_point"
    zero, low, high = (arg(node, names.index(name), name) for name in (quantiser, "low", "high"))
    low, high = max(low, 0), min(high, 255)
    ends = [high, *([low] if low < zero else [])]
    table = arg(node, names.index("table"), "table") if "table" in names else None
    if table is None:
        return ends
    entries = value_of(table)  # of what each code becomes; an end is seen where no other code becomes the same
    return [int(entries[0, end]) for end in ends if len(entries) == 1 and int((entries == entries[0, end]).sum()) == 1]
