"""float32 numbers as integers in the same order: what a search for the place where a function turns goes over."""

from __future__ import annotations

import torch
from torch import Tensor


def order(x: Tensor) -> Tensor:
    """f32 to int64; neighbours are 1 apart, and both zeros are 0."""
    bits = x.contiguous().view(torch.int32).long()
    return torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def number(place: Tensor) -> Tensor:
    """The inverse of `order`."""
    return torch.where(place >= 0, place, -(2**31) - place).to(torch.int32).view(torch.float32)
