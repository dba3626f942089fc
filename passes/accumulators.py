"""Proof that 32-bit sums hold: the largest value each integer accumulator can reach, for all inputs there are.

A dense layer sums `(x - x_zero) * (w - w_zero)`: its bound follows from its weights. A segment sum adds as many codes
as a node has edges: its bound follows from the largest number of edges that a node may have, `MAX_DEGREE`, which the
emitted file states and its runner checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_DEGREE = 1 << 20
LARGEST = (1 << 31) - 1


def reach(zero_point: int, low: int = 0, high: int = 255) -> int:
    """The largest magnitude of `code - zero_point`."""
    return max(abs(low - zero_point), abs(high - zero_point))


def of_linear(weight: Tensor, x_zero: int, w_zero: int, bias: Tensor | None) -> int:
    """The bound of a dense layer's sums: `weight` i8 `[O, I]`, codes of x anywhere in 0..255, `bias` i32 `[O]`."""
    rows = (weight.to(torch.int64) - w_zero).abs().sum(1) * reach(x_zero)
    if bias is not None:
        rows = rows + bias.to(torch.int64).abs()
    return int(rows.max()) if rows.numel() else 0


def of_segments(zero_point: int, factor: int = 1, degree: int = MAX_DEGREE) -> int:
    """The bound of a sum over a node's edges, of codes times whole numbers up to `factor`."""
    return degree * reach(zero_point) * factor
