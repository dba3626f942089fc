"""The integer ops as TFLite's int8 operators: codes equal to the dialect's, or next to a tie where kernels round so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bgnn.converter.dialect_int8
from bgnn.converter.tflite.inspect import operators
from bgnn.converter.tflite.walk import SHIFT
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter

bgnn, aten = torch.ops.bgnn, torch.ops.aten
X = (0.0213, 131, 0, 255)


@pytest.fixture
def both(graph, emitted):
    """A function that gives (a function's result, its file's) as int64, and the file's operators; codes from 0."""

    def run(function, *inputs: torch.Tensor, xnnpack: bool = True, **constants: torch.Tensor):
        gm = graph(function, list(inputs), **constants)
        file = emitted(gm)
        found = LiteRTInterpreter(file, xnnpack=xnnpack).run(*[t.numpy() for t in inputs])[0]
        with torch.no_grad():
            expected = gm(*inputs).numpy()
        if found.dtype == np.int8:
            found, expected = found.astype(np.int64) + SHIFT, expected.astype(np.int64)
        return expected, found, operators(file)

    return run


def dense(**fields):
    """Weights, scales and a bias of a layer of 20 inputs and 24 outputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (24, 20), generator=generator).to(torch.int8)
    return {
        "weight": weight, "scales": torch.rand(24, generator=generator) / 200 + 1e-3,
        "bias": torch.randint(-3000, 3000, (24,), generator=generator, dtype=torch.int32), **fields,
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(20,), (300, 20), (3, 50, 20), (2, 5, 7, 20)])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (119, 255), (100, 140)])
def test_dense_layers_round_as_the_reference(both, shape, low, high):
    """XNNPACK multiplies the sums by a float32 and rounds half to even: every code is the same."""

    def layer(m, x):
        x = bgnn.quantize(x, *X)
        return bgnn.q_linear(x, *X[:2], m.weight, m.scales, 0, m.bias, 0.05, 119, low, high)

    expected, found, names = both(layer, torch.randn(shape), **dense())
    assert (expected == found).all()
    assert names["FULLY_CONNECTED"] == 1
    assert ("MAXIMUM" in names) == (low == 100)


def test_without_xnnpack_only_ties_turn(both):
    """Fixed point of 31 bits: a code differs by one, and next to a tie alone."""

    def layer(m, x, y_scale=0.05):
        return bgnn.q_linear(bgnn.quantize(x, *X), *X[:2], m.weight, m.scales, 0, m.bias, y_scale, 119, 0, 255)

    x, made = torch.randn(20000, 20), dense()
    expected, found, _ = both(layer, x, xnnpack=False, **made)
    apart = np.abs(expected - found)
    assert apart.max() <= 1
    total = (bgnn.quantize(x, *X).double() - 131) @ made["weight"].double().T + made["bias"]
    real = (total * X[0] * made["scales"].double() / 0.05).numpy()
    from_tie = np.abs(real - np.floor(real) - 0.5)
    assert 0 < from_tie[apart > 0].max(initial=0) < 1 / 128


@pytest.mark.parametrize("zero", [-100, 5])
def test_weights_with_a_zero_point(both, zero):
    """What int8 cannot hold without it is summed exactly, and requantised in float32."""

    def layer(m, x):
        x = bgnn.quantize(x, *X)
        return bgnn.q_linear(x, *X[:2], m.weight, m.scales, zero, m.bias, 0.2, 119, 119, 255)

    fits = torch.randint(-120, 100, (24, 20), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    made = dense(weight=fits if zero == 5 else fits.abs())
    expected, found, names = both(layer, torch.randn(300, 20), **made)
    assert (expected == found).all()
    assert ("BATCH_MATMUL" in names) == (zero == -100)


@pytest.mark.parametrize("zero", [0, 7])
@pytest.mark.parametrize("shape", [(9, 20), (2, 3, 4, 20)])
def test_real_results_come_of_exact_sums(both, shape, zero):
    def layer(m, x):
        return bgnn.q_linear_float(bgnn.quantize(x, *X), *X[:2], m.weight, m.scales, zero, m.bias)

    expected, found, _ = both(layer, torch.randn(shape), **dense(bias=torch.randn(24)))
    assert np.abs(expected - found).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("op", [bgnn.q_add, bgnn.q_mul])
def test_two_tensors_of_codes(both, op):
    """Beside the reference by one at most, and seldom: sums hold 20 bits of a factor."""

    def both_of(m, x, y):
        x, y = bgnn.quantize(x, *X), bgnn.quantize(y, 0.0131, 77, 0, 255)
        return op(x, *X[:2], y, 0.0131, 77, 0.0307, 119, 119, 255)

    expected, found, _ = both(both_of, torch.randn(4, 300, 20), torch.randn(4, 300, 20))
    assert np.abs(expected - found).max() <= 1
    assert (expected != found).mean() < 1e-3


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_requantised_codes_are_looked_up(both, channels, slope):
    """XNNPACK's own requantisation has 8 bits of the factor: a depthwise layer, or a table, is exact."""

    def again(m, x):
        return bgnn.requantize(bgnn.quantize(x, *X), *X[:2], slope, 0.013, 119, 0, 255)

    expected, found, names = both(
        again,
        torch.randn(50, channels),
    )
    assert (expected == found).all()
    assert "DEPTHWISE_CONV_2D" in names or "GATHER" in names


