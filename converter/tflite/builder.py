"""Writes one TFLite flatbuffer: tensors, constants, operators, signature, metadata.

It knows the container and nothing of PyTorch. The same calls in the same order give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from bgnn.converter.errors import ConversionError

_TENSOR_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}
_PLACEHOLDER_FOR_GREATER_OP_CODES = 127  # what deprecatedBuiltinCode, a signed byte, holds for codes above it
_BUFFER_ALIGNMENT = 16  # the schema's force_align, which the generated Python does not apply
_SIZE_LIMIT = 2**31 - 2**20  # flatbuffer offsets are 31 bits; 1 MiB is left for everything but constants


Place = tuple[int, int]
"""An axis: its tensor, and which it is."""


@dataclass(frozen=True)
class Codes:
    """What the integers of a tensor stand for: `(integer - zero) * scale`; several scales are those of one axis."""

    scales: tuple[float, ...]
    zero: int = 0
    axis: int = 0


@dataclass(frozen=True)
class Value:
    """A tensor of the file: its index in the subgraph, static shape and dtype (float32, int8, int32 or bool)."""

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype
    constant: bool = False
    codes: Codes | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)


class _AlignedBuffer(schema.BufferT):
    """A constant's bytes, at a file offset that is a multiple of 16."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        builder.StartVector(1, len(self.data), _BUFFER_ALIGNMENT)
        builder.head -= len(self.data)
        builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class FileBuilder:
    """Collects one subgraph and its constants; `finish` returns the file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._subgraph = schema.SubGraphT()
        self._subgraph.name, self._subgraph.tensors, self._subgraph.operators = "main", [], []
        self._buffers: list[schema.BufferT] = [schema.BufferT()]  # buffer 0 is empty: "not a constant"
        self._buffer_of: dict[bytes, int] = {}
        self._constant_of: dict[tuple[int, tuple[int, ...], np.dtype, Codes | None], Value] = {}
        self._codes: list[schema.OperatorCodeT] = []
        self._code_of: dict[tuple[int, str | None, int], int] = {}

    def tensor(self, name: str, shape: Sequence[int], dtype: np.dtype, codes: Codes | None = None) -> Value:
        """A tensor that an operator or the caller fills."""
        return self._tensor(name, tuple(int(n) for n in shape), np.dtype(dtype), 0, codes)

    def constant(self, name: str, array: np.ndarray, codes: Codes | None = None) -> Value:
        """A constant; equal ones share a tensor, and equal bytes a buffer."""
        array = np.asarray(array)
        if array.size == 0:
            raise ConversionError(f"constant {name} is empty: TFLite has no empty constants")
        buffer = self._buffer(np.ascontiguousarray(array).tobytes())
        key = (buffer, array.shape, array.dtype, codes)
        if key not in self._constant_of:
            self._constant_of[key] = self._tensor(name, array.shape, array.dtype, buffer, codes)
        return self._constant_of[key]

    def rename(self, value: Value, name: str) -> None:
        self._subgraph.tensors[value.index].name = name

    def builtin(
        self,
        op: str,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        options: Any = None,
    ) -> None:
        """A builtin operator: its name in the schema, and its options object (such as `AddOptionsT`)."""
        code = getattr(schema.BuiltinOperator, op)
        operator = self._operator(code, None, _version(op, inputs, options, outputs), inputs, outputs)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])

    def custom(self, op: str, inputs: Sequence[Value | None], outputs: Sequence[Value], options: bytes) -> None:
        """A custom operator with flexbuffer options; an unused input is None."""
        operator = self._operator(schema.BuiltinOperator.CUSTOM, op, 1, inputs, outputs)
        operator.customOptions = np.frombuffer(options, dtype=np.uint8)
        operator.customOptionsFormat = schema.CustomOptionsFormat.FLEXBUFFERS

    def finish(
        self,
        inputs: Sequence[tuple[str, Value]],
        outputs: Sequence[tuple[str, Value]],
        metadata: Mapping[str, str],
    ) -> bytes:
        """The file's bytes, with the signature "serving_default" and the metadata as UTF-8 buffers."""
        graph = self._subgraph
        graph.operators = _needed(graph.operators, [value.index for _, value in outputs])
        graph.inputs = np.array([value.index for _, value in inputs], dtype=np.int32)
        graph.outputs = np.array([value.index for _, value in outputs], dtype=np.int32)
        signature = schema.SignatureDefT()
        signature.signatureKey = "serving_default"
        signature.inputs = [_tensor_map(name, value) for name, value in inputs]
        signature.outputs = [_tensor_map(name, value) for name, value in outputs]

        model = schema.ModelT()
        model.version = 3
        model.description = self._name
        model.operatorCodes = self._codes
        model.subgraphs = [graph]
        model.signatureDefs = [signature]
        model.metadata = []
        for key, text in metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = key, self._buffer(text.encode())
            model.metadata.append(entry)
        model.buffers = self._buffers

        size = sum(len(data) for data in self._buffer_of)
        if size > _SIZE_LIMIT:
            raise ConversionError(
                f"the constants of {self._name} take {size} bytes, and a TFLite file holds less than 2 GiB: "
                "use a smaller model"
            )
        builder = flatbuffers.Builder(size + 65536)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    # Sizes that may change (resizing.py).

    def numbers(self) -> np.ndarray:
        """All numbers that sizes may stand in, int64: the tensors' shapes, and the int32 constants."""
        return np.concatenate([part.ravel() for part in self._numbers()]).astype(np.int64)

    def form(self) -> list[Any]:
        """All that the file is, but these."""
        tensors = [
            (t.type, len(t.shape), None if t.quantization is None else repr(vars(t.quantization)), self._kept(t))
            for t in self._subgraph.tensors
        ]
        operators = [
            (o.opcodeIndex, o.inputs.tolist(), o.outputs.tolist(), _settings(o)) for o in self._subgraph.operators
        ]
        return [tensors, operators]

    def follow(self, rest: np.ndarray, factors: np.ndarray, sizes: Sequence[int], places: Sequence[Place]) -> None:
        """Makes every number what the inputs' sizes say: `rest + factors @ sizes`, int64 `[n]` and `[n, k]`.

        `sizes`: what the tensors have before anybody resizes them. `places`: where a resized graph has each.
        """
        now = rest + factors @ np.array(sizes, np.int64)
        changes = np.asarray(factors.any(axis=1))
        start, parts = 0, self._numbers()
        new: dict[int, Value] = {}
        operators = self._subgraph.operators
        self._subgraph.operators = []
        axes = self.constant("sizes/axes", np.array([axis for _, axis in places], np.int32))
        for index, part in enumerate(parts):
            tensor = self._subgraph.tensors[index]
            here, data = slice(start, start + len(tensor.shape)), slice(start + len(tensor.shape), start + part.size)
            start += part.size
            if changes[here].any():
                tensor.shape = now[here].astype(np.int32)
                tensor.shapeSignature = np.where(changes[here], -1, now[here]).astype(np.int32)
            if not changes[data].any():
                continue
            shape = tuple(int(n) for n in tensor.shape)
            readers = [one for one in operators if index in one.inputs]
            if changes[data].sum() == 1 and all(self._is_reshape(one, index) for one in readers):
                new[index] = self.constant("sizes/shape", np.where(changes[data], -1, now[data]).astype(np.int32))
                continue
            terms = self.constant("sizes/terms", np.column_stack([rest[data], factors[data]]).astype(np.int32))
            new[index] = self.tensor(f"sizes/{index}", shape, np.dtype(np.int32))
            read = [Value(at, (), np.dtype(np.int32)) for at, _ in places]
            self.custom("BgnnSizes", [terms, axes, *read], [new[index]], b"")
        for one in operators:
            one.inputs = np.array([new[int(i)].index if int(i) in new else i for i in one.inputs], np.int32)
            if hasattr(one.builtinOptions, "newShape"):
                one.builtinOptions.newShape = None
        self._subgraph.operators += operators

    def _numbers(self) -> list[np.ndarray]:
        return [
            np.concatenate([t.shape, np.frombuffer(self._buffers[t.buffer].data, np.int32)])
            if t.buffer and t.type == schema.TensorType.INT32
            else np.asarray(t.shape)
            for t in self._subgraph.tensors
        ]

    def _kept(self, tensor: schema.TensorT) -> bytes | None:
        is_size = not tensor.buffer or tensor.type == schema.TensorType.INT32
        return None if is_size else bytes(self._buffers[tensor.buffer].data)

    def _is_reshape(self, operator: schema.OperatorT, index: int) -> bool:
        reshape = self._codes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.RESHAPE
        return reshape and operator.inputs.tolist()[1:] == [index]

    def _tensor(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, buffer: int, codes: Codes | None = None
    ) -> Value:
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = np.array(shape, dtype=np.int32)
        tensor.type = _TENSOR_TYPES[dtype]
        tensor.buffer = buffer
        tensor.hasRank = True  # tells a scalar, whose shape is empty too, from a tensor of unknown shape
        if codes is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.array(codes.scales, dtype=np.float32)
            tensor.quantization.zeroPoint = np.full(len(codes.scales), codes.zero, dtype=np.int64)
            tensor.quantization.quantizedDimension = codes.axis
        self._subgraph.tensors.append(tensor)
        return Value(len(self._subgraph.tensors) - 1, shape, dtype, buffer != 0, codes)

    def _buffer(self, data: bytes) -> int:
        if data not in self._buffer_of:
            self._buffer_of[data] = len(self._buffers)
            buffer = _AlignedBuffer()
            buffer.data = data
            self._buffers.append(buffer)
        return self._buffer_of[data]

    def _operator(
        self,
        code: int,
        custom: str | None,
        version: int,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value],
    ) -> schema.OperatorT:
        key = (code, custom, version)
        if key not in self._code_of:
            entry = schema.OperatorCodeT()
            entry.builtinCode = code
            entry.deprecatedBuiltinCode = min(code, _PLACEHOLDER_FOR_GREATER_OP_CODES)
            entry.customCode = custom
            entry.version = version
            self._code_of[key] = len(self._codes)
            self._codes.append(entry)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code_of[key]
        operator.inputs = np.array([-1 if v is None else v.index for v in inputs], dtype=np.int32)
        operator.outputs = np.array([v.index for v in outputs], dtype=np.int32)
        self._subgraph.operators.append(operator)
        return operator


