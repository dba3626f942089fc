"""The node's half of an XOR edge once per node; the sign of the largest sum is the largest sign, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, count, graph, randn, signs
from torch import Tensor

from bgnn.passes import fold_threshold, merge_equal_nodes, split_xor_edge
from bgnn.passes.graph import PassResult, all_taps, is_call

B, N, K = 2, 5, 3
INDEX = torch.randint(0, N, (B, N, K), generator=torch.Generator().manual_seed(0))


def split(
    channels: int, outputs: int, first: bool = True, thresholds: int = 1, keepdim: bool = False, dim: int = 2
) -> tuple[Any, PassResult]:
    table = (torch.arange(thresholds * outputs).reshape(outputs, thresholds).t() * 7 % (2 * channels + 3)).int() - 1
    if outputs > 3:
        table[0, :2] = torch.tensor([-1, fold_threshold.NEVER])

    def function(m: Any, x: Tensor, i: Tensor) -> Tensor:
        s = bgnn.binarize(x)
        node = s[:, :, None].expand(-1, -1, K, -1)
        edge = -bgnn.gather_nodes(s, i) * s[:, :, None]
        joined = torch.cat([node, edge] if first else [edge, node], -1)
        return bgnn.dot_threshold(joined, m.w, m.t).amax(dim, keepdim) * 1.0

    x = randn(B, N, channels)
    gm = graph(function, x, INDEX, w=signs(outputs, 2 * channels), t=table)
    merge_equal_nodes.run(gm)
    return gm, apply(split_xor_edge.run, gm, x, INDEX)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("outputs", [1, 5, 33])
@pytest.mark.parametrize("channels", [32, 64])
def test_per_node_half(channels: int, outputs: int, first: bool) -> None:
    gm, result = split(channels, outputs, first)
    assert (result.rewrites, result.refusals) == (1, [])
    assert count(gm, bgnn.dot_threshold) == 0
    sizes = {n.meta["val"].numel() for n in gm.graph.nodes if is_call(n, aten.linear)}
    assert sizes == {B * N * outputs, N * K * outputs}


def test_keepdim() -> None:
    assert split(32, 4, keepdim=True)[1].rewrites == 1


@pytest.mark.parametrize(
    ("channels", "thresholds", "reason"), [(31, 1, "words of 32"), (33, 1, "words of 32"), (32, 2, "an interval")]
)
def test_refusals(channels: int, thresholds: int, reason: str) -> None:
    gm, result = split(channels, 4, thresholds=thresholds)
    assert result.rewrites == 0
    assert reason in result.refusals[0][1]
    assert count(gm, bgnn.dot_threshold) == 1


def test_a_maximum_over_points_is_no_edge() -> None:
    assert split(32, 4, dim=1)[1].rewrites == 0


def test_after_fold_threshold_the_tap_stays_exact() -> None:
    """BF2: norm before the maximum, scales of both signs."""
    c = 32
    x = randn(B, N, c)

    def function(m: Any, x: Tensor, i: Tensor) -> Tensor:
        s = bgnn.binarize(x)
        node = s[:, :, None].expand(-1, -1, K, -1)
        h = F.linear(torch.cat([node, -bgnn.gather_nodes(s, i) * node], -1), m.w)
        return bgnn.binarize(bgnn.batch_norm(h, m.g, m.h, m.mu, m.va, 1e-5).amax(2)) + 0.0

    gm = graph(
        function,
        x,
        INDEX,
        w=signs(7, 2 * c),
        g=randn(7),
        h=randn(7, seed=1),
        mu=randn(7, seed=2) * 5,
        va=randn(7).abs() + 1,
    )
    merge_equal_nodes.run(gm)
    assert apply(fold_threshold.run, gm, x, INDEX).rewrites == 1
    assert apply(split_xor_edge.run, gm, x, INDEX).rewrites == 1
    assert [tap.exact for _, tap in all_taps(gm)] == [False, True]
