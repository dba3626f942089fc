"""TFLite files on LiteRT: with the delegate where a file needs it, and the errors of what is missing."""

from __future__ import annotations

import builtins
import subprocess

import numpy as np
import pytest

from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.tflite_runner import (
    LiteRTInterpreter,
    has_bgnn_ops,
    has_lce_ops,
    open_file,
    run_file,
)


@pytest.fixture
def opened(monkeypatch) -> list[bool]:
    """Whether each file that LiteRT opens is opened with the delegate."""
    said = []
    real = LiteRTInterpreter.__init__

    def init(self, model_bytes, num_threads=1, xnnpack=True, delegate=False):
        said.append(delegate)
        real(self, model_bytes, num_threads, xnnpack, delegate)

    monkeypatch.setattr(LiteRTInterpreter, "__init__", init)
    return said


@pytest.mark.parametrize("xnnpack", [False, True])
def test_the_delegate_is_there_for_who_needs_it(float_file, lce_file, opened, xnnpack):
    assert (has_lce_ops(float_file), has_lce_ops(lce_file), has_bgnn_ops(lce_file)) == (False, True, False)
    open_file(float_file, xnnpack=xnnpack)
    x = np.linspace(-1, 1, 80, dtype=np.float32).reshape(2, 40)
    (bits,) = run_file(lce_file, [x], xnnpack=xnnpack)
    np.testing.assert_array_equal(bits.view(np.uint32), [[0xFFFFFFFF, 0xFF], [0, 0]])
    assert opened == [False, True]


def test_files_of_binary_models_do_not_run_on_lce(monkeypatch, lce_file):
    """Neither its environment nor a process is needed."""
    monkeypatch.setenv("BGNN_LCE_PYTHON", "/nowhere/python")
    monkeypatch.setattr(subprocess, "Popen", None)
    assert run_file(lce_file, [np.ones((2, 40), np.float32)])[0].tolist() == [[0, 0], [0, 0]]


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch, float_file, lce_file):
    monkeypatch.delenv("BGNN_DELEGATE", raising=False)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(BgnnError, match=r"^no libbgnn_delegate.so for Linux on riscv64, .*`make kernels`[^\n]*$"):
        run_file(lce_file, [np.ones((2, 40), np.float32)])
    run_file(float_file, [np.ones((2, 3), np.float32), np.ones(4, np.float32)])


def test_litert_refuses_lce_files(lce_file):
    with pytest.raises(BgnnError, match=r"LiteRT refuses the file: .*LceQuantize"):
        LiteRTInterpreter(lce_file)


def test_a_missing_litert_is_named(monkeypatch, float_file):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("ai_edge_litert"):
            raise ImportError("no ai_edge_litert here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BgnnError, match="ai-edge-litert cannot be imported"):
        LiteRTInterpreter(float_file)
