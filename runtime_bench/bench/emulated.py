"""Two devices without a board, both of them a Cortex-A72 (a Raspberry Pi 4's) that qemu emulates on this machine.

`qemu-cortex-a72` runs a file and compares its outputs with this machine's; of each candidate it counts the instructions
of one inference, exactly (with those of the call from Python, some 15,000). What an emulator takes says nothing about a
board: there is no time in its records.

`model-cortex-a72` prices what each operator executes there by a model of the processor (toolchain/aarch64/
a72_cycles.py): a range of milliseconds, between computing alone and computing with all waits for memory on top. Its
records are `modelled`.

Both need a checkout, and what `make -C runtime_bench/toolchain/aarch64 devices` fetches and builds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench.candidates import Candidate
from bgnn.runtime_bench.bench.inputs import Inputs
from bgnn.runtime_bench.bench.profile import Operator, Profile, name_layers
from bgnn.runtime_bench.bench.records import Record
from bgnn.runtime_bench.bench.running import largest_difference, new_run, on_disk, report_of
from bgnn.runtime_bench.runtime.errors import BgnnError

EMULATOR, MODEL = "qemu-cortex-a72", "model-cortex-a72"
INSTRUCTIONS, CYCLES, MODELLED = "instructions", "cycles", "modelled_ms"
CORTEX_A72 = "0xd08"
"""The part that /proc/cpuinfo tells."""
NEAR = 1e-3
"""Of the largest output: float kernels add in an order of their own on each processor."""
_HERE = Path(__file__).resolve().parents[1] / "toolchain" / "aarch64"
_ROOT = _HERE.parents[2]
_CACHE, _OUT = _ROOT / ".cache" / "aarch64", _ROOT / "build" / "aarch64"
_LIBRARIES = _ROOT / "build" / "wheels" / "aarch64"
Say = Callable[[str], None]


@contextlib.contextmanager
def _emulator(*needed: Path, programs: Sequence[str] = ()) -> Iterator[None]:
    """Within the block qemu (and llvm) are on the path. Raises BgnnError where something is missing."""
    before = os.environ["PATH"]
    path = os.pathsep.join([before, str(_CACHE / "qemu" / "bin"), str(_CACHE / "llvm" / "bin")])
    here = [_CACHE / "root/proc/cpuinfo", _CACHE / "site/.installed", _LIBRARIES / "libbgnn_delegate.so", *needed]
    missing = [str(one) for one in here if not one.exists()]
    missing += [name for name in ("qemu-aarch64", *programs) if not shutil.which(name, path=path)]
    if missing:
        raise BgnnError(
            f"the emulated Cortex-A72 lacks {missing[0]}: make -C runtime_bench/toolchain/aarch64 devices (in a "
            "checkout; needs no root)"
        )
    os.environ["PATH"] = path
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _environment() -> dict[str, str]:
    return {
        "BGNN_DELEGATE": str(_LIBRARIES / "libbgnn_delegate.so"),
        "BGNN_ORT_OPS": str(_LIBRARIES / "libbgnn_ort.so"),
        "PYTHONPATH": f"{_CACHE / 'site'}:{_ROOT / 'src'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _device(name: str, what: str) -> dict[str, Any]:
    return {"id": name, "cpu": what, "part": CORTEX_A72, "cores": 1, "flags": [], "emulated": True}


@contextlib.contextmanager
def _job(path: Path, inputs: Inputs, names: Sequence[str], profile: bool) -> Iterator[tuple[Path, Path]]:
    """run_bench.py's job for a file, and the folder for what it finds."""
    with on_disk(list(inputs.arrays.values())) as npz, tempfile.TemporaryDirectory(prefix="bgnn-bench-") as folder:
        job = Path(folder) / "job.json"
        told = {"path": str(path.resolve()), "inputs": str(npz), "candidates": list(names), "profile": profile}
        job.write_text(json.dumps({**told, "outputs": folder}))
        yield job, Path(folder)


