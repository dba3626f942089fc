"""The bgnn-runtime wheels: the check finds what is wrong, and a wheel runs a file without PyTorch.

Where `make -C runtime_bench/packaging wheels` has not been run, the tests of the wheels themselves are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import bgnn.runtime_bench

PACKAGING = Path(bgnn.runtime_bench.__file__).resolve().parent / "packaging"
DIST = PACKAGING.parent.parent / "dist"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_wheels", PACKAGING / "check_wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_library_that_is_none_of_ours() -> None:
    library = Path(np.linalg._umath_linalg.__file__)  # needs what it brings along, and is no delegate
    found = load().problems(library, "aarch64" if platform.machine() == "x86_64" else "x86_64")
    assert any("it is not an" in line for line in found)
    assert "it is not a TFLite delegate" in found


def test_missing_wheels_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load().main(tmp_path) == 1
    assert "no wheel for aarch64" in capsys.readouterr().err


@pytest.fixture
def wheel() -> Path:
    found = sorted(DIST.glob(f"bgnn_runtime-*_{platform.machine()}.whl"))
    if not found:
        pytest.skip("no wheel: make -C runtime_bench/packaging wheels")
    return found[0]


def test_both_wheels_are_good(wheel: Path) -> None:
    assert load().main(DIST) == 0


def test_a_wheel_runs_a_file_without_torch(wheel: Path, tmp_path: Path) -> None:
    sys.path[:0] = [str(Path(__file__).parent.parent / folder) for folder in ("delegate", "kernels")]
    from bgnn_files import xor_edge_conv

    case = xor_edge_conv(np.random.default_rng(0))
    (tmp_path / "model.tflite").write_bytes(case.file())
    np.savez(tmp_path / "in.npz", *case.arrays())
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run([*pip, "--disable-pip-version-check"], check=True)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from bgnn.runtime_bench import delegate, run\n"
        "assert 'site' in delegate.__file__, delegate.__file__\n"
        "sys.exit(run.main(sys.argv[1:]))"
    )
    files = [str(tmp_path / name) for name in ("model.tflite", "in.npz", "out.npz")]
    subprocess.run(
        [sys.executable, "-c", program, files[0], "--input", files[1], "--output", files[2]],
        check=True,
        env={k: v for k, v in os.environ.items() if k != "BGNN_DELEGATE"} | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
    )
    with np.load(files[2]) as out:
        assert np.array_equal(out["t4"], case.expected)
