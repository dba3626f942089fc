"""The operators' two bindings: ONNX Runtime's library and TFLite's delegate give the same bits for the same operands.

TFLite has no int64 here, and its codes are int8, 128 less; files state the outputs' shapes. What only TFLite files
have, edges that are not there, is compared with a list without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx_files import INPUTS, run

from bgnn.converter.tflite.builder import Codes, FileBuilder
from bgnn.converter.tflite.lce_ops import flexbuffer
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter

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
    ("HammingKnn", {"channels": 70, "k": 5}, lambda r: {"x": words(r, 2, 12, 3)}),
    ("Knn", {"k": 4}, lambda r: {"x": floats(r, 2, 12, 3)}),
    ("GatherMax", {}, lambda r: {"x": floats(r, 2, 12, 10), "neighbours": near(r)}),
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


def on_tflite(
    op: str, attributes: dict[str, Any], given: Arrays, outputs: list[np.ndarray], threads: int = 1
) -> list[np.ndarray]:
    """The operator's outputs, which have the shapes and types of `outputs`; codes from 0."""
    builder = FileBuilder(op)
    tensors, fed, order = [], {}, [name for name, _ in INPUTS[op]]
    while order[-1] not in given:
        order.pop()
    for name in order:
        if name not in given:
            tensors.append(None)
            continue
        array = given[name]
        if array.dtype == np.int64:
            array = array.astype(np.int32)
        if array.dtype == np.uint8 and name != "table":
            array = (array.astype(np.int16) - 128).astype(np.int8)
        fed[name] = array
        plain = Codes((1.0,)) if array.dtype == np.int8 else None
        tensors.append(builder.tensor(name, array.shape, array.dtype, plain))
    dtypes = [np.dtype(np.int8) if out.dtype == np.uint8 else out.dtype for out in outputs]
    made = [
        builder.tensor(f"out{i}", out.shape, dtype, Codes((1.0,)) if dtype == np.int8 else None)
        for i, (out, dtype) in enumerate(zip(outputs, dtypes, strict=True))
    ]
    builder.custom(f"Bgnn{op}", tensors, made, flexbuffer(attributes))
    inputs = [(value_name, value) for value_name, value in zip(order, tensors, strict=True) if value is not None]
    data = builder.finish(inputs, [(f"out{i}", value) for i, value in enumerate(made)], {})
    found = LiteRTInterpreter(data, threads, delegate=True).run(*fed.values())
    return [(a.astype(np.int16) + 128).astype(np.uint8) if a.dtype == np.int8 else a for a in found]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{CASES[i][0]}-{i}")
def test_both_runtimes_give_the_same_bits(case: int) -> None:
    op, attributes, operands = CASES[case]
    for seed, threads in ((0, 1), (1, 2)):
        given = operands(np.random.default_rng(seed))
        expected = run(op, attributes, **given)
        if op == "CooToCsr":  # TFLite has room for all edges, and for a loop of every node
            entries = expected[1].shape[0]
            most = EDGES + (NODES if attributes["self_loops"] != "none" else 0)
            shapes = [expected[0], np.zeros(most, np.int32), np.zeros(most, np.int32)]
            bounds, sources, places = on_tflite(op, attributes, given, shapes, threads)
            np.testing.assert_array_equal(bounds, expected[0])
            np.testing.assert_array_equal(sources[:entries], expected[1])
            # An edge's number is its place in the list; ONNX's list has no loops that others replace.
            whole = given["edge_index"]
            kept = np.flatnonzero(whole[0] != whole[1]) if most > EDGES else np.arange(EDGES)
            numbers = np.concatenate([kept, EDGES + np.arange(most - EDGES)])
            np.testing.assert_array_equal(places[:entries], numbers[expected[2]])
            continue
        for mine, theirs in zip(on_tflite(op, attributes, given, expected, threads), expected, strict=True):
            np.testing.assert_array_equal(mine.view(np.uint8), theirs.view(np.uint8))


def test_every_operator_of_the_list_is_tried() -> None:
    """But for those whose lists are of int64, and those that test_kernels.py and the delegate's tests compare."""
    assert set(INPUTS) - {op for op, _, _ in CASES} == {"WithSelfLoops", "XorEdgeConv", "BinEdgeConv"}


def test_edges_that_are_not_there() -> None:
    rng = np.random.default_rng(0)
    index = rng.integers(0, NODES, (2, EDGES))
    there = rng.random(EDGES) < 0.6
    gaps = np.where(there, index, -1)
    expected = run("CooToCsr", {"self_loops": "none"}, edge_index=index[:, there], num_nodes=np.array([NODES]))
    shapes = [expected[0], np.zeros(EDGES, np.int32), np.zeros(EDGES, np.int32)]
    found = on_tflite("CooToCsr", {"self_loops": "none"}, {"edge_index": gaps, "num_nodes": np.array([NODES])}, shapes)
    entries = int(there.sum())
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1][:entries], expected[1])
    np.testing.assert_array_equal(found[2][:entries], np.flatnonzero(there)[expected[2]])
    # A sum over what is there, weights in the places of the whole list.
    x, weight = floats(rng, NODES, 9), floats(rng, EDGES)
    small = {"x": x, "indptr": expected[0], "indices": expected[1], "weight": weight[there], "edges": expected[2]}
    (sums,) = run("Aggregate", {"reduce": "sum"}, **small)
    given = {"x": x, "indptr": found[0], "indices": found[1], "weight": weight, "edges": found[2]}
    np.testing.assert_array_equal(on_tflite("Aggregate", {"reduce": "sum"}, given, [sums])[0], sums)


def test_what_a_file_gets_wrong_is_one_line() -> None:
    rng = np.random.default_rng(0)
    given = {"x": floats(rng, NODES, 4), **graph(rng)}
    out = [np.zeros((NODES, 4), np.float32)]
    for op, attributes, changed, outputs, message in (
        ("Aggregate", {"reduce": "most"}, {}, out, "reduce is none of 'sum', 'mean' and 'max'"),
        ("Aggregate", {}, {}, out, "its options are not a flexbuffer map|its options have no reduce"),
        ("Aggregate", {"reduce": 3}, {}, out, "its option reduce is of another type"),
        ("Aggregate", {"reduce": "sum"}, {"x": codes(rng, NODES, 4)}, out, "x must be float32"),
        ("Aggregate", {"reduce": "sum"}, {}, [out[0][1:]], "output 0 has another shape in the file"),
        ("Aggregate", {"reduce": "sum"}, {}, [out[0].astype(np.int32)], "output 0 must be float32"),
        ("Aggregate", {"reduce": "sum"}, {"indices": given["indices"] + 900}, out, r"indices\[0\] = .* is not one of"),
        ("Aggregate", {"reduce": "sum"}, {"indptr": given["indptr"][::-1].copy()}, out, "indptr goes from 140 to 0"),
        ("Aggregate", {"reduce": "sum"}, {"indptr": given["indptr"] * 2}, out, "indptr goes from 0 to 280"),
    ):
        with pytest.raises(BgnnError, match=message):
            on_tflite(op, attributes, {**given, **changed}, outputs)
    edge = {"edge_index": np.array([[0, 1], [1, -1]]), "num_nodes": np.array([3])}
    shapes = [np.zeros(4, np.int32), np.zeros(2, np.int32), np.zeros(2, np.int32)]
    with pytest.raises(BgnnError, match=r"edge_index\[1, 1\] = -1 is not one of the 3 nodes"):
        on_tflite("CooToCsr", {"self_loops": "none"}, edge, shapes)
