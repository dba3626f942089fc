"""In-edges sorted by target (CSR), made once from a list of edges that need not fit into memory.

Two passes over the list in pieces: the first counts, the second puts each edge where it belongs. The edges of a node
keep the list's order, so that sums of floats are in the order of the whole graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

Piece = tuple[np.ndarray, Mapping[str, np.ndarray]]
"""Edges [2, e] by row number, and the values of these edges by name."""


@dataclasses.dataclass
class InEdges:
    """The edges into node i are `sources[bounds[i] : bounds[i + 1]]`, and their values likewise."""

    bounds: np.ndarray
    sources: np.ndarray
    values: dict[str, np.ndarray]

    def arrays(self) -> list[np.ndarray]:
        """All of them."""
        return [self.bounds, self.sources, *self.values.values()]

    def part(self, start: int, stop: int) -> InEdges:
        """The edges into nodes [start, stop), as arrays in memory; `bounds` begin with 0."""
        bounds = np.asarray(self.bounds[start : stop + 1])
        span = slice(int(bounds[0]), int(bounds[-1]))
        values = {name: np.asarray(array[span]) for name, array in self.values.items()}
        return InEdges(bounds - bounds[0], np.asarray(self.sources[span]), values)

    def piece(self, first: int, last: int) -> InEdges:
        """Some of the edges of a part of one node."""
        values = {name: array[first:last] for name, array in self.values.items()}
        return InEdges(np.array([0, last - first]), self.sources[first:last], values)


def allocate_memory(name: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array in memory; one of the ways to give `sort` its arrays."""
    return np.empty(shape, dtype)


def sort(
    pieces: Callable[[], Iterable[Piece]], nodes: int, pairs: Sequence[Sequence[int]],
    values: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    allocate: Callable[[str, Sequence[int], np.dtype], np.ndarray] = allocate_memory,
) -> InEdges:  # fmt: skip
    """Sorts the edges of `pieces()`, which is asked for several times; `pairs`: the rows of sources and targets, once
    for each copy of the edges; `values`: dtype and row shape of the edges' values; `allocate(name, shape, dtype)`."""
    degrees = np.zeros(nodes, np.int64)
    for _, target in pairs:
        for ends, _ in pieces():
            degrees += np.bincount(ends[target], minlength=nodes)
    bounds = allocate("bounds", [nodes + 1], np.dtype(np.int64))
    bounds[0] = 0
    np.cumsum(degrees, out=bounds[1:])
    count = int(bounds[-1])
    sources = allocate("sources", [count], np.dtype(np.int32 if nodes < 2**31 else np.int64))
    sorted_values = {name: allocate(name, [count, *shape], dtype) for name, (dtype, shape) in values.items()}
    free = degrees
    free[:] = bounds[:-1]
    for source, target in pairs:
        for ends, given in pieces():
            order, places = _places(ends[target], free)
            sources[places] = ends[source][order]
            for name, array in given.items():
                sorted_values[name][places] = array[order]
    return InEdges(bounds, sources, sorted_values)


def _places(targets: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the edges by target, where each of these goes); `free`, the next free place of each node, moves on."""
    order = np.argsort(targets, kind="stable")
    if not len(order):
        return order, order
    by_target = targets[order]
    starts = np.flatnonzero(np.concatenate([[True], by_target[1:] != by_target[:-1]]))
    counts = np.diff(np.append(starts, len(order)))
    nodes = by_target[starts]
    places = np.repeat(free[nodes] - starts, counts) + np.arange(len(order))
    free[nodes] += counts
    return order, places


def pieces_of(edges: np.ndarray, values: Mapping[str, np.ndarray], size: int) -> Iterator[Piece]:
    """Edges [2, E] and their values, `size` at a time."""
    for start in range(0, edges.shape[1], size):
        part = slice(start, start + size)
        yield edges[:, part], {name: array[part] for name, array in values.items()}
