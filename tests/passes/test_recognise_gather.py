"""The gathering of neighbours' rows, however it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import bgnn, check_meta, count, outputs, randn, traced
from torch import Tensor

from bgnn.passes import canonicalise, recognise_gather

B, N, C, K = 2, 5, 3, 4
X = randn(B, N, C)
INDEX = torch.randint(0, N, (B, N, K), generator=torch.Generator().manual_seed(0))


def flat(x: Tensor, i: Tensor) -> Tensor:
    return x.reshape(B * N, -1)[(i + torch.arange(B).view(-1, 1, 1) * N).view(-1)]


def grown(i: Tensor) -> Tensor:
    return i.unsqueeze(-1).expand(-1, -1, -1, C)


GATHERS: dict[str, Callable[..., Any]] = {
    "advanced index": lambda m, x, i: x[torch.arange(B)[:, None, None], i],
    "flat with offsets": lambda m, x, i: flat(x, i).view(B, N, K, C),
    "flat, left flat": lambda m, x, i: flat(x, i),
    "flat, rows of points": lambda m, x, i: flat(x, i).view(B * N, K, C),
    "index_select": lambda m, x, i: x.reshape(-1, C).index_select(
        0, (i + torch.arange(B).view(-1, 1, 1) * N).flatten()
    ),
    "embedding": lambda m, x, i: F.embedding(i + torch.arange(B).view(-1, 1, 1) * N, x.reshape(-1, C)),
    "channels first": lambda m, x, i: flat(x, i).view(B, N, K, C).permute(0, 3, 1, 2).contiguous(),
    "neighbours first": lambda m, x, i: flat(x, i).view(B, N, K, C).permute(0, 2, 1, 3),
    "torch.gather": lambda m, x, i: torch.gather(x[:, None].expand(-1, N, -1, -1), 2, grown(i)),
    "torch.gather of rows": lambda m, x, i: torch.gather(x, 1, i.reshape(B, -1, 1).expand(-1, -1, C)).reshape(
        B, N, K, C
    ),
    "torch.gather, channels first": lambda m, x, i: torch.gather(
        x.transpose(1, 2)[:, :, None].expand(-1, -1, N, -1), 3, i[:, None].expand(-1, C, -1, -1)
    ),
    "loop over the batch": lambda m, x, i: torch.stack([x[b][i[b]] for b in range(B)]),
    "loop, cat": lambda m, x, i: torch.cat([x[b][i[b].reshape(-1)] for b in range(B)]).view(B, N, K, C),
    "int32 index": lambda m, x, i: x[torch.arange(B)[:, None, None], i.int().long()],
    "few queries": lambda m, x, i: (lambda j: x[torch.arange(B)[:, None, None], j])(i.reshape(B, N, K)),
}
NOT_GATHERS: dict[str, Callable[..., Any]] = {
    "next row": lambda m, x, i: x[torch.arange(B)[:, None, None], (i + 1) % N],
    "another element's rows": lambda m, x, i: x[torch.arange(B - 1, -1, -1)[:, None, None], i],
    "wrong offset": lambda m, x, i: x.reshape(-1, C)[(i * 0 + torch.arange(B).view(-1, 1, 1)).view(-1)],
    "channels shifted": lambda m, x, i: x[torch.arange(B)[:, None, None], i].roll(1, -1),
    "half of the channels": lambda m, x, i: x[torch.arange(B)[:, None, None], i][..., ::2],
    "first batch element only": lambda m, x, i: x[0][i],
}


@pytest.mark.parametrize("name", GATHERS)
def test_spellings(name: str) -> None:
    gm = traced(GATHERS[name], X, INDEX)
    expected = outputs(gm, X, INDEX)[0]
    assert recognise_gather.run(gm).rewrites == 1
    canonicalise.run(gm)
    check_meta(gm, X, INDEX)
    assert count(gm, bgnn.gather_nodes) == 1
    assert [str(n.target) for n in gm.graph.nodes if "index" in str(n.target) or "aten.gather" in str(n.target)] == []
    assert torch.equal(outputs(gm, X, INDEX)[0], expected)


@pytest.mark.parametrize("name", NOT_GATHERS)
def test_near_misses(name: str) -> None:
    gm = traced(NOT_GATHERS[name], X, INDEX)
    expected = outputs(gm, X, INDEX)[0]
    recognise_gather.run(gm)
    check_meta(gm, X, INDEX)
    assert torch.equal(outputs(gm, X, INDEX)[0], expected)


@pytest.mark.parametrize("shape", [(1, 5, 4), (2, 5, 1), (3, 3, 3), (2, 2, 2)])
def test_sizes_that_could_be_confused(shape: tuple[int, int, int]) -> None:
    """Points, neighbours and channels of equal number; one neighbour; one element."""
    batch, n, _ = shape
    x, i = randn(batch, n, n), torch.randint(0, n, shape, generator=torch.Generator().manual_seed(1))
    for order in ((0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 1, 3), (3, 0, 2, 1)):
        gm = traced(lambda m, x, i, o=order: x[torch.arange(batch)[:, None, None], i].permute(o), x, i)
        canonicalise.run(gm)
        expected = outputs(gm, x, i)[0]
        assert recognise_gather.run(gm).rewrites >= 1
        assert torch.equal(outputs(gm, x, i)[0], expected)


@pytest.mark.parametrize("channels", [1, 7])
def test_features_that_came_through_four_axes(channels: int) -> None:
    """`[B, C, N, 1]` of a convolution, squeezed and turned: the gather's own operand is the source."""
    w = randn(channels, C, 1, 1)

    def function(m: Any, x: Tensor, i: Tensor) -> Tensor:
        h = F.conv2d(x.transpose(1, 2)[..., None], m.w).squeeze(-1).transpose(1, 2)
        return h[torch.arange(B)[:, None, None], i]

    gm = traced(function, X, INDEX, w=w)
    expected = outputs(gm, X, INDEX)[0]
    assert recognise_gather.run(gm).rewrites == 1
    assert torch.equal(outputs(gm, X, INDEX)[0], expected)


