"""What each kernel computes, in NumPy on unpacked signs: slow, plain, and written from the ops' contract alone.

`tests/runtime_bench/kernels/test_kernels.py` also holds these against the dialect's PyTorch references.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def unpack(packed: np.ndarray, channels: int) -> np.ndarray:
    """Packed int32 `[..., W]` -> bool bits `[..., channels]`."""
    return np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")[..., :channels].astype(bool)


def pack_bits(bits: np.ndarray) -> np.ndarray:
    packed = np.packbits(bits, axis=-1, bitorder="little")
    padding = [(0, 0)] * (packed.ndim - 1) + [(0, -packed.shape[-1] % 4)]
    return np.ascontiguousarray(np.pad(packed, padding)).view(np.int32)


def differing(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Popcounts of xor: bits `[..., C]`, `[O, C]` -> int64 `[..., O]`."""
    a, b = 1.0 - 2.0 * x.astype(np.float64), 1.0 - 2.0 * weights.astype(np.float64)
    return np.rint((x.shape[-1] - a @ b.T) / 2).astype(np.int64)


def hamming_knn(a: dict[str, Any]) -> dict[str, np.ndarray]:
    x = unpack(a["x"], a["words"] * 32)
    distances = np.stack([differing(rows, rows) for rows in x]).astype(np.uint16)  # 16 bits sort fast
    return {"neighbours": np.argsort(distances, axis=-1, kind="stable")[..., : a["k"]].astype(np.int32)}


def hamming_far(a: dict[str, Any]) -> dict[str, np.ndarray]:
    x = unpack(a["x"], a["words"] * 32)
    nearness = a["words"] * 32 - np.stack([differing(rows, rows) for rows in x])
    order = np.argsort(nearness.astype(np.uint16), axis=-1, kind="stable")
    return {"neighbours": order[..., : a["k"]].astype(np.int32)}


def knn(a: dict[str, Any]) -> dict[str, np.ndarray]:
    x = a["x"]
    with np.errstate(all="ignore"):
        total = (x[:, None, :, 0] - x[:, :, None, 0]) ** 2
        for c in range(1, a["channels"]):
            difference = x[:, None, :, c] - x[:, :, None, c]
            total = total + difference * difference
    return {"neighbours": np.argsort(total, axis=-1, kind="stable")[..., : a["k"]].astype(np.int32)}


