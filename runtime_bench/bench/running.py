"""Measures what belongs side by side, each alone and then all in interleaved rounds, as records."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench import conditions
from bgnn.runtime_bench.bench.candidates import Alone, Candidate, Opened, run_alone, versions
from bgnn.runtime_bench.bench.inputs import Inputs
from bgnn.runtime_bench.bench.measure import Schedule, measure
from bgnn.runtime_bench.bench.records import CPU, WALL, Record
from bgnn.runtime_bench.runtime import limits, streams
from bgnn.runtime_bench.runtime.errors import BgnnError

Say = Callable[[str], None]
_numbers = itertools.count()


@dataclass(frozen=True)
class Subject:
    """One row: a case on a candidate."""

    case: str
    candidate: str
    alone: Callable[[], Alone]
    """Runs it in a fresh process. Raises BgnnError where it cannot run."""
    open: Callable[[], Opened]
    file_bytes: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """What more the record's settings say of it."""

    @property
    def name(self) -> str:
        return f"{self.case}, {self.candidate}"


def new_run() -> str:
    """A name for what is measured in the same rounds."""
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{next(_numbers)}"


def run_file(
    path: Path, content: bytes, inputs: Inputs, candidates: Sequence[Candidate], threads: int, schedule: Schedule,
    say: Say,
) -> list[Record]:  # fmt: skip
    """The records of all candidates that can run the file. Raises BgnnError, with their reasons, where none can."""
    arrays = list(inputs.arrays.values())
    with on_disk(arrays) as npz:
        subjects = [file_subject(path.name, candidate, path, content, arrays, npz, threads, schedule)
                    for candidate in candidates]  # fmt: skip
        return measure_together(subjects, inputs.what, threads, schedule, say)


def file_subject(
    case: str, candidate: Candidate, path: Path, content: bytes, arrays: Sequence[np.ndarray], npz: Path, threads: int,
    schedule: Schedule, about: Mapping[str, Any] | None = None,
) -> Subject:  # fmt: skip
    """A file on a runtime; `npz`: the same arrays, for processes that are yet to start."""
    return Subject(
        case, candidate.name, partial(run_alone, candidate, path, npz, threads, schedule),
        partial(candidate.open, content, threads, arrays), len(content), about or {},
    )  # fmt: skip


def measure_together(
    subjects: Sequence[Subject], inputs: str, threads: int, schedule: Schedule, say: Say
) -> list[Record]:
    """The records of what can run; the first is what ratios refer to. They say why others cannot.

    Each runs alone in a fresh process (which shows what memory it takes and what its start costs), and then all of them
    in interleaved rounds, pinned. Raises BgnnError, with the reasons, where nothing can run.
    """
    limits.check_threads("threads", threads)
    apart: dict[str, Alone] = {}
    refused: dict[str, str] = {}
    with conditions.pinned(threads) as cores:
        for subject in subjects:
            say(f"{subject.name}: alone")
            try:
                apart[subject.name] = subject.alone()
            except BgnnError as error:
                refused[subject.name] = streams.one_line(str(error))
        if not apart:
            raise BgnnError("nothing runs " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
        able = [subject for subject in subjects if subject.name in apart]
        opened = {subject.name: subject.open() for subject in able}
        before = conditions.now()
        say(f"{len(able)} in rounds")
        runs = {name: one.run for name, one in opened.items()}
        found = measure(runs, base=able[0].name, schedule=schedule, threads=threads)
        after = conditions.now()
    settings: dict[str, Any] = {
        "run": new_run(),
        "base": [able[0].case, able[0].candidate],
        "threads": threads,
        "cores": cores,
        "inputs": inputs,
        "rounds": found.rounds,
        "warmup": schedule.warmup,
        "warmup_seconds": schedule.warmup_seconds,
        "before": before,
        "after": after,
        "throttled": conditions.throttling(before, after),
        "left_out": refused,
    }
    machine = {key: value for key, value in found.machine.items() if key != "packages"}
    records = []
    for subject in able:
        timing, alone = found.timings[subject.name], apart[subject.name]
        same = next(other for other in able if other.case == subject.case)
        figures: dict[str, float | None] = {
            "init_ms": alone.init_ms,
            "first_ms": alone.first_ms,
            "warmup_ms": alone.warmup_ms,
            "peak_bytes": alone.peak_bytes,
            "empty_bytes": alone.empty_bytes,
            "arena_bytes": alone.arena_bytes,
            "file_bytes": subject.file_bytes,
            "difference": largest_difference(opened[subject.name].outputs(), opened[same.name].outputs()),
        }
        samples = {WALL: timing.wall_ms, CPU: timing.cpu_ms}
        samples |= {name: [figure] for name, figure in figures.items() if figure is not None}
        how = {**settings, **subject.about}
        records.append(Record(subject.case, subject.candidate, machine, False, samples, versions(), how))
    return records


def largest_difference(ours: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> float:
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
def on_disk(arrays: Sequence[np.ndarray]) -> Iterator[Path]:
    """The arrays as an .npz, for processes that are yet to start."""
    with tempfile.TemporaryDirectory(prefix="bgnn-bench-") as folder:
        path = Path(folder) / "inputs.npz"
        np.savez(path, *arrays)
        yield path
