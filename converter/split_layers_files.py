"""`--split-layers DIR`: the chain of split_layers.py as files with a manifest, and the proof that it is the whole file.

The proof runs both on the example (and on the second graph): the whole network with every value that flows between the
stages as one more output, and the chain with the nodes in one part and in several. Integers are equal one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.converter import split_layers, stages
from bgnn.converter.errors import ConversionError
from bgnn.converter.onnx.emit import emit, run_file
from bgnn.converter.split_layers_hubs import hubs_of
from bgnn.converter.verify import Check, compare_outputs
from bgnn.passes import accumulators
from bgnn.passes.graph import snapshot
from bgnn.runtime_bench.graph import in_edges, parts
from bgnn.runtime_bench.graph.manifest import Fed, Hubs, Manifest, Round, Stage, Total, Value, opener
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

PARTS = (1, 3)  # in how many the example's nodes are when the chain is compared
PIECES = 2  # and in how many each node's edges, as a hub's


@dataclasses.dataclass(frozen=True)
class Layers:
    """The chain's manifest and its files, by name."""

    manifest: Manifest
    files: dict[str, bytes]

    def written(self) -> dict[str, bytes]:
        """Everything that stands in the folder."""
        return {**self.files, "manifest.json": self.manifest.to_json().encode()}


def write(
    chain: split_layers.Chain, plan: stages.Plan, name: str, metadata: Mapping[str, str],
    seen: Mapping[str, float] | None = None,
) -> Layers:  # fmt: skip
    """The files of a chain; `seen` as for `emit`. Raises ConversionError for what the target cannot write."""
    sets: dict[split_layers.EdgeSet, str] = {}
    files: dict[str, bytes] = {}

    def written(stage: split_layers.Stage, file: str, results: Sequence[str]) -> Stage:
        given = {one.node.name: one for one in stage.given}
        finish(stage.gm, plan)
        files[file] = emit(
            stage.gm, name=f"{name}: {file}", input_names=list(given), output_names=list(results), metadata=metadata,
            optimize=plan.optimize, kernels=plan.kernels, seen=seen,
        )  # fmt: skip
        for one in stage.given:
            if one.edges is not None:
                sets.setdefault(one.edges, f"edges{len(sets)}")
        fed = [
            Fed(
                key,
                one.value.name if one.value is not None else one.total or None,
                one.rows,
                sets.get(cast(Any, one.edges)),
            )
            for key, one in given.items()
        ]
        return Stage(file, stage.kind, tuple(fed), tuple(results), _bytes(stage, plan))

    described: list[Stage] = []
    for number, stage in enumerate(chain.stages):
        made = written(stage, f"{number}-{stage.kind}.onnx", [value.name for value in stage.results])
        found = hubs_of(stage)
        if found is not None:
            rounds = []
            for place, one in enumerate(found.rounds):
                pieces = written(one.pieces, f"{number}-pieces-{place}.onnx", [total.name for total in one.totals])
                totals = tuple(Total(total.name, total.how, sets[total.edges]) for total in one.totals)
                rounds.append(Round(pieces, totals))
            finishing = written(found.finish, f"{number}-finish.onnx", made.results)
            made = dataclasses.replace(made, hubs=Hubs(tuple(rounds), finishing))
        described.append(made)
    inputs = [*chain.node_inputs, *chain.edge_inputs]
    manifest = Manifest(
        name, chain.edges.name, tuple(node.name for node in inputs), tuple(node.name for node in chain.results),
        {node.name: _value(node, chain.per[node]) for node in (*inputs, *chain.kept())},
        {key: {"target": one.target, "pairs": one.pairs} for one, key in sets.items()},
        tuple(described), accumulators.MAX_DEGREE, dict(metadata),
    )  # fmt: skip
    return Layers(manifest, files)


def finish(gm: fx.GraphModule, plan: stages.Plan) -> None:
    """The passes from the integer to the target stage, in place."""
    for _, run in stages.passes_to("target", plan):
        run(gm)
    stages.check_spec(gm, "target", plan)
    gm.graph.lint()
    gm.recompile()


def _value(node: fx.Node, rows: str) -> Value:
    value = node.meta["val"]
    per = {split_layers.NODES: "node", split_layers.EDGES: "edge", split_layers.WHOLE: "graph"}[rows]
    shape = [size if type(size) is int else -1 for size in (value.shape if per == "graph" else value.shape[1:])]
    scale, zero = _codes_of(node)
    return Value(node.name, str(value.dtype).removeprefix("torch."), tuple(shape), per, scale, zero)


def _codes_of(node: fx.Node) -> tuple[float | None, int | None]:
    """Scale and zero point of a value's codes, where the op that makes them says so."""
    schema = getattr(node.target, "_schema", None)
    names = [one.name for one in schema.arguments] if schema is not None else []
    for scale, zero in (("y_scale", "y_zero"), ("scale", "zero_point")):
        if scale in names and node.meta["val"].dtype == torch.uint8:
            return cast(float, node.args[names.index(scale)]), cast(int, node.args[names.index(zero)])
    return None, None


