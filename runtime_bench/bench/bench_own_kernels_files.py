"""Whole networks: our files on each instruction set beside what else runs them; part of `make bench-kernels`.

Every candidate of a table computes on the same clouds, in the same rounds. The float DGCNN as it is usually
converted (-O0) is what the ratios refer to; the honest comparison is with the factored one (-O1), which does the
same arithmetic in fewer operations.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from bgnn.runtime_bench.bench import paper
from bgnn.runtime_bench.bench.cases import HAMMING, Case, Eager, Sizes, calibrated, clouds
from bgnn.runtime_bench.bench.lce import LceInterpreter
from bgnn.runtime_bench.bench.measure import Elapsed, Measurement, Spread, measure, peak_memory, print_table
from bgnn.runtime_bench.bench.paper import Aim
from bgnn.runtime_bench.kernels import library
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter

if TYPE_CHECKING:
    from torch import Tensor, nn

FP32 = Case("fp32", "dgcnn", {}, "tflite-arm64", 0)
FACTORED = Case("fp32, factored", "dgcnn", {}, "tflite-arm64", 1)
BF_STOCK = Case("BF2-H, stock file", "bf2", HAMMING, "lce-arm64", 1, "stock")
BF = Case("BF2-H", "bf2", HAMMING, "lce-arm64", 1, "bgnn")
RF = Case("RF", "rf", {}, "lce-arm64", 1, "bgnn")
CASES = (FP32, FACTORED, BF_STOCK, BF, RF)

BASE = "fp32, LiteRT -O0"
HONEST = "fp32 factored, LiteRT -O1"
ONNX = "fp32, ONNX Runtime"
EAGER = "fp32, PyTorch"
DELEGATE_ALONE = "bgnn.runtime_bench.bench.bench_own_kernels_files:load_nothing"
RUN_ONCE = "bgnn.runtime_bench.bench.bench_own_kernels_files:run_once"


def ours(network: str, isa: str) -> str:
    """The name of our file's row."""
    return f"{network}, bgnn {isa}"


@dataclass(frozen=True)
class Setting:
    """One table: how many clouds at once, on how many threads."""

    batch: int
    threads: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"


SETTINGS = (Setting(8, 1), Setting(1, 1), Setting(8, 2))


@contextmanager
def instruction_set(isa: str) -> Iterator[None]:
    """A delegate that is loaded inside uses these kernels, for as long as it lives."""
    before = os.environ.get("BGNN_ISA")
    os.environ["BGNN_ISA"] = isa
    try:
        yield
    finally:
        del os.environ["BGNN_ISA"]
        if before is not None:
            os.environ["BGNN_ISA"] = before


@contextmanager
def published_knn() -> Iterator[None]:
    """Inside, the float network picks neighbours as the published DGCNN does, by `topk`.

    The stable sort of our models, which fixes the order of equal distances, takes PyTorch several times as long, and
    its exporter to ONNX has none.
    """

    def knn(x: Tensor, k: int, metric: str, *, fast: bool = False) -> Tensor:
        if metric != "l2":
            raise ValueError(f"the float network uses l2, not {metric}")
        square = (x * x).sum(dim=2, keepdim=True)
        similarity = 2 * x.matmul(x.transpose(1, 2)) - square - square.transpose(1, 2)
        return similarity.topk(k, dim=-1)[1]

    with patch("bgnn.models.dgcnn.knn", knn):
        yield