def gathered(x: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    return x[np.arange(x.shape[0])[:, None, None], neighbours]


def xor_edge_conv(a: dict[str, Any]) -> dict[str, np.ndarray]:
    count = a["words"] * 32
    x = unpack(a["x"], count)
    weights = unpack(a["weights"], 2 * count)
    edges = x[:, :, None] ^ gathered(x, a["neighbours"])
    p = differing(x, weights[:, :count])[:, :, None] + differing(edges, weights[:, count:])
    minus = np.zeros(p.shape, bool)
    for thresholds in a["thresholds"]:
        minus ^= p > thresholds
    return {"out": pack_bits(minus.all(axis=2))}


def gather_max(a: dict[str, Any]) -> dict[str, np.ndarray]:
    return {"out": running_max(gathered(a["x"], a["neighbours"]))}


def running_max(values: np.ndarray) -> np.ndarray:
    """The kernels' maximum over axis 2: `x > m ? x : m`."""
    most = values[:, :, 0].copy()
    for j in range(1, values.shape[2]):
        most = np.where(values[:, :, j] > most, values[:, :, j], most)
    return most


def bin_edge_conv(a: dict[str, Any]) -> dict[str, np.ndarray]:
    x, channels = a["x"], a["channels"]
    edges = (gathered(x, a["neighbours"]) - x[:, :, None]) * a["edge_scale"] + a["edge_shift"] < 0
    node_weights, edge_weights = (
        unpack(half, channels) for half in (a["weights"][:, : a["words"]], a["weights"][:, a["words"] :])
    )
    p = differing(unpack(a["node_bits"], channels), node_weights)[:, :, None] + differing(edges, edge_weights)
    v = (2 * channels - 2 * p).astype(np.float32) * a["alpha"]
    v = v * a["beta"][:, None, None]
    v = v * a["gamma"][:, None]
    return {"out": running_max(np.where(v > 0, v, v * a["slope"]))}


def dense_pool(a: dict[str, Any]) -> dict[str, np.ndarray]:
    acc = a["channels"] - 2 * differing(unpack(a["x"], a["words"] * 32), unpack(a["weights"], a["words"] * 32))
    parts = [acc.max(1), acc.min(1), np.maximum(acc, 0).sum(1), np.minimum(acc, 0).sum(1)]
    return {"out": np.stack(parts, axis=1).astype(np.float32)}


def edge_max(a: dict[str, Any]) -> dict[str, np.ndarray]:
    v = gathered(a["x"], a["neighbours"]) + a["node"][:, :, None]
    v = v * a["beta"][:, None, None]
    return {"out": running_max(v * a["gamma"][:, None])}


def scaled_pool(a: dict[str, Any]) -> dict[str, np.ndarray]:
    acc = a["channels"] - 2 * differing(unpack(a["x"], a["words"] * 32), unpack(a["weights"], a["words"] * 32))
    v = acc.astype(np.float32) * a["scale"][:, None]
    sums = np.zeros((2, v.shape[0], v.shape[2]), np.float32)
    for row in v.transpose(1, 0, 2):  # one after the other, as the kernels add
        sums += np.stack([np.maximum(row, 0), np.minimum(row, 0)])
    return {"out": np.stack([v.max(1), v.min(1), *sums], axis=1)}


def quantize(a: dict[str, Any]) -> dict[str, np.ndarray]:
    return {"out": pack_bits(a["x"] < 0)}


def quantize_int8(a: dict[str, Any]) -> dict[str, np.ndarray]:
    return {"out": pack_bits(a["x"] < a["zero_point"])}


def dequantize(a: dict[str, Any]) -> dict[str, np.ndarray]:
    return {"out": np.where(unpack(a["x"], a["channels"]), -1, 1).astype(np.float32)}


def dequantize_int8(a: dict[str, Any]) -> dict[str, np.ndarray]:
    return {"out": np.where(unpack(a["x"], a["channels"]), a["minus"], a["plus"]).astype(np.int8)}


def bconv2d(a: dict[str, Any]) -> dict[str, np.ndarray]:
    channels, groups, outputs = a["channels"], a["groups"], a["out_channels"]
    x = 1 - 2 * unpack(a["x"].reshape(*a["x"].shape[:-1], groups, a["words"]), channels).astype(np.int64)
    weights = 1 - 2 * unpack(a["weights"], channels).astype(np.int64)
    bottom = a["out_height"] * a["stride_height"] + a["filter_height"] * a["dilation_height"]
    right = a["out_width"] * a["stride_width"] + a["filter_width"] * a["dilation_width"]
    padding = ((0, 0), (a["pad_top"], bottom), (a["pad_left"], right), (0, 0), (0, 0))
    x = np.pad(x, padding, constant_values=a["pad_one"])
    dot = np.zeros((a["batch"], a["out_height"], a["out_width"], groups, outputs // groups), np.int64)
    for fy in range(a["filter_height"]):
        for fx in range(a["filter_width"]):
            y0, x0 = fy * a["dilation_height"], fx * a["dilation_width"]
            window = x[:, y0 :: a["stride_height"], x0 :: a["stride_width"]]
            window = window[:, : a["out_height"], : a["out_width"]]
            taps = weights[:, fy, fx].reshape(groups, outputs // groups, channels)
            dot += np.einsum("byxgc,goc->byxgo", window, taps)
    dot = dot.reshape(*dot.shape[:3], outputs)
    if a["out_bits"] is not None:
        inputs = a["filter_height"] * a["filter_width"] * channels
        return {"out_bits": pack_bits((inputs - dot) // 2 > a["thresholds"])}
    clamped = np.clip(dot, a["clamp_min"], a["clamp_max"]).astype(np.float32)
    return {"out": clamped * a["multiplier"] + a["bias"]}


def bmaxpool2d(a: dict[str, Any]) -> dict[str, np.ndarray]:
    out = np.full(a["out"].shape, -1, np.int32)
    for y in range(a["out_height"]):
        for x in range(a["out_width"]):
            top, left = y * a["stride_height"] - a["pad_top"], x * a["stride_width"] - a["pad_left"]
            window = a["x"][:, max(top, 0) : top + a["filter_height"], max(left, 0) : left + a["filter_width"]]
            out[:, y, x] = np.bitwise_and.reduce(window.reshape(a["batch"], -1, a["words"]), axis=1)
    return {"out": out}
