"""bgnn.runtime_bench.bench_dgcnn: the table holds what was run. No test depends on speed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench import bench_dgcnn as bench
from bgnn.runtime_bench.measure import Measurement, Spread, Timing

SMALL = {"channels": (32, 32, 32, 32), "embedding": 64, "mlp": (32, 32)}


def found(speedup: float) -> Measurement:
    spread = Spread.of([speedup])
    return Measurement({bench.BEST: Timing([1], [1], spread, spread, spread, spread)}, bench.BASE, 1, 0, 1, {})


@pytest.mark.parametrize(
    ("size", "speedup", "peak", "met"),
    [(360_000, 1.4, 250, [True, True, True]), (360_001, 1.39, 251, [False, False, False])],
)
def test_aims_are_met_at_their_limits_and_not_beyond(size: int, speedup: float, peak: int, met: list[bool]) -> None:
    written = {bench.BEST: bench.Written("f", size, 1.0, {})}
    aims = bench.compare_with_aims(found(speedup), written, {bench.BEST: peak, bench.BASE: 1000})
    assert [aim.met for aim in aims] == met


def test_clouds_lie_in_the_unit_ball_and_seeds_differ() -> None:
    sizes = bench.Sizes(batch=3, points=50)
    points = bench.clouds(sizes)
    assert points.shape == (3, 50, 3)
    assert points.dtype == np.float32
    assert np.linalg.norm(points, axis=2).max() <= 1 + 1e-6
    assert not np.array_equal(points, bench.clouds(sizes, 1))


def test_base_best_and_the_papers_rows_are_cases() -> None:
    names = [case.name for case in bench.CASES]
    assert len(set(names)) == len(names)
    assert {bench.BASE, bench.BEST, *bench.PAPER} <= set(names)


@pytest.mark.slow
def test_bench_converts_runs_and_writes_every_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [dataclasses.replace(case, settings={**case.settings, **SMALL}) for case in bench.CASES]
    monkeypatch.setattr(bench, "CASES", small)
    sizes = {
        "--batch": 2,
        "--points": 32,
        "--k": 4,
        "--classes": 5,
        "--rounds": 2,
        "--output": tmp_path / "out",
    }
    bench.main([str(word) for option in sizes.items() for word in option])
    written = json.loads((tmp_path / "out" / "bench_dgcnn.json").read_text())
    names = [case.name for case in bench.CASES]
    assert list(written["timings"]) == names
    assert list(written["peak_rss_bytes"]) == names
    assert all(peak > written["empty_interpreter_bytes"] for peak in written["peak_rss_bytes"].values())
    files = written["files"]
    assert list(files) == [case.name for case in bench.CASES if case.target]
    assert all(Path(file["path"]).stat().st_size == file["file_bytes"] for file in files.values())
    assert all(file["verification"]["what"] for file in files.values())
    assert files[bench.BEST]["file_bytes"] < files[bench.BASE]["file_bytes"]
    assert len(written["aims"]) == 3
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert "341 KB" in printed
