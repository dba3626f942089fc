"""`make bench`: the paper's DGCNNs as converted files, measured side by side in one run (paper, section 5.1).

Every file is written by this converter, verified, and run on the runtime its users would pick: Larq Compute
Engine's interpreter (LCE) for binary models, LiteRT with XNNPACK for float ones, PyTorch eager as the
reference. The paper's figures, taken on a Raspberry Pi 4, stand beside ours; only the ratios can be compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bgnn.runtime_bench.interpreters import Interpreter, LceInterpreter, LiteRTInterpreter, has_bgnn_ops
from bgnn.runtime_bench.measure import Measurement, measure, peak_memory, print_table, write_json

# PyTorch is imported inside the functions that need it: the processes whose memory is measured import this
# module, and would otherwise hold 200 MB of it.
if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Case:
    """One row of the table: an architecture, and the file made of it (or None: PyTorch eager)."""

    name: str
    arch: str
    settings: dict[str, Any]
    target: str | None
    optimize: int = 1
    kernels: str = "stock"


HAMMING = {"knn": "hamming"}
CASES = [
    Case("fp32, LiteRT -O0", "dgcnn", {}, "tflite-arm64", 0),
    Case("fp32, LiteRT -O1", "dgcnn", {}, "tflite-arm64", 1),
    Case("RF, LCE -O1", "rf", {}, "lce-arm64", 1),
    Case("BF2-H, LCE -O0", "bf2", HAMMING, "lce-arm64", 0),
    Case("BF2-H, LCE -O1", "bf2", HAMMING, "lce-arm64", 1),
    Case("RF, bgnn kernels", "rf", {}, "lce-arm64", 1, "bgnn"),
    Case("BF2-H, bgnn kernels", "bf2", HAMMING, "lce-arm64", 1, "bgnn"),
    Case("fp32, PyTorch", "dgcnn", {}, None),
    Case("BF2-H, PyTorch", "bf2", HAMMING, None),
]
BASE = "fp32, LiteRT -O0"
BEST = "BF2-H, LCE -O1"

# Section 5.1 and Table 6, on a Raspberry Pi 4B, batch 8, 1024 points, k = 20; the time of BF2-H has its
# Hamming distances simulated.
PAPER = {
    BASE: {"speed": "1", "file": "7.2 MB", "peak": "575 MB"},
    BEST: {"speed": "about 2", "file": "341 KB", "peak": "346 MB"},
}


@dataclass(frozen=True)
class Sizes:
    """Batch, points in a cloud, neighbours, classes: static in the emitted files."""

    batch: int = 8
    points: int = 1024
    k: int = 20
    classes: int = 40


def build(case: Case, sizes: Sizes) -> nn.Module:
    """The case's model in eval mode, with seeded random weights."""
    import torch

    from bgnn.models.checkpoint import build_model

    torch.manual_seed(0)
    return build_model(case.arch, classes=sizes.classes, num_points=sizes.points, k=sizes.k, **case.settings).eval()


def calibrated(case: Case, sizes: Sizes) -> nn.Module:
    """`build`, with BatchNorm statistics of a few random clouds.

    Without them a random model's signs nearly all agree, and k-NN meets nothing but equal distances.
    """
    import torch

    model = build(case, sizes).train()
    with torch.no_grad():
        for seed in range(1, 4):
            model(torch.from_numpy(clouds(sizes, seed)))
    return model.eval()


def clouds(sizes: Sizes, seed: int = 0) -> np.ndarray:
    """Random points in the unit ball, f32 `[batch, points, 3]`."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((sizes.batch, sizes.points, 3))
    points *= rng.random((sizes.batch, sizes.points, 1)) ** (1 / 3) / np.linalg.norm(points, axis=2, keepdims=True)
    return points.astype(np.float32)


def open_on(target: str, path: Path, threads: int) -> Interpreter:
    """The runtime that the target's users would pick, with its fastest kernels."""
    content = path.read_bytes()
    if has_bgnn_ops(content):
        return LiteRTInterpreter(content, num_threads=threads, delegate=True)
    runtime = LceInterpreter if target.startswith("lce") else LiteRTInterpreter
    return runtime(content, num_threads=threads)


def eager(model: nn.Module, sizes: Sizes, threads: int) -> Callable[[], object]:
    """The model's forward pass in PyTorch, without gradients, as a callable."""
    import torch

    torch.set_num_threads(threads)
    points = torch.from_numpy(clouds(sizes))

    def run() -> object:
        with torch.inference_mode():
            return model(points)

    return run


def run_file_once(target: str, path: str, threads: int, sizes: dict[str, int]) -> None:
    """Load a file and run it once; `peak_memory` calls this in a fresh process."""
    open_on(target, Path(path), threads).run(clouds(Sizes(**sizes)))


def run_eager_once(name: str, threads: int, sizes: dict[str, int]) -> None:
    """Build a case's PyTorch model and run it once; `peak_memory` calls this in a fresh process."""
    case = next(case for case in CASES if case.name == name)
    eager(build(case, Sizes(**sizes)), Sizes(**sizes), threads)()


@dataclass(frozen=True)
class Written:
    """An emitted file: where it is, how large, how long its conversion with verification took."""

    path: str
    file_bytes: int
    conversion_s: float
    verification: dict[str, Any]
    """What comparing the file's run with the model's found: `converter.verify.Check` as plain values."""


