"""Calls recorded here and replayed by a small program (replay.cc): on aarch64 under qemu, and under sanitizers.

On aarch64 both NEON and the portable kernels must give the bits that x86 gives; no aarch64 Python is needed, and
`-cpu cortex-a72` also stops on dot-product instructions, which a Raspberry Pi 4 lacks. AddressSanitizer sees each
tensor and each work memory as an allocation of its exact size; ThreadSanitizer sees four threads on each call.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sanitized import sanitized_libraries
from tests.runtime_bench.kernels.cases import CASES, Arguments, cases

from bgnn.runtime_bench.kernels import library

# `make -C runtime_bench/toolchain/aarch64 kernels` names its own compiler and the kernels that it built.
COMPILER = shlex.split(os.environ.get("BGNN_AARCH64_CXX", "aarch64-linux-gnu-g++"))
KERNELS = os.environ.get("BGNN_AARCH64_KERNELS")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
pytestmark = pytest.mark.slow
needs_aarch64 = pytest.mark.skipif(
    not (shutil.which(COMPILER[0]) and EMULATOR),
    reason=f"{COMPILER[0]} and qemu-aarch64 are needed: make -C runtime_bench/toolchain/aarch64 kernels brings its own",
)
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86-64 machine is needed")


def compile_replay(folder: Path, archive: Path, compiler: list[str], *flags: str) -> Path:
    program, source = folder / "replay", Path(__file__).with_name("replay.cc")
    command = [*compiler, "-std=c++17", "-O1", "-pthread", *flags, f"-I{library.HERE}", str(source), str(archive)]
    subprocess.run([*command, "-o", str(program)], check=True)
    return program


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs replay.cc as on a Cortex-A72."""
    archive = Path(KERNELS) if KERNELS else library.build("aarch64").with_suffix(".a")
    program = compile_replay(tmp_path_factory.mktemp("aarch64"), archive, COMPILER, "-static")
    assert EMULATOR is not None
    return [EMULATOR, "-cpu", "cortex-a72", str(program)]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs replay.cc under AddressSanitizer and UndefinedBehaviorSanitizer."""
    return build_sanitized(tmp_path_factory.mktemp("sanitized"), "address,undefined")


@pytest.fixture(scope="module")
def thread_sanitized(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same under ThreadSanitizer."""
    return build_sanitized(tmp_path_factory.mktemp("thread_sanitized"), "thread")


def build_sanitized(folder: Path, sanitizers: str) -> list[str]:
    archive = sanitized_libraries(sanitizers) / "libbgnn_kernels.a"
    return [str(compile_replay(folder, archive, ["g++"], "-g", f"-fsanitize={sanitizers}"))]


def record(kernels: library.Kernels, name: str, arguments: Arguments) -> bytes:
    """One call for replay.cc: its arguments, with the outputs as `kernels` fills them."""
    kernels.call(name, **arguments).run()
    parts = [struct.pack("<q", list(kernels.fields).index(name))]
    for field in kernels.fields[name]:
        value = arguments[field.name]
        if isinstance(value, np.ndarray):
            content = value.tobytes()
            parts += [struct.pack("<q", len(content)), content, bytes(-len(content) % 8)]
        else:
            parts.append(struct.pack("<q", -1 if value is None else value))
    return b"".join(parts)


def record_all(name: str, path: Path, step: int = 1) -> int:
    """Write every case (or each `step`-th) of kernel `name` to `path`; returns how many."""
    portable = library.Kernels("portable")
    calls = [record(portable, name, arguments) for _, arguments in list(cases(name))[::step]]
    path.write_bytes(b"".join(calls))
    return len(calls)


def replay(command: list[str], recording: Path, isa: str, threads: int = 1) -> str:
    done = subprocess.run([*command, str(recording), isa, str(threads)], capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}exit {done.returncode}"


@needs_aarch64
@pytest.mark.parametrize("name", CASES)
def test_aarch64_gives_the_bits_of_x86(name: str, aarch64: list[str], tmp_path: Path) -> None:
    count = record_all(name, tmp_path / "calls")
    for isa in ("neon", "portable"):
        assert replay(aarch64, tmp_path / "calls", isa) == f"{count} calls, 0 wrong\nexit 0"


@needs_x86
@pytest.mark.parametrize("name", CASES)
def test_sanitizers_find_nothing(name: str, sanitized: list[str], tmp_path: Path) -> None:
    count = record_all(name, tmp_path / "calls")
    for kernels in library.runnable():
        assert replay(sanitized, tmp_path / "calls", kernels.isa) == f"{count} calls, 0 wrong\nexit 0"


@needs_x86
@pytest.mark.parametrize("name", CASES)
def test_threads_do_not_race(name: str, thread_sanitized: list[str], tmp_path: Path) -> None:
    count = record_all(name, tmp_path / "calls", step=4)
    for kernels in library.runnable():
        assert replay(thread_sanitized, tmp_path / "calls", kernels.isa, threads=4) == f"{count} calls, 0 wrong\nexit 0"


@needs_x86
def test_a_wrong_output_is_found(sanitized: list[str], tmp_path: Path) -> None:
    (_, arguments), *_ = cases("dequantize")
    call = record(library.Kernels("portable"), "dequantize", arguments)
    at = call.index(arguments["out"].tobytes())
    (tmp_path / "calls").write_bytes(call[:at] + b"\x01" + call[at + 1 :])
    assert "1 wrong" in replay(sanitized, tmp_path / "calls", "portable")
