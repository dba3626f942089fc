"""Helpers can be imported by name: the kernels' NumPy references, and what writes files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

KERNELS = Path(__file__).parent / "kernels"
F32, I32 = np.dtype(np.float32), np.dtype(np.int32)
sys.path[:0] = [
    str(KERNELS / "delegate"),
    str(KERNELS),
    str(KERNELS.parent / "toolchain" / "packaging"),
    str(KERNELS.parent / "bench"),
]


@pytest.fixture(scope="session")
def float_file() -> bytes:
    """(x, y) -> (-y, |x|), so that swapped inputs or outputs show."""
    from bgnn.converter.tflite.builder import FileBuilder

    builder = FileBuilder("float")
    x, y = builder.tensor("x", (2, 3), F32), builder.tensor("y", (4,), F32)
    magnitude, negated = builder.tensor("magnitude", (2, 3), F32), builder.tensor("negated", (4,), F32)
    builder.builtin("ABS", [x], [magnitude])
    builder.builtin("NEG", [y], [negated])
    return builder.finish([("x", x), ("y", y)], [("z_negated", negated), ("a_magnitude", magnitude)], {})


@pytest.fixture(scope="session")
def lce_file() -> bytes:
    from bgnn.converter.tflite.builder import FileBuilder

    builder = FileBuilder("packed")
    x, bits = builder.tensor("x", (2, 40), F32), builder.tensor("bits", (2, 2), I32)
    builder.custom("LceQuantize", [x], [bits], b"")
    return builder.finish([("x", x)], [("bits", bits)], {})
