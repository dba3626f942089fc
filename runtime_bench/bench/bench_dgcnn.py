"""`make bench`: the paper's DGCNNs as converted files, measured side by side in one run (paper, section 5.1).

Every file is written by this converter, verified, and run where its users would run it: float files on LiteRT with
XNNPACK, binary ones on Larq Compute Engine's interpreter (LCE, the paper's route) or on LiteRT with our delegate,
and PyTorch eager as the reference. The paper's figures, taken on a Raspberry Pi 4, stand beside ours; only the ratios
can be compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bgnn.runtime_bench.bench.lce import LceInterpreter, LceProcess, lce_python
from bgnn.runtime_bench.bench.measure import Elapsed, Measurement, measure, peak_memory, print_table, write_json
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter

# PyTorch is imported inside the functions that need it: the processes whose memory is measured import this
# module, and would otherwise hold 200 MB of it.
if TYPE_CHECKING:
    from torch import nn


# What runs a row: stock LiteRT alone or with our delegate, LCE's own interpreter, PyTorch eager.
LITERT, DELEGATE, LCE, PYTORCH = "LiteRT", "LiteRT + ours", "LCE", "PyTorch"


@dataclass(frozen=True)
class Case:
    """One row of the table: an architecture, the file made of it (or None: PyTorch eager), and what runs that."""

    name: str
    arch: str
    settings: dict[str, Any]
    target: str | None
    optimize: int = 1
    kernels: str = "stock"
    runtime: str = DELEGATE

    def same_file(self, other: Case) -> bool:
        """Whether both rows are runs of one file."""
        return replace(self, name="", runtime="") == replace(other, name="", runtime="")


HAMMING = {"knn": "hamming"}
CASES = [
    Case("fp32, LiteRT -O0", "dgcnn", {}, "tflite-arm64", 0, runtime=LITERT),
    Case("fp32, LiteRT -O1", "dgcnn", {}, "tflite-arm64", 1, runtime=LITERT),
    Case("RF, stock -O1", "rf", {}, "lce-arm64", 1, runtime=LCE),
    Case("BF2-H, stock -O0", "bf2", HAMMING, "lce-arm64", 0, runtime=LCE),
    Case("BF2-H, stock -O1", "bf2", HAMMING, "lce-arm64", 1, runtime=LCE),
    Case("BF2-H, stock, LiteRT", "bf2", HAMMING, "lce-arm64", 1, runtime=DELEGATE),
    Case("RF, bgnn kernels", "rf", {}, "lce-arm64", 1, "bgnn"),
    Case("BF2-H, bgnn kernels", "bf2", HAMMING, "lce-arm64", 1, "bgnn"),
    Case("fp32, PyTorch", "dgcnn", {}, None, runtime=PYTORCH),
    Case("BF2-H, PyTorch", "bf2", HAMMING, None, runtime=PYTORCH),
]
BASE = "fp32, LiteRT -O0"
BEST = "BF2-H, stock -O1"
OURS, OUR_RF = "BF2-H, bgnn kernels", "RF, bgnn kernels"

# Section 5.1 and Table 6, on a Raspberry Pi 4B, batch 8, 1024 points, k = 20; the time of BF2-H has its
# Hamming distances simulated.
PAPER = {
    BASE: "1 x, 7.2 MB, 575 MB",
    BEST: "~2 x, 341 KB, 346 MB",
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


def cases_here(say: Callable[[str], None]) -> list[Case]:
    """CASES; without LCE, its rows run on LiteRT with our delegate, each file once."""
    try:
        lce_python()
    except BgnnError as error:
        say(f"stock files run on LiteRT with our delegate only: {error}")
        found: list[Case] = []
        for case in CASES:
            case = replace(case, runtime=DELEGATE) if case.runtime == LCE else case
            if case.target is None or not any(map(case.same_file, found)):
                found.append(case)
        return found
    return CASES


def open_on(runtime: str, content: bytes, threads: int, points: np.ndarray) -> Callable[[], object]:
    """A file's run as a callable. LCE's is another process, which tells its own time."""
    if runtime != LCE:
        return partial(LiteRTInterpreter(content, threads, delegate=runtime == DELEGATE).run, points)
    interpreter = LceInterpreter(content, threads)

    def run() -> Elapsed:
        interpreter.run(points)
        return interpreter.elapsed

    return run


def eager(model: nn.Module, sizes: Sizes, threads: int) -> Callable[[], object]:
    """The model's forward pass in PyTorch, without gradients, as a callable."""
    import torch

    torch.set_num_threads(threads)
    points = torch.from_numpy(clouds(sizes))

    def run() -> object:
        with torch.inference_mode():
            return model(points)

    return run


