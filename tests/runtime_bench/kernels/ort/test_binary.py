"""The operators on signs against `converter/dialect.py`, and their refusals. The kernels have tests of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_files
import pytest
import torch

import bgnn.converter.dialect as dialect
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.onnx_ops import session

BATCH, NODES, K = 2, 50, 7
rng = np.random.default_rng(0)


def packed(*shape: int, channels: int) -> np.ndarray:
    """Random signs as bits, the padding 0."""
    return dialect.pack(torch.from_numpy(rng.standard_normal((*shape, channels), dtype=np.float32))).numpy()


def real(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def neighbours(rows: int = NODES) -> np.ndarray:
    return rng.integers(0, NODES, (BATCH, rows, K), dtype=np.int32)


def two_halves(outputs: int, channels: int) -> np.ndarray:
    return np.concatenate([packed(outputs, channels=channels), packed(outputs, channels=channels)], axis=1)


def case(op: str, channels: int, outputs: int) -> tuple[dict[str, Any], dict[str, np.ndarray], Any]:
    """Attributes, inputs, and the dialect's function of the inputs in their order."""
    c = {"channels": channels}
    x = packed(BATCH, NODES, channels=channels)
    weights = packed(outputs, channels=channels)
    match op:
        case "HammingKnn":
            return {**c, "k": K}, {"x": x}, lambda x: dialect.hamming_knn(x, channels, K)
        case "Knn":
            return {"k": K}, {"x": real(BATCH, NODES, 3)}, lambda x: dialect.real_knn(x, K)
        case "XorEdgeConv":
            thresholds = rng.integers(0, 2 * channels, (2, outputs), dtype=np.int32)
            inputs = {"x": x, "neighbours": neighbours(), "weights": two_halves(outputs, channels)}
            return c, {**inputs, "thresholds": thresholds}, lambda *a: dialect.xor_edge_conv(*a, channels)
        case "GatherMax":
            return {}, {"x": real(BATCH, NODES, channels), "neighbours": neighbours(9)}, dialect.gather_max
        case "BinEdgeConv":
            inputs = {"node_bits": x, "x": real(BATCH, NODES, channels), "neighbours": neighbours()}
            inputs |= {"edge_scale": real(channels), "edge_shift": real(channels)}
            inputs |= {"weights": two_halves(outputs, channels), "alpha": real(outputs), "beta": real(NODES)}
            inputs |= {"gamma": real(K), "slope": real(outputs)}
            return c, inputs, lambda *a: dialect.bin_edge_conv(*a, channels)
        case "EdgeMax":
            inputs = {"x": real(BATCH, NODES, channels), "node": real(BATCH, NODES, channels)}
            inputs |= {"neighbours": neighbours(), "beta": real(NODES), "gamma": real(K)}
            return {}, inputs, dialect.edge_max
        case "DensePool":
            return c, {"x": x, "weights": weights}, lambda *a: dialect.dense_pool(*a, None, channels)
        case "ScaledPool":
            return c, {"x": x, "weights": weights, "scale": real(NODES)}, lambda *a: dialect.dense_pool(*a, channels)
        case "Pack":
            return {}, {"x": real(BATCH, NODES, channels)}, dialect.pack
        case "Unpack":
            return c, {"x": x}, lambda x: dialect.unpack(x, channels)
        case "BinaryDense":
            inputs = {"x": x, "weights": weights, "multiplier": real(outputs), "bias": real(outputs)}
            return c, inputs, lambda x, w, m, b: dialect.bconv(x, w, channels, m, b)
        case "BinaryDenseBits":
            thresholds = rng.integers(0, channels + 1, outputs, dtype=np.int32)
            inputs = {"x": x, "weights": weights, "thresholds": thresholds}
            return c, inputs, lambda x, w, t: dialect.bconv_bits(x, w, channels, t)
        case _:
            assert op == "PackedMax"
            return {}, {"x": x}, lambda x: dialect.packed_max(x, 1)


OPS = list(onnx_files.OUTPUTS)[list(onnx_files.OUTPUTS).index("HammingKnn") :]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (32, 64), (45, 33), (130, 70)])
@pytest.mark.parametrize("op", OPS)
def test_as_the_dialect_says(op: str, channels: int, outputs: int, threads: int) -> None:
    attributes, inputs, reference = case(op, channels, outputs)
    (got,) = onnx_files.run(op, attributes, threads, **inputs)
    want = reference(*map(torch.from_numpy, inputs.values()))
    if op == "ScaledPool":  # PyTorch adds in an order of its own
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    else:
        np.testing.assert_array_equal(got, want)


