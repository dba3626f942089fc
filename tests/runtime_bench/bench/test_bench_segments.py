"""The three ways to sum over edges give the same sums (the benchmark compares them itself)."""

from __future__ import annotations

from bgnn.runtime_bench.bench import bench_segments


def test_all_ways_are_measured_and_agree() -> None:
    took = bench_segments.compare(30, 120, 8, rounds=1)
    assert set(took) == {"segments", "table", "matrix"}
    assert all(ms > 0 for ms in took.values())
