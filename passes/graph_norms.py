"""BatchNorm of node features `[N, C]` is `bgnn::batch_norm` over the last axis, as everywhere in the IR. Exact."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from bgnn.passes.graph import PassResult, aten, call, calls, remove_dead_code, replace, shape_of

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces every eval-mode norm of a matrix."""
    result = PassResult()
    for node in calls(gm.graph, aten.batch_norm):
        x, weight, bias, mean, var, training, _, eps, _ = cast(tuple[Any, ...], node.args)
        if training or len(shape_of(x)) != 2:
            result.refuse(node, "norms of node features [N, C] in eval mode alone are understood")
            continue
        replace(node, call(node, bgnn.batch_norm.default, x, weight, bias, mean, var, eps, like=node))
        result.rewrites += 1
    remove_dead_code(gm)
    return result
