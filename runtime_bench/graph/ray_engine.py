"""The engine of several machines: Ray Data sorts the edges, Ray's actors compute the parts, its object store holds the
rows that they read.

Rows of values go to the store once, in blocks, and a part's actor gets the blocks that hold its sources' rows; a part's
edges go with the part. An actor that dies is started again, and its part computed again, from the same blocks: a part's
results are written once, by the driver, when they are there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np

from bgnn.runtime_bench.graph import ray_edges, readers
from bgnn.runtime_bench.graph.in_edges import InEdges
from bgnn.runtime_bench.graph.manifest import Manifest, Stage, opener
from bgnn.runtime_bench.graph.parts import Part, Results, Worker
from bgnn.runtime_bench.graph.work import Work
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

DEATHS = 3  # of actors that a part survives: one that kills them, for want of memory, is given up
AHEAD = 2  # parts that an actor has been given, so that it need not wait for the next
BLOCK_BYTES = 4 << 20  # of rows in one object of the store


class Blocks:
    """A value whose rows lie in blocks of the object store; it reads like the array, and gets the blocks that it needs
    until `let_go`."""

    def __init__(self, objects: list[Any], rows: int, length: int, shape: Sequence[int], dtype: np.dtype) -> None:
        self.objects, self.rows, self.shape, self.dtype = objects, rows, (length, *shape), dtype
        self.held: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | EllipsisType) -> np.ndarray:
        start, stop, _ = (slice(None) if which is Ellipsis else which).indices(len(self))
        found = np.empty([stop - start, *self.shape[1:]], self.dtype)
        self.take(np.arange(start, stop), 0, found)
        return found

    def take(self, indices: np.ndarray, axis: int, out: np.ndarray, mode: str = "clip") -> np.ndarray:
        """What `np.take` calls: rows by number, in increasing order, into `out`."""
        import ray

        ends = np.searchsorted(indices, np.arange(len(self.objects) + 1) * self.rows)
        needed: list[int] = np.flatnonzero(np.diff(ends)).tolist()
        missing = [number for number in needed if number not in self.held]
        self.held |= zip(missing, ray.get([self.objects[number] for number in missing]), strict=True)
        for number in needed:
            span = slice(ends[number], ends[number + 1])
            self.held[number].take(indices[span] - number * self.rows, axis, out[span], "clip")
        return out

    def let_go(self) -> None:
        """The store may move the blocks to the disk again."""
        self.held = {}


class _Actor:
    """Computes parts in a process of its own: of one stage after another, each opened with its first part."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.stage = manifest, ""

    def run(self, file: str, given: Sequence[Any], part: Part, edges: dict[str, InEdges]) -> Results:
        """The results of a part of the stage of this file; `given`: where in the store the rest is that it needs."""
        if file != self.stage:
            import ray

            stage, files, nodes, self.values = ray.get(given[0])
            self.worker, self.stage = Worker(self.manifest, stage, opener(files.__getitem__), nodes), file
        try:
            return self.worker.run(part, self.values, edges)
        finally:
            for one in self.values.values():
                if isinstance(one, Blocks):
                    one.let_go()

    def process(self) -> int:
        """Its process, by number."""
        return os.getpid()


