"""What the fuzzers of files have in common: trials in forked workers, what became of them, failures kept, a table.

A fuzzer is a `Kind`: how trial number N of a random seed is made of the seeds, and how it is run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

RAN, CRASHED, HUNG = "ran", "crashed", "hung"
PATIENCE_S = 120.0


@dataclass
class Outcome:
    """What became of a file (the first round counts), our reason for refusing it, rounds that ran."""

    what: str
    reason: str = ""
    runs: int = 0


@dataclass(frozen=True)
class Kind:
    """A fuzzer of one kind of files. A trial has `data` (the file) and `save(path)`."""

    about: str
    through: str
    outcomes: tuple[str, ...]
    load: Callable[[Path], Sequence[Any]]
    make_trial: Callable[[Sequence[Any], int, int], tuple[str, Any]]
    unchanged: Callable[[Any], Any]
    read: Callable[[Path], Any]
    run_trial: Callable[[Any], Outcome]


# ---- many


@dataclass
class Failure:
    """A file that killed or held up its worker, or made it raise what it should not."""

    number: int
    base: str
    what: str
    log: str
    file: Path

    def __str__(self) -> str:
        lines = [line.strip() for line in self.log.splitlines()]
        telling = [line for line in lines if re.search(r"SUMMARY|runtime error|^exact:|Error\b", line)]
        return f"{self.file}: {self.what}: {(telling or lines or ['no word'])[-1]}"


@dataclass
class Tally:
    """What was found: outcomes by seed, rounds run, our reasons (numbers replaced by N) with a trial for each."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    runs: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, number: int, base: str, outcome: Outcome) -> None:
        self.outcomes.setdefault(base, Counter())[outcome.what] += 1
        self.runs += outcome.runs
        if outcome.reason:
            self.reasons.setdefault(without_numbers(outcome.reason), number)

    @property
    def files(self) -> int:
        return sum(sum(counts.values()) for counts in self.outcomes.values())


def without_numbers(reason: str) -> str:
    return re.sub(r"-?\b\d+", "N", reason)


class Worker:
    """A forked process that takes the trials first, first + step, ... below `count`, and tells of each."""

    def __init__(
        self, kind: Kind, seeds: Sequence[Any], seed: int, first: int, step: int, count: int, folder: Path
    ) -> None:
        self.next, self.step, self.count = first, step, count
        self.log = folder / f"worker{first % step}.log"
        self.heard, self.hung = time.monotonic(), False
        self.messages, sender = multiprocessing.Pipe(duplex=False)
        arguments = (kind, seeds, seed, range(first, count, step), sender, self.log)
        self.process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
        self.process.start()
        sender.close()  # or the end of the worker would not end the pipe

    def kill_if_stuck(self) -> None:
        if time.monotonic() - self.heard > PATIENCE_S:
            self.hung = True
            self.process.kill()


def work(kind: Kind, seeds: Sequence[Any], seed: int, numbers: range, sender: connection.Connection, log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)  # for what a sanitizer, the runtime or a traceback has to say
    for number in numbers:
        base, trial = kind.make_trial(seeds, seed, number)
        sender.send((number, base, kind.run_trial(trial)))


