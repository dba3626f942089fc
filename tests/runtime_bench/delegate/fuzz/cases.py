"""Writes the fuzzer's corpus: one small, valid case per operator and variant, in the format that harness.cc reads.

Run it after an operator's contract changes: `python tests/runtime_bench/delegate/fuzz/cases.py`.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "kernels")]

from bgnn_files import OPS  # noqa: E402
from tflite_files import TYPES, Tensor, const, flex, packed, random_signs  # noqa: E402

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


def case(op: str, inputs: list[tuple[Tensor | None, np.ndarray | None]], output: Tensor, options: bytes) -> bytes:
    slots = b"".join(slot(tensor, data) for tensor, data in inputs)
    return block(op.encode()) + struct.pack("<B", len(inputs)) + slots + slot(output) + block(options)


def all_cases() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    cases = {}
    for op, make in OPS.items():
        made = make(rng, batch=1, nodes=12, channels=40)
        inputs = [
            (Tensor(a.shape, a.dtype), a) if i < made.fed else (const(a), None) for i, a in enumerate(made.inputs)
        ]
        output = Tensor(made.expected.shape, made.expected.dtype)
        cases[op] = case(op, inputs, output, flex(made.options))
    floats = rng.normal(size=(2, 3, 40)).astype(np.float32)
    cases["LceQuantize"] = case("LceQuantize", [(Tensor(floats.shape), floats)], Tensor((2, 3, 2), np.int32), b"")
    int8 = Tensor((2, 3, 40), np.int8, scale=0.5, zero_point=3)
    cases["LceQuantize-int8"] = case("LceQuantize", [(int8, floats.astype(np.int8))], Tensor((2, 3, 2), np.int32), b"")
    words = packed(random_signs(rng, 2, 3, 40))
    source = [(Tensor(words.shape, np.int32), words)]
    cases["LceDequantize"] = case("LceDequantize", source, Tensor((2, 3, 40)), b"")
    cases["LceDequantize-int8"] = case("LceDequantize", source, int8, b"")
    pool = {"padding": 0, "stride_width": 2, "stride_height": 1, "filter_width": 2, "filter_height": 3}
    image = packed(random_signs(rng, 1, 6, 5, 40))
    x = (Tensor(image.shape, np.int32), image)
    cases["LceBMaxPool2d"] = case("LceBMaxPool2d", [x], Tensor((1, 6, 3, 2), np.int32), flex(pool))
    conv = {
        "channels_in": 40, "dilation_height_factor": 1, "dilation_width_factor": 2, "fused_activation_function": 1,
        "pad_values": 0, "padding": 0, "stride_height": 1, "stride_width": 1,
    }  # fmt: skip
    weights = (const(packed(random_signs(rng, 9, 3, 2, 40))), None)
    vector = (const(rng.normal(size=9).astype(np.float32)), None)
    threshold = (const(np.full(9, 120, np.int32)), None)
    skip = (None, None)
    for name, output in [("float", Tensor((1, 6, 5, 9))), ("int8", Tensor((1, 6, 5, 9), np.int8, scale=0.5))]:
        cases[f"LceBconv2d-{name}"] = case("LceBconv2d", [x, weights, vector, vector, skip], output, flex(conv))
    cases["LceBconv2d-bits"] = case(
        "LceBconv2d", [x, weights, skip, skip, threshold], Tensor((1, 6, 5, 1), np.int32), flex(conv)
    )
    grouped = packed(random_signs(rng, 1, 4, 4, 128))
    cases["LceBconv2d-groups"] = case(
        "LceBconv2d",
        [(Tensor(grouped.shape, np.int32), grouped), (const(packed(random_signs(rng, 8, 2, 2, 64))), None)]
        + [(const(np.ones(8, np.float32)), None)] * 2
        + [skip],
        Tensor((1, 4, 4, 8)),
        flex(conv | {"channels_in": 128, "dilation_width_factor": 1}),
    )
    return cases


if __name__ == "__main__":
    CORPUS.mkdir(exist_ok=True)
    for name, data in all_cases().items():
        (CORPUS / f"{name}.case").write_bytes(data)