class Ray:
    """`workers` actors, on the cluster at `address`, or on one of this machine that ends with this object."""

    def __init__(self, folder: Path, manifest: Manifest, workers: int, address: str | None = None) -> None:
        if address is None:  # loopback and no other interface, as Ray itself has it on macOS; read at the import
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise UsageError("--engine ray needs Ray: pip install 'bgnn-convert[ray]'") from error
        self.ray, self.folder, self.manifest, self.workers = ray, folder, manifest, workers
        self.actors: list[Any] = []
        self._blocks: dict[str, Blocks | np.ndarray] = {}
        here = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        where: dict[str, Any] = here if address is None else {"address": address}
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray's own, ConnectionError, RuntimeError
            raise BgnnError(f"Ray does not start: {' '.join(str(error).split())[:300]}") from error
        there = int(ray.cluster_resources().get("CPU", 0))
        if there < workers:  # an actor that finds no place would be waited for without end
            ray.shutdown()
            raise UsageError(f"--workers {workers}: the cluster has {there} processors")

    def sort(self, given: readers.Edges, names: readers.Names, memory: int, work: Work) -> dict[str, InEdges]:
        """By Ray Data, whose memory is Ray's."""
        try:
            return ray_edges.sort(self.manifest, given, names, work)
        except self.ray.exceptions.RayError as error:
            raise _in_words(error) from error

    def run(
        self, stage: Stage, parts: Sequence[Part], values: Mapping[str, np.ndarray], sets: Mapping[str, InEdges],
        nodes: int,
    ) -> Iterator[tuple[Part, Results]]:  # fmt: skip
        """Each part with its results, as they are finished."""
        ray = self.ray
        self._store(stage, values)
        files = {one.file: (self.folder / one.file).read_bytes() for one in stage.all()}
        given = [ray.put((stage, files, nodes, {name: self._blocks[name] for name in _read_by(stage)}))]
        if not self.actors:  # not before the edges are sorted, which takes the same processors
            kind = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=DEATHS)(_Actor)
            self.actors = [kind.remote(self.manifest) for _ in range(self.workers)]
        waiting, running = list(reversed(parts)), dict[Any, tuple[Part, Any]]()

        def give(actor: Any) -> None:
            if waiting:
                part = waiting.pop()
                edges = {name: sets[name].part(*part[:2]) for name in stage.sets}
                running[actor.run.remote(stage.file, given, part, edges)] = (part, actor)

        try:
            for actor in self.actors * AHEAD:
                give(actor)
            while running:
                done, _ = ray.wait(list(running))
                part, actor = running.pop(done[0])
                give(actor)
                yield part, ray.get(done[0])
        except ray.exceptions.RayError as error:
            raise _in_words(error) from error

    def _store(self, stage: Stage, values: Mapping[str, np.ndarray]) -> None:
        """Puts what a stage reads into the store, and lets go of what no stage will read again."""
        later = self.manifest.stages[self.manifest.stages.index(stage) :]
        wanted = {name for one in later for name in _read_by(one)}
        self._blocks = {name: one for name, one in self._blocks.items() if name in wanted}
        for name in _read_by(stage):
            about = self.manifest.values[name]
            if name in self._blocks:
                continue
            if about.per != "node":
                self._blocks[name] = np.asarray(values[name])
                continue
            array, rows = values[name], max(1, BLOCK_BYTES // max(1, about.row_bytes))
            ends = [*range(0, len(array), rows), len(array)]
            objects = [self.ray.put(np.asarray(array[start:stop])) for start, stop in itertools.pairwise(ends)]
            self._blocks[name] = Blocks(objects, rows, len(array), about.shape, array.dtype)

    def close(self) -> None:
        """Ends the cluster of this machine, or leaves the other one."""
        for actor in self.actors:
            self.ray.kill(actor)
        self._blocks = {}
        self.ray.shutdown()


def _in_words(error: BaseException) -> BgnnError:
    """What went wrong in a process of Ray: our error there, or the first words of another."""
    inner: Any = error
    while (following := getattr(inner, "cause", None) or inner.__cause__) is not None:
        inner = following
        if isinstance(inner, BgnnError) and type(inner).__module__.startswith("bgnn."):
            return type(inner)(str(inner))
    return BgnnError(f"Ray: {' '.join(str(inner).split())[:300]}")


def _read_by(stage: Stage) -> list[str]:
    """The values that a stage's files read, but for those of edges."""
    fed = [one for file in stage.all() for one in file.fed if one.edges is None and one.rows != "total"]
    return list(dict.fromkeys(str(one.value) for one in fed))
