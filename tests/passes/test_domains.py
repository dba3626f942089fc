"""What the analysis may promise, and never promises falsely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import bgnn, graph, randn, signs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from bgnn.passes import domains as dm

K, OUT = 6, 5
X, Y = randn(2, 3, K), randn(2, 3, K, seed=1)
CONSTANTS = {
    "w": signs(OUT, K),
    "real": randn(OUT, K),
    "integers": torch.tensor([[2.0, -3, 0, 1, 1, 1]]),
    "halves": torch.full((OUT,), 0.5),
    "whole": torch.tensor([3.0, -2, 0, 1, 1]),
    "conv": signs(OUT, 3, 1),
    "grouped": signs(3, 1, 1),
    "wide": signs(OUT, 3, 3),
    "index": torch.tensor([[[0, 1], [1, 2], [0, 0]]] * 2),
    "ternary": torch.tensor([1.0, 0, -1, 1, 1, 1]),
}
b = bgnn.binarize

BINARY: dict[str, Callable[..., Any]] = {
    "sign": lambda m, x, y: b(x),
    "neg": lambda m, x, y: -b(x),
    "product": lambda m, x, y: b(x) * b(y),
    "times minus one": lambda m, x, y: b(x) * -1.0,
    "times constant signs": lambda m, x, y: b(x) * m.w[0],
    "permute": lambda m, x, y: b(x).permute(2, 0, 1),
    "reshape": lambda m, x, y: b(x).reshape(6, K),
    "expand": lambda m, x, y: b(x)[:, :, None].expand(2, 3, 4, K),
    "repeat": lambda m, x, y: b(x).repeat(1, 2, 1),
    "slice": lambda m, x, y: b(x)[:, 1:],
    "cat": lambda m, x, y: torch.cat([b(x), -b(y)], -1),
    "stack": lambda m, x, y: torch.stack([b(x), b(y)]),
    "gather": lambda m, x, y: bgnn.gather_nodes(b(x), m.index),
    "index_select": lambda m, x, y: b(x).index_select(1, m.index[0, :, 0]),
    "maximum": lambda m, x, y: b(x).amax(1),
    "minimum": lambda m, x, y: b(x).amin(1),
    "unpack": lambda m, x, y: bgnn.unpack(bgnn.pack(x), K),
    "through all": lambda m, x, y: (
        torch.cat([b(x), b(y)], 2)[:, :, None].expand(-1, -1, 2, -1) * -b(x[:, :, :1, None])
    ).amax(2),
}
INTEGER: dict[str, tuple[Callable[..., Any], float, float]] = {
    "linear": (lambda m, x, y: F.linear(b(x), m.w), -K, K),
    "linear, integer weights": (lambda m, x, y: F.linear(b(x), m.integers), -18, 18),
    "linear, whole bias": (lambda m, x, y: F.linear(b(x), m.w, m.whole), -K - 2, K + 3),
    "conv": (lambda m, x, y: F.conv1d(b(x), m.conv), -3, 3),
    "matmul": (lambda m, x, y: b(x) @ b(y).transpose(1, 2), -K, K),
    "relu": (lambda m, x, y: F.linear(b(x), m.w).relu(), 0, K),
    "abs": (lambda m, x, y: F.linear(b(x), m.w).abs(), 0, K),
    "neg": (lambda m, x, y: -F.linear(b(x), m.w).relu(), -K, 0),
    "sum of signs": (lambda m, x, y: b(x) + b(y), -2, 2),
    "difference": (lambda m, x, y: b(x) - b(y), -2, 2),
    "sum over an axis": (lambda m, x, y: b(x).sum(1), -3, 3),
    "minus a number": (lambda m, x, y: b(x) @ b(y).transpose(1, 2) - float(K), -2 * K, 0),
    "times a number": (lambda m, x, y: F.linear(b(x), m.w) * -2, -2 * K, 2 * K),
    "ternary product": (lambda m, x, y: b(x) * m.ternary, -1, 1),
    "relu of signs": (lambda m, x, y: b(x).relu(), 0, 1),
    "joined": (lambda m, x, y: torch.cat([b(x), F.linear(b(x), m.w)], -1), -K, K),
}
REAL: dict[str, Callable[..., Any]] = {
    "input": lambda m, x, y: x,
    "sign with half a bias": lambda m, x, y: F.linear(b(x), m.w, m.halves),
    "real weights": lambda m, x, y: F.linear(b(x), m.real),
    "real input": lambda m, x, y: F.linear(x, m.w),
    "mean": lambda m, x, y: b(x).mean(1),
    "joined with real": lambda m, x, y: torch.cat([b(x), y], -1),
    "times half": lambda m, x, y: b(x) * 0.5,
    "plus a real tensor": lambda m, x, y: b(x) + y,
    "tanh": lambda m, x, y: b(x).tanh(),
    "window of three": lambda m, x, y: F.conv1d(b(x), m.wide, padding=1),
    "groups": lambda m, x, y: F.conv1d(b(x), m.grouped, groups=3),
    "real matmul": lambda m, x, y: b(x) @ y.transpose(1, 2),
    "divided": lambda m, x, y: b(x) / 2,
}


def result(function: Callable[..., Any]) -> tuple[dm.Domain, Tensor, fx.Node]:
    gm = graph(function, X, Y, **CONSTANTS)
    node = next(n for n in gm.graph.nodes if n.op == "output").args[0][0]
    with torch.no_grad():
        return dm.analyse(gm)[node], fx.Interpreter(gm).run(X, Y)[0], node


@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str) -> None:
    domain, value, _ = result(BINARY[name])
    assert domain.kind == "binary"
    assert domain.whole
    assert bool((value.abs() == 1).all())


@pytest.mark.parametrize("name", INTEGER)
def test_integer(name: str) -> None:
    function, lo, hi = INTEGER[name]
    domain, value, _ = result(function)
    assert domain.kind == "integer"
    assert (domain.lo, domain.hi) == (lo, hi)
    assert torch.equal(value, value.round())
    assert lo <= float(value.min())
    assert float(value.max()) <= hi


@pytest.mark.parametrize("name", REAL)
def test_real(name: str) -> None:
    domain, _, _ = result(REAL[name])
    assert domain.kind == "real"
    assert not domain.whole


def test_where_the_property_was_lost_is_kept() -> None:
    gm = graph(lambda m, x, y: (b(x).tanh() + y).relu() * 2, X, Y, **CONSTANTS)
    domains = dm.analyse(gm)
    assert [domains[n].lost for n in gm.graph.nodes if n.op == "call_function"] == ["", *["tanh"] * 4]


def test_beyond_exact_float_sums_nothing_is_promised() -> None:
    x = torch.ones(1, 2, 2)
    wide = torch.full((1, 2), float(1 << 23))
    gm = graph(lambda m, x: F.linear(b(x), m.wide) * 2, x, wide=wide)
    kinds = [dm.analyse(gm)[n].kind for n in gm.graph.nodes if n.op == "call_function"]
    assert kinds == ["binary", "integer", "real"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.tensor([1.0, -1.0]), "binary"),
        (torch.tensor(1.0), "binary"),
        (torch.tensor([0.0, 1.0]), "integer"),
        (torch.tensor([3, -4]), "integer"),
        (torch.tensor([0.5]), "real"),
        (torch.tensor([float("inf")]), "real"),
        (torch.tensor([float("nan")]), "real"),
        (torch.tensor([True]), "real"),
        (torch.empty(0), "real"),
        (torch.tensor([float(1 << 25)]), "real"),
        (torch.tensor([1 + 0j]), "real"),
    ],
)
def test_constants(value: Tensor, kind: str) -> None:
    assert dm.of_constant(value).kind == kind


def test_a_node_added_later_is_looked_at_when_asked_for() -> None:
    from bgnn.passes.graph import aten, call

    gm = graph(lambda m, x, y: b(x) * 2, X, Y)
    domains = dm.analyse(gm)
    product = next(n for n in gm.graph.nodes if n.op == "call_function" and n.target == aten.mul.Tensor)
    assert domains[call(product, aten.neg.default, product.args[0])].kind == "binary"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["neg", "relu", "add", "sub", "mul", "scale", "abs", "sum", "cat", "max"]), max_size=6))
def test_promised_bounds_hold(steps: list[str]) -> None:
    """Whatever integers are made into, the value stays in the domain."""

    def function(m: Any, x: Tensor, y: Tensor) -> Tensor:
        a, other = b(x), b(y)
        for step in steps:
            a = {
                "neg": lambda a: -a,
                "relu": lambda a: a.relu(),
                "add": lambda a: a + other,
                "sub": lambda a: other - a,
                "mul": lambda a: a * other,
                "scale": lambda a: a * -3,
                "abs": lambda a: a.abs(),
                "sum": lambda a: a.sum(1, keepdim=True).expand(2, 3, K),
                "cat": lambda a: torch.cat([a, other], 1)[:, 2:5],
                "max": lambda a: a.amax(1, keepdim=True).expand(2, 3, K),
            }[step](a)
        return a

    domain, value, _ = result(function)
    assert domain.whole
    assert torch.equal(value, value.round())
    assert domain.lo <= float(value.min())
    assert float(value.max()) <= domain.hi
    if domain.kind == "binary":
        assert bool((value.abs() == 1).all())
