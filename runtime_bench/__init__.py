"""Running emitted files on the runtimes that users have, and measuring them: four rooms.

`runtime` ships to devices and imports nothing of the rest; `kernels` is its C++; `bench` measures; `toolchain` builds
wheels and runs aarch64 without a board. `OnnxModel`, `TfliteModel` and `load_interpreter` are imported from here; the
modules beside the rooms keep the names that programs know.
"""

from bgnn.runtime_bench.runtime import OnnxModel, TfliteModel, load_interpreter

__all__ = ["OnnxModel", "TfliteModel", "load_interpreter"]
