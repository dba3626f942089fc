"""What a device needs to run converted files; the wheel bgnn-runtime is this package. NumPy, and a stock runtime."""

from __future__ import annotations

from bgnn.runtime_bench.runtime.delegate import load_interpreter
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

__all__ = ["OnnxModel", "load_interpreter"]
