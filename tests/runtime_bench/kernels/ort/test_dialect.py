"""The operators against the dialect: each is what `converter/dialect_int8.py` and `dialect_graph.py` say it is.

Integer operators agree code by code; attention goes through an exponential, where two libraries may round apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_files
import pytest
import torch

import bgnn.converter.dialect_int8  # noqa: F401  (defines the operators)
from bgnn.runtime_bench.runtime.onnx_ops import session

ops = torch.ops.bgnn
NODES, EDGES = 40, 300
ISAS = ("portable", "avx2", "avx512")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BGNN_ISA", request.param)
    if onnx_files.isa_here() is None:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


def graph(rng: np.random.Generator, nodes: int = NODES, edges: int = EDGES) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Random edges with loops, duplicates and isolated nodes, as COO and as CooToCsr gives it."""
    edge_index = rng.integers(0, nodes, (2, edges)) // 2 * 2  # odd nodes are isolated
    csr = onnx_files.run("CooToCsr", {"self_loops": "none"}, edge_index=edge_index, num_nodes=np.array(nodes))
    return edge_index, dict(zip(("indptr", "indices", "edges"), csr, strict=True))


def tensors(**arrays: np.ndarray) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


X, W, Y = (
    {"x_scale": 0.021, "x_zero": 117},
    {"w_scale": 0.0041, "w_zero": 9},
    {"y_scale": 0.13, "y_zero": 101, "low": 0, "high": 255},
)
MESSAGES = {
    "as they are": {"msg_scale": 0.0, "msg_zero": 0, "msg_low": 0, "msg_high": 255},
    "requantised": {"msg_scale": 0.0117, "msg_zero": 131, "msg_low": 3, "msg_high": 250},
    "never clamped": {"msg_scale": 0.025, "msg_zero": 131, "msg_low": 0, "msg_high": 255},
}


@pytest.mark.parametrize("width", [1, 3, 4, 7, 16, 33, 64, 100, 128, 300])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("bits", [8, 4])
def test_q_aggregate(isa: str, width: int, weighted: bool, message: str, bits: int) -> None:
    rng = np.random.default_rng(width)
    edge_index, csr = graph(rng)
    x = rng.integers(0, 256, (NODES, width), dtype=np.uint8)
    weight = rng.integers(0, 256, EDGES, dtype=np.uint8) if weighted else None
    attributes = {**X, **W, **MESSAGES[message], **Y}
    if bits == 4:
        attributes |= {"low": 2, "high": 15, "y_zero": 7}
    want = ops.q_aggregate(
        torch.from_numpy(x),
        *X.values(),
        torch.from_numpy(edge_index),
        torch.from_numpy(weight) if weight is not None else None,
        *W.values(),
        *MESSAGES[message].values(),
        *(attributes[name] for name in Y),
        NODES,
    )
    inputs = {**csr, "weight": weight} if weight is not None else {name: csr[name] for name in ("indptr", "indices")}
    (got,) = onnx_files.run("QAggregate", {"reduce": "sum", **attributes}, x=x, **inputs)
    np.testing.assert_array_equal(got, want)


SHAPES = [
    (1, 1),
    (3, 1),
    (31, 1),
    (33, 1),
    (5, 7),
    (64, 7),
    (16, 32),
    (63, 64),
    (64, 64),
    (65, 65),
    (200, 100),
    (7, 300),
]


def tables_of(rng: np.random.Generator, channels: int) -> list[np.ndarray]:
    """One for all channels, and one for each: at random, and those that show a code looked up in another's place."""
    codes = np.arange(256, dtype=np.uint8)
    return [
        rng.integers(0, 256, (1, 256), dtype=np.uint8),
        codes[None, ::-1].copy(),
        rng.integers(0, 256, (channels, 256), dtype=np.uint8),
        codes[None] + np.arange(channels, dtype=np.uint8)[:, None] * 37,
        np.repeat(np.arange(channels, dtype=np.uint8)[:, None], 256, axis=1),
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_q_table(isa: str, shape: tuple[int, int], threads: int) -> None:
    rng = np.random.default_rng(shape)
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    for table in tables_of(rng, shape[1]):
        want = ops.q_table(torch.from_numpy(x), torch.from_numpy(table))
        (got,) = onnx_files.run("QTable", {}, threads, x=x, table=table)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 5), (2, 0, 3), (3, 0), (2, 3, 4, 65), (9001, 70)])
