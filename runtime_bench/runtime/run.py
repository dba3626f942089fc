"""`bgnn-run FILE --input in.npz`: runs a converted file on this device and writes its outputs. No PyTorch needed."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime import limits, streams
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.outputs import Stopped, check_output, stops_as_errors, write_files
from bgnn.runtime_bench.runtime.saturation import SaturationWarning


def read_inputs(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name. Raises UsageError where it is none, holds pickled objects or too much."""
    return limits.read_npz(path, str(path))


def run(interpreter: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs the file once. `inputs`: by the file's input names, or `arr_0`, `arr_1`, ... in its order.

    A file is made for the shapes that it was converted with, and holds constants of these sizes (the rows of a batch,
    for one): resized it may answer, wrongly, so another shape is refused. Returns the outputs by name, in the file's
    order. Raises UsageError where names, shapes or dtypes do not fit, BgnnError where the runtime fails.
    """
    try:
        details = interpreter.get_input_details()
    except ValueError as error:  # names that are no UTF-8, types without a NumPy one
        raise BgnnError(f"the file's inputs cannot be described: {error}") from error
    arrays = in_order(inputs, [detail["name"] for detail in details])
    for array, detail in zip(arrays, details, strict=True):
        limits.check_numbers(detail["name"], array)
    for array, detail in zip(arrays, details, strict=True):
        wanted, dtype = tuple(int(n) for n in detail["shape"]), np.dtype(detail["dtype"])
        if array.dtype != dtype or array.shape != wanted:
            way_out = (
                f": cast it with .astype('{dtype}')"
                if array.shape == wanted
                else ": the file is for this shape; convert the model for another one (--input, or --batch, --points)"
            )
            raise UsageError(
                f"input {detail['name']} must be {dtype} {list(wanted)}, got {array.dtype} {list(array.shape)}{way_out}"
            )
    try:
        for array, detail in zip(arrays, details, strict=True):
            interpreter.set_tensor(detail["index"], np.ascontiguousarray(array))
        interpreter.invoke()
        outputs = interpreter.get_output_details()
        return {detail["name"]: interpreter.get_tensor(detail["index"]) for detail in outputs}
    except (RuntimeError, ValueError) as error:
        raise BgnnError(f"the runtime failed: {str(error).strip()}") from error


def run_onnx(path: Path, inputs: dict[str, np.ndarray], threads: int) -> dict[str, np.ndarray]:
    """The same for an ONNX file, on ONNX Runtime; a graph network's neighbour tables are made on the way."""
    from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

    model = OnnxModel(path, threads)
    return model.run(**dict(zip(model.input_names, in_order(inputs, model.input_names), strict=True)))


def in_order(inputs: dict[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    """The arrays in the order of the file's input `names`. Raises UsageError that names each missing or unknown one."""
    positional = [f"arr_{i}" for i in range(len(names))]
    keys = positional if set(inputs) == set(positional) else list(names)
    missing, unknown = [key for key in keys if key not in inputs], [key for key in inputs if key not in keys]
    if missing or unknown:
        parts = [f"{what} {', '.join(found)}" for what, found in (("missing", missing), ("unknown", unknown)) if found]
        raise UsageError(f"the file's inputs are {', '.join(names)}; in the arrays given: {'; '.join(parts)}")
    return [inputs[key] for key in keys]


def _summary(name: str, array: np.ndarray) -> str:
    line = f"{name}: {array.dtype} {list(array.shape)}"
    if array.ndim == 2 and array.shape[1] > 1 and len(array) <= 32:
        line += f", argmax {array.argmax(axis=1).tolist()}"
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (0; 1 the file or runtime failed; 2 the command is wrong)."""
    parser = argparse.ArgumentParser(prog="bgnn-run", description=__doc__)
    parser.add_argument("file", type=Path, help="a .tflite or .onnx file, as bgnn-convert writes them")
    parser.add_argument("--input", type=Path, required=True, help=".npz with the file's inputs by name")
    parser.add_argument("--output", type=Path, help="write the outputs there, as .npz, by name")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    options = parser.parse_args(arguments)
    streams.make_safe()
    try:
        with stops_as_errors():
            _run(options)
        return 0
    except (Stopped, KeyboardInterrupt) as stop:
        return _fail(str(stop) or "interrupted", getattr(stop, "exit_code", 130))
    except BgnnError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail("out of memory: run the file on a smaller batch or graph", 1)


def _run(options: argparse.Namespace) -> None:
    if options.output is not None:
        check_output(options.output, {"the model itself": options.file, "the input": options.input})
    inputs = read_inputs(options.input)
    if options.file.suffix == ".onnx":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SaturationWarning)
            outputs = run_onnx(options.file, inputs, options.threads)
        for one in caught:
            streams.complain(f"bgnn-run: warning: {one.message}")
    else:
        from bgnn.runtime_bench.runtime.tflite_model import TfliteModel

        outputs = TfliteModel(options.file, options.threads).run(**inputs)

    def announce() -> None:
        with streams.results():
            for name, array in outputs.items():
                print(_summary(streams.one_line(name), array))

    write_files({} if options.output is None else {options.output: _npz(outputs)}, announce)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """As np.savez, which takes no array of the name `file`."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return data.getvalue()


def _fail(message: str, code: int) -> int:
    streams.complain(f"bgnn-run: {streams.one_line(message)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