def write_files(
    models: dict[str, nn.Module], sizes: Sizes, verify: bool, folder: Path, say: Callable[[str], None]
) -> dict[str, Path]:
    """Every case's file and, as ONNX, the export of the float network; by the case's name and ONNX."""
    import torch

    from bgnn.converter.api import convert

    points = torch.from_numpy(clouds(sizes))
    paths = {}
    for case in CASES:
        say(f"{case.name}, batch {sizes.batch}: converting{' and verifying' if verify else ''}")
        name = "".join(c for c in case.name.lower().replace(" ", "-") if c.isalnum() or c == "-")
        path = folder / f"{name}-{case.kernels}-batch{sizes.batch}.tflite"
        assert case.target is not None
        convert(
            models[case.arch], (points,), target=case.target, optimize=case.optimize, kernels=case.kernels,
            output=path, name=name, verify=verify,
        )  # fmt: skip
        paths[case.name] = path
    say(f"fp32, batch {sizes.batch}: torch.onnx.export")
    paths[ONNX] = folder / f"fp32-batch{sizes.batch}.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that it could use
    with published_knn(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(models[FP32.arch], (points,), paths[ONNX], dynamo=True, verbose=False, external_data=False)
    return paths


def candidates_for(
    setting: Setting, sizes: Sizes, paths: dict[str, Path], model: nn.Module, say: Callable[[str], None]
) -> dict[str, Callable[[], object]]:
    """What runs in this setting, by row. Raises BgnnError where our instruction sets disagree in one bit."""
    points, threads = clouds(sizes), setting.threads
    content = {name: path.read_bytes() for name, path in paths.items()}
    found: dict[str, Callable[[], object]] = {
        BASE: partial(LiteRTInterpreter(content[FP32.name], threads).run, points),
        HONEST: partial(LiteRTInterpreter(content[FACTORED.name], threads).run, points),
        ONNX: onnx_runtime(content[ONNX], threads, points),
        EAGER: published(Eager(model, [points], threads).run),
    }
    try:
        found["BF2-H stock file, LCE"] = lce(LceInterpreter(content[BF_STOCK.name], threads), points)
    except BgnnError as error:
        say(f"left out: {error}")
    stock = LiteRTInterpreter(content[BF_STOCK.name], threads, delegate=True)
    found["BF2-H stock file, our delegate"] = partial(stock.run, points)
    for case in (BF, RF):
        outputs = {}
        for isa in reversed([kernels.isa for kernels in library.runnable()]):
            with instruction_set(isa):
                interpreter = LiteRTInterpreter(content[case.name], threads, delegate=True)
            outputs[isa] = interpreter.run(points)[0].tobytes()
            found[ours(case.name, isa)] = partial(interpreter.run, points)
        if len(set(outputs.values())) != 1:
            raise BgnnError(f"{case.name}: the outputs differ between {', '.join(outputs)}")
    return found


def published(run: Callable[[], object]) -> Callable[[], object]:
    def inside() -> object:
        with published_knn():
            return run()

    return inside


def onnx_runtime(content: bytes, threads: int, points: np.ndarray) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: points})


def lce(interpreter: LceInterpreter, points: np.ndarray) -> Callable[[], Elapsed]:
    """LCE runs in another process, and is timed there."""

    def run() -> Elapsed:
        interpreter.run(points)
        return interpreter.elapsed

    return run


def load_nothing() -> None:
    """The runtime and our delegate, without a file; `peak_memory` calls this in a fresh process."""
    from bgnn.runtime_bench.runtime.delegate import load_delegate

    load_delegate()


def run_once(path: str, points: str, threads: int) -> None:
    """Loads a file and runs it once; `peak_memory` calls this in a fresh process."""
    from bgnn.runtime_bench.runtime.delegate import load_interpreter

    interpreter = load_interpreter(path, threads)
    (detail,) = interpreter.get_input_details()
    interpreter.set_tensor(detail["index"], np.load(points))
    interpreter.invoke()


@dataclass(frozen=True)
class Found:
    """A setting's measurement, and of its files the sizes and the memory beyond the runtime alone, in bytes."""

    setting: Setting
    measurement: Measurement
    file_bytes: dict[str, int]
    memory_bytes: dict[str, int]


