"""What a device needs to run converted files; the wheel bgnn-runtime is this package. NumPy, and a stock runtime."""

from __future__ import annotations

from bgnn.runtime_bench.runtime.delegate import load_interpreter
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_model import TfliteModel

__all__ = ["OnnxModel", "TfliteModel", "load_interpreter"]
