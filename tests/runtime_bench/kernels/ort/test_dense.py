"""Dense layers on codes: exact sums, whatever the codes are, from every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_properties import everywhere

from bgnn.converter.code_operands import packed_weights

SIZES = [1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 130]
OUTPUTS = [1, 15, 16, 17, 33, 64, 65, 80, 128]
ROWS = [0, 1, 2, 15, 16, 17, 33]
RESULT = {"y_zero": 117, "low": 3, "high": 251}
F32 = np.float32


def attributes(x_zero: int = 0, w_zero: int = 0, low: int = 0, high: int = 255) -> dict[str, Any]:
    return {"x_scale": 0.037, "x_zero": x_zero, "x_low": low, "x_high": high, "w_zero": w_zero}


def codes_of(real: np.ndarray, a: dict[str, Any]) -> np.ndarray:
    """As `bgnn::quantize`."""
    scaled = np.clip(real / F32(a["x_scale"]), a["x_low"] - a["x_zero"], a["x_high"] - a["x_zero"])
    return (np.rint(scaled) + a["x_zero"]).astype(np.uint8)


def sums(x: np.ndarray, weights: np.ndarray, a: dict[str, Any]) -> np.ndarray:
    return (x.astype(np.int64) - a["x_zero"]) @ (weights.astype(np.int64) - a["w_zero"]).T


def check(
    weights: np.ndarray,
    a: dict[str, Any],
    threads: int = 1,
    x: np.ndarray | None = None,
    real: np.ndarray | None = None,
) -> None:
    """All four ways through an operator, against numpy."""
    rng = np.random.default_rng(0)
    total = sums(codes_of(real, a) if x is None else x, weights, a)
    assert np.abs(total).max(initial=0) < 2**30
    multiplier = (rng.standard_normal(len(weights)) * 0.7 / (1 + np.abs(total).max(initial=1) / 200)).astype(F32)
    given = {"weights": packed_weights(weights), "multiplier": multiplier}
    given.update({"real": real} if x is None else {"x": x})
    shift, bias = rng.standard_normal(len(weights)).astype(F32), rng.integers(-900, 900, len(weights)).astype(np.int32)
    for more in ({}, {"bias": shift}):
        (found,) = everywhere("QLinearFloat", a, threads, **given, **more)
        expected = total.astype(F32) * multiplier
        np.testing.assert_array_equal(found, expected + shift if more else expected)
    for more in ({}, {"bias": bias}):
        (found,) = everywhere("QLinear", {**a, **RESULT}, threads, **given, **more)
        scaled = (total + bias if more else total).astype(F32) * multiplier
        expected = np.clip(np.rint(scaled) + RESULT["y_zero"], RESULT["low"], RESULT["high"])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("inputs", SIZES)
def test_sizes_around_the_blocks(inputs: int) -> None:
    rng = np.random.default_rng(inputs)
    for i, outputs in enumerate(OUTPUTS):
        rows = ROWS[(i + inputs) % len(ROWS)]
        weights = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
        a = attributes(*((0, 0), (128, 0), (7, -12), (255, 127), (0, -128))[i % 5])
        check(weights, a, x=rng.integers(0, 256, (rows, inputs)).astype(np.uint8))


@pytest.mark.parametrize("code", [0, 128, 255])
@pytest.mark.parametrize("weight", [-128, 127])
def test_extreme_codes_do_not_saturate(code: int, weight: int) -> None:
    """255 * 127 twice is beyond 16 bits, and so is -128 * -128 twice."""
    x = np.full((17, 133), code, np.uint8)
    for zero in (0, 128, 255):
        check(np.full((18, 133), weight, np.int8), attributes(zero), x=x)
    x[:, 1::2] = 255 - code
    check(np.full((18, 133), weight, np.int8), attributes(128, 127), x=x)


@pytest.mark.parametrize("zero", [0, 93, 255])
@pytest.mark.parametrize("share", [0.0, 0.013, 0.2, 1.0])
def test_rows_that_are_mostly_zero_point(zero: int, share: float) -> None:
    rng = np.random.default_rng(7)
    x = np.where(rng.random((40, 301)) < share, rng.integers(0, 256, (40, 301)), zero).astype(np.uint8)
    x[-1] = 255 - zero  # one row is full
    for outputs in (7, 16, 70, 128):
        weights = rng.integers(-128, 128, (outputs, 301)).astype(np.int8)
        check(weights, attributes(zero, -12 if outputs == 16 else 0), x=x)


@pytest.mark.parametrize("inputs", [1, 16, 37, 130])
def test_real_numbers_are_quantised_first(inputs: int) -> None:
    rng = np.random.default_rng(1)
    weights = rng.integers(-128, 128, (19, inputs)).astype(np.int8)
    real = (rng.standard_normal((35, inputs)) * 4).astype(F32)
    real[3] = 0
    real[5] = F32(0.037) * (np.arange(inputs) + F32(0.5))  # ties
    real[6], real[7] = 1e30, -np.inf
    real[9:, 1:] = 0
    for zero, low, high in ((0, 0, 255), (100, 4, 200), (255, 0, 255)):
        a = attributes(zero, 3, low, high)
        check(weights, a, real=real)
        quantiser = {"scale": a["x_scale"], "zero": zero, "low": low, "high": high}
        (codes,) = everywhere("Quantize", quantiser, x=real)
        np.testing.assert_array_equal(codes, codes_of(real, a))


def test_leading_axes_and_threads() -> None:
    rng = np.random.default_rng(3)
    weights = rng.integers(-128, 128, (64, 96)).astype(np.int8)
    x = rng.integers(0, 256, (2, 3, 400, 96)).astype(np.uint8)
    for threads in (1, 2):
        check(weights, attributes(11), threads, x=x)
    check(weights, attributes(11), x=x[0, 0, 0])
    check(weights, attributes(11), x=x[:0])
