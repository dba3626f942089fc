"""Target-stage graphs to TFLite flatbuffers, with Larq Compute Engine's ops for the binary parts."""

from bgnn.converter.tflite.emit import emit

__all__ = ["emit"]
