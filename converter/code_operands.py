"""The constant operands of the ops on codes, as both formats' emitters read them."""

from __future__ import annotations

from typing import NoReturn, Protocol

import numpy as np
import torch
from torch import fx

import bgnn.converter.dialect_int8  # noqa: F401  (defines bgnn::requantize)


class Constants(Protocol):
    """What is asked of a walk over a graph that is written."""

    def array(self, node: fx.Node) -> np.ndarray | None:
        """A constant's numbers; None where the node is computed."""

    def refuse(self, node: fx.Node, what: str, way_out: str) -> NoReturn:
        """Raises ConversionError."""


def scales_and_zeros(
    walk: Constants, node: fx.Node, scales: fx.Node, zeros: fx.Node, rank: int, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """A quantiser's scales and zero points for each index of `axis`, f32, to broadcast over a tensor of that rank."""
    shape = [1] * rank
    shape[axis] = -1
    numbers, offsets = walk.array(scales), walk.array(zeros)
    if numbers is None or offsets is None:
        walk.refuse(node, "has scales that are not constant", "calibrate the model first")
    return numbers.reshape(shape).astype(np.float32), offsets.reshape(shape).astype(np.float32)


def table_of(walk: Constants, node: fx.Node, table: fx.Node) -> np.ndarray:
    """The entries u8 `[1 or C, 256]` of a table of codes."""
    entries = walk.array(table)
    if entries is None:
        walk.refuse(node, "has a table that is not constant", "make it a buffer of the model")
    return entries


def quotient(walk: Constants, node: fx.Node, m_scale: float, y_scale: float, length: fx.Node | None) -> np.ndarray:
    """What `bgnn::q_sum` multiplies its integers by: f32, to broadcast over them."""
    divisor = None if length is None else walk.array(length)
    if length is not None and divisor is None:
        walk.refuse(node, "has lengths that are not constant", "make them a buffer of the model")
    unit = np.float32(y_scale)
    return np.asarray(np.float32(m_scale) / (unit if divisor is None else unit * divisor.astype(np.float32)))


def requantised(
    x_scale: float, x_zero: int, slope: float, y_scale: float, y_zero: int, low: int, high: int
) -> np.ndarray:
    """`bgnn::requantize` of every code, as a table u8 `[1, 256]`."""
    every = torch.arange(256, dtype=torch.uint8)
    table: torch.Tensor = torch.ops.bgnn.requantize(every, x_scale, x_zero, slope, y_scale, y_zero, low, high)
    return table.numpy()[None]


_LANES, _GROUP = 16, 4  # runtime_bench/kernels/ops/dense_kernels.h


def packed_weights(weights: np.ndarray) -> np.ndarray:
    """A dense layer's weights i8 `[O, I]` as its own operators take them: i32 `[O / 16, I / 4, 16]`, rounded up.

    A word holds the weights of one output for 4 inputs, the first in the low byte; 0 where there are none.
    """
    outputs, inputs = weights.shape
    whole = np.zeros((-(-outputs // _LANES) * _LANES, -(-inputs // _GROUP) * _GROUP), np.int8)
    whole[:outputs, :inputs] = weights
    blocks = whole.reshape(-1, _LANES, whole.shape[1] // _GROUP, _GROUP).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks).view("<i4")[..., 0].astype(np.int32)
