"""Scales and offsets of a dense layer's binary inputs go behind it: `alpha * sign(x)` is a sign to the layer.

    W (s b + o)       = s (W b) + W o            one scale s, an offset per channel (where(x >= t, a, -a); {0, 1} steps)
    W (S b)           = (W S) b                  a scale per channel, where W S still has one absolute value a row
    W (r b)           = r (W b)                  a scale r per row of the input (XNOR-Net's K = mean|x|)

for b of -1 and +1 and weights of one absolute value a row; the multiplier and bias of the binary layer take s and o.
Rounds differently from PyTorch, which adds up multiples of s: a sign after it may hang on that, so no such layer
counts as exact. Where the weights would need a scale per input channel, the layer stays as it is, with that reason.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes import domains as dm
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.chains import affine_of, data_of
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites each `linear(affine(binary), weight)` whose product can be binary."""
    result = PassResult()
    domains = dm.analyse(gm)
    for layer in calls(gm.graph, aten.linear):
        if not is_constant(layer.args[1]):
            continue
        found = unscaled(cast(fx.Node, layer.args[0]), domains)
        if found is None:
            continue
        signs, rows, (scale, offset), after = found
        given = cast(fx.Node, layer.args[1])
        weight = value_of(given)
        uniform = bool((scale == scale[0]).all())
        signed = weight if uniform else weight * scale
        if binary_rows(signed) is None:
            if not uniform and binary_rows(weight) is not None:
                result.refuse(
                    layer, "its inputs are signs with a scale for each channel, which no row of signs can take"
                )
            continue
        bias = value_of(cast(fx.Node, layer.args[2])) if len(layer.args) > 2 and layer.args[2] is not None else None
        wide = weight.double()
        inner = wide @ offset.double()
        outer = wide @ after.double() + (0 if bias is None else bias.double())
        if not rows:
            inner, outer = torch.zeros_like(inner), inner + outer
        name = str(given.target)
        new = call(layer, aten.linear.default, signs, constant(layer, signed, given))
        new.meta["rescaled"] = True
        if uniform and scale[0] != 1:
            new = call(layer, aten.mul.Tensor, new, float(scale[0]))
        new = _plus(layer, new, inner.float(), f"{name}_offset")
        for row in rows:
            new = call(layer, aten.mul.Tensor, new, row)
        replace(layer, _plus(layer, new, outer.float(), f"{name}_bias"))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _plus(layer: fx.Node, x: fx.Node, shift: Tensor, name: str) -> fx.Node:
    return x if not bool(shift.any()) else call(layer, aten.add.Tensor, x, constant(layer, shift, name))


def unscaled(x: fx.Node, domains: dm.Domains) -> tuple[fx.Node, list[fx.Node], tuple[Tensor, Tensor], Tensor] | None:
    """(b, rows r, (S, o), p) with x = (S b + o) r + p; None where x is no rescaled binary tensor, or is one itself."""
    if domains[x].kind == "binary" or not shape_of(x):
        return None
    channels = shape_of(x)[-1]
    steps: list[fx.Node | tuple[Tensor, Tensor]] = []
    while domains[x].kind != "binary":
        affine = affine_of(x)
        row = _row_factor(x)
        if affine is not None:
            steps.append(affine)
            x = data_of(x)
        elif row is not None:
            x, factor = row
            steps.append(factor)
        else:
            return None
    scale, offset, after = torch.ones(channels), torch.zeros(channels), torch.zeros(channels)
    rows: list[fx.Node] = []
    for step in reversed(steps):
        if isinstance(step, fx.Node):
            if bool(after.any()):
                return None
            rows.append(step)
            continue
        scale, offset, after = scale * step[0], offset * step[0], after * step[0]
        if rows:
            after = after + step[1]
        else:
            offset = offset + step[1]
    return x, rows, (scale, offset), after


def _row_factor(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(x, r) if the node is x * r with one r for all channels."""
    if not is_call(node, aten.mul) or node.kwargs:
        return None
    left, right = node.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    for x, r in ((left, right), (right, left)):
        if (
            shape_of(x) == shape_of(node)
            and len(shape_of(r)) == len(shape_of(x))
            and shape_of(r)[-1] == 1 != shape_of(x)[-1]
        ):
            return x, r
    return None