def _needed(operators: Sequence[schema.OperatorT], outputs: Sequence[int]) -> list[schema.OperatorT]:
    """The operators that the outputs depend on: what one was written for may turn out to read something else."""
    wanted, kept = set(outputs), []
    for operator in reversed(operators):
        if not wanted.isdisjoint(int(index) for index in operator.outputs):
            wanted.update(int(index) for index in operator.inputs)
            kept.append(operator)
    return kept[::-1]


def _settings(operator: schema.OperatorT) -> str:
    options, own = operator.builtinOptions, operator.customOptions
    named = {} if options is None else {k: v for k, v in vars(options).items() if k != "newShape"}
    return repr((named, None if own is None else own.tobytes()))


def _tensor_map(name: str, value: Value) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, value.index
    return entry


_SINCE_INT8 = {  # the version that an operator of int8 has; of those that have had it from the start 1
    "ADD": 2, "SUB": 2, "MUL": 2, "MAXIMUM": 2, "MINIMUM": 2, "CONCATENATION": 2, "TRANSPOSE": 2, "SLICE": 2,
    "STRIDED_SLICE": 2, "GATHER": 2, "MEAN": 2, "SUM": 2, "REDUCE_MAX": 2, "REDUCE_MIN": 2, "RELU": 2, "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "TILE": 3, "CAST": 3, "DEQUANTIZE": 2, "BATCH_MATMUL": 2,
}  # fmt: skip