def test_q_table_of_any_shape(isa: str, shape: tuple[int, ...]) -> None:
    """All codes at every channel; a tensor without elements; more than one task."""
    rng = np.random.default_rng(5)
    x = np.arange(np.prod(shape), dtype=np.int64).astype(np.uint8).reshape(shape)
    for table in tables_of(rng, shape[-1]):
        want = ops.q_table(torch.from_numpy(x), torch.from_numpy(table))
        (got,) = onnx_files.run("QTable", {}, 2, x=x, table=table)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("width", [1, 3, 7, 64, 100, 128])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_table_of_an_aggregation(isa: str, width: int, weighted: bool, reduce: str) -> None:
    """As QTable behind it, whatever the aggregation is; in the order of the entries, weights need no places."""
    rng = np.random.default_rng(width)
    nodes = 400  # several pieces
    _, csr = graph(rng, nodes, 5000)
    inputs = {name: csr[name] for name in ("indptr", "indices")}
    x = rng.integers(0, 256, (nodes, width), dtype=np.uint8)
    attributes = {"reduce": reduce, **X, **W, **MESSAGES["as they are"], **Y}
    if weighted and reduce != "max":
        inputs["weight"] = rng.integers(0, 256, 5000, dtype=np.uint8)
        attributes |= MESSAGES["requantised"]
    (plain,) = onnx_files.run("QAggregate", attributes, x=x, **inputs)
    for table in tables_of(rng, width):
        want = ops.q_table(torch.from_numpy(plain), torch.from_numpy(table))
        (got,) = onnx_files.run("QAggregate", attributes, 2, x=x, table=table, **inputs)
        np.testing.assert_array_equal(got, want)


def test_table_of_numbers_of_nodes(isa: str) -> None:
    """x [nodes] has one channel, however many nodes there are."""
    rng = np.random.default_rng(0)
    _, csr = graph(rng)
    x, table = rng.integers(0, 256, NODES, dtype=np.uint8), rng.integers(0, 256, (1, 256), dtype=np.uint8)
    attributes = {"reduce": "sum", **X, **W, **MESSAGES["as they are"], **Y}
    inputs = {"x": x, "indptr": csr["indptr"], "indices": csr["indices"]}
    (plain,) = onnx_files.run("QAggregate", attributes, **inputs)
    (got,) = onnx_files.run("QAggregate", attributes, table=table, **inputs)
    np.testing.assert_array_equal(got, table[0][plain])


@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("message", MESSAGES)
def test_weights_in_either_order(isa: str, places: bool, message: str) -> None:
    """Weights of the list of edges with their places, or in the order of the entries; a node with over 257 entries."""
    rng = np.random.default_rng(1)
    edge_index, csr = graph(rng, 6, 2000)
    x, weight = rng.integers(0, 256, (6, 128), dtype=np.uint8), rng.integers(0, 256, 2000, dtype=np.uint8)
    attributes = {**X, **W, **MESSAGES[message], **Y, "y_scale": 9.0}
    want = ops.q_aggregate(
        *map(torch.from_numpy, (x,)), *X.values(), *map(torch.from_numpy, (edge_index, weight)), *W.values(),
        *MESSAGES[message].values(), *(attributes[name] for name in Y), 6,
    )  # fmt: skip
    given = {"weight": weight, "edges": csr["edges"]} if places else {"weight": weight[csr["edges"]]}
    graph_of = {name: csr[name] for name in ("indptr", "indices")}
    (got,) = onnx_files.run("QAggregate", {"reduce": "sum", **attributes}, x=x, **graph_of, **given)
    np.testing.assert_array_equal(got, want)


