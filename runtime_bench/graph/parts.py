"""Parts of a stage: how the destinations are parted so that a part fits into memory, and how one is computed.

A part is a block of destination nodes with all their in-edges. Its sources are numbered anew, the destinations first,
so that a self-loop is one here as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from bgnn.runtime_bench.graph.in_edges import InEdges
from bgnn.runtime_bench.graph.manifest import Manifest, Stage
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

LIST_BYTES = 3 * 16  # of an edge beside what a stage's tensors take: its two ends, and copies while they are made
PARTS_EACH = 4  # at least, for each worker: they end at about the same time


def plan(stage: Stage, sets: Mapping[str, InEdges], nodes: int, memory: int, workers: int = 1) -> list[tuple[int, int]]:
    """The blocks of destinations [start, stop), each of which takes at most `memory` bytes.

    Raises BgnnError where one node does not fit, or a stage of all nodes.
    """
    need = _Need(stage, [sets[name].bounds for name in stage.sets], nodes)
    if stage.kind == "whole":
        if need(0, nodes) > memory:
            raise BgnnError(
                f"{stage.file} reduces all {nodes} nodes at once, which takes {readable(need(0, nodes))} of the "
                f"{readable(memory)} that a worker has: a larger --memory is needed"
            )
        return [(0, nodes)]
    most = max(1024, -(-nodes // (PARTS_EACH * workers)))
    blocks, start = [], 0
    while start < nodes:
        low, high = start, min(nodes, start + most)
        while low < high:  # the largest stop that fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if need(start, middle) <= memory else (low, middle - 1)
        if low == start:
            raise BgnnError(
                f"{stage.file}: node {start} with its {need.edges(start, start + 1)} in-edges takes "
                f"{readable(need(start, start + 1))} of the {readable(memory)} that a worker has: a larger --memory is "
                "needed, or fewer --workers"
            )
        blocks.append((start, low))
        start = low
    return blocks


class _Need:
    """The bytes that a block takes at most."""

    def __init__(self, stage: Stage, bounds: Sequence[np.ndarray], nodes: int) -> None:
        self.stage, self.bounds, self.nodes = stage, bounds, nodes

    def edges(self, start: int, stop: int) -> int:
        return sum(int(bounds[stop] - bounds[start]) for bounds in self.bounds)

    def __call__(self, start: int, stop: int) -> int:
        of, edges, rows = self.stage.bytes, self.edges(start, stop), stop - start
        return rows * of["row"] + min(edges + rows, self.nodes) * of["source"] + edges * (of["edge"] + LIST_BYTES)


def readable(size: int) -> str:
    """Bytes in words."""
    number, unit = float(size), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.3g} {unit}"


class Worker:
    """Computes parts of one stage: the file, opened, and room to number nodes anew (5 bytes a node)."""

    def __init__(self, manifest: Manifest, stage: Stage, model: OnnxModel, nodes: int) -> None:
        self.manifest, self.stage, self.model, self.nodes = manifest, stage, model, nodes
        self._seen: np.ndarray | None = None

    def run(
        self, start: int, stop: int, values: Mapping[str, np.ndarray], edges: Mapping[str, InEdges]
    ) -> dict[str, np.ndarray]:
        """The stage's results for destinations [start, stop): of each value its rows, or the whole.

        `values`: all that earlier stages made, and the network's inputs. `edges`: those of the part. Raises BgnnError.
        """
        count, arrays = stop - start, dict[str, np.ndarray]()
        others = self._number([one.sources for one in edges.values()], start, stop)
        for fed in self.stage.fed:
            if fed.edges is not None:
                of_part = edges[fed.edges]
                arrays[fed.name] = self._list(fed.edges, of_part) if fed.value is None else of_part.values[fed.value]
                continue
            of = values[str(fed.value)]
            if fed.rows == "destinations":
                arrays[fed.name] = of[start:stop]
            elif fed.rows == "sources":
                rows = np.empty([count + len(others), *of.shape[1:]], of.dtype)
                rows[:count] = of[start:stop]
                np.take(of, others, axis=0, out=rows[count:], mode="clip")
                arrays[fed.name] = rows
            else:
                arrays[fed.name] = of
        found = self.model.run_feeds(self.model.feeds(**arrays))
        return dict(zip(self.stage.results, found.values(), strict=True))

    def _list(self, name: str, edges: InEdges) -> np.ndarray:
        """The part's edges, int64 [2, e], as the file numbers nodes."""
        target = self.manifest.sets[name]["target"]
        listed = np.empty([2, len(edges.sources)], np.int64)
        listed[target] = np.repeat(np.arange(len(edges.bounds) - 1), np.diff(edges.bounds))
        listed[1 - target] = self._place[edges.sources]
        return listed

    def _number(self, sources: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
        """Numbers the destinations and then the other sources, which are returned; `_place` is each one's number."""
        if not sources:
            return np.empty(0, np.int64)
        if self._seen is None:
            self._seen, self._place = np.zeros(self.nodes, bool), np.empty(self.nodes, np.int32)
        for one in sources:
            self._seen[one] = True
        self._seen[start:stop] = False
        others = np.flatnonzero(self._seen)
        self._seen[others] = False
        self._place[start:stop] = np.arange(stop - start)
        self._place[others] = np.arange(stop - start, stop - start + len(others))
        return others


def run_in_memory(
    manifest: Manifest, models: Sequence[OnnxModel], values: Mapping[str, np.ndarray], sets: Mapping[str, InEdges],
    parts: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The whole chain on a small graph, its destinations in `parts` blocks: every value that flows, and the inputs."""
    nodes, known = len(next(iter(sets.values())).bounds) - 1, dict(values)
    for stage, model in zip(manifest.stages, models, strict=True):
        worker = Worker(manifest, stage, model, nodes)
        bounds = np.unique(np.linspace(0, nodes, 2 if stage.kind == "whole" else parts + 1).astype(int))
        found = [
            worker.run(a, b, known, {name: sets[name].part(a, b) for name in stage.sets})
            for a, b in itertools.pairwise(bounds.tolist())
        ]
        for name in stage.results:
            per_node = manifest.values[name].per == "node"
            known[name] = np.concatenate([one[name] for one in found]) if per_node else found[0][name]
    return known