def _version(op: str, inputs: Sequence[Value], options: Any, outputs: Sequence[Value] = ()) -> int:
    """The operator version that the features used need, by TensorFlow Lite's own table (op_version.cc).

    A runtime refuses versions newer than it knows, and may misread features newer than the version.
    """
    rank = max(value.rank for value in inputs)
    first = inputs[0]
    int8 = any(value.dtype == np.int8 for value in (first, *outputs)) if op == "CAST" else first.dtype == np.int8
    broadcasts = len(inputs) > 1 and first.shape != inputs[1].shape
    version = _SINCE_INT8.get(op, 1) if int8 else 1
    if op == "BROADCAST_TO":
        version = 2
    elif op == "FULLY_CONNECTED" and len(inputs) == 2:
        version = 6
    elif (op == "FULLY_CONNECTED" and options.keepNumDims) or (op == "GATHER" and options.batchDims):
        version = 5
    elif op == "GATHER" and first.dtype == np.bool_:
        version = 3
    elif (op == "ABS" and first.dtype == np.int32) or (op == "SLICE" and rank > 4):
        version = 5
    elif op == "TRANSPOSE" and rank > 5:
        version = 6
    elif op in ("TRANSPOSE", "STRIDED_SLICE") and rank > 4:
        version = 4
    elif op in ("TRANSPOSE", "STRIDED_SLICE"):
        version = 3 if first.dtype == np.bool_ else version
    elif op in ("MAXIMUM", "MINIMUM", "SUB") and broadcasts and rank > 4:
        version = 3
    elif op == "DIV" and broadcasts and rank > 4:
        version = 2
    elif op == "DEQUANTIZE" and first.codes is not None and len(first.codes.scales) > 1:
        version = 5
    elif op == "MUL" and int8 and _grows(first, inputs[1], *outputs):
        version = 3
    return version


def _grows(a: Value, b: Value, out: Value) -> bool:
    """Whether a product of codes is rescaled by 1 or more."""
    assert a.codes is not None
    assert b.codes is not None
    assert out.codes is not None
    return a.codes.scales[0] * b.codes.scales[0] >= out.codes.scales[0]


def numel(shape: Sequence[int]) -> int:
    """The number of elements of a shape (1 for a scalar)."""
    return math.prod(shape)
