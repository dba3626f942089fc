"""`OnnxModel` under the name that programs of users import it by; it stands in `runtime`."""

from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

__all__ = ["OnnxModel"]
