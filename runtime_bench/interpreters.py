"""The two runtimes that emitted TFLite files run on: stock LiteRT, with our delegate where a file needs it, and Larq
Compute Engine's interpreter (LCE), to compare with.

Both take the model as bytes and run with arrays in the file's own input order, returning outputs in the
file's own output order.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bgnn.converter.errors import BgnnError, UsageError
from bgnn.runtime_bench import lce_worker
from bgnn.runtime_bench.measure import Elapsed

KERNELS = ("indirect", "default", "reference")


class Interpreter(Protocol):
    """What both runtimes offer. Shapes and dtypes are in the file's order; the shapes are static."""

    input_shapes: list[tuple[int, ...]]
    input_dtypes: list[np.dtype]
    output_shapes: list[tuple[int, ...]]
    output_dtypes: list[np.dtype]

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]: ...


def _check_inputs(
    inputs: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype]
) -> list[np.ndarray]:
    """The inputs as contiguous arrays, or one UsageError that lists each that does not fit the file."""
    if len(inputs) != len(shapes):
        raise UsageError(f"the file takes {len(shapes)} inputs, {len(inputs)} were given")
    arrays = [np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array) for array in inputs]
    wrong = [
        f"input {i} must be {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}"
        for i, (array, shape, dtype) in enumerate(zip(arrays, shapes, dtypes, strict=True))
        if array.shape != shape or array.dtype != dtype
    ]
    if wrong:
        raise UsageError("; ".join(wrong))
    return arrays


def lce_python() -> Path:
    """The Python that has larq-compute-engine: BGNN_LCE_PYTHON's, or that of .venv-lce in the checkout.

    Raises BgnnError where there is none.
    """
    chosen = os.environ.get("BGNN_LCE_PYTHON")
    python = Path(chosen) if chosen else Path(__file__).resolve().parent.parent / ".venv-lce" / "bin" / "python"
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
        arrays = _check_inputs(inputs, self.input_shapes, self.input_dtypes)
        try:
            took, outputs = self._process.ask({"do": "run", "model": self._model}, lce_worker.pack(arrays))
        except BgnnError as error:
            raise BgnnError(f"Larq Compute Engine failed while running the file: {error}") from error
        self.elapsed = Elapsed(took["wall_ms"], took["cpu_ms"])
        return lce_worker.unpack(outputs)


class LiteRTInterpreter:
    """Runs a TFLite file on stock LiteRT (ai-edge-litert), with or without XNNPACK.

    With `delegate`, our library adds LCE's and this project's operators; without, the file has builtin ops only.
    Raises BgnnError when the package is missing or the runtime refuses the file (as it does Lce* ops).
    """

    def __init__(self, model_bytes: bytes, num_threads: int = 1, xnnpack: bool = True, delegate: bool = False) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise BgnnError(
                f"ai-edge-litert cannot be imported ({error}): pip install ai-edge-litert==2.3.0"
            ) from error
        resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            if delegate:
                from bgnn.runtime_bench.delegate import load_interpreter

                self._wrapped = load_interpreter(
                    model_bytes, num_threads, float_kernels="xnnpack" if xnnpack else "builtin"
                )
            else:
                self._wrapped = Interpreter(
                    model_content=model_bytes, num_threads=num_threads, experimental_op_resolver_type=resolver
                )
            self._wrapped.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise BgnnError(f"LiteRT refuses the file: {str(error).strip()}") from error
        # Details come in the subgraph's order of inputs and outputs (a signature runner's are by name).
        inputs, outputs = self._wrapped.get_input_details(), self._wrapped.get_output_details()
        self._input_tensors = [detail["index"] for detail in inputs]
        self._output_tensors = [detail["index"] for detail in outputs]
        self.input_shapes = [tuple(int(n) for n in detail["shape"]) for detail in inputs]
        self.output_shapes = [tuple(int(n) for n in detail["shape"]) for detail in outputs]
        self.input_dtypes = [np.dtype(detail["dtype"]) for detail in inputs]
        self.output_dtypes = [np.dtype(detail["dtype"]) for detail in outputs]

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Runs the file once. `inputs` must have exactly the file's shapes and dtypes, else UsageError."""
        arrays = _check_inputs(inputs, self.input_shapes, self.input_dtypes)
        try:
            for tensor, array in zip(self._input_tensors, arrays, strict=True):
                self._wrapped.set_tensor(tensor, array)
            self._wrapped.invoke()
            return [self._wrapped.get_tensor(tensor) for tensor in self._output_tensors]
        except (RuntimeError, ValueError) as error:
            raise BgnnError(f"LiteRT failed while running the file: {str(error).strip()}") from error


def has_lce_ops(model_bytes: bytes) -> bool:
    """Whether the flatbuffer lists a custom operator whose name starts with `Lce`."""
    return _has_ops(model_bytes, b"Lce")


def has_bgnn_ops(model_bytes: bytes) -> bool:
    """Whether the flatbuffer lists one of this project's operators."""
    return _has_ops(model_bytes, b"Bgnn")


def _has_ops(model_bytes: bytes, prefix: bytes) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    if not schema.Model.ModelBufferHasIdentifier(model_bytes, 0):
        raise BgnnError("not a TFLite file: the identifier TFL3 is missing at byte 4")
    model = schema.Model.GetRootAs(model_bytes, 0)
    codes = (model.OperatorCodes(i).CustomCode() for i in range(model.OperatorCodesLength()))
    return any(code is not None and code.startswith(prefix) for code in codes)


def open_file(model_bytes: bytes, num_threads: int = 1, xnnpack: bool = True) -> LiteRTInterpreter:
    """Stock LiteRT, with our delegate if the file has LCE's operators or this project's."""
    delegate = has_lce_ops(model_bytes) or has_bgnn_ops(model_bytes)
    return LiteRTInterpreter(model_bytes, num_threads, xnnpack, delegate)


def run_file(
    model_bytes: bytes, inputs: Sequence[np.ndarray], num_threads: int = 1, xnnpack: bool = True
) -> list[np.ndarray]:
    """Opens the file as `open_file` does, runs it once and returns the outputs in the file's order."""
    return open_file(model_bytes, num_threads, xnnpack).run(*inputs)