def run_file_once(runtime: str, path: str, threads: int, sizes: dict[str, int]) -> None:
    """Load a file and run it once; `peak_memory` calls this in a fresh process."""
    open_on(runtime, Path(path).read_bytes(), threads, clouds(Sizes(**sizes)))()


def run_eager_once(name: str, threads: int, sizes: dict[str, int]) -> None:
    """Build a case's PyTorch model and run it once; `peak_memory` calls this in a fresh process."""
    case = next(case for case in CASES if case.name == name)
    eager(build(case, Sizes(**sizes)), Sizes(**sizes), threads)()


def import_torch(sizes: dict[str, int]) -> None:
    """The clouds and PyTorch without a model; `peak_memory` calls this in a fresh process."""
    import torch

    torch.from_numpy(clouds(Sizes(**sizes)))


def empty_file(sizes: Sizes) -> bytes:
    """A file that takes the clouds and gives one of their numbers: what a runtime holds whatever it runs."""
    from bgnn.converter.tflite.builder import FileBuilder

    builder = FileBuilder("empty")
    x = builder.tensor("points", (sizes.batch, sizes.points, 3), np.dtype(np.float32))
    y = builder.tensor("first", (1, 1, 1), np.dtype(np.float32))
    window = [
        builder.constant(name, np.array(values, np.int32))
        for name, values in {"begin": [0, 0, 0], "size": [1, 1, 1]}.items()
    ]
    builder.builtin("SLICE", [x, *window], [y])
    return builder.finish([("points", x)], [("first", y)], {})


def file_peak(runtime: str, path: Path, threads: int, sizes: Sizes) -> int:
    """Peak resident bytes of a fresh process that loads the file and runs it once."""
    if runtime == LCE:
        process = LceProcess()
        LceInterpreter(path.read_bytes(), threads, process=process).run(clouds(sizes))
        return process.peak_bytes
    arguments = {"runtime": runtime, "path": str(path), "threads": threads, "sizes": asdict(sizes)}
    return peak_memory("bgnn.runtime_bench.bench.bench_dgcnn:run_file_once", arguments, threads=threads)


def empty_peaks(runtimes: set[str], folder: Path, threads: int, sizes: Sizes) -> dict[str, int]:
    """By runtime, what a process holds at its peak before there is a model: the figures to subtract.

    That is Python, numpy, the clouds, the runtime and, where it is used, our delegate, with `empty_file` run once;
    for PyTorch its import.
    """
    path = folder / "empty.tflite"
    path.write_bytes(empty_file(sizes))
    found = {runtime: file_peak(runtime, path, threads, sizes) for runtime in runtimes - {PYTORCH}}
    if PYTORCH in runtimes:
        task = "bgnn.runtime_bench.bench.bench_dgcnn:import_torch"
        found[PYTORCH] = peak_memory(task, {"sizes": asdict(sizes)}, threads=threads)
    return found


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
    cases = cases_here(say)
    written: dict[str, Written] = {}
    peaks: dict[str, int] = {}
    candidates: dict[str, Callable[[], object]] = {}
    empty = empty_peaks({case.runtime for case in cases}, folder, threads, sizes)
    points = clouds(sizes)
    for case in cases:
        if case.target is None:
            say(f"{case.name}: building")
            candidates[case.name] = eager(calibrated(case, sizes), sizes, threads)
            task, arguments = "run_eager_once", {"name": case.name, "threads": threads, "sizes": asdict(sizes)}
            peaks[case.name] = peak_memory(f"bgnn.runtime_bench.bench.bench_dgcnn:{task}", arguments, threads=threads)
            continue
        same = next((other for other in cases if other.name in written and case.same_file(other)), None)
        if same is None:
            say(f"{case.name}: converting and verifying")
            written[case.name] = convert_case(case, calibrated(case, sizes), sizes, folder)
        else:
            written[case.name] = written[same.name]
        path = Path(written[case.name].path)
        candidates[case.name] = open_on(case.runtime, path.read_bytes(), threads, points)
        peaks[case.name] = file_peak(case.runtime, path, threads, sizes)
    say(f"timing {len(candidates)} candidates in {rounds} rounds")
    result = measure(candidates, base=BASE, rounds=rounds, threads=threads, progress=say)
    runtimes = {case.name: case.runtime for case in cases}
    net = {name: peak - empty[runtimes[name]] for name, peak in peaks.items()}
    at_the_papers_sizes = (sizes, threads) == (Sizes(), 1)
    aims = compare_with_aims(result, written, peaks, net) if at_the_papers_sizes else []
    path = folder / "bench_dgcnn.json"
    write_json(
        result,
        path,
        sizes=asdict(sizes),
        runtimes=runtimes,
        files={name: asdict(file) for name, file in written.items()},
        peak_rss_bytes=peaks,
        empty_runtime_bytes=empty,
        paper=PAPER,
        aims=[asdict(aim) for aim in aims],
    )
    print_table(result, columns(runtimes, written, peaks, net), title(sizes))
    print(f"peak RSS: of a fresh process that runs the file once; over empty: less {EMPTY}")
    for aim in aims:
        print(f"{'PASS ' if aim.met else 'SHORT'}  {aim.what}: {aim.found} (aim: {aim.aim})")
    if not at_the_papers_sizes:
        print("the project's aims are for the default sizes and one thread: not compared")
    print(f"written: {path}")


