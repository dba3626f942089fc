"""Any graph: the same bits from every instruction set and any number of threads, and the reference's codes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_refusals import ATTRIBUTES, CODES

ISAS = ("portable", "avx2", "avx512")


@contextmanager
def instruction_set(name: str) -> Iterator[bool]:
    """BGNN_ISA while this lasts; whether it runs here."""
    before = os.environ.get("BGNN_ISA")
    os.environ["BGNN_ISA"] = name
    try:
        yield onnx_files.isa_here() is not None
    finally:
        os.environ.pop("BGNN_ISA")
        if before is not None:
            os.environ["BGNN_ISA"] = before


def everywhere(op: str, attributes: dict[str, Any], threads: int = 1, **inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs, which must be the same on all instruction sets, bit for bit."""
    found = []
    for isa in ISAS:
        with instruction_set(isa) as runs:
            if runs:
                found.append(onnx_files.run(op, attributes, threads, **inputs))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one.view(np.uint8), two.view(np.uint8))
    return found[0]


def reference(x: np.ndarray, csr: dict[str, np.ndarray], a: dict[str, Any], weight: np.ndarray | None) -> np.ndarray:
    """QAggregate with reduce = "sum" and no requantised messages, in numpy."""
    f32 = np.float32
    messages = x[csr["indices"]].astype(np.int64) - a["x_zero"]
    multiplier = f32(a["x_scale"])
    if weight is not None:
        messages *= weight[csr["edges"]].astype(np.int64)[:, None] - a["w_zero"]
        multiplier = multiplier * f32(a["w_scale"])
    acc = np.zeros((len(csr["indptr"]) - 1, x.shape[1]), np.int64)
    np.add.at(acc, np.repeat(np.arange(len(acc)), np.diff(csr["indptr"])), messages)
    real = acc.astype(f32) * (multiplier / f32(a["y_scale"]))
    return np.clip(np.rint(real) + a["y_zero"], a["low"], a["high"]).astype(np.uint8)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    nodes = draw(st.integers(1, 70))
    edges = draw(st.sampled_from([0, 1, 5, nodes, 8 * nodes, 700]))
    kind = draw(st.sampled_from(["any", "into one", "out of one", "loops", "equal", "none into most"]))
    edge_index = rng.integers(0, nodes, (2, edges))
    match kind:
        case "into one":
            edge_index[1] = nodes - 1
        case "out of one":
            edge_index[0] = 0
        case "loops":
            edge_index[1] = edge_index[0]
        case "equal":
            edge_index[:] = edge_index[:, :1]
        case "none into most":
            edge_index[1] %= max(nodes // 10, 1)
    zero = draw(st.sampled_from([0, 1, 127, 128, 254, 255]))
    low, high = sorted(draw(st.tuples(st.integers(0, 255), st.integers(0, 255))))
    return {
        "rng": rng,
        "nodes": nodes,
        "edge_index": edge_index,
        "width": draw(st.integers(0, 140)),
        "attributes": {
            **CODES,
            "x_scale": draw(st.floats(1e-3, 1.0)),
            "x_zero": zero,
            "w_zero": draw(st.integers(0, 255)),
            "y_scale": draw(st.floats(1e-3, 100.0)),
            "y_zero": draw(st.integers(0, 255)),
            "low": low,
            "high": high,
        },
        "threads": draw(st.sampled_from([1, 2])),
    }


@settings(max_examples=60, deadline=None)
@given(cases())
def test_any_graph(case: dict[str, Any]) -> None:
    rng, nodes, threads, attributes = case["rng"], case["nodes"], case["threads"], case["attributes"]
    given_edges = {"edge_index": case["edge_index"], "num_nodes": np.array(nodes)}
    csr = dict(
        zip(
            ("indptr", "indices", "edges"),
            everywhere("CooToCsr", {"self_loops": "none"}, threads, **given_edges),
            strict=True,
        )
    )
    for got, want in zip(csr.values(), onnx_files.coo_to_csr(case["edge_index"], nodes), strict=True):
        np.testing.assert_array_equal(got, want)
    graph = {name: csr[name] for name in ("indptr", "indices")}
    edges = len(csr["indices"])
    x = rng.integers(0, 256, (nodes, case["width"]), dtype=np.uint8)
    weight = rng.integers(0, 256, edges, dtype=np.uint8)
    (got,) = everywhere("QAggregate", attributes, threads, x=x, **graph)
    np.testing.assert_array_equal(got, reference(x, csr, attributes, None))
    (got,) = everywhere("QAggregate", attributes, threads, x=x, weight=weight, **csr)
    np.testing.assert_array_equal(got, reference(x, csr, attributes, weight))
    messages = {**attributes, "msg_scale": 0.02, "msg_zero": 100, "msg_low": 2, "msg_high": 240}
    everywhere("QAggregate", messages, threads, x=x, **graph)
    everywhere("QAggregate", messages, threads, x=x, weight=weight, **csr)
    for reduce in ("mean", "max"):
        everywhere("QAggregate", {**attributes, "reduce": reduce}, threads, x=x, **graph)
    real = rng.standard_normal((nodes, case["width"]), dtype=np.float32)
    for reduce in ("sum", "mean", "max"):
        everywhere("Aggregate", {"reduce": reduce}, threads, x=real, **graph)
    everywhere("AggregateInt32", {}, threads, x=real.view(np.int32), **graph)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(1, 20), st.sampled_from([0.0, 0.03]))
