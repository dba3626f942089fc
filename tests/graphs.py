"""Tiny graphs for tests: a Python function becomes IR, a pass runs on it, and the values before and after agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from bgnn.converter import stages
from bgnn.converter.decisions import run_with_taps
from bgnn.converter.trace import _freeze, taken_apart, trace
from bgnn.passes import canonicalise
from bgnn.passes.graph import PassResult, all_taps, is_call, shape_of
from bgnn.passes.graph import run as run_graph

bgnn = torch.ops.bgnn
aten = torch.ops.aten


# Composites that functionalisation writes otherwise.
APART = set(taken_apart())
EXPORT_REWRITES = ["narrow", "expand_as", "to", "type_as"]


class Wrapped(nn.Module):
    """A function as a module; `m.name` in it are the constants."""

    def __init__(self, function: Callable[..., Any], constants: dict[str, Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def signs(*shape: int, seed: int = 0) -> Tensor:
    """-1 and +1, the same in every run."""
    return torch.where(randn(*shape, seed=seed) >= 0, 1.0, -1.0)


def exported(function: Callable[..., Any], *inputs: Tensor, outputs: int = 1, **constants: Tensor) -> fx.GraphModule:
    """`function(m, *inputs)` traced, with no pass run.

    Functions without in-place ops and composites are the same by `export` alone, which takes a fifth of the time.
    """
    program = torch.export.export(Wrapped(function, constants), inputs, strict=False)
    keep = tuple(range(outputs))
    targets = [n.target for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    if any(t._schema.is_mutable or t in APART or t.__name__.split(".")[0] in EXPORT_REWRITES for t in targets):
        return trace(Wrapped(function, constants), inputs, keep)
    return _freeze(program, inputs, keep)


def graph(function: Callable[..., Any], *inputs: Tensor, outputs: int = 1, **constants: Tensor) -> fx.GraphModule:
    """`function(m, *inputs)` in one spelling, with its decisions tapped. `bgnn::` ops may stand in it."""
    gm = exported(function, *inputs, outputs=outputs, **constants)
    canonicalise.run(gm)
    stages.mark_decisions(gm)
    for node in gm.graph.nodes:
        if is_call(node, bgnn.fake_quant):  # codes are tapped when the passes to "traced" are through
            node.meta.pop("tap", None)
    return gm


STOCK = stages.Plan("lce-arm64")


def up_to(
    stage: str, function: Callable[..., Any], *inputs: Tensor, plan: stages.Plan = STOCK, **constants: Tensor
) -> fx.GraphModule:
    """`function` converted up to and with `stage`."""
    gm = exported(function, *inputs, **constants)
    for name, _ in stages.walk(gm, plan):
        if name == stage:
            return gm
    raise AssertionError(f"no stage {stage}")


def count(gm: fx.GraphModule, *targets: Any) -> int:
    """How many calls of these ops a graph has."""
    return sum(is_call(n, *targets) for n in gm.graph.nodes)


def only(gm: fx.GraphModule, *targets: Any) -> fx.Node:
    """The one call of these ops."""
    (node,) = (n for n in gm.graph.nodes if is_call(n, *targets))
    return node


def constants_of(node: fx.Node) -> list[Tensor]:
    """The constant operands of a call, in order."""
    module = node.graph.owning_module
    return [getattr(module, str(a.target)) for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]


class _CheckMeta(fx.Interpreter):
    """Runs the graph; every value must be what its node's `meta["val"]` says."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor):
            told = n.meta["val"]
            assert tuple(told.shape) == tuple(value.shape), f"{n.name}: meta says {told.shape}, it is {value.shape}"
            assert told.dtype == value.dtype, f"{n.name}: meta says {told.dtype}, it is {value.dtype}"
        return value


def check_meta(gm: fx.GraphModule, *inputs: Tensor) -> None:
    """Asserts that the shapes and dtypes noted in the graph are true."""
    gm.graph.lint()
    with torch.no_grad():
        _CheckMeta(gm).run(*inputs)


def same(found: Tensor, expected: Tensor, tolerance: float = 0.0) -> None:
    """Asserts equality of shape, dtype and values; `tolerance` is relative to the largest value, 0 for bit-equal."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if tolerance == 0:
        assert torch.equal(found, expected), f"differ by {(found.double() - expected.double()).abs().max():.3g}"
    else:
        scale = max(float(expected.abs().max()), 1e-6)
        assert float((found - expected).abs().max()) <= tolerance * scale


def shape_inside(layer: fx.Node) -> tuple[int, ...]:
    """`[B, N, k, 2C]` of the signs inside a fused edge layer."""
    x, index = layer.args[1:3]
    assert isinstance(x, fx.Node)
    assert isinstance(index, fx.Node)
    return (*shape_of(index), 2 * shape_of(x)[-1])


def apply(run: Callable[[fx.GraphModule], PassResult], gm: fx.GraphModule, *inputs: Tensor,
          tolerance: float = 0.0, keeps_taps: bool = True) -> PassResult:  # fmt: skip
    """Runs a pass; outputs and tapped tensors must be what they were, and the graph's notes true."""
    shapes = {tap.name: shape_inside(node) if tap.inside else shape_of(node) for node, tap in all_taps(gm)}
    taps, expected = run_with_taps(gm, inputs, shapes)
    result = run(gm)
    check_meta(gm, *inputs)
    found_taps, found = run_with_taps(gm, inputs, shapes)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs, tolerance)
    if keeps_taps:
        assert set(found_taps) == set(taps)
    if tolerance == 0:
        for name, value in found_taps.items():
            same(value, taps[name])
    return result


def outputs(gm: fx.GraphModule, *inputs: Tensor) -> list[Tensor]:
    """What the graph computes."""
    return run_graph(gm, inputs)


def traced(function: Callable[..., Any], *inputs: Tensor, **constants: Tensor) -> fx.GraphModule:
    """`function` after the stage "traced": what the recognisers of the next stage see."""
    return up_to("traced", function, *inputs, **constants)
