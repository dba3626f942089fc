"""Tables as depthwise layers: equal in every entry, or none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgnn.passes.depthwise import LARGEST_WEIGHT, depthwise

CODES = np.arange(256)


def table(slope: np.ndarray, offset: np.ndarray, low: int = 0, high: int = 255) -> np.ndarray:
    """What rounding a line of each channel gives: uint8 [C, 256]."""
    real = slope[:, None] * CODES + offset[:, None]
    return np.clip(np.rint(real), low, high).astype(np.uint8)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (13, 255), (0, 15), (100, 101)])
@pytest.mark.parametrize("scale", [0.05, 0.6, 1.0, 1.7, 9.0])
def test_lines_of_every_slope_are_found(scale, low, high):
    rng = np.random.default_rng(3)
    wanted = table(rng.normal(0, scale, 64), rng.uniform(-300, 500, 64), low, high)
    layer = depthwise(wanted, 64)
    assert layer is not None
    np.testing.assert_array_equal(layer.entries(), wanted)
    assert np.abs(layer.weight.astype(int)).max() <= LARGEST_WEIGHT
    assert {layer.weight.dtype, layer.scale.dtype, layer.bias.dtype} == {
        np.dtype(t) for t in (np.int8, np.float32, np.int32)
    }


@settings(deadline=None, max_examples=60)
@given(
    st.floats(1e-4, 1), st.floats(0.3, 3), st.integers(0, 255), st.integers(0, 255), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_a_bias_between_two_quantisers(unit, ratio, x_zero, y_zero, relu, seed):
    """The tail of a GCN: real numbers plus a bias for each channel, in float32, to the next quantiser's codes."""
    bias = np.random.default_rng(seed).normal(0, 20 * unit, 16).astype(np.float32)
    real = (CODES - x_zero).astype(np.float32) * np.float32(unit) + bias[:, None]
    wanted = np.rint(real / np.float32(unit * ratio)) + y_zero
    wanted = np.clip(wanted, y_zero if relu else 0, 255).astype(np.uint8)
    layer = depthwise(wanted, 64)
    if layer is not None:
        np.testing.assert_array_equal(layer.entries(), wanted)


def test_the_ends_are_found():
    constant = np.stack([np.full(256, v, np.uint8) for v in (0, 7, 255)])
    step = np.where(CODES < 97, 0, 255).astype(np.uint8)[None]
    for wanted in (constant, step, constant[:1], CODES[None].astype(np.uint8), CODES[None, ::-1].astype(np.uint8)):
        layer = depthwise(wanted, 64)
        assert layer is not None
        np.testing.assert_array_equal(layer.entries(), wanted)


def test_what_is_no_line_is_refused():
    rng = np.random.default_rng(0)
    bent = np.clip(np.rint(np.where(CODES > 128, CODES, 128 - (128 - CODES) * 0.2)), 0, 255).astype(np.uint8)
    anything = rng.integers(0, 256, 256).astype(np.uint8)
    line = CODES.astype(np.uint8)
    assert depthwise(bent[None], 64) is None
    assert depthwise(anything[None], 64) is None
    assert depthwise(np.stack([line, anything]), 64) is None


def test_numbers_of_channels_that_would_be_slow_are_refused():
    line = CODES.astype(np.uint8)[None]
    assert depthwise(line, 8) is not None
    assert depthwise(line, 7) is None
