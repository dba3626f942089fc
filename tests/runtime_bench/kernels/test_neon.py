"""The aarch64 build under qemu as a Cortex-A72: NEON and portable give the bits that x86 gives.

The calls and their expected outputs are recorded here and replayed by a small program (replay.cc), so no aarch64
Python is needed. `-cpu cortex-a72` also stops on dot-product instructions, which a Raspberry Pi 4 lacks.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench.kernels import library
from tests.runtime_bench.kernels.cases import CASES, Arguments, cases

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason=f"{COMPILER} and {EMULATOR} are needed: apt-get install g++-aarch64-linux-gnu qemu-user-static",
    ),
]


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = library.build("aarch64").with_suffix(".a")
    program = tmp_path_factory.mktemp("replay") / "replay"
    source = Path(__file__).with_name("replay.cc")
    subprocess.run(
        [COMPILER, "-std=c++17", "-O1", "-static", f"-I{library.HERE}", str(source), str(archive), "-o", str(program)],
        check=True,
    )
    return program


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


def run(replay: Path, recording: Path, isa: str) -> str:
    done = subprocess.run(
        [EMULATOR, "-cpu", "cortex-a72", str(replay), str(recording), isa], capture_output=True, text=True
    )
    return f"{done.stdout}{done.stderr}exit {done.returncode}"


@pytest.mark.parametrize("name", CASES)
def test_aarch64_gives_the_bits_of_x86(name: str, replay: Path, tmp_path: Path) -> None:
    portable = library.Kernels("portable")
    calls = [record(portable, name, arguments) for _, arguments in cases(name)]
    recording = tmp_path / "calls"
    recording.write_bytes(b"".join(calls))
    for isa in ("neon", "portable"):
        assert run(replay, recording, isa) == f"{len(calls)} calls, 0 wrong\nexit 0"


def test_a_wrong_output_is_found(replay: Path, tmp_path: Path) -> None:
    portable = library.Kernels("portable")
    (_, arguments), *_ = cases("dequantize")
    call = record(portable, "dequantize", arguments)
    recording = tmp_path / "calls"
    at = call.index(struct.pack("<f", arguments["out"].flat[0]))
    recording.write_bytes(call[:at] + b"\x01" + call[at + 1 :])
    assert "1 wrong" in run(replay, recording, "neon")
