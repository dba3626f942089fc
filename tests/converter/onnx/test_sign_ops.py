"""Binary networks as 8-bit operators: bits equal those of the dialect's reference, every one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs import Wrapped, exported, signs
from onnx_graphs import file_of, run

from bgnn.converter.onnx.inspect import operators
from bgnn.converter.onnx.sign_ops import bits
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

bgnn = torch.ops.bgnn


def same(function, *inputs: torch.Tensor, **constants: torch.Tensor) -> None:
    found = run(OnnxModel(file_of(exported(function, *inputs, **constants))), *inputs)[0]
    np.testing.assert_array_equal(found, Wrapped(function, constants)(*inputs).numpy())


def test_bits_are_the_dialects():
    x = torch.randn(5, 70)
    words = bgnn.pack(x)
    assert (bits(words.numpy())[:, :70] == (x < 0).numpy()).all()
    assert not bits(words.numpy())[:, 70:].any()


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64, 70])
def test_there_and_back(channels):
    x = torch.randn(2, 3, channels)
    x[0, 0] = 0.0
    same(lambda m, x: bgnn.unpack(bgnn.pack(x), channels), x)


@pytest.mark.parametrize("channels", [5, 32, 64, 100])
@pytest.mark.parametrize("outputs", [1, 32, 40])
def test_binary_layers(channels, outputs):
    x, weight = torch.randn(2, 7, channels), bgnn.pack(signs(outputs, channels, seed=1))
    threshold = torch.randint(-2, channels + 2, (outputs,), dtype=torch.int32)
    threshold[0] = 2**31 - 1
    factors = {"f": torch.randn(outputs), "b": torch.randn(outputs)}

    def to_bits(m, x):
        return bgnn.unpack(bgnn.bconv_bits(bgnn.pack(x), m.w, channels, m.t), outputs)

    def to_integers(m, x):
        return bgnn.bconv(bgnn.pack(x), m.w, channels, m.f, m.b)

    same(to_bits, x, w=weight, t=threshold)
    same(to_integers, x, w=weight, f=torch.ones(outputs), b=torch.zeros(outputs))
    found = run(OnnxModel(file_of(exported(to_integers, x, w=weight, **factors))), x)[0]
    np.testing.assert_allclose(found, Wrapped(to_integers, {"w": weight, **factors})(x).numpy(), rtol=1e-5, atol=1e-4)


def test_thresholds_at_every_count():
    """p from 0 to K against thresholds from -1 to K."""
    x = torch.ones(33, 32)
    for row in range(33):
        x[row, :row] = -1
    weight = bgnn.pack(torch.ones(34, 32))
    threshold = torch.arange(-1, 33, dtype=torch.int32)
    same(lambda m, x: bgnn.unpack(bgnn.bconv_bits(bgnn.pack(x), m.w, 32, m.t), 34), x, w=weight, t=threshold)


def test_moves_of_packed_signs():
    index = torch.randint(0, 9, (2, 9, 4))

    def layer(m, x):
        packed = bgnn.pack(x)
        other = bgnn.gather_nodes(packed, m.i)
        edges = packed.unsqueeze(2).expand(2, 9, 4, 2).bitwise_xor(other)
        both = torch.cat([edges, other.bitwise_xor(m.flips)], 3).reshape(2, 36, 4)
        return bgnn.unpack(bgnn.packed_max(both.view(2, 9, 4, 4), 2), 128)

    same(layer, torch.randn(2, 9, 64), i=index, flips=bgnn.pack(signs(64)))


def test_outputs_are_packed_as_in_the_ir():
    same(lambda m, x: bgnn.pack(x), torch.randn(4, 5, 70))
    x = torch.randn(3, 64)
    data = file_of(exported(lambda m, x: bgnn.bconv_bits(bgnn.pack(x), m.w, 64, m.t), torch.randn(3, 64),
                            w=bgnn.pack(signs(32, 64)), t=torch.zeros(32, dtype=torch.int32)))  # fmt: skip
    assert operators(data)["QLinearConv"] == 1
    found = run(OnnxModel(data), x)[0]
    expected = bgnn.bconv_bits(bgnn.pack(x), bgnn.pack(signs(32, 64)), 64, torch.zeros(32, dtype=torch.int32))
    np.testing.assert_array_equal(found, expected.numpy())
