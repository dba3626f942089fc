"""The container: operator versions, constants, the size limit."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from bgnn.converter.errors import ConversionError
from bgnn.converter.tflite import builder as module
from bgnn.converter.tflite.builder import FileBuilder

F32, I32, BOOL = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.bool_)

# The operator, its inputs' shapes and dtype, its options, and the version by TensorFlow Lite's op_version.cc.
VERSIONS = [
    ("ADD", [(2, 3), (3,)], F32, None, 1),
    ("ABS", [(2,)], F32, None, 1),
    ("ABS", [(2,)], I32, None, 5),
    ("BROADCAST_TO", [(2,), (2,)], F32, None, 2),
    ("DIV", [(2, 1, 1, 1, 1), (2, 1, 1, 1, 3)], F32, None, 2),
    ("DIV", [(2, 1, 1, 1, 1), (2, 1, 1, 1, 1)], F32, None, 1),
    ("FULLY_CONNECTED", [(2, 3), (4, 3)], F32, schema.FullyConnectedOptionsT(), 6),
    ("FULLY_CONNECTED", [(2, 3), (4, 3), (4,)], F32, schema.FullyConnectedOptionsT(keepNumDims=True), 5),
    ("FULLY_CONNECTED", [(2, 3), (4, 3), (4,)], F32, schema.FullyConnectedOptionsT(), 1),
    ("GATHER", [(2, 3), (4,)], F32, schema.GatherOptionsT(), 1),
    ("GATHER", [(2, 3), (4,)], BOOL, schema.GatherOptionsT(), 3),
    ("GATHER", [(2, 3), (2, 4)], F32, schema.GatherOptionsT(batchDims=1), 5),
    ("MAXIMUM", [(1, 1, 1, 1, 2), (2,)], F32, None, 3),
    ("SLICE", [(1, 1, 1, 1, 2), (5,), (5,)], F32, None, 5),
    ("SUB", [(1, 1, 1, 2), (2,)], F32, None, 1),
    ("TRANSPOSE", [(1, 2, 3), (3,)], BOOL, None, 3),
    ("TRANSPOSE", [(1, 2, 3, 4, 5), (5,)], F32, None, 4),
    ("TRANSPOSE", [(1, 2, 3, 4, 5, 6), (6,)], F32, None, 6),
]


@pytest.mark.parametrize(("op", "shapes", "dtype", "options", "version"), VERSIONS)
def test_versions(op, shapes, dtype, options, version):
    builder = FileBuilder("test")
    inputs = [builder.tensor("x", shape, dtype) for shape in shapes]
    builder.builtin(op, inputs, [builder.tensor("y", (2,), dtype)], options)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(builder.finish([], [], {}), 0))
    assert [code.version for code in model.operatorCodes] == [version]


def test_constants_share_buffers_by_bytes_and_tensors_by_type():
    builder = FileBuilder("test")
    zeros = builder.constant("a", np.zeros(4, np.float32))
    assert builder.constant("b", np.zeros(4, np.float32)) == zeros
    others = [builder.constant("c", np.zeros(4, np.int32)), builder.constant("d", np.zeros((2, 2), np.float32))]
    assert len({zeros.index, *(value.index for value in others)}) == 3
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(builder.finish([], [], {}), 0))
    assert len(model.buffers) == 2
    assert {tensor.buffer for tensor in model.subgraphs[0].tensors} == {1}


def test_an_empty_constant_is_refused():
    with pytest.raises(ConversionError, match="weight is empty"):
        FileBuilder("test").constant("weight", np.zeros((0, 3), np.float32))


def test_a_file_beyond_the_format_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_SIZE_LIMIT", 1000)
    builder = FileBuilder("vast")
    builder.constant("weight", np.arange(300, dtype=np.float32))
    with pytest.raises(ConversionError, match="constants of vast take 1200 bytes"):
        builder.finish([], [], {})
