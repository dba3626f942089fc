"""Helpers of this folder's tests: a Python function becomes a target-stage graph, a file, and outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

import bgnn.converter.dialect  # noqa: F401  (defines the bgnn:: ops)
from bgnn.converter.tflite import emit
from bgnn.runtime_bench.interpreters import LceInterpreter, LiteRTInterpreter, has_lce_ops


class _Calls(torch.nn.Module):
    def __init__(self, function: Callable[..., object], constants: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._function = function
        for name, tensor in constants.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: torch.Tensor) -> object:
        return self._function(self, *inputs)


def graph(
    function: Callable[..., object], inputs: list[torch.Tensor], **constants: torch.Tensor
) -> fx.GraphModule:
    """`function(m, *inputs)` as an FX graph with `meta["val"]`; `m.name` are its constants."""
    calls = _Calls(function, constants)
    traced = fx.Graph(owning_module=calls)
    tracer = fx.Tracer()
    tracer.root, tracer.graph = calls, traced
    tracer.tensor_attrs = {}
    # Named placeholders, since a traced *inputs would be a single one.
    names = [f"x{i}" for i in range(len(inputs))]
    placeholders = [fx.Proxy(traced.placeholder(name), tracer) for name in names]

    class Constants:
        def __getattr__(self, name: str) -> fx.Proxy:
            return fx.Proxy(traced.get_attr(name), tracer)

    result = function(Constants(), *placeholders)
    traced.output(tracer.create_arg(result))
    gm = fx.GraphModule(calls, traced)
    FakeTensorProp(gm, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)
    return gm


def emitted(gm: fx.GraphModule, probes: dict[str, fx.Node] | None = None) -> bytes:
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    results = next(n for n in gm.graph.nodes if n.op == "output").args[0]
    count = 1 if isinstance(results, fx.Node) else len(results)
    return emit(
        gm,
        name="tiny",
        input_names=[f"in{i}" for i in range(len(inputs))],
        output_names=[f"out{i}" for i in range(count)],
        metadata={"bgnn.test": "ä"},
        probes=probes,
    )


def file_arrays(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """Tensors as the file's arrays: indices are int32."""
    return [(t.int() if t.dtype == torch.int64 else t).numpy() for t in tensors]


def runtimes(file: bytes) -> dict[str, object]:
    """Every runtime, and way of running it, that must accept the file."""
    found: dict[str, object] = {
        f"LCE {kernel}{' + XNNPACK' * xnnpack}": LceInterpreter(file, kernel=kernel, xnnpack=xnnpack)
        for kernel in ("indirect", "default", "reference")
        for xnnpack in (False, True)
        if has_lce_ops(file) or kernel == "default"
    }
    if not has_lce_ops(file):
        found |= {
            f"LiteRT{' + XNNPACK' * xnnpack}": LiteRTInterpreter(file, xnnpack=xnnpack)
            for xnnpack in (False, True)
        }
    return found


def check(
    function: Callable[..., object],
    *inputs: torch.Tensor,
    exact: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    **constants: torch.Tensor,
) -> bytes:
    """Emits the function and compares every runtime, run twice, with PyTorch. Returns the file."""
    gm = graph(function, list(inputs), **constants)
    expected = gm(*inputs)
    expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    file = emitted(gm)
    assert file == emitted(gm), "equal graphs gave different bytes"
    for name, runtime in runtimes(file).items():
        for _ in range(2):  # kernels that cache something are wrong only the second time
            got = runtime.run(*file_arrays(list(inputs)))
            assert len(got) == len(expected)
            for array, reference in zip(got, file_arrays(expected), strict=True):
                assert array.shape == reference.shape, name
                assert array.dtype == reference.dtype, name
                if exact or reference.dtype != np.float32:
                    np.testing.assert_array_equal(array, reference, err_msg=name)
                else:
                    np.testing.assert_allclose(array, reference, rtol=rtol, atol=atol, err_msg=name)
    return file
