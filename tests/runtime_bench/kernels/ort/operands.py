"""Operands that the operators accept, of random numbers: what tests and the fuzzer of ONNX files start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
NODES, EDGES = 23, 140
QUANTISED = {
    "x_scale": 0.02, "x_zero": 121, "w_scale": 0.004, "w_zero": 3, "msg_scale": 0.013, "msg_zero": 130, "msg_low": 5,
    "msg_high": 250, "y_scale": 0.09, "y_zero": 117, "low": 10, "high": 255,
}  # fmt: skip
ATTENTION = {
    "negative_slope": 0.2, "x_scale": 0.02, "x_zero": 121, "score_scale": 0.03, "score_zero": 128, "score_low": 0,
    "score_high": 255, "msg_scale": 0.013, "msg_zero": 130, "msg_low": 0, "msg_high": 255, "y_scale": 0.05,
    "y_zero": 117, "low": 0, "high": 255,
}  # fmt: skip


DENSE = {"x_scale": 0.02, "x_zero": 121, "x_low": 3, "x_high": 250, "w_zero": -5}


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(np.uint8)


def words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-(2**31), 2**31, shape).astype(np.int32)


def graph(rng: np.random.Generator) -> Arrays:
    degrees = rng.multinomial(EDGES, np.ones(NODES) / NODES)
    indptr = np.concatenate([[0], degrees.cumsum()]).astype(np.int32)
    return {"indptr": indptr, "indices": rng.integers(0, NODES, EDGES).astype(np.int32)}


def edges(rng: np.random.Generator) -> Arrays:
    return {"edge_index": rng.integers(0, NODES, (2, EDGES)), "num_nodes": np.array([NODES])}


def near(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 12, (2, 12, 4)).astype(np.int32)


CASES: list[tuple[str, dict[str, Any], Callable[[np.random.Generator], Arrays]]] = [
    ("CooToCsr", {"self_loops": "none"}, edges),
    ("CooToCsr", {"self_loops": "add_remaining"}, edges),
    ("WithSelfLoops", {}, edges),
    ("IndexToCsr", {}, lambda r: {"index": r.integers(0, NODES, EDGES), "num_nodes": np.array([NODES])}),
    *[
        ("Aggregate", {"reduce": how}, lambda r: {"x": floats(r, NODES, 19), **graph(r)})
        for how in ("sum", "mean", "max")
    ],
    (
        "Aggregate",
        {"reduce": "sum"},
        lambda r: {
            "x": floats(r, NODES, 33), **graph(r), "weight": floats(r, EDGES),
            "edges": r.permutation(EDGES).astype(np.int32),
        },
    ),
    ("AggregateInt32", {}, lambda r: {"x": words(r, NODES, 7), **graph(r)}),
    *[
        (
            "QAggregate",
            {"reduce": how, **QUANTISED, "msg_scale": 0.0},
            lambda r: {"x": codes(r, NODES, 70), **graph(r)},
        )
        for how in ("sum", "mean", "max")
    ],
    (
        "QAggregate",
        {"reduce": "sum", **QUANTISED},
        lambda r: {
            "x": codes(r, NODES, 70), **graph(r), "weight": codes(r, EDGES),
            "edges": r.permutation(EDGES).astype(np.int32), "table": codes(r, 70, 256),
        },
    ),
    ("QAggregate", {"reduce": "sum", **QUANTISED}, lambda r: {"x": codes(r, NODES, 5), **graph(r)}),
    ("QTable", {}, lambda r: {"x": codes(r, 9, 21), "table": codes(r, 21, 256)}),
    *[
        (
            op,
            {**DENSE, **result},
            lambda r, given=given, bias=bias: {
                **given(r), "weights": words(r, 2, 6, 16), "multiplier": floats(r, 20) / 4000, **bias(r),
            },
        )
        for op, result, bias in (
            ("QLinear", {"y_zero": 100, "low": 2, "high": 251}, lambda r: {"bias": words(r, 20) // 2**16}),
            ("QLinearFloat", {}, lambda r: {"bias": floats(r, 20)}),
            ("QLinearFloat", {}, lambda r: {}),
        )
        for given in (lambda r: {"x": codes(r, 3, 11, 23)}, lambda r: {"real": floats(r, 3, 11, 23)})
    ],
    ("Quantize", {"scale": 0.02, "zero": 121, "low": 3, "high": 250}, lambda r: {"x": floats(r, 5, 13)}),
    ("Degree", {}, lambda r: {"indptr": graph(r)["indptr"]}),
    ("EdgeProduct", {}, lambda r: {"source": floats(r, NODES), **graph(r), "target": floats(r, NODES)}),
    (
        "QEdgeProduct",
        {"scale": 0.03, "zero": 128, "low": 2, "high": 240},
        lambda r: {"source": floats(r, NODES), **graph(r), "target": floats(r, NODES)},
    ),
    (
        "SegmentSoftmax",
        {},
        lambda r: {
            "values": floats(r, EDGES, 3), "indptr": graph(r)["indptr"],
            "indices": r.permutation(EDGES).astype(np.int32),
        },
    ),
    (
        "GatAggregate",
        {"negative_slope": 0.2},
        lambda r: {
            "x": floats(r, NODES, 2, 9), **graph(r), "source_score": floats(r, NODES, 2),
            "target_score": floats(r, NODES, 2),
        },
    ),
    (
        "QGatAggregate",
        ATTENTION,
        lambda r: {
            "x": codes(r, NODES, 2, 9), **graph(r), "source_score": floats(r, NODES, 2),
            "target_score": floats(r, NODES, 2),
        },
    ),
    *[
        ("HammingKnn", {"channels": 96, "k": 5, **more}, lambda r: {"x": words(r, 2, 12, 3)})
        for more in ({}, {"largest": 1})
    ],
    ("Knn", {"k": 4}, lambda r: {"x": floats(r, 2, 12, 3)}),
    ("GatherMax", {}, lambda r: {"x": floats(r, 2, 12, 10), "neighbours": near(r)}),
    (
        "XorEdgeConv",
        {"channels": 64},
        lambda r: {
            "x": words(r, 2, 12, 2), "neighbours": near(r), "weights": words(r, 9, 4),
            "thresholds": r.integers(50, 80, (2, 9)).astype(np.int32),
        },
    ),
    (
        "BinEdgeConv",
        {"channels": 64},
        lambda r: {
            "node_bits": words(r, 2, 12, 2), "x": floats(r, 2, 12, 64), "neighbours": near(r),
            "edge_scale": floats(r, 64), "edge_shift": floats(r, 64), "weights": words(r, 9, 4), "alpha": floats(r, 9),
            "beta": floats(r, 12), "gamma": floats(r, 4), "slope": floats(r, 1),
        },
    ),
    (
        "EdgeMax",
        {},
        lambda r: {
            "x": floats(r, 2, 12, 10), "node": floats(r, 2, 12, 10), "neighbours": near(r), "beta": floats(r, 1),
            "gamma": floats(r, 4),
        },
    ),
    ("DensePool", {"channels": 64}, lambda r: {"x": words(r, 2, 12, 2), "weights": words(r, 9, 2)}),
    (
        "ScaledPool",
        {"channels": 64},
        lambda r: {"x": words(r, 2, 12, 2), "weights": words(r, 9, 2), "scale": floats(r, 12)},
    ),
    ("Pack", {}, lambda r: {"x": floats(r, 5, 40)}),
    ("Unpack", {"channels": 40}, lambda r: {"x": words(r, 5, 2)}),
    (
        "BinaryDense",
        {"channels": 64},
        lambda r: {"x": words(r, 7, 2), "weights": words(r, 9, 2), "multiplier": floats(r, 9), "bias": floats(r, 9)},
    ),
    (
        "BinaryDenseBits",
        {"channels": 64},
        lambda r: {"x": words(r, 7, 2), "weights": words(r, 9, 2), "thresholds": r.integers(0, 64, 9).astype(np.int32)},
    ),
    ("PackedMax", {}, lambda r: {"x": words(r, 5, 4, 3)}),
]  # fmt: skip
