"""What ships to devices stands alone: no module in it imports anything of ours from outside."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import bgnn.runtime_bench.runtime

ROOM = "bgnn.runtime_bench.runtime"
MODULES = sorted(Path(bgnn.runtime_bench.runtime.__file__).parent.glob("*.py"))
# Of these all but NumPy are imported where they are needed, and missed in one line.
FROM_OUTSIDE = {"numpy", "onnxruntime", "ai_edge_litert"}


def imported(source: str) -> list[str]:
    """The modules that a program names in its imports, wherever these stand."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an absolute name says which room it is of"
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def stray(source: str) -> list[str]:
    """Of the imports, those of neither the room, the standard library, nor what a device has."""
    return [
        name
        for name in imported(source)
        if not name.startswith(f"{ROOM}.") and name.split(".")[0] not in FROM_OUTSIDE | sys.stdlib_module_names
    ]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_module_imports_the_compiler(module: Path) -> None:
    assert not stray(module.read_text())


def test_the_check_sees_imports_wherever_they_stand() -> None:
    assert stray("def f():\n    from bgnn.converter import errors") == ["bgnn.converter.errors"]
    assert stray("import bgnn.passes.ops as ops, numpy") == ["bgnn.passes.ops"]
    assert stray("from bgnn.runtime_bench import bench") == ["bgnn.runtime_bench.bench"]
    assert stray("try:\n    import torch\nexcept ImportError: pass") == ["torch"]
    assert not stray("import sys\nfrom bgnn.runtime_bench.runtime import limits\nimport numpy as np")


def test_the_names_that_programs_know() -> None:
    from bgnn.runtime_bench import OnnxModel, TfliteModel, delegate, load_interpreter, onnx_runner, run
    from bgnn.runtime_bench.runtime import run as command

    assert OnnxModel is onnx_runner.OnnxModel is bgnn.runtime_bench.runtime.OnnxModel
    assert load_interpreter is delegate.load_interpreter is bgnn.runtime_bench.runtime.load_interpreter
    assert TfliteModel is bgnn.runtime_bench.runtime.TfliteModel
    assert run.main is command.main
