"""Our libraries under sanitizers, compiled once for all tests."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

FUZZ = Path(__file__).resolve().parent / "delegate" / "fuzz"
ROOT = FUZZ.parents[4]


def sanitized_libraries(sanitizers: str) -> Path:
    """The folder of libbgnn_kernels.a, libbgnn_delegate.so and libbgnn_ort.so, up to date, for this machine."""
    done = subprocess.run(
        ["make", "-s", "-C", str(FUZZ), "libraries", f"SANITIZE={sanitizers}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build" / f"objects-{sanitizers.split(',')[0]}" / platform.machine()
