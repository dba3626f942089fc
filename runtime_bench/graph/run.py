"""The outer loop: nodes and edges read once, then layer by layer, part by part."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.graph import manifest, parts, readers, sorting
from bgnn.runtime_bench.graph.engines import Engine, Local
from bgnn.runtime_bench.graph.in_edges import InEdges
from bgnn.runtime_bench.graph.manifest import Manifest, Stage, Value
from bgnn.runtime_bench.graph.sorting import BASE
from bgnn.runtime_bench.graph.work import Work, forget, key_of
from bgnn.runtime_bench.runtime import saturation
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.limits import readable
from bgnn.runtime_bench.runtime.outputs import check_output
from bgnn.runtime_bench.runtime.saturation import Saturation

NUMBERING = 5  # bytes a node, of each worker (parts.Worker)
ARENA = 1.5  # what ONNX Runtime takes of the system for what its tensors take: it grows in large steps
Say = Callable[[str], None]


def run(
    path: Path, edges: Path, features: Path, output: Path, *, memory: int, workers: int = 1,
    engine: str = "local", address: str | None = None,
    say: Say = lambda line: None,
) -> None:  # fmt: skip
    """Computes all nodes of a graph and writes them to `output` (.npy or .parquet), in the order of `features`.

    `memory`: bytes; the pages of mapped files that a part reads come on top, until the part is done. Raises UsageError
    and BgnnError; what was finished stays in `output`.work, and the same call goes on from there.
    """
    chain = manifest.read(path)
    folder = path if path.is_dir() else path.parent
    _check(chain, edges, features, output)
    files = [folder / file for file in chain.files()]
    for file in [*files, edges, features]:
        if not file.exists():
            raise UsageError(f"cannot read {file}: no such file")
    output = Path(os.path.realpath(output))  # a link stays one
    work = Work(Path(f"{output}.work"), key_of([chain], [*files, edges, features]))
    with contextlib.closing(work):
        if work.is_done(chain.stages[-1].file) and not work.path(chain.outputs[0]).exists():
            work.begin()  # the result took its place, and the run was killed before it could say so
        if work.resumed:
            say(f"going on from {work.folder}")
        _run(chain, folder, edges, features, output, work, memory, workers, engine, address, say)


def _run(
    chain: Manifest, folder: Path, edges: Path, features: Path, output: Path, work: Work, memory: int, workers: int,
    engine: str, address: str | None, say: Say,
) -> None:  # fmt: skip
    nodes = readers.Features(features, chain, lambda name, *of: work.allocate(f"input-{name}", *of))
    each = int(((memory - BASE) // workers - NUMBERING * nodes.count) / ARENA)
    if each <= 0:
        raise BgnnError(
            f"{nodes.count} nodes take {readable(BASE + workers * NUMBERING * nodes.count)} with --workers "
            f"{workers} before any part of the graph: a larger --memory than {readable(memory)} is needed"
        )
    workforce = _engine(engine, address, folder, chain, workers)
    try:
        sets, values = _sorted(chain, edges, nodes.names, memory, work, workforce, say), dict(nodes.values)
        for number, stage in enumerate(chain.stages):
            blocks = parts.plan(stage, sets, nodes.count, each, workers)
            title = f"layer {number + 1} of {len(chain.stages)}"
            _run_stage(chain, stage, title, blocks, workforce, values, sets, nodes.count, work, say)
    finally:
        workforce.close()
    _write(chain.values[chain.outputs[0]], nodes.names.ids, values, output, work)
    work.remove()


def _engine(name: str, address: str | None, folder: Path, chain: Manifest, workers: int) -> Engine:
    if name == "local":
        return Local(folder, chain, workers)
    from bgnn.runtime_bench.graph.ray_engine import Ray  # which most runs do without

    return Ray(folder, chain, workers, address)


def _check(chain: Manifest, edges: Path, features: Path, output: Path) -> None:
    for place in (output, Path(os.path.realpath(output))):
        if place.suffix not in (".npy", ".parquet"):
            raise UsageError(f"-o {place}: the output is a .npy or a .parquet")
    if output.suffix == ".parquet":
        readers.need_arrow()
    check_output(output, {"the edges": edges, "the features": features})
    for what, given in {"edges": edges, "features": features}.items():
        if given.is_dir() and given.samefile(output.parent):
            raise UsageError(f"cannot write {output}: its folder is that of the {what}, which would hold it")
    if len(chain.outputs) > 1:
        raise UsageError("the network gives several tensors: convert it with one --keep-output")


def _sorted(
    chain: Manifest, edges: Path, names: readers.Names, memory: int, work: Work, engine: Engine, say: Say
) -> dict[str, InEdges]:
    """The edges, sorted by this run or an earlier one."""
    sets = sorting.opened(chain, work)
    if sets is None:
        started = time.perf_counter()
        given = readers.Edges(edges, chain)
        say(f"{names.count:,} nodes, {given.count:,} edges")
        sets = engine.sort(given, names, memory, work)
        say(f"edges sorted in {time.perf_counter() - started:.1f} s")
    _check_degrees(sets, chain.max_degree)
    return sets


def _check_degrees(sets: Mapping[str, InEdges], limit: int) -> None:
    """The 32-bit sums were proven for so many edges of a node, its loop included."""
    for one in sets.values():
        degrees = np.diff(one.bounds)
        most = int(degrees.argmax())
        if degrees[most] >= limit:
            raise BgnnError(
                f"node {most} has {int(degrees[most])} in-edges: 32-bit sums are proven for fewer than {limit}"
            )


def _run_stage(
    chain: Manifest, stage: Stage, title: str, blocks: list[parts.Part], engine: Engine,
    values: dict[str, np.ndarray], sets: Mapping[str, InEdges], count: int, work: Work, say: Say,
) -> None:  # fmt: skip
    """One file over all nodes; its results join `values`."""

    def step(block: parts.Part) -> str:
        return f"{stage.file} {block[0]}-{block[1]}"

    begun = work.is_done(f"{stage.file} begun")
    left = [block for block in blocks if not (begun and work.is_done(step(block)))]
    if work.is_done(stage.file):
        left = []
    elif not begun:
        for value in (chain.values[name] for name in stage.results):
            if value.per == "node":
                work.allocate(value.name, [count, *value.shape], np.dtype(value.dtype))
        work.finish(f"{stage.file} begun")
    if left:
        made = {name: work.open(name, write=True) for name in stage.results if chain.values[name].per == "node"}
        progress = _Progress(title, stage, sum(stop - start for start, stop, _ in left), sets, say)
        sums: list[Saturation] = []
        for (start, stop, pieces), found in engine.run(stage, left, values, sets, count):
            sums += found.sums
            for name, array in found.arrays.items():
                about = chain.values[name]
                if array.dtype != about.dtype or (about.per == "node" and array.shape[1:] != about.shape):
                    raise BgnnError(f"{stage.file} gives {name} as {array.dtype} {list(array.shape)}: write it again")
                if name in made:
                    made[name][start:stop] = array
                else:
                    work.allocate(name, array.shape, array.dtype)[...] = array
            work.finish(step((start, stop, pieces)))
            forget([*values.values(), *made.values(), *(array for one in sets.values() for array in one.arrays())])
            progress.add(start, stop)
        warning = saturation.in_words(saturation.joined(sums))
        if warning is not None:
            say(f"warning: {title}: {warning}")
        for array in made.values():
            array.flush()  # type: ignore[attr-defined]
        work.finish(stage.file)
    for name in stage.results:
        values[name] = work.open(name)


class _Progress:
    """A line now and then: how far, how fast, when it ends."""

    EVERY = 5.0

    def __init__(self, title: str, stage: Stage, nodes: int, sets: Mapping[str, InEdges], say: Say) -> None:
        self.title, self.nodes, self.say = f"{title} ({stage.file})", nodes, say
        self.bounds = [sets[name].bounds for name in stage.sets]
        self.done = self.edges = 0
        self.started = self.told = time.perf_counter()

    def add(self, start: int, stop: int) -> None:
        """So many more nodes are done."""
        self.done += stop - start
        self.edges += sum(int(bounds[stop] - bounds[start]) for bounds in self.bounds)
        now = time.perf_counter()
        if self.done < self.nodes and now - self.told < self.EVERY:
            return
        self.told, spent = now, max(now - self.started, 1e-9)
        rate = f"{self.done / spent:,.0f} nodes/s"
        rate += f", {self.edges / spent / 1e6:,.1f} M edges/s" if self.edges else ""
        if self.done == self.nodes:
            self.say(f"{self.title}: {self.nodes:,} nodes in {spent:.1f} s ({rate})")
        else:
            left = spent * (self.nodes - self.done) / self.done
            self.say(f"{self.title}: {100 * self.done / self.nodes:.0f}%, {rate}, {left:,.0f} s left")


def _write(about: Value, ids: Any, values: Mapping[str, np.ndarray], output: Path, work: Work) -> None:
    """The result takes its place when it is complete."""
    if output.suffix == ".npy":
        with work.named():
            os.replace(work.path(about.name), output)
        return
    made, array = work.folder / "output.parquet", values[about.name]
    if about.per == "graph":  # its rows, if it has any, are no nodes
        array = np.atleast_1d(array)
    elif ids is None:
        ids = np.arange(len(array))
    with work.named():
        _write_parquet(made, about.name, array, ids if about.per == "node" else None)
        os.replace(made, output)


def _write_parquet(path: Path, name: str, array: np.ndarray, ids: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for start in range(0, len(array), readers.ROWS):
        rows = np.asarray(array[start : start + readers.ROWS])
        column = pa.array(rows.reshape(-1))
        if rows.ndim > 1:
            column = pa.FixedSizeListArray.from_arrays(column, int(np.prod(rows.shape[1:])))
        columns = {} if ids is None else {readers.ID: ids[start : start + len(rows)]}
        table = pa.table({**columns, name: column})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
