"""The graph and the dense kernels give the same bits by every instruction set: on x86-64, and on aarch64 under qemu."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from bgnn.runtime_bench.kernels import library

OPS = library.HERE / "ops"
# `make -C runtime_bench/toolchain/aarch64 kernels` names its own compiler and the objects that it built.
COMPILER = os.environ.get("BGNN_AARCH64_CXX")
OBJECTS = os.environ.get("BGNN_AARCH64_OBJECTS")
ISAS = {"x86_64": ["portable", "avx2", "avx512"], "aarch64": ["portable", "neon", "dotprod", "i8mm"]}
# instruction set -> the least processor that qemu knows with it
PROCESSORS = {"neon": "cortex-a72", "dotprod": "cortex-a76", "i8mm": "max"}
UNITS = ["graph_kernels", "graph_portable", "messages", "dense_kernels", "dense_portable"]
KERNELS_OF = {
    "x86_64": ["graph_avx2", "graph_avx512", "dense_avx2", "dense_avx512"],
    "aarch64": ["graph_neon", "dense_neon", "dense_dotprod", "dense_i8mm"],
}


def program(folder: Path, arch: str, compiler: list[str], objects: Path) -> Path:
    """ops_bits.cc with the kernels' objects of an architecture."""
    path = folder / f"ops_bits_{arch}"
    units = [str(objects / f"{unit}.o") for unit in [*UNITS, *KERNELS_OF[arch]]]
    source = Path(__file__).with_name("ops_bits.cc")
    command = [*compiler, "-std=c++17", "-O1", "-static", f"-I{library.HERE}", str(source), *units]
    subprocess.run([*command, str(objects / "libbgnn_kernels.a"), "-o", str(path)], check=True)
    return path


def hashes(command: list[str], isas: list[str]) -> dict[str, list[str]]:
    """By case: the hash of its outputs by each of `isas`."""
    done = subprocess.run([*command, *isas], check=True, capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return {" ".join(words[:3]): words[3:] for words in lines}


@pytest.fixture(scope="module")
def on_x86(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The hashes on this machine, by the instruction sets that it has."""
    if platform.machine() != "x86_64":
        pytest.skip("an x86-64 machine is needed")
    subprocess.run(["make", "-s", "-C", str(library.HERE / "ort")], check=True)  # nothing to do after `make kernels`
    objects = library.HERE.parents[1] / "build" / "objects" / "x86_64"
    here = {kernels.isa for kernels in library.runnable()}
    found = program(tmp_path_factory.mktemp("ops_bits"), "x86_64", ["g++"], objects)
    return hashes([str(found)], [isa for isa in ISAS["x86_64"] if isa in here])


@pytest.mark.slow
def test_instruction_sets_agree(on_x86: dict[str, list[str]]) -> None:
    assert len(on_x86) > 1000
    assert [case for case, found in on_x86.items() if len(set(found)) > 1] == []


@pytest.mark.slow
@pytest.mark.skipif(
    COMPILER is None or OBJECTS is None, reason="run by make -C runtime_bench/toolchain/aarch64 kernels"
)
@pytest.mark.parametrize("isa", PROCESSORS)
def test_aarch64_gives_the_bits_of_x86(isa: str, on_x86: dict[str, list[str]], tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64")
    assert emulator is not None
    found = program(tmp_path, "aarch64", shlex.split(COMPILER or ""), Path(OBJECTS or ""))
    there = hashes([emulator, "-cpu", PROCESSORS[isa], str(found)], ["portable", isa])
    assert there.keys() == on_x86.keys()
    assert [case for case, both in there.items() if set(both) != set(on_x86[case])] == []
