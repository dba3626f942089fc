"""Destinations in parts: sorted in-edges, and blocks that fit into memory."""

from __future__ import annotations

import numpy as np
import pytest

from bgnn.runtime_bench.graph import in_edges, parts
from bgnn.runtime_bench.graph.manifest import Fed, Stage
from bgnn.runtime_bench.runtime.errors import BgnnError

RANDOM = np.random.default_rng(0)


def stage(row: int = 8, source: int = 4, edge: int = 16, kind: str = "edges") -> Stage:
    fed = (Fed("edges", None, "list", "edges0"), Fed("x", "x", "sources"))
    return Stage("0.onnx", kind, fed, ("y",), {"row": row, "source": source, "edge": edge})


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("pairs", [[[0, 1]], [[1, 0]], [[0, 1], [1, 0]]])
def test_in_edges_keep_their_order_whatever_the_pieces(piece: int, pairs: list[list[int]]) -> None:
    edges = RANDOM.integers(0, 9, (2, 100))
    weights = RANDOM.random((100, 2), np.float32)
    made = in_edges.sort(
        lambda: in_edges.pieces_of(edges, {"w": weights}, piece), 12, pairs, {"w": (np.dtype(np.float32), (2,))}
    )
    listed = np.concatenate([edges[pair] for pair in pairs], 1)
    order = np.argsort(listed[1], kind="stable")
    assert np.array_equal(made.sources, listed[0][order])
    assert np.array_equal(np.diff(made.bounds), np.bincount(listed[1], minlength=12))
    assert np.array_equal(made.values["w"], np.concatenate([weights] * len(pairs))[order])


def test_a_plan_covers_all_nodes_and_keeps_to_memory() -> None:
    degrees = RANDOM.integers(0, 50, 5000)
    degrees[17] = 4000
    sets = {"edges0": in_edges.InEdges(np.concatenate([[0], np.cumsum(degrees)]), np.empty(0), {})}
    memory = 400_000
    blocks = parts.plan(stage(), sets, 5000, memory)
    assert [start for start, *_ in blocks] == [0, *(stop for _, stop, _ in blocks[:-1])]
    assert blocks[-1][1] == 5000
    per_edge = 16 + parts.LIST_BYTES
    for start, stop, _ in blocks:
        edges = int(degrees[start:stop].sum())
        assert (stop - start) * 8 + min(edges + stop - start, 5000) * 4 + edges * per_edge <= memory


def test_what_does_not_fit_is_named() -> None:
    degrees = np.full(100, 3)
    degrees[41] = 100_000
    sets = {"edges0": in_edges.InEdges(np.concatenate([[0], np.cumsum(degrees)]), np.empty(0), {})}
    with pytest.raises(
        BgnnError, match=r"node 41 with its 100000 in-edges takes 6.1 MiB of the 977 KiB .*cannot be taken in"
    ):
        parts.plan(stage(), sets, 100, 1_000_000)
    with pytest.raises(BgnnError, match="reduces all 100 nodes at once"):
        parts.plan(stage(kind="whole"), sets, 100, 1_000)