# Inputs whose first, or second, dimension nothing else depends on.
FREE = {("GatherMax", "x"), ("BinaryDense", "x"), ("BinaryDenseBits", "x"), ("XorEdgeConv", "thresholds")}
FREE |= {(op, name) for op in ("DensePool", "ScaledPool") for name in ("x", "weights")}
FREE_SECOND = {("GatherMax", "x"), ("GatherMax", "neighbours"), ("DensePool", "x")}
FREE_SECOND |= {("BinaryDense", "x"), ("BinaryDenseBits", "x")}
# Their rows may be none, as the edges of a graph.
ROWS = {(op, "x") for op in ("Pack", "Unpack", "BinaryDense", "BinaryDenseBits")}


@pytest.mark.parametrize("op", OPS)
def test_refusals(op: str) -> None:
    """Each input once with an axis too many, once empty, and with a row or column too many where that matters."""
    attributes, inputs, _ = case(op, 45, 33)
    runner = session(onnx_files.model(op, attributes, set(inputs)))
    message = rf"bgnn\.{op} \(node 'the_{op}'\): "
    for name, array in inputs.items():
        with pytest.raises(Exception, match=message + f"{name} has rank"):
            runner.run(None, {**inputs, name: array.reshape(1, 1, 1, *array.shape)})
        if (op, name) in ROWS:
            (got,), (want,) = runner.run(None, {**inputs, name: array[:0]}), runner.run(None, inputs)
            assert got.shape == (0, *want.shape[1:])
            assert got.dtype == want.dtype
        with pytest.raises(Exception, match=message + f"{name} is empty"):
            runner.run(None, {**inputs, name: array[..., :0] if (op, name) in ROWS else array[:0]})
        if len(inputs) > 1 and (op, name) not in FREE:
            with pytest.raises(Exception, match=message + "dimension"):
                runner.run(None, {**inputs, name: np.concatenate([array, array[:1]])})
        if array.ndim > 1 and len(inputs) > 1 and (op, name) not in FREE_SECOND:
            with pytest.raises(Exception, match=message + "dimension"):
                runner.run(None, {**inputs, name: np.concatenate([array, array[:, :1]], axis=1)})


@pytest.mark.parametrize("op", [op for op in OPS if "neighbours" in dict(onnx_files.INPUTS[op])])
@pytest.mark.parametrize("wrong", [-1, NODES, 2**31 - 1])
def test_neighbours_out_of_range(op: str, wrong: int) -> None:
    attributes, inputs, _ = case(op, 45, 33)
    inputs["neighbours"][1, 3, 2] = wrong
    with pytest.raises(Exception, match=rf"bgnn\.{op} .*a neighbour's index is not one of the graph's nodes"):
        onnx_files.run(op, attributes, **inputs)


@pytest.mark.parametrize("channels", [0, -1, 2**30])
@pytest.mark.parametrize("op", [op for op in OPS if op not in ("Knn", "GatherMax", "EdgeMax", "Pack", "PackedMax")])
def test_channels_out_of_range(op: str, channels: int) -> None:
    attributes, inputs, _ = case(op, 45, 33)
    with pytest.raises(BgnnError, match="channels is outside"):
        session(onnx_files.model(op, {**attributes, "channels": channels}, set(inputs)))


@pytest.mark.parametrize("op", ["HammingKnn", "Knn"])
@pytest.mark.parametrize("k", [0, -1, NODES + 1])
def test_k_out_of_range(op: str, k: int) -> None:
    attributes, inputs, _ = case(op, 45, 33)
    with pytest.raises(Exception, match=rf"k = {k} is outside of \[1, {NODES} nodes\]"):
        onnx_files.run(op, {**attributes, "k": k}, **inputs)


def test_words_must_fit_channels() -> None:
    _, inputs, _ = case("Unpack", 45, 33)
    with pytest.raises(Exception, match="dimension 2 of x is 2, but channels / 32, rounded up, is 3"):
        onnx_files.run("Unpack", {"channels": 65}, **inputs)


def test_sums_beyond_exact_floats() -> None:
    x = np.zeros((1, 1 << 14, 33), np.int32)
    with pytest.raises(Exception, match=r"the sums would not be exact beyond 2\^24"):
        onnx_files.run("DensePool", {"channels": 1056}, x=x, weights=np.zeros((1, 33), np.int32))
