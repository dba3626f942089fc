"""Per-channel operations: recognised, evaluated on a column, written as a scale and a shift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import bgnn, graph, outputs, randn
from torch import Tensor, fx

from bgnn.passes.chains import affine_of, data_of, evaluate, is_channel_op, is_increasing

C = 5
X = randn(2, 3, C)
CONSTANTS = {
    "c": randn(C, seed=1),
    "one": torch.tensor([0.7]),
    "positive": randn(C, seed=2).abs(),
    "mean": randn(C, seed=3),
    "var": randn(C, seed=4).abs() + 0.1,
    "bias": randn(C, seed=5),
    "rows": randn(3, 1, seed=6),
    "slopes": torch.tensor([-0.5, 0.0, 0.25, 1.0, 2.0]),
}


def last(function: Callable[..., Any], *inputs: Tensor) -> tuple[fx.GraphModule, fx.Node]:
    gm = graph(function, *inputs, **CONSTANTS)
    result = next(n for n in gm.graph.nodes if n.op == "output").args[0][0]
    return gm, result


CHANNEL_OPS = {
    "neg": lambda m, x: -x,
    "relu": lambda m, x: x.relu(),
    "relu6": lambda m, x: F.relu6(x),
    "leaky": lambda m, x: F.leaky_relu(x, 0.2),
    "leaky negative": lambda m, x: F.leaky_relu(x, -0.2),
    "tanh": lambda m, x: x.tanh(),
    "sigmoid": lambda m, x: x.sigmoid(),
    "clamp": lambda m, x: x.clamp(-0.5, 0.4),
    "clamp min": lambda m, x: x.clamp(min=0.1),
    "hardtanh": lambda m, x: F.hardtanh(x),
    "abs": lambda m, x: x.abs(),
    "prelu": lambda m, x: bgnn.prelu(x, m.slopes),
    "prelu one": lambda m, x: bgnn.prelu(x, m.one),
    "norm": lambda m, x: bgnn.batch_norm(x, m.c, m.bias, m.mean, m.var, 1e-5),
    "norm positive": lambda m, x: bgnn.batch_norm(x, m.positive, m.bias, m.mean, m.var, 1e-5),
    "norm plain": lambda m, x: bgnn.batch_norm(x, None, None, m.mean, m.var, 1e-5),
    "add": lambda m, x: x + m.c,
    "add left": lambda m, x: m.c + x,
    "add number": lambda m, x: x + 0.3,
    "add one": lambda m, x: x + m.one,
    "sub": lambda m, x: x - m.c,
    "sub left": lambda m, x: m.c - x,
    "mul": lambda m, x: x * m.c,
    "mul left": lambda m, x: m.c * x,
    "mul positive": lambda m, x: x * m.positive,
    "div": lambda m, x: x / m.c,
    "div left": lambda m, x: m.c / x,
    "div number": lambda m, x: x / 3,
}
AFFINE = {n for n in CHANNEL_OPS if n.startswith(("add", "sub", "mul", "norm", "neg"))} | {"div", "div number"}
INCREASING = {
    "relu",
    "relu6",
    "leaky",
    "tanh",
    "sigmoid",
    "clamp",
    "clamp min",
    "hardtanh",
    "prelu one",
    "norm positive",
    "norm plain",
    "add",
    "add left",
    "add number",
    "add one",
    "sub",
    "mul positive",
    "div number",
}


@pytest.mark.parametrize("name", CHANNEL_OPS)
def test_evaluated_on_a_column_it_gives_the_same_bits(name: str) -> None:
    gm, node = last(CHANNEL_OPS[name], X)
    assert is_channel_op(node)
    assert data_of(node).op == "placeholder"
    expected = outputs(gm, X)[0].reshape(-1, C)
    assert torch.equal(evaluate(node, X.reshape(-1, C).contiguous()), expected)


@pytest.mark.parametrize("name", CHANNEL_OPS)
def test_as_scale_and_shift(name: str) -> None:
    gm, node = last(CHANNEL_OPS[name], X)
    affine = affine_of(node)
    assert (affine is not None) == (name in AFFINE)
    if affine is not None:
        assert affine[0].shape == affine[1].shape == (C,)
        torch.testing.assert_close(X * affine[0] + affine[1], outputs(gm, X)[0])


@pytest.mark.parametrize("name", CHANNEL_OPS)
def test_increasing_is_claimed_only_where_it_is(name: str) -> None:
    _, node = last(CHANNEL_OPS[name], X)
    assert is_increasing(node) == (name in INCREASING)
    if is_increasing(node):
        column = torch.linspace(-3, 3, 200)[:, None].expand(-1, C).contiguous()
        assert bool((evaluate(node, column).diff(dim=0) >= 0).all())


NOT_CHANNEL_OPS = {
    "two tensors": lambda m, x, y: x + y,
    "itself": lambda m, x, y: x * x,
    "factor per point": lambda m, x, y: x * m.rows,
    "grows": lambda m, x, y: x[:, :1] + m.rows,  # broadcasts the data
    "softmax": lambda m, x, y: x.softmax(-1),
    "sum": lambda m, x, y: x.sum(-1),
    "view": lambda m, x, y: x.reshape(-1, C),
    "bound is a tensor": lambda m, x, y: torch.clamp(x, max=y),
    "bound per point": lambda m, x, y: torch.clamp(x, min=m.rows),
    "comparison": lambda m, x, y: x > 0,
}


@pytest.mark.parametrize("name", NOT_CHANNEL_OPS)
def test_others_are_not(name: str) -> None:
    _, node = last(NOT_CHANNEL_OPS[name], X, randn(2, 3, C, seed=9))
    assert not is_channel_op(node)
    assert affine_of(node) is None


def test_what_is_no_node() -> None:
    assert not is_channel_op(None)
    assert not is_channel_op(1.0)
