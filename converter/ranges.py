"""The range of each activation's 8-bit codes, chosen by the error that arrives further on.

A quantiser is tried alone, all else real, and what counts is the squared error that it leaves at the dense layers that
read it next (through gathers, sums over edges, activations) and at the network's outputs. The first range tried holds
the least and the largest value of the samples. From there both ends, then each, move inwards in steps, as long as less
error arrives at *every one* of these places: at the outputs alone, a small sample favours ranges by luck, and at the
next layer alone, what that layer does not pass on counts as much as the rest. What few nodes hold (hubs, nodes without
edges, the rows of a sparse matrix) stays in the range until finer codes gain more than clipping it costs. Values that
are multiples of one step, as counts and their sums over edges are, have a code each, if 256 are enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.passes.graph import aten, is_call, is_constant
from bgnn.passes.insert_fake_quant import CODES, scale_and_zero

STEP = 0.8  # an end moves inwards by this factor
MISSES = 2  # steps without gain, after which an end stays
WORTH = 0.8  # a narrower range must leave less than this share of the wider one's squared error: less is often luck
CAUTION = 3.0  # what clipping loses is added so many times more: graphs to come hold values larger than the samples
EQUAL = 1e-5  # of the largest value: so near 0 float sums are 0
SOME = 4096  # so many values show that they are not few
# What reads a tensor's shape, and none of its values.
SHAPES = [
    aten.sym_size, aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full,
]  # fmt: skip
# Degrees are whole numbers: 1/4 would lie exactly between two codes of a range that ends at 1/2.
WIDER = 1 + 2**-10


@dataclasses.dataclass(frozen=True)
class Range:
    """Least and largest value that codes stand for, and what they do to the samples."""

    low: float
    high: float
    clipped: float
    """The share of the samples' values beyond."""
    alone: float
    """The relative error at the network's output, of this quantiser alone."""


def choose(
    gm: fx.GraphModule, site: fx.Node, samples: Sequence[Sequence[Tensor]], percentile: float | None = None
) -> tuple[Range, Range]:
    """(the range that is best, the one that leaves nothing out) of `site`; `samples`: the model's inputs, by graph.

    `percentile`: no search; so many percent of the values that are not 0 are left out at either end.
    """
    path, layers, outputs = reached(site)
    ends = list(dict.fromkeys([*outputs, *layers]))
    wanted = {site, *ends, *(source for node in path for source in node.all_input_nodes)}
    seen = [values(gm, inputs, wanted.difference(path) | set(ends)) for inputs in samples]

    def errors(change: Callable[[Tensor], Tensor]) -> list[float]:
        total = [0.0] * len(ends)
        for known in seen:
            found = _run(path, known, {site: change(known[site])})
            for i, end in enumerate(ends):
                total[i] += squares(known[end], found[end])
        return total

    def of_codes(low: float, high: float) -> list[float]:
        scale, zero = scale_and_zero(low, high)
        return errors(lambda x: torch.ops.bgnn.fake_quant(x, scale, zero, 0, CODES))

    def with_caution(low: float, high: float) -> list[float]:
        clipped = errors(lambda x: x.clamp(low, high)) if (low, high) != widest else [0.0] * len(ends)
        return [error + CAUTION * more for error, more in zip(of_codes(low, high), clipped, strict=True)]

    size = sum(squares(known[outputs[0]]) for known in seen) if outputs else 0.0

    every = torch.cat([known[site].flatten() for known in seen])

    def result(low: float, high: float) -> Range:
        clipped = float(((every < low) | (every > high)).float().mean()) if every.numel() else 0.0
        return Range(low, high, clipped, (of_codes(low, high)[0] / size) ** 0.5 if size else 0.0)

    widest = _between(every, 0.0)
    if percentile is not None:
        best = _between(every, percentile)
    elif (exact := of_multiples(every)) and all(
        new <= old for new, old in zip(of_codes(*exact), of_codes(*widest), strict=True)
    ):
        best = widest = exact
    else:
        best = narrowed(with_caution, *widest)
    return result(*best), result(*widest)


