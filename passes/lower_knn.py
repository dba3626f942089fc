"""The k-NN search with stock ops: distances as one matrix product, then the k largest scores.

For signs the score is `X X^T` itself (paper, Eq. 21: the Hamming distance is `(d - X X^T)/2`, and a constant and a
positive factor do not change an order). For real features it is `2 x_i x_j - |x_j|^2`: the row's own `|x_i|^2` is the
same along the row. `naive` writes the full distance with every step a separate op, as the models do. Equal scores
go to the lowest index. With `popcount` (`--kernels bgnn`) the search is one operator: `hamming_knn` on the bits, which
never makes the N x N matrix, or `real_knn`. Real distances that nearly tie can round the other way; verification
reports them.
"""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import fx

from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    constant,
    is_call,
    is_constant,
    rewrite,
    shape_of,
)

NEEDS = ("knn",)
MAKES = ("topk_lowest", "hamming_knn", "real_knn", "pack")

bgnn = torch.ops.bgnn


def run(gm: fx.GraphModule, naive: bool = False, popcount: bool = False) -> PassResult:
    """Replaces every `bgnn::knn`."""

    def lowered(node: fx.Node) -> fx.Node:
        x, k, metric = cast(tuple[fx.Node, int, str], node.args[:3])
        group = cast("fx.Node | None", arg(node, 3, "group"))
        if popcount and group is None:
            return _counted(node, x, k, metric)
        score = _naive_score(node, x, metric) if naive else _score(node, x, metric)
        if group is not None:
            score = _within(node, score, group)
        top = call(node, bgnn.topk_lowest.default, score, k, 2, True)
        return call(node, operator.getitem, top, 1)

    return rewrite(gm, [([bgnn.knn], lowered)])


def _counted(node: fx.Node, x: fx.Node, k: int, metric: str) -> fx.Node:
    """The project's own operators. Flipped channels are flipped in both rows: they change no distance."""
    if metric == "l2":
        return call(node, bgnn.real_knn.default, x, k)
    if is_call(x, bgnn.unpack):
        words, channels = cast(fx.Node, x.args[0]), cast(int, x.args[1])
        if is_call(words, aten.bitwise_xor) and is_constant(words.args[1]):
            words = cast(fx.Node, words.args[0])
    else:
        words, channels = call(node, bgnn.pack.default, x), shape_of(x)[-1]
    return call(node, bgnn.hamming_knn.default, words, channels, k)


def _within(node: fx.Node, score: fx.Node, group: fx.Node) -> fx.Node:
    """The score, below all others between nodes of different graphs."""
    batch = shape_of(group)[0]  # 1 where a batch says which graph a node is of
    columns = call(node, aten.reshape.default, group, [batch, -1, 1])
    rows = call(node, aten.reshape.default, group, [batch, 1, -1])
    apart = call(node, aten.ne.Tensor, columns, rows)
    return call(node, aten.where.self, apart, constant(node, torch.tensor(float("-inf")), "far"), score)


def _score(node: fx.Node, x: fx.Node, metric: str) -> fx.Node:
    if metric == "hamming":
        return call(node, aten.matmul.default, x, _turned(node, x))
    # [x_i, -1] . [2 x_j, |x_j|^2]: the whole score in one product, no second pass over N x N values
    square = _squares(node, x)
    minus_one = constant(node, torch.full((1, 1, 1), -1.0), "minus_one")
    sizes = [
        size if isinstance(size, int) else call(node, aten.sym_size.int, square, axis)
        for axis, size in enumerate(shape_of(square))
    ]
    minus_one = call(node, aten.expand.default, minus_one, sizes)
    left = call(node, aten.cat.default, [x, minus_one], 2)
    right = call(node, aten.cat.default, [call(node, aten.mul.Tensor, x, 2.0), square], 2)
    return call(node, aten.matmul.default, left, _turned(node, right))


def _naive_score(node: fx.Node, x: fx.Node, metric: str) -> fx.Node:
    product = call(node, aten.matmul.default, x, _turned(node, x))
    if metric == "hamming":
        distance = call(node, aten.sub.Tensor, product, float(shape_of(x)[-1]))
        return distance
    square = _squares(node, x)
    inner = call(node, aten.mul.Tensor, product, -2.0)
    score = call(node, aten.sub.Tensor, call(node, aten.neg.default, square), inner)
    return call(node, aten.sub.Tensor, score, _turned(node, square))


def _squares(node: fx.Node, x: fx.Node) -> fx.Node:
    return call(node, aten.sum.dim_IntList, call(node, aten.mul.Tensor, x, x), [2], True)


def _turned(node: fx.Node, x: fx.Node) -> fx.Node:
    return call(node, aten.permute.default, x, [0, 2, 1])
