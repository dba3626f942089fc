"""Weights that are signs times one positive number per row."""

from __future__ import annotations

import pytest
import torch
from graphs import randn, signs

from bgnn.passes.binary_rows import binary_rows, why_not


@pytest.mark.parametrize("channels", [1, 31, 32, 33])
def test_signs_and_scales_come_back(channels: int) -> None:
    weight, scale = signs(channels, 7), randn(channels).abs() + 0.1
    found = binary_rows(weight * scale[:, None])
    assert found is not None
    assert torch.equal(found[0], weight)
    assert torch.equal(found[1], scale)


def test_plain_signs_have_scale_one() -> None:
    found = binary_rows(signs(3, 5))
    assert found is not None
    assert torch.equal(found[1], torch.ones(3))


def test_rounding_of_a_rescaled_row_is_no_difference() -> None:
    weight = signs(4, 100) * 0.1
    weight[:, ::2] = weight[:, ::2] * (1 + 5e-7)
    assert binary_rows(weight) is not None


@pytest.mark.parametrize(
    "weight",
    [
        randn(3, 5),
        torch.tensor([[1.0, -1.0], [1.0, 0.0]]),  # ternary
        torch.tensor([[0.0, 0.0]]),
        torch.tensor([[1.0, -1.001]]),
        torch.tensor([[1, -1]]),  # integers
        torch.ones(4),
        torch.ones(2, 2, 1),
        torch.ones(0, 3),
        torch.ones(3, 0),
    ],
)
def test_other_weights_are_not(weight: torch.Tensor) -> None:
    assert binary_rows(weight) is None


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.where(randn(5, 9).abs() < 0.4, 0.0, signs(5, 9) * 0.7), "ternary"),
        (signs(5, 9) * randn(9).abs(), "a scale for each input channel"),
        (signs(5, 9) * randn(9).abs() * randn(5, 1), "a scale for each input channel"),
        (
            signs(5, 9) * 0.5 + signs(5, 9, seed=1) * torch.tensor([[0.2], [0.1], [0.3], [0.7], [0.25]]),
            "two magnitudes",
        ),
        (randn(5, 9), "real weights"),
    ],
)
def test_why_others_are_not(weight: torch.Tensor, reason: str) -> None:
    assert binary_rows(weight) is None
    assert reason in why_not(weight)