def bench_files(
    settings: tuple[Setting, ...], sizes: Sizes, rounds: int, folder: Path, say: Callable[[str], None]
) -> Iterator[Found]:
    """One measurement per setting, as it is done. `sizes.batch` is for calibration; the settings have their own.

    The files of the smallest batch are verified; those of others are the same graph in other shapes, and
    verification of eight clouds takes minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    say("building the networks")
    models = {arch: calibrated(case, sizes) for arch, case in {case.arch: case for case in CASES}.items()}
    smallest = min(setting.batch for setting in settings)
    paths: dict[int, dict[str, Path]] = {}
    for setting in settings:
        shapes = Sizes(setting.batch, sizes.points, sizes.k, sizes.classes)
        if setting.batch not in paths:
            paths[setting.batch] = write_files(models, shapes, setting.batch == smallest, folder, say)
        files = paths[setting.batch]
        memory = peak_memories(files, clouds(shapes), setting.threads, folder)
        candidates = candidates_for(setting, shapes, files, models[FP32.arch], say)
        say(f"{setting}: timing {len(candidates)} candidates in {rounds} rounds")
        result = measure(candidates, base=BASE, rounds=rounds, threads=setting.threads, progress=say)
        yield Found(setting, result, {name: path.stat().st_size for name, path in files.items()}, memory)


def peak_memories(files: dict[str, Path], points: np.ndarray, threads: int, folder: Path) -> dict[str, int]:
    """Peak bytes of a process that runs the file, less those of one that only loads LiteRT and our delegate."""
    np.save(folder / "points.npy", points)
    empty = peak_memory(DELEGATE_ALONE, threads=threads)
    return {
        name: peak_memory(
            RUN_ONCE, {"path": str(path), "points": str(folder / "points.npy"), "threads": threads}, threads=threads
        )
        - empty
        for name, path in files.items()
        if name != ONNX
    }


def case_of(row: str) -> str | None:
    """The file that a row runs, by its case's name."""
    if row.startswith("BF2-H stock"):
        return BF_STOCK.name
    if ", bgnn " in row:
        return row.partition(",")[0]
    return {BASE: FP32.name, HONEST: FACTORED.name, ONNX: ONNX}.get(row)


def ratios(result: Measurement, base: str) -> dict[str, str]:
    """How many times as fast as `base` each row is, round by round."""
    wall = result.timings[base].wall_ms
    return {
        name: str(Spread.of([b / max(own, 1e-6) for b, own in zip(wall, timing.wall_ms, strict=True)]))
        for name, timing in result.timings.items()
        if name != base
    }


def print_files(found: Found, sizes: Sizes) -> None:
    """The setting's table."""
    rows = {name: case_of(name) for name in found.measurement.timings}
    columns: dict[str, dict[str, str]] = {
        "x as fast as\nfactored fp32": ratios(found.measurement, HONEST),
        "x as fast as\nONNX Runtime": ratios(found.measurement, ONNX),
        "file\nbytes": {row: f"{found.file_bytes[case]:,}" for row, case in rows.items() if case},
        "memory\nMB": {
            row: f"{found.memory_bytes[case] / 1e6:.1f}"
            for row, case in rows.items()
            if case in found.memory_bytes and row != "BF2-H stock file, LCE"
        },
    }
    title = f"DGCNN, {found.setting}, {sizes.points} points, k = {sizes.k}, random weights"
    print_table(found.measurement, columns, title)


def aims(found: list[Found]) -> list[Aim]:
    """What the project set itself, beside what was found in the first setting, if that was run."""
    first = next((f for f in found if f.setting == SETTINGS[0]), None)
    if first is None:
        return []
    timings = first.measurement.timings
    best_rf = next(name for name in timings if name.startswith("RF, bgnn"))
    wanted = {ours(BF.name, isa): factor for isa, factor in paper.OWN_SPEED.items()} | {best_rf: paper.OWN_RF_SPEED}
    lines = []
    for row, factor in wanted.items():
        what, aim = f"speed of {row}, {first.setting}", f"{factor:g} x {BASE}"
        if row not in timings:
            lines.append(Aim(what, aim, "this processor does not run it", False))
            continue
        wall, cpu = timings[row].speedup, timings[row].cpu_speedup
        assert wall is not None
        assert cpu is not None
        # On a busy machine what runs for a moment is rarely interrupted, so elapsed time alone flatters it.
        lines.append(Aim(what, aim, f"{wall} x, CPU time {cpu} x", min(wall.median, cpu.median) >= factor))
    size, memory = first.file_bytes[BF.name], first.memory_bytes[BF.name]
    lines.append(
        Aim(
            "size of BF2-H's file", f"at most {paper.OWN_FILE_BYTES:,} bytes", f"{size:,}", size <= paper.OWN_FILE_BYTES
        )
    )
    lines.append(
        Aim(
            f"memory of BF2-H, {first.setting}, over LiteRT and our library alone",
            f"at most {paper.OWN_MEMORY_BYTES / 1e6:.0f} MB",
            f"{memory / 1e6:.1f} MB",
            memory <= paper.OWN_MEMORY_BYTES,
        )
    )
    return lines


def to_json(found: Found) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(found), "setting": asdict(found.setting)}
