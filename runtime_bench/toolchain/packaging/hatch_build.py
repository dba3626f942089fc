"""Fills the wheel: the modules of runtime/, the packages around it, and the libraries of BGNN_ARCH (in BGNN_LIBRARIES),
which also names the wheel.

Python only loads the libraries by their paths: any Python 3 will do, so the tag is py3-none. An editable install holds
nothing but the way to src/.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # type: ignore[import-not-found]


class RuntimeHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        arch, libraries = os.environ["BGNN_ARCH"], Path(os.environ["BGNN_LIBRARIES"])
        here = Path(self.root)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_17_{arch}"
        source = here.parents[2] / "src"
        room = source / "bgnn/runtime_bench/runtime"
        modules = [path for package in (room, *list(room.parents)[:2]) for path in package.glob("*.py")]
        build_data["force_include"] |= {str(path): str(path.relative_to(source)) for path in modules}
        for name in ("libbgnn_delegate.so", "libbgnn_ort.so"):
            build_data["force_include"][str(libraries / name)] = f"bgnn/runtime_bench/runtime/lib/{arch}/{name}"
