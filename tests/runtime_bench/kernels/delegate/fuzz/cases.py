"""One small, valid case per operator and variant: what both fuzzers start from.

harness.cc reads them from corpus/*.case. Run this after an operator's contract changes:
`python tests/runtime_bench/kernels/delegate/fuzz/cases.py`.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from bgnn_files import OPS  # noqa: E402
from tflite_files import TYPES, Tensor, const, flex, one_op, packed, random_signs  # noqa: E402

CORPUS = HERE / "corpus"


def block(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def slot(tensor: Tensor | None, data: np.ndarray | None = None) -> bytes:
    if tensor is None:
        return slot(Tensor((1,), np.float32)).replace(b"\x01", b"\x00", 1)
    values = tensor.array if tensor.array is not None else data
    head = struct.pack("<BBB", 1, TFLITE[np.dtype(tensor.dtype)], len(tensor.shape))
    dims = struct.pack(f"<{len(tensor.shape)}i", *tensor.shape)
    tail = struct.pack(
        "<BBfi", tensor.scale is not None, tensor.array is not None, tensor.scale or 0, tensor.zero_point
    )
    return head + dims + tail + block(b"" if values is None else np.ascontiguousarray(values).tobytes())


# TfLiteType, which is not the schema's TensorType.
TFLITE = {np.dtype(np.float32): 1, np.dtype(np.int32): 2, np.dtype(np.bool_): 6, np.dtype(np.int8): 9}
assert TFLITE.keys() == TYPES.keys()


@dataclass
class Case:
    """An operator with its tensors; an input that is no constant has an array to feed. None: left out."""

    op: str
    inputs: list[tuple[Tensor | None, np.ndarray | None]]
    output: Tensor
    options: Mapping[str, int]

    def for_harness(self) -> bytes:
        slots = b"".join(slot(tensor, data) for tensor, data in self.inputs)
        return (
            block(self.op.encode())
            + struct.pack("<B", len(self.inputs))
            + slots
            + slot(self.output)
            + block(flex(self.options))
        )

    def file(self) -> bytes:
        return one_op(self.op, [tensor for tensor, _ in self.inputs], self.output, self.options)

    def arrays(self) -> list[np.ndarray]:
        return [data for _, data in self.inputs if data is not None]


def all_cases() -> dict[str, Case]:
    cases = {}
    for op, make in OPS.items():
        rng = np.random.default_rng(zlib.crc32(op.encode()))  # a new operator leaves the others' cases alone
        made = make(rng, batch=1, nodes=12, channels=40)
        inputs = [
            (Tensor(a.shape, a.dtype), a) if i < made.fed else (const(a), None) for i, a in enumerate(made.inputs)
        ]
        output = Tensor(made.expected.shape, made.expected.dtype)
        cases[op] = Case(op, inputs, output, made.options)
    rng = np.random.default_rng(0)
    floats = rng.normal(size=(2, 3, 40)).astype(np.float32)
    cases["LceQuantize"] = Case("LceQuantize", [(Tensor(floats.shape), floats)], Tensor((2, 3, 2), np.int32), {})
    int8 = Tensor((2, 3, 40), np.int8, scale=0.5, zero_point=3)
    cases["LceQuantize-int8"] = Case("LceQuantize", [(int8, floats.astype(np.int8))], Tensor((2, 3, 2), np.int32), {})
    words = packed(random_signs(rng, 2, 3, 40))
    source = [(Tensor(words.shape, np.int32), words)]
    cases["LceDequantize"] = Case("LceDequantize", source, Tensor((2, 3, 40)), {})
    cases["LceDequantize-int8"] = Case("LceDequantize", source, int8, {})
    pool = {"padding": 0, "stride_width": 2, "stride_height": 1, "filter_width": 2, "filter_height": 3}
    image = packed(random_signs(rng, 1, 6, 5, 40))
    x = (Tensor(image.shape, np.int32), image)
    cases["LceBMaxPool2d"] = Case("LceBMaxPool2d", [x], Tensor((1, 6, 3, 2), np.int32), pool)
    conv = {
        "channels_in": 40, "dilation_height_factor": 1, "dilation_width_factor": 2, "fused_activation_function": 1,
        "pad_values": 0, "padding": 0, "stride_height": 1, "stride_width": 1,
    }  # fmt: skip
    weights = (const(packed(random_signs(rng, 9, 3, 2, 40))), None)
    vector = (const(rng.normal(size=9).astype(np.float32)), None)
    threshold = (const(np.full(9, 120, np.int32)), None)
    skip = (None, None)
    for name, output in [("float", Tensor((1, 6, 5, 9))), ("int8", Tensor((1, 6, 5, 9), np.int8, scale=0.5))]:
        cases[f"LceBconv2d-{name}"] = Case("LceBconv2d", [x, weights, vector, vector, skip], output, conv)
    cases["LceBconv2d-bits"] = Case(
        "LceBconv2d", [x, weights, skip, skip, threshold], Tensor((1, 6, 5, 1), np.int32), conv
    )
    grouped = packed(random_signs(rng, 1, 4, 4, 128))
    cases["LceBconv2d-groups"] = Case(
        "LceBconv2d",
        [(Tensor(grouped.shape, np.int32), grouped), (const(packed(random_signs(rng, 8, 2, 2, 64))), None)]
        + [(const(np.ones(8, np.float32)), None)] * 2
        + [skip],
        Tensor((1, 4, 4, 8)),
        conv | {"channels_in": 128, "dilation_width_factor": 1},
    )
    return cases


if __name__ == "__main__":
    CORPUS.mkdir(exist_ok=True)
    for name, made in all_cases().items():
        (CORPUS / f"{name}.case").write_bytes(made.for_harness())
