"""Both runtimes behind one interface: order, checks, and the errors of what is missing."""

from __future__ import annotations

import builtins
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from bgnn.converter.errors import BgnnError, UsageError
from bgnn.converter.tflite.builder import FileBuilder
from bgnn.runtime_bench import interpreters
from bgnn.runtime_bench.interpreters import (
    LceInterpreter,
    LiteRTInterpreter,
    has_lce_ops,
    open_file,
    run_file,
)

F32, I32 = np.dtype(np.float32), np.dtype(np.int32)


@pytest.fixture(scope="module")
def float_file() -> bytes:
    """(x, y) -> (-y, |x|), so that swapped inputs or outputs show."""
    builder = FileBuilder("float")
    x, y = builder.tensor("x", (2, 3), F32), builder.tensor("y", (4,), F32)
    magnitude, negated = builder.tensor("magnitude", (2, 3), F32), builder.tensor("negated", (4,), F32)
    builder.builtin("ABS", [x], [magnitude])
    builder.builtin("NEG", [y], [negated])
    return builder.finish([("x", x), ("y", y)], [("z_negated", negated), ("a_magnitude", magnitude)], {})


@pytest.fixture(scope="module")
def lce_file() -> bytes:
    builder = FileBuilder("packed")
    x, bits = builder.tensor("x", (2, 40), F32), builder.tensor("bits", (2, 2), I32)
    builder.custom("LceQuantize", [x], [bits], b"")
    return builder.finish([("x", x)], [("bits", bits)], {})


@pytest.mark.parametrize("xnnpack", [False, True])
@pytest.mark.parametrize("runtime", [LceInterpreter, LiteRTInterpreter])
def test_order_shapes_and_dtypes(runtime, xnnpack, float_file):
    interpreter = runtime(float_file, xnnpack=xnnpack)
    assert interpreter.input_shapes == [(2, 3), (4,)]
    assert interpreter.output_shapes == [(4,), (2, 3)]
    assert interpreter.input_dtypes == interpreter.output_dtypes == [F32, F32]
    x, y = np.arange(-3, 3, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float32)
    negated, magnitude = interpreter.run(x, y)
    np.testing.assert_array_equal(negated, -y)
    np.testing.assert_array_equal(magnitude, abs(x))
    interpreter.run(2 * x, 2 * y)
    np.testing.assert_array_equal(magnitude, abs(x), err_msg="a later run changed an earlier result")


@pytest.mark.parametrize("runtime", [LceInterpreter, LiteRTInterpreter])
def test_arrays_need_not_be_contiguous(runtime, float_file):
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2).T, np.arange(8, dtype=np.float32)[::2]
    negated, magnitude = runtime(float_file).run(x, y)
    np.testing.assert_array_equal(negated, -y)
    np.testing.assert_array_equal(magnitude, x)


@pytest.mark.parametrize("runtime", [LceInterpreter, LiteRTInterpreter])
def test_inputs_that_do_not_fit(runtime, float_file):
    interpreter = runtime(float_file)
    with pytest.raises(UsageError, match="takes 2 inputs, 1 were given"):
        interpreter.run(np.zeros((2, 3), np.float32))
    with pytest.raises(UsageError, match=r"input 0 .* \[2, 3\], got float64 \[3, 2\]; input 1 .*got int32"):
        interpreter.run(np.zeros((3, 2)), np.zeros(4, np.int32))


@pytest.mark.parametrize("kernel", interpreters.KERNELS)
def test_lce_ops(kernel, lce_file):
    x = np.linspace(-1, 1, 80, dtype=np.float32).reshape(2, 40)
    (bits,) = LceInterpreter(lce_file, kernel=kernel).run(x)
    np.testing.assert_array_equal(bits.view(np.uint32), [[0xFFFFFFFF, 0xFF], [0, 0]])


def test_an_unknown_kernel(lce_file):
    with pytest.raises(UsageError, match="'fast' is none of indirect, default, reference"):
        LceInterpreter(lce_file, kernel="fast")


def test_the_runtime_a_file_needs(float_file, lce_file):
    assert (has_lce_ops(float_file), has_lce_ops(lce_file)) == (False, True)
    assert isinstance(open_file(float_file), LiteRTInterpreter)
    assert isinstance(open_file(lce_file), LceInterpreter)
    assert run_file(lce_file, [np.ones((2, 40), np.float32)])[0].tolist() == [[0, 0], [0, 0]]


def test_litert_refuses_lce_files(lce_file):
    with pytest.raises(BgnnError, match=r"LiteRT refuses the file: .*LceQuantize"):
        LiteRTInterpreter(lce_file)


@pytest.mark.parametrize("data", [b"", b"nonsense" * 9])
@pytest.mark.parametrize("read", [LceInterpreter, LiteRTInterpreter, has_lce_ops])
def test_what_is_no_file(read, data):
    with pytest.raises(BgnnError):
        read(data)


def test_numpy_2_is_named(monkeypatch, lce_file):
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(BgnnError, match=r"numpy 2\.1\.0: install 'numpy<2'"):
        LceInterpreter(lce_file)


def test_a_missing_lce_is_named(monkeypatch, lce_file):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BgnnError, match="larq-compute-engine is not installed"):
        LceInterpreter(lce_file)


def test_a_missing_litert_is_named(monkeypatch, float_file):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("ai_edge_litert"):
            raise ImportError("no ai_edge_litert here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BgnnError, match="ai-edge-litert cannot be imported"):
        LiteRTInterpreter(float_file)


def test_lce_comes_without_tensorflow(tmp_path, lce_file):
    """In a fresh process: neither TensorFlow nor LCE's own package is imported."""
    path = tmp_path / "model.tflite"
    path.write_bytes(lce_file)
    code = (
        "import sys\n"
        "from bgnn.runtime_bench.interpreters import LceInterpreter\n"
        f"LceInterpreter(open({str(path)!r}, 'rb').read())\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'larq_compute_engine', 'torch')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
