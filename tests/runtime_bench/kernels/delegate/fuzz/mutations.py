"""Changes to a TFLite file, where the delegate has to check it: its operators' options, tensors and constants.

The rest of the file stays as a runtime's own loader and operators want it, which are not ours to mend: they crash on
some files that are broken elsewhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from bgnn_files import OPS
from flatbuffers import flexbuffers
from tflite_files import MAKEFILE

HOSTILE = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    31,
    32,
    33,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    -1,
    -2,
    65535,
    65536,
    2**20,
    2**29,
    2**30,
]
HOSTILE += [2**31 - 1, 2**31 - 32, -(2**31)]
HOSTILE_64 = [*HOSTILE, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1, -(2**63)]
# Of runtime_bench/kernels/ops, which both runtimes have.
SHARED = re.findall(r'^    \{"(\w+)",', (MAKEFILE.parent / "ops" / "op_list.cc").read_text(), re.MULTILINE)
NAMES = [*OPS, *(f"Bgnn{op}" for op in SHARED), "LceQuantize", "LceDequantize", "LceBconv2d", "LceBMaxPool2d"]
TEXTS = ["", "sum", "max", "mean", "none", "add", "add_remaining", "\x00", "s" * 300]
SCALES = [0.0, -1.0, 1e-45, 1e38, 0.5, float("nan"), float("inf")]

# Beyond these a file is not run: a fuzzer has no time for it. From 2 GiB on every runtime must refuse it.
LONGEST_DIMENSION, LARGEST_BLOCK, REFUSED_BLOCK = 300, 1 << 20, 1 << 31

ITEM_BYTES = {
    schema.TensorType.FLOAT32: 4,
    schema.TensorType.INT32: 4,
    schema.TensorType.INT8: 1,
    schema.TensorType.BOOL: 1,
    schema.TensorType.UINT8: 1,
    schema.TensorType.INT16: 2,
    schema.TensorType.INT64: 8,
    schema.TensorType.FLOAT16: 2,
    schema.TensorType.FLOAT64: 8,
    schema.TensorType.UINT32: 4,
}
USUAL = list(ITEM_BYTES)[:4]
WHOLE = (schema.TensorType.INT32, schema.TensorType.INT64)


def read(data: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def write(model: schema.ModelT) -> bytes:
    """The file's bytes. A buffer with an offset has its data behind the flatbuffer, at an address of any kind."""
    outside = [buffer for buffer in model.buffers if buffer.offset]
    moved = [(buffer, buffer.data) for buffer in outside]
    for buffer in outside:
        buffer.data = None
    length, tail = len(packed(model)), b""
    for buffer, data in moved:
        tail += bytes(buffer.offset % 16)
        buffer.offset, buffer.size = length + len(tail), len(data)
        tail += data.tobytes()
    file = packed(model) + tail
    for buffer, data in moved:
        buffer.data = data
    return file


def packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def byte_size(tensor: schema.TensorT) -> int | None:
    """Of the tensor's shape and type; None where that is no size."""
    size = ITEM_BYTES.get(tensor.type)
    for dimension in tensor.shape if tensor.shape is not None else []:
        size = None if size is None or dimension < 0 else size * int(dimension)
    return size


def is_affordable(tensor: schema.TensorT) -> bool:
    """Whether a run with this tensor is over soon, because it is small or must be refused."""
    size = byte_size(tensor)
    if size is None or size >= REFUSED_BLOCK:
        return True
    return size <= LARGEST_BLOCK and all(dimension <= LONGEST_DIMENSION for dimension in tensor.shape)


def map_of(options: Mapping[str, Any]) -> bytes:
    """A flexbuffer map of integers and texts."""
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in options.items():
            (builder.String if isinstance(value, str) else builder.Int)(key, value)
    return bytes(builder.Finish())


