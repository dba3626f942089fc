"""Runs converted ONNX files: checks the inputs, lays out the edges as the file wants them, calls ONNX Runtime.

`OnnxModel("model.onnx").run(x=..., edge_index=...)`. Needs onnxruntime and NumPy, no PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime import graphs, limits, onnx_ops, saturation
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.graph_inputs import checked, list_of_entries, size_of, well_formed
from bgnn.runtime_bench.runtime.saturation import Saturation

_OWN_DOMAIN = b"bgnn"


class OnnxModel:
    """A file that bgnn-convert wrote, on ONNX Runtime's CPU kernels.

    `model`: a path, or the file's bytes. `threads`: of each operator. Raises BgnnError where the file cannot be
    read, was not written by bgnn-convert, or is refused by ONNX Runtime, with its reason.
    """

    def __init__(self, model: Path | str | bytes, threads: int = 1) -> None:
        data = _read(model)
        with well_formed():
            self.sums: list[dict[str, Any]] = list_of_entries(_property(data, "bgnn.sums") or "[]")
            for one in self.sums:
                if one["seen"] is not None and not 0 <= one["seen"] <= 1:
                    raise ValueError(f"a share of {one['seen']}")
            with_sums = saturation.with_outputs(data, [one["tensor"] for one in self.sums])
        self.saturation: list[Saturation] = []
        """Of the last `run`: the codes of each sum at an end of their range."""
        self.session = open_session(with_sums, threads)
        with well_formed():
            self._describe()

    def _describe(self) -> None:
        """What the session and the properties say of inputs and outputs. Names may be no UTF-8."""
        properties = self.session.get_modelmeta().custom_metadata_map
        if "bgnn.inputs" not in properties:
            raise BgnnError("not a file of bgnn-convert: it has no property bgnn.inputs; run it with onnxruntime")
        self.properties: dict[str, str] = properties
        self._fed = {one.name for one in self.session.get_inputs()}
        self.inputs: list[dict[str, Any]] = list_of_entries(properties["bgnn.inputs"])
        self.tables: list[dict[str, Any]] = list_of_entries(properties.get("bgnn.neighbour_tables", "[]"))
        int(properties.get("bgnn.max_degree", "0"))
        for one in self.tables:  # each bucket is an input
            if not 1 <= one["buckets"] <= len(self._fed) or not 1 <= one["block"] < 2**31:
                raise ValueError(f"a table of {one['buckets']} buckets")
        if "bgnn.tables" in properties:
            raise BgnnError("the file's neighbour tables are those of an earlier bgnn-convert: convert the model again")
        self.input_names = [str(one["name"]) for one in self.inputs]
        outputs = self.session.get_outputs()
        self.output_names = [one.name for one in outputs[: len(outputs) - len(self.sums)]]
        # of each output, the number of rows if it is fixed
        self._rows = {
            one.name: one.shape[0] if one.shape and isinstance(one.shape[0], int) else None
            for one in self.session.get_outputs()
        }

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the model on one graph, or one batch of them; returns the outputs by name.

        `inputs`: by the file's input names, such as x float32 [nodes, features] and edge_index int64 [2, edges].
        Raises UsageError for a missing input or one of another dtype or shape, an index out of range, or NaN, and
        BgnnError where ONNX Runtime fails. Where more sums saturate than on the example graph it warns
        (`SaturationWarning`); `saturation` then holds the counts.
        """
        with well_formed():
            return self._run(inputs)

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = self._checked(inputs)
        if self._nodes(arrays) != 0:
            found, self.saturation = self.run_counted(self._laid_out(arrays))
            saturation.warn(self.saturation)
            return found
        self.saturation = []
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
        with well_formed():
            return self._laid_out(self._checked(inputs))

    def _checked(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return checked(self.inputs, inputs, int(self.properties.get("bgnn.max_degree", "0")))

    def _laid_out(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds = {name: array for name, array in arrays.items() if name in self._fed}
        for wanted in self.tables:
            feeds.update(_tables(wanted, arrays))
        return feeds

    def run_counted(self, feeds: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[Saturation]]:
        """Runs the model on what `feeds` gave; the codes of its sums are counted, and nothing is said."""
        found = self._results([*self.output_names, *(one["tensor"] for one in self.sums)], feeds)
        counted = saturation.count(self.sums, found[len(self.output_names) :])
        return dict(zip(self.output_names, found, strict=False)), counted

    def run_feeds(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the model on what `feeds` gave; nothing is counted."""
        return dict(zip(self.output_names, self._results(self.output_names, feeds), strict=True))

    def _results(self, names: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return list(self.session.run(list(names), feeds))
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise BgnnError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error

    def _nodes(self, arrays: dict[str, np.ndarray]) -> int | None:
        for one in self.inputs:
            if one["shape"] and one["shape"][0] == "nodes":
                return len(arrays[one["name"]])
        return None


def _tables(wanted: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tables that an entry of the property "bgnn.neighbour_tables" describes, by the names of the file's inputs."""
    index, size = arrays[wanted["index"]], size_of(wanted["size"], arrays)
    limits.check_bytes(f"a table of {size} nodes", 8 * size)
    settings = {key: wanted[key] for key in ("buckets", "block", "powers_of_two")}
    edges = index
    if wanted["row"] is None:
        made = graphs.segments(index, size, **settings)
    else:
        edges, loops = graphs.join_edges(index, wanted.get("joined", [0, 1])), wanted["self_loops"]
        if loops is not None:
            edges = graphs.with_self_loops(edges, size_of(loops["nodes"], arrays), loops["kind"])
        others = int(edges[1 - wanted["row"]].max(initial=-1)) + 1  # checked against the rows there are
        made = graphs.tables(edges, size, target=wanted["row"], num_others=others, **settings)
    whole: dict[str, np.ndarray] = {"position": made.position, "counts": made.counts}
    whole["widths"] = np.array([bucket.width for bucket in made.buckets], np.float32)
    parts: dict[str, list[np.ndarray]] = {}
    if "places" in wanted["fields"]:
        whole["order"], parts["places"] = graphs.in_order(made)
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


def _read(model: Path | str | bytes) -> bytes:
    if isinstance(model, bytes):
        return model
    try:
        return Path(model).read_bytes()
    except OSError as error:
        raise BgnnError(f"cannot read {model}: {error.strerror or error}") from error


def open_session(data: bytes, threads: int) -> Any:
    """An InferenceSession on the CPU, with this project's operators where the file names them. Raises BgnnError, with
    the runtime's reason, for a file that it refuses."""
    limits.check_threads("threads", threads)
    onnxruntime = onnx_ops.runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    if has_own_operators(data):
        onnx_ops.register_ops(options)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise BgnnError(f"ONNX Runtime refuses the file: {' '.join(str(error).split())}") from error


def has_own_operators(model: bytes) -> bool:
    """Whether the file imports the domain `bgnn`."""
    # opset_import is field 8 of a ModelProto; its domain is field 1
    wanted = bytes([0x0A, len(_OWN_DOMAIN)]) + _OWN_DOMAIN
    return any(number == 8 and wanted in content for number, content in _messages(model))


def _property(model: bytes, key: str) -> str | None:
    """One of the model's properties, before ONNX Runtime has read it."""
    # metadata_props is field 14 of a ModelProto; its entries' key is field 1, the value field 2
    for number, content in _messages(model):
        if number == 14:
            entry = dict(_messages(content))
            if entry.get(1) == key.encode():
                return entry.get(2, b"").decode(errors="replace")
    return None


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The outermost fields of a protobuf that have a length: (number, content)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 == 2:
            length, at = _varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            return  # not an ONNX file; ONNX Runtime says so


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
