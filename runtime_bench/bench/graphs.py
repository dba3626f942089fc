"""The graphs that networks are measured on: the papers' from their raw files, else random ones of their shape."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime.errors import UsageError

SIZES = {"cora": (2708, 10_556), "citeseer": (3327, 9_104)}  # nodes, edges in both directions
REDDIT_NODES, REDDIT_EDGES = 232_965, 2_000_000  # Reddit itself has 114,848,857 edges
MOLECULES, IMAGES = 10_000, 1_000  # of a batch: Degree-Quant's for ZINC and CIFAR-10


@dataclass(frozen=True)
class Graph:
    """A graph to measure on: edges int64 [2, E]."""

    name: str
    what: str
    nodes: int
    edges: np.ndarray


def power_law(nodes: int, edges: int, rng: np.random.Generator) -> np.ndarray:
    """edge_index int64 [2, edges]: both ends drawn with probability ~ rank^-1/2, ranks unrelated to numbers."""
    share = np.cumsum(np.arange(1, nodes + 1) ** -0.5)

    def ends() -> np.ndarray:
        ranks = np.searchsorted(share, rng.random(edges) * share[-1])
        return rng.permutation(nodes)[ranks.clip(0, nodes - 1)]

    return np.stack([ends(), ends()]).astype(np.int64)


def planetoid(folder: Path, name: str) -> np.ndarray | None:
    """The edges of a citation graph in Planetoid's raw files, both directions; None where they are not there."""
    path = next((p for p in (folder / f"ind.{name}.graph", folder / "planetoid" / f"ind.{name}.graph") if p.is_file()),
                None)  # fmt: skip
    if path is None:
        return None
    neighbours = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    pairs = {(int(a), int(b)) for a, others in neighbours.items() for b in others}
    pairs |= {(b, a) for a, b in pairs}
    return np.array(sorted(pairs), dtype=np.int64).T


class _PlainUnpickler(pickle.Unpickler):
    """A dictionary of lists needs one class, and no other is loaded."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "defaultdict"):
            return super().find_class(module, name)
        if name == "list":
            return list
        raise UsageError(f"a graph file that asks for {module}.{name} is not Planetoid's")


def molecules(count: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """A batch of molecule-like graphs (ZINC: 23.2 atoms and 24.9 bonds on average): chains, branches and rings."""
    sizes = rng.normal(23.2, 4.5, count).round().astype(np.int64).clip(6, 38)
    start = np.cumsum(sizes) - sizes
    first = np.repeat(start, sizes)
    atom = np.arange(sizes.sum()) - first
    # Most atoms hang at the one before, some at one a few steps back; rings are closed over 5 bonds.
    back = np.where(rng.random(len(atom)) < 0.75, 1, rng.integers(1, 5, len(atom))).clip(1)
    tree = np.stack([np.arange(len(atom)), first + (atom - back).clip(0)])[:, atom > 0]
    ring = np.flatnonzero((atom >= 5) & (rng.random(len(atom)) < 0.15))
    bonds = np.concatenate([tree, np.stack([ring, ring - 5])], 1)
    return len(atom), np.concatenate([bonds, bonds[::-1]], 1)


def superpixels(count: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """A batch of images as graphs (CIFAR-10: 85 to 150 superpixels): each node's 8 nearest in the plane send to it."""
    sizes = rng.integers(85, 151, count)
    found, start = [], 0
    for size in sizes:
        points = rng.random((size, 2), np.float32)
        gaps = ((points[:, None] - points[None]) ** 2).sum(2)
        np.fill_diagonal(gaps, np.inf)
        near = np.argpartition(gaps, 8, axis=1)[:, :8]
        found.append(start + np.stack([near.reshape(-1), np.repeat(np.arange(size), 8)]))
        start += int(size)
    return start, np.concatenate(found, 1).astype(np.int64)


def graph(name: str, data: Path | None) -> Graph:
    """A graph by name, the same in every run. `data`: where Planetoid's raw files may be."""
    rng = np.random.default_rng(0)
    if name == "zinc":
        return Graph(name, f"{MOLECULES:,} generated molecules", *molecules(MOLECULES, rng))
    if name == "cifar10":
        return Graph(name, f"{IMAGES:,} generated superpixel graphs", *superpixels(IMAGES, rng))
    if name == "reddit":
        edges = power_law(REDDIT_NODES, REDDIT_EDGES, rng)
        return Graph(name, "power-law graph of Reddit's nodes", REDDIT_NODES, edges)
    if name == "power-law":
        return Graph(name, "power-law graph", 10_000, power_law(10_000, 100_000, rng))
    nodes, count = SIZES[name]
    found = planetoid(data, name) if data is not None else None
    if found is None:
        return Graph(name, f"random graph of {name.capitalize()}'s size", nodes, power_law(nodes, count, rng))
    return Graph(name, name.capitalize(), max(nodes, int(found.max()) + 1), found)