def of_multiples(every: Tensor) -> tuple[float, float] | None:
    """The narrowest range that holds all values and has a code for each, if they are multiples of one step.

    Counts, degrees, one-hot rows and their sums are: a range from least to largest would put 1 between two codes.
    """
    size = float(every.abs().max()) if every.numel() else 0.0
    if not 0 < size < math.inf or len(every[every != 0][:SOME].unique()) > CODES:
        return None
    step = 0.0
    for value in every.unique().tolist():
        value = abs(value)
        while value > EQUAL * size:  # Euclid's algorithm
            step, value = value, abs(math.remainder(step, value))
        if 0 < step < 0.999 * size / CODES:
            return None
    low, high = min(float(every.min()), 0.0), max(float(every.max()), 0.0)
    levels = round((high - low) / step)
    if levels > CODES:
        return None
    return low, max(high, low + step / (CODES // levels) * CODES)


def narrowed(errors: Callable[[float, float], Sequence[float]], low: float, high: float) -> tuple[float, float]:
    """The range within `low <= 0 <= high` of least `errors`: both ends move inwards, then each alone."""
    least = errors(low, high)
    for moves_low, moves_high in ((True, True), (False, True), (True, False)):
        if not ((moves_low and low) or (moves_high and high)):
            continue
        factor, misses = 1.0, 0
        start = low, high
        while misses < MISSES:
            factor *= STEP
            ends = start[0] * (factor if moves_low else 1.0), start[1] * (factor if moves_high else 1.0)
            found = errors(*ends)
            if all(new < WORTH * old or new == old == 0 for new, old in zip(found, least, strict=True)) and any(least):
                (low, high), least, misses = ends, found, 0
            else:
                misses += 1
    return low, high


def reached(site: fx.Node) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
    """(what is computed from a node, in order; the dense layers that it reaches first; the outputs)."""
    path: list[fx.Node] = []
    layers: list[fx.Node] = []
    after, before_a_layer = {site}, {site}
    for node in site.graph.nodes:
        if node.op == "output":
            return path, layers, [n for n in dict.fromkeys(node.all_input_nodes) if n in after]
        if after.isdisjoint(node.all_input_nodes) or is_call(node, *SHAPES):
            continue
        path.append(node)
        after.add(node)
        if not before_a_layer.isdisjoint(node.all_input_nodes):
            if is_call(node, aten.linear) and is_constant(node.args[1]):
                layers.append(node)
            else:
                before_a_layer.add(node)
    raise AssertionError("a graph ends with its output")


def _run(
    path: Sequence[fx.Node], known: Mapping[fx.Node, Any], changed: Mapping[fx.Node, Tensor]
) -> dict[fx.Node, Any]:
    """The values of `path`, from `changed` ones and, of all other nodes, `known` ones."""
    found: dict[fx.Node, Any] = dict(changed)

    def value(node: fx.Node) -> Any:
        return found[node] if node in found else known[node]

    with torch.no_grad():
        for node in path:
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value)
            found[node] = cast(Callable[..., Any], node.target)(*args, **kwargs)
    return found


def values(gm: fx.GraphModule, inputs: Sequence[Tensor], wanted: Collection[fx.Node]) -> dict[fx.Node, Any]:
    """The values of some nodes on one sample."""
    found: dict[fx.Node, Any] = {}

    class Collect(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted:
                found[n] = value
            return value

    with torch.no_grad():
        Collect(gm).run(*inputs)
    return found


def squares(expected: Tensor, found: Tensor | None = None) -> float:
    """The sum of squares, or of squared differences, over what is finite in `expected`; infinite if `found` is not."""
    values = expected if found is None else found - expected
    total = float(torch.where(expected.isfinite(), values, 0.0).double().square().sum())
    return total if total == total else float("inf")


def _between(every: Tensor, percentile: float) -> tuple[float, float]:
    """The values at `percentile` from either end, 0 within; zeros, of which sparse features are full, do not count."""
    every = every[every != 0] if percentile else every
    if not every.numel():
        return 0.0, 0.0
    low, high = (
        np.percentile(every.numpy(), [percentile, 100 - percentile]) if percentile else (every.min(), every.max())
    )
    return min(float(low), 0.0) * WIDER, max(float(high), 0.0) * WIDER
