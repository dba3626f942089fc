"""Counts and segments whose sizes depend on values are traced with the sizes that the call says."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Wrapped, outputs
from torch import Tensor

from bgnn.converter.trace import trace

X, INDEX, PTR = torch.randn(7, 3), torch.tensor([2, 0, 2, 2, 4, 0, 1]), torch.tensor([0, 2, 2, 6, 7])
OTHER = (torch.randn(11, 3), torch.tensor([0, 0, 1, 3, 2, 1, 0, 4, 4, 4, 2]), torch.tensor([0, 5, 6, 6, 10, 11]))


def held(x: Tensor, index: Tensor) -> Tensor:
    """In an object, which keeps Dynamo out."""
    batch = types.SimpleNamespace(x=x, index=index)
    size = int(batch.index.max()) + 1 if batch.index.numel() else 0
    return batch.x.new_zeros(size, x.size(1)).index_add(0, batch.index, batch.x) * int(isinstance(size, int) or True)


CASES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bincount": lambda x, i, p: torch.bincount(i, minlength=x.size(0)),
    "bincount as a method": lambda x, i, p: i.bincount(minlength=9).clamp(min=1),
    "bincount of weights": lambda x, i, p: torch.bincount(i, x[:, 0], x.size(0)),
    "bincount, no length": lambda x, i, p: torch.bincount(i).float().sum(),
    **{
        f"segment {how}": lambda x, i, p, how=how: torch.segment_reduce(x, how, offsets=p)  # type: ignore[misc]
        for how in ("sum", "max", "min")
    },
    "segment mean": lambda x, i, p: torch.segment_reduce(x, "mean", offsets=p, initial=0),
    "segment of lengths": lambda x, i, p: torch.segment_reduce(x, "sum", lengths=p.diff()),
    "repeat": lambda x, i, p: x[: p.size(0) - 1].repeat_interleave(p.diff(), dim=0, output_size=x.size(0)) + x,
    "repeat of counts": lambda x, i, p: torch.repeat_interleave(p.diff(), output_size=x.size(0)),
    "a diagonal": lambda x, i, p: torch.cdist(x, x).fill_diagonal_(9.0) @ x,
    "a norm of graphs": lambda x, i, p: torch.nn.functional.batch_norm(
        x.new_zeros(int(i.max()) + 1, 3).index_add(0, i, x), torch.arange(3.0), torch.ones(3), torch.ones(3)
    ),
    "quantised and back": lambda x, i, p: torch.quantize_per_tensor(x, 0.05, 20, torch.quint8).dequantize(),
    "quantised by channels": lambda x, i, p: torch.dequantize(
        torch.quantize_per_channel(x, torch.tensor([0.1, 0.02, 0.3]), torch.tensor([0, -3, 5]), 1, torch.qint8)
    ),
    "int of a maximum": lambda x, i, p: held(x, i),
    "repeat by a number": lambda x, i, p: torch.repeat_interleave(x, 2, dim=1),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_values_on_other_sizes(name: str) -> None:
    def function(m: Any, x: Tensor, index: Tensor, ptr: Tensor) -> Tensor:
        return CASES[name](x, index, ptr)

    axes = [{0: torch.export.Dim.DYNAMIC}] * 3
    gm = trace(Wrapped(function, {}), (X, INDEX, PTR), open_axes=axes)
    for given in ((X, INDEX, PTR), OTHER):
        found, expected = outputs(gm, *given)[0], CASES[name](*given)
        assert found.shape == expected.shape
        assert torch.allclose(found.double(), expected.double(), atol=1e-6)
