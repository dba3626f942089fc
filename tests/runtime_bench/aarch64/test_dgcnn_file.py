"""Converted DGCNNs on aarch64: stock ai-edge-litert and our delegate give what they gave on x86, bit for bit.

Run by `make -C runtime_bench/aarch64 test`, which makes the files and x86's outputs first (BGNN_RECORDED).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench.delegate import load_interpreter
from bgnn.runtime_bench.run import run

RECORDED = os.environ.get("BGNN_RECORDED")
pytestmark = pytest.mark.skipif(RECORDED is None, reason="run by make -C runtime_bench/aarch64 test")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("arch", ["bf2", "bf1", "rf"])
def test_outputs_equal_x86s(arch: str, threads: int) -> None:
    with np.load(Path(RECORDED or "") / f"dgcnn_{arch}.npz") as recorded:
        data, given, expected = recorded["model"].tobytes(), recorded["input"], recorded["output"]
    interpreter = load_interpreter(data, threads)
    (detail,) = interpreter.get_input_details()
    (output,) = run(interpreter, {detail["name"]: given}).values()
    assert output.shape == expected.shape
    assert output.tobytes() == expected.tobytes(), f"largest difference {np.abs(output - expected).max()}"
