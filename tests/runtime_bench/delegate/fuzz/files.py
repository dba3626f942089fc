"""A fuzzer of whole files: changed files go through a stock LiteRT interpreter with our delegate.

    files.py SEEDS --count 100000 --seed 1 --workers 2     see the Makefile, which builds what this needs

Each file is a seed (seeds.py) with one to four changes (mutations.py); it is loaded, fed and run, and often resized and
run again. What must come out is an exception or a result. Workers are forked: where one dies or hangs, its file is
written to --failures with all that is needed to run it again (`files.py --again FILE`), and a fresh worker goes on.
File number N of seed S is the same one in every run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent / "kernels")]

import mutations  # noqa: E402
from ai_edge_litert import schema_py_generated as schema  # noqa: E402
from seeds import Seed, load  # noqa: E402

from bgnn.converter.errors import BgnnError  # noqa: E402
from bgnn.runtime_bench.delegate import load_delegate, load_interpreter  # noqa: E402

RAN, BY_DELEGATE, BY_RUNTIME, WHILE_RUNNING = "ran", "refused by us", "refused by LiteRT", "refused while running"
OUTCOMES = (RAN, BY_DELEGATE, BY_RUNTIME, WHILE_RUNNING)
CRASHED, HUNG = "crashed", "hung"
ISAS = ("", "portable", "avx2", "avx512", "neon")  # those that this machine lacks become "", its best
PATIENCE_S = 120.0
DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.BOOL: np.bool_,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT64: np.int64,
}


@dataclass
class Trial:
    """A file and what is done with it: rounds of arrays (None: left as it is), the first ones of the file's shapes."""

    data: bytes
    rounds: list[list[np.ndarray | None]]
    threads: int = 1
    float_kernels: str = "builtin"
    isa: str = ""

    def save(self, path: Path) -> None:
        arrays = {
            f"round{r}_input{i}": array
            for r, fed in enumerate(self.rounds)
            for i, array in enumerate(fed)
            if array is not None
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = np.array([len(fed) for fed in self.rounds])
        np.savez_compressed(
            path,
            model=np.frombuffer(self.data, np.uint8),
            inputs_in_round=counts,
            threads=self.threads,
            float_kernels=self.float_kernels,
            isa=self.isa,
            **arrays,  # type: ignore[arg-type]
        )

    @classmethod
    def read(cls, path: Path) -> Trial:
        with np.load(path) as stored:
            rounds = [
                [stored.get(f"round{r}_input{i}") for i in range(count)]
                for r, count in enumerate(stored["inputs_in_round"])
            ]
            settings = int(stored["threads"]), str(stored["float_kernels"]), str(stored["isa"])
            return cls(stored["model"].tobytes(), rounds, *settings)


# ---- one trial


def make_trial(seeds: Sequence[Seed], seed: int, number: int) -> tuple[str, Trial]:
    """Trial `number` of random seed `seed`, and the name of the file that it was made of."""
    rng = random.Random(f"{seed}-{number}")
    base = rng.choice(seeds)
    model = mutations.read(base.data)
    change = mutations.Mutator(model, rng)
    for _ in range(rng.choice([1, 1, 2, 3, 4])):
        change()
    data = mutations.write(model)
    graph = model.subgraphs[0]
    fed = [graph.tensors[i] for i in graph.inputs]
    rounds = []
    for _ in range(rng.choice([1, 2, 3])):
        rounds.append([array_for(tensor, place, base, rng) for place, tensor in enumerate(fed)])
        for tensor in fed:  # the next round's shapes; the file is written already
            if rng.random() < 0.5:
                change.shape(tensor)
    settings = rng.choice([1, 1, 2, 3, 4]), rng.choice(["builtin", "xnnpack"]), rng.choice(ISAS)
    return base.name, Trial(data, rounds, *settings)


def array_for(tensor: schema.TensorT, place: int, base: Seed, rng: random.Random) -> np.ndarray | None:
    """Values for an input: the seed's own, indices, bits or special numbers. None where it has no sensible size."""
    size = mutations.byte_size(tensor)
    if not size or size > mutations.LARGEST_BLOCK or tensor.type not in DTYPES:
        return None
    dtype, shape = np.dtype(DTYPES[tensor.type]), [int(dimension) for dimension in tensor.shape]
    numbers = np.random.default_rng(rng.randrange(2**32))
    what = rng.random()
    if what < 0.5 and place < len(base.arrays) and base.arrays[place].dtype == dtype:
        return np.resize(base.arrays[place], shape)
    if what < 0.7:
        return numbers.integers(0, 4, shape).astype(dtype)
    if dtype == np.float32:
        array = numbers.normal(size=shape).astype(np.float32)
        if what > 0.9:
            array[numbers.random(shape) < 0.2] = numbers.choice(np.array([*mutations.SCALES, 1e-40, -0.0], np.float32))
        return array
    if dtype == np.int32 and what > 0.9:
        return numbers.choice(np.array(mutations.HOSTILE, np.int32), shape)
    return (
        np.resize(np.frombuffer(numbers.bytes(size), np.uint8).astype(int) % (2 if dtype == np.bool_ else 256), size)
        .astype(np.uint8)
        .view(dtype)
        .reshape(shape)
    )


@dataclass
class Outcome:
    """What became of a file: one of OUTCOMES (the first round counts), our reason for refusing it, rounds that ran."""

    what: str
    reason: str = ""
    runs: int = 0


# Every refusal of ours says which operator, and why.
OURS = re.compile(r"(\w+ \(operator \d+ of the file\): [^\n]+|operator \d+ of the file reads tensor \d+, which [^\n]+)")


def run_trial(trial: Trial) -> Outcome:
    """Loads the file, then feeds and runs each round. After a refused round the next one still comes."""
    os.environ["BGNN_ISA"] = trial.isa if runs_here(trial.isa) else ""
    try:
        interpreter = load_interpreter(trial.data, trial.threads, float_kernels=trial.float_kernels)
    except BgnnError as error:
        return refusal(error, BY_RUNTIME)
    outcome = None
    for arrays in trial.rounds:
        try:
            feed(interpreter, arrays)
            now = Outcome(RAN, runs=1)
        except (RuntimeError, ValueError) as error:
            now = refusal(error, WHILE_RUNNING)
        if outcome is None:
            outcome = now
        else:
            outcome.runs += now.runs
            outcome.reason = outcome.reason or now.reason
    return outcome or Outcome(RAN)


@cache
def runs_here(isa: str) -> bool:
    os.environ["BGNN_ISA"] = isa
    try:
        load_delegate()
    except BgnnError:
        return False
    return True


def refusal(error: Exception, otherwise: str) -> Outcome:
    found = OURS.search(str(error))
    if found is None and "bgnn" in str(error).lower() and "unresolved custom op" not in str(error):
        raise AssertionError(f"an error of ours that names no operator: {error}")
    if found is None:
        return Outcome(otherwise)
    return Outcome(BY_DELEGATE if otherwise == BY_RUNTIME else otherwise, found[0])


def feed(interpreter: Any, arrays: Sequence[np.ndarray | None]) -> None:
    details = interpreter.get_input_details()
    resized = False
    for detail, array in zip(details, arrays, strict=True):
        if array is not None and tuple(detail["shape"]) != array.shape:
            interpreter.resize_tensor_input(detail["index"], array.shape)
            resized = True
    if resized:
        interpreter.allocate_tensors()
    for detail, array in zip(details, arrays, strict=True):
        if array is not None:
            interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    for detail in interpreter.get_output_details():
        interpreter.get_tensor(detail["index"])


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

    def __init__(self, seeds: Sequence[Seed], seed: int, first: int, step: int, count: int, folder: Path) -> None:
        self.next, self.step, self.count = first, step, count
        self.log = folder / f"worker{first % step}.log"
        self.heard, self.hung = time.monotonic(), False
        self.messages, sender = multiprocessing.Pipe(duplex=False)
        arguments = (seeds, seed, range(first, count, step), sender, self.log)
        self.process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
        self.process.start()
        sender.close()  # or the end of the worker would not end the pipe

    def kill_if_stuck(self) -> None:
        if time.monotonic() - self.heard > PATIENCE_S:
            self.hung = True
            self.process.kill()


def work(seeds: Sequence[Seed], seed: int, numbers: range, sender: connection.Connection, log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)  # for what a sanitizer, the runtime or a traceback has to say
    for number in numbers:
        base, trial = make_trial(seeds, seed, number)
        sender.send((number, base, run_trial(trial)))


def fuzz(
    seeds: Sequence[Seed], seed: int, count: int, workers: int, folder: Path, say: Callable[[Tally], None]
) -> Tally:
    """Runs `count` trials and calls `say` a few times a second; failures go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    active = [Worker(seeds, seed, first, workers, count, folder) for first in range(min(workers, count))]
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
                    tally.failures.append(failed(worker, seeds, seed, folder))
                    tally.outcomes.setdefault(tally.failures[-1].base, Counter())[tally.failures[-1].what] += 1
                    if worker.next + worker.step < count:
                        following = worker.next + worker.step
                        active.append(Worker(seeds, seed, following, worker.step, count, folder))
        for worker in active:
            worker.kill_if_stuck()
        say(tally)
    return tally


def failed(worker: Worker, seeds: Sequence[Seed], seed: int, folder: Path) -> Failure:
    base, trial = make_trial(seeds, seed, worker.next)
    path = folder / f"{base}-{seed}-{worker.next}.npz"
    trial.save(path)
    log = worker.log.read_text(errors="replace")
    path.with_suffix(".txt").write_text(log)
    what = HUNG if worker.hung else CRASHED
    return Failure(worker.next, base, what, log or f"exit code {worker.process.exitcode}", path)


# ---- the command


def print_table(tally: Tally, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = [*OUTCOMES, CRASHED, HUNG]
    table = Table(title=f"{tally.files} changed files through LiteRT with the delegate", title_justify="left")
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        outcome = run_trial(Trial.read(path))
        print(f"{outcome.what}; {outcome.reason}" if outcome.reason else outcome.what)
    if given.seeds is None:
        return 0
    seeds = load(given.seeds)
    for seed in seeds:  # unchanged, each must run
        outcome = run_trial(Trial(seed.data, [list(seed.arrays)]))
        if outcome.what != RAN:
            raise SystemExit(f"files.py: {seed.name} itself is {outcome.what}: {outcome.reason}")
    start = time.monotonic()
    tally = fuzz(seeds, given.seed, given.count, given.workers, given.failures, progress(given.count))
    print_table(tally, time.monotonic() - start)
    for failure in tally.failures[:20]:
        print(failure)
    if len(tally.failures) > 20:
        print(f"and {len(tally.failures) - 20} more in {given.failures}")
    if given.collect:
        given.collect.mkdir(parents=True, exist_ok=True)
        kept = {}  # one for each reason, whatever the operator, and small
        for reason, number in tally.reasons.items():
            base, trial = make_trial(seeds, given.seed, number)
            if len(trial.data) < 2000:
                kept.setdefault(reason.partition(": ")[2] or reason, (base, number, trial))
        for base, number, trial in kept.values():
            trial.save(given.collect / f"{base}-{given.seed}-{number}.npz")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
