"""Where this project's native libraries lie: in this package, by architecture, or where the environment says."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bgnn.runtime_bench.runtime.errors import BgnnError


def find(name: str, variable: str, what: str) -> Path:
    """The library `name` of this machine's architecture, or the file that the environment's `variable` names.

    `what` runs with it. Raises BgnnError where the variable names no file, and where the package has no library, with
    what those who work in a checkout and those who installed a wheel can do.
    """
    chosen = os.environ.get(variable)
    if chosen:
        if not Path(chosen).is_file():
            raise BgnnError(f"{variable}={chosen} is not a file: unset it, or name a {name}")
        return Path(chosen)
    room = Path(__file__).resolve().parent
    path = room / "lib" / platform.machine() / name
    if path.is_file():
        return path
    remedy = (
        "build it with `make kernels`"
        if (room.parent / "kernels").is_dir()
        else "install the bgnn-runtime wheel of this machine (Linux on x86_64 or aarch64)"
    )
    raise BgnnError(
        f"no {name} for {platform.system()} on {platform.machine()}, and {what} with it: {remedy}, or name one in "
        f"{variable}"
    )
