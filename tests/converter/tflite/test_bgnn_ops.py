"""Each own operator as a file in LiteRT with our delegate: equal to the dialect's reference, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bgnn.converter.dialect import ops, pack
from bgnn.converter.errors import BgnnError
from bgnn.converter.tflite import emit
from bgnn.converter.tflite.inspect import operators
from bgnn.runtime_bench.runtime import delegate
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter, has_bgnn_ops

try:
    delegate.library_path()
    MISSING = ""
except BgnnError as error:
    MISSING = str(error)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

CHANNELS = [1, 31, 33, 64, 70]


@pytest.fixture
def run(graph: Callable[..., Any], emitted: Callable[..., bytes]) -> Callable[..., None]:
    """Emits `function(m, *inputs)`, runs it on one and two threads, and compares every bit."""

    def check(function: Callable[..., Any], name: str, *inputs: Tensor, **constants: Tensor) -> None:
        gm = graph(function, list(inputs), **constants)
        expected = gm(*inputs)
        expected = (expected.int() if expected.dtype == torch.int64 else expected).numpy()
        file = emitted(gm)
        assert has_bgnn_ops(file)
        assert name in operators(file)
        arrays = [(x.int() if x.dtype == torch.int64 else x).numpy() for x in inputs]
        for threads in (1, 2):
            interpreter = LiteRTInterpreter(file, threads, delegate=True)
            for _ in range(2):
                (found,) = interpreter.run(*arrays)
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
                np.testing.assert_array_equal(found, expected)

    return check


@pytest.fixture
def run_own(graph: Callable[..., Any]) -> Callable[..., list[str]]:
    """Runs a graph's file with our operators before TFLite's; returns its operators' names, in their order."""

    def check(function: Callable[..., Any], x: Tensor, **constants: Tensor) -> list[str]:
        gm = graph(function, [x], **constants)
        expected = gm(x)
        expected = [expected] if isinstance(expected, Tensor) else expected
        names = [f"out{i}" for i in range(len(expected))]
        file = emit(gm, name="tiny", input_names=["in0"], output_names=names, metadata={}, kernels="bgnn")
        for found, wanted in zip(LiteRTInterpreter(file, delegate=True).run(x.numpy()), expected, strict=True):
            np.testing.assert_array_equal(found, wanted.numpy())
        return list(operators(file))

    return check


def table(batch: int, nodes: int, rows: int, k: int) -> Tensor:
    return torch.randint(0, nodes, (batch, rows, k))


def halves(filters: int, channels: int) -> Tensor:
    """Packed weights `[O, 2W]`, each half by itself."""
    return torch.cat([pack(torch.randn(filters, channels)), pack(torch.randn(filters, channels))], 1)


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("channels", CHANNELS)
def test_hamming_knn(run: Callable[..., None], channels: int, k: int) -> None:
    x = pack(torch.randn(2, 20, channels))
    run(lambda m, x: ops.hamming_knn(x, channels, k), "BgnnHammingKnn", x)


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("channels", [1, 3, 33, 64])
def test_real_knn(run: Callable[..., None], channels: int, k: int) -> None:
    run(lambda m, x: ops.real_knn(x, k), "BgnnKnn", torch.randn(2, 20, channels))
    run(lambda m, x: ops.real_knn(x, k), "BgnnKnn", torch.randn(1, 20, channels).round())  # ties


@pytest.mark.parametrize("channels", [1, 3, 33, 64])
def test_gather_max(run: Callable[..., None], channels: int) -> None:
    run(lambda m, x, i: ops.gather_max(x, i), "BgnnGatherMax", torch.randn(2, 9, channels), table(2, 9, 7, 4))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (31, 33), (33, 31), (64, 64), (70, 5)])
