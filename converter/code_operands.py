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


def requantised(
    x_scale: float, x_zero: int, slope: float, y_scale: float, y_zero: int, low: int, high: int
) -> np.ndarray:
    """`bgnn::requantize` of every code, as a table u8 `[1, 256]`."""
    every = torch.arange(256, dtype=torch.uint8)
    table: torch.Tensor = torch.ops.bgnn.requantize(every, x_scale, x_zero, slope, y_scale, y_zero, low, high)
    return table.numpy()[None]
