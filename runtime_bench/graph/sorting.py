"""The edges of the user's files, sorted by target in the work folder: for this process's disk and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bgnn.runtime_bench.graph import in_edges, readers
from bgnn.runtime_bench.graph.in_edges import InEdges
from bgnn.runtime_bench.graph.manifest import Manifest
from bgnn.runtime_bench.graph.work import Work, forget
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.limits import readable

BASE = 160 << 20  # Python, NumPy, ONNX Runtime and its session
SORTING = 80  # bytes an edge of a piece, while edges are read and sorted
SORTED = 16  # bytes a node, while edges are sorted


def number_type(nodes: int) -> np.dtype:
    """What numbers of nodes are kept as."""
    return np.dtype(np.int32 if nodes < 2**31 else np.int64)


def array_name(of: str, what: str) -> str:
    """The name in the work folder of an array of a set of edges: "bounds", "sources" or a value of edges."""
    return f"{of}-{what}"


def opened(chain: Manifest, work: Work) -> dict[str, InEdges] | None:
    """The edges as an earlier run has sorted them."""
    if not all(work.is_done(name) for name in chain.sets):
        return None
    values = [one.name for one in chain.inputs_per("edge")]
    return {
        name: InEdges(
            work.open(array_name(name, "bounds")), work.open(array_name(name, "sources")),
            {value: work.open(array_name(name, value)) for value in values},
        )
        for name in chain.sets
    }  # fmt: skip


def sort(
    chain: Manifest, given: readers.Edges, names: readers.Names, memory: int, work: Work
) -> dict[str, InEdges]:  # fmt: skip
    """Sorts the edges in pieces, so that `memory` bytes are not passed. Raises UsageError and BgnnError."""
    room = memory - BASE - SORTED * names.count
    if room < SORTING * 1024:
        raise BgnnError(
            f"sorting edges of {names.count} nodes takes {readable(BASE + SORTED * names.count)}: a larger "
            f"--memory than {readable(memory)} is needed"
        )
    piece = int(min(room // SORTING, 1 << 24))
    wanted = chain.inputs_per("edge")
    ends = work.allocate("ends", [2, given.count], number_type(names.count))
    listed = {
        one.name: work.allocate(f"listed-{one.name}", [given.count, *one.shape], np.dtype(one.dtype)) for one in wanted
    }
    for span in given.spans:
        start = span.first
        for sources, targets, values in given.read(span, piece):
            part = slice(start, start + len(sources))
            ends[0, part] = names.numbers(sources, f"{given.path}: sources")
            ends[1, part] = names.numbers(targets, f"{given.path}: targets")
            for name, array in values.items():
                listed[name][part] = array
            start = part.stop
            forget([ends, *listed.values(), *given.mapped()])

    def pieces() -> Iterator[in_edges.Piece]:
        for one in in_edges.pieces_of(ends, listed, piece):
            yield one
            forget([ends, *listed.values(), *made])

    found: dict[str, InEdges] = {}
    made: list[np.ndarray] = []
    for name, one in chain.sets.items():

        def allocate(what: str, shape: Sequence[int], dtype: np.dtype, name: str = name) -> np.ndarray:
            made.append(work.allocate(array_name(name, what), shape, dtype))
            return made[-1]

        of = {value.name: (np.dtype(value.dtype), value.shape) for value in wanted}
        found[name] = in_edges.sort(pieces, names.count, one["pairs"], of, allocate)
        work.finish(name)
    for path in [work.path("ends"), *(work.path(f"listed-{one.name}") for one in wanted)]:
        path.unlink()
    return found
