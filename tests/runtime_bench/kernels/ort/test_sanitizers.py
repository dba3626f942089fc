"""The other tests once more, on a library built with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sanitized import ROOT, sanitized_libraries

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_under_sanitizers(tmp_path: Path) -> None:
    library = sanitized_libraries("address,undefined") / "libbgnn_ort.so"
    # Both come before Python: AddressSanitizer looks for the C++ runtime's `throw`, which ONNX Runtime uses, at once.
    runtimes = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment = {
        **os.environ,
        "BGNN_ORT_OPS": str(library),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # Python itself leaks
    }
    tests = [str(HERE / name) for name in ("test_refusals.py", "test_binary.py", "test_properties.py", "test_dense.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        [*command, "--deselect", str(HERE / "test_refusals.py::test_missing_library")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
