"""A rescaling or shift per output channel after a dense layer with real weights goes into its weights and bias.

`alpha * (W x + b) + c = (alpha W) x + (alpha b + c)`; paper Eq. 9-10 with real inputs, and norms written by hand.
Rank-1 factors over points or neighbours (Eq. 11) are no per-channel multiplier: they stay a broadcast product.
Binary layers keep their +-1 weights; their multiplier is set when they are packed. Rounds differently from
PyTorch, within float tolerance.
"""

from __future__ import annotations

from typing import cast

from torch import fx

from bgnn.passes import domains as dm
from bgnn.passes.chains import affine_of, data_of
from bgnn.passes.fold_batch_norm import is_real_layer, rebuilt
from bgnn.passes.graph import PassResult, aten, is_call, only_user, remove_dead_code, replace, shape_of, value_of


def run(gm: fx.GraphModule) -> PassResult:
    """Folds each product or sum with a per-channel constant into the layer right before it."""
    result = PassResult()
    domains = dm.analyse(gm)
    for node in list(gm.graph.nodes):
        if not is_call(node, aten.mul, aten.add, aten.sub, aten.div):
            continue
        affine = affine_of(node)
        if affine is None:
            if any(isinstance(a, fx.Node) and a.op == "get_attr" and len(shape_of(a)) > 1 for a in node.args):
                result.refuse(node, "a factor over points or neighbours is no per-channel multiplier (paper Eq. 11)")
            continue
        layer = data_of(node)
        if not is_real_layer(layer, domains) or only_user(layer) is None:
            continue
        scale, shift = affine
        weight = value_of(cast(fx.Node, layer.args[1]))
        bias = value_of(cast(fx.Node, layer.args[2])) if len(layer.args) > 2 and layer.args[2] is not None else 0.0
        new = rebuilt(node, layer, cast(fx.Node, layer.args[0]), weight * scale[:, None], bias * scale + shift)
        replace(node, new)
        result.rewrites += 1
    remove_dead_code(gm)
    return result
