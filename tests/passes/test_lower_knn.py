"""The k-NN search with stock ops: the same neighbours, the lowest index first among equals."""

from __future__ import annotations

import pytest
import torch
from graphs import apply, aten, bgnn, count, graph, outputs, randn, signs

from bgnn.passes import lower_knn


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64, 65])
def test_hamming_neighbours_are_equal_with_all_their_ties(channels: int, naive: bool) -> None:
    x = signs(2, 12, channels)
    x[:, 5:8] = x[:, :3]  # doubled points
    gm = graph(lambda m, x: bgnn.knn(x, 5, "hamming"), x)
    assert apply(lambda g: lower_knn.run(g, naive), gm, x).rewrites == 1
    assert count(gm, bgnn.knn) == 0
    assert count(gm, aten.matmul) == 1


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_real_neighbours(k: int, naive: bool) -> None:
    """Small integers as coordinates: every score is exact, ties are many."""
    x = (randn(3, 9, 3) * 2).round()
    gm = graph(lambda m, x: bgnn.knn(x, k, "l2"), x)
    assert apply(lambda g: lower_knn.run(g, naive), gm, x).rewrites == 1
    found = outputs(gm, x)[0]
    distance = ((x[:, :, None] - x[:, None]) ** 2).sum(-1)
    assert torch.equal(found, torch.sort(distance, dim=-1, stable=True)[1][..., :k])
    assert bool((found[..., 0] <= torch.arange(9)).all()), "the point itself or an equal one before it"


def test_random_points_without_ties() -> None:
    x = randn(2, 20, 3)
    for naive in (False, True):
        gm = graph(lambda m, x: bgnn.knn(x, 6, "l2"), x)
        apply(lambda g, n=naive: lower_knn.run(g, n), gm, x)


def test_two_searches_and_no_search() -> None:
    x = signs(1, 6, 4)
    gm = graph(lambda m, x: bgnn.knn(x, 2, "hamming") + bgnn.knn(x * 0.5, 2, "l2"), x)
    assert apply(lower_knn.run, gm, x).rewrites == 2
    gm = graph(lambda m, x: x @ x.transpose(1, 2), x)
    assert apply(lower_knn.run, gm, x).rewrites == 0


def test_the_default_hamming_score_is_one_product() -> None:
    x = signs(1, 6, 4)
    gm = graph(lambda m, x: bgnn.knn(x, 2, "hamming"), x)
    lower_knn.run(gm)
    assert [str(n.target) for n in gm.graph.nodes if n.op == "call_function"][:3] == [
        "aten.permute.default",
        "aten.matmul.default",
        "bgnn.topk_lowest.default",
    ]


def test_the_tap_and_the_name_stay() -> None:
    from bgnn.passes.graph import Tap, is_call

    x = signs(1, 6, 4)
    gm = graph(lambda m, x: bgnn.knn(x, 2, "hamming"), x)
    search = next(n for n in gm.graph.nodes if is_call(n, bgnn.knn))
    search.meta["tap"], name = Tap("chosen", exact=True), search.name
    apply(lower_knn.run, gm, x)
    (node,) = (n for n in gm.graph.nodes if "tap" in n.meta)
    assert (node.name, node.meta["tap"].name, node.meta["tap"].exact) == (name, "chosen", True)
