"""`bgnn-run FILE --input in.npz`: runs a converted file on this device and writes its outputs; with `--stream`, on one
input after the other. No PyTorch needed."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bgnn.runtime_bench.runtime import limits, live, streams
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.outputs import Stopped, check_output, stops_as_errors, write_files
from bgnn.runtime_bench.runtime.saturation import SaturationWarning
from bgnn.runtime_bench.runtime.tflite_model import TfliteModel, in_order


def read_inputs(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name. Raises UsageError where it is none, holds pickled objects or too much."""
    return limits.read_npz(path, str(path))


class Opened:
    """A file, ready to run: `inputs`, the names of its inputs, and `run`, which takes them by name or place.

    Raises UsageError or BgnnError where the file cannot be read, or the runtime refuses it or is missing.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.inputs: Sequence[str]
        self.run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
        if path.suffix == ".onnx":
            onnx = OnnxModel(path, threads)
            self.inputs = onnx.input_names
            self.run = lambda inputs: onnx.run(**dict(zip(self.inputs, in_order(inputs, self.inputs), strict=True)))
        else:
            tflite = TfliteModel(path, threads)
            self.inputs = tflite.input_names
            self.run = lambda inputs: tflite.run(**inputs)

    def warned(self, inputs: dict[str, np.ndarray], item: str = "") -> dict[str, np.ndarray]:
        """`run`, whose warnings go to standard error, with the name of the item where there are several."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SaturationWarning)
            outputs = self.run(inputs)
        for one in caught:
            said = f"{item}: {one.message}" if item else one.message
            streams.complain(f"bgnn-run: warning: {said}")
        return outputs


def _summary(name: str, array: np.ndarray) -> str:
    line = f"{name}: {array.dtype} {list(array.shape)}"
    if array.ndim == 2 and array.shape[1] > 1 and len(array) <= 32:
        line += f", argmax {array.argmax(axis=1).tolist()}"
    return line


def _in_one_line(outputs: Mapping[str, np.ndarray]) -> str:
    return "; ".join(_summary(streams.one_line(name), array) for name, array in outputs.items())


_fail = partial(streams.fail, "bgnn-run")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (0; 1 the file or runtime failed; 2 the command is wrong)."""
    parser = argparse.ArgumentParser(prog="bgnn-run", description=__doc__)
    parser.add_argument("file", type=Path, help="a .tflite or .onnx file, as bgnn-convert writes them")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, help=".npz with the file's inputs by name")
    source.add_argument(
        "--stream",
        metavar="FOLDER|-",
        help="run every .npz of a folder, or the .npy arrays on standard input (-), and say how long each took",
    )
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
    if options.stream is not None:
        if options.output is not None:
            raise UsageError("--output takes the outputs of one --input; --stream prints them")
        opened = Opened(options.file, options.threads)
        live.stream(options.stream, len(opened.inputs), opened.warned, _in_one_line)
        return
    if options.output is not None:
        check_output(options.output, {"the model itself": options.file, "the input": options.input})
    inputs = read_inputs(options.input)
    outputs = Opened(options.file, options.threads).warned(inputs)

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


if __name__ == "__main__":
    sys.exit(main())
