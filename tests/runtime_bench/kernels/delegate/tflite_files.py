"""Helpers of this folder's tests: TFLite files of a few custom operators, with any shapes and options.

`lce` is Larq Compute Engine's own interpreter. It has no aarch64 wheel: with BGNN_RECORD=folder its outputs are stored,
and with BGNN_RECORDED=folder they are read again instead of running it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

import bgnn.runtime_bench
from bgnn.runtime_bench.bench.lce import LceInterpreter
from bgnn.runtime_bench.runtime import delegate
from bgnn.runtime_bench.runtime.errors import BgnnError

MAKEFILE = Path(bgnn.runtime_bench.__file__).resolve().parent / "kernels" / "delegate"
TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}


@cache
def build() -> None:
    """The delegate library, up to date; a cross-built one (BGNN_DELEGATE) is taken as it is."""
    if "BGNN_DELEGATE" not in os.environ:
        subprocess.run(["make", "-s", "-C", str(MAKEFILE)], check=True)


@dataclass
class Tensor:
    """A tensor of a file. `array`: a constant's values. `scale`, `zero_point`: for int8. `variable`: LiteRT keeps its
    memory from run to run."""

    shape: Sequence[int]
    dtype: Any = np.float32
    array: np.ndarray | None = None
    scale: float | None = None
    zero_point: int = 0
    variable: bool = False


def const(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, array)


def flex(options: Mapping[str, int]) -> bytes:
    """A flexbuffer map of integers; no options, no bytes."""
    if not options:
        return b""
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, number in options.items():
            builder.Int(key, number)
    return bytes(builder.Finish())


@dataclass
class Node:
    """A custom operator: its name, the numbers of its tensors (-1: left out), options as ints or as raw bytes."""

    name: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: Mapping[str, int] | bytes = field(default_factory=dict)


def file(tensors: Sequence[Tensor], nodes: Sequence[Node], inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
    """The bytes of a file with these tensors and operators."""
    graph = schema.SubGraphT()
    graph.name, graph.inputs, graph.outputs = "main", list(inputs), list(outputs)
    graph.tensors, graph.operators = [], []
    buffers, codes = [schema.BufferT()], []
    for number, tensor in enumerate(tensors):
        t = schema.TensorT()
        t.name, t.shape, t.type, t.buffer = f"t{number}", list(tensor.shape), TYPES[np.dtype(tensor.dtype)], 0
        t.isVariable = tensor.variable
        if tensor.array is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(tensor.array).tobytes(), np.uint8)
            buffers.append(buffer)
            t.buffer = len(buffers) - 1
        if tensor.scale is not None:
            t.quantization = schema.QuantizationParametersT()
            t.quantization.scale, t.quantization.zeroPoint = [tensor.scale], [tensor.zero_point]
        graph.tensors.append(t)
    for node in nodes:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode, code.version = node.name, 1
        codes.append(code)
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = len(codes) - 1, list(node.inputs), list(node.outputs)
        raw = node.options if isinstance(node.options, bytes) else flex(node.options)
        op.customOptions = np.frombuffer(raw, np.uint8) if raw else None
        graph.operators.append(op)
    model = schema.ModelT()
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], buffers, codes
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def one_op(name: str, inputs: Sequence[Tensor | None], out: Tensor, options: Mapping[str, int] | bytes = b"") -> bytes:
    """A file of one operator. The inputs that are not constants are the file's, None is left out (-1)."""
    present = [t for t in inputs if t is not None]
    numbers, count = [], 0
    for t in inputs:
        numbers.append(-1 if t is None else count)
        count += t is not None
    fed = [i for i, t in enumerate(present) if t.array is None]
    return file([*present, out], [Node(name, numbers, [count], options)], fed, [count])


def feed(interpreter: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs the interpreter, resizing it where an array's shape is new."""
    details = interpreter.get_input_details()
    assert len(details) == len(arrays)
    changed = [d for d, a in zip(details, arrays, strict=True) if tuple(d["shape"]) != a.shape]
    for detail, array in zip(details, arrays, strict=True):
        if detail in changed:
            interpreter.resize_tensor_input(detail["index"], array.shape)
    if changed:
        interpreter.allocate_tensors()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def run(data: bytes, *arrays: np.ndarray, threads: int = 1) -> list[np.ndarray]:
    """The file's outputs with our delegate in stock LiteRT."""
    build()
    return feed(delegate.load_interpreter(data, threads), arrays)


def lce(data: bytes, *arrays: np.ndarray, kernel: str = "reference") -> list[np.ndarray]:
    """What LCE's interpreter gives. Raises BgnnError where neither it nor a record of it is there."""
    key = hashlib.sha256(data + kernel.encode() + b"".join(a.tobytes() for a in arrays)).hexdigest()
    recorded, record = os.environ.get("BGNN_RECORDED"), os.environ.get("BGNN_RECORD")
    if recorded:
        path = Path(recorded) / f"{key}.npz"
        if not path.is_file():
            raise BgnnError(f"no record of this run of LCE in {recorded}")
        with np.load(path) as archive:
            return [archive[name] for name in archive.files]
    outputs = LceInterpreter(data, kernel=kernel).run(*arrays)
    if record:
        np.savez(Path(record) / f"{key}.npz", *outputs)
    return outputs


def packed(signs: np.ndarray) -> np.ndarray:
    """LCE's packing of the last axis: bit i of word w is signs[32 w + i] < 0."""
    channels = signs.shape[-1]
    bits = np.zeros((*signs.shape[:-1], -(-channels // 32) * 32), np.uint8)
    bits[..., :channels] = signs < 0
    return np.ascontiguousarray(np.packbits(bits, axis=-1, bitorder="little").view("<i4"))


def random_signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.choice(np.array([-1, 1], np.int8), shape)
