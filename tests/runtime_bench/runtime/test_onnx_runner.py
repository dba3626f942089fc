"""The runner: what it refuses, in which words; graphs without nodes; files of others."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_graphs import FORMS, file_of, needs_ops, open_graph, random_edges

from bgnn.runtime_bench.runtime import run
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

bgnn = torch.ops.bgnn


def layer(m, x, edges, weight):
    message = weight.view(-1, 1) * x.index_select(0, edges.select(0, 0))
    return bgnn.segment_sum(message, edges.select(0, 1), x.shape[0])


def example(nodes: int = 6, edges: int = 9) -> tuple[torch.Tensor, ...]:
    return torch.randn(nodes, 8), random_edges(nodes, edges), torch.rand(edges)


@pytest.fixture(scope="module", params=FORMS)
def model(request):
    return OnnxModel(file_of(open_graph(layer, *example()), request.param))


def arrays(**other: np.ndarray) -> dict[str, np.ndarray]:
    given = {f"in{i}": value.numpy() for i, value in enumerate(example())}
    return {**given, **other}


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.reshape(-1)[3] = value
    return array


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"in1": arrays()["in1"].astype(np.float32)}, r"input in1 must be int64 \[2, edges\], got float32: .*int64"),
        ({"in1": arrays()["in1"].astype(np.int32)}, r"input in1 must be int64 \[2, edges\], got int32: .*int64"),
        ({"in1": arrays()["in1"].T}, r"input in1 must be int64 \[2, edges\], got \[9, 2\]"),
        ({"in1": with_value(arrays()["in1"], 6)}, r"input in1 holds 6, but there are 6 nodes: indices go from 0 to 5"),
        ({"in1": with_value(arrays()["in1"], -1)}, r"input in1 holds -1"),
        (
            {"in0": arrays()["in0"].astype(np.float64)},
            r"input in0 must be float32 \[nodes, 8\], got float64: .*float32",
        ),
        ({"in0": arrays()["in0"][:, :7]}, r"input in0 must be float32 \[nodes, 8\], got \[6, 7\]"),
        ({"in0": arrays()["in0"][0]}, r"input in0 must be float32 \[nodes, 8\], got \[8\]"),
        ({"in0": with_value(arrays()["in0"], np.nan)}, r"input in0 holds 1 NaN"),
        ({"in2": arrays()["in2"][:5]}, r"input in2 has 5 edges, but input in1 has 9"),
        ({"in3": arrays()["in2"]}, r"the file's inputs are in0, in1, in2; given were in0, in1, in2, in3"),
    ],
)
def test_bad_inputs(model, other, message):
    with pytest.raises(UsageError, match=message) as caught:
        model.run(**arrays(**other))
    assert "\n" not in str(caught.value)


def test_more_edges_of_a_node_than_the_sums_hold(model, monkeypatch):
    monkeypatch.setitem(model.properties, "bgnn.max_degree", "5")
    edges = np.array([[0, 1, 2, 3], [4, 4, 4, 4]])
    given = {"in1": edges, "in2": np.ones(4, np.float32)}
    assert model.run(**arrays(**given))["out0"].shape == (6, 8)
    given = {"in1": np.tile(edges, 2), "in2": np.ones(8, np.float32)}
    with pytest.raises(UsageError, match=r"input in1 names one node 8 times: .* fewer than 5 edges of a node"):
        model.run(**arrays(**given))


def test_infinite_features_are_the_users(model):
    out = model.run(**arrays(in0=with_value(arrays()["in0"], np.inf)))["out0"]
    assert out.shape == (6, 8)


def test_no_nodes(model):
    empty = {"in0": np.zeros((0, 8), np.float32), "in1": np.zeros((2, 0), np.int64), "in2": np.zeros(0, np.float32)}
    assert model.run(**empty)["out0"].shape == (0, 8)


def test_inputs_of_any_layout(model):
    given = arrays()
    turned = {name: np.asfortranarray(value) for name, value in given.items()}
    np.testing.assert_array_equal(model.run(**given)["out0"], model.run(**turned)["out0"])


def test_laid_out_once_and_run_twice(model):
    feeds = model.feeds(**arrays())
    np.testing.assert_array_equal(model.run_feeds(feeds)["out0"], model.run_feeds(feeds)["out0"])


def test_threads(model, tmp_path):
    path = tmp_path / "layer.onnx"
    path.write_bytes(file_of(open_graph(layer, *example())))
    given = {f"in{i}": value.numpy() for i, value in enumerate(example(3000, 40000))}
    one, two = (OnnxModel(path, threads).run(**given)["out0"] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(UsageError, match="threads = 0"):
        OnnxModel(path, 0)


def test_files_that_are_none(tmp_path):
    with pytest.raises(BgnnError, match=r"cannot read .*missing\.onnx"):
        OnnxModel(tmp_path / "missing.onnx")
    for data in (b"", b"not a file", bytes(range(256)) * 9, file_of(open_graph(layer, *example()))[:400]):
        with pytest.raises(BgnnError, match=r"ONNX Runtime refuses|not a file of bgnn-convert"):
            OnnxModel(data)


def test_files_of_others():
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", info[:1], info[1:])
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(BgnnError, match="not a file of bgnn-convert"):
        OnnxModel(other.SerializeToString())


@needs_ops
def test_the_operators_are_loaded_where_they_are_needed(monkeypatch):
    monkeypatch.setenv("BGNN_ORT_OPS", "/nowhere/libbgnn_ort.so")
    gm = open_graph(layer, *example())
    OnnxModel(file_of(gm))
    with pytest.raises(BgnnError, match=r"/nowhere/libbgnn_ort\.so"):
        OnnxModel(file_of(gm, (1, "bgnn")))


def test_the_domain_is_read_from_the_file_alone():
    """A text `bgnn` in a name is no import of the domain."""
    data = onnx.load_from_string(file_of(open_graph(layer, *example())))
    data.doc_string = "\x0a\x04bgnn\x10\x01"
    OnnxModel(data.SerializeToString())


def damaged(data: bytes, key: str, value: str | None) -> bytes:
    """The file with another property, or without it."""
    model = onnx.load_from_string(data)
    kept = {one.key: one.value for one in model.metadata_props if one.key != key}
    del model.metadata_props[:]
    helper.set_model_props(model, kept | ({} if value is None else {key: value}))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, text)
            for key in ("bgnn.inputs", "bgnn.neighbour_tables")
            for text in ("", "{", "3", "[3]", "[{}]", "[" * 9999)
        ),
        ("bgnn.inputs", '[{"name": "in0", "dtype": "O", "shape": [], "index": false}]'),
        ("bgnn.inputs", '[{"name": "in0", "dtype": "float32", "shape": [-1], "index": false}]'),
        ("bgnn.max_degree", "many"),
        *(
            ("bgnn.sums", text)
            for text in ("3", "[{}]", '[{"tensor": 3}]', '[{"tensor": "x", "name": "", "ends": [], "seen": -3}]')
        ),
        ("bgnn.max_degree", "9" * 9999),
    ],
)
def test_damaged_properties(key: str, value: str) -> None:
    data = file_of(open_graph(layer, *example()))
    with pytest.raises(BgnnError):
        OnnxModel(damaged(data, key, value)).run(**arrays())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("buckets", 10**9), ("buckets", 0), ("buckets", "8"), ("block", 0), ("block", "4096"), ("row", 2),
        ("index", "in9"), ("fields", ["all"]), ("fields", 3), ("size", 3), ("size", [["x"]]),
        ("size", [[1, {"input": "in0", "axis": 2}]]), ("size", [[-1]]), ("name", "other"),
    ],
)  # fmt: skip
def test_damaged_tables(field: str, value: object) -> None:
    data = file_of(open_graph(layer, *example()))
    (properties,) = [p for p in onnx.load_from_string(data).metadata_props if p.key == "bgnn.neighbour_tables"]
    tables = json.loads(properties.value)
    tables[0][field] = value
    with pytest.raises(BgnnError):
        OnnxModel(damaged(data, "bgnn.neighbour_tables", json.dumps(tables))).run(**arrays())


def test_a_size_that_takes_the_machine() -> None:
    data = file_of(open_graph(layer, *example()))
    (properties,) = [p for p in onnx.load_from_string(data).metadata_props if p.key == "bgnn.neighbour_tables"]
    tables = json.loads(properties.value)
    tables[0]["size"] = [[10**12]]
    with pytest.raises(UsageError, match="more than the budget"):
        OnnxModel(damaged(data, "bgnn.neighbour_tables", json.dumps(tables))).run(**arrays())


def test_a_file_of_one_endless_number() -> None:
    """Protobuf's numbers end after ten bytes: this one would be a million bytes long."""
    with pytest.raises(BgnnError, match="ONNX Runtime refuses the file"):
        OnnxModel(b"\xff" * 1_000_000)


def test_bgnn_run_takes_onnx_files(tmp_path, capsys):
    def layer(m, x, edges):
        return torch.ops.bgnn.segment_sum(x.index_select(0, edges.select(0, 0)), edges.select(0, 1), x.shape[0])

    path = tmp_path / "sum.onnx"
    path.write_bytes(file_of(open_graph(layer, torch.randn(9, 8), random_edges(9, 20))))
    x, edges = np.ones((4, 8), np.float32), np.array([[0, 1, 2], [3, 3, 0]])
    np.savez(tmp_path / "by_name.npz", in0=x, in1=edges)
    np.savez(tmp_path / "by_place.npz", x, edges)
    for name in ("by_name", "by_place"):
        out = tmp_path / "out.npz"
        assert run.main([str(path), "--input", str(tmp_path / f"{name}.npz"), "--output", str(out)]) == 0
        np.testing.assert_array_equal(np.load(out)["out0"][:, 0], [1, 0, 0, 2])
    assert "out0: float32 [4, 8]" in capsys.readouterr().out
    np.savez(tmp_path / "wrong.npz", in0=x, in1=edges + 9)
    assert run.main([str(path), "--input", str(tmp_path / "wrong.npz")]) == 2
    assert "in1 holds" in capsys.readouterr().err
