"""Quantisers that stay float, and whose ties do not go to even codes, quantise what the model gives.

    fake_quant(x, s, z)  of floor(x / s + .5)  ->  fake_quant(floor(x / s + .5) * s, s, z)

An emitter rounds to even; of what is a multiple of the scale already, that changes nothing. Where there are codes,
lower_int8 does the same.
"""

from __future__ import annotations

import torch
from torch import fx

from bgnn.passes.graph import PassResult, calls, remove_dead_code
from bgnn.passes.recognise_fake_quant import is_weight, written_out

NEEDS = ("fake_quant",)

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Puts the model's own arithmetic in front of every such quantiser of activations."""
    result = PassResult()
    for node in calls(gm.graph, bgnn.fake_quant):
        written = written_out(node) if node.meta.get("own_ties") and not is_weight(node) else None
        if written is not None:
            node.args = (written[1], *node.args[1:])
            result.rewrites += 1
    remove_dead_code(gm)
    return result
