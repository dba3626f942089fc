"""Open sizes: a graph's numbers of nodes and edges are not known when a model is converted.

`torch.export` gives them as symbols. Passes compare shapes, and a symbol compared with a number is decided by the
example's size: 20 nodes and 20 edges would look alike. So each symbol is exchanged for one whose example size is a
prime that no model has, and shapes are equal only if they are meant to be.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import sympy
import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.functions import Max, Min
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from bgnn.converter.errors import ConversionError
from bgnn.passes.graph import aten, is_call, is_list
from bgnn.passes.neighbour_rows import is_search

FIRST = 1_000_003  # sums and small multiples of the primes from here on do not meet


def graph_axes(inputs: Sequence[Tensor]) -> list[dict[int, Any]]:
    """The open axes of most graph networks, as torch.export's `dynamic_shapes`: the first, of `[2, E]` the second."""
    return [{int(is_list(value)): torch.export.Dim.DYNAMIC} if value.dim() else {} for value in inputs]


def open_sizes(gm: fx.GraphModule) -> None:
    """Exchanges the symbols in the shapes of `gm` for the IR's own, in place; a graph without symbols stays."""
    env = ShapeEnv()
    symbols: dict[sympy.Symbol, torch.SymInt] = {}

    equal = _equal_sizes(gm)

    def own(size: Any) -> Any:
        if not isinstance(size, torch.SymInt):
            return size
        expression = cast(sympy.Expr, size.node.expr).subs(equal)
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in symbols:
                prime = sympy.nextprime(FIRST * (len(symbols) + 1) ** 2)
                source = ConstantSource(f"size_{len(symbols)}")
                new = env.create_symbol(int(prime), source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
                symbols[symbol] = cast(torch.SymInt, env.create_symintnode(new, hint=int(prime), source=source))
        return sympy_interp(PythonReferenceAnalysis, cast(Any, symbols), expression)

    def exchanged(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty([own(size) for size in value.shape], dtype=value.dtype, device="meta")
        if isinstance(value, (tuple, list)):
            return tuple(exchanged(v) for v in value)
        return own(value)

    for node in gm.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = exchanged(node.meta["val"])


def _equal_sizes(gm: fx.GraphModule) -> dict[Any, Any]:
    """Symbols of one number, though the program does not say so: a k-NN search's batch is as long as its rows, a mask
    as what is written through it."""
    pairs: list[tuple[Any, Any]] = []
    for node in gm.graph.nodes:
        if is_search(node):
            for rows, starts in zip(node.args[:2], node.args[2:4], strict=False):
                if is_call(starts, torch.ops.bgnn.group_starts):
                    pairs.append((starts.args[0].meta["val"].shape[0], rows.meta["val"].shape[0]))
        elif is_call(node, aten.index_put) and len(node.args[1]) == 1:
            x, mask = node.args[0].meta["val"], node.args[1][0].meta["val"]
            if mask.dtype == torch.bool:
                pairs += zip(mask.shape, x.shape, strict=False)
    equal: dict[Any, Any] = {}
    for left, right in pairs:
        if isinstance(left, torch.SymInt) and isinstance(right, torch.SymInt):
            one, other = left.node.expr.subs(equal), right.node.expr.subs(equal)
            if one.is_Symbol and one != other:
                equal[one] = other
    return equal


Terms = list[list[Any]]
"""A size as the host computes it: a sum of products, [[factor, what, what, ...], ...]. Each `what` is one of
{"input": name, "axis": axis}, {"maximum": name} (the largest element of an input, -1 without any), {"number": name} (an
input that is one number), {"least": [terms, ...]} and {"largest": [terms, ...]}."""


def host_size(size: Any, names: Mapping[fx.Node, str]) -> Terms | None:
    """How a size, a number, symbol or node, follows from the inputs, whose names are given; None where it does not."""
    value = size.meta.get("val") if isinstance(size, fx.Node) else size
    if isinstance(value, int):
        return [[value]]
    if not isinstance(value, torch.SymInt):
        return None
    graph = next(iter(names)).graph
    atoms: dict[sympy.Symbol, Terms] = {}
    for node in graph.nodes:
        known = node.meta.get("val")
        if node in names and isinstance(known, Tensor):
            for axis, dim in enumerate(known.shape):
                if isinstance(dim, torch.SymInt) and isinstance(dim.node.expr, sympy.Symbol):
                    atoms.setdefault(dim.node.expr, [[1, {"input": names[node], "axis": axis}]])
        elif is_call(node, aten.item, aten._local_scalar_dense) and isinstance(known, torch.SymInt):
            terms = _element(node, names)
            if terms is not None and isinstance(known.node.expr, sympy.Symbol):
                atoms.setdefault(known.node.expr, terms)
    return _terms(sympy.expand(value.node.expr), atoms)


def _terms(expression: Any, atoms: Mapping[sympy.Symbol, Terms]) -> Terms | None:
    if isinstance(expression, sympy.Symbol):
        return atoms.get(expression)
    if expression.is_Integer:
        return [[int(expression)]]
    parts = [_terms(part, atoms) for part in expression.args]
    if not parts or any(part is None for part in parts):
        return None
    known = cast(list[Terms], parts)
    if isinstance(expression, sympy.Add):
        return [term for part in known for term in part]
    if isinstance(expression, sympy.Mul):
        product: Terms = [[1]]
        for part in known:
            product = [[a[0] * b[0], *a[1:], *b[1:]] for a in product for b in part]
        return product
    if isinstance(expression, (sympy.Min, Min)):
        return [[1, {"least": known}]]
    if isinstance(expression, (sympy.Max, Max)):
        return [[1, {"largest": known}]]
    return None


def _element(node: Any, names: Mapping[fx.Node, str]) -> Terms | None:
    """How the one element of a tensor follows from the inputs."""
    if isinstance(node, (int, float)):
        return [[int(node)]] if int(node) == node else None
    if node in names:
        return [[1, {"number": names[node]}]] if node.meta["val"].dim() == 0 else None
    if is_call(node, aten.amax, aten.max) and (node.meta["val"].dim() == 0):
        x = node.args[0]
        return [[1, {"maximum": names[x]}]] if x in names and not x.meta["val"].is_floating_point() else None
    if is_call(node, aten.item, aten._local_scalar_dense, aten._to_copy, aten.reshape, aten.view):
        return _element(node.args[0], names)
    if is_call(node, aten.add, operator.add) and not node.kwargs:
        a, b = (_element(one, names) for one in node.args[:2])
        return [*a, *b] if a is not None and b is not None else None
    return None


def check_open(gm: fx.GraphModule) -> None:
    """Raises ConversionError if a pass took an open size for a number."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, torch.SymInt) and size.node.shape_env.replacements:
                raise ConversionError(f"{node.name}: an open size was fixed on the way: please report this model")
