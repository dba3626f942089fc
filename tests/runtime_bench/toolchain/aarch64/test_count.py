"""The check of instruction counts: what fails it, and that the record fits the driver's list."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import bgnn.runtime_bench

AARCH64 = Path(bgnn.runtime_bench.__file__).resolve().parent / "toolchain" / "aarch64"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("count_instructions", AARCH64 / "count.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_growth_beyond_five_percent_fails() -> None:
    count = load()
    recorded = {"a": 1000, "b": 1000, "c": 1000}
    assert count.grown({"a": 1050, "b": 900, "c": 1000}, recorded) == []
    (line,) = count.grown({"a": 1051, "b": 900, "c": 1000}, recorded)
    assert line == "a: 1,051 instructions, +5.1% against the recorded 1,000"


def test_new_and_lost_kernels_fail() -> None:
    lines = load().grown({"a": 1, "new": 1}, {"a": 1, "lost": 1})
    assert lines == ["lost: recorded, but not counted any more", "new: counted, but not recorded"]


def test_every_kernel_is_counted() -> None:
    driver = (AARCH64 / "count_driver.cc").read_text()
    names = re.findall(r'\{"(\w+)",', driver)
    recorded = set(json.loads((AARCH64 / "counts.json").read_text()))
    count = load()
    kernels = {f"{name} {isa}" for name in names for isa in count.PROCESSORS if count.counted(name, isa)}
    files = {f"{name} {cpu}" for cpu in count.PROCESSORS.values() for name in count.file_names(cpu)}
    assert recorded == kernels | files
    kernels = re.findall(r"KERNEL\((\w+), Bgnn", (AARCH64.parents[1] / "kernels" / "kernels.h").read_text())
    assert len(kernels) >= 12
    for kernel in kernels:
        assert any(re.fullmatch(rf"{kernel}(_\w+)?", name) for name in names), f"{kernel} is not counted"
    graph = (AARCH64.parents[1] / "kernels" / "ops" / "graph_kernels.h").read_text()
    kernels = re.findall(r"void \(\*(\w+)\)", graph[graph.index("struct GraphKernels {") :])
    assert len(kernels) >= 7
    for kernel in kernels:
        assert any(re.fullmatch(rf"{kernel}(_\w+)?", name) for name in names), f"{kernel} is not counted"
