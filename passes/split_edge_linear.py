"""A dense layer on edge features is computed per node, not per edge, where its input is linear in the nodes.

`W [x_i, x_j - x_i] = (W1 - W2) x_i + W2 x_j`: a product over N nodes instead of N*k edges, k times fewer
operations (Eq. 3 of the binary GNN paper; exact algebra, other rounding). The input is taken apart through joins,
sums, differences, repetitions and gathers; what depends on one node is multiplied there and repeated or
gathered afterwards. XOR edges of two binaries are not linear in the nodes: the pass leaves them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes import domains as dm
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.canonicalise import expand
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

NEEDS = ("gather_nodes",)

bgnn = torch.ops.bgnn


@dataclasses.dataclass
class Term:
    """`weight @ base`, then gathered by `index` where there is one; broadcasts to the layer's shape."""

    base: fx.Node
    index: fx.Node | None
    weight: Tensor


def run(gm: fx.GraphModule) -> PassResult:
    """Splits each layer for which the parts together cost less than 0.9 of the whole."""
    result = PassResult()
    domains = dm.analyse(gm)
    for layer in calls(gm.graph, aten.linear):
        x, weight = cast(fx.Node, layer.args[0]), layer.args[1]
        if not is_constant(weight) or len(shape_of(x)) < 3:
            continue
        matrix = value_of(cast(fx.Node, weight))
        if domains[x].kind == "binary" and binary_rows(matrix) is not None:
            if any(t.index is not None or shape_of(t.base)[:-1] != shape_of(x)[:-1] for t in _terms(x, matrix)):
                result.refuse(layer, "binary layer: one threshold per channel needs the whole dot product at the edge")
            continue
        terms = _merged(_terms(x, matrix))
        cost = sum(math.prod(shape_of(t.base)[:-1]) * t.weight.shape[1] for t in terms)
        if cost > 0.9 * math.prod(shape_of(x)):
            continue
        _split(layer, terms)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _terms(x: fx.Node, weight: Tensor) -> list[Term]:
    """`weight @ x` as a sum over the tensors that x is linearly made of."""
    shape = shape_of(x)
    if is_call(x, aten.cat) and cast(int, x.args[1]) % len(shape) == len(shape) - 1:
        out: list[Term] = []
        start = 0
        for part in cast(list[fx.Node], x.args[0]):
            width = shape_of(part)[-1]
            out += _terms(part, weight[:, start : start + width])
            start += width
        return out
    if is_call(x, aten.add, aten.sub) and all(
        isinstance(a, fx.Node) and not is_constant(a) and shape_of(a)[-1:] == shape[-1:] for a in x.args
    ):
        sign = -1.0 if is_call(x, aten.sub) else 1.0
        return _terms(cast(fx.Node, x.args[0]), weight) + _terms(cast(fx.Node, x.args[1]), sign * weight)
    if is_call(x, aten.neg):
        return _terms(cast(fx.Node, x.args[0]), -weight)
    if is_call(x, aten.expand) and shape_of(cast(fx.Node, x.args[0]))[-1] == shape[-1]:
        return [Term(cast(fx.Node, x.args[0]), None, weight)]
    if is_call(x, bgnn.gather_nodes):
        return [Term(cast(fx.Node, x.args[0]), cast(fx.Node, x.args[1]), weight)]
    return [Term(x, None, weight)]


def _merged(terms: list[Term]) -> list[Term]:
    out: list[Term] = []
    for term in terms:
        for other in out:
            if other.base is term.base and other.index is term.index:
                other.weight = other.weight + term.weight
                break
        else:
            out.append(term)
    return out


def _split(layer: fx.Node, terms: list[Term]) -> None:
    source = cast(fx.Node, layer.args[1])
    bias = layer.args[2] if len(layer.args) > 2 else None
    parts: list[fx.Node] = []
    # The smallest product carries the bias, and additions go from small to large tensors.
    for term in sorted(terms, key=lambda t: (t.index is not None, t.base.meta["val"].numel())):
        product = call(layer, aten.linear.default, term.base, constant(layer, term.weight, source), bias)
        bias = None
        if term.index is not None:
            product = call(layer, bgnn.gather_nodes.default, product, term.index)
        parts.append(product)
    total = parts[0]
    for part in parts[1:]:
        total = call(layer, aten.add.Tensor, part, total)
    if shape_of(total) != shape_of(layer):
        total = expand(layer, total, shape_of(layer))
    replace(layer, total)
