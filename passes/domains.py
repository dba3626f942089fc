"""Value domains: which tensors are provably binary {-1, +1} or integers in a range, and where that was lost.

An abstract interpretation over the graph. Sign makes binary; moving, joining, negating and multiplying
binaries keeps it; a dot product of K binaries is an integer in [-K, K]. Passes ask this analysis, never a
module's class. It reads traced and channels-last graphs alike.
"""

from __future__ import annotations

import dataclasses
import math
from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.graph import arg, aten, is_call, is_constant, shape_of, value_of

bgnn = torch.ops.bgnn


@dataclasses.dataclass(frozen=True)
class Domain:
    """What values a tensor can hold. `kind`: "binary" (-1 or +1), "integer" (in [lo, hi]) or "real".

    `lost`: for a real tensor made from binary ones, the op where the property was lost.
    """

    kind: str
    lo: float = -math.inf
    hi: float = math.inf
    lost: str = ""

    @property
    def whole(self) -> bool:
        """Whether every value is an integer."""
        return self.kind in ("binary", "integer")


BINARY = Domain("binary", -1, 1)
REAL = Domain("real")
# Beyond this, float32 sums of integers are no longer exact, so "integer" would promise too much.
EXACT = 1 << 24

MOVES = [*ops.having("move", "one"), *ops.having("lookup"), *ops.having("same"), *ops.having("extremum")]


class Domains(dict[fx.Node, Domain]):
    """The domain of every node; a node that a pass has added since is looked at when it is asked for."""

    def __missing__(self, node: fx.Node) -> Domain:
        self[node] = _domain(node, self)
        return self[node]


def analyse(gm: fx.GraphModule) -> Domains:
    """The domain of every node, in one forward walk."""
    domains = Domains()
    for node in gm.graph.nodes:
        domains[node] = _domain(node, domains)
    return domains


def is_linear(node: fx.Node) -> bool:
    """A dense layer with a constant weight matrix: linear, or a convolution with a window of 1."""
    return (
        is_call(node, aten.linear, aten.conv1d, aten.conv2d)
        and is_constant(node.args[1])
        and all(s == 1 for s in shape_of(cast(fx.Node, node.args[1]))[2:])
    )


def _integer(lo: float, hi: float, where: fx.Node) -> Domain:
    if max(abs(lo), abs(hi)) > EXACT:
        return Domain("real", lost=where.name)
    return Domain("integer", lo, hi)


def of_constant(value: Tensor) -> Domain:
    """The domain of known values."""
    if value.numel() == 0 or value.is_complex() or value.dtype == torch.bool:
        return REAL
    if value.is_floating_point() and not bool((value == value.round()).all()):
        return REAL
    lo, hi = float(value.min()), float(value.max())
    if bool((value.abs() == 1).all()):
        return BINARY
    return Domain("integer", lo, hi) if max(abs(lo), abs(hi)) <= EXACT else REAL


def _domain(node: fx.Node, domains: dict[fx.Node, Domain]) -> Domain:
    if node.op == "get_attr":
        return of_constant(value_of(node))
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return REAL
    inputs = [domains[n] for n in node.all_input_nodes]
    first = domains[node.args[0]] if node.args and isinstance(node.args[0], fx.Node) else REAL
    if is_call(node, bgnn.binarize, bgnn.unpack, bgnn.dot_threshold, bgnn.xor_edge_layer):
        return BINARY
    if is_call(node, *MOVES):
        return first
    if is_call(node, aten.cat):
        parts = [domains[n] for n in cast(list[fx.Node], node.args[0])]
        return _join(parts, node)
    if is_call(node, aten.neg):
        return dataclasses.replace(first, lo=-first.hi, hi=-first.lo)
    if is_linear(node):
        weight = domains[cast(fx.Node, node.args[1])]
        fan_in = shape_of(cast(fx.Node, node.args[1]))[1]
        if is_call(node, aten.conv1d, aten.conv2d) and arg(node, 6, "groups", 1) != 1:
            return REAL
        bias = arg(node, 2, "bias")
        b = domains[bias] if isinstance(bias, fx.Node) else Domain("integer", 0, 0)
        if first.whole and weight.whole and b.whole:
            bound = fan_in * max(abs(first.lo), abs(first.hi)) * max(abs(weight.lo), abs(weight.hi))
            return _integer(b.lo - bound, b.hi + bound, node)
        return _lost(node, inputs)
    if is_call(node, aten.matmul, aten.bmm, aten.mm):
        other = domains[cast(fx.Node, node.args[1])]
        if first.whole and other.whole:
            bound = shape_of(cast(fx.Node, node.args[0]))[-1] * first.hi * other.hi
            if first.kind == other.kind == "binary":
                return _integer(-bound, bound, node)
        return _lost(node, inputs)
    if is_call(node, aten.relu):
        return dataclasses.replace(_as_integer(first), lo=max(first.lo, 0), hi=max(first.hi, 0))
    if is_call(node, aten.abs) and first.whole:
        return Domain("integer", 0, max(abs(first.lo), abs(first.hi)))
    if is_call(node, aten.mul, aten.add, aten.sub) and not node.kwargs:
        sides = [domains[a] if isinstance(a, fx.Node) else of_constant(torch.tensor(a)) for a in node.args]
        a, b = sides
        if is_call(node, aten.mul):
            if a.kind == b.kind == "binary":
                return BINARY
            if a.whole and b.whole:
                ends = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
                return _integer(min(ends), max(ends), node)
        elif a.whole and b.whole:
            sign = 1 if is_call(node, aten.add) else -1
            ends = [a.lo + sign * y for y in (b.lo, b.hi)] + [a.hi + sign * y for y in (b.lo, b.hi)]
            return _integer(min(ends), max(ends), node)
        return _lost(node, inputs)
    if is_call(node, aten.sum) and first.whole:
        x = cast(fx.Node, node.args[0])
        count = x.meta["val"].numel() // max(node.meta["val"].numel(), 1)
        return _integer(first.lo * count, first.hi * count, node)
    return _lost(node, inputs)


def _as_integer(domain: Domain) -> Domain:
    return dataclasses.replace(domain, kind="integer") if domain.kind == "binary" else domain


def _join(parts: list[Domain], node: fx.Node) -> Domain:
    if all(p.kind == "binary" for p in parts):
        return BINARY
    if all(p.whole for p in parts):
        return Domain("integer", min(p.lo for p in parts), max(p.hi for p in parts))
    return _lost(node, parts)


def _lost(node: fx.Node, inputs: list[Domain]) -> Domain:
    for domain in inputs:
        if domain.lost:
            return Domain("real", lost=domain.lost)
    return Domain("real", lost=node.name) if any(d.whole for d in inputs) else REAL
