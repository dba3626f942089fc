"""The benchmark's command on a small graph: it checks its results, and writes what it prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bgnn.runtime_bench.bench import bench_aggregate
from bgnn.runtime_bench.runtime.errors import UsageError


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, so the operators are not built")
def test_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--nodes", "300", "--edges", "4000", "--width", "64", "--rounds", "2", "--threads", "2"]
    bench_aggregate.main([*sizes, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "bench_aggregate.json").read_text())
    assert found["sizes"]["nodes"] == 300
    assert {"u8 codes", "f32", "int32", "SciPy CSR f32", "PyTorch CSR f32", "stock ONNX f32", "rows at random"} <= set(
        found["timings"]
    )
    assert "%" in found["columns"]["of rows at random"]["u8 codes"]
    (over_float,) = (column for name, column in found["columns"].items() if name.startswith("x as fast as"))
    assert set(over_float) == {"u8 codes", "u8 codes, weights", "f32", "int32"}
    assert "u8 codes" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--width", "100"], ["--nodes", "0"], ["--threads", "0"]])
def test_wrong_sizes(wrong: list[str]) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        bench_aggregate.main(wrong)
