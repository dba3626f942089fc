"""Where this project's native libraries lie: in this package, by architecture, or where the environment says."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bgnn.runtime_bench.runtime.errors import BgnnError


def find(name: str, variable: str) -> Path | None:
    """The library `name` of this machine's architecture, or the file that the environment's `variable` names.

    None where the package has none. Raises BgnnError where the variable names no file.
    """
    chosen = os.environ.get(variable)
    if chosen:
        if not Path(chosen).is_file():
            raise BgnnError(f"{variable}={chosen} is not a file: unset it, or name a {name}")
        return Path(chosen)
    path = Path(__file__).resolve().parent / "lib" / platform.machine() / name
    return path if path.is_file() else None
