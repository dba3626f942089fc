"""The cases are the paper's networks by each route; what they need is made here, and LCE is not needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from lce import needs_lce

from bgnn.converter.tflite.builder import FileBuilder
from bgnn.runtime_bench.bench import cases
from bgnn.runtime_bench.bench.candidates import CANDIDATES, DELEGATE, LCE, LITERT, ONNX, run_alone
from bgnn.runtime_bench.bench.cases import CASES, COMPILED, EAGER, NETWORKS, ROUTES, Sizes, clouds, subjects
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.running import conversion_of
from bgnn.runtime_bench.runtime.tflite_runner import open_file

ONCE = Schedule(rounds=1, warmup=1, warmup_seconds=0)
TINY = Sizes(batch=2, points=24, k=4, classes=5)


def test_every_network_goes_every_route_and_names_are_not_twice() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {f"{network} {route}" for network in NETWORKS for route in ROUTES} <= set(names)
    known = {row.name for row in CANDIDATES} | {EAGER, COMPILED}
    assert all(set(case.candidates) <= known for case in CASES)


def test_clouds_lie_in_the_unit_ball_and_seeds_differ() -> None:
    sizes = Sizes(batch=3, points=50)
    points = clouds(sizes)
    assert points.shape == (3, 50, 3)
    assert points.dtype == np.float32
    assert np.linalg.norm(points, axis=2).max() <= 1 + 1e-6
    assert not np.array_equal(points, clouds(sizes, 1))


def test_without_lce_each_file_runs_once_and_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BGNN_LCE_PYTHON", str(tmp_path / "python"))
    monkeypatch.setattr(cases, "model_of", lambda case, sizes: None)
    monkeypatch.setattr(cases, "file_of", lambda case, sizes, folder, say: tmp_path / "file")
    (tmp_path / "file").write_bytes(b"12345")
    said: list[str] = []
    found = subjects(CASES, TINY, tmp_path / "npz", 1, ONCE, tmp_path, said.append)
    assert "is not there" in said[0]
    lesser = {f"{DELEGATE}, {isa}" for isa in cases.lesser_instruction_sets()}
    assert {row.candidate for row in found} == {LITERT, DELEGATE, EAGER, COMPILED, ONNX} | lesser
    assert len({row.name for row in found}) == len(found)
    assert {row.case for row in found} == {case.name for case in CASES}
    assert {row.file_bytes for row in found} == {5, None}


def test_pytorch_alone() -> None:
    found = cases._eager_alone("BF-H eager", 1, TINY)
    assert found.first_ms > 0
    assert found.init_ms is None
    assert 1 << 20 < found.peak_bytes - found.empty_bytes < 1 << 30


@pytest.mark.parametrize("name", [LITERT, DELEGATE, pytest.param(LCE, marks=needs_lce)])
def test_what_a_large_file_holds_is_above_the_empty_one(tmp_path: Path, name: str) -> None:
    builder = FileBuilder("large")
    x = builder.tensor("x", (2, 32, 3), np.dtype(np.float32))
    y = builder.tensor("y", (12000, 2, 32, 3), np.dtype(np.float32))
    shape = builder.constant("shape", np.array([12000, 2, 32, 3], np.int32))
    builder.builtin("BROADCAST_TO", [x, shape], [y])
    path, npz = tmp_path / "large.tflite", tmp_path / "inputs.npz"
    path.write_bytes(builder.finish([("x", x)], [("y", y)], {}))
    np.savez(npz, np.ones((2, 32, 3), np.float32))
    found = run_alone(next(row for row in CANDIDATES if row.name == name), path, npz, 1, ONCE)
    # 9.2 MB; the empty file has XNNPACK at work, and this one has not
    assert 8_000_000 <= found.peak_bytes - found.empty_bytes < 90_000_000


def test_a_file_of_many_clouds_is_verified_on_two(tmp_path: Path) -> None:
    small = {"channels": (32, 32, 32, 32), "embedding": 64, "mlp": (32, 32), **cases.HAMMING}
    case = cases.Case("BF-H small", "bf2", small, "lce-arm64", 1, "bgnn")
    sizes = dataclasses.replace(TINY, batch=3)
    cases.write_all([case, dataclasses.replace(case, name="eager", target=None)], sizes, tmp_path, print)
    path = cases.file_of(case, sizes, tmp_path, lambda line: pytest.fail("it was converted before"))
    conversion = conversion_of(path)["conversion"]
    check = conversion["checks"][-1]
    assert check["clouds"] == 2
    assert conversion["bytes"] == path.stat().st_size
    assert check["compared"]
    assert open_file(path.read_bytes()).input_shapes == [(3, 24, 3)]
    changed = path.stat().st_mtime_ns
    assert cases.file_of(case, sizes, tmp_path, print) == path
    assert path.stat().st_mtime_ns == changed, "it is made once"
    assert cases.model_of(dataclasses.replace(case, name="other route", optimize=0), sizes) is cases.model_of(
        case, sizes
    )
