"""The compiler's errors: those of the runtime, which it runs files with, and its own."""

from __future__ import annotations

from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

__all__ = ["BgnnError", "ConversionError", "UsageError"]


class ConversionError(BgnnError):
    """The input was understood but cannot be converted or does not verify: exit code 1."""
