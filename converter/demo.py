"""`make demo`: the main job end to end. Converts the papers' models, runs the files, and shows what is true of them.

Two parts: the four models at the paper's sizes with random weights (sizes and structure do not depend on
training), and the trained BF2 that ships with the package, whose accuracy on 1000 clouds is taken from PyTorch
and from the emitted file.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bgnn.converter.api import convert
from bgnn.models.checkpoint import build_model, load_checkpoint
from bgnn.models.shapes import HELD_OUT_SEED, SHAPES, make_clouds
from bgnn.runtime_bench.interpreters import open_file

PAPER_MODELS = [("dgcnn", "tflite-arm64"), ("rf", "lce-arm64"), ("bf1", "lce-arm64"), ("bf2", "lce-arm64")]
CLOUDS, BATCH = 1000, 50


def paper_models(console: Console, folder: Path) -> None:
    """Converts the four models at the paper's sizes (1024 points, k = 20, 40 classes), batch 1."""
    table = Table(title="the paper's models, 1024 points, k=20, 40 classes, batch 1", title_justify="left")
    for heading in ("model", "target", "file, bytes", "binary MACs", "signs compared", "turned", "output difference"):
        table.add_column(heading, justify="left" if heading in ("model", "target") else "right")
    points, _ = make_clouds(1, 1024, seed=0)
    for name, target in PAPER_MODELS:
        console.print(f"converting {name} for {target} ...")
        torch.manual_seed(0)
        model = build_model(name).eval()
        result = convert(model, (torch.from_numpy(points),), target=target, output=folder / f"{name}.tflite", name=name)
        report, check = result.report, result.report.checks[-1]
        share = report.macs["binary"] / max(sum(report.macs.values()), 1)
        table.add_row(
            name, target, f"{report.bytes:,}", f"{100 * share:.1f}%", f"{check.signs:,}",
            str(check.turned_signs), f"{check.output_error:.1e}",
        )  # fmt: skip
    console.print(table)


def trained_model(console: Console, folder: Path) -> dict[str, float]:
    """Converts the trained BF2; returns the accuracy of PyTorch and of each file on the same clouds."""
    checkpoint = Path(str(files("bgnn.models") / "trained" / "bf2_shapes.pt"))
    model = load_checkpoint(checkpoint)
    size = int(model.config["num_points"])
    points, labels = make_clouds(CLOUDS, size, seed=HELD_OUT_SEED)
    console.print(f"converting the trained BF2 ({checkpoint.stat().st_size:,} bytes, {size} points) ...")
    outputs = {}
    for kernels in ("stock", "bgnn"):
        outputs[f"emitted file, {kernels} kernels"] = folder / f"bf2_shapes_{kernels}.tflite"
        result = convert(
            model, (torch.from_numpy(points[:BATCH]),), target="lce-arm64", kernels=kernels,
            output=folder / f"bf2_shapes_{kernels}.tflite", name="bf2_shapes",
        )  # fmt: skip
        result.report.print(console)
    console.print(f"running PyTorch and the files on {CLOUDS} clouds of {len(SHAPES)} shapes ...")
    answers = {"PyTorch": _answers(points, lambda batch: model(torch.from_numpy(batch)).numpy())}
    for name, path in outputs.items():
        answers[name] = _answers(points, open_file(path.read_bytes()).run)
    table = Table(title=f"the trained BF2 on {CLOUDS} held-out clouds", title_justify="left")
    for heading in ("", "accuracy", "same class as PyTorch", "bytes"):
        table.add_column(heading, justify="right" if heading else "left")
    accuracy = {name: float((classes == labels).mean()) for name, classes in answers.items()}
    for name, classes in answers.items():
        same = int((classes == answers["PyTorch"]).sum())
        count = outputs[name].stat().st_size if name in outputs else _float_bytes(model)
        table.add_row(name, f"{accuracy[name]:.3f}", f"{same} of {CLOUDS}", f"{count:,}")
    console.print(table)
    return accuracy


def _answers(points: np.ndarray, run: Callable[[np.ndarray], Any]) -> np.ndarray:
    """The class of each cloud, a batch at a time."""
    with torch.no_grad():
        batches = [_logits(run(points[start : start + BATCH])).argmax(1) for start in range(0, CLOUDS, BATCH)]
    return np.concatenate(batches)


def _logits(result: Any) -> np.ndarray:
    """A model's output as an array; a file gives a list of outputs."""
    return np.asarray(result[0] if isinstance(result, list) else result)


def _float_bytes(model: torch.nn.Module) -> int:
    return sum(4 * t.numel() for t in model.state_dict().values() if t.is_floating_point())


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry."""
    parser = argparse.ArgumentParser(prog="python -m bgnn.converter.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the files (default: out/demo)")
    folder = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    console = Console(width=None if sys.stdout.isatty() else 130)
    paper_models(console, folder)
    trained_model(console, folder)
    console.print(f"the files are in {folder}/")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
