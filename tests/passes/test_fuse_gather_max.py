"""The maximum of gathered rows as one operator, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import apply, aten, bgnn, count, graph, randn, signs

from bgnn.passes import fuse_gather_max, pack_bits

INDEX = torch.randint(0, 6, (2, 4, 3), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("reduce", [aten.amax, aten.amin])
@pytest.mark.parametrize("channels", [1, 3, 33])
def test_maximum_and_minimum(channels: int, reduce: Any, keepdim: bool, index_dtype: torch.dtype) -> None:
    """Fewer rows are asked for than there are nodes; equal ones too."""
    x, index = randn(2, 6, channels), INDEX.to(index_dtype)
    gm = graph(lambda m, x, i: reduce(bgnn.gather_nodes(x, i), [2], keepdim), x, index)
    assert apply(fuse_gather_max.run, gm, x, index).rewrites == 1
    assert count(gm, bgnn.gather_nodes, aten.amax, aten.amin) == 0
    assert (count(gm, bgnn.gather_max), count(gm, aten.neg)) == (1, 0 if reduce is aten.amax else 2)


def test_values_that_are_no_plain_numbers() -> None:
    x = randn(2, 6, 4)
    x[0, :3] = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0])
    x[1, 2] = 0.0
    for reduce in (aten.amax, aten.amin):
        gm = graph(lambda m, x, i, r=reduce: r(bgnn.gather_nodes(x, i), [2]), x, INDEX)
        assert apply(fuse_gather_max.run, gm, x, INDEX).rewrites == 1


def test_both_ends_of_one_gather() -> None:
    """What reduce_before_elementwise makes of a norm with scales of both signs."""
    x = randn(2, 6, 4)
    gm = graph(
        lambda m, x, i: (lambda g: torch.maximum(g.amax(2) * m.s, g.amin(2) * m.s))(bgnn.gather_nodes(x, i)),
        x,
        INDEX,
        s=randn(4),
    )
    assert apply(fuse_gather_max.run, gm, x, INDEX).rewrites == 2
    assert count(gm, bgnn.gather_nodes) == 0


def test_a_gather_with_another_reader_stays_for_it() -> None:
    x = randn(2, 6, 4)
    gm = graph(lambda m, x, i: (lambda g: g.amax(2) + g.mean(2))(bgnn.gather_nodes(x, i)), x, INDEX)
    assert apply(fuse_gather_max.run, gm, x, INDEX).rewrites == 1
    assert (count(gm, bgnn.gather_max), count(gm, bgnn.gather_nodes)) == (1, 1)


LEFT: dict[str, Callable[..., Any]] = {
    "mean": lambda g: g.mean(2),
    "over the points": lambda g: g.amax(1),
    "over both": lambda g: g.amax((1, 2)),
    "over the channels": lambda g: g.amax(3),
    "a function between": lambda g: g.relu().amax(2),
    "no maximum": lambda g: g + 1,
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name: str) -> None:
    x = randn(2, 6, 4)
    gm = graph(lambda m, x, i: LEFT[name](bgnn.gather_nodes(x, i)), x, INDEX)
    assert apply(fuse_gather_max.run, gm, x, INDEX).rewrites == 0
    assert count(gm, bgnn.gather_nodes) == 1


def test_integers_and_words_are_left_alone() -> None:
    x = signs(2, 6, 4).int()
    gm = graph(lambda m, x, i: bgnn.gather_nodes(x, i).amax(2), x, INDEX)
    assert apply(fuse_gather_max.run, gm, x, INDEX).rewrites == 0
    real = randn(2, 6, 33)
    gm = graph(lambda m, x, i: bgnn.gather_nodes(bgnn.binarize(x), i).amax(2), real, INDEX)
    apply(pack_bits.run, gm, real, INDEX)
    assert fuse_gather_max.run(gm).rewrites == 0
    assert count(gm, bgnn.packed_max) == 1
