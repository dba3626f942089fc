"""Fills the wheel: the modules of files.txt, and the library of BGNN_ARCH (BGNN_LIBRARY), which also names the wheel.

Python only loads the library by its path: any Python 3 will do, so the tag is py3-none. An editable install holds
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
        arch, library = os.environ["BGNN_ARCH"], os.environ["BGNN_LIBRARY"]
        here = Path(self.root)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_17_{arch}"
        build_data["force_include"] |= {
            str(here.parent.parent / "src" / name): name for name in (here / "files.txt").read_text().split()
        }
        build_data["force_include"][library] = f"bgnn/runtime_bench/lib/{arch}/libbgnn_delegate.so"
