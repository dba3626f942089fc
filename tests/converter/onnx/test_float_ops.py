"""The ATen ops on ONNX Runtime, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs import Wrapped, graph
from onnx_graphs import file_of, open_graph, run
from torch.nn import functional as F

from bgnn.converter.errors import ConversionError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

aten = torch.ops.aten
bgnn = torch.ops.bgnn
X = torch.cat([torch.randn(6, 4, 8) * 3, torch.tensor([0.0, -0.0, 0.5, 1.5, -0.5, 2.5, 1e-8, -7]).expand(1, 4, 8)])


def same(function, *inputs: torch.Tensor, tolerance: float = 1e-6, **constants: torch.Tensor) -> None:
    """With static shapes and, where the first axis is all nodes, with an open one."""
    inputs = tuple(value.clone() for value in inputs)  # export remembers which axes of a tensor were open
    module = Wrapped(function, constants)
    expected = module(*inputs).numpy()
    for gm in (graph(function, *inputs, **constants), open_graph(function, *inputs, **constants)):
        found = run(OnnxModel(file_of(gm)), *inputs)[0]
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


UNARY = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "log": lambda x: torch.log(x.abs() + 1),
    "sqrt": lambda x: torch.sqrt(x.abs()), "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1), "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "relu": F.relu, "relu6": F.relu6, "leaky": lambda x: F.leaky_relu(x, 0.2), "elu": F.elu,
    "erf": torch.erf, "sin": torch.sin, "cos": torch.cos,
    "gelu": F.gelu, "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "scaled softplus": lambda x: F.softplus(x, 2.0, 3.0),
    "silu": F.silu, "softplus": F.softplus, "hardtanh": F.hardtanh, "round": torch.round,
    "reciprocal": lambda x: torch.reciprocal(x + 30), "clamp": lambda x: x.clamp(-1, 2),
    "low": lambda x: x.clamp(min=0.5),
    "square": lambda x: x.pow(2), "root": lambda x: x.abs().pow(0.5), "inverse root": lambda x: (x.abs() + 1).pow(-0.5),
    "cube": lambda x: x.pow(3), "inverse": lambda x: (x + 30).pow(-1), "prelu": None, "scaled": lambda x: 2 * x - 1,
    "rsub": lambda x: 3 - x, "halves": lambda x: x / 2, "alpha": lambda x: torch.add(x, x, alpha=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_elementwise(name):
    if name == "prelu":
        same(lambda m, x: bgnn.prelu(x, m.w), X, w=torch.rand(8))
    else:
        same(lambda m, x: UNARY[name](x), X)


@pytest.mark.parametrize("op", [torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne])
def test_comparisons(op):
    same(lambda m, x: op(x, 0.5), X)
    same(lambda m, x: torch.where(op(x, x.abs()), x, m.w), X, w=torch.randn(8))
    same(lambda m, x: x.masked_fill(op(x, 0), -1.0), X)


def test_logic():
    same(lambda m, x: (x > 0) & (x < 1) | ~(x > -1), X)
    same(lambda m, x: torch.maximum(x, m.w) + torch.minimum(x, m.w), X, w=torch.randn(8))


MOVES = {
    "reshape": lambda x: x.reshape(-1, 32), "split": lambda x: x.view(-1, 4, 2, 4),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(1, 2), "unsqueeze": lambda x: x.unsqueeze(1).expand(-1, 3, 4, 8),
    "squeeze": lambda x: x.unsqueeze(-1).squeeze(-1), "cat": lambda x: torch.cat([x, x * 2, x[:, :1]], 1),
    "cat first": lambda x: torch.cat([x, x + 1], 0), "slice": lambda x: x[:, 1:3, ::2], "end": lambda x: x[..., -3:],
    "select": lambda x: x[:, 2], "flatten": lambda x: x.flatten(1), "repeat": lambda x: x.repeat(1, 2, 3),
    "unbind": lambda x: x.unbind(1)[2], "index": lambda x: x.index_select(1, torch.tensor([3, 0, 0])),
    "cast": lambda x: x.to(torch.int64), "ones": lambda x: torch.ones_like(x) + torch.zeros_like(x),
    "sizes": lambda x: x + torch.ones(x.shape[0], 1, 8), "arange": lambda x: x[:, 0, 0] + torch.arange(x.shape[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_moves(name):
    same(lambda m, x: MOVES[name](x), X)


REDUCTIONS = {
    "amax": lambda x: x.amax(1), "amin": lambda x: x.amin([1, 2]), "mean": lambda x: x.mean(-1, keepdim=True),
    "sum": lambda x: x.sum([0, 2]), "all": lambda x: x.sum(), "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    same(lambda m, x: REDUCTIONS[name](x), X, tolerance=1e-5)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_layers(rank, bias):
    x = torch.randn([*[2, 3, 5][: rank - 1], 8])
    same(lambda m, x: F.linear(x, m.w, m.b if bias else None), x, tolerance=1e-5, w=torch.randn(6, 8), b=torch.randn(6))


def test_products():
    same(lambda m, x: x @ x.transpose(1, 2), X, tolerance=1e-5)
    same(lambda m, x: torch.matmul(x, m.w), X, tolerance=1e-5, w=torch.randn(8, 3))


@pytest.mark.parametrize("largest", [True, False])
def test_ties_go_to_the_lowest_index(largest):
    x = torch.randint(0, 3, (20, 50)).float()
    same(lambda m, x: bgnn.topk_lowest(x, 7, 1, largest)[1], x)
    same(lambda m, x: bgnn.topk_lowest(x, 7, 0, largest)[1], x)


@pytest.mark.parametrize("batch", [1, 3])
def test_neighbours_rows(batch):
    index = torch.randint(0, 9, (batch, 5, 4))
    gm = graph(lambda m, x: bgnn.gather_nodes(x, m.i), torch.randn(batch, 9, 8), i=index)
    x = torch.randn(batch, 9, 8)
    np.testing.assert_array_equal(run(OnnxModel(file_of(gm)), x)[0], bgnn.gather_nodes(x, index).numpy())


def test_what_is_not_supported():
    with pytest.raises(ConversionError, match=r"torch\.erfinv.* is not supported by the ONNX targets: rewrite"):
        file_of(graph(lambda m, x: torch.erfinv(x), X.clone()))
    with pytest.raises(ConversionError, match=r"float64"):
        file_of(graph(lambda m, x: x.double() * 2, X.clone()))
