"""Terms that a sum adds and takes away again go: straight-through estimators are what they estimate.

    (f - g).detach() + g,   x + (f - x).detach(),   f.detach() - g.detach() + g      are f
    where(m, f, f.detach())                                                           is f

In training they give f's value with g's gradient; in inference `detach` is nothing, and the trees of `add`, `sub`,
`rsub` and `neg` are sums in which a term stands once with + and once with -. Terms are equal if they are computed by
equal operations of equal tensors, so g may be written twice, and may itself be a sum (Bi-Real's polynomials, nested
estimators). Sums without opposite terms stay as they are; numbers and one-element constants are no opposites beside
tensors: `(x + c) - c` with a large c rounds x.

Not exact: the float sum that PyTorch computes misses f by its own rounding (at most an eps of the largest term an
operation), and f is what the author means. A sign or a code that hangs on it (0 + 1e-8 is no tie any more) must
not hide behind a tolerance: `verify.Settled` runs the exported graph with each such sum compared with f where it
stands, and goes on with f.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.canonicalise import expand
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    is_call,
    is_constant,
    is_static,
    number_of,
    remove_dead_code,
    replace,
    shape_of,
)
from bgnn.passes.merge_equal_nodes import frozen

SUMS = [aten.add, aten.sub, aten.rsub, aten.neg, aten.mul]
NOTHING = [*ops.having("same"), aten._to_copy, aten.to]
LARGEST = 256  # terms of one sum


@dataclasses.dataclass(eq=False)
class Term:
    """A place in a sum's tree: `sign` times a node (or a number), made of `parts`, or cancelled by another place."""

    node: Any
    sign: int
    parts: list[Term] = dataclasses.field(default_factory=list)
    cancelled: bool = False

    def rest(self) -> list[Term]:
        """What is left of it: itself if nothing under it went."""
        if self.cancelled:
            return []
        left = [part.rest() for part in self.parts]
        if all(terms == [part] for terms, part in zip(left, self.parts, strict=True)):
            return [self]
        return [term for terms in left for term in terms]


@dataclasses.dataclass(frozen=True)
class Remainder:
    """What a sum comes to: the terms that are left, added ones first, and the nodes whose opposites cancelled."""

    terms: list[Term]
    gone: list[fx.Node]

    def fits(self, root: fx.Node) -> bool:
        """Whether it can take the sum's place: something is left, of its shape, or repeated to it."""
        nodes = [t.node for t in self.terms if isinstance(t.node, fx.Node)]
        if any(not isinstance(n.meta["val"], Tensor) for n in nodes) or not nodes:
            return False
        return any(shape_of(n) == shape_of(root) for n in nodes) or is_static(root)


def remainders(gm: fx.GraphModule) -> dict[fx.Node, Remainder]:
    """Each node that is a sum with opposite terms, or a `where` of equal sides, and what is left of it; in order."""
    equal = _equal_nodes(gm)
    fixed: set[fx.Node] = set()  # what depends on constants alone
    place: dict[fx.Node, int] = {}
    found = {}
    for index, node in enumerate(gm.graph.nodes):
        place[node] = index
        inputs = node.all_input_nodes
        if is_constant(node) or (node.op == "call_function" and inputs and all(n in fixed for n in inputs)):
            fixed.add(node)
        if not isinstance(node.meta.get("val"), Tensor):
            continue
        if is_call(node, aten.where) and len(node.args) == 3:
            left, right = node.args[1:]
            same = isinstance(left, fx.Node) and isinstance(right, fx.Node) and equal[left] is equal[right]
            remainder = Remainder([Term(left, 1)], []) if same else None
        else:
            remainder = _remainder(node, equal, place, fixed) if _parts(node, node) else None
        if remainder is not None and remainder.fits(node):
            found[node] = remainder
    return found


def run(gm: fx.GraphModule) -> PassResult:
    """Replaces each sum with opposite terms by the rest of it."""
    result = PassResult()
    for root, remainder in remainders(gm).items():
        new: Any = None
        for term in remainder.terms:
            value = term.node
            while isinstance(value, fx.Node) and value._erased:
                value = value.meta["became"]
            if new is None:
                new = value if term.sign > 0 else call(root, aten.neg.default, value)
            else:
                new = call(root, aten.add.Tensor if term.sign > 0 else aten.sub.Tensor, new, value)
        if new.meta["val"].dtype != root.meta["val"].dtype:
            new = call(root, aten._to_copy.default, new, dtype=root.meta["val"].dtype)
        if shape_of(new) != shape_of(root):
            new = expand(root, new, shape_of(root))
        replace(root, new)
        root.meta["became"] = new
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _equal_nodes(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """The first node that computes the same as each node; what does nothing in inference is looked through."""
    first: dict[Any, fx.Node] = {}
    equal: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        source = node.args[0] if is_call(node, *NOTHING) else None
        if isinstance(source, fx.Node) and _same_type(source, node):
            equal[node] = equal[source]
        elif node.op == "call_function" and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: equal[n])
            equal[node] = first.setdefault((node.target, frozen(args), frozen(kwargs)), node)
        else:
            equal[node] = first.setdefault(node.target, node) if node.op == "get_attr" else node
    return equal


def _same_type(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta.get("val"), other.meta.get("val")
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype


def _parts(node: Any, root: fx.Node) -> list[Term] | None:
    """The terms of a node of the sum's own type; None if it is no sum."""
    if not is_call(node, *SUMS) or node.meta["val"].dtype != root.meta["val"].dtype:
        return None
    if is_call(node, aten.neg):
        return [Term(node.args[0], -1)]
    if len(node.args) < 2:
        return None
    left, right = node.args[:2]
    if is_call(node, aten.mul):
        for factor, other in ((left, right), (right, left)):
            if number_of(factor) in (1.0, -1.0) and isinstance(other, fx.Node) and shape_of(other) == shape_of(node):
                return [Term(other, int(cast(float, number_of(factor))))]
        return None
    alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    if alpha != 1:
        return None
    signs = {aten.add: (1, 1), aten.sub: (1, -1), aten.rsub: (-1, 1)}[node.target.overloadpacket]
    return [Term(left, signs[0]), Term(right, signs[1])]


def _remainder(
    root: fx.Node, equal: dict[fx.Node, fx.Node], place: dict[fx.Node, int], fixed: set[fx.Node]
) -> Remainder | None:
    """What is left of a sum; None where nothing cancels.

    Nodes are taken apart last first: a term that stands in several places is met in all of them before it is opened.
    """
    whole = Term(root, 1)
    pending: dict[fx.Node, list[Term]] = {root: [whole]}
    gone: list[fx.Node] = []
    count = 1
    while pending:
        node = max(pending, key=lambda n: place[n])
        places = pending.pop(node)
        value = node.meta.get("val")
        if isinstance(value, Tensor) and (root in fixed or node not in fixed or value.numel() > 1):
            added, taken = [[t for t in places if t.sign == sign] for sign in (1, -1)]
            for one, other in zip(added, taken, strict=False):
                one.cancelled = other.cancelled = True
                gone.append(node)
        for term in places:
            parts = None if term.cancelled else _parts(node, root)
            if parts is None:
                continue
            count += len(parts)
            if count > LARGEST:
                return None
            for part in parts:
                part.sign *= term.sign
                if isinstance(part.node, fx.Node):
                    pending.setdefault(equal[part.node], []).append(part)
            term.parts = parts
    return Remainder(sorted(whole.rest(), key=lambda term: term.sign < 0), gone) if gone else None