def test_attention_of_any_graph(case: dict[str, Any], heads: int, score_scale: float) -> None:
    rng, nodes = case["rng"], case["nodes"]
    coo = {"edge_index": case["edge_index"], "num_nodes": np.array(nodes)}
    indptr, indices, _ = onnx_files.run("CooToCsr", {"self_loops": "add_remaining"}, **coo)
    scores = {
        name: 10 * rng.standard_normal((nodes, heads), dtype=np.float32) for name in ("source_score", "target_score")
    }
    inputs = {"indptr": indptr, "indices": indices, **scores}
    channels = case["width"] // heads
    real = rng.standard_normal((nodes, heads, channels), dtype=np.float32)
    everywhere("GatAggregate", {"negative_slope": 0.2}, case["threads"], x=real, **inputs)
    codes = rng.integers(0, 256, (nodes, heads, channels), dtype=np.uint8)
    own = {name: value for name, value in case["attributes"].items() if name in ATTRIBUTES["QGatAggregate"]}
    attributes = {**ATTRIBUTES["QGatAggregate"], **own, "msg_scale": 0.013, "msg_zero": 90, "score_scale": score_scale}
    everywhere("QGatAggregate", attributes, case["threads"], x=codes, **inputs)
    values = scores["source_score"][indices]
    everywhere(
        "SegmentSoftmax",
        {},
        case["threads"],
        values=values,
        indptr=indptr,
        indices=np.arange(len(indices), dtype=np.int32),
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_graph_in_many_tasks(threads: int) -> None:
    """More entries than one task has, and a node with all the others as neighbours."""
    rng = np.random.default_rng(threads)
    nodes, width = 9000, 70
    edge_index = rng.integers(0, nodes, (2, 600_000))
    edge_index[1, :nodes], edge_index[0, :nodes] = 4321, np.arange(nodes)
    found = everywhere("CooToCsr", {"self_loops": "none"}, threads, edge_index=edge_index, num_nodes=np.array([nodes]))
    for got, want in zip(found, onnx_files.coo_to_csr(edge_index, nodes), strict=True):
        np.testing.assert_array_equal(got, want)
    csr = dict(zip(("indptr", "indices", "edges"), found, strict=True))
    x = rng.integers(0, 256, (nodes, width), dtype=np.uint8)
    attributes = {**CODES, "x_zero": 120, "y_scale": 30.0, "y_zero": 128}
    (got,) = everywhere("QAggregate", attributes, threads, x=x, indptr=csr["indptr"], indices=csr["indices"])
    np.testing.assert_array_equal(got, reference(x, csr, attributes, None))
    # A bad index is found in whichever task it is.
    csr["indices"][-1] = nodes
    with pytest.raises(Exception, match=rf"indices\[599999\] = {nodes} is not one of the {nodes} rows"):
        onnx_files.run("QAggregate", attributes, threads, x=x, indptr=csr["indptr"], indices=csr["indices"])
    edge_index[0, 77] = -5
    with pytest.raises(Exception, match=r"edge_index\[0, 77\] = -5"):
        onnx_files.run("CooToCsr", {"self_loops": "none"}, threads, edge_index=edge_index, num_nodes=np.array(nodes))


def test_add_remaining_in_many_chunks() -> None:
    rng = np.random.default_rng(5)
    nodes = 5000
    edge_index = rng.integers(0, nodes, (2, 700_000))
    edge_index[1, ::7] = edge_index[0, ::7]
    given_edges = {"edge_index": edge_index, "num_nodes": np.array(nodes)}
    (looped,) = onnx_files.run("WithSelfLoops", {}, **given_edges)
    found = onnx_files.run("CooToCsr", {"self_loops": "add_remaining"}, 2, **given_edges)
    for got, want in zip(found, onnx_files.coo_to_csr(looped, nodes), strict=True):
        np.testing.assert_array_equal(got, want)


def test_empty_graphs() -> None:
    """No nodes; nodes without edges."""
    none = np.zeros((2, 0), np.int64)
    for nodes in (0, 3):
        for loops in ("none", "add_remaining"):
            given_edges = {"edge_index": none, "num_nodes": np.array(nodes)}
            indptr, indices, edges = onnx_files.run("CooToCsr", {"self_loops": loops}, **given_edges)
            assert len(indices) == len(edges) == (nodes if loops == "add_remaining" else 0)
            x = np.full((nodes, 9), 200, np.uint8)
            attributes = {**CODES, "x_zero": 200, "y_zero": 77, "low": 50}
            (out,) = onnx_files.run("QAggregate", attributes, x=x, indptr=indptr, indices=indices)
            assert out.shape == (nodes, 9)
            assert (out == 77).all()
            (out,) = onnx_files.run(
                "Aggregate", {"reduce": "max"}, x=x.astype(np.float32), indptr=indptr, indices=indices
            )
            assert (out == (200 if loops == "add_remaining" else 0)).all()
    # A node without features.
    (out,) = onnx_files.run("QAggregate", CODES, x=np.zeros((3, 0), np.uint8), indptr=indptr, indices=indices)
    assert out.shape == (3, 0)


def test_halves_round_to_even() -> None:
    """A sum of c codes 1 at scale 1/2: 0.5, 1.5, 2.5 ... become 0, 2, 2 ..., around any zero point."""
    nodes = 40
    indptr = np.concatenate([[0], np.cumsum(np.arange(nodes))]).astype(np.int32)
    indices = np.zeros(indptr[-1], np.int32)
    attributes = {**CODES, "x_scale": 0.5, "y_scale": 1.0}
    for zero in (0, 1):
        for codes, sign in ((1, 1), (0, -1)):
            change = {"y_zero": 100 + zero, "x_zero": 1 - codes}
            (out,) = everywhere(
                "QAggregate",
                {**attributes, **change},
                x=np.full((1, 6), codes, np.uint8),
                indptr=indptr,
                indices=indices,
            )
            want = np.rint(sign * np.arange(nodes) / 2) + 100 + zero
            np.testing.assert_array_equal(out, np.repeat(want[:, None], 6, axis=1))


def test_nan_stays_visible() -> None:
    x = np.array([[np.nan, 1.0], [5.0, 2.0]], np.float32)
    graph = {"indptr": np.array([0, 2], np.int32), "indices": np.array([0, 1], np.int32)}
    for reduce in ("sum", "mean", "max"):
        (out,) = everywhere("Aggregate", {"reduce": reduce}, x=x, **graph)
        assert np.isnan(out[0, 0])
        assert out[0, 1] == {"sum": 3.0, "mean": 1.5, "max": 2.0}[reduce]
    scores = {"source_score": np.array([[np.nan], [0.0]], np.float32), "target_score": np.zeros((1, 1), np.float32)}
    (out,) = everywhere("GatAggregate", {"negative_slope": 0.2}, x=x[:, None] * 0 + 1, **graph, **scores)
    assert np.isnan(out).all()


@pytest.mark.parametrize("message_scale", [0.5, 0.25, 1.0, 0.1])
def test_messages_between_two_codes(message_scale: float) -> None:
    """One neighbour has weight 1, so messages are the codes themselves, by scales that put many right on a half."""
    nodes, heads, channels = 256, 2, 48
    codes = np.arange(nodes * heads * channels).astype(np.uint8).reshape(nodes, heads, channels)
    loops = np.arange(nodes, dtype=np.int32)
    graph = {"indptr": np.arange(nodes + 1, dtype=np.int32), "indices": loops}
    scores = {name: np.ones((nodes, heads), np.float32) for name in ("source_score", "target_score")}
    attributes = {**ATTRIBUTES["QGatAggregate"], "x_scale": message_scale / 2, "x_zero": 3, "msg_scale": message_scale}
    attributes |= {"msg_zero": 31, "y_scale": message_scale, "y_zero": 31}
    (got,) = everywhere("QGatAggregate", attributes, x=codes, **graph, **scores)
    f32 = np.float32
    real = (codes.astype(f32) - 3) * f32(message_scale / 2) / f32(message_scale)
    np.testing.assert_array_equal(got, np.clip(np.rint(real) + 31, 0, 255))
