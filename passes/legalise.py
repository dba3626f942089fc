"""The last step to the target: what the emitter has no op for, written with ops it has."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import fx

from bgnn.passes.chains import norm_affine
from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    calls,
    constant,
    is_static,
    remove_dead_code,
    replace,
    shape_of,
)

NEEDS = ("batch_norm", "binarize")

bgnn = torch.ops.bgnn

FEW = 25  # PyTorch takes cdist of more rows by a product of matrices, unless it is told not to
MOST = 1 << 24  # numbers in a tensor of differences


def run(gm: fx.GraphModule) -> PassResult:
    """BatchNorm as a product and a sum; a sign among floats as a comparison; cdist as its formula."""
    result = PassResult()
    for node in calls(gm.graph, bgnn.batch_norm):
        scale, shift = norm_affine(node)
        name = str(cast(fx.Node, node.args[3]).target).replace("running_mean", "norm")
        product = call(node, aten.mul.Tensor, node.args[0], constant(node, scale, f"{name}_scale"))
        replace(node, call(node, aten.add.Tensor, product, constant(node, shift, f"{name}_shift")))
        result.rewrites += 1
    for node in calls(gm.graph, bgnn.binarize):
        positive = call(node, aten.ge.Scalar, node.args[0], 0.0)
        one, minus = constant(node, torch.tensor(1.0), "one"), constant(node, torch.tensor(-1.0), "minus_one")
        replace(node, call(node, aten.where.self, positive, one, minus))
        result.rewrites += 1
    for node in calls(gm.graph, aten.cdist):
        if arg(node, 2, "p", 2.0) != 2.0:
            continue  # another norm: left for the spec to name
        replace(node, _distance(node))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _distance(node: fx.Node) -> fx.Node:
    """`|x - y| = sqrt(max(|x|^2 + |y|^2 - 2 x y, 0))`, or by differences, as PyTorch: then equal rows are 0 apart."""
    x, y = cast(fx.Node, node.args[0]), cast(fx.Node, node.args[1])
    last = len(shape_of(x)) - 1
    if _by_differences(node, x, y):
        column = call(node, aten.reshape.default, x, [*shape_of(x)[:-1], 1, shape_of(x)[-1]])
        row = call(node, aten.reshape.default, y, [*shape_of(y)[:-2], 1, *shape_of(y)[-2:]])
        apart = call(node, aten.sub.Tensor, column, row)
        square = call(node, aten.mul.Tensor, apart, apart)
        return call(node, aten.sqrt.default, call(node, aten.sum.dim_IntList, square, [-1]))
    turn = [*range(last - 1), last, last - 1]
    squares = [call(node, aten.sum.dim_IntList, call(node, aten.mul.Tensor, t, t), [last], True) for t in (x, y)]
    product = call(node, aten.matmul.default, x, call(node, aten.permute.default, y, turn))
    both = call(node, aten.add.Tensor, squares[0], call(node, aten.permute.default, squares[1], turn))
    square = call(node, aten.sub.Tensor, both, call(node, aten.mul.Tensor, product, 2.0))
    return call(node, aten.sqrt.default, call(node, aten.relu.default, square))


def _by_differences(node: fx.Node, x: fx.Node, y: fx.Node) -> bool:
    if not (is_static(x) and is_static(y)) or len(shape_of(x)) > 3 or len(shape_of(y)) > 3:
        return False
    few = max(shape_of(x)[-2], shape_of(y)[-2]) <= FEW
    mode = arg(node, 3, "compute_mode") or 0
    return (mode == 2 or (mode == 0 and few)) and math.prod(shape_of(node)) * shape_of(x)[-1] <= MOST
