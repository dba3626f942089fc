"""`bgnn-bench run`: one file, on some threads, by every candidate that can run it, as records."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench import conditions
from bgnn.runtime_bench.bench.candidates import Alone, Candidate, run_alone, versions
from bgnn.runtime_bench.bench.inputs import Inputs
from bgnn.runtime_bench.bench.measure import Schedule, measure
from bgnn.runtime_bench.bench.records import CPU, WALL, Record
from bgnn.runtime_bench.runtime import limits, streams
from bgnn.runtime_bench.runtime.errors import BgnnError

Say = Callable[[str], None]


def new_run() -> str:
    """A name for what is measured together."""
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"


def run_file(
    path: Path,
    content: bytes,
    inputs: Inputs,
    candidates: Sequence[Candidate],
    threads: int,
    schedule: Schedule,
    run: str,
    say: Say,
) -> list[Record]:
    """The records of all candidates that can run the file; the first of them is the base. They say why others cannot.

    Each runs alone in a fresh process (which shows what memory it takes and what its start costs), and then all of them
    in interleaved rounds. Raises BgnnError, with the candidates' reasons, where none can run it.
    """
    limits.check_threads("threads", threads)
    arrays = list(inputs.arrays.values())
    apart: dict[str, Alone] = {}
    refused: dict[str, str] = {}
    with conditions.pinned(threads) as cores, _on_disk(arrays) as folder:
        for candidate in candidates:
            say(f"{path.name}: {candidate.name}, alone")
            try:
                apart[candidate.name] = run_alone(candidate, path, folder, threads, schedule)
            except BgnnError as error:
                refused[candidate.name] = streams.one_line(str(error))
        if not apart:
            raise BgnnError(f"nothing runs {path}: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
        able = [candidate for candidate in candidates if candidate.name in apart]
        opened = {candidate.name: candidate.open(content, threads, arrays) for candidate in able}
        before = conditions.now()
        found = measure(
            {name: one.run for name, one in opened.items()}, base=able[0].name, schedule=schedule, threads=threads
        )
        after = conditions.now()
    difference = {
        name: _largest_difference(one.outputs(), opened[able[0].name].outputs()) for name, one in opened.items()
    }
    settings: dict[str, Any] = {
        "run": run,
        "base": able[0].name,
        "threads": threads,
        "cores": cores,
        "inputs": inputs.what,
        "rounds": found.rounds,
        "warmup": schedule.warmup,
        "warmup_seconds": schedule.warmup_seconds,
        "before": before,
        "after": after,
        "throttled": conditions.throttling(before, after),
        "left_out": refused,
    }
    records = []
    for name, timing in found.timings.items():
        alone = apart[name]
        samples: dict[str, list[float]] = {
            WALL: timing.wall_ms,
            CPU: timing.cpu_ms,
            "init_ms": [alone.init_ms],
            "first_ms": [alone.first_ms],
            "warmup_ms": [alone.warmup_ms],
            "peak_bytes": [alone.peak_bytes],
            "empty_bytes": [alone.empty_bytes],
            "arena_bytes": [] if alone.arena_bytes is None else [alone.arena_bytes],
            "file_bytes": [len(content)],
            "difference": [difference[name]],
        }
        machine = {key: value for key, value in found.machine.items() if key != "packages"}
        records.append(Record(path.name, name, machine, False, samples, versions(), settings))
    return records


def _largest_difference(ours: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> float:
    """Between two runtimes' outputs of one file; NaN beside NaN is none, and anything beside NaN the largest float."""
    largest = 0.0
    for one, other in zip(ours, base, strict=True):
        if one.shape != other.shape:
            return float(np.finfo(np.float64).max)
        if one.dtype.kind in "fiub" and one.size:
            with np.errstate(invalid="ignore"):
                gap = np.where(one == other, 0, np.abs(one.astype(np.float64) - other.astype(np.float64)))
            gap[np.isnan(one) & np.isnan(other)] = 0
            largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max()))
    return min(largest, float(np.finfo(np.float64).max))


@contextmanager
def _on_disk(arrays: Sequence[np.ndarray]) -> Iterator[Path]:
    """The arrays as an .npz, for processes that are yet to start."""
    with tempfile.TemporaryDirectory(prefix="bgnn-bench-") as folder:
        path = Path(folder) / "inputs.npz"
        np.savez(path, *arrays)
        yield path