def test_xor_edge_conv(run: Callable[..., None], channels: int, filters: int, steps: int) -> None:
    thresholds = torch.randint(channels // 2, 2 * channels, (steps, filters), dtype=torch.int32).sort(0)[0]
    thresholds[0, 0], thresholds[-1, -1] = -1, 2**31 - 1
    run(
        lambda m, x, i: ops.xor_edge_conv(x, i, m.w, m.t, channels), "BgnnXorEdgeConv",
        pack(torch.randn(2, 9, channels)), table(2, 9, 9, 4), w=halves(filters, channels), t=thresholds,
    )  # fmt: skip


@pytest.mark.parametrize("scalars", [True, False])
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (3, 64), (31, 33), (33, 31), (64, 64), (70, 5)])
def test_bin_edge_conv(run: Callable[..., None], channels: int, filters: int, scalars: bool) -> None:
    run(
        lambda m, n, x, i: ops.bin_edge_conv(
            n, x, i, m.scale, m.shift, m.w, m.alpha, m.beta, m.gamma, m.slope, channels
        ),
        "BgnnBinEdgeConv",
        pack(torch.randn(2, 9, channels)), torch.randn(2, 9, channels), table(2, 9, 9, 4),
        scale=torch.randn(channels), shift=torch.randn(channels), w=halves(filters, channels),
        alpha=torch.randn(filters), beta=torch.randn(1 if scalars else 9), gamma=torch.randn(1 if scalars else 4),
        slope=torch.randn(1 if scalars else filters),
    )  # fmt: skip


@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (31, 33), (33, 31), (64, 64), (70, 5)])
def test_dense_pool(run: Callable[..., None], channels: int, filters: int) -> None:
    run(
        lambda m, x: ops.dense_pool(x, m.w, None, channels), "BgnnDensePool", pack(torch.randn(2, 9, channels)),
        w=pack(torch.randn(filters, channels)),
    )  # fmt: skip
    run(
        lambda m, x: ops.dense_pool(x, m.w, m.s, channels), "BgnnScaledPool", pack(torch.randn(2, 9, channels)),
        w=pack(torch.randn(filters, channels)), s=2.0 ** torch.randint(-3, 4, (9,)) * torch.randn(9).sign(),
    )  # fmt: skip


@pytest.mark.parametrize("scalars", [True, False])
@pytest.mark.parametrize("channels", [1, 31, 64, 70])
def test_edge_max(run: Callable[..., None], channels: int, scalars: bool) -> None:
    run(
        lambda m, x, n, i: ops.edge_max(x, n, i, m.beta, m.gamma), "BgnnEdgeMax", torch.randn(2, 9, channels),
        torch.randn(2, 9, channels), table(2, 9, 9, 4), beta=torch.randn(1 if scalars else 9),
        gamma=torch.randn(1 if scalars else 4),
    )  # fmt: skip


def test_operators_in_a_row(run: Callable[..., None]) -> None:
    """A small BF network: nothing between the operators but their words."""

    def network(m: Any, x: Tensor) -> Tensor:
        x = ops.xor_edge_conv(x, ops.hamming_knn(x, 33, 5), m.w, m.t, 33)
        return ops.dense_pool(x, m.v, None, 40)

    run(
        network, "BgnnDensePool", pack(torch.randn(2, 20, 33)), w=halves(40, 33), v=pack(torch.randn(7, 40)),
        t=torch.randint(20, 45, (1, 40), dtype=torch.int32),
    )  # fmt: skip


def test_without_the_delegate_the_operator_is_named(graph: Callable[..., Any], emitted: Callable[..., bytes]) -> None:
    x = torch.randn(1, 5, 3)
    file = emitted(graph(lambda m, x: ops.real_knn(x, 2), [x]))
    with pytest.raises(BgnnError, match="BgnnKnn"):
        LiteRTInterpreter(file)


# --- dense layers on codes ---