EMPTY = "that of Python, numpy, the clouds and the same runtime (with our delegate where used) on an empty file"


def title(sizes: Sizes) -> str:
    return f"DGCNN, batch {sizes.batch}, {sizes.points} points, k = {sizes.k}, {sizes.classes} classes"


def columns(
    runtimes: dict[str, str], written: dict[str, Written], peaks: dict[str, int], net: dict[str, int]
) -> dict[str, dict[str, str]]:
    """The table's further columns: heading -> candidate -> text."""
    return {
        "runs on": runtimes,
        "file\nbytes": {name: f"{file.file_bytes:,}" for name, file in written.items()},
        "peak RSS MB\n(over empty)": {
            name: f"{peak / 1e6:.0f} ({net[name] / 1e6:.1f})" for name, peak in peaks.items()
        },
        "paper, Pi 4:\nspeed, file, peak": PAPER,
    }


@dataclass(frozen=True)
class Aim:
    """A figure that the project set itself, beside what was found. Information: no exit code depends on
    it."""

    what: str
    aim: str
    found: str
    met: bool


# Times as fast as BASE, by the instruction set that our kernels use.
SPEED_AIMS = {"avx512": 45.0, "avx2": 15.0, "portable": 4.0}
RF_SPEED_AIM = 8.0


def instruction_set(flags: Sequence[str]) -> str:
    """What our kernels use on a processor with these flags of /proc/cpuinfo, or what BGNN_ISA tells them to."""
    chosen = os.environ.get("BGNN_ISA")
    if chosen:
        return chosen
    if "asimd" in flags:
        return "neon"
    return "avx512" if "avx512_vpopcntdq" in flags else "avx2" if "avx2" in flags else "portable"


def compare_with_aims(
    result: Measurement, written: dict[str, Written], peaks: dict[str, int], net: dict[str, int]
) -> list[Aim]:
    """The aims for stock files and for those with our kernels. `net`: peak memory over the empty runtime."""

    def speed(name: str, factor: float, note: str = "") -> Aim:
        speedup, cpu_speedup = result.timings[name].speedup, result.timings[name].cpu_speedup
        assert speedup is not None
        return Aim(
            f"speed of {name}{note}",
            f"{factor:g} x {BASE}",
            f"{speedup} x, CPU time {cpu_speedup} x",
            speedup.median >= factor,
        )

    def size(name: str, limit: int) -> Aim:
        found = written[name].file_bytes
        return Aim(f"size of {name}", f"at most {limit:,} bytes", f"{found:,} bytes", found <= limit)

    share = peaks[BEST] / peaks[BASE]
    isa = instruction_set(result.machine["flags"])
    return [
        size(BEST, 360_000),
        speed(BEST, 1.4),
        Aim(f"peak memory of {BEST}", f"a quarter of {BASE}", f"{share:.2f} of it", share <= 0.25),
        size(OURS, 290_000),
        *([speed(OURS, SPEED_AIMS[isa], f" with {isa}")] if isa in SPEED_AIMS else []),
        speed(OUR_RF, RF_SPEED_AIM),
        Aim(
            f"peak memory of {OURS} over the empty runtime",
            "at most 12 MB",
            f"{net[OURS] / 1e6:.1f} MB",
            net[OURS] <= 12_000_000,
        ),
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
