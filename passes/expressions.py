"""Expressions of one tensor: the part of a graph between a node and a tensor that it depends on alone.

Recognisers take such a part as a function and evaluate it: what it computes says what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

import sympy
import torch
from torch import Tensor, fx

from bgnn.passes.graph import is_call, value_of

FARTHEST = 1e18  # a point: those of masks, -1e9, are looked at; squares stay finite
LARGEST = 64  # numbers in a constant of which each is looked at


def expressions(
    node: fx.Node, longest: int, is_inside: Callable[[fx.Node], bool], is_given: Callable[[fx.Node], bool]
) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """(source, nodes between) for each tensor that `node` is an expression of, nearest first.

    The expression grows backwards over nodes that `is_inside` allows, `longest` at most; what `is_given` (constants)
    does not count as a source.
    """
    inside = {node}
    while len(inside) <= longest:
        border = {n for member in inside for n in member.all_input_nodes if not is_given(n)} - inside
        if not border:
            return
        if len(border) == 1:
            yield next(iter(border)), inside
        last = max(border)  # the node that comes last cannot be the source of the others
        if not is_inside(last):
            return
        inside.add(last)


class Tried:
    """Open sizes as small numbers: those on which what an expression computes is tried."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}  # of symbols

    def size(self, size: Any) -> int:
        """A size, each open one another prime."""
        if isinstance(size, int):
            return size
        for symbol in sorted(size.node.expr.free_symbols, key=str):
            self.numbers.setdefault(symbol, int(sympy.nextprime(max(self.numbers.values(), default=8))))
        return int(size.node.expr.subs(self.numbers))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a node's value."""
        return tuple(self.size(size) for size in node.meta["val"].shape)

    def known(self, graph: fx.Graph) -> dict[fx.Node, Any]:
        """The graph's nodes that are sizes, and their numbers."""
        return {n: self.size(n.meta["val"]) for n in graph.nodes if isinstance(n.meta.get("val"), torch.SymInt)}


def is_size(node: fx.Node) -> bool:
    """Whether a node is a size, or a range up to one: made of no tensor's values."""
    return isinstance(node.meta.get("val"), torch.SymInt) or is_call(node, torch.ops.aten.arange)


def numbers_in(inside: set[fx.Node]) -> list[float]:
    """The numbers in an expression's calls."""
    return [float(a) for n in inside for a in n.args if isinstance(a, (int, float)) and not isinstance(a, bool)]


def around_constants(inside: set[fx.Node]) -> list[Tensor]:
    """Points beside every number in an expression: where a function could turn that seems to be another."""
    numbers = numbers_in(inside)
    for n in inside:
        for constant in n.all_input_nodes:
            if constant.op == "get_attr" and value_of(constant).numel() <= LARGEST:
                numbers += value_of(constant).flatten().double().tolist()
    near = [[c, c * 0.999, c * 1.001, c - 1, c + 1, c - 0.01, c + 0.01] for c in sorted(set(numbers))]
    return [torch.tensor([p, -p]) for points in near for p in points if p != 0 and abs(p) < FARTHEST]


def evaluate(
    node: fx.Node, known: dict[fx.Node, Tensor], instead: Mapping[Any, Callable[..., Tensor]] = MappingProxyType({})
) -> Tensor:
    """The value of `node` when some tensors before it are given; `instead`: what takes the place of some ops."""
    env: dict[fx.Node, Any] = dict(known)
    order: dict[fx.Node, None] = {}
    stack = [node]
    while stack:  # depth first without recursion: expressions can be long
        current = stack[-1]
        if current in env or current in order:
            stack.pop()
            continue
        missing = [n for n in current.all_input_nodes if n not in env and n not in order]
        if missing:
            stack.extend(missing)
            continue
        if current.op == "get_attr":
            env[current] = value_of(current)
        elif current.op == "call_function":
            order[current] = None
        else:
            raise ValueError(f"{current.name} is not given")
        stack.pop()
    with torch.no_grad():
        for current in order:
            args, kwargs = fx.node.map_arg((current.args, dict(current.kwargs)), lambda n: env[n])
            env[current] = cast(Callable[..., Any], instead.get(current.target, current.target))(*args, **kwargs)
    return cast(Tensor, env[node])


def attempt(node: fx.Node, known: dict[fx.Node, Any]) -> Tensor | None:
    """`evaluate`, or None where the part of the graph is something else than was thought."""
    try:
        return evaluate(node, known)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
