"""Weights of the form `scale_o * (+-1)`: a binary layer whose rescaling is in its weights (XNOR-Net's alpha)."""

from __future__ import annotations

import torch
from torch import Tensor


def binary_rows(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """(signs `[O, K]`, scale `[O]` > 0) if each row of `weight` has one absolute value, else None.

    Absolute values within 1e-6 of each other count as one: `sign(w) * mean|w|` in float arithmetic.
    """
    if weight.dim() != 2 or weight.numel() == 0 or not weight.is_floating_point():
        return None
    size = weight.abs()
    scale = size.amax(1)
    if bool((scale == 0).any()) or bool((size.amin(1) < scale * (1 - 1e-6)).any()):
        return None
    return torch.where(weight >= 0, 1.0, -1.0), scale


def why_not(weight: Tensor) -> str:
    """In a few words, what keeps weights from being binary rows (for those that are not)."""
    size = weight.abs()
    top = size.amax(1, keepdim=True)
    if bool((size == 0).any()) and bool(((size == 0) | (size >= top * (1 - 1e-6))).all()):
        return "ternary weights: zeros beside two values take 2 bits"
    if bool((size > 0).all()):
        shares = size / size[:, :1]
        if len(weight) > 1 and bool(((shares - shares[:1]).abs() <= 1e-5 * shares[:1]).all()):
            return "weights of signs with a scale for each input channel, which no sum of signs takes"
        bottom = size.amin(1, keepdim=True)
        if weight.shape[1] > 2 and bool(((size >= top * (1 - 1e-6)) | (size <= bottom * (1 + 1e-5))).all()):
            return "weights of two magnitudes a row, as a sum of two binary weights has: no single one"
    return "real weights"
