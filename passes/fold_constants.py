"""Computes at conversion time what depends on constants alone: `sign(weights)` becomes a constant of +-1.

Exact: the op itself is run. A result much larger than what it is made from (an expanded table) stays an op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes.graph import (
    PassResult,
    constant,
    getitem,
    is_call,
    is_constant,
    is_static,
    remove_dead_code,
    replace,
    value_of,
)

bgnn = torch.ops.bgnn
LARGEST_GROWTH = 1 << 12  # elements


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces every call whose tensor arguments are all constants by its value.

    Quantisers of weights stay: the constant beneath and the scale tell its codes.
    """
    result = PassResult()
    for node in list(gm.graph.nodes):
        picked = getitem(node)  # one of the results of an operation, as of a sort
        made = node if picked is None else picked[0]
        if made.op != "call_function" or not all(is_constant(n) for n in made.all_input_nodes):
            continue
        if is_call(node, bgnn.fake_quant, bgnn.fake_quant_channel):
            continue
        if not isinstance(node.meta["val"], Tensor) or not is_static(node):
            continue
        if torch.Tag.nondeterministic_seeded in getattr(made.target, "tags", ()):
            continue  # a random number is not a constant
        grown = node.meta["val"].numel() - sum(n.meta["val"].numel() for n in made.all_input_nodes)
        if made.all_input_nodes and grown > LARGEST_GROWTH:
            continue  # what is made of numbers alone, `eye(n)`, has no other form
        args, kwargs = fx.node.map_arg((made.args, dict(made.kwargs)), value_of)
        with torch.no_grad():
            value = cast(Callable[..., Any], made.target)(*args, **kwargs)
            value = value if picked is None else value[picked[1]]
        source = next((n.meta["source"] for n in made.all_input_nodes if "source" in n.meta), None)
        folded = constant(node, value, source or node.name)
        if source:
            folded.meta["source"] = source
        if is_call(node, bgnn.binarize) and node.meta.get("zero_was_zero"):
            folded.meta["sign_zeros"] = int((value_of(node.all_input_nodes[0]) == 0).sum())
        replace(node, folded)
        result.rewrites += 1
    remove_dead_code(gm)
    return result
