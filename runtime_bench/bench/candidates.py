"""What runs a file: one row each. Rows are tried on any file of their kind; what refuses one says why."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bgnn.runtime_bench.bench.inputs import kind_of
from bgnn.runtime_bench.bench.lce import LceInterpreter, LceProcess
from bgnn.runtime_bench.bench.measure import Elapsed, Schedule, in_fresh_process, timed, versions_of
from bgnn.runtime_bench.runtime.delegate import load_delegate
from bgnn.runtime_bench.runtime.delegate import runtime as tflite_runtime
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.onnx_ops import runtime as onnx_runtime
from bgnn.runtime_bench.runtime.onnx_runner import has_own_operators, open_session
from bgnn.runtime_bench.runtime.padded import padding_of
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter


class Opened(Protocol):
    """A file on a runtime, with its inputs set."""

    def run(self) -> object:
        """One inference; the `Elapsed` of a process elsewhere, where that did the work."""

    def outputs(self) -> list[np.ndarray]:
        """Those of the last run."""

    def arena_bytes(self) -> int | None:
        """What the runtime has planned for tensors between operators; None where it does not tell."""


class _LiteRT:
    def __init__(self, content: bytes, threads: int, *, xnnpack: bool, delegate: bool) -> None:
        self._interpreter = LiteRTInterpreter(content, threads, xnnpack, delegate)
        self.arena_bytes = self._interpreter.arena_bytes
        padding = padding_of(content)
        self._resizes = padding is not None and padding.resizes
        self.outputs = self._interpreter.outputs
        self.run = self._interpreter.invoke

    def set(self, arrays: Sequence[np.ndarray]) -> None:
        if self._resizes:
            self._interpreter.resize(arrays)
        self._interpreter.set_inputs(*arrays)


class _Lce:
    """In a process of its own, or in the one that all share."""

    process: LceProcess | None = None

    def __init__(self, content: bytes, threads: int) -> None:
        self._interpreter = LceInterpreter(content, threads, process=self.process)
        self._arrays: Sequence[np.ndarray] = []
        self._outputs: list[np.ndarray] = []

    @classmethod
    def start(cls) -> None:
        """Files that are opened from now on are alone in a new process, which has LCE loaded."""
        cls.process = LceProcess()
        LceInterpreter(EMPTY["tflite"], process=cls.process)

    def set(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays

    def run(self) -> Elapsed:
        self._outputs = self._interpreter.run(*self._arrays)
        return self._interpreter.elapsed

    def outputs(self) -> list[np.ndarray]:
        return self._outputs

    def arena_bytes(self) -> int | None:
        return None


class _Onnx:
    def __init__(self, content: bytes, threads: int) -> None:
        self._session = open_session(content, threads)
        self._feeds: dict[str, np.ndarray] = {}
        self._outputs: list[np.ndarray] = []

    def set(self, arrays: Sequence[np.ndarray]) -> None:
        names = [one.name for one in self._session.get_inputs()]
        self._feeds = dict(zip(names, arrays, strict=True))

    def run(self) -> None:
        try:
            self._outputs = self._session.run(None, self._feeds)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise BgnnError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error

    def outputs(self) -> list[np.ndarray]:
        return [np.asarray(one) for one in self._outputs]

    def arena_bytes(self) -> int | None:
        return None  # its Python interface has no such figure


@dataclass(frozen=True)
class Candidate:
    """A runtime, set up in one way. `load` imports what it needs; `make` opens a file's content on some threads."""

    name: str
    kind: str
    make: Callable[[bytes, int], Any]
    load: Callable[[], object]
    own_operators: bool | None = None
    """Of ONNX files: whether it is for those with this project's operators, or for those without."""

    def fits(self, content: bytes) -> bool:
        """Whether it is for this file."""
        return self.own_operators is None or has_own_operators(content) == self.own_operators

    def check(self, content: bytes) -> None:
        """Raises BgnnError for a file that this is not for."""
        if not self.fits(content):
            raise BgnnError(f"the file has {'none' if self.own_operators else 'some'} of this project's operators")

    def open(self, content: bytes, threads: int, arrays: Sequence[np.ndarray]) -> Opened:
        """The file, ready to run. Raises BgnnError where the runtime is missing, or refuses the file."""
        opened = self.make(content, threads)
        opened.set(arrays)
        return opened


LITERT, LITERT_PLAIN = "LiteRT", "LiteRT without XNNPACK"
DELEGATE, DELEGATE_PLAIN = "LiteRT + ours", "LiteRT + ours without XNNPACK"
LCE, ONNX, ONNX_OURS = "LCE", "ONNX Runtime", "ONNX Runtime + ours"


CANDIDATES = (
    Candidate(LITERT, "tflite", partial(_LiteRT, xnnpack=True, delegate=False), tflite_runtime),
    Candidate(LITERT_PLAIN, "tflite", partial(_LiteRT, xnnpack=False, delegate=False), tflite_runtime),
    Candidate(DELEGATE, "tflite", partial(_LiteRT, xnnpack=True, delegate=True), load_delegate),
    Candidate(DELEGATE_PLAIN, "tflite", partial(_LiteRT, xnnpack=False, delegate=True), load_delegate),
    Candidate(LCE, "tflite", _Lce, _Lce.start),
    Candidate(ONNX, "onnx", _Onnx, onnx_runtime, False),
    Candidate(ONNX_OURS, "onnx", _Onnx, onnx_runtime, True),
)


