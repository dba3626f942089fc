"""Neighbour tables: a graph's edges laid out so that stock operators aggregate over them.

Files written with -O1 for ONNX Runtime do not scatter. They gather rows of neighbours from a *table* and reduce it
along an axis. The nodes are sorted into *buckets* by their number of neighbours; a bucket of width w has a row of w
entries for every node in it. The free ones are -1, which names the last row of whatever is gathered, and there the
file keeps neutral values: no row of sources or of edges, however many there are. The widths are chosen for each
graph, so that few entries are free; the file only fixes how many buckets there are. A bucket comes in blocks of about
the size of the processor's cache.

`bgnn.runtime_bench.runtime.onnx_runner.OnnxModel` calls this by itself. NumPy alone, no loop over nodes or edges:
`tables(edge_index, num_nodes)` of 2 million edges takes about 0.1 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bgnn.runtime_bench.runtime import limits
from bgnn.runtime_bench.runtime.errors import UsageError

FREE = -1  # the last row of what is gathered: a row of its own
_POWERS = [2**k for k in range(31)]
_WIDTHS = np.array(sorted(_POWERS + [3 * power for power in _POWERS[:-2]]), dtype=np.int64)


@dataclass(frozen=True)
class Bucket:
    """Nodes with at most `width` neighbours: B blocks of R rows.

    `items` int32 [B, R, width]: positions in the list of edges. `others` int32 [B, R, width]: the nodes at the edges'
    other ends (None without edges). `rows` int32 [B, R]: the node that a row belongs to. All are -1 where free, `rows`
    where a row only fills its block.
    """

    width: int
    items: np.ndarray
    others: np.ndarray | None
    rows: np.ndarray


@dataclass(frozen=True)
class Tables:
    """All buckets of a graph. Results of the buckets' rows, one after the other, are in no order of the nodes:

    `position` int32 [N] is each node's row in them, their total number for a node without neighbours.
    `counts` int32 [N] is each node's number of neighbours.
    """

    buckets: list[Bucket]
    position: np.ndarray
    counts: np.ndarray


def with_self_loops(edge_index: np.ndarray, num_nodes: int, loops: str = "one") -> np.ndarray:
    """int64 [2, E] with other self-loops; the other edges keep their order.

    `loops`: "one" (those it had go, and one for every node follows, in their order), "more" (they stay, and one for
    every node follows) or "none" (they go).
    """
    kept = edge_index if loops == "more" else edge_index[:, edge_index[0] != edge_index[1]]
    every = np.arange(0 if loops == "none" else num_nodes, dtype=np.int64)
    return np.concatenate([kept, np.stack([every, every])], axis=1)


def join_edges(edge_index: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """int64 [2, E] several times over: copy i has its rows `rows[2i]` and `rows[2i + 1]` as sources and targets."""
    pairs = [list(pair) for pair in zip(rows[::2], rows[1::2], strict=True)]
    return edge_index if pairs == [[0, 1]] else np.concatenate([edge_index[pair] for pair in pairs], axis=1)


def check_index(index: np.ndarray, size: int, name: str, counted: str = "") -> None:
    """Raises UsageError unless all of the int64 `index` is in 0..size-1; `counted` says what there are `size` of."""
    if index.size and (index.min() < 0 or index.max() >= size):
        bad = int(index[(index < 0) | (index >= size)][0])
        counted = counted or f"there are {size} nodes"
        raise UsageError(f"{name} holds {bad}, but {counted}: indices go from 0 to {size - 1}")


def tables(
    edge_index: np.ndarray,
    num_nodes: int,
    *,
    target: int = 1,
    buckets: int = 12,
    block: int = 4096,
    powers_of_two: bool = False,
    num_others: int | None = None,
) -> Tables:
    """The tables of a graph: for each node, the edges that end at it and the nodes they come from.

    `edge_index`: int64 [2, E]; row `target` holds the nodes that aggregate (1 for PyG's default flow). `buckets`: how
    many there are, as the file says; unused ones hold one free row. `block`: entries in a block, about.
    `powers_of_two`: no widths of 3 * 2^k. `num_others`: how many nodes the other row tells apart, where they are of
    another kind. The order of a node's edges is kept. Raises UsageError for an index out of range.
    """
    check_index(edge_index[target], num_nodes, "edge_index")
    check_index(edge_index[1 - target], num_nodes if num_others is None else num_others, "edge_index")
    made = segments(edge_index[target], num_nodes, buckets=buckets, block=block, powers_of_two=powers_of_two)
    others = np.append(edge_index[1 - target].astype(np.int32), np.int32(FREE))
    full = [Bucket(b.width, b.items, others[b.items], b.rows) for b in made.buckets]
    return Tables(full, made.position, made.counts)


def segments(
    index: np.ndarray, size: int, *, buckets: int = 12, block: int = 4096, powers_of_two: bool = False
) -> Tables:
    """The same for any int64 `index` [M] of segments 0..size-1, such as PyG's `batch`: no `others`."""
    check_index(index, size, "the index of segments")
    counts = np.bincount(index, minlength=size)
    order = _stable_order(index, size)
    widths, level = _choose_widths(counts, buckets, np.array(_POWERS) if powers_of_two else _WIDTHS)
    # The nodes bucket by bucket; those without neighbours have level 0 and come first.
    by_level = np.argsort(level, kind="stable")
    ends = np.cumsum(np.bincount(level, minlength=len(widths) + 1))
    shapes = []
    for number, width in enumerate(widths):
        rows = int(ends[number + 1] - ends[number])
        blocks = min(max(1, -(-rows * width // block)), max(1, rows))
        shapes.append((blocks, -(-max(1, rows) // blocks), int(width)))
    row_start = np.concatenate([[0], np.cumsum([b * r for b, r, _ in shapes])])
    cell_start = np.concatenate([[0], np.cumsum([b * r * w for b, r, w in shapes])])
    limits.check_bytes(f"the neighbour tables of {len(index)} edges", 4 * int(cell_start[-1]))

    position = np.full(size, row_start[-1], dtype=np.int32)
    first_cell = np.zeros(size, dtype=np.int64)  # where each node's entries begin
    row_nodes = np.full(row_start[-1], FREE, dtype=np.int32)
    for number, width in enumerate(widths):
        nodes = by_level[ends[number] : ends[number + 1]]
        place = np.arange(len(nodes))
        position[nodes] = row_start[number] + place
        first_cell[nodes] = cell_start[number] + place * width
        row_nodes[row_start[number] : row_start[number] + len(nodes)] = nodes

    cells = np.full(cell_start[-1], FREE, dtype=np.int32)
    before = np.cumsum(counts) - counts  # edges of the nodes before
    cells[np.repeat(first_cell - before, counts) + np.arange(len(index))] = order
    made = [
        Bucket(
            w,
            cells[cell_start[i] : cell_start[i + 1]].reshape(b, r, w),
            None,
            row_nodes[row_start[i] : row_start[i + 1]].reshape(b, r),
        )
        for i, (b, r, w) in enumerate(shapes)
    ]
    return Tables(made, position, counts.astype(np.int32))


def in_order(made: Tables) -> tuple[np.ndarray, list[np.ndarray]]:
    """The edges in the order in which the tables name them, and the tables' entries as places in that order.

    int32 [edges], positions in the list of edges; for each bucket int32 [B, R, width], -1 where free. What is
    computed for the edges in this order is read from front to back, bucket by bucket.
    """
    entries = np.concatenate([bucket.items.ravel() for bucket in made.buckets])
    taken = entries != FREE
    places = np.where(taken, np.cumsum(taken, dtype=np.int32) - 1, FREE).astype(np.int32)
    ends = np.cumsum([bucket.items.size for bucket in made.buckets])[:-1]
    shapes = [bucket.items.shape for bucket in made.buckets]
    parts = [part.reshape(shape) for part, shape in zip(np.split(places, ends), shapes, strict=True)]
    return entries[taken], parts


def _stable_order(index: np.ndarray, size: int) -> np.ndarray:
    """The positions of `index` sorted by its values, equal ones in their order.

    By 16 bits at a time: NumPy sorts 16-bit integers by counting, several times as fast as 64-bit ones.
    """
    if not len(index) or (index[1:] >= index[:-1]).all():
        return np.arange(len(index))
    order = np.argsort(index.astype(np.uint16), kind="stable")
    shift = 16
    while size - 1 >> shift:
        order = order[np.argsort((index[order] >> shift).astype(np.uint16), kind="stable")]
        shift += 16
    return order


def _choose_widths(counts: np.ndarray, buckets: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`buckets` widths that leave the fewest free entries, and the bucket of each node, from 1 (0: no neighbours)."""
    fits = np.searchsorted(allowed, counts) + 1  # the narrowest candidate
    fits[counts == 0] = 0
    hist = np.bincount(fits, minlength=2)[1:]
    candidates = np.nonzero(hist)[0]
    if len(candidates) > buckets:
        candidates = candidates[_best(allowed[candidates], hist[candidates], buckets)]
    widths = allowed[candidates]
    level = np.searchsorted(widths, counts) + 1
    level[counts == 0] = 0
    unused = np.ones(buckets - len(widths), dtype=np.int64)
    return np.concatenate([widths, unused]), level.astype(np.uint8)


def _best(widths: np.ndarray, rows: np.ndarray, buckets: int) -> np.ndarray:
    """Which `buckets` of the widths to take (the last always), by dynamic programming over where buckets end."""
    total = np.concatenate([[0], np.cumsum(rows)])
    # cost[i, j]: entries of one bucket that holds the candidates i..j-1
    cost = np.where(
        np.arange(len(total))[:, None] < np.arange(len(total)),
        (total[None, :] - total[:, None]) * np.append(0, widths)[None, :],
        np.iinfo(np.int64).max // 4,
    )
    best, choices = cost[0], []
    for _ in range(buckets - 1):
        sums = best[:, None] + cost
        choices.append(sums.argmin(0))
        best = sums.min(0)
    ends = [len(widths)]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return np.array(ends[::-1]) - 1