class Mutator:
    """Changes `model` in place, at one random place a call."""

    def __init__(self, model: schema.ModelT, rng: random.Random) -> None:
        self.model, self.rng, self.graph = model, rng, model.subgraphs[0]
        custom = schema.BuiltinOperator.CUSTOM
        self.ops = [op for op in self.graph.operators if self.code(op).builtinCode == custom]
        # Shapes, axes and counts of LiteRT's own operators, which trust them: its RESHAPE writes past its dimensions
        # where the shape has 32 entries. No change reaches these tensors, so that every crash is one of ours.
        others = [op for op in self.graph.operators if self.code(op).builtinCode != custom]
        # Its ADD aborts where a tensor of int8 has no scale, its RESHAPE writes floats into an output of int8.
        self.theirs = {int(i) for op in others for i in (*op.inputs, *op.outputs)}
        # What BgnnSizes makes such numbers of is one of them, and the tensors that it counts stay small: LiteRT's
        # CONCATENATION writes where it got no memory.
        whole = {int(i) for op in others for i in op.inputs if i >= 0 and self.graph.tensors[i].type in WHOLE}
        makers = [op for op in self.ops if whole & set(map(int, op.outputs))]
        self.counted = [self.graph.tensors[i] for op in makers for i in op.inputs[2:] if i >= 0]
        self.kept = {
            int(i)
            for op in (*others, *makers)
            for i in op.inputs
            if i >= 0 and self.graph.tensors[i].type in WHOLE and self.data_of(self.graph.tensors[i]) is not None
        }
        changes = [
            (self.option, 5), (self.option_bytes, 2), (self.shape, 4), (self.channels, 3), (self.type, 1),
            (self.quantization, 1), (self.indices, 2), (self.values, 2), (self.buffer, 1), (self.constness, 1),
            (self.name, 0.3), (self.order, 0.3), (self.outside, 0.3), (self.variable, 0.2),
        ]  # fmt: skip
        self.changes, self.weights = zip(*changes, strict=True)

    def __call__(self) -> None:
        self.rng.choices(self.changes, self.weights)[0]()

    # ---- where

    def code(self, op: schema.OperatorT) -> schema.OperatorCodeT:
        return self.model.operatorCodes[op.opcodeIndex]

    def op(self) -> schema.OperatorT:
        return self.rng.choice(self.ops)

    def tensor(self, op: schema.OperatorT | None = None) -> schema.TensorT:
        numbers = self.numbers(op or self.op())
        return self.graph.tensors[self.rng.choice(numbers or [min(set(range(len(self.graph.tensors))) - self.kept)])]

    def numbers(self, op: schema.OperatorT) -> list[int]:
        """An operator's tensors, inputs first, that may be changed."""
        return [int(i) for i in (*op.inputs, *op.outputs) if 0 <= i < len(self.graph.tensors) and i not in self.kept]

    def constant(self) -> schema.TensorT | None:
        """A constant of one of our operators, or None in the few files without."""
        numbers = [i for op in self.ops for i in self.numbers(op) if i in op.inputs]
        constants = [t for t in (self.graph.tensors[i] for i in numbers) if self.data_of(t) is not None]
        return self.rng.choice(constants) if constants else None

    def data_of(self, tensor: schema.TensorT) -> np.ndarray | None:
        data = self.model.buffers[tensor.buffer].data
        return None if data is None or len(data) == 0 else np.asarray(data, np.uint8)

    def set_data(self, tensor: schema.TensorT, data: np.ndarray) -> None:
        """In a buffer of the tensor's own: others may share the one it has."""
        buffer = schema.BufferT()
        buffer.data = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1

    def fit(self, tensor: schema.TensorT) -> None:
        """Cuts or repeats a constant's bytes to what its shape and type need, without which every runtime refuses it;
        now and then not."""
        data, size = self.data_of(tensor), byte_size(tensor)
        if data is not None and size and size <= LARGEST_BLOCK and size != len(data) and self.rng.random() < 0.9:
            self.set_data(tensor, np.resize(data, size))

    # ---- what

    def option(self) -> None:
        """An option with another value, or gone, or one too many."""
        op = self.op()
        options = self.options_of(op)
        if not options:
            return self.option_bytes()
        key = self.rng.choice(list(options))
        what = self.rng.random()
        if what < 0.05:
            options[key] = self.rng.choice([1, "x"])
        elif isinstance(options[key], str) and what < 0.9:
            options[key] = self.rng.choice(TEXTS)
        elif key.endswith(("scale", "slope")) and what < 0.9:
            options[key] = self.word()  # the bits of a float
        elif what < 0.5:
            options[key] = self.rng.choice(HOSTILE_64)
        elif what < 0.9:
            options[key] = max(-(2**63), min(2**63 - 1, options[key] + self.rng.choice([-32, -2, -1, 1, 2, 31, 32])))
        elif what < 0.95:
            del options[key]
        else:
            options[f"{key}s"] = 1
        op.customOptions = np.frombuffer(map_of(options), np.uint8) if options else None

    @staticmethod
    def options_of(op: schema.OperatorT) -> dict[str, Any]:
        """The options, where they can still be read."""
        try:
            options = flexbuffers.Loads(bytes(op.customOptions))
            return options if all(type(value) in (int, str) for value in options.values()) else {}
        except Exception:  # flexbuffers raises all kinds on bytes that are none of its
            return {}

    def option_bytes(self) -> None:
        op = self.op()
        data = bytearray() if op.customOptions is None else bytearray(op.customOptions)
        what = self.rng.random()
        if what < 0.1 or not data:
            data += self.rng.randbytes(self.rng.randrange(20))
        elif what < 0.3:
            del data[self.rng.randrange(len(data)) :]
        elif what < 0.6:
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        else:
            data[self.rng.randrange(len(data))] = self.rng.randrange(256)
        op.customOptions = np.frombuffer(bytes(data), np.uint8) if data else None

    def shape(self, tensor: schema.TensorT | None = None) -> None:
        tensor = tensor or self.tensor()
        before = [] if tensor.shape is None else [int(dimension) for dimension in tensor.shape]
        shape = list(before)
        what = self.rng.random()
        if what < 0.1 or not shape:
            shape.insert(self.rng.randrange(len(shape) + 1), self.rng.randrange(4))
        elif what < 0.2:
            del shape[self.rng.randrange(len(shape))]
        else:
            axis = self.rng.randrange(len(shape))
            shape[axis] = self.dimension(shape[axis])
        tensor.shape = shape
        tensor.shapeSignature = None
        if not self.allows(tensor):
            tensor.shape = before
        self.fit(tensor)

    def dimension(self, now: int) -> int:
        what = self.rng.random()
        if what < 0.5:
            return min(max(-1, now + self.rng.choice([-1, 1])), 2**31 - 1)
        if what < 0.8:
            return self.rng.randrange(80)
        return self.rng.choice(HOSTILE) if what < 0.9 else max(-(2**31), min(2 * now, 2**31 - 1))

    def channels(self) -> None:
        """One number, wherever it is a dimension of an operator's tensors, becomes another: shapes that agree."""
        op = self.op()
        tensors = [self.graph.tensors[i] for i in self.numbers(op)]
        numbers = sorted({int(dimension) for t in tensors if t.shape is not None for dimension in t.shape})
        if not numbers:
            return
        old, new = self.rng.choice(numbers), self.rng.choice([self.rng.randrange(1, 70), self.rng.choice(HOSTILE)])
        for tensor in tensors:
            before = tensor.shape
            tensor.shape = [new if dimension == old else int(dimension) for dimension in before if before is not None]
            tensor.shapeSignature = None
            if not self.allows(tensor):
                tensor.shape = before
            self.fit(tensor)

    def allows(self, tensor: schema.TensorT) -> bool:
        """Whether a tensor may have the shape that it has now."""
        refused = (byte_size(tensor) or 0) >= REFUSED_BLOCK
        return is_affordable(tensor) and not (refused and any(tensor is counted for counted in self.counted))

    def type(self) -> None:
        number = self.rng.choice(self.numbers(self.op()) or [-1])
        if number < 0 or number in self.theirs:
            return
        tensor = self.graph.tensors[number]
        tensor.type = self.rng.choice(USUAL if self.rng.random() < 0.7 else list(ITEM_BYTES))
        if not is_affordable(tensor):
            tensor.type = schema.TensorType.INT8
        self.fit(tensor)

    def quantization(self) -> None:
        number = self.rng.choice(self.numbers(self.op()) or [-1])
        if number < 0 or number in self.theirs:
            return
        tensor = self.graph.tensors[number]
        if self.rng.random() < 0.2:
            tensor.quantization = None
            return
        tensor.quantization = schema.QuantizationParametersT()
        count = self.rng.choice([0, 1, 1, 1, 2])
        tensor.quantization.scale = [self.rng.choice(SCALES) for _ in range(count)]
        tensor.quantization.zeroPoint = [self.rng.choice(HOSTILE_64) for _ in range(count)]
        tensor.quantization.quantizedDimension = 0

    def indices(self) -> None:
        """An operator's tensor becomes another one, is left out, is one too many or too few."""
        op = self.op()
        which = "inputs" if self.rng.random() < 0.8 else "outputs"
        numbers = [int(i) for i in getattr(op, which)]
        what, other = self.rng.random(), self.rng.randrange(-1, len(self.graph.tensors))
        if what < 0.15 or not numbers:
            numbers.append(other)
        elif what < 0.3:
            del numbers[self.rng.randrange(len(numbers))]
        elif what < 0.5:
            self.rng.shuffle(numbers)
        else:
            numbers[self.rng.randrange(len(numbers))] = other
        if which == "outputs" and (-1 in numbers or self.kept & set(numbers)):
            return
        setattr(op, which, numbers)

    def values(self) -> None:
        """Numbers in a constant: indices, thresholds, factors."""
        tensor = self.constant()
        if tensor is None:
            return self.option()
        data = self.data_of(tensor)
        assert data is not None
        data = data.copy()
        if len(data) < 4:
            data[self.rng.randrange(len(data))] = self.rng.randrange(256)
        else:
            words = data[: len(data) // 4 * 4].view(np.int32)
            for _ in range(self.rng.choice([1, 1, 3, len(words)])):
                words[self.rng.randrange(len(words))] = self.word()
        self.set_data(tensor, data)

    def word(self) -> int:
        what = self.rng.random()
        if what < 0.5:
            return self.rng.choice(HOSTILE)
        if what < 0.8:
            return int(np.float32(self.rng.choice([*SCALES, 1e-40, -0.0])).view(np.int32))
        return self.rng.randrange(-(2**31), 2**31)

    def buffer(self) -> None:
        """A constant with too few or too many bytes, or another one's."""
        tensor = self.constant()
        if tensor is None:
            return self.shape()
        data = self.data_of(tensor)
        assert data is not None
        if self.rng.random() < 0.5:
            tensor.buffer = self.rng.randrange(len(self.model.buffers))
            self.fit(tensor)
        else:
            self.set_data(tensor, np.resize(data, self.rng.choice([0, 1, len(data) - 1, len(data) + 1, 2 * len(data)])))

    def constness(self) -> None:
        """A constant becomes an input of the file, or an input a constant."""
        op = self.op()
        numbers = [i for i in self.numbers(op) if i in op.inputs]
        if not numbers:
            return
        number = self.rng.choice(numbers)
        tensor, inputs = self.graph.tensors[number], [int(i) for i in self.graph.inputs]
        if self.data_of(tensor) is not None:
            tensor.buffer = 0
            inputs.append(number)
        elif number in inputs:
            size = byte_size(tensor)
            if size and size <= LARGEST_BLOCK:
                inputs = [i for i in inputs if i != number]
                self.set_data(tensor, np.frombuffer(self.rng.randbytes(size), np.uint8) & self.rng.choice([1, 255]))
        self.graph.inputs = inputs

    def name(self) -> None:
        """The operator becomes another of ours."""
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode, code.version = self.rng.choice(self.rng.choice([NAMES, ["Unknown", ""]])), 1
        self.model.operatorCodes.append(code)
        self.op().opcodeIndex = len(self.model.operatorCodes) - 1

    def order(self) -> None:
        """Operators trade places, or one is done twice, or not at all."""
        ops = list(self.graph.operators)
        place, what = self.rng.randrange(len(ops)), self.rng.random()
        if what < 0.4:
            other = self.rng.randrange(len(ops))
            ops[place], ops[other] = ops[other], ops[place]
        elif what < 0.7:
            ops.insert(self.rng.randrange(len(ops) + 1), ops[place])
        elif len(ops) > 1:
            del ops[place]
        self.graph.operators = ops

    def outside(self) -> None:
        """A constant is stored behind the flatbuffer, where nothing aligns it."""
        tensor = self.constant()
        if tensor is None:
            return self.shape()
        data = self.data_of(tensor)
        assert data is not None
        self.set_data(tensor, data)
        self.model.buffers[tensor.buffer].offset = self.rng.randrange(2, 17)

    def variable(self) -> None:
        """An output of ours that keeps its values from run to run, for which LiteRT has no memory then. Its own
        operators write to such a tensor without looking."""
        outputs = [i for i in self.op().outputs if 0 <= i < len(self.graph.tensors)]
        if outputs:
            self.graph.tensors[self.rng.choice(outputs)].isVariable = True
