"""A table of codes as a depthwise layer, since ONNX Runtime has no fast operator that looks bytes up.

`y = clamp(round((x * weight + bias) * scale))`, with a whole weight and bias for each channel, is a QLinearConv with
as many groups as channels, several times as fast as three float operators or a Gather. Many tables are of that form:
those that come of adding a bias, scaling, a norm, a ReLU. The numbers are searched for until they give every entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANES = 8  # with other numbers of channels ONNX Runtime's depthwise kernel is slower than three float operators
LARGEST_WEIGHT = 127
_EXACT = 2**24  # whole numbers below are exact in float32
_FAR = 2.0**20


@dataclass(frozen=True)
class Depthwise:
    """`weight` int8 [C], `scale` float32 [C], `bias` int32 [C]; codes then clamped to `low`..`high`."""

    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    low: int
    high: int

    def entries(self) -> np.ndarray:
        """The table uint8 [C, 256] that it computes, as ONNX Runtime rounds: a float32 product, half to even."""
        return np.clip(_rounded(self.weight, self.scale, self.bias), self.low, self.high).astype(np.uint8)


def _rounded(weight: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    sums = weight.astype(np.int64)[:, None] * np.arange(256) + bias.astype(np.int64)[:, None]
    return np.rint(sums.astype(np.float32) * scale.astype(np.float32)[:, None])


def depthwise(tables: np.ndarray, channels: int) -> Depthwise | None:
    """The layer over `channels` that equals `tables` uint8 [C, 256] or [1, 256] in every entry.

    None where one channel has none, or where it would not pay for so many channels.
    """
    if channels % LANES:
        return None
    low, high = int(tables.min()), int(tables.max())
    wanted = tables.astype(np.float64)
    # An entry v needs v - 1/2 < slope * x + offset < v + 1/2; at the ends, where codes are clamped, one side of it.
    above = np.where(tables == low, -_FAR, wanted - 0.5)
    below = np.where(tables == high, _FAR, wanted + 0.5)
    slope = _widest(above, below)
    weight = np.zeros(len(tables), np.int8)
    scale = np.ones(len(tables), np.float32)
    bias = np.zeros(len(tables), np.int32)
    missing = np.ones(len(tables), bool)
    for size in range(LARGEST_WEIGHT, -1, -1):
        todo = np.flatnonzero(missing)
        if not len(todo):
            return Depthwise(weight, scale, bias, low, high)
        signs = np.where(slope[todo] < 0, -size, size).astype(np.int8)
        unit = (np.abs(slope[todo]) / size if size else np.ones(len(todo))).astype(np.float32)
        unit = np.where(unit > 0, unit, np.float32(1))
        first, last = _offsets(above[todo], below[todo], signs * unit.astype(np.float64))
        units = np.rint((first + last) / 2 / unit)
        units = np.where(np.abs(units) < _EXACT / 2, units, 0).astype(np.int32)
        made = np.clip(_rounded(signs, unit, units), low, high)
        fits = (made == tables[todo]).all(1)
        chosen = todo[fits]
        weight[chosen], scale[chosen], bias[chosen] = signs[fits], unit[fits], units[fits]
        missing[chosen] = False
    return None if missing.any() else Depthwise(weight, scale, bias, low, high)


def _offsets(above: np.ndarray, below: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The offsets between which all entries hold, for a slope of each channel; the first may be past the last."""
    line = slope[:, None] * np.arange(256)
    return (above - line).max(1), (below - line).min(1)


def _widest(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The slope [C] that leaves the most room for the offset: a concave function of it, by thirds."""
    left, right = np.full(len(above), -256.0), np.full(len(above), 256.0)

    def room(slope: np.ndarray) -> np.ndarray:
        first, last = _offsets(above, below, slope)
        return last - first

    for _ in range(120):
        a, b = left + (right - left) / 3, right - (right - left) / 3
        better = room(a) < room(b)
        left, right = np.where(better, a, left), np.where(better, right, b)
    return (left + right) / 2
