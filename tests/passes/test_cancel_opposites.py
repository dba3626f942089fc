"""Sums that add a term and take it away again become the rest; the sums that must stay do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import aten, check_meta, count, exported, only, outputs, randn, same
from onnx_graphs import open_graph, random_edges
from torch import Tensor, fx

from bgnn.converter.errors import ConversionError
from bgnn.converter.verify import Settled
from bgnn.passes import cancel_opposites
from bgnn.passes.graph import is_call

X = randn(6, 4) * 3
SUMS = [aten.add, aten.sub, aten.rsub, aten.neg]


def polynomial(x: Tensor) -> Tensor:
    """A surrogate in pieces, as Bi-Real's authors wrote theirs."""
    below, negative, under = (x < -1).float(), (x < 0).float(), (x < 1).float()
    left = -below + (x * x + 2 * x) * (1 - below)
    middle = left * negative + (2 * x - x * x) * (1 - negative)
    return middle * under + (1 - under)


def nested(m: Any, x: Tensor) -> Tensor:
    inner = (torch.round(x) - x).detach() + x
    return inner.clamp(-2, 2) + (torch.sign(inner) - inner.clamp(-2, 2)).detach()


# Each comes to f, written in its other element; `f` is what it must be, bit for bit.
ESTIMATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "difference first": (lambda m, x: (torch.sign(x) - x).detach() + x, lambda m, x: torch.sign(x)),
    "difference last": (lambda m, x: x + (torch.round(x) - x).detach(), lambda m, x: torch.round(x)),
    "three terms": (
        lambda m, x: torch.sign(x).detach() - x.clamp(-1, 1).detach() + x.clamp(-1, 1), lambda m, x: torch.sign(x)
    ),
    "surrogate first": (
        lambda m, x: torch.tanh(2 * x) + torch.sign(x).detach() - torch.tanh(2 * x).detach(),
        lambda m, x: torch.sign(x),
    ),
    "surrogate of numbers": (
        lambda m, x: (torch.sign(x) - (2 * torch.sigmoid(x) - 1)).detach() + (2 * torch.sigmoid(x) - 1),
        lambda m, x: torch.sign(x),
    ),
    "polynomial": (
        lambda m, x: torch.sign(x).detach() - polynomial(x).detach() + polynomial(x), lambda m, x: torch.sign(x)
    ),
    "other order of a sum": (
        lambda m, x: (torch.sign(x) - (x + m.c)).detach() + (m.c + x), lambda m, x: torch.sign(x)
    ),
    "nested": (nested, lambda m, x: torch.sign(torch.round(x))),
    "weights": (
        lambda m, x: F.linear(x, (torch.sign(m.w) - m.w).detach() + m.w), lambda m, x: F.linear(x, torch.sign(m.w))
    ),
    "one number": (
        lambda m, x: x * ((torch.round(m.s) - m.s).detach() + m.s), lambda m, x: x * torch.round(m.s)
    ),
    "gradient scale": (
        lambda m, x: x / ((m.s - m.s * 0.1).detach() + m.s * 0.1), lambda m, x: x / m.s
    ),
    "minus of a difference": (lambda m, x: x - (x - torch.sign(x)).detach(), lambda m, x: torch.sign(x)),
    "times -1": (lambda m, x: torch.sign(x) + (x * -1).detach() + x, lambda m, x: torch.sign(x)),
    "all weight": (lambda m, x: x + 1.0 * (torch.sign(x) - x).detach(), lambda m, x: torch.sign(x)),
    "gradient's zero": (lambda m, x: torch.sign(x).detach() + (x - x.detach()), lambda m, x: torch.sign(x)),
    "negative": (lambda m, x: (x - torch.sign(x)).detach() - x, lambda m, x: -torch.sign(x)),
    "with a bias": (lambda m, x: (torch.round(x) + m.c - x).detach() + x, lambda m, x: torch.round(x) + m.c),
    "smaller than the surrogate": (
        lambda m, x: (m.c.sign() - x).detach() + x, lambda m, x: m.c.sign().expand(6, 4)
    ),
    "masked": (lambda m, x: torch.where(x > 0, m.c * x, (m.c * x).detach()), lambda m, x: m.c * x),
    "between casts": (
        lambda m, x: (torch.sign(x.half()).to(x.dtype) - x).to(torch.float32) + x,
        lambda m, x: torch.sign(x.half()).float(),
    ),
}  # fmt: skip
CONSTANTS = {"c": randn(4, seed=1), "w": randn(5, 4, seed=2), "s": torch.tensor(2.7)}

