"""Training in several processes, `torchrun --nproc-per-node N -m bgnn.models.train ...` (gloo). One needs nothing.

Each process takes its share of every batch; gradients, and after each epoch the BatchNorms' statistics, are averaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def processes() -> Iterator[None]:
    """Within the block, the processes that torchrun started can speak with one another."""
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if many:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        if many:
            dist.destroy_process_group()


def count() -> int:
    """How many processes train."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0 writes the files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch whose size is a multiple of their number."""
    return batch[rank() :: count()]


def average(tensors: list[Tensor]) -> None:
    """Replaces float tensors by their means over the processes, in place."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= count()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def average_gradients(model: nn.Module) -> None:
    """To be called between backward and the optimiser's step."""
    average([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


def average_statistics(model: nn.Module) -> None:
    """The running statistics of BatchNorms: each process has seen its own share."""
    average([buffer for buffer in model.buffers() if buffer.is_floating_point()])


def gather(value: Any) -> list[Any]:
    """The values of all processes, in order."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        dist.barrier()
