"""A fuzzer of ONNX files: changed files go through `OnnxModel`, ONNX Runtime and our library.

    fuzz_onnx.py SEEDS --count 10000 --seed 1     see ../../delegate/fuzz/Makefile, which builds all that this needs

Each file is a converted network (onnx_seeds.py) with one to four changes (onnx_mutations.py), or with bytes turned;
it is loaded, fed and run. What must come out is a result or a BgnnError. The rest is ../../delegate/fuzz/driver.py.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "delegate" / "fuzz")]

import onnx_mutations  # noqa: E402
from driver import RAN, Kind, Outcome, main  # noqa: E402
from onnx_seeds import Seed, load  # noqa: E402

from bgnn.runtime_bench.runtime.errors import BgnnError  # noqa: E402
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel  # noqa: E402

BY_RUNNER, BY_RUNTIME, WHILE_RUNNING = "refused by the runner", "refused by ONNX Runtime", "refused while running"
ISAS = ("", "portable", "avx2", "avx512")
# Of ONNX Runtime's and ours: "operator X: why".
OURS = re.compile(r"bgnn[^:]*: [^\n]+|operator \w+: [^\n]+")


@dataclass
class Trial:
    """A file and the arrays that each round feeds it."""

    data: bytes
    rounds: list[dict[str, np.ndarray]]
    threads: int = 1
    isa: str = ""

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"{number}:{name}": array for number, fed in enumerate(self.rounds) for name, array in fed.items()}
        settings = {"threads": np.array(self.threads), "isa": np.array(self.isa), "rounds": np.array(len(self.rounds))}
        np.savez_compressed(path, model=np.frombuffer(self.data, np.uint8), **settings, **arrays)

    @classmethod
    def read(cls, path: Path) -> Trial:
        with np.load(path) as stored:
            rounds: list[dict[str, np.ndarray]] = [{} for _ in range(int(stored["rounds"]))]
            for key in stored.files:
                number, colon, name = key.partition(":")
                if colon:
                    rounds[int(number)][name] = stored[key]
            return cls(stored["model"].tobytes(), rounds, int(stored["threads"]), str(stored["isa"]))


def make_trial(seeds: Sequence[Seed], seed: int, number: int) -> tuple[str, Trial]:
    """Trial `number` of random seed `seed`, and the name of the file that it was made of."""
    rng = random.Random(f"{seed}-{number}")
    base = rng.choice(seeds)
    data = base.data
    if rng.random() < 0.9:
        model = onnx.load_from_string(data)
        change = onnx_mutations.Mutator(model, rng)
        for _ in range(rng.choice([1, 1, 2, 3, 4])):
            change()
        data = model.SerializeToString()
    if rng.random() < 0.1:
        data = turned(data, rng)
    rounds = [base.arrays, *(other_arrays(base.arrays, rng) for _ in range(rng.choice([0, 1, 2])))]
    return base.name, Trial(data, rounds, rng.choice([1, 1, 2, 3]), rng.choice(ISAS))


def turned(data: bytes, rng: random.Random) -> bytes:
    """With bytes of its beginning or end, where the structure lies, turned, or cut off."""
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        changed[rng.randrange(min(len(data), 2000)) * rng.choice([1, -1])] = rng.randrange(256)
    return bytes(changed)


def other_arrays(arrays: dict[str, np.ndarray], rng: random.Random) -> dict[str, np.ndarray]:
    """Another size, special numbers, indices that are none."""
    made = {}
    for name, array in arrays.items():
        array, what = array.copy(), rng.random()
        if what < 0.5:
            axis = array.ndim - 1 if array.dtype == np.int64 else 0
            shape = list(array.shape)
            shape[axis] = rng.choice([0, 1, 2, shape[axis] - 1, shape[axis] + 1, 70])
            array = np.resize(array, shape)
        if array.size and rng.random() < 0.3:
            place = rng.randrange(array.size)
            array.reshape(-1)[place] = onnx_mutations.special(array.dtype, rng)
        made[name] = array
    return made


def run_trial(trial: Trial) -> Outcome:
    """Loads the file, then feeds and runs each round. After a refused round the next one still comes."""
    os.environ["BGNN_ISA"] = trial.isa
    try:
        model = OnnxModel(trial.data, trial.threads)
    except BgnnError as error:
        return refusal(error)
    outcome = None
    for arrays in trial.rounds:
        try:
            model.run(**arrays)
            now = Outcome(RAN, runs=1)
        except BgnnError as error:
            now = refusal(error)
        if outcome is None:
            outcome = now
        else:
            outcome.runs += now.runs
            outcome.reason = outcome.reason or now.reason
    return outcome or Outcome(RAN)


def refusal(error: BgnnError) -> Outcome:
    text = str(error)
    assert text.strip(), "an error without a word"
    assert "\n" not in text, text
    found = OURS.search(text)
    reason = found[0][:200] if found else ""
    if text.startswith("ONNX Runtime refuses"):
        return Outcome(BY_RUNTIME, reason)
    return Outcome(WHILE_RUNNING, reason) if text.startswith("ONNX Runtime failed") else Outcome(BY_RUNNER, text[:200])


def without_arena() -> None:
    """Every tensor in a block of its own, of exactly its size, or a sanitizer would not see a read beyond its end."""
    plain = onnxruntime.SessionOptions

    def options() -> Any:
        made = plain()
        made.enable_cpu_mem_arena = made.enable_mem_pattern = made.enable_mem_reuse = False
        return made

    onnxruntime.SessionOptions = options


KIND = Kind(
    about=__doc__ or "",
    through="OnnxModel, ONNX Runtime and our library",
    outcomes=(RAN, BY_RUNNER, BY_RUNTIME, WHILE_RUNNING),
    load=load,
    make_trial=make_trial,
    unchanged=lambda seed: Trial(seed.data, [seed.arrays]),
    read=Trial.read,
    run_trial=run_trial,
)

if __name__ == "__main__":
    without_arena()
    sys.exit(main(KIND))
