"""The helpers beside these tests can be imported by name, and the operators' library is up to date."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
SOURCES = HERE.parents[3] / "runtime_bench" / "kernels" / "ort"


@pytest.fixture(scope="session", autouse=True)
def library() -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++, so the operators are not built")
    done = subprocess.run(["make", "-s", "-C", str(SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
