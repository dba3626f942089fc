"""Keeping latent weights in range, as a step of the optimiser and not of the forward pass."""

from __future__ import annotations

import torch
from torch import nn

from bgnn.models.layers import BinaryDot


@torch.no_grad()
def clip_and_center(model: nn.Module) -> None:
    """Mean-centres, then clips to [-1, 1], the latent weights of every binary dot product, in place.

    To be called after each optimiser step (section 3, "Quantization"). The mean is over a filter's inputs.
    Real-weighted layers (stages 1 and 2, and the last layer) are left alone.
    """
    for module in model.modules():
        if isinstance(module, BinaryDot) and module.binary:
            weight = module.weights_real
            weight.sub_(weight.mean(dim=1, keepdim=True)).clamp_(-1, 1)