def test_a_table_for_each_channel(both):
    tables = torch.randint(0, 256, (5, 256), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    expected, found, _ = both(
        lambda m, x: bgnn.q_table(bgnn.quantize(x, *X), m.tables), torch.randn(40, 5), tables=tables
    )
    assert (expected == found).all()


def test_moves_and_maxima_keep_what_codes_stand_for(both):
    def moved(m, x, index):
        codes = bgnn.quantize(x, *X)
        near = aten.amax.default(bgnn.gather_nodes(codes, index), [2])
        return bgnn.dequantize(aten.cat.default([near, codes], 2), *X[:2])

    index = torch.randint(0, 9, (2, 9, 4), dtype=torch.int32)
    expected, found, names = both(moved, torch.randn(2, 9, 6), index)
    assert (expected == found).all()
    assert names == {"QUANTIZE": 1, "GATHER": 1, "REDUCE_MAX": 1, "CONCATENATION": 1, "DEQUANTIZE": 1}


def test_codes_read_in_another_scale(both):
    """`dequantize(q) * 3` is the same bytes with another scale."""
    expected, found, _ = both(lambda m, x: bgnn.dequantize(bgnn.quantize(x, *X), X[0] * 3, X[1]), torch.randn(7, 3))
    assert np.abs(expected - found).max() <= 1e-6


def test_constants_that_are_codes(both):
    codes = torch.randint(0, 256, (5, 3), generator=torch.Generator().manual_seed(3)).to(torch.uint8)

    def plus(m, x):
        return bgnn.q_add(bgnn.quantize(x, *X), *X[:2], m.codes, 0.011, 99, 0.04, 119, 0, 255)

    expected, found, _ = both(plus, torch.randn(5, 3), codes=codes)
    assert np.abs(expected - found).max() <= 1


@pytest.mark.parametrize("shape", [(7, 4), (5, 7, 4), (2, 5, 7, 4)])
def test_sums_along_an_axis_are_exact(both, shape):
    """As codes, by lengths, and as real numbers; `X` has a zero point that is not the middle code."""
    x, axis = torch.randn(shape) * 3, len(shape) - 2
    lengths = (torch.arange(shape[-3]) + 1.0).reshape(-1, 1) if len(shape) > 2 else torch.tensor(7.0)
    for op in (
        lambda m, x: bgnn.q_sum(bgnn.quantize(x, *X), *X[:2], axis, None, 0.05, 119, 0, 255),
        lambda m, x: bgnn.q_sum(bgnn.quantize(x, *X), *X[:2], axis, m.n, 0.05, 119, 0, 255),
    ):
        expected, found, names = both(op, x, n=lengths)
        assert (expected == found).all()
        assert names["SUM"] == 1
    expected, found, _ = both(lambda m, x: bgnn.q_sum_float(bgnn.quantize(x, *X), *X[:2], axis), x)
    assert (expected == found).all()


@pytest.mark.parametrize("channel", [False, True])
def test_quantisers_that_stay(both, channel):
    """16 bits fit no byte: rounded in float32, step by step."""

    def faked(m, x):
        if channel:
            return bgnn.fake_quant_channel(x, m.scales, m.zeros, 1, -2000, 2000)
        return bgnn.fake_quant(x, 0.0011, 3, -2000, 2000)

    made = {"scales": torch.rand(4) / 900 + 1e-4, "zeros": torch.zeros(4)} if channel else {}
    expected, found, _ = both(faked, torch.randn(30, 4), **made)
    assert np.abs(expected - found).max() <= 2e-6
