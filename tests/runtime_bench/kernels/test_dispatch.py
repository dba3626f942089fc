"""Which kernels a processor gets, on processors that qemu imitates (it has no AVX-512)."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from bgnn.runtime_bench.kernels import library

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64's instruction sets"),
    pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 (apt-get install qemu-user-static)"),
]
PROGRAM = """
#include <stdio.h>
#include "kernels.h"
int main(void) { puts(bgnn_kernels()->isa); return 0; }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dispatch")
    source, program = folder / "isa.cc", folder / "isa"
    source.write_text(PROGRAM)
    archive = library.build().with_suffix(".a")
    if not archive.is_file():
        subprocess.run(["make", "-s", "-C", str(library.HERE)], check=True)
    subprocess.run(["g++", "-static", f"-I{library.HERE}", str(source), str(archive), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    ("processor", "isa"),
    [
        ("Haswell", "avx2"),
        ("Skylake-Client", "avx2"),
        ("Nehalem", "portable"),
        ("SandyBridge", "portable"),
        ("qemu64", "portable"),
        *((f"Haswell,-{feature}", "portable") for feature in ("avx2", "fma", "bmi1", "bmi2", "popcnt", "abm", "xsave")),
    ],
)
def test_a_processor_gets_what_it_has(program: Path, processor: str, isa: str) -> None:
    assert QEMU is not None
    # No environment: BGNN_ISA would choose.
    done = subprocess.run([QEMU, "-cpu", processor, str(program)], capture_output=True, text=True, check=True, env={})
    assert done.stdout.split() == [isa]