def run_emulated(path: Path, content: bytes, inputs: Inputs, candidates: Sequence[Candidate], say: Say) -> list[Record]:
    """A record for each candidate that runs there: instructions of one inference, and the largest difference of its
    outputs from this machine's. Raises BgnnError, with the reasons, where nothing runs, or outputs are wrong."""
    plugin = _OUT / "count_plugin.so"
    names = [row.name for row in candidates]
    with _emulator(plugin), _job(path, inputs, names, False) as (job, folder):
        say(f"{path.name}: in the emulator")
        command = [str(_HERE / "qpython"), str(_HERE / "run_bench.py"), str(job)]
        told = os.environ | _environment() | {"QEMU_PLUGIN": str(plugin), "QEMU_CPU": "cortex-a72"}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=told, check=False)
        counts = [int(number) for number in re.findall(r"^instructions (\d+)$", done.stderr, re.MULTILINE)]
        if done.returncode:
            raise BgnnError(f"the emulator failed: {_last_line(done.stderr) or f'exit code {done.returncode}'}")
        version = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True, check=True).stdout
        told_back = json.loads((folder / "found.json").read_text())
        outputs = {n: _arrays(folder / f"{n}.npz") for n, one in enumerate(told_back["found"]) if "error" not in one}
    refused = {f"{path.name}, {name}": one["error"] for name, one in zip(names, told_back["found"], strict=True)
               if "error" in one}  # fmt: skip
    if not outputs:
        raise BgnnError("nothing runs " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
    if len(counts) != len(outputs):
        raise BgnnError("the emulator gave no counts: is it qemu-aarch64 7.2, with plugins?")
    qemu = (re.findall(r"version ([\d.]+)", version) or ["?"])[0]
    device = _device(EMULATOR, f"Cortex-A72, emulated by qemu-aarch64 {qemu}")
    settings = {"run": new_run(), "base": [path.name, names[min(outputs)]], "threads": 1, "inputs": inputs.what,
                "left_out": refused}  # fmt: skip
    records, wrong = [], []
    for count, (number, arrays) in zip(counts, outputs.items(), strict=True):
        candidate = candidates[number]
        here = candidate.open(content, 1, list(inputs.arrays.values()))
        here.run()
        gap = largest_difference(arrays, here.outputs())
        largest = max((float(np.abs(one).max()) for one in here.outputs() if one.size), default=0.0)
        if gap > NEAR * max(largest, 1e-6):
            wrong.append(f"{candidate.name}: {gap:g} beside outputs of up to {largest:g}")
        samples = {INSTRUCTIONS: [float(count)], "difference": [gap], "file_bytes": [float(len(content))]}
        records.append(Record(path.name, candidate.name, device, False, samples, told_back["versions"], settings))
    if wrong:
        raise BgnnError(f"{path.name} gives other outputs on the emulated Cortex-A72 than here: {'; '.join(wrong)}")
    return records


def model_file(path: Path, content: bytes, inputs: Inputs, candidate: Candidate, say: Say) -> list[Record]:
    """A record for each of the file's operators on one Cortex-A72 core, MODELLED, and the last for all of them.

    Raises BgnnError where it cannot run there.
    """
    plugin = _OUT / "profile_plugin.so"
    with _emulator(plugin, programs=("llvm-mc-14", "llvm-mca-14")):
        with _job(path, inputs, [candidate.name], True) as (job, folder):
            say(f"{path.name}, {candidate.name}: in the emulator")
            root = _CACHE / "root"
            command = ["-L", root, root / "usr/bin/python3.11", _HERE / "run_bench.py", job]
            cycles = _a72_cycles()
            try:
                parts = cycles.sections(plugin, command, _environment())
            except SystemExit as stop:
                told = folder / "found.json"
                found = json.loads(told.read_text())["found"][0] if told.exists() else {}
                raise BgnnError(found.get("error") or str(stop)) from stop
            told_back = json.loads((folder / "found.json").read_text())
        operators = [Operator(**one) for one in told_back["found"][0]["operators"]]
        # Before, within, between, ... , within, after.
        if len(parts) != 2 * len(operators) + 1:
            raise BgnnError(f"{path.name} has operators that a run leaves out or repeats, which the model cannot tell")
        say(f"{path.name}, {candidate.name}: {len(operators)} operators, priced by llvm-mca")
        blocks = dict(enumerate(_renumbered(parts[1::2])))
        place = {id(block): number for block, number in blocks.values()}
        try:
            costs = cycles.cost_by_group({n: block for n, (block, _) in blocks.items()}, lambda block: place[id(block)])
        except SystemExit as stop:
            raise BgnnError(str(stop)) from stop
    name_layers(Profile(operators, []), report_of(path))
    device = _device(MODEL, f"Cortex-A72 at {cycles.GHZ:g} GHz, MODELLED")
    assumptions = (cycles.__doc__ or "").partition("What is assumed:\n\n")[2].strip()
    settings = {
        "run": new_run(), "base": [path.name, candidate.name], "threads": 1, "inputs": inputs.what,
        "ghz": cycles.GHZ, "assumptions": assumptions,
        "error_bar": "modelled_ms and cycles: computing alone, and with all waits for memory on top",
    }  # fmt: skip

    def record(case: str, cost: Any, **what: Any) -> Record:
        samples = {
            INSTRUCTIONS: [float(cost.instructions)],
            CYCLES: [cost.compute, cost.compute + cost.memory],
            MODELLED: [cost.low_ms, cost.high_ms],
        }
        return Record(case, candidate.name, device, True, samples, told_back["versions"], {**settings, **what})

    total, found_records = cycles.Cost(), []
    for number, one in enumerate(operators):
        cost = costs.get(number, cycles.Cost())
        total.add(cost)
        what = {"operator": number, "type": one.kind, "tensor": one.tensor, "layer": one.layer, "parts": one.parts}
        found_records.append(record(f"{path.name}: {number} {one.name}", cost, **what))
    return [*found_records, record(path.name, total)]


def _renumbered(parts: Sequence[dict[int, Any]]) -> Iterator[tuple[Any, int]]:
    """The blocks of all operators, with the operator's place; their followers by the numbers that they get by that."""
    first = 0
    for operator, part in enumerate(parts):
        number_of = {old: first + new for new, old in enumerate(part)}
        first += len(part)
        for block in part.values():
            followers = {number_of[n]: runs for n, runs in block.followers.items() if n in number_of}
            yield (
                type(block)(block.address, block.code, block.runs, block.mispredicted, block.memory_cycles, followers),
                operator,
            )


def _a72_cycles() -> Any:
    sys.path.insert(0, str(_HERE))
    try:
        return importlib.import_module("a72_cycles")
    finally:
        sys.path.remove(str(_HERE))


def _arrays(path: Path) -> list[np.ndarray]:
    with np.load(path) as archive:
        return [archive[f"arr_{i}"] for i in range(len(archive.files))]


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