def candidates_for(path: Path, content: bytes, names: Sequence[str] = ()) -> list[Candidate]:
    """Those of the file's kind, or those named. Raises UsageError for a name that none has, or none of this kind."""
    kind = kind_of(path, content)
    own = [row for row in CANDIDATES if row.kind == kind]
    unknown = [name for name in names if name not in {row.name for row in CANDIDATES}]
    if unknown:
        raise UsageError(f"no candidate {unknown[0]!r}: there are {', '.join(row.name for row in CANDIDATES)}")
    found = [row for row in own if not names or row.name in names]
    if not found:
        raise UsageError(f"{', '.join(names)} cannot run {path}: for it there are {', '.join(r.name for r in own)}")
    return found


# -------------------------------------------------------------------------------------- one candidate, in a new process

# A file with one operator, for what a runtime holds whatever it runs: |x| of one number.
EMPTY = {
    "tflite": zlib.decompress(
        base64.b85decode(
            "c-n1HI|{-;5PfQl5|?NZ#3F@vu(hxf3kwT-3AjqY1o21Gdjt<)>8ZR*oSmIW3=TXdJMS~u4FRm@%SnJSLW~e#07bJd9Qp>$fQR5ocoFUm"
            "phcY;sZDw8G9HgkN_<m7pK#WvTb%AUTfK{}hYS1c4(sVkmLolvt~lFeja%U}*lKWwnLEt22|77mN`JsA|9dNw<ICLq--56ttRy>$;uN)em"
            "2ct6E+u>k{5dxXGs%1xMPaC_H~-NO<;88jtqx6Xbk&#Db`6+Q=&{scowh#x0SS2-;{"
        )
    ),
    "onnx": b'\x08\x08:6\n\x0b\n\x01x\x12\x01y"\x03Abs\x12\x05emptyZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08'
    b"\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r",
}


@dataclass(frozen=True)
class Alone:
    """What one process did that ran one file with one candidate and nothing else."""

    init_ms: float | None
    """Opening the file, with the runtime loaded before."""
    first_ms: float
    warmup_ms: float | None
    """A run of those after the first, on average."""
    peak_bytes: int
    """The process's largest resident size, with Python, the runtime and the inputs."""
    empty_bytes: int
    """The same of a process that runs EMPTY, with the same inputs in memory."""
    arena_bytes: int | None


def run_alone(candidate: Candidate, path: Path, inputs: Path, threads: int, schedule: Schedule) -> Alone:
    """Runs a file in a fresh process. `inputs`: an .npz with its arrays in order. Raises BgnnError with the reason."""
    candidate.check(path.read_bytes())
    found, peak = _fresh(candidate, str(path), inputs, threads, schedule)
    empty, empty_peak = _fresh(candidate, None, inputs, threads, Schedule(warmup=1, warmup_seconds=0))
    return Alone(
        found["init_ms"], found["first_ms"], found["warmup_ms"], found["peak"] or peak, empty["peak"] or empty_peak,
        found["arena"],
    )  # fmt: skip


def _fresh(candidate: Candidate, path: str | None, inputs: Path, threads: int, how: Schedule) -> tuple[Any, int]:
    given = {
        "name": candidate.name, "path": path, "inputs": str(inputs), "threads": threads, "warmup": how.warmup,
        "seconds": how.warmup_seconds,
    }  # fmt: skip
    try:
        found, peak = in_fresh_process(f"{__name__}:alone", given, threads=threads)
    except RuntimeError as error:
        raise BgnnError(str(error).partition("\n")[0]) from error
    if "error" in found:
        raise BgnnError(found["error"])
    return found, peak


def _forget_peak() -> None:
    """What this process has held until now counts no longer, unless it still holds it. Linux and glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def alone(name: str, path: str | None, inputs: str, threads: int, warmup: int, seconds: float) -> dict[str, Any]:
    """What `run_alone` runs in the new process; the reason under "error" where there is one."""
    candidate = next(row for row in CANDIDATES if row.name == name)
    try:
        with np.load(inputs, allow_pickle=False) as archive:
            arrays = [archive[f"arr_{i}"] for i in range(len(archive.files))]
        content = EMPTY[candidate.kind] if path is None else Path(path).read_bytes()
        candidate.load()
        _forget_peak()
        start = time.perf_counter_ns()
        opened = candidate.make(content, threads)
        init = (time.perf_counter_ns() - start) / 1e6
        opened.set(arrays if path is not None else [np.ones(1, np.float32)])
        arena = opened.arena_bytes()
        first = timed(opened.run).wall_ms
        took = Schedule(warmup=max(1, warmup), warmup_seconds=seconds).warm_up(opened.run)
    except (BgnnError, OSError) as error:
        return {"error": str(error)}
    peak = _Lce.process.peak_bytes if _Lce.process is not None else None
    return {"init_ms": init, "first_ms": first, "warmup_ms": sum(took) / len(took), "arena": arena, "peak": peak}


def versions() -> dict[str, str]:
    """Of the packages that run files, and of this one."""
    found = versions_of("bgnn-runtime", "ai-edge-litert", "onnxruntime", "numpy", "torch", "torch-geometric")
    if os.environ.get("BGNN_ISA"):
        found["BGNN_ISA"] = os.environ["BGNN_ISA"]
    return found
