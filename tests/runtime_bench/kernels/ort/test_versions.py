"""ort_abi.h holds: the one library runs in the newest ONNX Runtime and in older ones, and refuses those before 1.17.

Each version is installed into .cache/ort/<version> by pip, which needs its package index.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_files
import pytest
from test_binary import OPS, case
from test_refusals import ATTRIBUTES, good

from bgnn.runtime_bench.runtime.onnx_ops import library_path

ROOT = Path(__file__).resolve().parents[4]
pytestmark = pytest.mark.slow

# Runs in the other version's process, which has nothing but numpy and onnxruntime.
CHILD = """
import sys
import numpy as np
import onnxruntime
library, folder = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
options.register_custom_ops_library(library)
for op in sys.argv[3:] or open(folder + "/ops").read().split():
    session = onnxruntime.InferenceSession(f"{folder}/{op}.onnx", options, providers=["CPUExecutionProvider"])
    inputs = dict(np.load(f"{folder}/{op}.npz"))
    np.savez(f"{folder}/{op}.out.npz", *session.run(None, inputs))
    name = next(iter(inputs))
    inputs[name] = inputs[name].reshape(1, 1, 1, 1, 1, -1)
    try:
        session.run(None, inputs)
    except Exception as error:
        assert "has rank 6" in str(error) and f"bgnn.{op} (node 'the_{op}')" in str(error), error
    else:
        raise SystemExit("a wrong rank was accepted")
print(onnxruntime.__version__)
"""


def install(version: str) -> Path:
    """The folder that holds this version ("newest" is looked up anew); skips where pip cannot get it."""
    folder = ROOT / ".cache" / "ort" / version
    if version == "newest" or not (folder / "onnxruntime").is_dir():
        numpy = "numpy" if version == "newest" else "numpy==1.26.4"
        package = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--upgrade"]
        command += ["--no-deps", "--target", str(folder), package, numpy]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"pip cannot install {package}: {done.stderr.strip().splitlines()[-1]}")
    return folder


def run_in(version: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(install(version)), "PYTHONNOUSERSITE": "1"}
    command = [sys.executable, "-c", CHILD, str(library_path()), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("version", ["newest", "1.24.4", "1.20.1", "1.17.3"])
def test_runs_in(version: str, tmp_path: Path) -> None:
    cases = {op: (attributes, good(op)) for op, attributes in ATTRIBUTES.items()}
    cases |= {op: case(op, 45, 33)[:2] for op in OPS}
    for op, (attributes, inputs) in cases.items():
        (tmp_path / f"{op}.onnx").write_bytes(onnx_files.model(op, attributes, set(inputs)))
        np.savez(tmp_path / f"{op}.npz", **inputs)
    (tmp_path / "ops").write_text(" ".join(cases))
    done = run_in(version, tmp_path)
    assert done.returncode == 0, done.stderr
    assert version in ("newest", done.stdout.strip())
    for op, (attributes, inputs) in cases.items():
        with np.load(tmp_path / f"{op}.out.npz") as found:
            for got, want in zip(found.values(), onnx_files.run(op, attributes, **inputs), strict=True):
                np.testing.assert_array_equal(got, want)


def test_older_ones_are_refused(tmp_path: Path) -> None:
    done = run_in("1.16.3", tmp_path)
    assert done.returncode != 0
    assert "need ONNX Runtime 1.17 or newer; this is 1.16.3" in done.stderr
