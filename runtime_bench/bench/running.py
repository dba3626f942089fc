"""Measures what belongs side by side, each alone and then all in interleaved rounds, as records."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench import conditions
from bgnn.runtime_bench.bench.candidates import Alone, Candidate, Opened, run_alone, versions
from bgnn.runtime_bench.bench.inputs import Inputs
from bgnn.runtime_bench.bench.measure import Schedule, describe_machine, measure
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
    alone: Callable[[], Alone] | None
    """Runs it in a fresh process. Raises BgnnError where it cannot run. None: nobody asks for its memory and start."""
    open: Callable[[], Opened]
    """Raises BgnnError where it cannot run."""
    file_bytes: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """What more the record's settings say of it."""

    @property
    def name(self) -> str:
        return f"{self.case}, {self.candidate}"


class Call:
    """A callable of this process as what is open: its result is an array, a list of them, or nothing to compare."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run, self._found = run, None

    def run(self) -> object:
        self._found = self._run()
        return self._found

    def outputs(self) -> list[np.ndarray]:
        found = self._found if isinstance(self._found, (list, tuple)) else [self._found]
        return [np.asarray(one) for one in found if one is not None]

    def arena_bytes(self) -> None:
        return None


def call_subject(case: str, candidate: str, run: Callable[[], Any], **about: Any) -> Subject:
    """A row that this process runs by a call."""
    return Subject(case, candidate, None, lambda: Call(run), None, about)


def new_run() -> str:
    """A name for what is measured in the same rounds."""
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{next(_numbers)}"


def run_file(
    path: Path, content: bytes, inputs: Inputs, candidates: Sequence[Candidate], threads: int, schedule: Schedule,
    say: Say,
) -> list[Record]:  # fmt: skip
    """The records of all candidates that can run the file. Raises BgnnError, with their reasons, where none can."""
    arrays, about = list(inputs.arrays.values()), conversion_of(path)
    with on_disk(arrays) as npz:
        subjects = [file_subject(path.name, candidate, path, content, arrays, npz, threads, schedule, about)
                    for candidate in candidates]  # fmt: skip
        return measure_together(subjects, inputs.what, threads, schedule, say)


def file_subject(
    case: str, candidate: Candidate, path: Path, content: bytes, arrays: Sequence[np.ndarray], npz: Path | None,
    threads: int, schedule: Schedule, about: Mapping[str, Any] | None = None,
) -> Subject:  # fmt: skip
    """A file on a runtime; `npz`: the same arrays, for processes that are yet to start (None: it needs none)."""
    alone = None if npz is None else partial(run_alone, candidate, path, npz, threads, schedule)
    return Subject(
        case, candidate.name, alone, partial(candidate.open, content, threads, arrays), len(content), about or {}
    )


def report_of(path: Path) -> dict[str, Any]:
    """bgnn-convert's report on a file, where it lies beside it and is this file's; else nothing."""
    for place in (path.with_name(f"{path.name}.report.json"), path.with_name("report.json")):
        try:
            found = json.loads(place.read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and found.get("output") == path.name and isinstance(found.get("nodes", {}), dict):
            return found
    return {}


# What records keep of a conversion's report.
_CONVERSION = ("target", "optimize", "kernels", "bytes", "operators", "macs", "layers", "checks", "warnings",
               "peak_activation_bytes")  # fmt: skip


def conversion_of(path: Path, report: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a record's settings say of the conversion that made a file, by its report: nothing where there is none."""
    report = report if report is not None else report_of(path)
    return {"conversion": {key: report[key] for key in _CONVERSION if key in report}} if report else {}


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
    opened: dict[str, Opened] = {}
    with conditions.pinned(threads) as cores:
        for subject in subjects:
            try:
                if subject.alone is not None:
                    say(f"{subject.name}: alone")
                    apart[subject.name] = subject.alone()
                else:
                    opened[subject.name] = subject.open()
            except BgnnError as error:
                refused[subject.name] = streams.one_line(str(error))
        able = [subject for subject in subjects if subject.name not in refused]
        if not able:
            raise BgnnError("nothing runs " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
        opened |= {subject.name: subject.open() for subject in able if subject.name in apart}
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
        timing = found.timings[subject.name]
        same = next(other for other in able if other.case == subject.case)
        figures: dict[str, float | None] = asdict(apart[subject.name]) if subject.name in apart else {}
        figures["file_bytes"] = subject.file_bytes
        if outputs := opened[subject.name].outputs():
            figures["difference"] = largest_difference(outputs, opened[same.name].outputs())
        samples = {WALL: timing.wall_ms, CPU: timing.cpu_ms}
        samples |= {name: [figure] for name, figure in figures.items() if figure is not None}
        how = {**settings, **subject.about}
        records.append(Record(subject.case, subject.candidate, machine, False, samples, versions(), how))
    return records


def largest_difference(ours: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> float:
    """Between two runtimes' outputs of one file; NaN beside NaN is none, and anything beside NaN the largest float."""
    largest = 0.0
    if len(ours) != len(base):
        return float(np.finfo(np.float64).max)
    for one, other in zip(ours, base, strict=True):
        if one.shape != other.shape:
            return float(np.finfo(np.float64).max)
        if one.dtype.kind in "fiub" and one.size:
            with np.errstate(invalid="ignore"):
                gap = np.where(one == other, 0, np.abs(one.astype(np.float64) - other.astype(np.float64)))
            gap[np.isnan(one) & np.isnan(other)] = 0
            largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max()))
    return min(largest, float(np.finfo(np.float64).max))


def figures(case: str, candidate: str, samples: Mapping[str, float], **settings: Any) -> Record:
    """A record of what was counted and not timed."""
    machine = {key: value for key, value in describe_machine().items() if key != "packages"}
    how = {"run": new_run(), "base": [case, candidate], "threads": 1, **settings}
    return Record(case, candidate, machine, False, {key: [one] for key, one in samples.items()}, versions(), how)


@contextmanager
def on_disk(arrays: Sequence[np.ndarray]) -> Iterator[Path]:
    """The arrays as an .npz, for processes that are yet to start."""
    with tempfile.TemporaryDirectory(prefix="bgnn-bench-") as folder:
        path = Path(folder) / "inputs.npz"
        np.savez(path, *arrays)
        yield path
