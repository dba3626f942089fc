"""The benchmarks of calibrated clouds and of binary graphs run, and say what they compared."""

from __future__ import annotations

import pytest

from bgnn.runtime_bench.bench import bench_binary_graphs, bench_calibrated


def test_calibrated_clouds(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--points 24 --clouds 64 --epochs 1 --held-out 16 --rounds 1"
    bench_calibrated.main(["--networks", "PointNet", *sizes.split()])
    said = capsys.readouterr().out
    for what in ("fp32, PyTorch", "INT8, tflite-int8-arm64", "INT8, onnx-int8-x86", "at a tie"):
        assert what in said


def test_binary_graphs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FEATURES", 20), ("HIDDEN", 32), ("PART", 200)):
        monkeypatch.setattr(bench_binary_graphs, name, value)
    bench_binary_graphs.main(["--networks", "GCN", "--rounds", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "kernels" in line]
    assert sum("0 turned" in row for row in rows) == 2
    assert all(("binary" in row) == ("float out" in row) for row in rows if row.startswith("│ "))
