"""What stands between codes and a quantiser becomes a table of PyTorch's own results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_models import random_graph
from graphs import Wrapped, bgnn, count, outputs
from torch import Tensor, fx

from bgnn.converter.sizes import graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, tabulate

X, EDGES = random_graph(300, 40)
WIDE = X[:, :8].repeat(1, 2)[:, :8] * torch.linspace(0.2, 3, 8)
Q, Y = (0.03, 120), (0.041, 97, 0, 255)
B = torch.linspace(-1, 1, 8)


def codes(x: Tensor) -> Tensor:
    return bgnn.quantize(x, *Q, 0, 255)


def real(x: Tensor) -> Tensor:
    return bgnn.dequantize(codes(x), *Q)


def opened(function: Any, **constants: Tensor) -> fx.GraphModule:
    inputs = (WIDE, EDGES)
    gm = trace(Wrapped(lambda m, x, e: function(m, x), constants), inputs, open_axes=graph_axes(inputs))
    canonicalise.run(gm)
    return gm


LINES = {
    "bias": lambda m, x: bgnn.quantize(real(x) + m.b, *Y),
    "bias and ReLU": lambda m, x: bgnn.quantize((real(x) + m.b).relu(), *Y),
    "norm": lambda m, x: bgnn.quantize((real(x) - m.b) * m.g / 1.3 + m.b, *Y),
    "rows of heads": lambda m, x: bgnn.quantize(bgnn.dequantize(codes(x).reshape(-1, 1, 8), *Q) + m.b, *Y),
}
CURVES = {
    "elu": lambda m, x: bgnn.quantize(F.elu(real(x) + m.b), *Y),
    "sigmoid": lambda m, x: bgnn.quantize(torch.sigmoid(real(x)), 1 / 255, 0, 0, 255),
    "leaky": lambda m, x: bgnn.quantize(F.leaky_relu(real(x) + m.b, 0.2), *Y),
}


@pytest.mark.parametrize("rows", [256, 300])
def test_a_constant_of_rows_is_no_table(rows):
    """A factor for each row: of 256 rows it has the shape of a table, and the numbers of none."""
    gm = trace(
        Wrapped(lambda m, x: bgnn.quantize(real(x) * m.rows, *Y), {"rows": torch.rand(rows, 1)}),
        (X[:1].expand(rows, -1),),
    )
    canonicalise.run(gm)
    assert tabulate.run(gm, True).rewrites == 0


@pytest.mark.parametrize("any_table", [False, True])
@pytest.mark.parametrize("name", LINES)
def test_lines_become_tables(name, any_table):
    gm = opened(LINES[name], b=B, g=B + 2)
    before = outputs(gm, WIDE, EDGES)
    assert tabulate.run(gm, any_table).rewrites == 1
    assert (count(gm, bgnn.q_table), count(gm, bgnn.quantize), count(gm, bgnn.dequantize)) == (1, 1, 0)
    assert torch.equal(outputs(gm, WIDE, EDGES)[0], before[0])


@pytest.mark.parametrize("name", CURVES)
def test_curves_only_where_any_table_will_do(name):
    gm = opened(CURVES[name], b=B)
    before = outputs(gm, WIDE, EDGES)
    done = tabulate.run(gm)
    assert done.rewrites == 0
    assert "depthwise" in done.refusals[0][1]
    assert tabulate.run(gm, any_table=True).rewrites == 1
    assert torch.equal(outputs(gm, WIDE, EDGES)[0], before[0])


def joined(m, x):
    """A bias, and the codes of another quantiser; then an activation between two more."""
    first = bgnn.requantize(bgnn.quantize(real(x) + m.b, *Y), *Y[:2], 1.0, 0.05, 80, 80, 255)
    return bgnn.quantize(F.elu(bgnn.dequantize(first, 0.05, 80)), 0.031, 20, 0, 255)


def test_tables_of_tables_are_one():
    gm = opened(joined, b=B)
    before = outputs(gm, WIDE, EDGES)
    assert tabulate.run(gm, any_table=True).rewrites == 3
    assert (count(gm, bgnn.q_table), count(gm, bgnn.requantize), count(gm, bgnn.quantize)) == (1, 0, 1)
    assert torch.equal(outputs(gm, WIDE, EDGES)[0], before[0])


def test_a_table_that_others_read_stays():
    def function(m, x):
        first = bgnn.quantize(real(x) + m.b, *Y)
        return bgnn.requantize(first, *Y[:2], 1.0, 0.05, 80, 80, 255) + first

    gm = opened(function, b=B)
    before = outputs(gm, WIDE, EDGES)
    assert tabulate.run(gm, any_table=True).rewrites == 1
    assert (count(gm, bgnn.q_table), count(gm, bgnn.requantize)) == (1, 1)
    assert torch.equal(outputs(gm, WIDE, EDGES)[0], before[0])


LEFT_ALONE = {
    "nothing between": lambda m, x: bgnn.quantize(real(x), *Y),
    "read twice": lambda m, x: (lambda total: bgnn.quantize(total, *Y) + total)(real(x) + m.b),
    "two tensors": lambda m, x: bgnn.quantize(real(x) + x, *Y),
    "elements mixed": lambda m, x: bgnn.quantize((real(x) + m.b).cumsum(1), *Y),
    "constants of another axis": lambda m, x: bgnn.quantize(real(x).reshape(-1, 2, 4) * m.c, *Y),
    "no codes": lambda m, x: bgnn.quantize(x + m.b, *Y),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name):
    gm = opened(LEFT_ALONE[name], b=B, c=torch.ones(2, 1) * 1.5)
    assert tabulate.run(gm, any_table=True).rewrites == 0
    assert count(gm, bgnn.q_table) == 0
