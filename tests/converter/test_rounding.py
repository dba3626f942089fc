"""A large column excuses nothing in a small one, and numbers that cancel are no false alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import randn, up_to
from torch import Tensor

from bgnn.converter.errors import ConversionError
from bgnn.converter.rounding import column_scales
from bgnn.converter.verify import Reference

X = randn(5, 6)


def reference(function: Callable[..., Any], x: Tensor = X, **constants: Tensor) -> Reference:
    return Reference(up_to("traced", function, x, **constants), [x])


def test_scales() -> None:
    assert column_scales(torch.tensor([[1.0, -5], [-3, 0]])).tolist() == [[3, 5]]
    assert column_scales(torch.tensor([1.0, -5])).tolist() == [1, 5]
    assert column_scales(torch.tensor([[[1.0, 9], [-3, 0]]])).tolist() == [[[3, 9], [3, 3]]]
    assert column_scales(torch.tensor(-2.0)).tolist() == 2
    assert column_scales(torch.tensor([[float("inf"), 1], [2, float("nan")]])).tolist() == [[2, 1]]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    "last", [F.linear, lambda x, w: (F.linear(x, w) * 0.5).tanh(), lambda x, w: (x @ w.t()).relu()]
)
def test_a_small_column_beside_a_large_one(rows: int, last: Callable[[Tensor, Tensor], Tensor]) -> None:
    w = randn(2, 6).abs()
    w[0] *= 1e-5
    ref = reference(lambda m, x: last(x, m.w), X[:rows].abs(), w=w)
    bad = ref.outputs[0].clone()
    bad[:, 0] *= 1.22
    with pytest.raises(ConversionError, match=r"output 0 differs by .* \(at \[\d, 0\], in a column of size"):
        ref.compare("file", {}, [bad], set())


CANCEL: dict[str, Callable[..., Any]] = {
    "a sum": lambda m, x: F.linear(x, m.w),
    "a log softmax": lambda m, x: F.log_softmax(F.linear(x, m.w), -1),
    "a difference": lambda m, x: (F.linear(x, m.w) + 7) - 7,
    "moved": lambda m, x: torch.cat([F.linear(x, m.w)[:, 1:], F.linear(x, m.w)[:, :1]], 1).reshape(-1),
}


@pytest.mark.parametrize("name", CANCEL)
def test_what_cancels_is_relative_to_its_terms(name: str) -> None:
    """One row: the difference of large numbers is a column by itself, and rounds as they do."""
    w = torch.cat([randn(1, 5), torch.zeros(1, 5)])
    x = randn(1, 5, seed=1) * 1000
    w = torch.cat([w, -(w @ x.t()) / x[0, 0] * torch.tensor([[1.0], [0]])], 1)
    x = torch.cat([x, x[:, :1]], 1)
    ref = reference(CANCEL[name], x, w=w)
    (good,) = ref.outputs
    first = torch.zeros_like(good).flatten().index_fill(0, torch.tensor([-1 if name == "moved" else 0]), 1.0)
    assert ref.compare("file", {}, [good + 2e-4 * first.reshape(good.shape)], set()).column_error <= 1e-4
    with pytest.raises(ConversionError, match="differs by"):
        ref.compare("file", {}, [good + 5 * first.reshape(good.shape)], set())
