"""Parts of a stage: how the destinations are parted so that a part fits into memory, and how one is computed.

A part is a block of destination nodes with all their in-edges. Its sources are numbered anew, the destinations first,
so that a self-loop is one here as well.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bgnn.runtime_bench.graph.in_edges import InEdges
from bgnn.runtime_bench.graph.manifest import Manifest, Round, Stage
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.limits import readable
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.saturation import Saturation

HUB_BYTES = 8  # of an edge of a hub, while its pieces are taken
LIST_BYTES = 3 * 16  # of an edge beside what a stage's tensors take: its two ends, and copies while they are made
PIECE = 1 << 16  # edges of a hub at a time, at most: float32 holds the total of so many codes exactly
HUBS = 8  # of a small graph that is to try them
PARTS_EACH = 4  # at least, for each worker: they end at about the same time


@dataclasses.dataclass(frozen=True)
class Results:
    """A part's: of each value its rows, or the whole; and the codes of its sums that saturated."""

    arrays: dict[str, np.ndarray]
    sums: list[Saturation]


Part = tuple[int, int, int]
"""Destinations [start, stop), and in how many pieces their edges are: more than 1 for a hub alone."""


def plan(stage: Stage, sets: Mapping[str, InEdges], nodes: int, memory: int, workers: int = 1) -> list[Part]:
    """The parts of a stage, each of which takes at most `memory` bytes; a node whose edges do not fit comes in pieces.

    Raises BgnnError where one node does not fit, or a stage of all nodes.
    """
    need = _Need(stage, [sets[name].bounds for name in stage.sets], nodes)
    if stage.kind == "whole":
        if need(0, nodes) > memory:
            raise BgnnError(
                f"{stage.file} reduces all {nodes} nodes at once, which takes {readable(need(0, nodes))} of the "
                f"{readable(memory)} that a worker has: a larger --memory is needed"
            )
        return [(0, nodes, 1)]
    most = max(1024, -(-nodes // (PARTS_EACH * workers)))
    found, start = list[Part](), 0
    while start < nodes:
        low, high = start, min(nodes, start + most)
        while low < high:  # the largest stop that fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if need(start, middle) <= memory else (low, middle - 1)
        found.append((start, low, 1) if low > start else (start, start + 1, _pieces(need, start, memory)))
        start = found[-1][1]
    return found


def _pieces(need: _Need, node: int, memory: int) -> int:
    """In how many pieces the in-edges of one node are summed."""
    stage, edges = need.stage, need.edges(node, node + 1)
    if stage.hubs is not None:
        each = PIECE
        for of in (one.pieces.bytes for one in stage.hubs.rounds):
            room = memory - of["row"] - of["source"] - HUB_BYTES * edges
            each = min(room // (of["source"] + of["edge"] + LIST_BYTES), each)
        if each >= 1:
            return -(-edges // each)
    way_out = "the sums of this stage cannot be taken in pieces; " if stage.hubs is None else ""
    raise BgnnError(
        f"{stage.file}: node {node} with its {edges} in-edges takes {readable(need(node, node + 1))} of the "
        f"{readable(memory)} that a worker has: {way_out}a larger --memory is needed, or fewer --workers"
    )


class _Need:
    """The bytes that a block takes at most."""

    def __init__(self, stage: Stage, bounds: Sequence[np.ndarray], nodes: int) -> None:
        self.stage, self.bounds, self.nodes = stage, bounds, nodes

    def edges(self, start: int, stop: int) -> int:
        return sum(int(bounds[stop] - bounds[start]) for bounds in self.bounds)

    def __call__(self, start: int, stop: int) -> int:
        of, edges, rows = self.stage.bytes, self.edges(start, stop), stop - start
        return rows * of["row"] + min(edges + rows, self.nodes) * of["source"] + edges * (of["edge"] + LIST_BYTES)


class Worker:
    """Computes parts of one stage; it has room to number nodes anew (5 bytes a node). `opened(file)`: an open file."""

    def __init__(self, manifest: Manifest, stage: Stage, opened: Callable[[str], OnnxModel], nodes: int) -> None:
        self.manifest, self.stage, self.opened, self.nodes = manifest, stage, opened, nodes
        self._seen: np.ndarray | None = None

    def run(self, part: Part, values: Mapping[str, np.ndarray], edges: Mapping[str, InEdges]) -> Results:
        """The stage's results for a part's destinations.

        `values`: all that earlier stages made, and the network's inputs. `edges`: those of the part. Raises BgnnError.
        """
        start, stop, pieces = part
        if pieces == 1:
            return self._run(self.stage, start, stop, values, edges)
        assert self.stage.hubs is not None
        known = dict(values)
        for one in self.stage.hubs.rounds:
            known |= self._totals(one, start, pieces, known, edges)
        return self._run(self.stage.hubs.finish, start, stop, known, {})

    def _totals(
        self, hubs: Round, node: int, pieces: int, values: Mapping[str, np.ndarray], edges: Mapping[str, InEdges]
    ) -> dict[str, np.ndarray]:
        """The joined totals of one node. The file adds a self-loop to each piece: those too many are taken back."""
        counts = {name: len(one.sources) for name, one in edges.items()}
        spans = [
            {name: (count * i // pieces, count * (i + 1) // pieces) for name, count in counts.items()}
            for i in range(pieces)
        ]
        parts = [{name: edges[name].piece(*span) for name, span in spanned.items()} for spanned in spans]
        alone = self._run(
            hubs.pieces, node, node + 1, values, {name: one.piece(0, 0) for name, one in edges.items()}
        ).arrays
        joined: dict[str, np.ndarray] = {}
        for number, one in enumerate(parts):
            found = self._run(hubs.pieces, node, node + 1, values, one).arrays
            for total in hubs.totals:
                array = found[total.name]
                if total.how == "most":
                    if len(one[total.edges].sources) or not counts[total.edges]:
                        joined[total.name] = np.maximum(joined.get(total.name, array), array)
                    continue
                array = array.astype(np.float64)
                joined[total.name] = array if number == 0 else joined[total.name] + (array - alone[total.name])
        dtypes = {total.name: alone[total.name].dtype for total in hubs.totals}
        return {name: array.astype(dtypes[name]) for name, array in joined.items()}

    def _run(
        self, stage: Stage, start: int, stop: int, values: Mapping[str, np.ndarray], edges: Mapping[str, InEdges]
    ) -> Results:
        count, arrays = stop - start, dict[str, np.ndarray]()
        # Some operators refuse to have no edges: then one more destination, like the first, has an edge to itself.
        spare = int(any(not len(one.sources) for one in edges.values()))
        others = self._number([one.sources for one in edges.values()], start, stop, spare)
        for fed in stage.fed:
            if fed.edges is not None:
                of_part = edges[fed.edges]
                if fed.value is None:
                    arrays[fed.name] = self._list(fed.edges, of_part, count)
                else:
                    given = of_part.values[fed.value]
                    arrays[fed.name] = given if len(given) else np.zeros([1, *given.shape[1:]], given.dtype)
                continue
            of = values[str(fed.value)]
            if fed.rows in ("destinations", "total"):
                first = start if fed.rows == "destinations" else 0
                own = of[first : first + count]
                arrays[fed.name] = np.concatenate([own, of[first : first + spare]]) if spare else own
            elif fed.rows == "sources":
                rows = np.empty([count + spare + len(others), *of.shape[1:]], of.dtype)
                rows[:count] = of[start:stop]
                rows[count : count + spare] = of[start : start + spare]
                np.take(of, others, axis=0, out=rows[count + spare :], mode="clip")
                arrays[fed.name] = rows
            else:
                arrays[fed.name] = of[...]
        model = self.opened(stage.file)
        found, sums = model.run_counted(model.feeds(**arrays))
        made = dict(zip(stage.results, found.values(), strict=True))
        return Results({name: array[:count] for name, array in made.items()} if spare else made, sums)

    def _list(self, name: str, edges: InEdges, spare: int) -> np.ndarray:
        """The part's edges, int64 [2, e], as the file numbers nodes; that of the spare one where there are none."""
        if not len(edges.sources):
            return np.full([2, 1], spare)
        target = self.manifest.sets[name]["target"]
        listed = np.empty([2, len(edges.sources)], np.int64)
        listed[target] = np.repeat(np.arange(len(edges.bounds) - 1), np.diff(edges.bounds))
        listed[1 - target] = self._place[edges.sources]
        return listed

    def _number(self, sources: Sequence[np.ndarray], start: int, stop: int, spare: int) -> np.ndarray:
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
        self._place[others] = np.arange(len(others)) + (stop - start + spare)
        return others


def run_in_memory(
    manifest: Manifest, opened: Callable[[str], OnnxModel], values: Mapping[str, np.ndarray],
    sets: Mapping[str, InEdges], parts: int, pieces: int = 1, instead: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The whole chain on a small graph, its destinations in `parts` blocks: every value that flows, and the inputs.

    With `pieces`, the nodes of the most edges are taken for hubs where the stage allows that. Stages read `instead` in
    place of what earlier ones made.
    """
    nodes, known, made = len(next(iter(sets.values())).bounds) - 1, dict(values), dict(values)
    for stage in manifest.stages:
        worker = Worker(manifest, stage, opened, nodes)
        ends = np.linspace(0, nodes, 2 if stage.kind == "whole" else parts + 1).astype(int)
        hubs = np.empty(0, int)
        if pieces > 1 and stage.hubs is not None:
            hubs = np.argsort(-np.diff(sets[stage.sets[0]].bounds), kind="stable")[:HUBS]
        bounds = np.unique(np.concatenate([ends, hubs, hubs + 1])).tolist()
        blocks = [(a, b, pieces if a in hubs else 1) for a, b in itertools.pairwise(bounds)]
        found = [
            worker.run(one, known, {name: sets[name].part(*one[:2]) for name in stage.sets}).arrays for one in blocks
        ]
        for name in stage.results:
            per_node = manifest.values[name].per == "node"
            made[name] = np.concatenate([one[name] for one in found]) if per_node else found[0][name]
            known[name] = made[name] if instead is None else instead[name]
    return made
