"""BatchNorm in inference is `x * s + t` per channel, and a dense layer beside it can take both in.

After a layer: `s (W x + b) + t = (s W) x + (s b + t)`; before one: `W (s x + t) + b = (W s) x + (W t + b)`. A mean
over neighbours or points between layer and norm commutes with the norm. Not where the layer is a product of
binaries: its weights must stay +-1, and fold_threshold or the multiplier of the binary layer takes the norm.
Rounds differently from PyTorch (one product less), within float tolerance.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

from bgnn.passes import domains as dm
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.chains import norm_affine
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    leaves_channels,
    only_user,
    remove_dead_code,
    replace,
    value_of,
)

NEEDS = ("batch_norm",)

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Folds each norm into the layer before it, else into the one after it."""
    result = PassResult()
    domains = dm.analyse(gm)
    for norm in calls(gm.graph, bgnn.batch_norm):
        if _into_previous(norm, domains) or _into_next(norm, domains):
            result.rewrites += 1
        else:
            result.refuse(norm, "no dense layer with real weights beside it")
    remove_dead_code(gm)
    return result


def is_real_layer(node: fx.Node, domains: dict[fx.Node, dm.Domain]) -> bool:
    if not is_call(node, aten.linear) or not is_constant(node.args[1]):
        return False
    x = cast(fx.Node, node.args[0])
    return not (domains[x].kind == "binary" and binary_rows(value_of(cast(fx.Node, node.args[1]))) is not None)


def _into_previous(norm: fx.Node, domains: dict[fx.Node, dm.Domain]) -> bool:
    layer = cast(fx.Node, norm.args[0])
    while is_call(layer, aten.mean) and only_user(layer) is not None:
        if not leaves_channels(layer):
            return False
        layer = cast(fx.Node, layer.args[0])
    if not is_real_layer(layer, domains) or only_user(layer) is None:
        return False
    scale, shift = norm_affine(norm)
    weight = value_of(cast(fx.Node, layer.args[1]))
    bias = value_of(cast(fx.Node, layer.args[2])) if len(layer.args) > 2 and layer.args[2] is not None else 0.0
    new = rebuilt(layer, layer, cast(fx.Node, layer.args[0]), weight * scale[:, None], bias * scale + shift)
    replace(layer, new)
    norm_input = cast(fx.Node, norm.args[0])
    replace(norm, norm_input)
    return True


def _into_next(norm: fx.Node, domains: dict[fx.Node, dm.Domain]) -> bool:
    layer = only_user(norm)
    if layer is None or not is_call(layer, aten.linear) or layer.args[0] is not norm or not is_constant(layer.args[1]):
        return False
    scale, shift = norm_affine(norm)
    weight = value_of(cast(fx.Node, layer.args[1]))
    bias = weight @ shift
    if len(layer.args) > 2 and layer.args[2] is not None:
        bias = bias + value_of(cast(fx.Node, layer.args[2]))
    replace(layer, rebuilt(layer, layer, cast(fx.Node, norm.args[0]), weight * scale, bias))
    return True


def rebuilt(before: fx.Node, layer: fx.Node, x: fx.Node, weight: torch.Tensor, bias: torch.Tensor) -> fx.Node:
    """`layer` again, before another node, on `x` with other weights."""
    old = cast(fx.Node, layer.args[1])
    values = (constant(before, weight, old), constant(before, bias, f"{old.target}_bias"))
    return call(before, aten.linear.default, x, *values, like=layer)