def _bytes(stage: split_layers.Stage, plan: stages.Plan) -> dict[str, int]:
    """What all tensors of a stage's file take for each destination, source and edge, as if none were freed."""
    found = {"row": 0, "source": 0, "edge": 0}
    rows = {str(one.node.meta["val"].shape[0]) for one in stage.given if one.rows in ("destinations", "all")}
    sources = {str(one.node.meta["val"].shape[0]) for one in stage.given if one.rows == "sources"}
    for node in stage.gm.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or all(isinstance(size, int) for size in value.shape):
            continue
        size = int(np.prod([s for s in value.shape if isinstance(s, int)])) * value.dtype.itemsize
        if value.dtype == torch.int32 and plan.kernels == "stock":
            size *= 8  # packed signs are a byte each there
        first = str(value.shape[0])
        found["row" if first in rows else "source" if first in sources else "edge"] += size
    return found


def check(
    layers: Layers, before: fx.GraphModule, chain: split_layers.Chain, plan: stages.Plan,
    graphs: Sequence[tuple[str, Sequence[Tensor]]],
) -> list[Check]:  # fmt: skip
    """The chain against the whole network, on each of these graphs (in words, and inputs): one check each.

    `before`: the graph that was cut. Raises ConversionError with the first value that differs.
    """
    names = list(dict.fromkeys([*layers.manifest.outputs, *(node.name for node in chain.kept())]))
    whole = snapshot(before)
    by_name = {node.name: node for node in whole.graph.nodes}
    for node in whole.graph.nodes:
        if node.op == "output":
            node.args = (tuple(by_name[name] for name in names),)
    whole.recompile()
    finish(whole, plan)
    placeholders = [node.name for node in whole.graph.nodes if node.op == "placeholder"]
    data = emit(
        whole, name="whole", input_names=placeholders, output_names=[f"value/{name}" for name in names], metadata={},
        optimize=plan.optimize, kernels=plan.kernels,
    )  # fmt: skip
    opened = opener(layers.files.__getitem__)
    in_rounds = [stage for stage in layers.manifest.stages if stage.hubs is not None and len(stage.hubs.rounds) > 1]
    attention = {name for stage in in_rounds for name in stage.results}
    found = []
    for said, inputs in graphs:
        arrays = dict(zip(placeholders, (value.numpy() for value in inputs), strict=True))
        expected = dict(zip(names, run_file(data, list(arrays.values())), strict=True))
        one = Check("split layers" + (", second graph" if said else ""))
        integers = sum(array.size for array in expected.values() if array.dtype.kind != "f")
        counts = " and in ".join(map(str, PARTS))
        hubs = f", hubs in {PIECES} pieces" if any(stage.hubs for stage in layers.manifest.stages) else ""
        hubs += " (attention: within one code)" if any(expected[name].dtype.kind != "f" for name in attention) else ""
        equal = f"{integers:,} integers equal: " if integers else ""
        one.note = (
            f"{equal}the chain of {len(layers.manifest.stages)} stages, its nodes in {counts} parts{hubs}, and the "
            "whole file"
        )
        for count in PARTS:
            made = run_chain(layers.manifest, opened, arrays, count)
            for name in names:
                _compare(one, name, expected[name], made[name], f"{count} parts")
        if hubs:
            made = run_chain(layers.manifest, opened, arrays, 1, PIECES, expected)
            for name in names:
                _compare(one, name, expected[name], made[name], f"hubs in {PIECES} pieces", int(name in attention))
        found.append(one)
    return found


def run_chain(
    manifest: Manifest, opened: Callable[[str], OnnxModel], arrays: Mapping[str, np.ndarray], count: int,
    pieces: int = 1, instead: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The chain on a graph in memory, in `count` parts; with `pieces`, hubs' edges in so many, each stage given
    `instead` of what earlier ones made."""
    edge_values = {one.name: arrays[one.name] for one in manifest.inputs_per("edge")}
    nodes = len(arrays[manifest.inputs_per("node")[0].name])
    edges = arrays[manifest.edges]

    def listed() -> list[in_edges.Piece]:
        return [(edges, edge_values)]

    sets = {
        name: in_edges.sort(
            listed, nodes, one["pairs"], {key: (v.dtype, v.shape[1:]) for key, v in edge_values.items()}
        )
        for name, one in manifest.sets.items()
    }
    inputs = {name: arrays[name] for name in manifest.inputs}
    return parts.run_in_memory(manifest, opened, inputs, sets, count, pieces, instead)


def _compare(check: Check, name: str, expected: np.ndarray, made: np.ndarray, how: str, within: int = 0) -> None:
    """`within`: how far integers may be apart."""
    if expected.dtype != made.dtype or expected.shape != made.shape:
        raise ConversionError(
            f"split layers: {name} is {made.dtype} {list(made.shape)}, and {expected.dtype} {list(expected.shape)} in "
            "the whole file: please report this model"
        )
    if expected.dtype.kind == "f":
        one, other = (torch.from_numpy(np.array(array)) for array in (expected, made))
        compare_outputs(check, [one], [other], lambda: [one])
        return
    if wrong := int((np.abs(expected.astype(np.int64) - made) > within).sum()):
        raise ConversionError(
            f"split layers: {wrong} of {expected.size} integers of {name} differ from the whole file's "
            f"(nodes in {how}): please report this model"
        )
