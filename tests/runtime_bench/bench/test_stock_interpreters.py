"""bgnn.runtime_bench.bench.stock_interpreters: what runs in a release's process, and what is said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bgnn_files
import numpy as np
import pytest
import tflite_files

from bgnn.runtime_bench.bench import stock_interpreters as stock


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files: one that runs, and one that no interpreter knows how to."""
    tflite_files.build()
    case = bgnn_files.knn(np.random.default_rng(0), nodes=30, k=4)
    (tmp_path / "good.tflite").write_bytes(case.file())
    (tmp_path / "bad.tflite").write_bytes(case.file().replace(b"BgnnKnn", b"Unknown"))
    for name in ("good", "bad"):
        np.save(tmp_path / f"{name}.npy", case.arrays()[0])
    np.save(tmp_path / "expected", case.expected)
    return tmp_path


def test_files_run_in_another_python(folder: Path) -> None:
    found = stock.run_in(Path(sys.executable), folder)
    assert found["module"] == "ai_edge_litert.interpreter"
    for kind in stock.FLOAT_KERNELS:
        assert "Unknown" in found["files"]["bad"][kind]["error"]
        output = np.load(folder / found["files"]["good"][kind]["output"])
        assert np.array_equal(output, np.load(folder / "expected.npy"))
    bad, good = stock.judge(found, found, folder)
    assert (good["loads"], good["xnnpack"], good["builtin"], good["why"]) == ("yes", "equal", "equal", "")
    assert (bad["loads"], bad["xnnpack"], bad["builtin"]) == ("no", "-", "-")
    assert "Unknown" in bad["why"]


def test_the_process_of_a_release_needs_no_pytorch() -> None:
    code = (
        "import sys, bgnn.runtime_bench.bench.stock_interpreters, bgnn.runtime_bench.runtime.run\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho the last word >&2\nkill -SEGV $$\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="killed by signal 11: the last word"):
        stock.run_in(python, tmp_path)


def test_what_cannot_be_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for variable in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(variable, "/dev/null" if variable == "PIP_CONFIG_FILE" else "")
    release = stock.Release("ai-edge-litert", "0.0.0")
    with pytest.raises(RuntimeError, match=r"ai-edge-litert==0\.0\.0"):
        stock.environment_of(release, tmp_path)
    assert not list(tmp_path.glob("*/.installed"))


def test_comparison_and_its_reason() -> None:
    a = np.array([[1, 2], [4, 3]], np.float32)
    assert stock.compare(a, a.copy()) == "equal"
    assert stock.compare(a + np.float32(2**-22), a) == "2.4e-07"
    assert stock.compare(a[:, ::-1], a) == "1.0e+00, 2 of 2 classes"
    assert stock.compare(a[:1], a) == "shape [1, 2], not [2, 2]"
    assert "0.0e+00" in stock.compare(np.array([[0.0, 1]], np.float32), np.array([[-0.0, 1]], np.float32))
    differs = "1.0e-06"
    assert stock.why({"xnnpack": "equal", "builtin": "equal"}) == ""
    assert "XNNPACK" in stock.why({"xnnpack": differs, "builtin": "equal"})
    assert "plain" in stock.why({"xnnpack": "equal", "builtin": differs})
    assert stock.why({"xnnpack": differs, "builtin": differs}) == "its float operators round differently"


def test_the_table_holds_every_release(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_files(folder: Path, full_size: bool, say: object) -> dict[str, np.ndarray]:
        (folder / "good.tflite").write_bytes(good)
        np.save(folder / "good.npy", points)
        return {"good": expected}

    def environment_of(release: stock.Release, cache: Path) -> Path:
        if release.version == "2":
            raise RuntimeError("no such version")
        return Path(sys.executable)

    good, points = (folder / "good.tflite").read_bytes(), np.load(folder / "good.npy")
    expected = np.load(folder / "expected.npy")
    first, second = stock.Release("ai-edge-litert", "1"), stock.Release("ai-edge-litert", "2")
    monkeypatch.setattr(stock, "INTERPRETERS", [first, second])
    monkeypatch.setattr(stock, "REFERENCE", first)
    monkeypatch.setattr(stock, "write_files", write_files)
    monkeypatch.setattr(stock, "environment_of", environment_of)
    stock.main(["--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "ai-edge-litert 1 beside PyTorch, good: equal" in printed
    rows = json.loads((tmp_path / "out" / "interpreters.json").read_text())["rows"]
    assert [(row["release"], row["loads"], row["why"]) for row in rows] == [
        ("ai-edge-litert 1", "yes", ""),
        ("ai-edge-litert 2", "no", "no such version"),
    ]
