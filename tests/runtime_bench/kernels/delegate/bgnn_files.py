"""One file per Bgnn operator with random contents, the arrays to feed it, and what must come out (NumPy references)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import references
from tflite_files import Tensor, const, one_op, packed, random_signs


@dataclass
class Case:
    """`inputs`: the arrays of the operator, in order; the first `fed` of them are the file's inputs."""

    op: str
    inputs: list[np.ndarray]
    expected: np.ndarray
    fed: int = 1
    options: dict[str, int] = field(default_factory=dict)

    def file(self) -> bytes:
        tensors = [Tensor(a.shape, a.dtype) for a in self.inputs[: self.fed]]
        tensors += [const(a) for a in self.inputs[self.fed :]]
        return one_op(self.op, tensors, Tensor(self.expected.shape, self.expected.dtype), self.options)

    def arrays(self) -> list[np.ndarray]:
        return self.inputs[: self.fed]


def nodes_of(rng: np.random.Generator, batch: int, nodes: int, channels: int) -> np.ndarray:
    """Packed nodes, some of them equal."""
    x = packed(random_signs(rng, batch, nodes, channels))
    x[:, nodes // 2] = x[:, 0]
    return x


def lists(rng: np.random.Generator, batch: int, nodes: int, k: int, rows: int | None = None) -> np.ndarray:
    return rng.integers(0, nodes, (batch, rows or nodes, k)).astype(np.int32)


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def halves(rng: np.random.Generator, outputs: int, channels: int) -> np.ndarray:
    return np.concatenate([packed(random_signs(rng, outputs, channels)) for _ in range(2)], axis=1)


def hamming_knn(rng: np.random.Generator, batch: int = 2, nodes: int = 70, channels: int = 40, k: int = 9) -> Case:
    x = nodes_of(rng, batch, nodes, channels)
    found = references.hamming_knn({"x": x, "words": x.shape[2], "k": k})["neighbours"]
    return Case("BgnnHammingKnn", [x], found, options={"channels": channels, "k": k})


def hamming_far(rng: np.random.Generator, batch: int = 2, nodes: int = 70, channels: int = 40, k: int = 9) -> Case:
    x = nodes_of(rng, batch, nodes, channels)
    found = references.hamming_far({"x": x, "words": x.shape[2], "k": k})["neighbours"]
    return Case("BgnnHammingKnn", [x], found, options={"channels": channels, "k": k, "largest": 1})


def knn(rng: np.random.Generator, batch: int = 2, nodes: int = 70, channels: int = 3, k: int = 9) -> Case:
    x = floats(rng, batch, nodes, channels)
    x[:, nodes // 2] = x[:, 0]
    return Case("BgnnKnn", [x], references.knn({"x": x, "channels": channels, "k": k})["neighbours"], options={"k": k})


def xor_edge_conv(
    rng: np.random.Generator, batch: int = 2, nodes: int = 30, channels: int = 72, outputs: int = 37, tables: int = 2
) -> Case:
    x, neighbours = nodes_of(rng, batch, nodes, channels), lists(rng, batch, nodes, 5)
    weights = halves(rng, outputs, channels)
    thresholds = (channels + rng.integers(-9, 10, (tables, outputs))).astype(np.int32)
    arguments = {"x": x, "neighbours": neighbours, "weights": weights, "thresholds": thresholds}
    arguments["words"] = x.shape[2]
    out = references.xor_edge_conv(arguments)["out"]
    return Case("BgnnXorEdgeConv", [x, neighbours, weights, thresholds], out, 2, {"channels": channels})


def gather_max(rng: np.random.Generator, batch: int = 2, nodes: int = 30, channels: int = 33) -> Case:
    x, neighbours = floats(rng, batch, nodes, channels), lists(rng, batch, nodes, 4, rows=17)
    return Case("BgnnGatherMax", [x, neighbours], references.gather_max({"x": x, "neighbours": neighbours})["out"], 2)


def bin_edge_conv(
    rng: np.random.Generator,
    batch: int = 2,
    nodes: int = 30,
    channels: int = 40,
    outputs: int = 33,
    scalars: bool = False,
) -> Case:
    k = 6
    names = ("node_bits", "x", "neighbours", "edge_scale", "edge_shift", "weights", "alpha", "beta", "gamma", "slope")
    arrays = [
        nodes_of(rng, batch, nodes, channels),
        floats(rng, batch, nodes, channels),
        lists(rng, batch, nodes, k),
        floats(rng, channels),
        floats(rng, channels),
        halves(rng, outputs, channels),
        floats(rng, outputs),
        floats(rng, 1 if scalars else nodes),
        floats(rng, 1 if scalars else k),
        floats(rng, 1 if scalars else outputs),
    ]
    arguments = dict(zip(names, arrays, strict=True)) | {"channels": channels, "words": arrays[0].shape[2]}
    out = references.bin_edge_conv(arguments)["out"]
    return Case("BgnnBinEdgeConv", arrays, out, 3, {"channels": channels})


def dense_pool(
    rng: np.random.Generator, batch: int = 2, nodes: int = 70, channels: int = 72, outputs: int = 37
) -> Case:
    x, weights = nodes_of(rng, batch, nodes, channels), packed(random_signs(rng, outputs, channels))
    bits = references.unpack(x, channels), references.unpack(weights, channels)
    acc = channels - 2 * references.differing(*bits)
    parts = [acc.max(1), acc.min(1), np.maximum(acc, 0).sum(1), np.minimum(acc, 0).sum(1)]
    return Case("BgnnDensePool", [x, weights], np.stack(parts, 1).astype(np.float32), 1, {"channels": channels})


def edge_max(
    rng: np.random.Generator, batch: int = 2, nodes: int = 30, channels: int = 33, scalars: bool = False
) -> Case:
    k = 6
    names = ("x", "node", "neighbours", "beta", "gamma")
    arrays = [
        floats(rng, batch, nodes, channels),
        floats(rng, batch, nodes, channels),
        lists(rng, batch, nodes, k),
        floats(rng, 1 if scalars else nodes),
        floats(rng, 1 if scalars else k),
    ]
    return Case("BgnnEdgeMax", arrays, references.edge_max(dict(zip(names, arrays, strict=True)))["out"], 3)


def scaled_pool(
    rng: np.random.Generator,
    batch: int = 2,
    nodes: int = 70,
    channels: int = 72,
    outputs: int = 37,
    scalars: bool = False,
) -> Case:
    x, weights = nodes_of(rng, batch, nodes, channels), packed(random_signs(rng, outputs, channels))
    arguments = {
        "x": x,
        "weights": weights,
        "scale": floats(rng, 1 if scalars else nodes),
        "words": x.shape[2],
        "channels": channels,
    }
    out = references.scaled_pool(arguments)["out"]
    return Case("BgnnScaledPool", [x, weights, arguments["scale"]], out, 1, {"channels": channels})


OPS: dict[str, Callable[..., Case]] = {
    "BgnnHammingKnn": hamming_knn,
    "BgnnKnn": knn,
    "BgnnXorEdgeConv": xor_edge_conv,
    "BgnnGatherMax": gather_max,
    "BgnnBinEdgeConv": bin_edge_conv,
    "BgnnDensePool": dense_pool,
    "BgnnEdgeMax": edge_max,
    "BgnnScaledPool": scaled_pool,
}
