"""The benchmark runs, writes what it found, and compares only equal answers. Times decide nothing."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench.bench import bench_kernels
from bgnn.runtime_bench.bench import bench_own_kernels_files as files
from bgnn.runtime_bench.bench import bench_own_kernels_knn as knn
from bgnn.runtime_bench.bench import bench_own_kernels_ops as ops
from bgnn.runtime_bench.bench.measure import Measurement, Spread, Timing
from bgnn.runtime_bench.kernels import library

TINY = ["--batch", "2", "--points", "40", "--k", "5", "--rounds", "1"]
ISAS = [kernels.isa for kernels in library.runnable()]


def run(folder: Path, *arguments: str) -> dict:
    bench_kernels.main([*arguments, "--output", str(folder)])
    return json.loads((folder / "bench_kernels.json").read_text())


def test_every_op_on_every_instruction_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path, "ops", *TINY)
    rows = found["ops"]["rows"]
    assert [list(row["wall_ms"]) for row in rows] == [ISAS] * len(rows)
    assert not {"knn", "files"} & found.keys()
    printed = capsys.readouterr().out
    assert "BF, the sum of its calls" in printed
    assert "RF, the sum of its calls" in printed


def test_knn_on_every_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path, "knn", *TINY, "--knn-nodes", "50", "--knn-bits", "64", "128")
    assert [(row["nodes"], row["bits"]) for row in found["knn"]["rows"]] == [(50, 64), (50, 128)]
    assert found["knn"]["roofline_words_per_s"] > 0
    assert "ops" not in found


def test_totals_count_each_call() -> None:
    def row(bf: int, rf: int, ms: float) -> dict:
        return {"calls_in_bf": bf, "calls_in_rf": rf, "wall_ms": {"avx2": {"median": ms}}}

    rows = [row(1, 0, 2.0), row(3, 2, 10.0)]
    assert ops.total_ms(rows, "bf") == {"avx2": 32.0}
    assert ops.total_ms(rows, "rf") == {"avx2": 20.0}


def test_wrong_arguments() -> None:
    for wrong in (["speed"], ["files", "--settings", "8"], ["files", "--settings", "8xtwo"]):
        with pytest.raises(SystemExit) as stopped:
            bench_kernels.main(wrong)
        assert stopped.value.code == 2


def test_hamming_distances() -> None:
    codes = np.array([[0, 0], [255, 1], [1, 0]], np.uint8)
    found = knn.hamming_distances(codes, 2, np.array([[0, 2], [1, 2], [0, 0]]))
    assert found.tolist() == [[0, 1], [0, 8]]


def test_knn_aims_name_the_sizes_where_another_is_ahead() -> None:
    def row(bits: int, theirs: float) -> dict:
        cpu = {"bgnn portable": 9.0, "bgnn avx2": 2.0, "faiss": theirs}
        return {"bits": bits, "nodes": 10, "cpu_ms": {name: {"median": ms} for name, ms in cpu.items()}}

    (ahead,) = knn.aims([row(64, 3.0), row(128, 2.0)])
    assert (ahead.met, ahead.found) == (True, "1.00 x or more")
    (behind,) = knn.aims([row(64, 3.0), row(128, 1.0)])
    assert (behind.met, behind.found) == (False, "behind on 128 bits x 10 (0.50)")
    assert "bgnn avx2 beside faiss" in behind.what


def found(speedups: dict[str, float], size: int = 290_000, memory: int = 12_000_000) -> files.Found:
    timings = {}
    for name, speedup in {files.BASE: 1.0, files.HONEST: 1.0, files.ONNX: 1.0, **speedups}.items():
        spread = Spread.of([speedup])
        timings[name] = Timing([1 / speedup], [1 / speedup], spread, spread, spread, spread)
    measurement = Measurement(timings, files.BASE, 1, 0, 1, {"cpu": "", "cores": 1})
    return files.Found(files.SETTINGS[0], measurement, {files.BF.name: size}, {files.BF.name: memory})


def test_aims_are_met_at_their_limits_and_not_below() -> None:
    at = {"BF2-H, bgnn avx512": 45, "BF2-H, bgnn avx2": 15, "BF2-H, bgnn portable": 4, "RF, bgnn avx512": 8}
    assert [aim.met for aim in files.aims([found(at)])] == [True] * 6
    below = {name: times - 0.01 for name, times in at.items()}
    assert [aim.met for aim in files.aims([found(below, 290_001, 12_000_001)])] == [False] * 6
    without = {name: times for name, times in at.items() if name != "BF2-H, bgnn avx512"}
    lines = files.aims([found(without)])
    assert (lines[0].met, lines[0].found) == (False, "this processor does not run it")
    assert files.aims([dataclasses.replace(found(at), setting=files.Setting(1, 1))]) == []


def test_ratios_are_taken_within_a_round() -> None:
    spread = Spread.of([1.0])
    timings = {
        "a": Timing([10.0, 20.0, 30.0], [0] * 3, spread, spread, None, None),
        "b": Timing([5.0, 10.0, 15.0], [0] * 3, spread, spread, None, None),
    }
    assert files.ratios(Measurement(timings, None, 3, 0, 1, {}), "a") == {"b": "2.00 (2.00-2.00)"}


def test_the_instruction_set_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BGNN_ISA", raising=False)
    with files.instruction_set("portable"):
        assert os.environ["BGNN_ISA"] == "portable"
    assert "BGNN_ISA" not in os.environ
    monkeypatch.setenv("BGNN_ISA", "avx2")
    with files.instruction_set("portable"):
        pass
    assert os.environ["BGNN_ISA"] == "avx2"


def test_the_published_knn_finds_the_same_neighbours() -> None:
    import torch

    from bgnn.models import dgcnn

    x = torch.randn(2, 30, 3)
    ours = dgcnn.knn(x, 5, "l2")
    with files.published_knn():
        assert torch.equal(dgcnn.knn(x, 5, "l2").sort()[0], ours.sort()[0])
        with pytest.raises(ValueError, match="hamming"):
            dgcnn.knn(x, 5, "hamming")


@pytest.mark.slow
def test_whole_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"channels": (32, 32, 32, 32), "embedding": 64, "mlp": (32, 32)}
    for name in ("FP32", "FACTORED", "BF_STOCK", "BF", "RF"):
        case = getattr(files, name)
        monkeypatch.setattr(files, name, dataclasses.replace(case, settings={**case.settings, **small}))
    cases = tuple(getattr(files, name) for name in ("FP32", "FACTORED", "BF_STOCK", "BF", "RF"))
    monkeypatch.setattr(files, "CASES", cases)
    written = run(tmp_path, "files", *TINY, "--classes", "3", "--settings", "8x1", "1x2")
    assert [table["setting"] for table in written["files"]] == [
        {"batch": 8, "threads": 1},
        {"batch": 1, "threads": 2},
    ]
    for table in written["files"]:
        rows = set(table["measurement"]["timings"])
        assert {files.BASE, files.HONEST, files.ONNX, files.EAGER, "BF2-H stock file, our delegate"} <= rows
        assert {files.ours(network, isa) for network in ("BF2-H", "RF") for isa in ISAS} <= rows
        assert {files.case_of(row) for row in rows} <= {*table["file_bytes"], None}
    assert len(written["aims"]) == 6
    printed = capsys.readouterr().out
    assert printed.count("PASS ") + printed.count("SHORT ") == 6
