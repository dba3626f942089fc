"""How far float32 rounding can move each output: what a tolerance is relative to.

An output's *column* is what a network computes for one channel: of `[N, C]` and `[B, C]` everything with one index of
the last axis; of `[B, C, N]` with one of the second or of the last, whichever is smaller; of a vector each number. A
column is held to `OUTPUT_TOLERANCE` of its own largest value, so that a large column excuses nothing in a small one.

Where terms cancel, a column may hold nothing but numbers much smaller than what they were made of, and rounding is
relative to that. So if a column fails, the tolerance is taken once more of what its terms amount to: `magnitudes` walks
back from the output over sums, moves and activations to the last products, and adds up absolute values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.converter.emitted_file import results_of
from bgnn.passes import ops
from bgnn.passes.graph import aten, is_call

bgnn = torch.ops.bgnn

LEAST = 1e-30  # of a column of zeros

DENSE = ops.having("dense")
# Their errors do not grow; but for two, whose derivative follows from the result.
ACTIVATIONS = ops.having("gentle")
SATURATING: dict[Any, Callable[[Tensor], Tensor]] = {aten.tanh: lambda y: 1 - y * y, aten.sigmoid: lambda y: y - y * y}
SOFTMAX = ops.having("softmax")
ELEMENTWISE = [aten.add, aten.sub, aten.mul, aten.div, aten.batch_norm]
MOVES_AND_SUMS = [*ops.having("move"), *ops.having("reduction"), bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max]
FOLLOWED = [*ACTIVATIONS, *SOFTMAX, *ELEMENTWISE, *MOVES_AND_SUMS]


def column_scales(values: Tensor) -> Tensor:
    """The largest finite magnitude of each number's column, broadcastable to `values` f32 `[...]`."""
    finite = torch.where(torch.isfinite(values), values, 0.0).abs()
    if values.dim() < 2:
        return finite.clamp(min=LEAST)
    scales = _over_all_but(finite, values.dim() - 1)
    if values.dim() > 2:
        scales = torch.minimum(scales, _over_all_but(finite, 1))
    return scales.clamp(min=LEAST)


def _over_all_but(values: Tensor, axis: int) -> Tensor:
    return values.amax([i for i in range(values.dim()) if i != axis], keepdim=True)


def magnitudes(gm: fx.GraphModule, values: Mapping[fx.Node, Any]) -> list[Tensor]:
    """What the terms of each output amount to, f32 like the outputs; `values`: those of the nodes in `needed(gm)`."""
    known: dict[fx.Node, Any] = {}

    def of(operand: Any) -> Any:
        if not isinstance(operand, fx.Node):
            return abs(operand) if isinstance(operand, float) else operand
        if operand not in known:
            known[operand] = _magnitude(operand, of, values)
        return known[operand]

    return [of(node) for node in results_of(gm)]


def needed(gm: fx.GraphModule) -> set[fx.Node]:
    """The nodes on the way from the outputs back to the last products."""
    found: set[fx.Node] = set()
    waiting = results_of(gm)
    while waiting:
        node = waiting.pop()
        found.add(node)
        if is_call(node, *DENSE):
            found.update(node.all_input_nodes)
        elif is_call(node, *FOLLOWED):
            waiting += [source for source in node.all_input_nodes if source not in found]
    return found


def _magnitude(node: fx.Node, of: Callable[[Any], Any], values: Mapping[fx.Node, Any]) -> Any:
    """Of one node: at least its absolute value. What holds no real numbers is itself."""
    value = values[node]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    found = value.abs()
    if is_call(node, *DENSE, *FOLLOWED):
        terms = _terms(node, value, of, values)
        if terms.shape == value.shape:
            found = torch.maximum(found, terms.nan_to_num(0.0, 0.0))
    return found


def _terms(node: fx.Node, value: Tensor, of: Callable[[Any], Any], values: Mapping[fx.Node, Any]) -> Tensor:
    first, *rest = cast(Sequence[Any], node.args)
    target = cast(Callable[..., Tensor], node.target)

    def plain(operand: Any) -> Any:
        return fx.node.map_arg(operand, lambda n: values[n])

    def absolute(operand: Any) -> Any:
        found = plain(operand)
        return found.abs() if isinstance(found, Tensor) else abs(found)

    if is_call(node, *DENSE):
        return target(absolute(first), absolute(rest[0]), *[b if b is None else absolute(b) for b in rest[1:2]])
    if is_call(node, aten.add, aten.sub):
        return cast(Tensor, of(first) + of(rest[0]))
    if is_call(node, aten.mul):
        return torch.maximum(of(first) * absolute(rest[0]), absolute(first) * of(rest[0]))
    if is_call(node, aten.div):
        return cast(Tensor, of(first) / absolute(rest[0]))
    if is_call(node, aten.batch_norm):
        weight, bias, mean, var = plain(rest[:4])
        factor = (1.0 if weight is None else weight) * (var + rest[6]).rsqrt()
        shift = (0.0 if bias is None else bias) - mean * factor
        shape = [1, -1, *[1] * (value.dim() - 2)]
        return cast(Tensor, of(first) * factor.abs().reshape(shape) + shift.abs().reshape(shape))
    if is_call(node, *SOFTMAX):
        row = cast(Tensor, of(first)).amax(rest[0], keepdim=True).expand_as(value)
        return row * value if is_call(node, aten.softmax, aten._softmax) else row
    if is_call(node, *ACTIVATIONS):
        return cast(Tensor, of(first)) * next((f(value) for op, f in SATURATING.items() if is_call(node, op)), 1.0)
    if is_call(node, aten.amin):
        return aten.amax.default(of(first), *rest)
    parts = [of(part) for part in first] if isinstance(first, (list, tuple)) else of(first)
    return target(parts, *plain(rest), **plain(dict(node.kwargs)))