def test_two_gathers_with_one_index() -> None:
    gm = traced(lambda m, x, i: flat(x, i) + flat(x * 2, i), X, INDEX)
    expected = outputs(gm, X, INDEX)[0]
    assert recognise_gather.run(gm).rewrites == 2
    assert torch.equal(outputs(gm, X, INDEX)[0], expected)


def test_no_lookup_no_gather() -> None:
    gm = traced(lambda m, x: x.transpose(1, 2).reshape(B, -1), X)
    assert recognise_gather.run(gm).rewrites == 0


CHOSEN: dict[str, Callable[..., Any]] = {  # points of each cloud, or one; `i` is [B, K]
    "advanced index": lambda m, x, i: x[torch.arange(B)[:, None], i],
    "torch.gather": lambda m, x, i: torch.gather(x, 1, i[..., None].expand(-1, -1, C)),
    "one of each": lambda m, x, i: x[torch.arange(B), i[:, 0]],
    "joined first": lambda m, x, i: x[torch.arange(B)[:, None], torch.stack([i[:, 2] * 0, x[..., 0].argmax(1)], 1)],
}


@pytest.mark.parametrize("habit", CHOSEN)
def test_points_chosen_from_each_cloud(habit: str) -> None:
    index = INDEX[:, 0]
    gm = traced(CHOSEN[habit], X, index)
    expected = outputs(gm, X, index)[0]
    canonicalise.run(gm)
    assert recognise_gather.run(gm).rewrites == 1
    check_meta(gm, X, index)
    assert count(gm, bgnn.gather_nodes) == 1
    assert torch.equal(outputs(gm, X, index)[0], expected)
