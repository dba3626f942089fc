"""GAT's scores as dense layers: a product with one vector per head, summed over the channels, is a matrix product.

    sum_c x[n, h, c] * a[h, c]  ->  linear(x[n, h * C + c], A),   A[h, h * C + c] = a[h, c], else 0

so it runs on codes as any dense layer does; with a quantised vector, A is quantised alike (0 has a code). Scores of one
tensor become one layer. Sums in another order than PyTorch.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    constant,
    is_call,
    is_constant,
    reduced_axes,
    rewrite,
    shape_of,
    value_of,
)
from bgnn.passes.recognise_fake_quant import is_weight

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites every score."""
    return rewrite(gm, [([aten.sum], _score)])


def _score(node: fx.Node) -> fx.Node | None:
    product = cast(fx.Node, node.args[0])
    if not is_call(product, aten.mul) or product.kwargs or arg(node, 2, "keepdim", False) or node.kwargs:
        return None
    shape = shape_of(product)
    if len(shape) != 3 or reduced_axes(node) != [2] or not all(isinstance(size, int) for size in shape[1:]):
        return None
    for x, vector in (product.args[:2], tuple(reversed(product.args[:2]))):
        constant_part = is_constant(vector) or (is_weight(vector) and not is_call(vector, bgnn.fake_quant_channel))
        if constant_part and isinstance(x, fx.Node) and shape_of(x) == shape:
            break
    else:
        return None
    heads, channels = shape[1:]
    vector = cast(fx.Node, vector)
    if heads * heads * channels > 1 << 20:
        return None
    inner = cast(fx.Node, vector.args[0]) if is_weight(vector) else vector
    if value_of(inner).numel() != heads * channels:
        return None
    matrix = constant(node, _diagonal(value_of(inner).reshape(heads, channels)), inner)
    weight = call(node, vector.target, matrix, *vector.args[1:]) if is_weight(vector) else matrix
    flat = call(node, aten.reshape.default, x, [-1, heads * channels])
    return call(node, aten.linear.default, flat, weight)


def _diagonal(vectors: Tensor) -> Tensor:
    """f32 `[H, C]` -> `[H, H * C]`, each row's vector at its own head."""
    return torch.block_diag(*vectors)
