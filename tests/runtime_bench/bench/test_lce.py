"""LCE behind LiteRT's interface: order, checks, its process, and the errors of what is missing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lce import needs_lce

from bgnn.runtime_bench.bench import lce_worker
from bgnn.runtime_bench.bench.lce import KERNELS, LceInterpreter, LceProcess, lce_python
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter, has_lce_ops, open_file

F32 = np.dtype(np.float32)
RUNTIMES = [pytest.param(LceInterpreter, marks=needs_lce), LiteRTInterpreter]


@pytest.mark.parametrize("xnnpack", [False, True])
@pytest.mark.parametrize("runtime", RUNTIMES)
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


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_arrays_need_not_be_contiguous(runtime, float_file):
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2).T, np.arange(8, dtype=np.float32)[::2]
    negated, magnitude = runtime(float_file).run(x, y)
    np.testing.assert_array_equal(negated, -y)
    np.testing.assert_array_equal(magnitude, x)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_that_do_not_fit(runtime, float_file):
    interpreter = runtime(float_file)
    with pytest.raises(UsageError, match="takes 2 inputs, 1 were given"):
        interpreter.run(np.zeros((2, 3), np.float32))
    with pytest.raises(UsageError, match=r"input 0 .* \[2, 3\], got float64 \[3, 2\]; input 1 .*got int32"):
        interpreter.run(np.zeros((3, 2)), np.zeros(4, np.int32))


@needs_lce
@pytest.mark.parametrize("kernel", KERNELS)
def test_lce_ops(kernel, lce_file):
    x = np.linspace(-1, 1, 80, dtype=np.float32).reshape(2, 40)
    (bits,) = LceInterpreter(lce_file, kernel=kernel).run(x)
    np.testing.assert_array_equal(bits.view(np.uint32), [[0xFFFFFFFF, 0xFF], [0, 0]])


def test_an_unknown_kernel(lce_file):
    with pytest.raises(UsageError, match="'fast' is none of indirect, default, reference"):
        LceInterpreter(lce_file, kernel="fast")


@pytest.mark.parametrize("data", [b"", b"nonsense" * 9])
@pytest.mark.parametrize("read", [*RUNTIMES, open_file, has_lce_ops])
def test_what_is_no_file(read, data):
    with pytest.raises(BgnnError):
        read(data)


def test_a_missing_environment_of_lce_is_named(monkeypatch, tmp_path, lce_file):
    monkeypatch.setenv("BGNN_LCE_PYTHON", str(tmp_path / "python"))
    with pytest.raises(BgnnError, match=r"tmp.*/python is not there: run `make setup`.* in BGNN_LCE_PYTHON$"):
        LceProcess()


def test_a_python_without_lce_is_named(monkeypatch, lce_file):
    monkeypatch.setenv("BGNN_LCE_PYTHON", sys.executable)
    with pytest.raises(BgnnError, match=r"refuses the file: larq-compute-engine.* 'numpy<2' larq-compute-engine==0"):
        LceInterpreter(lce_file, process=LceProcess())


@needs_lce
def test_a_dead_process_is_named_and_replaced(lce_file):
    interpreter = LceInterpreter(lce_file)
    os.kill(interpreter._process._process.pid, signal.SIGKILL)
    with pytest.raises(BgnnError, match=r"process ended \(exit code -9\)"):
        interpreter.run(np.ones((2, 40), np.float32))
    assert LceInterpreter(lce_file).run(np.ones((2, 40), np.float32))[0].tolist() == [[0, 0], [0, 0]]


@needs_lce
def test_a_refusal_does_not_end_the_process(lce_file):
    process = LceProcess()
    with pytest.raises(BgnnError, match="refuses the file"):
        LceInterpreter(b"nonsense" * 9, process=process)
    interpreter = LceInterpreter(lce_file, process=process)
    with pytest.raises(UsageError, match="got int32"):
        interpreter.run(np.ones((2, 40), np.int32))
    assert interpreter.run(-np.ones((2, 40), np.float32))[0].view(np.uint32).tolist() == [[0xFFFFFFFF, 0xFF]] * 2


@needs_lce
def test_the_process_measures_itself_and_ends_with_its_object(lce_file):
    process = LceProcess()
    interpreter = LceInterpreter(lce_file, process=process)
    before = process.peak_bytes
    interpreter.run(np.ones((2, 40), np.float32))
    assert interpreter.elapsed.wall_ms > 0
    assert process.peak_bytes >= before > 10 << 20
    child = process._process
    del process, interpreter
    gc.collect()
    assert child.poll() == 0


@needs_lce
def test_unused_models_are_dropped_there_too(monkeypatch, lce_file):
    process = LceProcess()
    asked = []
    real = lce_worker.send
    monkeypatch.setattr(
        lce_worker, "send", lambda stream, header, body=b"": (asked.append(header), real(stream, header, body))
    )
    for _ in range(3):
        LceInterpreter(lce_file, process=process)
        gc.collect()
    assert [(header["model"], header["unused"]) for header in asked] == [(0, []), (1, [0]), (2, [1])]


def test_messages_keep_shapes_and_dtypes(tmp_path: Path):
    arrays = [
        np.arange(6, dtype=np.int8).reshape(2, 3).T,
        np.array(2.5, np.float32),
        np.zeros((0, 4), np.int32),
        np.array([True, False]),
        *[np.array([i]) for i in range(12)],  # arr_10 stands after arr_9
    ]
    with open(tmp_path / "pipe", "wb") as stream:
        lce_worker.send(stream, {"do": "run"}, lce_worker.pack(arrays))
        stream.write(b"half a length")
    with open(tmp_path / "pipe", "rb") as stream:
        header, body = lce_worker.receive(stream)
        with pytest.raises(EOFError):
            lce_worker.receive(stream)
    assert header == {"do": "run"}
    for found, sent in zip(lce_worker.unpack(body), arrays, strict=True):
        assert found.dtype == sent.dtype
        np.testing.assert_array_equal(found, sent)


@needs_lce
def test_lce_comes_without_tensorflow_and_torch():
    """In LCE's Python, loading the binding imports neither TensorFlow nor LCE's own package."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(lce_worker.__file__).parent)!r})\n"
        "import lce_worker; lce_worker._load_binding()\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'larq_compute_engine', 'torch', 'bgnn')])\n"
    )
    command = [str(lce_python()), "-I", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
