"""The fuzzer (fuzz/harness.cc) under sanitizers: 100,000 changed operators, no crash, no report, no wrong read."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
pytestmark = [
    pytest.mark.slow,  # the sanitized builds take minutes
    pytest.mark.skipif(platform.machine() != "x86_64", reason="builds with the host's compiler"),
]


def fuzz(sanitizers: str, count: int, isa: str) -> None:
    command = ["make", "-s", "-C", str(FUZZ), f"SANITIZE={sanitizers}", f"COUNT={count}", "SEED=3"]
    done = subprocess.run(command, env=os.environ | {"BGNN_ISA": isa}, capture_output=True, text=True)
    if "names no instruction set of this machine" in done.stderr:
        pytest.skip(f"no {isa} here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "a sanitizer's report"
    runs = re.search(rf"^{count} files: (\d+) preparations refused, (\d+) runs$", done.stdout, re.MULTILINE)
    assert runs is not None
    # Both ends are reached: what is refused, and what must then run.
    assert min(int(runs[1]), int(runs[2])) > count // 2


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_memory_and_undefined_behaviour(isa: str) -> None:
    fuzz("address,undefined", 100_000, isa)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_threads(isa: str) -> None:
    fuzz("thread", 10_000, isa)
