"""The bench's graphs, features and files. What is measured decides no test."""

from __future__ import annotations

import numpy as np
import pytest

from bgnn.runtime_bench.bench import bench_int8_tflite as bench
from bgnn.runtime_bench.bench.measure import measure


def test_graphs_and_features():
    rng = np.random.default_rng(0)
    cora, dense, power = bench.made(list(bench.GRAPHS), None, 300, 900)
    assert (cora.nodes, dense.nodes, power.nodes) == (2708, 2708, 300)
    assert power.edges.max() < 300
    words = bench.features(cora, 1433, rng)
    assert 0.011 < (words != 0).mean() < 0.014
    assert np.allclose(words.sum(1)[words.any(1)], 1)
    assert (bench.features(dense, 1433, rng) != 0).mean() > 0.999


def test_the_summary_is_of_ratios_within_rounds(capsys):
    result = measure(dict.fromkeys((bench.FLOAT, bench.OWN_FLOAT, bench.STOCK, bench.OWN), int), rounds=3)
    bench.summary([("a graph", "gcn", result)])
    assert "GCN" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcn", "binsage"])
def test_every_candidate_runs(name, monkeypatch):
    monkeypatch.setattr(bench, "PART", 80)
    (graph,) = bench.made(["power-law"], None, 200, 700)
    lines: list[str] = []
    calls, sizes = bench.candidates(name, graph, 1, lines.append)
    assert list(calls) == list(sizes) == [bench.FLOAT, bench.OWN_FLOAT, bench.STOCK, bench.OWN]
    for call in calls.values():
        call()
