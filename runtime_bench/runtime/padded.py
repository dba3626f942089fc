"""Graphs for TFLite files, which have one size, or one a call: filled up to it, the results cut to what is there.

A file of a graph network says under "bgnn.graph" how many nodes, edges and graphs it takes at most. A smaller graph
gets rows of zeros behind its own, and the index -1 in the place of edges that are not there, which names no node. A
file whose inputs may be resized is given the graph's own numbers of nodes and edges, so that nothing is done for more;
but as no tensor may be empty, one row where there is none, and all graphs of a batch, which no input has an axis of.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime import limits
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.graph_inputs import checked, list_of_entries, size_of, well_formed

KEY = "bgnn.graph"
ABSENT = -1


class Padding:
    """How one file's inputs are filled up and its outputs are cut; `text`: what it has under `KEY`."""

    def __init__(self, text: str) -> None:
        told = json.loads(text)
        self.inputs: list[dict[str, Any]] = list_of_entries(json.dumps(told["inputs"]))
        self.most: dict[str, int] = {str(word): int(number) for word, number in told["most"].items()}
        self.outputs: list[list[dict[str, Any] | None]] = [list(axes) for axes in told["outputs"]]
        self.max_degree = int(told.get("max_degree", 0))
        self.resizes = told.get("resizes") is True
        self.why_not = str(told.get("padded", ""))
        self.input_names = [str(one["name"]) for one in self.inputs]

    def check(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs in the file's order, int32 indices as int64. Raises UsageError for what does not fit the file."""
        long = {one["name"] for one in self.inputs if one["dtype"] == "int64"}
        wide = {n: a.astype(np.int64) if n in long and a.dtype == np.int32 else a for n, a in inputs.items()}
        arrays = checked(self.inputs, wide, self.max_degree)
        for one in self.inputs:
            for size, word in zip(arrays[one["name"]].shape, one["shape"], strict=True):
                self._fits(word, size)
        for axes in self.outputs:
            for axis in axes:
                if axis is not None and "most" in axis:
                    self._fits(axis["most"], size_of(axis["rows"], arrays))
        return arrays

    def _fits(self, word: Any, size: int) -> None:
        if isinstance(word, str) and size > self.most[word]:
            raise UsageError(
                f"the graph has {size} {word}, and the file takes at most {self.most[word]}: convert the model with "
                f"--fixed {word}={size}"
            )

    def fill(self, arrays: Mapping[str, np.ndarray], resized: bool = False) -> list[np.ndarray]:
        """The file's inputs, of what `check` gave: as large as the file says, or to be `resized`."""
        filled = []
        for one in self.inputs:
            array = arrays[one["name"]]
            shape = list(array.shape)
            for axis, word in enumerate(one["shape"]):
                if isinstance(word, str):
                    shape[axis] = max(1, shape[axis]) if resized else self.most[word]
            limits.check_bytes(f"input {one['name']}", array.itemsize * int(np.prod(shape, dtype=np.int64)))
            dtype = np.int32 if array.dtype == np.int64 else array.dtype
            whole = np.full(shape, ABSENT if one["indices"] else 0, dtype=dtype)
            whole[tuple(slice(size) for size in array.shape)] = array
            filled.append(whole)
        return filled

    def cut(self, results: Sequence[np.ndarray], names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> list[Any]:
        """The rows of each output that are there. `results`: by `names`, what tells the edges that are there last."""
        by_name = dict(zip(names, results, strict=True))
        outputs = []
        for array, axes in zip(results, self.outputs, strict=False):
            for position, axis in enumerate(axes):
                if axis is None:
                    continue
                if "there" in axis:
                    index = by_name[axis["there"]]
                    below = np.iinfo(index.dtype).max if axis["below"] is None else size_of(axis["below"], arrays)
                    array = np.compress((index >= 0) & (index < below), array, position)
                else:
                    array = array.take(range(size_of(axis["rows"], arrays)), position)
            outputs.append(np.ascontiguousarray(array))
        return outputs


def padding_of(model: bytes) -> Padding | None:
    """How the graphs of a file are filled up; None for a file that is of no graph network, or takes one size alone."""
    with well_formed():
        text = metadata(model, KEY)
        return None if text is None else Padding(text)


def metadata(model: bytes, key: str) -> str | None:
    """The text that a TFLite file has under a key of its metadata. Reads the flatbuffer by itself: runtimes differ in
    what they bring for it. Raises BgnnError where the file is damaged."""
    try:
        tables = _vector(model, _root(model), 6)
        for table in tables:
            name = _field(model, table, 0)
            if name is not None and _bytes(model, _follow(model, name)) == key.encode():
                place = _field(model, table, 1)
                number = 0 if place is None else struct.unpack_from("<I", model, place)[0]
                data = _field(model, _vector(model, _root(model), 4)[number], 0)
                return "" if data is None else _bytes(model, _follow(model, data)).decode()
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise BgnnError(f"the file's metadata are damaged ({error}): convert the model again") from error
    return None


def _follow(data: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", data, place)[0])


def _root(data: bytes) -> int:
    return _follow(data, 0)


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a table's field stands."""
    offsets = table - struct.unpack_from("<i", data, table)[0]
    if offsets < 0:
        raise IndexError("a table points outside of the file")
    (size,) = struct.unpack_from("<H", data, offsets)
    at = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", data, offsets + at) if at < size else (0,)
    return table + offset if offset else None


def _vector(data: bytes, table: int, number: int) -> list[int]:
    """The tables of a field that is a vector of such."""
    place = _field(data, table, number)
    if place is None:
        return []
    start = _follow(data, place)
    (count,) = struct.unpack_from("<I", data, start)
    if count > len(data) // 4:
        raise IndexError("a vector is longer than the file")
    return [_follow(data, start + 4 + 4 * i) for i in range(count)]


def _bytes(data: bytes, start: int) -> bytes:
    (count,) = struct.unpack_from("<I", data, start)
    found = data[start + 4 : start + 4 + count]
    if len(found) != count:
        raise IndexError("a text is longer than the file")
    return found
