"""Files and inputs are not trusted: whatever does not fit ends in an error that names the operator and the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_files
import pytest

from bgnn.runtime_bench.runtime import onnx_ops
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

CODES = {
    "reduce": "sum",
    "x_scale": 0.1,
    "x_zero": 0,
    "w_scale": 0.1,
    "w_zero": 0,
    "msg_scale": 0.0,
    "msg_zero": 0,
    "msg_low": 0,
    "msg_high": 255,
    "y_scale": 0.1,
    "y_zero": 0,
    "low": 0,
    "high": 255,
}
GAT_CODES = {
    **{name: CODES[name] for name in CODES if name not in ("reduce", "w_scale", "w_zero")},
    "msg_scale": 0.1,
    "score_scale": 0.0,
    "score_zero": 0,
    "score_low": 0,
    "score_high": 255,
    "negative_slope": 0.2,
}
DENSE = {"x_scale": 0.1, "x_zero": 0, "x_low": 0, "x_high": 255, "w_zero": 0}
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "WithSelfLoops": {},
    "CooToCsr": {"self_loops": "none"},
    "IndexToCsr": {},
    "QAggregate": CODES,
    "QTable": {},
    "Quantize": {"scale": 0.1, "zero": 0, "low": 0, "high": 255},
    "QLinear": {**DENSE, "y_zero": 0, "low": 0, "high": 255},
    "QLinearFloat": DENSE,
    "Aggregate": {"reduce": "sum"},
    "AggregateInt32": {},
    "SegmentSoftmax": {},
    "GatAggregate": {"negative_slope": 0.2},
    "QGatAggregate": GAT_CODES,
    "Degree": {},
    "EdgeProduct": {},
    "QEdgeProduct": {"scale": 0.1, "zero": 0, "low": 0, "high": 255},
}


def i32(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def good(op: str) -> dict[str, np.ndarray]:
    """Inputs of three nodes and the edges 1 -> 0, 2 -> 0, 0 -> 2 that `op` accepts."""
    edge_index, nodes = np.array([[1, 2, 0], [0, 0, 2]]), np.array(3)
    csr = {"indptr": i32(0, 2, 2, 3), "indices": i32(1, 2, 0)}
    layer = {
        "x": np.ones((3, 5), np.uint8),
        "weights": np.ones((1, 2, 16), np.int32),
        "multiplier": np.ones(3, np.float32),
    }
    scores = {"source_score": np.zeros((3, 2), np.float32), "target_score": np.zeros((3, 2), np.float32)}
    return {
        "WithSelfLoops": {"edge_index": edge_index, "num_nodes": nodes},
        "CooToCsr": {"edge_index": edge_index, "num_nodes": nodes},
        "IndexToCsr": {"index": edge_index[1].copy(), "num_nodes": nodes},
        "QAggregate": {
            "x": np.ones((3, 5), np.uint8),
            **csr,
            "weight": np.ones(3, np.uint8),
            "edges": i32(0, 1, 2),
            "table": np.ones((5, 256), np.uint8),
        },
        "QTable": {"x": np.ones((3, 5), np.uint8), "table": np.ones((5, 256), np.uint8)},
        "Quantize": {"x": np.ones((3, 5), np.float32)},
        "QLinear": {**layer, "bias": i32(1, 2, 3)},
        "QLinearFloat": {**layer, "bias": np.ones(3, np.float32)},
        "Aggregate": {"x": np.ones((3, 5), np.float32), **csr, "weight": np.ones(3, np.float32), "edges": i32(0, 1, 2)},
        "AggregateInt32": {"x": np.ones((3, 5), np.int32), **csr},
        "SegmentSoftmax": {"values": np.ones((3, 5), np.float32), **csr},
        "GatAggregate": {"x": np.ones((3, 2, 5), np.float32), **csr, **scores},
        "QGatAggregate": {"x": np.ones((3, 2, 5), np.uint8), **csr, **scores},
        "Degree": {"indptr": csr["indptr"]},
        "EdgeProduct": {"source": np.ones(3, np.float32), **csr, "target": np.ones(3, np.float32)},
        "QEdgeProduct": {"source": np.ones(3, np.float32), **csr, "target": np.ones(3, np.float32)},
    }[op]


@pytest.mark.parametrize("op", ATTRIBUTES)
def test_good_inputs_run(op: str) -> None:
    assert onnx_files.run(op, ATTRIBUTES[op], **good(op))


COO, GRAPHS = ("WithSelfLoops", "CooToCsr"), [op for op in ATTRIBUTES if "indices" in good(op)]
TABLES = ("QTable", "QAggregate")
LAYERS = ("QLinear", "QLinearFloat")
BAD_INPUTS: list[tuple[str, str, np.ndarray, str]] = [
    ("CooToCsr", "edge_index", np.array([[0, 0], [0, 3]]), r"edge_index\[1, 1\] = 3 is not one of the 3 nodes"),
    *((op, "edge_index", np.array([[0, -3], [0, 0]]), r"edge_index\[0, 1\] = -3 is not one") for op in COO),
    *((op, "edge_index", np.array([[2**31], [0]]), r"edge_index\[0, 0\] = 2147483648") for op in COO),
    *((op, "edge_index", np.array([[0, 0], [0, -1]]), r"edge_index\[1, 1\] = -1 is not one") for op in COO),
    *((op, "edge_index", np.array([[0], [1 << 40]]), r"edge_index\[1, 0\] = 1099511627776") for op in COO),
    *((op, "edge_index", np.zeros((3, 2), np.int64), r"must be \[2, edges\], not \[3, 2\]") for op in COO),
    *((op, "edge_index", np.zeros((1, 2, 2), np.int64), "has rank 3") for op in COO),
    *((op, "num_nodes", np.array([3, 3]), "must be one number") for op in (*COO, "IndexToCsr")),
    *((op, "num_nodes", np.array(-1), r"num_nodes = -1 is outside") for op in (*COO, "IndexToCsr")),
    *((op, "num_nodes", np.array(1 << 40), r"num_nodes = 1099511627776 is outside") for op in (*COO, "IndexToCsr")),
    *((op, "num_nodes", np.array(2**63 - 1), r"num_nodes = 9223372036854775807 is") for op in (*COO, "IndexToCsr")),
    *((op, "num_nodes", np.array(0), "is not one of the 0 nodes") for op in ("CooToCsr", "IndexToCsr")),
    *((op, "target", np.ones(4, np.float32), "target has 4 numbers") for op in ("EdgeProduct", "QEdgeProduct")),
    ("Degree", "indptr", i32(), "indptr is empty"),
    ("IndexToCsr", "index", np.array([0, 3]), r"index\[1\] = 3 is not one of the 3 nodes"),
    ("IndexToCsr", "index", np.array([0, -1]), r"index\[1\] = -1"),
    *((op, "indptr", i32(), "indptr is empty") for op in GRAPHS),
    *((op, "indptr", i32(0, 3, 2, 3), "indptr falls") for op in GRAPHS),
    *((op, "indptr", i32(0, 2, 2, 4), "indptr goes from 0 to 4") for op in GRAPHS),
    *((op, "indptr", i32(1, 2, 2, 3), "indptr goes from 1 to 3") for op in GRAPHS),
    *((op, "indptr", i32(0, -2, 2, 3), "indptr falls") for op in GRAPHS),
    *((op, "indptr", i32(0, 2147483647, -2147483648, 3), "indptr falls") for op in GRAPHS),
    *((op, "indptr", i32(0, 2, 3).reshape(1, 3), "has rank 2") for op in GRAPHS),
    *((op, "indices", i32(1, 3, 0), r"indices\[1\] = 3 is not one of the 3 rows") for op in GRAPHS),
    *((op, "indices", i32(1, 2, -1), r"indices\[2\] = -1") for op in GRAPHS),
    *((op, "edges", i32(0, 1, 3), r"edges\[2\] = 3 is not one of the 3 edges") for op in ("QAggregate", "Aggregate")),
    *((op, "edges", i32(0, 1), "edges has 2 numbers") for op in ("QAggregate", "Aggregate")),
    ("QAggregate", "weight", np.ones(2, np.uint8), "weight has 2 numbers"),
    ("QAggregate", "weight", np.ones((1, 3), np.uint8), r"weight must be \[edges\] or \[edges, 1\]"),
    ("Aggregate", "weight", np.ones(4, np.float32), "weight has 4 numbers"),
    *(
        (op, "table", np.ones((rows, 256), np.uint8), f"table has {rows} rows: neither one nor one for each of the 5")
        for op in TABLES
        for rows in (0, 3, 6)
    ),
    *((op, "table", np.ones((5, 255), np.uint8), "table has 255 entries") for op in TABLES),
    *((op, "table", np.ones(256, np.uint8), "table has rank 1") for op in TABLES),
    *((op, "x", np.ones((1, 1, 1, 1, 1), np.uint8), "x has rank 5") for op in TABLES),
    *(
        (op, "weights", np.ones(shape, np.int32), r"not \[1, 2, 16\] for 5 inputs and 3 outputs")
        for op in LAYERS
        for shape in ((2, 2, 16), (1, 1, 16), (1, 2, 15), (0, 2, 16))
    ),
    *((op, "x", np.ones((3, 9), np.uint8), r"not \[1, 3, 16\] for 9 inputs") for op in LAYERS),
    *((op, "real", np.ones((3, 5), np.float32), "takes either x or real") for op in LAYERS),
    *((op, "multiplier", np.ones(0, np.float32), "multiplier is empty") for op in LAYERS),
    *((op, "multiplier", np.ones(4, np.float32), "bias has 3 numbers, not one for each of the 4") for op in LAYERS),
    *((op, "multiplier", np.float32([1, np.inf, 1]), "multiplier is not a finite number") for op in LAYERS),
    ("SegmentSoftmax", "values", np.ones((2, 5), np.float32), "values has 2 rows"),
    *((op, "source_score", np.zeros((2, 2), np.float32), r"source_score is \[2, 2\]") for op in GRAPHS if "Gat" in op),
    *((op, "source_score", np.zeros((3, 1), np.float32), r"source_score is \[3, 1\]") for op in GRAPHS if "Gat" in op),
    *((op, "target_score", np.zeros((4, 2), np.float32), r"target_score is \[4, 2\]") for op in GRAPHS if "Gat" in op),
]


@pytest.mark.parametrize(("op", "name", "value", "reason"), BAD_INPUTS)
def test_bad_inputs(op: str, name: str, value: np.ndarray, reason: str) -> None:
    with pytest.raises(Exception, match=rf"bgnn\.{op} \(node 'the_{op}'\): .*{reason}"):
        onnx_files.run(op, ATTRIBUTES[op], **{**good(op), name: value})


@pytest.mark.parametrize("op", ["QAggregate", "Aggregate"])
def test_edges_want_a_weight(op: str) -> None:
    inputs = good(op)
    del inputs["weight"]
    with pytest.raises(Exception, match="edges without weight"):
        onnx_files.run(op, ATTRIBUTES[op], **inputs)


def test_wrong_types_are_refused_when_the_file_is_read() -> None:
    file = onnx_files.model("AggregateInt32", {}, {"x", "indptr", "indices"}).replace(b"AggregateInt32", b"Aggregate")
    with pytest.raises(BgnnError, match="ONNX Runtime refuses the file"):
        onnx_ops.session(file)


BAD_ATTRIBUTES: list[tuple[str, dict[str, Any], str]] = [
    *(("QAggregate", {name: value}, "a scale is not") for name in ("x_scale", "w_scale", "y_scale")
      for value in (0.0, -1.0, float("nan"), float("inf"))),
    ("QAggregate", {"msg_scale": -1.0}, "a scale is not"),
    *(("QAggregate", {name: value}, "zero point is outside") for name in ("x_zero", "w_zero", "msg_zero", "y_zero")
      for value in (-1, 256)),
    *(("QAggregate", change, "low and high") for change in ({"low": -1}, {"high": 256}, {"low": 9, "high": 8},
      {"msg_low": 9, "msg_high": 8})),
    ("QAggregate", {"reduce": "median"}, "reduce is none of"),
    ("Aggregate", {"reduce": "a string that is longer than any"}, "no usable string attribute reduce"),
    ("CooToCsr", {"self_loops": "some"}, "self_loops is neither"),
    ("QAggregate", {"x_zero": None}, "no usable int attribute x_zero"),
    ("QAggregate", {"y_scale": None}, "no usable float attribute y_scale"),
    ("QAggregate", {"y_scale": 1}, "no usable float attribute y_scale"),
    ("QEdgeProduct", {"scale": 0.0}, "a scale is not"),
    *((op, change, reason) for op in ("QLinear", "QLinearFloat") for change, reason in (
      ({"x_scale": 0.0}, "a scale is not"), ({"x_zero": 256}, "zero point is outside"), ({"w_zero": 128}, "w_zero is"),
      ({"x_low": 9, "x_high": 8}, "low and high"))),
    ("Quantize", {"scale": 0.0}, "a scale is not"),
    ("Quantize", {"low": 9, "high": 8}, "low and high"),
    ("QLinear", {"y_zero": -1}, "zero point is outside"),
    ("QLinear", {"low": 9, "high": 8}, "low and high"),
    ("GatAggregate", {"negative_slope": float("nan")}, "negative_slope"),
    ("QGatAggregate", {"msg_scale": 0.0}, "a scale is not"),
    ("QGatAggregate", {"score_zero": 300}, "zero point is outside"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "change", "reason"), BAD_ATTRIBUTES)
def test_bad_attributes(op: str, change: dict[str, Any], reason: str) -> None:
    attributes = {name: value for name, value in {**ATTRIBUTES[op], **change}.items() if value is not None}
    with pytest.raises(BgnnError, match=rf"bgnn\.{op} \(node 'the_{op}'\): .*{reason}"):
        onnx_ops.session(onnx_files.model(op, attributes, set(good(op))))


def test_maximum_takes_no_weight() -> None:
    with pytest.raises(Exception, match="a maximum takes neither"):
        onnx_files.run("QAggregate", {**CODES, "reduce": "max"}, **good("QAggregate"))


def test_scales_whose_ratio_overflows() -> None:
    inputs = {name: value for name, value in good("QAggregate").items() if name not in ("weight", "edges")}
    with pytest.raises(Exception, match="ratio of the scales"):
        onnx_files.run("QAggregate", {**CODES, "x_scale": 1e30, "y_scale": 1e-30}, **inputs)


def test_sums_that_could_overflow() -> None:
    """Products reach 255 * 255, so 33025 neighbours are the limit; the codes themselves may be 8.4 million."""
    entries = 33026
    graph = {"indptr": i32(0, entries), "indices": np.zeros(entries, np.int32)}
    x = np.full((1, 4), 255, np.uint8)
    weight = np.full(entries, 255, np.uint8)
    with pytest.raises(Exception, match="33026 neighbours; beyond 33025"):
        onnx_files.run("QAggregate", CODES, x=x, **graph, weight=weight)
    attributes = {**CODES, "y_scale": 0.1 * entries}
    (out,) = onnx_files.run("QAggregate", attributes, x=x, **graph)
    assert (out == 255).all()
    graph["indptr"][-1] = 33025
    at_limit = {**CODES, "y_scale": 0.1 * 0.1 * 255 * 33025}
    (out,) = onnx_files.run(
        "QAggregate", at_limit, x=x, indptr=graph["indptr"], indices=graph["indices"][1:], weight=weight[1:]
    )
    assert (out == 255).all()


# ------------------------------------------------------------------------------------------- the loader


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGNN_ORT_OPS", "/nowhere/lib.so")
    with pytest.raises(BgnnError, match=r"BGNN_ORT_OPS=/nowhere/lib\.so is not a file"):
        onnx_ops.library_path()
    monkeypatch.delenv("BGNN_ORT_OPS")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(BgnnError, match=r"no libbgnn_ort\.so for Linux on riscv64, .*: build it with `make kernels`"):
        onnx_ops.library_path()
    # where a wheel is installed, there are no sources to build
    monkeypatch.setattr("bgnn.runtime_bench.runtime.libraries.__file__", "/nowhere/runtime/libraries.py")
    with pytest.raises(BgnnError, match=r"install the bgnn-runtime wheel of this machine"):
        onnx_ops.library_path()


def test_not_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGNN_ORT_OPS", __file__)
    with pytest.raises(BgnnError, match="do not load"):
        onnx_ops.session(onnx_files.model("AggregateInt32", {}, set(good("AggregateInt32"))))


@pytest.mark.parametrize(
    ("model", "threads", "error", "reason"),
    [
        ("/nowhere/model.onnx", 1, UsageError, "no such file"),
        (b"", 1, BgnnError, "refuses the file"),
        (b"not a model", 1, BgnnError, "refuses the file"),
        (b"", 0, UsageError, "threads = 0"),
    ],
)
def test_session_errors(model: str | bytes, threads: int, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        onnx_ops.session(model, threads)


def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGNN_ISA", "mmx")
    assert onnx_files.isa_here() is None
    file = onnx_files.model("AggregateInt32", {}, set(good("AggregateInt32")))
    with pytest.raises(BgnnError, match="BGNN_ISA names an instruction set"):
        onnx_ops.session(file)
