"""Reshapes of the leading axes move down until they meet their inverse; values never change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, count, graph, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bgnn.passes import canonicalise, sink_reshapes
from bgnn.passes.graph import is_call

X = randn(2, 3, 4, 5)
CONSTANTS = {
    "w": randn(6, 5),
    "c": randn(5, seed=1),
    "positive": randn(5, seed=2).abs() + 0.1,
    "rows": randn(24, 5, seed=3),
}
ROW_OPS: dict[str, Callable[..., Any]] = {
    "relu": lambda m, x: x.relu(),
    "clamp": lambda m, x: x.clamp(min=0.1),
    "sign": lambda m, x: bgnn.binarize(x),
    "linear": lambda m, x: F.linear(x, m.w),
    "norm": lambda m, x: bgnn.batch_norm(x, m.c, m.c, m.c, m.positive, 1e-5),
    "prelu": lambda m, x: bgnn.prelu(x, m.c),
    "constant per channel": lambda m, x: x * m.c,
    "constant on the left": lambda m, x: m.c - x,
    "itself": lambda m, x: x * x,
    "join": lambda m, x: torch.cat([x, x.relu()], -1),
    "number": lambda m, x: 1 - x / 2,
}


@pytest.mark.parametrize("name", ROW_OPS)
def test_a_flat_detour_disappears(name: str) -> None:
    gm = graph(
        lambda m, x: (lambda y: y.reshape(2, 3, 4, y.shape[-1]))(ROW_OPS[name](m, x.reshape(-1, 5))), X, **CONSTANTS
    )
    assert apply(sink_reshapes.run, gm, X).rewrites >= 1
    canonicalise.run(gm)
    assert count(gm, aten.reshape) == 0


def test_reductions_over_neighbours() -> None:
    for reduce in (lambda x: x.amax(1), lambda x: x.mean(-2, True), lambda x: x.sum((1, 2)), lambda x: x.amin(2)):
        gm = graph(lambda m, x, r=reduce: r(x.reshape(6, 4, 5).relu()), X)
        assert apply(sink_reshapes.run, gm, X).rewrites == 2


def test_a_reduction_over_the_merged_axis_stays_below() -> None:
    gm = graph(lambda m, x: x.reshape(6, 4, 5).amax(0), X)
    assert apply(sink_reshapes.run, gm, X).rewrites == 0


STAYS: dict[str, Callable[..., Any]] = {
    "channels change": lambda m, x: x.reshape(24 * 5, 1).relu(),
    "broadcast between rows": lambda m, x: x.reshape(24, 5) + x[0, 0, 0].reshape(1, 5),
    "constant per row": lambda m, x: x.reshape(24, 5) * m.rows,
    "other operand not reshaped": lambda m, x: (
        x.reshape(2, 3, 4, 5, 1)[..., 0] if False else x.reshape(24, 5).softmax(0)
    ),
    "join of rows": lambda m, x: torch.cat([x.reshape(24, 5), x.reshape(24, 5)], 0),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    gm = graph(STAYS[name], X, **CONSTANTS)
    before = count(gm, aten.reshape)
    apply(sink_reshapes.run, gm, X)
    assert count(gm, aten.reshape) >= min(before, 1)


def test_two_operands_flattened_from_different_shapes() -> None:
    y = randn(3, 2, 4, 5, seed=7)
    gm = graph(lambda m, x, y: x.reshape(24, 5) + y.reshape(24, 5), X, y)
    apply(sink_reshapes.run, gm, X, y)


@pytest.mark.parametrize(
    ("shape", "grown", "after", "moves"),
    [
        ((2, 3, 1, 5), (2, 3, 4, 5), (6, 4, 5), True),
        ((2, 3, 1, 5), (2, 3, 4, 5), (24, 5), False),
        ((2, 3, 1, 5), (2, 3, 4, 5), (2, 3, 4, 1, 5), True),
        ((1, 3, 1, 5), (2, 3, 4, 5), (2, 3, 4, 5), True),
        ((2, 3, 1, 5), (2, 3, 4, 5), (2, 3, 2, 2, 5), False),
        ((1,), (6,), (2, 3), False),
    ],
)
def test_below_an_expand(shape: tuple[int, ...], grown: tuple[int, ...], after: tuple[int, ...], moves: bool) -> None:
    x = randn(*shape)
    gm = graph(lambda m, x: x.expand(grown).reshape(after) + 0.5, x)
    apply(sink_reshapes.run, gm, x)
    (node,) = (n for n in gm.graph.nodes if is_call(n, aten.expand))
    if shape != after and grown != after:
        assert (tuple(node.meta["val"].shape) == after) == moves


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_reshape_below_any_expand(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))
    grown = [data.draw(st.sampled_from([1, 2, 3])) if s == 1 else s for s in shape]
    factors = sorted(f for s in grown for f in ([2, 2] if s == 4 else [s] if s > 1 else []))
    factors = data.draw(st.permutations(factors))
    after: list[int] = []
    for f in factors:
        if after and data.draw(st.booleans()):
            after[-1] *= f
        else:
            after.append(f)
    for _ in range(data.draw(st.integers(0, 2))):
        after.insert(data.draw(st.integers(0, len(after))), 1)
    assert math.prod(after) == math.prod(grown)
    x = randn(*shape)
    gm = graph(lambda m, x: x.expand(grown).reshape(after) + 0.5, x)
    apply(sink_reshapes.run, gm, x)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(["flat", "points", "wide", "ones", "relu", "linear", "max", "twice", "sum", "half"]),
        min_size=1,
        max_size=8,
    )
)
def test_any_mixture(steps: list[str]) -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        for step in steps:
            if step in ("flat", "points", "wide", "ones"):
                shape = {"flat": (-1, 5), "points": (2, -1, 5), "wide": (-1, 2, 5), "ones": (1, -1, 1, 5)}[step]
                x = x.reshape(shape)
            elif step == "max" and x.dim() > 2:
                x = torch.cat([x.amax(-2, True), x], -2)
            elif step == "twice":
                x = torch.cat([x, x * 2], 0)
            else:
                x = {"relu": x.relu(), "linear": F.linear(x, m.square)}.get(step, x - x.mean(0, keepdim=True))
        return x + 0

    gm = graph(function, X, square=randn(5, 5))
    apply(sink_reshapes.run, gm, X)
    canonicalise.run(gm)
