"""The one place that measures: candidates run in interleaved rounds, memory is taken in fresh processes.

A time on a shared machine says little by itself: clocks change and neighbours come and go. So every round
runs each candidate once, in an order that rotates, and a ratio is taken *within* a round, between runs that
saw the same machine; reported are the medians over the rounds and their quartiles. Times never decide whether
a test passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A sample's median, quartiles and extremes, in the unit of the sample."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    min: float
    max: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        """Summarise one or more figures. Raises ValueError for an empty sample."""
        if not sample:
            raise ValueError("cannot summarise an empty sample")
        low, median, high = (
            statistics.quantiles(sample, n=4, method="inclusive") if len(sample) > 1 else [sample[0]] * 3
        )
        return cls(median, low, high, min(sample), max(sample))

    @classmethod
    def of_ratios(cls, base: Sequence[float], other: Sequence[float]) -> Spread:
        """How many times `other`'s times go into `base`'s, taken within each round."""
        # A clock too coarse for a very short run reads 0; a nanosecond keeps the ratio finite, and absurd.
        return cls.of([b / max(o, 1e-6) for b, o in zip(base, other, strict=True)])

    @property
    def noisy(self) -> bool:
        """Whether the quartiles lie further apart than a tenth of the median: another run may well say another."""
        return self.high - self.low > 0.1 * self.median

    def __str__(self) -> str:
        return f"{digits(self.median)} ({digits(self.low)}-{digits(self.high)})"


@dataclass(frozen=True)
class Schedule:
    """How long to warm up and to measure; the defaults are those of TFLite's benchmark_model.

    A candidate warms up for `warmup` runs and `warmup_seconds` at least. Rounds go on until there are `rounds` of them
    and `seconds` have passed for each candidate, but no longer than `longest` seconds for each once there are `least`
    rounds. Where a run is shorter than `burst_ms`, a round takes the mean of as many runs in a row as fill it: a
    clock's step, and caches that the candidate before has left, would otherwise be what is measured.
    """

    rounds: int = 50
    seconds: float = 1.0
    longest: float = 150.0
    warmup: int = 1
    warmup_seconds: float = 0.5
    burst_ms: float = 1.0
    least: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warmup < 0:
            raise ValueError(f"rounds must be at least 1 and warmup at least 0, got {self.rounds} and {self.warmup}")

    def warm_up(self, run: Callable[[], object]) -> list[float]:
        """Warms a candidate up; the milliseconds of each run."""
        took: list[float] = []
        total = 0.0
        while len(took) < self.warmup or total < 1e3 * self.warmup_seconds:
            took.append(timed(run).wall_ms)
            total += took[-1]
        return took

    def goes_on(self, rounds: int, seconds: float) -> bool:
        """Whether there is another round after so many, which took so long for each candidate."""
        in_time = seconds < self.longest or rounds < self.least
        return (rounds < self.rounds and in_time) or seconds < self.seconds


@dataclass(frozen=True)
class Elapsed:
    """What a candidate returns whose work another process does: that process's own clocks, in milliseconds."""

    wall_ms: float
    cpu_ms: float


def timed(run: Callable[[], object]) -> Elapsed:
    """One run, by this process's clocks or by the `Elapsed` that it returns."""
    cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
    found = run()
    end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
    return found if isinstance(found, Elapsed) else Elapsed((end - start) / 1e6, (cpu_end - cpu_start) / 1e6)


@dataclass(frozen=True)
class Timing:
    """One candidate's runs, in round order."""

    wall_ms: list[float]
    """Elapsed milliseconds of each timed run."""
    cpu_ms: list[float]
    """Milliseconds of processor time, of all threads of the process, in each timed run."""
    wall: Spread
    cpu: Spread
    speedup: Spread | None
    """Base's wall time / this one's, round by round: 2 is twice as fast. None where no base was named."""
    cpu_speedup: Spread | None
    """The same of processor time, which a busy neighbour on the machine disturbs less."""


