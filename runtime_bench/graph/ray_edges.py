"""The edges partitioned by target and sorted by Ray Data, on the workers, once.

Each task reads a row group of the Parquet files and numbers its nodes. Ray Data's sort parts the edges by ranges of
targets, moves each once, and sorts each range; the ranges come to this process one after another, and are written to
the work folder as they are. An edge's place in the list is the second key, so that the edges of a node keep the list's
order: the arrays are those of `sorting.sort`, bit for bit.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from bgnn.runtime_bench.graph import readers, sorting
from bgnn.runtime_bench.graph.in_edges import InEdges
from bgnn.runtime_bench.graph.manifest import Manifest
from bgnn.runtime_bench.graph.work import Work, forget
from bgnn.runtime_bench.runtime.errors import BgnnError

PIECE = 1 << 20  # edges that a task reads at a time
KEYS = TARGET, PLACE = "target", "place"
SOURCE = "source"


def sort(chain: Manifest, given: readers.Edges, names: readers.Names, work: Work) -> dict[str, InEdges]:
    """The edges of each set, in arrays of the work folder. Ray's errors pass."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as well
    shared = ray.put((given, names))
    spans = [{"span": number} for number in range(len(given.spans))]
    found = {}
    for name, one in chain.sets.items():
        values = {value.name: value for value in chain.inputs_per("edge")}
        count = given.count * len(one["pairs"])
        bounds = work.allocate(sorting.array_name(name, "bounds"), [names.count + 1], np.dtype(np.int64))
        sources = work.allocate(sorting.array_name(name, "sources"), [count], sorting.number_type(names.count))
        arrays = {
            key: work.allocate(sorting.array_name(name, key), [count, *value.shape], np.dtype(value.dtype))
            for key, value in values.items()
        }
        degrees, start, last = np.zeros(names.count, np.int64), 0, -1
        if count:
            read = functools.partial(_read, shared=shared, pairs=one["pairs"])
            edges = ray.data.from_items(spans, override_num_blocks=len(spans))
            edges = edges.map_batches(read, batch_size=1).sort(list(KEYS))
            for batch in edges.iter_batches(batch_size=None, batch_format="numpy"):
                targets = batch[TARGET]
                part = slice(start, start + len(targets))
                if part.stop > count or (len(targets) and (targets[0] < last or np.any(targets[1:] < targets[:-1]))):
                    raise BgnnError("Ray Data has not sorted the edges: please report this")
                sources[part] = batch[SOURCE]
                for key, array in arrays.items():
                    array[part] = batch[_column(key)]
                degrees += np.bincount(targets, minlength=names.count)
                start, last = part.stop, int(targets[-1]) if len(targets) else last
                forget([sources, *arrays.values()])
        if start != count:
            raise BgnnError(f"Ray Data gives {start} of {count} edges: please report this")
        bounds[0] = 0
        np.cumsum(degrees, out=bounds[1:])
        found[name] = InEdges(bounds, sources, arrays)
        work.finish(name)
    return found


def _column(value: str) -> str:
    return f"value {value}"


def _read(batch: dict[str, np.ndarray], shared: Any, pairs: list[list[int]]) -> Iterator[dict[str, np.ndarray]]:
    """The edges of one span, in each of the copies of the list that are sorted."""
    import ray

    given, names = ray.get(shared)
    (number,) = batch["span"]
    span = given.spans[number]
    first, dtype = span.first, sorting.number_type(names.count)
    for sources, targets, values in given.read(span, PIECE):
        ends = (names.numbers(sources, f"{given.path}: sources"), names.numbers(targets, f"{given.path}: targets"))
        places = np.arange(first, first + len(ends[0]))
        first += len(places)
        for copy, (source, target) in enumerate(pairs):
            yield {
                TARGET: ends[target].astype(dtype), PLACE: places + copy * given.count,
                SOURCE: ends[source].astype(dtype), **{_column(key): array for key, array in values.items()},
            }  # fmt: skip
