"""A fuzzer of whole files: changed files go through a stock LiteRT interpreter with our delegate.

    files.py SEEDS --count 100000 --seed 1 --workers 2     see the Makefile, which builds what this needs

Each file is a seed (seeds.py) with one to four changes (mutations.py); it is loaded, fed and run, and often resized and
run again. What must come out is an exception or a result. Workers are forked: where one dies or hangs, its file is
written to --failures with all that is needed to run it again (`files.py --again FILE`), and a fresh worker goes on.
File number N of seed S is the same one in every run.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import mutations  # noqa: E402
from ai_edge_litert import schema_py_generated as schema  # noqa: E402
from driver import RAN, Kind, Outcome, main  # noqa: E402
from seeds import Seed, load  # noqa: E402

from bgnn.runtime_bench.runtime.delegate import load_delegate, load_interpreter  # noqa: E402
from bgnn.runtime_bench.runtime.errors import BgnnError  # noqa: E402

BY_DELEGATE, BY_RUNTIME, WHILE_RUNNING = "refused by us", "refused by LiteRT", "refused while running"
OUTCOMES = (RAN, BY_DELEGATE, BY_RUNTIME, WHILE_RUNNING)
ISAS = ("", "portable", "avx2", "avx512", "neon")  # those that this machine lacks become "", its best
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


KIND = Kind(
    about=__doc__ or "",
    through="LiteRT with the delegate",
    outcomes=OUTCOMES,
    load=load,
    make_trial=make_trial,
    unchanged=lambda seed: Trial(seed.data, [list(seed.arrays)]),
    read=Trial.read,
    run_trial=run_trial,
)

if __name__ == "__main__":
    sys.exit(main(KIND))
