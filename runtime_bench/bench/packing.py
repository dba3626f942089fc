"""What a board needs to measure files, as one archive: the job, the files, and wheels for its Python.

The wheels are `bgnn-runtime`'s of its architecture (of `dist/`: `make wheels`), the runtimes in the versions that are
installed here, and what those need; pip fetches them here, so that the board needs neither pip nor a network. No
compiler and no PyTorch is among them. `board.py`, which is in it too, unpacks and uses them.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bgnn.runtime_bench
from bgnn.runtime_bench.bench import board
from bgnn.runtime_bench.bench.measure import versions_of
from bgnn.runtime_bench.runtime.errors import BgnnError

ROOM = Path(bgnn.runtime_bench.__file__).parent / "runtime"
"""The sources of bgnn-runtime, of this process."""
ARCHITECTURES = ("aarch64", "x86_64")
OLDEST = (3, 10)
"""The oldest Python that bgnn-runtime runs on."""
_RUN = """#!/bin/sh
# Measures what is in this pack on this machine ({arch}, Python {python}); writes records.jsonl beside this script.
cd "$(dirname "$0")" && exec python3 board.py run
"""


@dataclass
class Job:
    """What is to be measured, as `bgnn-bench run` and `profile` would here."""

    do: str
    """run or profile"""
    files: list[tuple[Path, bytes, list[str]]]
    """Each with its content, and the names of what is to run it."""
    threads: list[int]
    rounds: int | None
    seed: int
    input: Path | None
    beside: dict[Path, bytes] = field(default_factory=dict)
    """By the file that it belongs to: the converter's report, which has the layers' names."""

    @property
    def onnx(self) -> bool:
        return any(content[4:8] != b"TFL3" for _, content, _ in self.files)


@dataclass(frozen=True)
class Pack:
    """An archive (tar.gz), and how much room it takes when it is unpacked."""

    data: bytes
    unpacked_bytes: int


def runtime_wheel(arch: str) -> Path:
    """bgnn-runtime's wheel for an architecture. Raises BgnnError where there is none, or one of other sources."""
    places = [ROOM.resolve().parents[1] / "dist", Path("dist")]
    found = [wheel for place in places for wheel in sorted(place.glob(f"bgnn_runtime-*_{arch}.whl"))]
    if not found:
        raise BgnnError(f"no wheel of bgnn-runtime for {arch} in {places[0]} or ./dist: make wheels (in a checkout)")
    with zipfile.ZipFile(found[0]) as archive:
        modules = [name for name in archive.namelist() if name.startswith("bgnn/runtime_bench/runtime/")]
        here = {f"bgnn/runtime_bench/runtime/{path.name}": path.read_bytes() for path in ROOM.glob("*.py")}
        if {name: archive.read(name) for name in modules if name.endswith(".py")} != here:
            raise BgnnError(f"{found[0]} is of other sources than those here: make wheels")
    return found[0]


def fetch_wheels(wheel: Path, arch: str, python: str, glibc: int, onnx: bool, folder: Path) -> list[Path]:
    """That wheel and all that it needs, for a Python ("3.11") with glibc 2.`glibc`. Raises BgnnError with pip's
    reason."""
    pins = folder / "versions.txt"
    versions = versions_of("ai-edge-litert", "onnxruntime")
    pins.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
    tags = [f"manylinux_2_{minor}_{arch}" for minor in range(glibc, 16, -1)] + [f"manylinux2014_{arch}"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", f"--constraint={pins}"]
    command += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    command += [f"--platform={tag}" for tag in tags]
    done = subprocess.run([*command, f"{wheel}{'[onnx]' if onnx else ''}"], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        said = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
        wanted = ", ".join(f"{name} {version}" for name, version in versions.items())
        raise BgnnError(f"pip finds no wheels for {arch}, Python {python}, glibc 2.{glibc} ({wanted}): {said}")
    return sorted(folder.glob("*.whl"))


def make_pack(job: Job, arch: str, python: str, glibc: int, **more: Any) -> Pack:
    """The archive for a board. `more` goes into its job.json. Raises BgnnError where something of it is missing."""
    told = {
        "do": job.do, "threads": job.threads, "rounds": job.rounds, "seed": job.seed, "arch": arch, "python": python,
        "files": [{"path": f"files/{number}/{path.name}", "candidates": names}
                  for number, (path, _, names) in enumerate(job.files)],
        **more,
    }  # fmt: skip
    members: dict[str, bytes] = {
        "run.sh": _RUN.format(arch=arch, python=python).encode(),
        "board.py": Path(board.__file__).read_bytes(),
        "job.json": json.dumps(told, indent=1).encode(),
        "wheels/bench.whl": _bench(),
    }
    for number, (path, content, _) in enumerate(job.files):
        members[f"files/{number}/{path.name}"] = content
        if path in job.beside:
            members[f"files/{number}/{path.name}.report.json"] = job.beside[path]
    if job.input is not None:
        members["input.npz"] = job.input.read_bytes()
    with tempfile.TemporaryDirectory(prefix="bgnn-bench-") as folder:
        for wheel in fetch_wheels(runtime_wheel(arch), arch, python, glibc, job.onnx, Path(folder)):
            members[f"wheels/{wheel.name}"] = wheel.read_bytes()
    unpacked = sum(map(len, members.values()))
    for name, data in members.items():
        if name.endswith(".whl"):
            unpacked += sum(one.file_size for one in zipfile.ZipFile(io.BytesIO(data)).infolist())
    return Pack(_tar(members), unpacked)


def _bench() -> bytes:
    """This package, as `board.unpack` takes it."""
    here, stream = Path(__file__).parent, io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(here.glob("*.py")):
            archive.write(path, f"bgnn/runtime_bench/bench/{path.name}")
    return stream.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{TOP}/{name}")
            info.size, info.mode = len(data), 0o755 if name == "run.sh" else 0o644
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


TOP = "bgnn-bench"
"""The folder that a pack unpacks to."""


def reports(paths: Sequence[Path]) -> dict[Path, bytes]:
    """The converter's reports that lie beside files, for `Job.beside`."""
    from bgnn.runtime_bench.bench.running import report_of

    return {path: json.dumps(report).encode() for path in paths if (report := report_of(path))}
