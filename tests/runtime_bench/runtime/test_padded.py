"""What a TFLite file says of the graphs that it takes, read from its bytes, damaged ones among them."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

from bgnn.converter.tflite.builder import FileBuilder
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.padded import KEY, Padding, metadata, padding_of

X = {"name": "x", "dtype": "float32", "shape": ["nodes", 2], "indices": []}
EDGES = {
    "name": "edges", "dtype": "int64", "shape": [2, "edges"],
    "indices": [{"row": None, "below": [[[1, {"input": "x", "axis": 0}]]]}],
}  # fmt: skip
NODES = {"rows": [[1, {"input": "x", "axis": 0}]]}


def told(**more: object) -> str:
    return json.dumps({"inputs": [X, EDGES], "most": {"nodes": 4, "edges": 3}, "outputs": [[NODES, None]], **more})


def file_with(entries: dict[str, str]) -> bytes:
    builder = FileBuilder("tiny")
    x = builder.tensor("x", (2,), np.dtype(np.float32))
    return builder.finish([("x", x)], [("x", x)], entries)


def test_metadata_are_read_from_the_file() -> None:
    data = file_with({"a": "first", KEY: told(), "empty": ""})
    assert metadata(data, "a") == "first"
    assert metadata(data, "absent") is None
    padding = padding_of(data)
    assert padding is not None
    assert padding.most == {"nodes": 4, "edges": 3}
    assert padding_of(file_with({"a": "b"})) is None


@pytest.mark.parametrize("dtype", ["int64", "int32"])  # the model's, of edges that the file has as int32
def test_a_graph_is_filled_up_and_its_results_are_cut(dtype: str) -> None:
    padding = Padding(told(inputs=[X, {**EDGES, "dtype": dtype}]))
    x, edges = np.ones((2, 2), np.float32), np.array([[0], [1]], np.int32)
    arrays = padding.check({"x": x, "edges": edges})
    whole, index = padding.fill(arrays)
    np.testing.assert_array_equal(whole, [[1, 1], [1, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(index, [[0, -1, -1], [1, -1, -1]])
    assert index.dtype == np.int32
    (found,) = padding.cut([np.arange(12.0).reshape(4, 3)], ["out"], arrays)
    np.testing.assert_array_equal(found, [[0, 1, 2], [3, 4, 5]])


def test_rows_of_edges_that_are_there() -> None:
    by_index = {"there": "rows/0", "below": NODES["rows"]}
    padding = Padding(told(outputs=[[by_index]]))
    arrays = padding.check({"x": np.ones((2, 2), np.float32), "edges": np.zeros((2, 1), np.int64)})
    # Of a loop that went, an edge that was never there, and the loop of a node behind the graph.
    results = [np.arange(5.0), np.array([-1, 1, -1, 0, 2], np.int32)]
    (found,) = padding.cut(results, ["out", "rows/0"], arrays)
    np.testing.assert_array_equal(found, [1, 3])


def test_a_graph_that_does_not_fit() -> None:
    padding = Padding(told(max_degree=2))
    edges = np.zeros((2, 1), np.int64)
    for x, index, message in (
        (np.ones((5, 2), np.float32), edges, r"5 nodes, and the file takes at most 4: .*--fixed nodes=5"),
        (np.ones((2, 2), np.float32), edges + 2, "there are 2 nodes"),
        (np.ones((2, 2), np.float32), np.array([[0, 1], [1, 1]]), "names one node 2 times"),
        (np.ones((2, 3), np.float32), edges, r"input x must be float32 \[nodes, 2\]"),
    ):
        with pytest.raises(UsageError, match=message):
            padding.check({"x": x, "edges": index})


def test_damaged_files_are_refused() -> None:
    data = file_with({KEY: told()})
    rng = np.random.default_rng(0)
    for _ in range(3000):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 4):
            changed[at] = rng.integers(256)
        with contextlib.suppress(BgnnError):  # and nothing else is raised
            padding_of(bytes(changed[: rng.integers(1, len(data))]) if rng.integers(4) == 0 else bytes(changed))
    for text in ("{}", "[]", '{"inputs": 3}', told(most={"nodes": "x"}), told(outputs=7)):
        with pytest.raises(BgnnError, match="damaged"):
            padding_of(file_with({KEY: text}))
