"""ONNX: target-stage graphs written as models for ONNX Runtime on x86."""
