"""Roundings of values, in the ways that people write quantisers, and whole numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgnn.converter.trace import trace
from bgnn.passes import roundings

S = 0.05


class Quantised(nn.Module):
    """A dense layer whose input or weight goes through a function."""

    def __init__(self, quantiser: Callable[[Tensor], Tensor], of_weight: bool = False) -> None:
        super().__init__()
        self.quantiser, self.of_weight, self.layer = quantiser, of_weight, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.of_weight:
            return F.linear(x, self.quantiser(self.layer.weight), self.layer.bias)
        return self.layer(self.quantiser(x))


def first(model: nn.Module) -> Any:
    return roundings.first(trace(model.eval(), (torch.randn(5, 6),)))


class Ste(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return torch.floor(x / S + 0.5).clamp(-128, 127) * S

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


QUANTISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "round": lambda x: (x / S).round().clamp(-8, 7) * S,
    "straight-through": lambda x: x + ((x / S).round() * S - x).detach(),
    "its own rounding": lambda x: ((x / S).round() - x / S).detach() * S + x,
    "floor of a half more": Ste.apply,
    "trunc": lambda x: torch.trunc(x / S + 0.5 * x.sign()) * S,
    "to integers and back": lambda x: (x / S).to(torch.int8).to(torch.float32) * S,
    "codes that are clamped": lambda x: (x * 20).long().clamp(-8, 7) * S,
    "integer division": lambda x: torch.div(x, S, rounding_mode="floor") * S,
    "what is left of a division": lambda x: x - torch.remainder(x, S),
    "its fraction": lambda x: (x / S - torch.frac(x / S)) * S,
    "per row": lambda x: (x / (s := x.abs().amax(1, keepdim=True) / 127)).round() * s,
    "torch.ao": lambda x: torch.fake_quantize_per_tensor_affine(x, S, 0, -128, 127),
    "two in a row": lambda x: torch.round(torch.round(x / S).clamp(0, 255) * S * 2) / 2,
}


@pytest.mark.parametrize("how", QUANTISERS)
def test_quantisers_of_activations(how: str) -> None:
    assert first(Quantised(QUANTISERS[how])) is not None


@pytest.mark.parametrize("how", ["straight-through", "per row"])
def test_quantisers_of_weights(how: str) -> None:
    assert first(Quantised(QUANTISERS[how], of_weight=True)) is not None


FLOAT: dict[str, Callable[[Tensor], Tensor]] = {
    "no rounding": lambda x: x.abs().clamp(0, 3).sqrt(),
    "whole numbers that are indices": lambda x: torch.eye(6)[x[:, 0].abs().long().clamp(max=5)] + x,
    "the index of a gather": lambda x: x.index_select(0, x[:, 0].abs().clamp(max=4).floor().long()),
    "comparisons": lambda x: torch.where(x.floor() > 0, x, -x),
    "quantile": lambda x: x - torch.quantile(x, 0.5),
}


@pytest.mark.parametrize("how", FLOAT)
def test_float_models(how: str) -> None:
    assert first(Quantised(FLOAT[how])) is None