@dataclass(frozen=True)
class Measurement:
    """What `measure` found, with what is needed to read it."""

    timings: dict[str, Timing]
    base: str | None
    rounds: int
    warmup: int
    threads: int
    """Threads that the caller told the candidates to use; noted here, not enforced."""
    machine: dict[str, Any]


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    base: str | None = None,
    rounds: int = 9,
    warmup: int = 1,
    schedule: Schedule | None = None,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Measurement:
    """Time zero-argument callables against each other, by this process's clocks or by the `Elapsed` they return.

    Every candidate first warms up, untimed; then each round runs every candidate, and the order moves on by one place a
    round, so that no candidate always follows the same other one. `schedule` says how long, else there are `rounds`
    rounds of one run each after `warmup` runs. `base` names the candidate that the ratios refer to. `progress` is
    called with one line per round. Raises ValueError for no candidates, no rounds, or a base that is not among the
    candidates; whatever a candidate raises passes through.
    """
    if not candidates:
        raise ValueError("nothing to measure: no candidates were given")
    if base is not None and base not in candidates:
        raise ValueError(f"base {base!r} is not a candidate; they are {', '.join(map(repr, candidates))}")
    plan = schedule or Schedule(rounds, 0, math.inf, warmup, 0, 0)

    names = list(candidates)
    bursts = dict.fromkeys(names, 1)
    for name, run in candidates.items():
        took = plan.warm_up(run)
        if took and plan.burst_ms:
            bursts[name] = max(1, math.ceil(plan.burst_ms / max(statistics.median(took), 1e-3)))
    runs: dict[str, list[Elapsed]] = {name: [] for name in names}
    number, start = 0, time.perf_counter_ns()
    while plan.goes_on(number, (time.perf_counter_ns() - start) / 1e9 / len(names)):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found = [timed(candidates[name]) for _ in range(bursts[name])]
            runs[name].append(
                Elapsed(sum(one.wall_ms for one in found) / len(found), sum(one.cpu_ms for one in found) / len(found))
            )
        number += 1
        if progress is not None:
            progress(f"round {number} of {plan.rounds}" if number <= plan.rounds else f"round {number}")

    wall_ms = {name: [one.wall_ms for one in found] for name, found in runs.items()}
    cpu_ms = {name: [one.cpu_ms for one in found] for name, found in runs.items()}
    timings = {
        name: Timing(
            wall_ms=wall_ms[name],
            cpu_ms=cpu_ms[name],
            wall=Spread.of(wall_ms[name]),
            cpu=Spread.of(cpu_ms[name]),
            speedup=None if base is None else Spread.of_ratios(wall_ms[base], wall_ms[name]),
            cpu_speedup=None if base is None else Spread.of_ratios(cpu_ms[base], cpu_ms[name]),
        )
        for name in names
    }
    return Measurement(timings, base, number, plan.warmup, threads, describe_machine())


# The child of `in_fresh_process`: it imports nothing but what the task itself imports.
_CHILD = """
import json, sys
result = None
if len(sys.argv) > 1:
    import importlib
    module, function = sys.argv[1].split(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
try:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print()
print("fresh", json.dumps([result, peak], default=lambda other: None))
"""


def in_fresh_process(
    task: str | None = None, arguments: Mapping[str, Any] | None = None, *, threads: int = 1
) -> tuple[Any, int]:
    """What one task returns in a Python process of its own, and the process's largest resident size in bytes.

    `task` is "package.module:function"; it is called with `arguments`, which must be what JSON can hold; a result that
    JSON cannot hold is None. With no task the process does nothing: the empty interpreter, a figure to subtract. The
    size is VmHWM, which starts anew with the program; `ru_maxrss` would carry over the size of the process that forked
    this one, and is used only where there is no /proc. Raises RuntimeError with the process's own words when it fails.
    """
    command = [sys.executable, "-c", _CHILD]
    if task is not None:
        command += [task, json.dumps(dict(arguments or {}))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    last_line = done.stdout.strip().rpartition("\n")[2]
    if done.returncode != 0 or not last_line.startswith("fresh "):
        ended = f" (killed by signal {-done.returncode})" if done.returncode < 0 else ""
        raise RuntimeError(f"{task or 'an empty process'} failed{ended}:\n{done.stderr.strip()}")
    result, peak = json.loads(last_line.removeprefix("fresh "))
    return result, peak


def versions_of(*packages: str) -> dict[str, str]:
    """By name, the versions of those packages that are installed here."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_machine() -> dict[str, Any]:
    """Processor (model, Arm's number of the core, cores, instruction-set flags), memory in bytes, system, package
    versions, and an id: what has the same one is the same machine. It holds no name in the clear."""
    cpu = part = ""
    flags: list[str] = []
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and not cpu:
                cpu = value.strip()
            elif key.strip() in ("flags", "Features") and not flags:
                flags = value.split()
            elif key.strip() == "CPU part" and not part:  # an Arm core's; a big.LITTLE machine's first
                part = value.strip()
    except OSError:
        pass  # not Linux: the platform module still names the processor
    cpu = cpu or platform.processor() or platform.machine()
    name = platform.node()
    with contextlib.suppress(OSError):
        name += Path("/etc/machine-id").read_text()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "id": hashlib.sha256(f"{name} {cpu} {os.cpu_count()} {memory}".encode()).hexdigest()[:16],
        "cpu": cpu,
        "part": part,
        "cores": os.cpu_count(),
        "flags": flags,
        "memory_bytes": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions_of("torch", "numpy", "ai-edge-litert", "onnxruntime"),
    }


def too_noisy(rows: Sequence[str]) -> str:
    """The line that a table's reader is warned with."""
    return f"the machine was too noisy for {'; '.join(rows)}: the quartiles of the ratios lie more than 10 % apart"


def digits(value: float) -> str:
    """Three significant digits, and no exponent: 0.0123, 1.23, 12.3, 123, 12345."""
    if value >= 100:
        return f"{value:.0f}"
    decimals = 0 if value == 0 else max(0, 2 - int(f"{value:e}".rpartition("e")[2]))
    return f"{value:.{decimals}f}"
