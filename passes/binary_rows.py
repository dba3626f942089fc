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
