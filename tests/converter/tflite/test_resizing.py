"""Files of several sizes: what in one depends on them is found by writing it at others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from torch import fx

from bgnn.converter.errors import BgnnError, ConversionError
from bgnn.converter.tflite.builder import FileBuilder, Value
from bgnn.converter.tflite.inspect import operators
from bgnn.converter.tflite.resizing import Written, resized
from bgnn.runtime_bench.runtime import delegate

F32, I32 = np.dtype(np.float32), np.dtype(np.int32)
DESCRIBED = [{"shape": ["nodes", 2]}, {"shape": [2, "edges"]}]
Add = Callable[[FileBuilder, Value, int, int], Value]


def written(add: Add) -> Callable[[Mapping[str, int]], Written]:
    """A file of x f32 [nodes, 2] and edges int32 [2, edges], and what `add` makes of them."""

    def build(sizes: Mapping[str, int]) -> Written:
        builder = FileBuilder("tiny")
        x, edges = builder.tensor("x", (sizes["nodes"], 2), F32), builder.tensor("edges", (2, sizes["edges"]), I32)
        return Written(builder, [("x", x), ("edges", edges)], [("out", add(builder, x, *sizes.values()))], [])

    return build


def resize(add: Add) -> Written:
    return resized(written(add), fx.GraphModule({}, fx.Graph()), {"nodes": 30, "edges": 120}, DESCRIBED)


def fill(builder: FileBuilder, shape: tuple[int, ...]) -> Value:
    out = builder.tensor("filled", shape, F32)
    inputs = [builder.constant("shape", np.array(shape, np.int32)), builder.constant("one", np.float32(1))]
    builder.builtin("FILL", inputs, [out], schema.FillOptionsT())
    return out


def reshape(builder: FileBuilder, x: Value, shape: tuple[int, ...]) -> Value:
    out = builder.tensor("reshaped", shape, F32)
    options = schema.ReshapeOptionsT(newShape=list(shape))
    builder.builtin("RESHAPE", [x, builder.constant("shape", np.array(shape, np.int32))], [out], options)
    return out


def run(file: Written, nodes: int, edges: int) -> tuple[np.ndarray, bytes]:
    data = file.builder.finish(file.inputs, file.outputs, {})
    interpreter = delegate.load_interpreter(data)
    details = interpreter.get_input_details()
    assert [one["shape"].tolist() for one in details] == [[30, 2], [2, 120]]
    assert [one["shape_signature"].tolist() for one in details] == [[-1, 2], [2, -1]]
    x = np.arange(2 * nodes, dtype=np.float32).reshape(nodes, 2)
    for one, array in zip(details, (x, np.zeros((2, edges), np.int32)), strict=True):
        interpreter.resize_tensor_input(one["index"], array.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(one["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), data


@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (30, 120)])
def test_numbers_follow_the_sizes(sizes: tuple[int, int]) -> None:
    def add(builder: FileBuilder, x: Value, nodes: int, edges: int) -> Value:
        return fill(builder, (2 * nodes + 3 * edges + 5, 4))

    found, data = run(resize(add), *sizes)
    assert operators(data) == {"BgnnSizes": 1, "FILL": 1}
    np.testing.assert_array_equal(found, np.ones((2 * sizes[0] + 3 * sizes[1] + 5, 4), np.float32))


def test_one_open_axis_of_a_new_shape_needs_no_number() -> None:
    def add(builder: FileBuilder, x: Value, nodes: int, edges: int) -> Value:
        return reshape(builder, x, (2 * nodes, 1))

    found, data = run(resize(add), 5, 1)
    assert operators(data) == {"RESHAPE": 1}
    np.testing.assert_array_equal(found, np.arange(10, dtype=np.float32)[:, None])


@pytest.mark.parametrize(
    ("add", "reason"),
    [
        (lambda builder, x, nodes, edges: fill(builder, (nodes * edges, 1)), "no sum of sizes"),
        (lambda builder, x, nodes, edges: fill(builder, (nodes // 2, 1)), "no sum of sizes"),
        (lambda builder, x, nodes, edges: fill(builder, (nodes, 1) if nodes % 10 == 7 else (nodes,)), "are others"),
        (lambda builder, x, nodes, edges: builder.constant("a", np.arange(nodes, dtype=np.int32)), "are others"),
    ],
)
def test_what_depends_on_sizes_in_another_way_is_refused(add: Any, reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        resize(add)


@pytest.mark.parametrize(
    ("terms", "axes", "output", "reason"),
    [
        ([[1, 2]], [0], ((1,), F32), "must be a vector of int32"),
        ([[1, 2]], [0], ((1, 1), I32), "must be a vector of int32"),
        ([[1, 2]], [2], ((1,), I32), "no such axis"),
        ([[1, 2]], [-1], ((1,), I32), "no such axis"),
        ([[1, 2, 3]], [0], ((1,), I32), "do not fit"),
        ([[1, 2]], [0, 1], ((1,), I32), "do not fit"),
        ([[1, 2**31 - 1]], [0], ((1,), I32), "larger than"),
        ([1, 2], [0], ((1,), I32), "must be constants"),
    ],
)
def test_damaged_sizes_are_refused(terms: Any, axes: Any, output: Any, reason: str) -> None:
    builder = FileBuilder("tiny")
    x, out = builder.tensor("x", (3, 2), F32), builder.tensor("out", *output)
    given = [builder.constant("t", np.array(terms, np.int32)), builder.constant("a", np.array(axes, np.int32)), x]
    builder.custom("BgnnSizes", given, [out], b"")
    with pytest.raises(BgnnError, match=reason):
        delegate.load_interpreter(builder.finish([("x", x)], [("out", out)], {}))


def test_a_tensor_that_lives_on_is_not_enlarged() -> None:
    """LiteRT plans its memory; to make it the operator's own was a double free."""
    builder = FileBuilder("tiny")
    x, out = builder.tensor("x", (3, 2), F32), builder.tensor("out", (1,), I32)
    given = [builder.constant("t", np.array([[1, 2]], np.int32)), builder.constant("a", np.array([0], np.int32)), x]
    builder.custom("BgnnSizes", given, [out], b"")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(builder.finish([("x", x)], [("out", out)], {})))
    model.subgraphs[0].tensors[out.index].isVariable = True
    packed = flatbuffers.Builder()
    packed.Finish(model.Pack(packed), b"TFL3")
    with pytest.raises(BgnnError, match=r"BgnnSizes \(operator 0 of the file\): its output is made elsewhere"):
        delegate.load_interpreter(bytes(packed.Output()))
