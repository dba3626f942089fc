"""What every emitter and everything that runs an emitted file agree on: its names, and how it is run with probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.converter.errors import ConversionError, UsageError


def results_of(gm: fx.GraphModule) -> list[fx.Node]:
    """What the graph gives: the nodes in its output."""
    results = next(node for node in gm.graph.nodes if node.op == "output").args[0]
    return [results] if isinstance(results, fx.Node) else list(results)


def io_names(gm: fx.GraphModule) -> tuple[list[str], list[str]]:
    """The names of inputs and outputs in the file."""
    count = len(results_of(gm))
    inputs = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    return inputs, ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def named_ends(
    gm: fx.GraphModule, input_names: Sequence[str], output_names: Sequence[str], probes: Mapping[str, fx.Node]
) -> tuple[list[tuple[str, fx.Node]], list[tuple[str, fx.Node]]]:
    """(name, node) of the file's inputs, and of its outputs with the probes at the end.

    Raises UsageError where the names do not fit the graph, or a probe is no tensor.
    """
    placeholders, results = [node for node in gm.graph.nodes if node.op == "placeholder"], results_of(gm)
    if len(input_names) != len(placeholders) or len(output_names) != len(results):
        raise UsageError(
            f"the graph has {len(placeholders)} inputs and {len(results)} outputs, but "
            f"{len(input_names)} and {len(output_names)} names were given"
        )
    for key, probe in probes.items():
        if not isinstance(probe.meta["val"], Tensor):
            what = type(probe.meta["val"]).__name__
            raise UsageError(f"probe {key}: {probe} is a {what}, and a file returns tensors; probe its getitem")
    outputs = [*zip(output_names, results, strict=True), *probes.items()]
    return list(zip(input_names, placeholders, strict=True)), outputs


def run_with_probes(
    emit: Callable[..., bytes],
    run: Callable[[bytes, Sequence[np.ndarray]], list[np.ndarray]],
    probes: Sequence[fx.Node],
    inputs: Sequence[Tensor],
) -> tuple[list[Tensor], dict[fx.Node, Tensor]]:
    """Runs a file with more of its tensors as outputs, and once more as it is: (its outputs, the probes' values).

    `emit(probes=...)` makes the file, `run` runs it. Raises ConversionError if an output is not the same in both.
    """
    arrays = [value.numpy() for value in inputs]
    probed = run(emit(probes={f"tap/{node.name}": node for node in probes}), arrays)
    alone = run(emit(), arrays)
    for position, (without, with_probes) in enumerate(zip(alone, probed, strict=False)):
        if not np.array_equal(with_probes, without, equal_nan=True):
            raise ConversionError(f"emitted file: output {position} changes when intermediate tensors are read")
    values = [torch.from_numpy(np.array(value)) for value in probed]
    return values[: len(alone)], dict(zip(probes, values[len(alone) :], strict=True))
