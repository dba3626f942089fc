"""bgnn-runtime's wheels in environments of their own: a TFLite and an ONNX file of each family run as they do here.

x86-64 natively, with this Python; BGNN_PYTHONS=all tries each from 3.10 to 3.13 that is found (on the path, or pyenv's)
with NumPy 1.26 or 2 (3.13 has no 1.26). aarch64 as a Cortex-A72 under qemu, by `make aarch64`. Skipped where there is
no wheel: `make wheels`.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import device_files
import numpy as np
import pytest

import bgnn.runtime_bench

ROOT = Path(bgnn.runtime_bench.__file__).resolve().parents[1]
PYTHONS = {"3.10": "numpy<2", "3.11": "numpy>=2", "3.12": "numpy<2", "3.13": "numpy>=2"}
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PIP_CACHE = str(ROOT / ".cache" / "pip")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--cache-dir", PIP_CACHE]
# All files in one process: starting one takes seconds under qemu.
RUN_ALL = """
import sys
from bgnn.runtime_bench.runtime import delegate, run
folder, site, *names = sys.argv[1:]
assert delegate.__file__.startswith(site), delegate.__file__
for name in names:
    file = f"{folder}/{name}"
    if run.main([file, "--input", f"{file}.in.npz", "--output", f"{file}.device.npz"]):
        sys.exit(f"{name} does not run")
"""


def wheel_of(arch: str) -> Path:
    found = sorted((ROOT / "dist").glob(f"bgnn_runtime-*_{arch}.whl"))
    if not found:
        pytest.skip("no wheel: make wheels")
    return found[0]


def python_of(version: str) -> str:
    """A Python of this version that runs. pyenv's names on the path do not where the version is not the chosen one."""
    if version == HERE:
        return sys.executable
    if os.environ.get("BGNN_PYTHONS") != "all":
        pytest.skip("BGNN_PYTHONS=all tries the other Pythons")
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    for python in (shutil.which(f"python{version}"), *map(str, pyenv)):
        if python and subprocess.run([python, "-c", "import venv"], capture_output=True).returncode == 0:
            return python
    pytest.skip(f"no Python {version} here")


def run(command: list[str], cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """With nothing of this checkout in the environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BGNN_", "PYTHON"))}
    return subprocess.run(command, cwd=cwd, env=kept | more, capture_output=True, text=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    device_files.write(folder)
    return folder


def check(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    """All files ran, and gave what they gave here. Float kernels add in an order of their own on each processor."""
    assert done.returncode == 0, done.stderr
    for name in device_files.FILES:
        with np.load(folder / f"{name}.out.npz") as here, np.load(folder / f"{name}.device.npz") as there:
            assert here.files == there.files
            for output in here.files:
                assert here[output].shape == there[output].shape
                near = 1e-4 * np.abs(here[output]).max()
                np.testing.assert_allclose(there[output], here[output], rtol=1e-4, atol=near, err_msg=name)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="aarch64's wheel is tried under qemu")
@pytest.mark.parametrize("version", PYTHONS)
def test_x86_64(version: str, files: Path, tmp_path: Path) -> None:
    wheel, venv = wheel_of("x86_64"), tmp_path / "venv"
    subprocess.run([python_of(version), "-m", "venv", "--without-pip", str(venv)], check=True)
    install = [*PIP, "--python", str(venv / "bin" / "python"), "install", "-qq"]
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    subprocess.run([*install, PYTHONS[version]], check=True)
    for name, missing in (("binary_cloud.tflite", "ai-edge-litert"), ("binary_cloud.onnx", "onnxruntime")):
        command = [str(venv / "bin" / "bgnn-run"), str(files / name), "--input", str(files / f"{name}.in.npz")]
        done = run(command, tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("bgnn-run: ")
        assert done.stderr.endswith(f"pip install {missing}\n")
        assert done.stderr.count("\n") == 1
    done = run([str(venv / "bin" / "python"), "-c", "import bgnn; bgnn.convert"], tmp_path)
    assert "ImportError: bgnn.convert is of bgnn-convert; here is bgnn-runtime alone" in done.stderr
    subprocess.run([*install, f"{wheel}[onnx]", PYTHONS[version]], check=True)
    command = [str(venv / "bin" / "python"), "-c", RUN_ALL, str(files), str(venv), *device_files.FILES]
    check(run(command, tmp_path), files)


@pytest.mark.slow
@pytest.mark.skipif("BGNN_AARCH64" not in os.environ, reason="run by make -C runtime_bench/toolchain/aarch64 test")
def test_aarch64(files: Path, tmp_path: Path) -> None:
    wheel, root, site = wheel_of("aarch64"), Path(os.environ["BGNN_AARCH64"]), tmp_path / "site"
    tags = [f"--platform=manylinux{tag}_aarch64" for tag in ("2014", "_2_17", "_2_27", "_2_28")]
    tags += ["--only-binary=:all:", "--python-version=3.11", "--abi=cp311", "--abi=abi3", "--abi=none"]
    subprocess.run([*PIP, "install", "-qq", "--target", str(site), *tags, f"{wheel}[onnx]"], check=True)
    emulated = ["qemu-aarch64", "-cpu", "cortex-a72", "-L", str(root), str(root / "usr" / "bin" / "python3.11")]
    command = [*emulated, "-c", RUN_ALL, str(files), str(site), *device_files.FILES]
    check(run(command, tmp_path, PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1"), files)
