"""Running emitted files on the runtimes that users have, and measuring them: time, size and memory, side by side."""

from __future__ import annotations

from bgnn.runtime_bench.delegate import load_interpreter

__all__ = ["load_interpreter"]
