"""Each candidate runs what it should, alone in a process too, and says why it does not run the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lce import needs_lce

from bgnn.runtime_bench.bench import candidates as module
from bgnn.runtime_bench.bench.candidates import (
    CANDIDATES,
    DELEGATE,
    EMPTY,
    LCE,
    LITERT,
    ONNX,
    ONNX_OURS,
    Candidate,
    candidates_for,
    run_alone,
)
from bgnn.runtime_bench.bench.measure import Elapsed, Schedule
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

ONCE = Schedule(rounds=1, warmup=1, warmup_seconds=0)


def named(name: str) -> Candidate:
    return next(row for row in CANDIDATES if row.name == name)


@pytest.mark.parametrize("row", [pytest.param(row, marks=needs_lce if row.name == LCE else ()) for row in CANDIDATES])
def test_every_candidate_runs_the_empty_file(row: Candidate) -> None:
    opened = row.open(EMPTY[row.kind], 1, [np.array([-2], np.float32)])
    took = opened.run()
    assert isinstance(took, Elapsed) == (row.name == LCE), "only another process has clocks of its own"
    assert [array.tolist() for array in opened.outputs()] == [[2.0]]
    assert opened.arena_bytes() is None or opened.arena_bytes() >= 4


def test_which_are_for_a_file(float_file: bytes) -> None:
    path = Path("a.tflite")
    assert [row.kind for row in candidates_for(path, float_file)] == ["tflite"] * 5
    assert [row.name for row in candidates_for(path, float_file, [LCE, LITERT])] == [LITERT, LCE]
    assert [row.name for row in candidates_for(Path("a.onnx"), b"")] == [ONNX, ONNX_OURS]
    with pytest.raises(UsageError, match="no candidate 'fast': there are LiteRT"):
        candidates_for(path, float_file, ["fast"])
    with pytest.raises(UsageError, match=r"ONNX Runtime cannot run a\.tflite: for it there are LiteRT"):
        candidates_for(path, float_file, [ONNX])


def test_alone_in_a_process(tmp_path: Path, lce_file: bytes) -> None:
    path, inputs = tmp_path / "a.tflite", tmp_path / "inputs.npz"
    path.write_bytes(lce_file)
    np.savez(inputs, np.ones((2, 40), np.float32))
    found = run_alone(named(DELEGATE), path, inputs, 1, ONCE)
    assert found.init_ms > 0
    assert found.first_ms > 0
    assert found.warmup_ms > 0
    assert found.empty_bytes > 10 << 20
    assert abs(found.peak_bytes - found.empty_bytes) < 20 << 20
    assert found.arena_bytes is not None
    assert found.arena_bytes >= 2 * 40 * 4
    with pytest.raises(BgnnError, match="unresolved custom op: LceQuantize"):
        run_alone(named(LITERT), path, inputs, 1, ONCE)


def test_a_process_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, float_file: bytes) -> None:
    (tmp_path / "a.tflite").write_bytes(float_file)
    monkeypatch.setattr(module, "__name__", "no_such_module")
    with pytest.raises(BgnnError, match="no_such_module:alone failed"):
        run_alone(named(LITERT), tmp_path / "a.tflite", tmp_path / "none", 1, ONCE)


@needs_lce
def test_what_lces_process_takes_is_counted_there(tmp_path: Path, lce_file: bytes) -> None:
    path, inputs = tmp_path / "a.tflite", tmp_path / "inputs.npz"
    path.write_bytes(lce_file)
    np.savez(inputs, np.ones((2, 40), np.float32))
    found = run_alone(named(LCE), path, inputs, 1, ONCE)
    assert abs(found.peak_bytes - found.empty_bytes) < 20 << 20
    assert found.arena_bytes is None


def test_own_operators_are_for_one_of_the_two(tmp_path: Path) -> None:
    named(ONNX).check(EMPTY["onnx"])
    with pytest.raises(BgnnError, match="none of this project's operators"):
        named(ONNX_OURS).check(EMPTY["onnx"])
