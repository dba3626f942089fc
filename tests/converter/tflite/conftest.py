"""Fixtures of this folder: a Python function becomes a target-stage graph, a file, and outputs to compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lce import MISSING
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

import bgnn.converter.dialect  # noqa: F401  (defines the bgnn:: ops)
from bgnn.converter.tflite import emit
from bgnn.passes import canonicalise
from bgnn.passes.graph import as_meta
from bgnn.runtime_bench.bench.lce import KERNELS, Interpreter, LceInterpreter
from bgnn.runtime_bench.runtime.tflite_runner import has_lce_ops, open_file


def make_graph(function: Callable[..., Any], inputs: list[torch.Tensor], **constants: torch.Tensor) -> fx.GraphModule:
    """`function(m, *inputs)` as an FX graph with `meta["val"]`; its constants are `m.name`."""
    root = torch.nn.Module()
    for name, tensor in constants.items():
        root.register_buffer(name, tensor)
    tracer = fx.Tracer()
    tracer.root, tracer.graph, tracer.tensor_attrs = root, fx.Graph(), {}

    class Constants:
        def __getattr__(self, name: str) -> fx.Proxy:
            return fx.Proxy(tracer.graph.get_attr(name), tracer)

    placeholders = [fx.Proxy(tracer.graph.placeholder(f"x{i}"), tracer) for i in range(len(inputs))]
    tracer.graph.output(tracer.create_arg(function(Constants(), *placeholders)))
    gm = fx.GraphModule(root, tracer.graph)
    FakeTensorProp(gm, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)
    for node in gm.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = as_meta(node.meta["val"])
    return gm


def emit_graph(gm: fx.GraphModule, probes: dict[str, fx.Node] | None = None) -> bytes:
    """The file of a graph; inputs are called in0, in1, ... and outputs out0, out1, ..."""
    results = next(node for node in gm.graph.nodes if node.op == "output").args[0]
    outputs = 1 if isinstance(results, fx.Node) else len(results)
    inputs = sum(node.op == "placeholder" for node in gm.graph.nodes)
    return emit(
        gm,
        name="tiny",
        input_names=[f"in{i}" for i in range(inputs)],
        output_names=[f"out{i}" for i in range(outputs)],
        metadata={"bgnn.test": "grün"},
        probes=probes,
    )


def file_arrays(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """Tensors as the file's arrays: indices are int32."""
    return [(t.int() if t.dtype == torch.int64 else t).numpy() for t in tensors]


def every_runtime(file: bytes) -> dict[str, Interpreter]:
    """All runtimes that must take the file, with and without XNNPACK: LiteRT (with our delegate where the file needs
    it), and, where its environment is there, LCE with every LceBconv2d kernel."""
    found: dict[str, Interpreter] = {}
    for xnnpack in (False, True):
        suffix = " with XNNPACK" if xnnpack else ""
        found[f"LiteRT{suffix}"] = open_file(file, xnnpack=xnnpack)
        for kernel in () if MISSING else KERNELS if has_lce_ops(file) else ("default",):
            found[f"LCE {kernel}{suffix}"] = LceInterpreter(file, kernel=kernel, xnnpack=xnnpack)
    return found


def check_function(
    function: Callable[..., Any],
    *inputs: torch.Tensor,
    tolerance: float = 1e-5,
    **constants: torch.Tensor,
) -> bytes:
    """Emits the function and compares every runtime with PyTorch; returns the file.

    Floats may differ by `tolerance` (relative and absolute), everything else not at all.
    """
    gm = make_graph(function, list(inputs), **constants)
    canonicalise.run(gm)
    gm.recompile()
    expected = gm(*inputs)
    expected = file_arrays([expected] if isinstance(expected, torch.Tensor) else list(expected))
    file = emit_graph(gm)
    assert file == emit_graph(gm), "equal graphs gave different bytes"
    for name, runtime in every_runtime(file).items():
        for _ in range(2):  # a kernel that caches what it should not is wrong the second time
            found = runtime.run(*file_arrays(list(inputs)))
            assert len(found) == len(expected)
            for array, reference in zip(found, expected, strict=True):
                assert (array.shape, array.dtype) == (reference.shape, reference.dtype), name
                if reference.dtype == np.float32 and tolerance:
                    np.testing.assert_allclose(array, reference, rtol=tolerance, atol=tolerance, err_msg=name)
                else:
                    np.testing.assert_array_equal(array, reference, err_msg=name)
    return file


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def graph() -> Callable[..., fx.GraphModule]:
    return make_graph


@pytest.fixture
def emitted() -> Callable[..., bytes]:
    return emit_graph


@pytest.fixture
def check() -> Callable[..., bytes]:
    return check_function
