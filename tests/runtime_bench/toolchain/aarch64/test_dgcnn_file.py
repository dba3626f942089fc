"""Converted DGCNNs on aarch64: stock ai-edge-litert and our delegate give what they gave on x86.

Everything binary is equal bit for bit. The float layers at a model's ends are the runtime's: its reference kernels
give BF's output the same bits on both processors; XNNPACK's kernels add in another order on each.

Run by `make -C runtime_bench/toolchain/aarch64 test`, which makes the files and x86's outputs first (BGNN_RECORDED).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench.runtime.delegate import load_interpreter
from bgnn.runtime_bench.runtime.tflite_model import run

RECORDED = os.environ.get("BGNN_RECORDED")
pytestmark = pytest.mark.skipif(RECORDED is None, reason="run by make -C runtime_bench/toolchain/aarch64 test")


def recorded(arch: str, kernels: str) -> dict[str, np.ndarray]:
    with np.load(Path(RECORDED or "") / f"dgcnn_{arch}_{kernels}.npz") as archive:
        return dict(archive)


def outputs(case: dict[str, np.ndarray], threads: int, float_kernels: str) -> np.ndarray:
    interpreter = load_interpreter(case["model"].tobytes(), threads, float_kernels=float_kernels)
    return next(iter(run(interpreter, {"arr_0": case["input"]}).values()))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernels", ["stock", "bgnn"])
@pytest.mark.parametrize("arch", ["bf2", "bf1"])
def test_outputs_equal_x86s(arch: str, kernels: str, threads: int) -> None:
    case = recorded(arch, kernels)
    assert outputs(case, threads, "reference").tobytes() == case["reference"].tobytes()


@pytest.mark.parametrize("kernels", ["stock", "bgnn"])
@pytest.mark.parametrize("arch", ["bf2", "bf1", "rf"])
def test_xnnpack_differs_by_rounding_only(arch: str, kernels: str) -> None:
    case = recorded(arch, kernels)
    found = outputs(case, 2, "xnnpack")
    np.testing.assert_allclose(found, case["xnnpack"], rtol=1e-4, atol=1e-5)
    assert np.array_equal(found.argmax(1), case["xnnpack"].argmax(1))