OTHERS: dict[str, Callable[..., Any]] = {
    "sum": lambda m, x: x + m.c - x.relu() + x,
    "rounding by a large number": lambda m, x: (x + 12582912.0) - 12582912.0,
    "rounding by a large constant": lambda m, x: (x + m.big) - m.big,
    "nothing left": lambda m, x: x - x,
    "another type": lambda m, x: (x.double() - m.c).float() + m.c,
    "other arguments": lambda m, x: torch.sign(x) - x.clamp(-1, 1) + x.clamp(-1, 2),
    "another factor": lambda m, x: torch.sign(x) - 2 * x + x,
    "sides of a where": lambda m, x: torch.where(x > 0, x, x.relu()),
    "integers and numbers": lambda m, x: x.long() + 3 - 3,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_is_left_is_what_was_estimated(name: str) -> None:
    function, rest = ESTIMATORS[name]
    gm = exported(function, X, **CONSTANTS)
    expected = outputs(exported(rest, X, **CONSTANTS), X)[0]
    same(outputs(gm, X)[0], expected, 1e-5)
    same(Settled(gm).run(X)[0], expected)  # what verification takes as the model's value
    assert cancel_opposites.run(gm).rewrites >= 1
    check_meta(gm, X)
    same(outputs(gm, X)[0], expected)
    kept = 1 if name in ("with a bias", "negative") else 0
    assert count(gm, *SUMS) == kept


@pytest.mark.parametrize("name", OTHERS)
def test_other_sums_stay(name: str) -> None:
    gm = exported(OTHERS[name], X, **CONSTANTS, big=torch.tensor(2.0**23))
    before = [n.target for n in gm.graph.nodes]
    assert cancel_opposites.run(gm).rewrites == 0
    assert [n.target for n in gm.graph.nodes] == before


def test_terms_that_go_together_stay_together() -> None:
    """What is left keeps its own order of summation: the same node, not its terms anew."""
    gm = exported(lambda m, x: ((x * 2 + m.c) + x.relu()) + (torch.sign(x) - x).detach() + x, X, c=CONSTANTS["c"])
    assert cancel_opposites.run(gm).rewrites == 1
    assert count(gm, aten.add) == 3
    output = next(n for n in gm.graph.nodes if n.op == "output").args[0][0]
    assert is_call(output, aten.add)
    assert is_call(output.args[1], aten.sign)


def test_a_long_sum_is_no_search() -> None:
    """Doubling 40 times is 2^40 terms, written out."""

    def doubled(m: Any, x: Tensor) -> Tensor:
        for _ in range(40):
            x = x + x
        return x

    gm = exported(doubled, X)
    assert cancel_opposites.run(gm).rewrites == 0


def test_open_sizes() -> None:
    def layer(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        h = (torch.round(x) - x).detach() + x
        return torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])

    x, edges = randn(20, 4), random_edges(20, 50)
    gm = open_graph(layer, x, edges)
    expected = outputs(gm, x, edges)[0]
    assert cancel_opposites.run(gm).rewrites == 1
    assert count(gm, aten.sub) == 0
    more, others = randn(33, 4), random_edges(33, 70)
    same(outputs(gm, x, edges)[0], expected, 1e-5)
    assert outputs(gm, more, others)[0].shape == (33, 4)
    only(gm, aten.round)


def test_a_sign_that_hangs_on_the_sums_rounding_is_settled() -> None:
    """Where the estimated values sum to 0, PyTorch's sum is 1e-8 to either side, and its sign is chance."""
    function = lambda m, x: torch.sign(F.linear((0.7 * torch.sign(x) - x).detach() + x, m.w) + 1e-9)  # noqa: E731
    x = 10 * randn(100, 4).abs()
    w = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    gm = exported(function, x, w=w)
    assert not bool((outputs(gm, x)[0] == 1).all())
    assert bool((Settled(gm).run(x)[0] == 1).all())


def test_a_remainder_that_is_wrong_is_found() -> None:
    gm = exported(lambda m, x: (torch.sign(x) - x).detach() + x, X)

    class Wrong(Settled):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            return value + 1 if is_call(n, aten.sign) else value

    Wrong(gm).run(X)  # a difference in f itself goes through both
    (remainder,) = Settled(gm).remainders.values()
    remainder.terms[0].node = next(n for n in gm.graph.nodes if n.op == "placeholder")
    wrong = Settled(gm)
    wrong.remainders = {next(iter(wrong.remainders)): remainder}
    with pytest.raises(ConversionError, match="more than rounding"):
        wrong.run(X)
