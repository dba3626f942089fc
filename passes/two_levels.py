"""Weights of two levels a row are signs and a constant: AdaBin's `alpha * sign(w) + beta`, {0, 1}.

    linear(x, W)  ->  linear(x, s S) + linear(x, ones) * m      W = s S + m, with s and m for each row

where x are signs, perhaps rescaled: both products are then binary, the second one of a single output. Rounds
differently from PyTorch (one product more).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes import domains as dm
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.graph import PassResult, aten, call, calls, constant, is_constant, replace, value_of
from bgnn.passes.sink_scales import unscaled

NEEDS = ("binarize",)

SAME = 1e-5  # of the larger level: as far as two numbers of one level may lie apart


def run(gm: fx.GraphModule) -> PassResult:
    """Splits every such layer; `rewrites` counts them."""
    result = PassResult()
    domains = dm.analyse(gm)
    for layer in calls(gm.graph, aten.linear):
        x, weight = cast(tuple[fx.Node, fx.Node], layer.args[:2])
        if not is_constant(weight) or binary_rows(value_of(weight)) is not None:
            continue
        levels = two_levels(value_of(weight))
        found = unscaled(x, domains)
        if levels is None or (domains[x].kind != "binary" and (found is None or bool((found[2][0].diff() != 0).any()))):
            continue
        signs, middle = levels
        matrix, ones = constant(layer, signs, weight), constant(layer, torch.ones_like(signs[:1]), "ones")
        if "source" in weight.meta:
            ones.meta["source"] = f"{weight.meta['source']}, sums"
        whole = call(layer, layer.target, x, matrix, *layer.args[2:])
        sums = call(layer, aten.linear.default, x, ones)
        rest = call(layer, aten.mul.Tensor, sums, constant(layer, middle, "middle"))
        replace(layer, call(layer, aten.add.Tensor, whole, rest))
        result.rewrites += 1
    return result


def two_levels(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """(`s S` f32 `[O, K]`, `m` f32 `[O]`) of weights `s S + m` with signs S; None of weights of more levels a row."""
    if weight.dim() != 2 or weight.shape[1] < 3 or not weight.is_floating_point():
        return None
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    within = SAME * torch.maximum(low.abs(), high.abs())
    upper = weight >= (low + high) / 2
    if bool(((weight - torch.where(upper, high, low)).abs() > within).any()) or bool((high - low <= within).any()):
        return None
    half = (high - low) / 2
    return torch.where(upper, half, -half), ((high + low) / 2).flatten()
