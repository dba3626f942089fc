"""The libraries as other people's programs load them: TFLite's benchmark_model (--external_delegate_path) and
onnxruntime_perf_test (-R). Neither is in a registry: here their runtimes' own loaders do what they do, without a module
of this project."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench.runtime.delegate import library_path
from bgnn.runtime_bench.runtime.onnx_ops import library_path as operators_path

Report = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


@pytest.fixture
def plugin() -> ctypes.CDLL:
    """The delegate's library, opened as an external delegate is: by its path, its entries by their names."""
    library = ctypes.CDLL(str(library_path()), mode=ctypes.RTLD_LOCAL)
    strings = ctypes.POINTER(ctypes.c_char_p)
    library.tflite_plugin_create_delegate.argtypes = [strings, strings, ctypes.c_size_t, Report]
    library.tflite_plugin_create_delegate.restype = ctypes.c_void_p
    library.tflite_plugin_destroy_delegate.argtypes = [ctypes.c_void_p]
    library.tflite_plugin_destroy_delegate.restype = None
    return library


def test_the_plugin_is_created_and_destroyed(plugin: ctypes.CDLL) -> None:
    made = [plugin.tflite_plugin_create_delegate(None, None, 0, Report()) for _ in range(2)]
    assert all(made)
    assert made[0] != made[1]
    for one in [*made, None]:
        plugin.tflite_plugin_destroy_delegate(one)


def test_an_option_that_it_does_not_have_is_reported(plugin: ctypes.CDLL) -> None:
    said: list[bytes] = []
    strings = ctypes.c_char_p * 1
    create = plugin.tflite_plugin_create_delegate
    assert create(strings(b"threads"), strings(b"2"), 1, Report(said.append)) is None
    assert said == [b"bgnn's delegate has no option threads"]
    assert create(strings(b"threads"), strings(b"2"), 1, Report()) is None, "and by nobody to report to"


def test_the_runtimes_loader_runs_a_file_with_it(lce_file: bytes, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    with pytest.raises(ValueError, match="has no option x"):
        load_delegate(str(library_path()), {"x": "1"})
    interpreter = Interpreter(model_content=lce_file, experimental_delegates=[load_delegate(str(library_path()))])
    interpreter.allocate_tensors()
    x = np.where(np.arange(80).reshape(2, 40) % 3 == 0, -1, 1).astype(np.float32)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    bits = np.unpackbits(interpreter.get_tensor(output["index"]).view(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(bits[:, :40], x < 0)


def test_onnx_runtime_registers_the_operators(tmp_path: Path) -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    node = helper.make_node("Degree", ["indptr"], ["out"], domain="bgnn")
    vectors = [helper.make_tensor_value_info("indptr", TensorProto.INT32, [4])]
    result = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bgnn", 1)]
    model = helper.make_model(helper.make_graph([node], "g", vectors, result), opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(operators_path()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"indptr": np.array([0, 2, 2, 5], np.int32)})
    np.testing.assert_array_equal(found.ravel(), [2, 0, 3])
