"""`bgnn-run FILE --input in.npz`: runs a converted file on this device and writes its outputs. No PyTorch needed."""

from __future__ import annotations

import argparse
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from bgnn.converter.errors import BgnnError, UsageError
from bgnn.runtime_bench.delegate import load_interpreter
from bgnn.runtime_bench.saturation import SaturationWarning


def read_inputs(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name. Raises UsageError where it is none, or holds pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError(f"{path} is a single array: save it with np.savez(path, name=array)")
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not an .npz file of plain arrays: {error}") from error


def run(interpreter: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs the file once. `inputs`: by the file's input names, or `arr_0`, `arr_1`, ... in its order.

    An input of another shape than the file's resizes the graph. Returns the outputs by name, in the file's
    order. Raises UsageError where names, ranks or dtypes do not fit, BgnnError where the runtime fails.
    """
    details = interpreter.get_input_details()
    names = [detail["name"] for detail in details]
    positional = [f"arr_{i}" for i in range(len(names))]
    keys = positional if set(inputs) == set(positional) else names
    if set(inputs) != set(keys):
        raise UsageError(f"the file's inputs are {', '.join(names)}; the arrays are {', '.join(inputs) or 'none'}")
    arrays = [inputs[key] for key in keys]
    resized = False
    for array, detail in zip(arrays, details, strict=True):
        wanted = tuple(int(n) for n in detail["shape"])
        if array.dtype != detail["dtype"] or array.ndim != len(wanted):
            raise UsageError(
                f"input {detail['name']} must be {np.dtype(detail['dtype'])} {list(wanted)}, "
                f"got {array.dtype} {list(array.shape)}"
            )
        if array.shape != wanted:
            interpreter.resize_tensor_input(detail["index"], array.shape)
            resized = True
    try:
        if resized:
            interpreter.allocate_tensors()
        for array, detail in zip(arrays, details, strict=True):
            interpreter.set_tensor(detail["index"], np.ascontiguousarray(array))
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        raise BgnnError(f"the runtime failed: {str(error).strip()}") from error
    outputs = interpreter.get_output_details()
    return {detail["name"]: interpreter.get_tensor(detail["index"]) for detail in outputs}


def run_onnx(path: Path, inputs: dict[str, np.ndarray], threads: int) -> dict[str, np.ndarray]:
    """The same for an ONNX file, on ONNX Runtime; a graph network's neighbour tables are made on the way."""
    from bgnn.runtime_bench.onnx_runner import OnnxModel

    model = OnnxModel(path, threads)
    if set(inputs) == {f"arr_{i}" for i in range(len(model.input_names))}:
        inputs = {name: inputs[f"arr_{i}"] for i, name in enumerate(model.input_names)}
    return model.run(**inputs)


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
    try:
        outputs: dict[str, Any]
        if options.file.suffix == ".onnx":
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", SaturationWarning)
                outputs = run_onnx(options.file, read_inputs(options.input), options.threads)
            for one in caught:
                print(f"bgnn-run: warning: {one.message}", file=sys.stderr)
        else:
            outputs = run(load_interpreter(options.file, options.threads), read_inputs(options.input))
        if options.output is not None:
            try:
                with open(options.output, "wb") as file:
                    np.savez(file, **cast(dict[str, Any], outputs))
            except OSError as error:
                raise UsageError(f"cannot write {options.output}: {error.strerror}") from error
    except BgnnError as error:
        print(f"bgnn-run: {error}", file=sys.stderr)
        return error.exit_code
    for name, array in outputs.items():
        print(_summary(name, array))
    return 0


if __name__ == "__main__":
    sys.exit(main())
