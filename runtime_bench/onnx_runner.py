"""Runs converted ONNX files: checks the inputs, lays out the edges as the file wants them, calls ONNX Runtime.

`OnnxModel("model.onnx").run(x=..., edge_index=...)`. Needs onnxruntime and NumPy, no PyTorch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.converter.errors import BgnnError, UsageError
from bgnn.runtime_bench import graphs, limits

_OWN_DOMAIN = b"bgnn"


class OnnxModel:
    """A file that bgnn-convert wrote, on ONNX Runtime's CPU kernels.

    `model`: a path, or the file's bytes. `threads`: of each operator. Raises BgnnError where the file cannot be
    read, was not written by bgnn-convert, or is refused by ONNX Runtime, with its reason.
    """

    def __init__(self, model: Path | str | bytes, threads: int = 1) -> None:
        self.session = _session(model, threads)
        properties = self.session.get_modelmeta().custom_metadata_map
        if "bgnn.inputs" not in properties:
            raise BgnnError("not a file of bgnn-convert: it has no property bgnn.inputs; run it with onnxruntime")
        self.properties: dict[str, str] = properties
        self._fed = {one.name for one in self.session.get_inputs()}
        try:
            self.inputs: list[dict[str, Any]] = json.loads(properties["bgnn.inputs"])
            self.tables: list[dict[str, Any]] = json.loads(properties.get("bgnn.tables", "[]"))
            _check_inputs(self.inputs)
            _check_tables(self.tables, {one["name"]: one for one in self.inputs}, self._fed)
            int(properties.get("bgnn.max_degree", "0"))
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
            raise BgnnError(f"the file's properties bgnn.* are damaged ({reason}): convert the model again") from error
        self.input_names = [one["name"] for one in self.inputs]
        self.output_names = [one.name for one in self.session.get_outputs()]
        # of each output, the number of rows if it is fixed
        self._rows = {
            one.name: one.shape[0] if one.shape and isinstance(one.shape[0], int) else None
            for one in self.session.get_outputs()
        }

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the model on one graph, or one batch of them; returns the outputs by name.

        `inputs`: by the file's input names, such as x float32 [nodes, features] and edge_index int64 [2, edges].
        Raises UsageError for a missing input or one of another dtype or shape, an index out of range, or NaN, and
        BgnnError where ONNX Runtime fails.
        """
        arrays = self._checked(inputs)
        if self._nodes(arrays) != 0:
            return self.run_feeds(self._laid_out(arrays))
        # ONNX Runtime's convolutions refuse tensors without rows: one node takes their place, and goes again.
        dims = {one["name"]: one["shape"] for one in self.inputs}
        one_node = {
            name: np.zeros((1, *array.shape[1:]), array.dtype) if dims[name][0] == "nodes" else array
            for name, array in arrays.items()
        }
        results = self.run_feeds(self._laid_out(one_node))
        return {name: array[:0] if self._rows[name] is None else array for name, array in results.items()}

    def feeds(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """What ONNX Runtime is given for some inputs: checked, and with the tables that the file wants.

        It can be kept and given to `run_feeds` again, as long as the graph's edges stay as they are.
        """
        return self._laid_out(self._checked(inputs))

    def _laid_out(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds = {name: array for name, array in arrays.items() if name in self._fed}
        for wanted in self.tables:
            feeds.update(_tables(wanted, arrays))
        return feeds

    def run_feeds(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the model on what `feeds` gave."""
        try:
            results = self.session.run(None, feeds)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise BgnnError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
        return dict(zip(self.output_names, results, strict=True))

    def _nodes(self, arrays: dict[str, np.ndarray]) -> int | None:
        for one in self.inputs:
            if one["shape"] and one["shape"][0] == "nodes":
                return len(arrays[one["name"]])
        return None

    def _checked(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if set(inputs) != set(self.input_names):
            given = ", ".join(inputs) or "none"
            raise UsageError(f"the file's inputs are {', '.join(self.input_names)}; given were {given}")
        sizes: dict[str, tuple[int, str]] = {}
        arrays = {}
        for one in self.inputs:
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
                    raise UsageError(f"input {name} must be {wanted} [{shape}], got {list(array.shape)}")
                if isinstance(dim, str) and sizes.setdefault(dim, (size, name))[0] != size:
                    before = sizes[dim]
                    raise UsageError(f"input {name} has {size} {dim}, but input {before[1]} has {before[0]}")
            limits.check_numbers(name, array)
            arrays[name] = np.ascontiguousarray(array)
        for one in self.inputs:
            if one["index"] and "nodes" in sizes:
                graphs.check_index(arrays[one["name"]], sizes["nodes"][0], f"input {one['name']}")
        for name, array in arrays.items():
            if array.dtype == np.int64:
                self._check_degrees(name, array)
        return arrays

    def _check_degrees(self, name: str, index: np.ndarray) -> None:
        """32-bit sums were proven for nodes of so many edges, a self-loop included, and for no more."""
        limit = int(self.properties.get("bgnn.max_degree", "0"))
        for row in index if index.ndim == 2 else [index]:
            if 0 < limit <= len(row) and row.min() >= 0 and np.bincount(row).max() >= limit:
                raise UsageError(
                    f"input {name} names one node {int(np.bincount(row).max())} times: the file's 32-bit sums hold for "
                    f"fewer than {limit} edges of a node"
                )


_DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")
_FIELDS = ("position", "counts", "widths", "order", "list"), ("rows", "items", "others", "places")


def _check_inputs(inputs: Any) -> None:
    """Raises KeyError, TypeError or ValueError unless this is what emit.py writes as "bgnn.inputs"."""
    _require(isinstance(inputs, list) and all(isinstance(one, dict) for one in inputs), "bgnn.inputs is no list")
    for one in inputs:
        _require(isinstance(one["name"], str) and one["dtype"] in _DTYPES, "an input without a name or a known type")
        _require(isinstance(one["index"], bool) and isinstance(one["shape"], list), "an input without a shape")
        _require(all(isinstance(dim, str) or _is_size(dim) for dim in one["shape"]), "a shape that is none")
    _require(len({one["name"] for one in inputs}) == len(inputs), "two inputs of one name")


def _check_tables(tables: Any, inputs: dict[str, dict[str, Any]], fed: set[str]) -> None:
    """The same for "bgnn.tables": what the host makes must be what the file takes, so its inputs bound the buckets."""
    _require(isinstance(tables, list) and all(isinstance(one, dict) for one in tables), "bgnn.tables is no list")
    for one in tables:
        index, row, size, fields = inputs[one["index"]], one["row"], one["size"], one["fields"]
        _require(index["dtype"] == "int64", "an index that is not int64")
        edges = len(index["shape"]) == 2 and index["shape"][0] == 2
        _require(edges if row is not None else len(index["shape"]) == 1, "an index of another rank")
        _require(row in (None, 0, 1) and not isinstance(row, bool), "a row that is neither 0 nor 1")
        _require(one["self_loops"] in (None, "one", "more", "none"), "unknown self-loops")
        _require(isinstance(one["powers_of_two"], bool), "powers_of_two is neither true nor false")
        _require(_is_size(one["buckets"]) and _is_size(one["block"]) and one["block"] >= 1, "sizes that are none")
        _require(isinstance(fields, list) and bool(fields), "a table without fields")
        _require(one["buckets"] >= 1, "a table without buckets")
        for field in fields:
            _require(isinstance(field, str) and field in (*_FIELDS[0], *_FIELDS[1]), "a field that is unknown")
            _require(row is not None or field not in ("list", "order", "others", "places"), "edges of no graph")
            places = [""] if field in _FIELDS[0] else (f".{number}" for number in range(one["buckets"]))
            for place in places:
                _require(f"{one['name']}{place}.{field}" in fed, f"a {field} that the file does not take")
        _require(
            isinstance(size, dict) and len(size.keys() & {"value", "input", "maximum"}) == 1, "a size that is none"
        )
        if "value" in size:
            _require(_is_size(size["value"]), "a size that is none")
        elif "input" in size:
            rank = len(inputs[size["input"]]["shape"])
            _require(_is_size(size["axis"]) and size["axis"] < rank, "an axis that the input does not have")
        else:
            _require(inputs[size["maximum"]]["dtype"] == "int64", "an index that is not int64")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _way_out(array: np.ndarray, wanted: np.dtype) -> str:
    if wanted == np.int64 and array.dtype.kind in "iuf":
        return ": indices are int64; cast them with .astype('int64')"
    return ": cast it with .astype('float32')" if wanted == np.float32 and array.dtype == np.float64 else ""


def _tables(wanted: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tables that one entry of the property "bgnn.tables" describes, by the names of the file's inputs."""
    index, size = arrays[wanted["index"]], _size(wanted["size"], arrays)
    settings = {key: wanted[key] for key in ("buckets", "block", "powers_of_two")}
    edges = index
    if wanted["row"] is None:
        made = graphs.segments(index, size, **settings)
    else:
        graphs.check_index(index, size, f"input {wanted['index']}")
        loops = wanted["self_loops"]
        edges = index if loops is None else graphs.with_self_loops(index, size, loops)
        made = graphs.tables(edges, size, target=wanted["row"], **settings)
    whole: dict[str, np.ndarray] = {"position": made.position, "counts": made.counts}
    whole["widths"] = np.array([bucket.width for bucket in made.buckets], np.float32)
    parts: dict[str, list[np.ndarray]] = {}
    if "places" in wanted["fields"]:
        whole["order"], parts["places"] = graphs.in_order(made, edges.shape[1])
        whole["list"] = edges[:, whole["order"]].astype(np.int32)
    feeds: dict[str, np.ndarray] = {}
    for field in wanted["fields"]:
        if field in whole:
            feeds[f"{wanted['name']}.{field}"] = whole[field]
            continue
        for number, bucket in enumerate(made.buckets):
            value = parts[field][number] if field in parts else getattr(bucket, field)
            feeds[f"{wanted['name']}.{number}.{field}"] = value
    return feeds


def _size(how: dict[str, Any], arrays: dict[str, np.ndarray]) -> int:
    if "value" in how:
        size = int(how["value"])
    elif "input" in how:
        size = int(arrays[how["input"]].shape[how["axis"]])
    else:
        size = int(arrays[how["maximum"]].max(initial=-1)) + 1
    limits.check_bytes(f"a table of {size} nodes", 8 * size)
    return size


def _session(model: Path | str | bytes, threads: int) -> Any:
    limits.check_threads("threads", threads)
    if isinstance(model, bytes):
        data = model
    else:
        try:
            data = Path(model).read_bytes()
        except OSError as error:
            raise BgnnError(f"cannot read {model}: {error.strerror or error}") from error
    try:
        import onnxruntime
    except ImportError as error:
        raise BgnnError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    if _has_own_operators(data):
        from bgnn.runtime_bench.onnx_ops import register_ops

        register_ops(options)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BgnnError(f"ONNX Runtime refuses the file: {' '.join(str(error).split())}") from error


def _has_own_operators(model: bytes) -> bool:
    """Whether the file imports the domain `bgnn`, read from the protobuf's outermost fields alone."""
    at = 0
    while at < len(model):
        tag, at = _varint(model, at)
        if tag & 7 == 0:
            _, at = _varint(model, at)
        elif tag & 7 == 2:
            length, at = _varint(model, at)
            # opset_import is field 8 of a ModelProto; its domain is field 1
            if tag >> 3 == 8 and bytes([0x0A, len(_OWN_DOMAIN)]) + _OWN_DOMAIN in model[at : at + length]:
                return True
            at += length
        else:
            return False  # not an ONNX file; ONNX Runtime says so
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place of a protobuf, and the place after it."""
    number = shift = 0
    while at < len(data):
        byte = data[at]
        if shift > 63:  # no number of a protobuf is longer; ONNX Runtime says so
            return 0, len(data)
        number, at, shift = number | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            break
    return number, at
