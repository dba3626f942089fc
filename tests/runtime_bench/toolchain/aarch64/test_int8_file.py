"""INT8 files on aarch64: ONNX Runtime and LiteRT give the codes that they gave on x86, integer by integer.

Run by `make -C runtime_bench/toolchain/aarch64 test`, which makes the files and x86's codes first (BGNN_RECORDED).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

RECORDED = os.environ.get("BGNN_RECORDED")
pytestmark = pytest.mark.skipif(RECORDED is None, reason="run by make -C runtime_bench/toolchain/aarch64 test")


def on_onnx(file: bytes, inputs: list[np.ndarray], threads: int) -> list[np.ndarray]:
    from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

    model = OnnxModel(file, threads)
    return list(model.run(**dict(zip(model.input_names, inputs, strict=True))).values())


def on_litert(file: bytes, inputs: list[np.ndarray], threads: int) -> list[np.ndarray]:
    from bgnn.runtime_bench.runtime.tflite_runner import run_file

    return run_file(file, inputs, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "case", ["dgcnn_onnx-int8-arm64", "gcn_onnx-int8-arm64", "dgcnn_tflite-int8-arm64", "gcn_tflite-int8-arm64"]
)
def test_codes_equal_x86s(case: str, threads: int) -> None:
    with np.load(Path(RECORDED or "") / f"int8_{case}.npz") as archive:
        recorded = dict(archive)

    def numbered(what: str) -> list[np.ndarray]:
        return [recorded[f"{what}_{i}"] for i in range(sum(name.startswith(what) for name in recorded))]

    run = on_onnx if "onnx" in case else on_litert
    found = run(recorded["model"].tobytes(), numbered("input"), threads)
    compared = 0
    for mine, theirs in zip(found, numbered("output"), strict=True):
        if mine.dtype.itemsize == 1:
            assert np.array_equal(mine, theirs), (compared, np.abs(mine.astype(int) - theirs).max())
            compared += mine.size
        else:
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert compared > 10_000