def convert_case(case: Case, model: nn.Module, sizes: Sizes, folder: Path) -> Written:
    """Convert and verify one case's model on the bench's own clouds."""
    import torch

    from bgnn.converter.api import convert

    assert case.target is not None
    slug = "".join(c if c.isalnum() else "-" for c in case.name.lower()).replace("--", "-")
    path = folder / f"{slug}.tflite"
    start = time.monotonic()
    done = convert(
        model,
        (torch.from_numpy(clouds(sizes)),),
        target=case.target,
        optimize=case.optimize,
        kernels=case.kernels,
        output=path,
        name=slug,
    )
    return Written(str(path), path.stat().st_size, time.monotonic() - start, done.report.checks[-1].to_json())


def bench(sizes: Sizes, rounds: int, threads: int, folder: Path, say: Callable[[str], None]) -> None:
    """Convert every case, take its memory, time all of them together; print the table, write
    `bench_dgcnn.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    plain_sizes = asdict(sizes)
    written: dict[str, Written] = {}
    peaks: dict[str, int] = {}
    candidates: dict[str, Callable[[], object]] = {}
    empty = peak_memory(threads=threads)
    points = clouds(sizes)
    for case in CASES:
        say(f"{case.name}: converting and verifying" if case.target else f"{case.name}: building")
        model = calibrated(case, sizes)
        if case.target is None:
            candidates[case.name] = eager(model, sizes, threads)
            task, arguments = "run_eager_once", {"name": case.name}
        else:
            file = written[case.name] = convert_case(case, model, sizes, folder)
            candidates[case.name] = partial(open_on(case.target, Path(file.path), threads).run, points)
            task, arguments = "run_file_once", {"target": case.target, "path": file.path}
        peaks[case.name] = peak_memory(
            f"bgnn.runtime_bench.bench_dgcnn:{task}",
            {**arguments, "threads": threads, "sizes": plain_sizes},
            threads=threads,
        )
    say(f"timing {len(candidates)} candidates in {rounds} rounds")
    result = measure(candidates, base=BASE, rounds=rounds, threads=threads, progress=say)
    aims = compare_with_aims(result, written, peaks)
    path = folder / "bench_dgcnn.json"
    write_json(
        result,
        path,
        sizes=plain_sizes,
        files={name: asdict(file) for name, file in written.items()},
        peak_rss_bytes=peaks,
        empty_interpreter_bytes=empty,
        paper=PAPER,
        aims=[asdict(aim) for aim in aims],
    )
    print_table(result, columns(written, peaks, empty), title(sizes))
    for aim in aims:
        print(f"{'PASS ' if aim.met else 'SHORT'}  {aim.what}: {aim.found} (aim: {aim.aim})")
    print(f"written: {path}")


def title(sizes: Sizes) -> str:
    return f"DGCNN, batch {sizes.batch}, {sizes.points} points, k = {sizes.k}, {sizes.classes} classes"


def columns(written: dict[str, Written], peaks: dict[str, int], empty: int) -> dict[str, dict[str, str]]:
    """The table's further columns: heading -> candidate -> text."""
    return {
        "file\nbytes": {name: f"{file.file_bytes:,}" for name, file in written.items()},
        "peak RSS MB\n(less empty)": {
            name: f"{peak / 1e6:.0f} ({(peak - empty) / 1e6:.0f})" for name, peak in peaks.items()
        },
        "converted\nin s": {name: f"{file.conversion_s:.0f}" for name, file in written.items()},
        "paper, Pi 4:\nx as fast": {name: row["speed"] for name, row in PAPER.items()},
        "paper:\nfile": {name: row["file"] for name, row in PAPER.items()},
        "paper:\npeak": {name: row["peak"] for name, row in PAPER.items()},
    }


@dataclass(frozen=True)
class Aim:
    """A figure that the project set itself, beside what was found. Information: no exit code depends on
    it."""

    what: str
    aim: str
    found: str
    met: bool


def compare_with_aims(result: Measurement, written: dict[str, Written], peaks: dict[str, int]) -> list[Aim]:
    size = written[BEST].file_bytes
    speedup, cpu_speedup = result.timings[BEST].speedup, result.timings[BEST].cpu_speedup
    assert speedup is not None
    share = peaks[BEST] / peaks[BASE]
    return [
        Aim(f"size of {BEST}", "at most 360,000 bytes", f"{size:,} bytes", size <= 360_000),
        Aim(
            f"speed of {BEST}",
            f"1.4 x {BASE}",
            f"{speedup} x, CPU time {cpu_speedup} x",
            speedup.median >= 1.4,
        ),
        Aim(f"peak memory of {BEST}", f"a quarter of {BASE}", f"{share:.2f} of it", share <= 0.25),
    ]


def main(arguments: list[str] | None = None) -> None:
    """The command line: sizes default to the paper's."""
    parser = argparse.ArgumentParser(prog="bench_dgcnn", description=__doc__.partition("\n")[0])
    for name, default in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/bench_dgcnn"), help="folder for files and JSON")
    given = vars(parser.parse_args(arguments))
    rounds, threads, folder = given.pop("rounds"), given.pop("threads"), given.pop("output")
    bench(Sizes(**given), rounds, threads, folder, lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    main()
