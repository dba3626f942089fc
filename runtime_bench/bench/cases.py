"""What is converted to be measured: the paper's DGCNNs, each by the paper's route, by ours, and with our kernels."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from bgnn.runtime_bench.bench.candidates import CANDIDATES, DELEGATE, LCE, LITERT, ONNX, Alone, Opened
from bgnn.runtime_bench.bench.lce import lce_python
from bgnn.runtime_bench.bench.measure import Schedule, in_fresh_process, timed
from bgnn.runtime_bench.bench.running import Subject, conversion_of, file_subject
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.outputs import write_files

# PyTorch is imported inside the functions that need it: the processes whose memory is measured import this
# module, and would otherwise hold 200 MB of it.
if TYPE_CHECKING:
    from torch import nn

EAGER, COMPILED = "PyTorch", "torch.compile"
HAMMING = {"knn": "hamming"}
# Architectures by the paper's names for them (Table 4).
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "DGCNN": ("dgcnn", {}), "RF": ("rf", {}), "BF": ("bf2", {}), "BF-H": ("bf2", HAMMING),
}  # fmt: skip
# How a network becomes a file: (-O, kernels).
PAPERS_ROUTE, STOCK, OWN = "-O0, stock", "-O1, stock", "-O1, bgnn kernels"
ROUTES = {PAPERS_ROUTE: (0, "stock"), STOCK: (1, "stock"), OWN: (1, "bgnn")}


@dataclass(frozen=True)
class Case:
    """A network, the file made of it (`target` None: PyTorch eager), and what runs that."""

    name: str
    arch: str
    settings: dict[str, Any]
    target: str | None
    optimize: int = 1
    kernels: str = "stock"
    candidates: tuple[str, ...] = field(default=(DELEGATE,))


def _case(network: str, route: str) -> Case:
    arch, settings = NETWORKS[network]
    optimize, kernels = ROUTES[route]
    stock = (LITERT,) if network == "DGCNN" else (LCE,)
    # The best stock file also shows what our library alone is worth.
    candidates = (DELEGATE,) if route == OWN else (LCE, DELEGATE) if (network, route) == ("BF-H", STOCK) else stock
    target = "tflite-arm64" if network == "DGCNN" else "lce-arm64"
    return Case(f"{network} {route}", arch, settings, target, optimize, kernels, candidates)


CASES = [
    *(_case(network, route) for route in ROUTES for network in NETWORKS),
    *(Case(f"DGCNN ONNX {route}", *NETWORKS["DGCNN"], "onnx-x86", ROUTES[route][0], candidates=(ONNX,))
      for route in (PAPERS_ROUTE, STOCK)),
    Case("DGCNN eager", *NETWORKS["DGCNN"], None, candidates=(EAGER, COMPILED)),
    Case("BF-H eager", *NETWORKS["BF-H"], None, candidates=(EAGER,)),
]  # fmt: skip


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
            model(torch.from_numpy(clouds(replace(sizes, batch=max(sizes.batch, 2)), seed)))
    return model.eval()


def clouds(sizes: Sizes, seed: int = 0) -> np.ndarray:
    """Random points in the unit ball, f32 `[batch, points, 3]`."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((sizes.batch, sizes.points, 3))
    points *= rng.random((sizes.batch, sizes.points, 1)) ** (1 / 3) / np.linalg.norm(points, axis=2, keepdims=True)
    return points.astype(np.float32)


