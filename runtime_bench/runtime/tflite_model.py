"""A TFLite file with its inputs by name: `TfliteModel("model.tflite").run(x=..., edge_index=...)`.

Needs NumPy and a TFLite runtime (delegate.py), no PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime import limits
from bgnn.runtime_bench.runtime.delegate import load_interpreter
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.graph_inputs import well_formed
from bgnn.runtime_bench.runtime.padded import padding_of


class TfliteModel:
    """A file that bgnn-convert wrote, on the installed TFLite runtime with our operators.

    `model`: a path, or the file's bytes. `threads`: of our operators and XNNPACK's. Raises UsageError for a missing
    file, and BgnnError, with the runtime's reason, for one that it refuses. `padding`: what the file says of the
    graphs that it takes; None where its inputs have one shape each.
    """

    def __init__(self, model: Path | str | bytes, threads: int = 1) -> None:
        self._interpreter = load_interpreter(model, threads)
        self.padding = padding_of(model if isinstance(model, bytes) else Path(model).read_bytes())
        names = self.padding.input_names if self.padding else [one["name"] for one in _input_details(self._interpreter)]
        self.input_names: list[str] = names

    def run(self, /, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the file once; returns the outputs by name. `inputs`: by the file's names, or arr_0, arr_1 in its order.

        A graph may have fewer nodes, edges and graphs than the file has room for: the file's inputs are resized to it
        where they may be, else it is filled up, and the outputs have the rows of what is there. Raises UsageError where
        inputs do not fit, BgnnError where the runtime fails.
        """
        if self.padding is None:
            return run(self._interpreter, inputs)
        names = self.input_names
        with well_formed():
            arrays = self.padding.check(dict(zip(names, in_order(inputs, names), strict=True)))
            filled = dict(zip(names, self.padding.fill(arrays, self.padding.resizes), strict=True))
        if self.padding.resizes:
            resize(self._interpreter, filled)
        found = run(self._interpreter, filled)
        with well_formed():
            return dict(zip(found, self.padding.cut(list(found.values()), list(found), arrays), strict=False))


def resize(interpreter: Any, inputs: dict[str, np.ndarray]) -> None:
    """Gives the inputs of a file that allows it the shapes of these arrays, by name. Raises BgnnError where the runtime
    fails: for want of memory, as a rule."""
    changed = [one for one in _input_details(interpreter) if tuple(one["shape"]) != inputs[one["name"]].shape]
    try:
        for one in changed:
            interpreter.resize_tensor_input(one["index"], inputs[one["name"]].shape)
        if changed:
            interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise BgnnError(f"the runtime cannot resize the file's inputs: {str(error).strip()}") from error


def run(interpreter: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs the file once. `inputs`: by the file's input names, or `arr_0`, `arr_1`, ... in its order.

    A file is made for the shapes that it was converted with, and holds constants of these sizes (the rows of a batch,
    for one): resized it may answer, wrongly, so another shape is refused. Returns the outputs by name, in the file's
    order. Raises UsageError where names, shapes or dtypes do not fit, BgnnError where the runtime fails.
    """
    details = _input_details(interpreter)
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


def _input_details(interpreter: Any) -> list[dict[str, Any]]:
    try:
        return list(interpreter.get_input_details())
    except ValueError as error:  # names that are no UTF-8, types without a NumPy one
        raise BgnnError(f"the file's inputs cannot be described: {error}") from error


def in_order(inputs: dict[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    """The arrays in the order of the file's input `names`. Raises UsageError that names each missing or unknown one."""
    positional = [f"arr_{i}" for i in range(len(names))]
    keys = positional if set(inputs) == set(positional) else list(names)
    missing, unknown = [key for key in keys if key not in inputs], [key for key in inputs if key not in keys]
    if missing or unknown:
        parts = [f"{what} {', '.join(found)}" for what, found in (("missing", missing), ("unknown", unknown)) if found]
        raise UsageError(f"the file's inputs are {', '.join(names)}; in the arrays given: {'; '.join(parts)}")
    return [inputs[key] for key in keys]
