"""The inputs of graph networks: what a file says of them, and the checks that follow from it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime import graphs, limits
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError


def checked(
    described: Sequence[Mapping[str, Any]], inputs: Mapping[str, np.ndarray], max_degree: int
) -> dict[str, np.ndarray]:
    """The inputs as contiguous arrays, in the order of what a file says of them (`converter.file_inputs.describe`).

    Raises UsageError for a missing input or one of another dtype or shape, an index out of range, NaN, or a node of
    `max_degree` edges (0: any number).
    """
    names = [str(one["name"]) for one in described]
    if set(inputs) != set(names):
        given = ", ".join(inputs) or "none"
        raise UsageError(f"the file's inputs are {', '.join(names)}; given were {given}")
    sizes: dict[str, tuple[int, str]] = {}
    arrays = {}
    for one in described:
        name, array = one["name"], np.asarray(inputs[one["name"]])
        wanted = np.dtype(one["dtype"])
        shape = ", ".join(str(dim) for dim in one["shape"])
        if array.dtype != wanted:
            raise UsageError(f"input {name} must be {wanted} [{shape}], got {array.dtype}{_way_out(array, wanted)}")
        if array.ndim != len(one["shape"]):
            raise UsageError(f"input {name} must be {wanted} [{shape}], got {list(array.shape)}")
        for axis, dim in enumerate(one["shape"]):
            size = array.shape[axis]
            if isinstance(dim, int) and size != dim:
                raise UsageError(
                    f"input {name} must be {wanted} [{shape}], got {list(array.shape)}: the file has {dim} along "
                    f"axis {axis}; convert an example of {size}, or for any size (ONNX) with --open {name}={axis}"
                )
            if isinstance(dim, str) and sizes.setdefault(dim, (size, name))[0] != size:
                before = sizes[dim]
                raise UsageError(f"input {name} has {size} {dim}, but input {before[1]} has {before[0]}")
        for axis, least in one.get("least", []):
            if array.shape[axis] < least:
                raise UsageError(
                    f"input {name} is {list(array.shape)}: the model picks {least} of what is along axis {axis} "
                    f"(a k-NN search or topk), so it takes {least} or more there"
                )
        limits.check_numbers(name, array)
        arrays[name] = np.ascontiguousarray(array)
    for one in described:
        for index in one["indices"]:
            check_rows(arrays, one["name"], index["row"], index["below"])
    for name, array in arrays.items():
        if array.dtype == np.int64:
            _check_degrees(name, array, max_degree)
    return arrays


def _check_degrees(name: str, index: np.ndarray, limit: int) -> None:
    """32-bit sums were proven for nodes of so many edges, a self-loop included, and for no more."""
    for row in index if index.ndim == 2 else [index]:
        if 0 < limit <= len(row) and row.min() >= 0 and np.bincount(row).max() >= limit:
            raise UsageError(
                f"input {name} names one node {int(np.bincount(row).max())} times: the file's 32-bit sums hold for "
                f"fewer than {limit} edges of a node"
            )


def check_rows(arrays: Mapping[str, np.ndarray], name: str, row: int | None, below: Sequence[Any]) -> None:
    """Raises UsageError unless the values of an index input, or of one row of it, are those of rows that are there.

    `below`: how many rows each tensor has that they name rows of, as terms (`converter.sizes.Terms`).
    """
    values = arrays[name] if row is None else arrays[name][row]
    if values.size and values.min() < 0:
        bad = int(values[values < 0][0])
        raise UsageError(f"input {name} holds {bad}: indices are numbers of rows, from 0")
    for terms in below:
        size, where = size_of(terms, arrays), f"input {name}" if row is None else f"row {row} of input {name}"
        source = terms[0][1] if len(terms) == 1 and len(terms[0]) == 2 else {}
        counted = f"there are {size} rows"
        if source.get("axis") == 0:
            counted = f"there are {size} nodes" if row is None else f"{source['input']} has {size} rows"
        graphs.check_index(values, size, where, counted)


def size_of(terms: Sequence[Sequence[Any]], arrays: Mapping[str, np.ndarray]) -> int:
    """A size, as `converter.sizes.Terms` say how the inputs give it."""
    return sum(int(factor) * math.prod(_factor(one, arrays) for one in what) for factor, *what in terms)


def _factor(what: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> int:
    if "input" in what:
        return int(arrays[what["input"]].shape[what["axis"]])
    if "maximum" in what:
        return int(arrays[what["maximum"]].max(initial=-1))
    if "number" in what:
        return int(arrays[what["number"]])
    return (
        min(size_of(t, arrays) for t in what["least"])
        if "least" in what
        else max(size_of(t, arrays) for t in what["largest"])
    )


def _way_out(array: np.ndarray, wanted: np.dtype) -> str:
    if wanted == np.int64 and array.dtype.kind in "iuf":
        return ": indices are int64; cast them with .astype('int64')"
    return ": cast it with .astype('float32')" if wanted == np.float32 and array.dtype == np.float64 else ""


@contextlib.contextmanager
def well_formed() -> Iterator[None]:
    """What the properties say of a file is not trusted: whatever fails in following them is told as damage of them."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BgnnError(f"the file's properties bgnn.* are damaged ({reason}): convert the model again") from error


def list_of_entries(text: str) -> list[dict[str, Any]]:
    entries = json.loads(text)
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise ValueError("no list of entries")
    return entries
