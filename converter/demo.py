"""`make demo`: the main job end to end. Converts the papers' models, runs the files, and shows what is true of them.

Three parts: the four models at the paper's sizes with random weights (sizes and structure do not depend on
training); the trained BF2 that ships with the package, whose accuracy on 1000 clouds is taken from PyTorch
and from the emitted file; and the GCN trained on Cora with Degree-Quant that ships with it, as integer ONNX, run on a
graph that it was not converted with.
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
from bgnn.converter.load import load
from bgnn.models.checkpoint import build_model, load_checkpoint
from bgnn.models.shapes import HELD_OUT_SEED, SHAPES, make_clouds
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_runner import open_file

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


def quantised_network(console: Console, folder: Path) -> dict[str, int]:
    """Converts the trained INT8 GCN; returns how many nodes of an unseen graph each file classifies as PyTorch does."""
    loaded = load(Path(str(files("bgnn.models") / "trained" / "cora_gcn_dq8.pt")))
    example = loaded.example_inputs
    console.print(
        f"converting the GCN trained on Cora with Degree-Quant, 8 bits, on {len(example[0])} papers of it ..."
    )
    unseen = citations(1500, 9000, words=example[0].shape[1], seed=1)
    assert isinstance(loaded.model, torch.nn.Module)
    with torch.no_grad():
        expected = loaded.model(*unseen).argmax(1).numpy()
    table = Table(title="the trained INT8 GCN as ONNX, on a graph of another size", title_justify="left")
    for heading in ("kernels", "file, bytes", "codes compared", "one beside", "same class as PyTorch"):
        table.add_column(heading, justify="left" if heading == "kernels" else "right")
    same = {}
    for kernels in ("stock", "bgnn"):
        path = folder / f"cora_gcn_dq8_{kernels}.onnx"
        report = convert(
            loaded.model, example, target="onnx-int8-x86", kernels=kernels, output=path, name=loaded.name
        ).report  # fmt: skip
        outputs = OnnxModel(path).run(x=unseen[0].numpy(), edge_index=unseen[1].numpy())
        same[kernels] = int((next(iter(outputs.values())).argmax(1) == expected).sum())
        check = report.checks[-1]
        table.add_row(
            kernels, f"{report.bytes:,}", f"{check.codes:,}", f"{check.stepped:,}",
            f"{same[kernels]:,} of {len(expected):,} nodes",
        )  # fmt: skip
    console.print(table)
    return same


def citations(nodes: int, edges: int, words: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A graph shaped like Cora: bags of about 18 words, each row summing to 1, f32 `[nodes, words]`; few hubs."""
    rng = np.random.default_rng(seed)
    bags = (rng.random((nodes, words)) < 18 / words).astype(np.float32)
    bags /= np.maximum(bags.sum(1, keepdims=True), 1)
    targets = (nodes * rng.random(edges) ** 3).astype(np.int64)
    return torch.from_numpy(bags), torch.from_numpy(np.stack([rng.integers(0, nodes, edges), targets]))


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
    quantised_network(console, folder)
    console.print(f"the files are in {folder}/")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
