"""The bounds are reached, and never passed."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgnn.passes import accumulators


@given(st.integers(0, 255), st.integers(-128, 127), st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_dense_sums(x_zero: int, w_zero: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (3, 5), generator=generator).to(torch.int8)
    bias = torch.randint(-1000, 1000, (3,), generator=generator).to(torch.int32)
    x = torch.randint(0, 256, (50, 5), generator=generator)
    sums = (x - x_zero) @ (weight.long() - w_zero).t() + bias
    bound = accumulators.of_linear(weight, x_zero, w_zero, bias)
    assert int(sums.abs().max()) <= bound
    # Codes at the ends, each with its weight's sign, come within the bias of it.
    end = 255 if 255 - x_zero >= x_zero else 0
    worst = (abs(end - x_zero) * (weight.long() - w_zero).abs()).sum(1)
    assert bound - int(worst.max()) <= 2 * 1000


def test_segments() -> None:
    assert accumulators.of_segments(0, degree=10) == 2550
    assert accumulators.of_segments(200, degree=10) == 2000
    assert accumulators.of_segments(128, factor=255, degree=1) == 128 * 255
    assert accumulators.of_segments(0) <= accumulators.LARGEST  # codes up to the largest degree that files state
    assert accumulators.of_segments(0, factor=255) > accumulators.LARGEST
