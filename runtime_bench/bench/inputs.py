"""What a file is measured on: the user's arrays, or random ones that fit it (of graph files: valid graphs)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime import limits
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.graph_inputs import size_of, well_formed
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel, open_session
from bgnn.runtime_bench.runtime.padded import padding_of
from bgnn.runtime_bench.runtime.tflite_model import in_order
from bgnn.runtime_bench.runtime.tflite_runner import open_file

# Sizes that a file leaves open, where no array says them.
OPEN_SIZES = {"nodes": 1000, "edges": 5000}
_ONNX_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}


@dataclass(frozen=True)
class Inputs:
    """What the runtime is given, by the names that it has for it, in the file's order; and where it is from."""

    arrays: dict[str, np.ndarray]
    what: str


def kind_of(path: Path, content: bytes) -> str:
    """ "tflite" or "onnx". Raises BgnnError for a file that is neither."""
    if content[4:8] == b"TFL3":
        return "tflite"
    if path.suffix == ".onnx":
        return "onnx"
    raise BgnnError(f"{path} is neither a TFLite file (no identifier TFL3 at byte 4) nor called .onnx")


def inputs_for(path: Path, content: bytes, given: Mapping[str, np.ndarray] | None, seed: int) -> Inputs:
    """The arrays for a file. `given`: by the file's input names, or None for random ones.

    Raises UsageError where given arrays do not fit, and BgnnError where the file is refused, or where random arrays
    do not fit it.
    """
    rng = np.random.default_rng(seed)
    make = _tflite if kind_of(path, content) == "tflite" else _onnx
    if given is not None:
        arrays, note = make(content, dict(given), rng)
        return Inputs(arrays, f"given{note}")
    try:
        arrays, note = make(content, None, rng)
    except UsageError as error:
        raise BgnnError(f"no random inputs fit {path} ({error}): give it some with --input") from error
    return Inputs(arrays, f"random, seed {seed}{note}")


def _tflite(content: bytes, given: dict[str, np.ndarray] | None, rng: np.random.Generator) -> tuple[Any, str]:
    padding = padding_of(content)
    if padding is not None:
        with well_formed():
            arrays = given or _described(padding.inputs, padding.most, rng)
            arrays = padding.check(dict(zip(padding.input_names, in_order(arrays, padding.input_names), strict=True)))
            filled = padding.fill(arrays, padding.resizes)
            return dict(zip(padding.input_names, filled, strict=True)), _sizes(padding.inputs, arrays)
    opened = open_file(content)
    shapes = dict(zip(opened.input_names, zip(opened.input_shapes, opened.input_dtypes, strict=True), strict=True))
    if given is None:
        return {name: _random(shape, dtype, rng) for name, (shape, dtype) in shapes.items()}, ""
    return dict(zip(shapes, in_order(given, list(shapes)), strict=True)), ""


def _onnx(content: bytes, given: dict[str, np.ndarray] | None, rng: np.random.Generator) -> tuple[Any, str]:
    session = open_session(content, 1)
    if "bgnn.inputs" not in session.get_modelmeta().custom_metadata_map:
        inputs = session.get_inputs()
        if given is not None:
            return dict(
                zip([one.name for one in inputs], in_order(given, [one.name for one in inputs]), strict=True)
            ), ""
        open_axes = [axis for one in inputs for axis in one.shape if not isinstance(axis, int)]
        arrays = {
            one.name: _random([axis if isinstance(axis, int) else 1 for axis in one.shape], _dtype(one), rng)
            for one in inputs
        }
        return arrays, ", open axes of size 1" if open_axes else ""
    model = OnnxModel(content)
    with well_formed():
        arrays = given or _described(model.inputs, OPEN_SIZES, rng)
    arrays = dict(zip(model.input_names, in_order(arrays, model.input_names), strict=True))
    feeds = model.feeds(**arrays)
    return {one.name: feeds[one.name] for one in session.get_inputs()}, _sizes(model.inputs, arrays)


def _dtype(one: Any) -> np.dtype:
    try:
        return np.dtype(_ONNX_DTYPES.get(one.type) or one.type.removeprefix("tensor(").removesuffix(")"))
    except TypeError as error:
        raise BgnnError(f"input {one.name} is {one.type}, which cannot be made: only tensors of numbers can") from error


def _described(
    described: Sequence[Mapping[str, Any]], open_sizes: Mapping[str, int], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """A random graph (or cloud) for a file that says what its inputs are (`converter.file_inputs.describe`).

    Indices name rows that there are; a list of them (of nodes' graphs, say) goes up. A single integer is the number
    of nodes.
    """
    sizes: dict[str, int] = {}
    for one in described:
        least = dict(one.get("least", []))
        for axis, dim in enumerate(one["shape"]):
            if isinstance(dim, str):
                default = open_sizes.get(dim, 1 if axis == 0 else OPEN_SIZES["nodes"])
                sizes[dim] = max(sizes.get(dim, default), least.get(axis, 0))
    arrays: dict[str, np.ndarray] = {}
    for one in described:
        shape = [sizes[dim] if isinstance(dim, str) else int(dim) for dim in one["shape"]]
        array = _random(shape, np.dtype(one["dtype"]), rng)
        if array.dtype.kind == "i" and not shape:
            array = np.array(sizes.get("nodes", OPEN_SIZES["nodes"]), array.dtype)
        arrays[one["name"]] = array
    for one in described:
        array = arrays[one["name"]]
        for index in one["indices"]:
            rows = min((size_of(terms, arrays) for terms in index["below"]), default=1)
            place = slice(None) if index["row"] is None else index["row"]
            values = rng.integers(0, max(rows, 1), array[place].shape)
            array[place] = np.sort(values) if array.ndim == 1 else values
    return arrays


def _random(shape: Sequence[int], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """Normal floats; any codes of 8 bits; other integers and bools are 0 or 1, which most of what is indexed has."""
    limits.check_bytes("a random input", math.prod(shape) * dtype.itemsize)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype)
    if dtype.kind in "iub":
        wide = dtype.kind != "b" and dtype.itemsize == 1
        low, high = (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) if wide else (0, 1)
        return rng.integers(low, high, shape, endpoint=True).astype(dtype)
    raise BgnnError(f"an input is {dtype}, of which no random values are made: give it with --input")


def _sizes(described: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> str:
    """The open sizes that the arrays have, for people: ", 2708 nodes, 10556 edges"."""
    found = {
        dim: size
        for one in described
        for dim, size in zip(one["shape"], arrays[one["name"]].shape, strict=True)
        if isinstance(dim, str)
    }
    return "".join(f", {size} {dim}" for dim, size in found.items())