class Eager:
    """The model's forward pass in PyTorch (and PyG), without gradients, as a candidate that is open."""

    def __init__(self, model: Callable[..., Any], inputs: Sequence[np.ndarray], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model, self._inputs, self._mode = model, [torch.from_numpy(x) for x in inputs], torch.no_grad
        self._output: Any = None

    @classmethod
    def ready(cls, model: Callable[..., Any], inputs: Sequence[np.ndarray], threads: int) -> Eager:
        """What torch.compile has made, having run once. Raises BgnnError with its reason where it fails."""
        opened = cls(model, inputs, threads)
        try:
            opened.run()
        except Exception as error:  # whatever the compiler raises is its answer
            raise BgnnError(f"torch.compile: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
        return opened

    def run(self) -> None:
        with self._mode():
            self._output = self._model(*self._inputs)

    def outputs(self) -> list[np.ndarray]:
        return [self._output.numpy()]

    def arena_bytes(self) -> None:
        return None


def run_eager(name: str, threads: int, sizes: dict[str, int]) -> float:
    """Build a case's PyTorch model and run it once, in ms; for a fresh process. "" for PyTorch without a model."""
    import torch

    points = clouds(Sizes(**sizes))
    torch.from_numpy(points)
    if not name:
        return 0.0
    case = next(case for case in CASES if case.name == name)
    return timed(Eager(build(case, Sizes(**sizes)), [points], threads).run).wall_ms


def _eager_alone(name: str, threads: int, sizes: Sizes) -> Alone:
    given = {"threads": threads, "sizes": asdict(sizes)}
    try:
        first, peak = in_fresh_process(f"{__name__}:run_eager", {"name": name, **given}, threads=threads)
        _, empty = in_fresh_process(f"{__name__}:run_eager", {"name": "", **given}, threads=threads)
    except RuntimeError as error:
        raise BgnnError(str(error).partition("\n")[0]) from error
    return Alone(None, first, None, peak, empty, None)


def write_file(case: Case, model: nn.Module, sizes: Sizes, folder: Path) -> Path:
    """Converts one case's model for its clouds; the file, with its report beside it.

    What is verified is a file of VERIFIED clouds, or of fewer: one of more is the same graph in other shapes, and
    comparing eight clouds takes minutes. The report says which.
    """
    import torch

    from bgnn.converter.api import convert

    assert case.target is not None
    slug = "-".join("".join(c if c.isalnum() else " " for c in case.name.lower()).split())
    path = folder / f"{slug}{'.onnx' if case.target.startswith('onnx') else '.tflite'}"
    given, few = torch.from_numpy(clouds(sizes)), min(VERIFIED, sizes.batch)
    how: dict[str, Any] = {"target": case.target, "optimize": case.optimize, "kernels": case.kernels, "name": slug}
    done = checked = convert(model, (given[:few],), **how)
    if few < sizes.batch:
        done = convert(model, (given,), verify=False, **how)
    assert done.model_bytes is not None
    checks = [{**check.to_json(), "clouds": few} for check in checked.report.checks]
    report = {"output": path.name, **done.report.to_json(), "checks": checks}
    write_files({path: done.model_bytes, path.with_name(f"{path.name}.report.json"): json.dumps(report).encode()})
    return path


VERIFIED = 2
_models: dict[tuple[str, Sizes], nn.Module] = {}
_written: dict[tuple[str, Sizes, Path], Path] = {}


def model_of(case: Case, sizes: Sizes) -> nn.Module:
    """`calibrated`, once for all routes of a network."""
    key = f"{case.arch} {case.settings}", sizes
    if key not in _models:
        _models[key] = calibrated(case, sizes)
    return _models[key]


def file_of(case: Case, sizes: Sizes, folder: Path, say: Callable[[str], None]) -> Path:
    """`write_file`, once for all tables of this process."""
    key = case.name, sizes, folder
    if key not in _written:
        say(f"{case.name}: converting and verifying")
        _written[key] = write_file(case, model_of(case, sizes), sizes, folder)
    return _written[key]


def write_all(some: Sequence[Case], sizes: Sizes, folder: Path, say: Callable[[str], None]) -> None:
    """`file_of` for many at once: each network's in a process of its own, as many as there are processors."""
    networks: dict[str, list[Case]] = {}
    for case in some:
        if case.target is not None and (case.name, sizes, folder) not in _written:
            networks.setdefault(f"{case.arch} {case.settings}", []).append(case)

    def work(own: list[Case]) -> list[str]:
        say(f"converting and verifying {', '.join(case.name for case in own)}")
        given = {"some": [asdict(case) for case in own], "sizes": asdict(sizes), "folder": str(folder)}
        try:
            return in_fresh_process(f"{__name__}:write_these", given)[0]
        except RuntimeError as error:
            raise BgnnError(str(error).rpartition("\n")[2]) from error

    if networks:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for own, paths in zip(networks.values(), pool.map(work, networks.values()), strict=True):
                _written.update({(case.name, sizes, folder): Path(path) for case, path in zip(own, paths, strict=True)})


def write_these(some: list[dict[str, Any]], sizes: dict[str, int], folder: str) -> list[str]:
    """What `write_all` runs in the new process: the files of one network."""
    chosen, given = [Case(**one) for one in some], Sizes(**sizes)
    model = calibrated(chosen[0], given)
    return [str(write_file(case, model, given, Path(folder))) for case in chosen]


def subjects(
    cases: Sequence[Case], sizes: Sizes, npz: Path, threads: int, schedule: Schedule, folder: Path,
    say: Callable[[str], None],
) -> list[Subject]:  # fmt: skip
    """A row for each case and each of its candidates. `npz`: the clouds, for processes that are yet to start.

    Without LCE's interpreter its rows run on LiteRT with our delegate.
    """
    points, rows = clouds(sizes), {row.name: row for row in CANDIDATES}
    try:
        lce_python()
    except BgnnError as error:
        say(f"stock files run on LiteRT with our library only: {error}")
        rows[LCE] = rows[DELEGATE]
    found: list[Subject] = []
    for case in cases:
        about = {"sizes": asdict(sizes), "target": case.target, "optimize": case.optimize, "kernels": case.kernels}
        if case.target is None:
            say(f"{case.name}: building")
            model = model_of(case, sizes)
            alone, opened = partial(_eager_alone, case.name, threads, sizes), partial(Eager, model, [points], threads)
            found.append(Subject(case.name, EAGER, alone, opened, None, about))
            if COMPILED in case.candidates:
                found.append(Subject(case.name, COMPILED, None, partial(_compile, model, points, threads), None, about))
            continue
        path = file_of(case, sizes, folder, say)
        content, how = path.read_bytes(), {**about, **conversion_of(path)}
        for row in {rows[name].name: rows[name] for name in case.candidates}.values():
            found.append(file_subject(case.name, row, path, content, [points], npz, threads, schedule, how))
        if case.kernels == "bgnn":
            found += [
                Subject(case.name, f"{DELEGATE}, {isa}", None,
                        partial(_on, isa, partial(rows[DELEGATE].open, content, threads, [points])), len(content), how)
                for isa in lesser_instruction_sets()
            ]  # fmt: skip
    return found


def _compile(model: nn.Module, points: np.ndarray, threads: int) -> Opened:
    import torch

    return Eager.ready(torch.compile(model), [points], threads)


def lesser_instruction_sets() -> list[str]:
    """Those that this processor runs beside its best, by the kernels' library; none where that is not built here."""
    try:
        from bgnn.runtime_bench.kernels import library

        return [kernels.isa for kernels in library.runnable()][:-1]
    except (BgnnError, OSError):
        return []


def _on(isa: str, make: Callable[[], Opened]) -> Opened:
    """What a delegate that is loaded now uses, for as long as it lives, are these kernels."""
    with patch.dict(os.environ, {"BGNN_ISA": isa}):
        return make()
