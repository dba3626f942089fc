"""`device_files.write(folder)`: a TFLite and an ONNX file of each family, an input, and what this machine makes of it.

Beside each file NAME there are NAME.in.npz and NAME.out.npz. The families are those of tests/test_matrix.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from test_matrix import FAMILIES, fresh

from bgnn.converter.api import convert
from bgnn.converter.targets import TARGETS
from bgnn.runtime_bench.runtime.run import main as bgnn_run

FILES = {
    "float_cloud.tflite": ("float cloud", "tflite-arm64", "stock"),
    "binary_cloud.tflite": ("binary cloud", "lce-arm64", "bgnn"),
    "int8_cloud.tflite": ("INT8 cloud", "tflite-int8-arm64", "stock"),
    "float_graph.tflite": ("float graph", "tflite-arm64", "stock"),
    "int8_graph.tflite": ("INT8 graph", "tflite-int8-arm64", "stock"),
    "binary_graph.tflite": ("binary graph", "lce-arm64", "stock"),
    "binary_cloud.onnx": ("binary cloud", "onnx-int8-arm64", "bgnn"),
    "int8_cloud.onnx": ("INT8 cloud", "onnx-int8-arm64", "stock"),
    "float_graph.onnx": ("float graph", "onnx-x86", "bgnn"),
    "int8_graph.onnx": ("INT8 graph", "onnx-int8-arm64", "bgnn"),
    "int8_graph_stock.onnx": ("INT8 graph", "onnx-int8-arm64", "stock"),
    "binary_graph.onnx": ("binary graph", "onnx-int8-arm64", "bgnn"),
}


def write(folder: Path) -> None:
    """Converts (that the files are right is others' to test) and runs each here on what it has not seen."""
    for name, (family_name, target, kernels) in FILES.items():
        family = FAMILIES[family_name]
        told: dict[str, Any] = dict(family.told)
        if family.most and not TARGETS[target].open:
            told["fixed_sizes"] = family.most
        told |= {"target": target, "kernels": kernels, "output": folder / name, "verify": False}
        convert(fresh(family), family.inputs(0, 0), **told)
        inputs = family.inputs(1 if family.open else 0, 7)
        np.savez(folder / f"{name}.in.npz", *(t.numpy() for t in inputs))
        assert bgnn_run([str(folder / name), *in_and_out(folder, name, "out")]) == 0


def in_and_out(folder: Path, name: str, out: str) -> list[str]:
    """The options of `bgnn-run` for a file that was written."""
    return ["--input", str(folder / f"{name}.in.npz"), "--output", str(folder / f"{name}.{out}.npz")]
