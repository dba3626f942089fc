"""Larq Compute Engine's interpreter as a process of its own, in an environment of its own (`make setup`: .venv-lce).

LCE 0.16 needs numpy < 2, and nothing else of this project does. So a Python that has LCE runs this script, and
`lce.LceInterpreter` talks to it over its standard input and output. The script imports numpy and nothing of
this project; the interpreter's shared object is loaded by its path, because LCE's package would import TensorFlow.

A message, in either direction, is a JSON header and a body, each after its length. Requests are `open` (body: a
TFLite file) and `run` (body: the inputs as .npz); a reply has an "error" or what was asked for.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

_LENGTHS = struct.Struct("<QQ")  # bytes of the header, bytes of the body


def send(stream: IO[bytes], header: dict[str, Any], body: bytes = b"") -> None:
    """Write one message and flush it."""
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read one message. Raises EOFError where the other side is gone."""
    header, body = _LENGTHS.unpack(_exactly(stream, _LENGTHS.size))
    return json.loads(_exactly(stream, header)), _exactly(stream, body)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("the other process ended")
    return data


def pack(arrays: Sequence[np.ndarray]) -> bytes:
    """Arrays, in order, as the bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, *arrays)
    return file.getvalue()


def unpack(body: bytes) -> list[np.ndarray]:
    """The arrays of `pack`."""
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        return [archive[f"arr_{i}"] for i in range(len(archive.files))]


def _load_binding() -> Any:
    """LCE's Python binding. Raises RuntimeError, with the remedy, where it is not there or cannot work."""
    remedy = f"{sys.executable} -m pip install 'numpy<2' larq-compute-engine==0.16.0"
    if int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeError(f"larq-compute-engine fails on every call with numpy {np.__version__}: {remedy}")
    package = importlib.util.find_spec("larq_compute_engine")  # does not execute the package
    if package is None or not package.submodule_search_locations:
        raise RuntimeError(f"larq-compute-engine is not installed for {sys.executable}: {remedy}")
    path = Path(package.submodule_search_locations[0]) / "tflite" / "python" / "interpreter_wrapper_lite.so"
    spec = importlib.util.spec_from_file_location("interpreter_wrapper_lite", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RuntimeError(f"larq-compute-engine has no {path}: {remedy}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Models:
    """The opened files, by the number that the client gave each."""

    def __init__(self) -> None:
        self._opened: dict[int, tuple[Any, bytes]] = {}

    def open(self, request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        for model in request["unused"]:
            del self._opened[model]
        kernel = request["kernel"]
        interpreter = _load_binding().LiteInterpreter(
            body, request["threads"], kernel == "reference", kernel == "indirect", request["xnnpack"]
        )
        # LCE reads constants from the file's memory as long as the interpreter lives.
        self._opened[request["model"]] = interpreter, body
        return {
            "input_shapes": [list(shape) for shape in interpreter.input_shapes],
            "output_shapes": [list(shape) for shape in interpreter.output_shapes],
            "input_dtypes": [np.dtype(dtype).str for dtype in interpreter.input_types],
            "output_dtypes": [np.dtype(dtype).str for dtype in interpreter.output_types],
        }, b""

    def run(self, request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        interpreter, _ = self._opened[request["model"]]
        inputs = unpack(body)
        cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
        outputs = interpreter.predict(inputs)
        end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
        return {"wall_ms": (end - start) / 1e6, "cpu_ms": (cpu_end - cpu_start) / 1e6}, pack(
            [np.asarray(output) for output in outputs]
        )

    def answer(self, request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """The reply to a request; whatever LCE raises becomes its "error"."""
        try:
            what = {"open": self.open, "run": self.run}[request["do"]]
            header, reply = what(request, body)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            header, reply = {"error": str(error).strip() or type(error).__name__}, b""
        return {**header, "peak_bytes": peak_bytes()}, reply


def peak_bytes() -> int:
    """This process's largest resident size so far, in bytes; 0 where there is no /proc."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except OSError:
        return 0


def main() -> None:
    """Answer requests until the client is gone. What LCE itself prints goes to standard error."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    models = Models()
    while True:
        try:
            request, body = receive(requests)
        except EOFError:
            return
        send(replies, *models.answer(request, body))


if __name__ == "__main__":
    main()
