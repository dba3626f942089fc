"""The engine of several machines: Ray's actors compute the parts, its object store holds what they read.

An actor that dies is started again, and its part computed again, from the same arrays: a part's results are written
once, by the driver, when they are there. Each array goes to the store once a stage; a part's edges with the part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.graph.engines import Results
from bgnn.runtime_bench.graph.in_edges import InEdges
from bgnn.runtime_bench.graph.manifest import Manifest, Stage, opener
from bgnn.runtime_bench.graph.parts import Part, Worker
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

AHEAD = 2  # parts that an actor has been given, so that it need not wait for the next


class _Actor:
    """Computes parts of one stage in a process of its own."""

    def __init__(self, manifest: Manifest, stage: Stage, files: dict[str, bytes], nodes: int) -> None:
        self.worker = Worker(manifest, stage, opener(files.__getitem__), nodes)

    def run(self, part: Part, edges: dict[str, InEdges], names: Sequence[str], *arrays: np.ndarray) -> Results:
        return self.worker.run(part, dict(zip(names, arrays, strict=True)), edges)

    def process(self) -> int:
        """Its process, by number."""
        return os.getpid()


class Ray:
    """`workers` actors, on the cluster at `address`, or on one of this machine that ends with this object."""

    def __init__(self, folder: Path, manifest: Manifest, workers: int, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("--engine ray needs Ray: pip install 'bgnn-convert[ray]'") from error
        self.ray, self.folder, self.manifest, self.workers = ray, folder, manifest, workers
        self.actors: list[Any] = []
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
        if address is not None:
            quiet = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
        try:
            ray.init(**quiet, **({"num_cpus": workers} if address is None else {}))
        except Exception as error:  # Ray's own, ConnectionError, RuntimeError
            raise BgnnError(f"Ray does not start: {' '.join(str(error).split())[:300]}") from error

    def run(
        self, stage: Stage, parts: Sequence[Part], values: Mapping[str, np.ndarray], sets: Mapping[str, InEdges],
        nodes: int,
    ) -> Iterator[tuple[Part, Results]]:  # fmt: skip
        """Each part with its results, as they are finished."""
        ray = self.ray
        names = _read_by(stage)
        arrays = [ray.put(np.asarray(values[name])) for name in names]
        files = ray.put({one.file: (self.folder / one.file).read_bytes() for one in stage.all()})
        kind = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Actor)
        self.actors = actors = [
            kind.remote(self.manifest, stage, files, nodes) for _ in range(min(self.workers, len(parts)))
        ]
        waiting, running = list(reversed(parts)), dict[Any, tuple[Part, Any]]()

        def give(actor: Any) -> None:
            if waiting:
                part = waiting.pop()
                edges = {name: sets[name].part(*part[:2]) for name in stage.sets}
                running[actor.run.remote(part, edges, names, *arrays)] = (part, actor)

        try:
            for actor in actors * AHEAD:
                give(actor)
            while running:
                done, _ = ray.wait(list(running))
                part, actor = running.pop(done[0])
                give(actor)
                yield part, ray.get(done[0])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            raise BgnnError(f"Ray: {' '.join(str(cause or error).split())[:300]}") from error
        finally:
            for actor in actors:
                ray.kill(actor)

    def close(self) -> None:
        """Ends the cluster of this machine, or leaves the other one."""
        self.ray.shutdown()


def _read_by(stage: Stage) -> list[str]:
    """The values that a stage's files read, but for those of edges."""
    fed = [one for file in stage.all() for one in file.fed if one.edges is None and one.rows != "total"]
    return list(dict.fromkeys(str(one.value) for one in fed))
