"""Writes one ONNX model: operators, constants, bodies of control flow, metadata.

It knows the container and nothing of PyTorch. The same calls in the same order give the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bgnn.converter.errors import ConversionError

OPSET = 18  # the least with ReduceMax over given axes, ScatterElements(max) and BitwiseXor: ONNX Runtime 1.14 and later
IR_VERSION = 8
CONTRIB = "com.microsoft"
OWN = "bgnn"
_SIZE_LIMIT = 2**31 - 2**20  # a protobuf holds less than 2 GiB


@dataclass(frozen=True)
class Value:
    """A tensor of the file: its name and dtype, and its numbers where it is a constant."""

    name: str
    dtype: np.dtype
    array: np.ndarray | None = None


class ModelBuilder:
    """Collects the operators of one graph and its constants; `finish` returns the file.

    Inside `with builder.body() as body:` operators go into a body (of a Scan), which reads tensors of the graph
    around it by their names.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._inputs: list[onnx.ValueInfoProto] = []
        self._scopes: list[list[onnx.NodeProto]] = [[]]
        self._initializers: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._taken: set[str] = set()
        self._prefix = ""
        self._domains: set[str] = set()

    @contextmanager
    def named_after(self, prefix: str) -> Iterator[None]:
        """Tensors made in the block are named `prefix/...`."""
        before, self._prefix = self._prefix, prefix
        try:
            yield
        finally:
            self._prefix = before

    def input(self, name: str, dtype: np.dtype, dims: Sequence[int | str]) -> Value:
        """A graph input; a dimension given as text is dynamic."""
        self._taken.add(name)
        self._inputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), list(dims)))
        return Value(name, np.dtype(dtype))

    def constant(self, array: np.ndarray | np.generic, name: str = "constant") -> Value:
        """A constant; equal ones are stored once."""
        array = np.array(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._initializers:
            self._initializers[key] = Value(self._unique(name), array.dtype, array)
        return self._initializers[key]

    def op(
        self,
        op: str,
        inputs: Sequence[Value | None],
        dtype: np.dtype | Sequence[np.dtype],
        *,
        domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> Any:
        """Adds an operator; returns its output, or a tuple where several dtypes are given. None: an input left out."""
        dtypes = [np.dtype(dtype)] if isinstance(dtype, (np.dtype, type)) else [np.dtype(d) for d in dtype]
        stem = f"{self._prefix}/{op}" if self._prefix else op
        outputs = [Value(self._unique(name or stem), d) for d in dtypes]
        node = helper.make_node(
            op,
            [value.name if value is not None else "" for value in inputs],
            [value.name for value in outputs],
            name=outputs[0].name,
            domain=domain,
        )
        # In the order of their names: equal models are equal files.
        node.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
        self._domains.add(domain)
        self._scopes[-1].append(node)
        return outputs[0] if isinstance(dtype, (np.dtype, type)) else tuple(outputs)

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Operators added in the block go to the body, whose nodes the block is given."""
        self._scopes.append([])
        try:
            yield self._scopes[-1]
        finally:
            self._scopes.pop()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Operators added in the block go to the graph, also within a body."""
        self._scopes.append(self._scopes[0])
        try:
            yield
        finally:
            self._scopes.pop()

    def fresh(self, name: str, dtype: np.dtype) -> Value:
        """A tensor that the caller declares, such as a body's input."""
        return Value(self._unique(f"{self._prefix}/{name}"), np.dtype(dtype))

    @staticmethod
    def graph(
        name: str, nodes: Sequence[onnx.NodeProto], inputs: Sequence[Value], outputs: Sequence[Value]
    ) -> onnx.GraphProto:
        """A body as the attribute of a control-flow operator."""

        def infos(values: Sequence[Value]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(v.name, _onnx_type(v.dtype), None) for v in values]

        return helper.make_graph(list(nodes), name, infos(inputs), infos(outputs))

    def finish(
        self,
        outputs: Sequence[tuple[Value, Sequence[int | str] | None]],
        metadata: Mapping[str, str],
        kept_inputs: Collection[str] = (),
    ) -> bytes:
        """The file's bytes; `outputs` with their dimensions, `metadata` as the model's properties.

        Operators and inputs that no output needs are left out, but for `kept_inputs`.
        """
        size = sum(value.array.nbytes for value in self._initializers.values() if value.array is not None)
        if size > _SIZE_LIMIT:
            raise ConversionError(
                f"the constants of {self._name} take {size} bytes, and an ONNX file holds less than 2 GiB: "
                "use a smaller model"
            )
        nodes = _needed(self._scopes[0], {value.name for value, _ in outputs})
        used = _names_read(nodes) | {value.name for value, _ in outputs}
        for node in nodes:  # the places of edges, which the operator spares itself where nobody reads them
            if node.domain == OWN and node.op_type == "CooToCsr" and node.output[-1] not in used:
                del node.output[-1]
        graph = helper.make_graph(
            nodes,
            self._name,
            [info for info in self._inputs if info.name in used or info.name in kept_inputs],
            [
                helper.make_tensor_value_info(v.name, _onnx_type(v.dtype), None if dims is None else list(dims))
                for v, dims in outputs
            ],
            [
                numpy_helper.from_array(v.array, v.name)
                for v in self._initializers.values()
                if v.name in used and v.array is not None
            ],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(self._domains - {""})]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="bgnn-convert")
        for key in sorted(metadata):
            entry = model.metadata_props.add()
            entry.key, entry.value = key, metadata[key]
        onnx.checker.check_model(model)
        return model.SerializeToString(deterministic=True)

    def made(self, outputs: Collection[Value]) -> set[str]:
        """The names of the tensors that operators give on the way to some outputs."""
        return {name for node in _needed(self._scopes[0], {v.name for v in outputs}) for name in node.output}

    def _unique(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._taken:
            count += 1
            unique = f"{name}_{count}"
        self._taken.add(unique)
        return unique


def _needed(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The operators that lead to some outputs, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= _names_read([node])
    return kept[::-1]


def _names_read(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                names |= _names_read(attribute.g.node) | {output.name for output in attribute.g.output}
    return names


def _onnx_type(dtype: np.dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
