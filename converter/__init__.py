"""The compiler: reading models, tracing, stages, verification, report; tflite/ emits files."""