def fuzz(
    kind: Kind, seeds: Sequence[Any], seed: int, count: int, workers: int, folder: Path, say: Callable[[Tally], None]
) -> Tally:
    """Runs `count` trials and calls `say` a few times a second; failures go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    active = [Worker(kind, seeds, seed, first, workers, count, folder) for first in range(min(workers, count))]
    while active:
        ready = connection.wait([worker.messages for worker in active], timeout=1)
        for worker in [worker for worker in active if worker.messages in ready]:
            try:
                number, base, outcome = worker.messages.recv()
                tally.add(number, base, outcome)
                worker.next, worker.heard = number + worker.step, time.monotonic()
            except EOFError:
                active.remove(worker)
                worker.process.join()
                if worker.next < count:
                    tally.failures.append(failed(kind, worker, seeds, seed, folder))
                    tally.outcomes.setdefault(tally.failures[-1].base, Counter())[tally.failures[-1].what] += 1
                    if worker.next + worker.step < count:
                        following = worker.next + worker.step
                        active.append(Worker(kind, seeds, seed, following, worker.step, count, folder))
        for worker in active:
            worker.kill_if_stuck()
        say(tally)
    return tally


def failed(kind: Kind, worker: Worker, seeds: Sequence[Any], seed: int, folder: Path) -> Failure:
    base, trial = kind.make_trial(seeds, seed, worker.next)
    path = folder / f"{base}-{seed}-{worker.next}.npz"
    trial.save(path)
    log = worker.log.read_text(errors="replace")
    path.with_suffix(".txt").write_text(log)
    what = HUNG if worker.hung else CRASHED
    return Failure(worker.next, base, what, log or f"exit code {worker.process.exitcode}", path)


# ---- the command


def print_table(kind: Kind, tally: Tally, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = [*kind.outcomes, CRASHED, HUNG]
    table = Table(title=f"{tally.files} changed files through {kind.through}", title_justify="left")
    table.add_column("made of")
    for head in ("files", *heads):
        table.add_column(head, justify="right")
    total: Counter[str] = Counter()
    for base, counts in sorted(tally.outcomes.items()):
        total += counts
        table.add_row(base, str(sum(counts.values())), *(str(counts[head]) for head in heads))
    table.add_section()
    table.add_row("all", str(tally.files), *(str(total[head]) for head in heads))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(f"{tally.runs} runs, {len(tally.reasons)} different reasons of refusal, {seconds:.0f} s")


def progress(count: int) -> Callable[[Tally], None]:
    """Says how far it is, every few seconds, in place where there is a terminal."""
    start = last = time.monotonic()

    def say(tally: Tally) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < (1 if sys.stderr.isatty() else 20):
            return
        last = now
        rate = tally.files / (now - start)
        left = (count - tally.files) / max(rate, 1e-9)
        line = f"{tally.files} of {count} files, {rate:.0f}/s, {left:.0f} s left, {len(tally.failures)} failures"
        print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    return say


def main(kind: Kind) -> int:
    """The command of a fuzzer."""
    parser = argparse.ArgumentParser(description=kind.about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=Path, nargs="?", help="the folder that seeds.py has written")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--failures", type=Path, default=Path("out/fuzz"), help="folder for files that crash")
    parser.add_argument("--collect", type=Path, help="write a small file for each reason of refusal to this folder")
    parser.add_argument("--again", type=Path, nargs="+", default=[], help="only run these stored files")
    given = parser.parse_args()
    for path in given.again:
        print(f"{path.name}: ", end="", flush=True)
        outcome = kind.run_trial(kind.read(path))
        print(f"{outcome.what}; {outcome.reason}" if outcome.reason else outcome.what)
    if given.seeds is None:
        return 0
    seeds = kind.load(given.seeds)
    for seed in seeds:  # unchanged, each must run
        outcome = kind.run_trial(kind.unchanged(seed))
        if outcome.what != RAN:
            raise SystemExit(f"fuzz: {seed.name} itself is {outcome.what}: {outcome.reason}")
    start = time.monotonic()
    tally = fuzz(kind, seeds, given.seed, given.count, given.workers, given.failures, progress(given.count))
    print_table(kind, tally, time.monotonic() - start)
    for failure in tally.failures[:20]:
        print(failure)
    if len(tally.failures) > 20:
        print(f"and {len(tally.failures) - 20} more in {given.failures}")
    if given.collect:
        given.collect.mkdir(parents=True, exist_ok=True)
        kept = {}  # one for each reason, whatever the operator, and small
        for reason, number in tally.reasons.items():
            base, trial = kind.make_trial(seeds, given.seed, number)
            if len(trial.data) < 2000:
                kept.setdefault(reason.partition(": ")[2] or reason, (base, number, trial))
        for base, number, trial in kept.values():
            trial.save(given.collect / f"{base}-{given.seed}-{number}.npz")
    return 1 if tally.failures else 0