def layer(outputs: int, inputs: int, low: int = -128) -> dict[str, Tensor]:
    return {
        "w": torch.randint(low, 128, (outputs, inputs), dtype=torch.int8),
        "s": torch.rand(outputs) * 0.01 + 0.001,
        "units": torch.randint(-900, 900, (outputs,), dtype=torch.int32),
        "bias": torch.randn(outputs),
    }


def quantised(shape: tuple[int, ...]) -> Tensor:
    """Real numbers, many of them 0 and some halfway between two codes of scale 0.02."""
    x = torch.randn(shape)
    x[..., ::3] = 0
    x[..., ::5] = (x[..., ::5] / 0.02).round() * 0.02 + 0.01
    return x


@pytest.mark.parametrize("w_zero", [0, -12])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 17), (2, 2, 3, 64), (1, 40, 1)])
def test_dense_layers(run_own: Callable[..., list[str]], shape: tuple[int, ...], w_zero: int) -> None:
    """One operator with the quantiser before it, whose scale need not be the layer's, and the requantisation."""

    def codes(m: Any, x: Any) -> Any:
        given = ops.quantize(x, 0.02, 128, 3, 250)
        return ops.dequantize(ops.q_linear(given, 0.021, 128, m.w, m.s, w_zero, m.units, 0.3, 117, 10, 255), 0.3, 117)

    def real(m: Any, x: Any) -> Any:
        given = ops.quantize(x, 0.02, 128, 3, 250)
        return ops.q_linear_float(given, 0.021, 128, m.w, m.s, w_zero, m.bias)

    constants = layer(19, shape[-1])
    assert run_own(codes, quantised(shape), **constants) == ["BgnnQLinear", "DEQUANTIZE"]
    assert run_own(real, quantised(shape), **constants) == ["BgnnQLinearFloat"]


def test_codes_with_other_readers_stand_by_themselves(run_own: Callable[..., list[str]]) -> None:
    def two(m: Any, x: Any) -> Any:
        given = ops.quantize(x, 0.02, 128, 0, 255)
        return [ops.q_linear_float(given, 0.02, 128, m.w, m.s, 0, None), ops.dequantize(given, 0.02, 128)]

    found = run_own(two, quantised((6, 33)), **layer(5, 33))
    assert sorted(found) == ["BgnnQLinearFloat", "BgnnQuantize", "DEQUANTIZE"]

    def another_zero(m: Any, x: Any) -> Any:
        return ops.q_linear_float(ops.quantize(x, 0.02, 128, 0, 255), 0.02, 127, m.w, m.s, 0, None)

    assert run_own(another_zero, quantised((6, 33)), **layer(5, 33)) == ["BgnnQuantize", "BgnnQLinearFloat"]


def test_dense_layers_with_more_axes_than_ours_take(run_own: Callable[..., list[str]]) -> None:
    def five(m: Any, x: Any) -> Any:
        given = ops.quantize(x, 0.03, 128, 0, 255)
        return ops.q_linear_float(given, 0.03, 128, m.w, m.s, 0, None)

    found = run_own(five, torch.randint(-90, 90, (2, 1, 2, 1, 9)) * 0.03, **layer(5, 9))
    assert not any(name.startswith("Bgnn") for name in found)


@pytest.mark.parametrize("zero", [100, 128])
@pytest.mark.parametrize("shape", [(9,), (9, 5), (9, 2, 1, 3), (9, 2, 1, 3, 2)])
def test_sums_of_codes_as_real_numbers(run_own: Callable[..., list[str]], shape: tuple[int, ...], zero: int) -> None:
    def sums(m: Any, x: Any) -> Any:
        return ops.q_segment_sum_float.default(ops.quantize(x, 0.05, zero, 0, 255), 0.05, zero, m.index, 5)

    found = run_own(sums, torch.randn(shape), index=torch.tensor([4, 0, 0, 1, 4, 4, 1, 0, 4]))
    assert ("BgnnAggregateInt32" in found) == (len(shape) <= 4)
    assert ("UNSORTED_SEGMENT_SUM" in found) == (len(shape) > 4)
