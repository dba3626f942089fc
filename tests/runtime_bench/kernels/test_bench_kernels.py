"""The benchmark runs, writes what it found, and compares only equal answers. Times decide nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench import bench_kernels
from bgnn.runtime_bench.kernels import library


def test_it_measures_every_op_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--batch", "1", "--nodes", "40", "--k", "5", "--rounds", "1"]
    bench_kernels.main([*sizes, "--knn-nodes", "50", "--knn-bits", "64", "128", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "bench_kernels.json").read_text())
    isas = [kernels.isa for kernels in library.runnable()]
    assert [list(row["wall_ms"]) for row in found["ops"]] == [isas] * len(found["ops"])
    assert [(row["nodes"], row["bits"]) for row in found["knn"]] == [(50, 64), (50, 128)]
    assert found["roofline_words_per_s"] > 0
    assert "BF, the sum of its calls" in capsys.readouterr().out


def test_hamming_distances() -> None:
    codes = np.array([[0, 0], [255, 1], [1, 0]], np.uint8)
    found = bench_kernels.hamming_distances(codes, 2, np.array([[0, 2], [1, 2], [0, 0]]))
    assert found.tolist() == [[0, 1], [0, 8]]
