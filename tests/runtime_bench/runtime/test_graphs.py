"""Neighbour tables: every edge stands in them once, in its node's row and in its order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgnn.runtime_bench.runtime import graphs
from bgnn.runtime_bench.runtime.errors import UsageError


def power_law(nodes: int, edges: int, seed: int = 0) -> np.ndarray:
    """Random edges, int64 [2, edges], some nodes with very many."""
    rng = np.random.default_rng(seed)
    weight = rng.pareto(1.2, nodes) + 1
    target = rng.choice(nodes, edges, p=weight / weight.sum())
    return np.stack([rng.integers(0, nodes, edges), target]).astype(np.int64)


def edges_in(tables: graphs.Tables, nodes: int, count: int) -> dict[int, list[int]]:
    """For each node the edges that its row holds."""
    found: dict[int, list[int]] = {}
    row = 0
    starts = {}
    for bucket in tables.buckets:
        items, rows = bucket.items.reshape(-1, bucket.width), bucket.rows.reshape(-1)
        assert len(items) == len(rows)
        for entries, node in zip(items, rows, strict=True):
            taken = [int(item) for item in entries if item != graphs.FREE]
            if node == graphs.FREE:
                assert not taken
            else:
                assert taken == [int(item) for item in entries[: len(taken)]]  # free entries come last
                found[int(node)] = taken
                starts[int(node)] = row
            row += 1
    for node in range(nodes):
        assert tables.position[node] == starts.get(node, row)
    return found


def expected(index: np.ndarray) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for item, node in enumerate(index.tolist()):
        found.setdefault(node, []).append(item)
    return found


@pytest.mark.parametrize("powers_of_two", [False, True])
@pytest.mark.parametrize("buckets", [1, 2, 5, 12])
@pytest.mark.parametrize("block", [1, 64, 4096])
def test_every_edge_once(buckets, block, powers_of_two):
    edges = power_law(200, 3000)
    tables = graphs.tables(edges, 200, buckets=buckets, block=block, powers_of_two=powers_of_two)
    assert len(tables.buckets) == buckets
    assert edges_in(tables, 200, 3000) == expected(edges[1])
    np.testing.assert_array_equal(tables.counts, np.bincount(edges[1], minlength=200))
    sources = np.append(edges[0], graphs.FREE)
    for bucket in tables.buckets:
        np.testing.assert_array_equal(bucket.others, sources[bucket.items])
        assert {bucket.items.dtype, bucket.others.dtype, bucket.rows.dtype} == {np.dtype(np.int32)}
        if powers_of_two:
            assert bucket.width & (bucket.width - 1) == 0


@pytest.mark.parametrize(("nodes", "count"), [(0, 0), (1, 0), (5, 0), (1, 1), (1, 9), (3, 2)])
def test_small_graphs(nodes, count):
    edges = np.zeros((2, count), dtype=np.int64)
    tables = graphs.tables(edges, nodes)
    assert edges_in(tables, nodes, count) == expected(edges[1])
    assert all(bucket.items.size for bucket in tables.buckets)  # a bucket without rows would stop a Scan


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.lists(st.integers(0, 39)), st.integers(1, 6), st.integers(1, 50))
def test_any_segments(size, values, buckets, block):
    index = np.array([value % size for value in values], dtype=np.int64)
    tables = graphs.segments(index, size, buckets=buckets, block=block)
    assert edges_in(tables, size, len(index)) == expected(index)


def test_widths_leave_few_entries_free():
    edges = power_law(5000, 200_000)
    cells = {n: sum(b.items.size for b in graphs.tables(edges, 5000, buckets=n).buckets) for n in (4, 8, 12, 16)}
    assert cells[4] > cells[8] > cells[12] > cells[16] > 200_000
    assert cells[12] < 1.5 * 200_000


def test_more_nodes_than_16_bits():
    edges = power_law(200_000, 300_000)
    order = graphs._stable_order(edges[1], 200_000)
    np.testing.assert_array_equal(order, np.argsort(edges[1], kind="stable"))


def test_the_other_flow():
    edges = power_law(50, 300)
    tables = graphs.tables(edges, 50, target=0)
    assert edges_in(tables, 50, 300) == expected(edges[0])


def test_self_loops():
    edges = np.array([[0, 1, 1, 3], [0, 2, 1, 0]])
    np.testing.assert_array_equal(graphs.with_self_loops(edges, 4), [[1, 3, 0, 1, 2, 3], [2, 0, 0, 1, 2, 3]])
    more = [[0, 1, 1, 3, 0, 1, 2, 3], [0, 2, 1, 0, 0, 1, 2, 3]]
    np.testing.assert_array_equal(graphs.with_self_loops(edges, 4, "more"), more)
    np.testing.assert_array_equal(graphs.with_self_loops(edges, 4, "none"), [[1, 3], [2, 0]])


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_indices_out_of_range(bad):
    edges = np.array([[0, bad], [1, 2]])
    with pytest.raises(UsageError, match=rf"edge_index holds {bad}, but there are 5 nodes: indices go from 0 to 4"):
        graphs.tables(edges, 5)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.lists(st.integers(0, 39)), st.integers(1, 6), st.integers(1, 50))
def test_the_order_of_the_tables(size, values, buckets, block):
    index = np.array([value % size for value in values], dtype=np.int64)
    tables = graphs.segments(index, size, buckets=buckets, block=block)
    order, places = graphs.in_order(tables)
    assert sorted(order.tolist()) == list(range(len(index)))
    named = np.append(order, graphs.FREE)
    for bucket, part in zip(tables.buckets, places, strict=True):
        np.testing.assert_array_equal(named[part], bucket.items)
    taken = np.concatenate([part.ravel() for part in places])
    assert (np.diff(taken[taken != graphs.FREE]) == 1).all()  # read from front to back
