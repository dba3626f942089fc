"""Writes through masks are choices; other writes stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Wrapped, aten, count, outputs, randn
from torch import Tensor

from bgnn.converter.trace import trace

X = randn(4, 5)


def nearest(m: Any, x: Tensor) -> Tensor:
    """Farthest point sampling keeps the smaller of two distances so."""
    far = torch.full_like(x, 0.5)
    mask = x < far
    far[mask] = x[mask]
    return far


def clipped(m: Any, x: Tensor) -> Tensor:
    y = x * 1
    y[y > 1.0] = 9.0
    return y


def rows(m: Any, x: Tensor) -> Tensor:
    y = x * 1
    y[x.sum(1) > 0] = m.token
    return y


def filled_and_scaled(m: Any, x: Tensor) -> Tensor:
    mask = x.sum(1) > 0
    return x.index_put((mask,), (x * 2)[mask])


def less_one(m: Any, x: Tensor) -> Tensor:
    """ChebConv's Laplacian of a graph with self-loops."""
    y = x * 2
    y[x > 0] -= 1
    return y


def chain(m: Any, x: Tensor) -> Tensor:
    y = x * 1
    y[x.sum(1) > 0] = (2 * x[x.sum(1) > 0] - 0.5).relu()
    return y


HABITS: dict[str, Callable[..., Any]] = {
    "nearest": nearest, "clipped": clipped, "rows": rows, "filled and scaled": filled_and_scaled,
    "less one": less_one, "chain": chain,
}  # fmt: skip


@pytest.mark.parametrize("habit", HABITS)
def test_choices(habit: str) -> None:
    constants = {"token": randn(5, seed=3)}
    gm = trace(Wrapped(HABITS[habit], constants), (X,))
    assert count(gm, aten.where) == 1
    assert count(gm, aten.index_put, aten.index) == 0
    for x in (X, randn(4, 5, seed=1), torch.full((4, 5), -3.0), torch.full((4, 5), 3.0)):
        assert torch.equal(outputs(gm, x)[0], HABITS[habit](Wrapped(HABITS[habit], constants), x))


def test_other_writes_stay() -> None:
    for function in (
        lambda m, x: x.index_put((torch.tensor([0, 2]),), torch.tensor(1.0)),
        lambda m, x: x.index_put((m.mask,), torch.tensor(1.0), accumulate=True),
        lambda m, x: x.index_put((m.mask,), m.values),  # one for each place
        lambda m, x: x.index_put((m.mask,), x[m.mask].cumsum(0)),
    ):
        constants = {"mask": torch.tensor([True, False, True, False]), "values": randn(2, 5)}
        gm = trace(Wrapped(function, constants), (X,))
        assert count(gm, aten.index_put) == 1
        assert torch.equal(outputs(gm, X)[0], function(Wrapped(function, constants), X))
