"""Puts the library of BGNN_ARCH (BGNN_LIBRARY) into the wheel, and the architecture into the wheel's name.

Python only loads the library by its path: any Python 3 will do, so the tag is py3-none.
"""

from __future__ import annotations

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # type: ignore[import-not-found]


class ArchitectureHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        arch, library = os.environ["BGNN_ARCH"], os.environ["BGNN_LIBRARY"]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_17_{arch}"
        build_data["force_include"][library] = f"bgnn/runtime_bench/lib/{arch}/libbgnn_delegate.so"
