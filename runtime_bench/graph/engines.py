"""Who sorts the edges and computes a stage's parts. `Local`: threads of this process (ONNX Runtime works outside
Python's lock)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import numpy as np

from bgnn.runtime_bench.graph import readers, sorting
from bgnn.runtime_bench.graph.in_edges import InEdges
from bgnn.runtime_bench.graph.manifest import Manifest, Stage, opener
from bgnn.runtime_bench.graph.parts import Part, Results, Worker
from bgnn.runtime_bench.graph.work import Work


class Engine(Protocol):
    """The seam: whoever sorts the edges, and computes the parts of a stage."""

    def sort(self, given: readers.Edges, names: readers.Names, memory: int, work: Work) -> dict[str, InEdges]:
        """The edges of each set by target, in arrays of the work folder; each set is finished there."""

    def run(
        self, stage: Stage, parts: Sequence[Part], values: Mapping[str, np.ndarray], sets: Mapping[str, InEdges],
        nodes: int,
    ) -> Iterator[tuple[Part, Results]]:  # fmt: skip
        """Each part once, with its results, as they are finished."""

    def close(self) -> None:
        """Nothing more is asked."""


class Local:
    """`workers` threads, each with one part at a time."""

    def __init__(self, folder: Path, manifest: Manifest, workers: int) -> None:
        self.folder, self.manifest, self.workers = folder, manifest, workers

    def sort(self, given: readers.Edges, names: readers.Names, memory: int, work: Work) -> dict[str, InEdges]:
        """In this thread, by pieces."""
        return sorting.sort(self.manifest, given, names, memory, work)

    def run(
        self, stage: Stage, parts: Sequence[Part], values: Mapping[str, np.ndarray], sets: Mapping[str, InEdges],
        nodes: int,
    ) -> Iterator[tuple[Part, Results]]:  # fmt: skip
        """Each part with its results, as they are finished; no more are begun than are taken."""
        opened, own = opener(lambda file: (self.folder / file).read_bytes()), threading.local()
        opened(stage.file)

        def compute(part: Part) -> tuple[Part, Results]:
            if not hasattr(own, "worker"):
                own.worker = Worker(self.manifest, stage, opened, nodes)
            return part, own.worker.run(part, values, {name: sets[name].part(*part[:2]) for name in stage.sets})

        yield from _in_turn(compute, parts, self.workers)

    def close(self) -> None:
        """Its threads ended with each stage."""


def _in_turn(
    compute: Callable[[Part], tuple[Part, Results]], parts: Sequence[Part], workers: int
) -> Iterator[tuple[Part, Results]]:
    if workers == 1:
        yield from map(compute, parts)
        return
    waiting, running = list(reversed(parts)), set[Future[tuple[Part, Results]]]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.add(pool.submit(compute, waiting.pop()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    yield one.result()
        finally:
            for one in running:
                one.cancel()
