"""Larq Compute Engine's interpreter (LCE), which binary files are compared with: behind LiteRT's interface.

It takes the model as bytes and runs with arrays in the file's own input order, returning outputs in the file's
own output order.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bgnn.runtime_bench.bench import lce_worker
from bgnn.runtime_bench.bench.measure import Elapsed
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.tflite_runner import check_inputs

KERNELS = ("indirect", "default", "reference")


class Interpreter(Protocol):
    """What both runtimes offer. Shapes and dtypes are in the file's order; the shapes are static."""

    input_shapes: list[tuple[int, ...]]
    input_dtypes: list[np.dtype]
    output_shapes: list[tuple[int, ...]]
    output_dtypes: list[np.dtype]

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]: ...


def lce_python() -> Path:
    """The Python that has larq-compute-engine: BGNN_LCE_PYTHON's, or that of .venv-lce in the checkout.

    Raises BgnnError where there is none.
    """
    chosen = os.environ.get("BGNN_LCE_PYTHON")
    python = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / ".venv-lce" / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise BgnnError(
            f"Larq Compute Engine's interpreter needs a Python of its own and {python} is not there: run `make setup` "
            "in a checkout, or name a Python with 'numpy<2' and larq-compute-engine==0.16.0 in BGNN_LCE_PYTHON"
        )
    return python


class LceProcess:
    """A running `lce_worker.py`, which holds any number of models; it ends with this object, or with this process.

    `peak_bytes` is the largest resident size that it has had, as of its last reply.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._models = itertools.count()
        self._unused: list[int] = []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this object)
        # -I: this process's PYTHONPATH is not meant for another environment.
        command = [str(lce_python()), "-I", lce_worker.__file__]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors)
        self._stop = weakref.finalize(self, _stop, self._process)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def open(self, owner: object, model_bytes: bytes, **options: Any) -> tuple[int, dict[str, Any]]:
        """Opens a file for as long as `owner` lives; its number, and LCE's shapes and dtypes."""
        model = next(self._models)
        # Told with the next file: the end of an owner may come at any moment, even between a request and its reply.
        unused = self._unused[:]
        del self._unused[: len(unused)]
        found, _ = self.ask({"do": "open", "model": model, "unused": unused, **options}, model_bytes)
        weakref.finalize(owner, self._unused.append, model)
        return model, found

    def ask(self, request: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Sends a request and waits for the reply. Raises BgnnError with LCE's reason, or where the process died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            lce_worker.send(self._process.stdin, request, body)
            reply, answer = lce_worker.receive(self._process.stdout)
        except (OSError, EOFError) as error:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise BgnnError(f"Larq Compute Engine's process ended (exit code {code}): {said}") from error
        self.peak_bytes = reply["peak_bytes"]
        if "error" in reply:
            raise BgnnError(reply["error"])
        return reply, answer


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The worker leaves when its input ends; one that hangs is killed."""
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(OSError):  # a request that never left, to a process that died
            stream.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_shared: dict[int, LceProcess] = {}


def _shared_process() -> LceProcess:
    """One process for all models, started anew after it died. A forked child must not share its parent's pipes."""
    process = _shared.get(os.getpid())
    if process is None or not process.alive:
        process = _shared[os.getpid()] = LceProcess()
    return process


class LceInterpreter:
    """Runs a TFLite file, with or without Lce* ops, on Larq Compute Engine's own interpreter: the oracle of tests.

    It runs in another Python (`lce_python`), since LCE needs numpy < 2. `model_bytes`: the flatbuffer. `kernel`: the
    LceBconv2d implementation, one of "indirect" (fastest on x86), "default" or "reference". `xnnpack`: hand float ops
    to XNNPACK. `process`: where to run it, else one process for all. `elapsed` is the last run's time in there,
    without the way there and back. Raises BgnnError when LCE is missing or refuses the file.
    """

    def __init__(
        self,
        model_bytes: bytes,
        num_threads: int = 1,
        kernel: str = "indirect",
        xnnpack: bool = True,
        process: LceProcess | None = None,
    ) -> None:
        if kernel not in KERNELS:
            raise UsageError(f"kernel {kernel!r} is none of {', '.join(KERNELS)}")
        self._process = process or _shared_process()
        self.elapsed = Elapsed(0, 0)
        try:
            self._model, found = self._process.open(
                self, model_bytes, threads=num_threads, kernel=kernel, xnnpack=xnnpack
            )
        except BgnnError as error:
            raise BgnnError(f"Larq Compute Engine refuses the file: {error}") from error
        self.input_shapes = [tuple(shape) for shape in found["input_shapes"]]
        self.output_shapes = [tuple(shape) for shape in found["output_shapes"]]
        self.input_dtypes = [np.dtype(dtype) for dtype in found["input_dtypes"]]
        self.output_dtypes = [np.dtype(dtype) for dtype in found["output_dtypes"]]

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Runs the file once. `inputs` must have exactly the file's shapes and dtypes, else UsageError."""
        arrays = check_inputs(inputs, self.input_shapes, self.input_dtypes)
        try:
            took, outputs = self._process.ask({"do": "run", "model": self._model}, lce_worker.pack(arrays))
        except BgnnError as error:
            raise BgnnError(f"Larq Compute Engine failed while running the file: {error}") from error
        self.elapsed = Elapsed(took["wall_ms"], took["cpu_ms"])
        return lce_worker.unpack(outputs)
