"""Random inputs fit the file that they are made for; given ones are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from bgnn.converter.api import convert
from bgnn.runtime_bench.bench.candidates import CANDIDATES, DELEGATE
from bgnn.runtime_bench.bench.inputs import OPEN_SIZES, inputs_for, kind_of
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.profile import profile_tflite
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.onnx_runner import open_session
from bgnn.runtime_bench.runtime.padded import ABSENT


class PooledSums(torch.nn.Module):
    """The neighbours' sum, and its mean over each of four graphs."""

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        x = torch.zeros_like(x).index_add_(0, edge_index[1], x[edge_index[0]])
        return torch.zeros(4, x.size(1)).index_add_(0, batch, x)


def graph_file(target: str, kernels: str = "stock") -> bytes:
    example = torch.randn(12, 3), torch.randint(0, 12, (2, 40)), torch.arange(12) // 3
    done = convert(PooledSums().eval(), example, target=target, name="sums", kernels=kernels)
    assert done.model_bytes is not None
    return done.model_bytes


def onnx_file(*inputs: tuple[str, int, list[Any]]) -> bytes:
    infos = [helper.make_tensor_value_info(*one) for one in inputs]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in inputs]
    outs = [helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, kind, shape in inputs]
    graph = helper.make_graph(nodes, "g", infos, outs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def test_kinds() -> None:
    assert kind_of(Path("a.bin"), b"\0\0\0\0TFL3") == "tflite"
    assert kind_of(Path("a.onnx"), b"\x08\x08") == "onnx"
    for name in ("a.tflite", "a.txt"):
        with pytest.raises(BgnnError, match="neither a TFLite file"):
            kind_of(Path(name), b"some text")


def test_random_graphs_of_an_open_file_are_valid() -> None:
    content = graph_file("onnx-x86")
    found = inputs_for(Path("sums.onnx"), content, None, 0)
    assert "random, seed 0" in found.what
    assert f"{OPEN_SIZES['nodes']} nodes" in found.what
    session = open_session(content, 1)
    assert list(found.arrays) == [one.name for one in session.get_inputs()], "in the runtime's order"
    (out,) = session.run(None, found.arrays)
    assert np.isfinite(out).all()
    again, other = (inputs_for(Path("sums.onnx"), content, None, seed) for seed in (0, 1))
    assert all(np.array_equal(again.arrays[name], array) for name, array in found.arrays.items())
    assert not np.array_equal(other.arrays["x"], found.arrays["x"])


def test_random_graphs_fill_a_padded_file() -> None:
    content = graph_file("tflite-arm64")
    found = inputs_for(Path("sums.tflite"), content, None, 0)
    assert "12 nodes" in found.what
    assert "40 edges" in found.what
    edges, batch = found.arrays["edge_index"], found.arrays["batch"]
    assert edges.dtype == batch.dtype == np.int32
    assert edges.min() >= 0
    assert edges.max() < 12
    assert (np.diff(batch) >= 0).all(), "nodes of one graph stand together"


def test_a_smaller_graph_is_filled_up() -> None:
    x, edges, batch = np.ones((3, 3), np.float32), np.array([[0, 1], [1, 2]]), np.zeros(3, np.int64)
    given = {"x": x, "edge_index": edges, "batch": batch}
    found = inputs_for(Path("sums.tflite"), graph_file("tflite-arm64"), given, 0)
    assert found.what == "given, 3 nodes, 2 edges"
    assert found.arrays["x"].shape == (12, 3)
    assert (found.arrays["edge_index"][:, 2:] == ABSENT).all()
    with pytest.raises(UsageError, match="missing edge_index"):
        inputs_for(Path("sums.tflite"), graph_file("tflite-arm64"), {"x": x}, 0)


def test_a_file_that_resizes_is_measured_at_the_graphs_own_size() -> None:
    x, edges, batch = np.arange(9, dtype=np.float32).reshape(3, 3), np.array([[0, 1], [1, 2]]), np.zeros(3, np.int64)
    content = graph_file("tflite-arm64", "bgnn")
    found = inputs_for(Path("sums.tflite"), content, {"x": x, "edge_index": edges, "batch": batch}, 0)
    assert [array.shape for array in found.arrays.values()] == [(3, 3), (2, 2), (3,)]
    arrays = list(found.arrays.values())
    opened = next(row for row in CANDIDATES if row.name == DELEGATE).open(content, 1, arrays)
    opened.run()
    assert opened.outputs()[0].tolist() == [[3, 5, 7], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    once = Schedule(rounds=1, seconds=0, warmup_seconds=0)
    names = {one.kind for one in profile_tflite(content, 1, arrays, True, once).operators}
    assert "BgnnAggregate" in names


def test_other_peoples_files() -> None:
    kinds = onnx.TensorProto
    content = onnx_file(
        ("a", kinds.FLOAT, ["batch", 3]), ("b", kinds.INT64, [50]), ("c", kinds.UINT8, [200]), ("d", kinds.BOOL, [50])
    )
    found = inputs_for(Path("plain.onnx"), content, None, 0)
    assert found.what == "random, seed 0, open axes of size 1"
    a, b, c, d = found.arrays.values()
    assert (a.shape, a.dtype) == ((1, 3), np.float32)
    assert (b.dtype, sorted(set(b.tolist()))) == (np.int64, [0, 1])
    assert c.dtype == np.uint8
    assert c.max() > 100
    assert d.dtype == bool
    given = {f"arr_{i}": array for i, array in enumerate(found.arrays.values())}
    assert list(inputs_for(Path("plain.onnx"), content, given, 0).arrays) == ["a", "b", "c", "d"]


def test_a_plain_tflite_file(float_file: bytes) -> None:
    found = inputs_for(Path("float.tflite"), float_file, None, 3)
    assert {name: (array.shape, array.dtype) for name, array in found.arrays.items()} == {
        "x": ((2, 3), np.float32),
        "y": ((4,), np.float32),
    }
    with pytest.raises(UsageError, match="missing y"):
        inputs_for(Path("float.tflite"), float_file, {"x": np.ones((2, 3), np.float32)}, 0)


def test_what_no_values_are_made_of() -> None:
    content = onnx_file(("words", onnx.TensorProto.STRING, [2]))
    with pytest.raises(BgnnError, match="which cannot be made"):
        inputs_for(Path("text.onnx"), content, None, 0)