MULTIPLIERS = [0.3 / 255, 1 / 255, 1.37 / 255, 1 / 102, 4.1 / 255, 0.0078125, 0.5, 40.0]  # 1 / 102: many exact halves


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("zeros", [(0, 0, 0), (128, 0, 128), (117, 9, 131), (3, 200, 90)])
@pytest.mark.parametrize("places", [False, True])
def test_every_message(isa: str, multiplier: float, zeros: tuple[int, int, int], places: bool) -> None:
    """Each weight is the only one of a node: the sums are the messages, of all codes."""
    x, weight = np.arange(256, dtype=np.uint8)[None], np.arange(256, dtype=np.uint8)
    for low, high in ((0, 255), (7, 99), (50, 50)):
        codes = {"msg_scale": 1.0, "msg_zero": zeros[2], "msg_low": low, "msg_high": high}
        attributes = {
            "reduce": "sum", "x_scale": multiplier, "x_zero": zeros[0], "w_scale": 1.0, "w_zero": zeros[1],
            **codes, "y_scale": 1.0, "y_zero": zeros[2], "low": 0, "high": 255,
        }  # fmt: skip
        inputs = {"indptr": np.arange(257, dtype=np.int32), "indices": np.zeros(256, np.int32), "weight": weight}
        if places:
            inputs |= {"edges": np.arange(255, -1, -1, dtype=np.int32), "weight": weight[::-1].copy()}
        (got,) = onnx_files.run("QAggregate", attributes, x=x, **inputs)
        want = ops.q_mul(
            torch.from_numpy(x), multiplier, zeros[0], torch.from_numpy(weight)[:, None], 1.0, zeros[1], *codes.values()
        )
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("width", [1, 3, 4])
@pytest.mark.parametrize("zero", [100, 101])
def test_narrow_messages_round_as_wide_ones(isa: str, width: int, zero: int) -> None:
    """Every code with every weight, an edge each; at 1 / 186 many of the products are ties."""
    x = np.arange(256, dtype=np.uint8)[:, None].repeat(width, 1)
    codes = {"msg_scale": 1.0, "msg_zero": zero, "msg_low": 0, "msg_high": 255}
    attributes = {
        "reduce": "sum", "x_scale": 1 / 186, "x_zero": 128, "w_scale": 1.0, "w_zero": 0, **codes,
        "y_scale": 1.0, "y_zero": zero, "low": 0, "high": 255,
    }  # fmt: skip
    source, weight = np.tile(np.arange(256, dtype=np.int32), 256), np.arange(256, dtype=np.uint8).repeat(256)
    graph = {"indptr": np.arange(256 * 256 + 1, dtype=np.int32), "indices": source}
    (got,) = onnx_files.run("QAggregate", attributes, x=x, **graph, weight=weight)
    column = torch.from_numpy(weight)[:, None]
    want = ops.q_mul(torch.from_numpy(x[source]), 1 / 186, 128, column, 1.0, 0, *codes.values())
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("width", [1, 5, 64, 130])
def test_q_segments(isa: str, reduce: str, width: int) -> None:
    rng = np.random.default_rng(width)
    index = rng.integers(0, NODES // 2, EDGES)  # the other half is empty
    indptr, edges = onnx_files.run("IndexToCsr", {}, index=index, num_nodes=np.array(NODES))
    m = rng.integers(0, 256, (EDGES, width), dtype=np.uint8)
    arguments: dict[str, Any] = {"m": torch.from_numpy(m), "index": torch.from_numpy(index), "n": NODES, "m_zero": 117}
    if reduce != "max":
        arguments |= {"m_scale": 0.021, **Y}
    want = getattr(ops, f"q_segment_{reduce}")(**arguments)
    attributes = {"reduce": reduce, **X, "w_scale": 1.0, "w_zero": 0, **MESSAGES["as they are"], **Y}
    (got,) = onnx_files.run("QAggregate", attributes, x=m, indptr=indptr, indices=edges)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", [1, 3, 16, 33, 128, 200])
def test_aggregate(isa: str, reduce: str, weighted: bool, width: int) -> None:
    rng = np.random.default_rng(width)
    edge_index, csr = graph(rng)
    x = rng.standard_normal((NODES, width), dtype=np.float32)
    weight = rng.standard_normal(EDGES, dtype=np.float32) if weighted else None
    want = ops.aggregate(
        torch.from_numpy(x),
        torch.from_numpy(edge_index),
        torch.from_numpy(weight) if weight is not None else None,
        NODES,
        reduce,
    )
    inputs = {**csr, "weight": weight} if weight is not None else {name: csr[name] for name in ("indptr", "indices")}
    (got,) = onnx_files.run("Aggregate", {"reduce": reduce}, x=x, **inputs)
    np.testing.assert_array_equal(got, want)  # both add in the order of the edges


@pytest.mark.parametrize(("heads", "channels"), [(1, 7), (8, 8), (4, 33), (2, 1), (3, 64)])
def test_gat_aggregate(isa: str, heads: int, channels: int) -> None:
    rng = np.random.default_rng(heads)
    edge_index, csr = graph(rng)
    x = rng.standard_normal((NODES, heads, channels), dtype=np.float32)
    source, target = (3 * rng.standard_normal((NODES, heads), dtype=np.float32) for _ in range(2))
    want = ops.gat_aggregate(*map(torch.from_numpy, (x, source, target, edge_index)), NODES, 0.2)
    (got,) = onnx_files.run(
        "GatAggregate",
        {"negative_slope": 0.2},
        x=x,
        indptr=csr["indptr"],
        indices=csr["indices"],
        source_score=source,
        target_score=target,
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("score_scale", [0.0, 0.05])
@pytest.mark.parametrize(("heads", "channels"), [(1, 7), (8, 8), (4, 33), (2, 1), (1, 128)])
def test_q_gat_aggregate(isa: str, heads: int, channels: int, score_scale: float) -> None:
    rng = np.random.default_rng(heads)
    edge_index, csr = graph(rng)
    x = rng.integers(0, 256, (NODES, heads, channels), dtype=np.uint8)
    source, target = (3 * rng.standard_normal((NODES, heads), dtype=np.float32) for _ in range(2))
    score = {"score_scale": score_scale, "score_zero": 120, "score_low": 0, "score_high": 255}
    attributes = {"negative_slope": 0.2, **X, **score, **MESSAGES["requantised"], **Y, "y_scale": 0.02}
    want = ops.q_gat_aggregate(
        torch.from_numpy(x),
        *X.values(),
        *map(torch.from_numpy, (source, target, edge_index)),
        *score.values(),
        0.2,
        *MESSAGES["requantised"].values(),
        *(attributes[name] for name in Y),
        NODES,
    )
    (got,) = onnx_files.run(
        "QGatAggregate",
        attributes,
        x=x,
        indptr=csr["indptr"],
        indices=csr["indices"],
        source_score=source,
        target_score=target,
    )
    # A message right between two codes may fall to either side, where the exponentials differ in their last bit.
    assert np.abs(got.astype(int) - want.numpy().astype(int)).max() <= 1
    assert (got != want.numpy()).mean() < 1e-3


@pytest.mark.parametrize(("nodes", "edges"), [(40, 300), (3, 9000), (6000, 20_000)])
def test_edge_products(isa: str, nodes: int, edges: int) -> None:
    """In CSR order: as the edges' own numbers, sorted like them. A node may have more entries than one piece."""
    rng = np.random.default_rng(nodes)
    edge_index, csr = graph(rng, nodes, edges)
    source, target = (rng.standard_normal(nodes, dtype=np.float32) for _ in range(2))
    want = (source[edge_index[0]] * target[edge_index[1]])[csr["edges"]]
    inputs = {"source": source, "indptr": csr["indptr"], "indices": csr["indices"], "target": target}
    (got,) = onnx_files.run("EdgeProduct", {}, **inputs)
    np.testing.assert_array_equal(got, want)
    (got,) = onnx_files.run("QEdgeProduct", {"scale": 0.013, "zero": 99, "low": 3, "high": 240}, 2, **inputs)
    np.testing.assert_array_equal(got, ops.quantize(torch.from_numpy(want), 0.013, 99, 3, 240))
    (got,) = onnx_files.run("Degree", {}, indptr=csr["indptr"])
    np.testing.assert_array_equal(got, np.bincount(edge_index[1], minlength=nodes).astype(np.float32))


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_segment_softmax(isa: str, heads: int) -> None:
    rng = np.random.default_rng(heads)
    index = rng.integers(0, NODES, EDGES)
    indptr, edges = onnx_files.run("IndexToCsr", {}, index=index, num_nodes=np.array(NODES))
    values = 30 * rng.standard_normal((EDGES, heads), dtype=np.float32)
    want = ops.segment_softmax(torch.from_numpy(values), torch.from_numpy(index), NODES)
    (got,) = onnx_files.run("SegmentSoftmax", {}, values=values, indptr=indptr, indices=edges)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("edges", [0, 1, 300, 5000])
@pytest.mark.parametrize("nodes", [1, 2, 40, 3000])
def test_graph_layouts(nodes: int, edges: int) -> None:
    rng = np.random.default_rng(edges)
    edge_index = rng.integers(0, nodes, (2, edges))
    looped = ops.with_self_loops(torch.from_numpy(edge_index), nodes).numpy()
    given = {"edge_index": edge_index, "num_nodes": np.array([nodes])}
    np.testing.assert_array_equal(onnx_files.run("WithSelfLoops", {}, **given)[0], looped)
    for self_loops, coo in (("none", edge_index), ("add_remaining", looped)):
        found = onnx_files.run("CooToCsr", {"self_loops": self_loops}, **given)
        for got, want in zip(found, onnx_files.coo_to_csr(coo, nodes), strict=True):
            np.testing.assert_array_equal(got, want)
    want_indptr, _, want_edges = onnx_files.coo_to_csr(edge_index, nodes)
    indptr, order = onnx_files.run("IndexToCsr", {}, index=edge_index[1].copy(), num_nodes=np.array(nodes))
    np.testing.assert_array_equal(indptr, want_indptr)
    np.testing.assert_array_equal(order, want_edges)


def test_edges_may_be_left_out() -> None:
    edge_index = np.array([[1, 0], [0, 1]])
    file = onnx_files.model("CooToCsr", {"self_loops": "none"}, {"edge_index", "num_nodes"}, outputs=2)
    indptr, indices = session(file).run(None, {"edge_index": edge_index, "num_nodes": np.array(2)})
    assert indptr.tolist() == [0, 1, 2]
    assert indices.tolist() == [1, 0]
