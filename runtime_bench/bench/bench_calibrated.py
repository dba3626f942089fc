"""`make bench-calibrated`: point-cloud networks in INT8 by --calibrate, beside the float files.

DGCNN (k-NN in every layer) and a PointNet are trained on the procedural shapes, calibrated on some of the clouds and
converted: accuracy on held-out clouds, size, and time, all files of a runtime interleaved in one run. `--models DIR`
keeps the trained networks for the next time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bgnn.runtime_bench.bench.measure import measure, print_table
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_runner import open_file

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH, CLASSES = 8, 16
SIZES = {"k": 10, "channels": [32, 32, 64, 128], "embedding": 512, "mlp": [128, 64], "dropout": 0.1}
# runtime: (float target, INT8 target)
RUNTIMES = {"LiteRT": ("tflite-arm64", "tflite-int8-arm64"), "ONNX Runtime": ("onnx-x86", "onnx-int8-x86")}


def pointnet() -> nn.Module:
    """A shared MLP, the maximum over the points, a classifier."""
    from torch import nn

    def block(layer: type[nn.Module], inputs: int, outputs: int, *more: int) -> list[nn.Module]:
        return [layer(inputs, outputs, *more), nn.BatchNorm1d(outputs), nn.ReLU()]

    class PointNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [(3, 64), (64, 64), (64, 128), (128, 1024)]
            self.points = nn.Sequential(*(part for pair in widths for part in block(nn.Conv1d, *pair, 1)))
            head = [*block(nn.Linear, 1024, 256), *block(nn.Linear, 256, 128), nn.Linear(128, CLASSES)]
            self.head = nn.Sequential(*head)

        def forward(self, points: Tensor) -> Tensor:
            """Scores f32 `[B, 16]` of points f32 `[B, N, 3]`."""
            return self.head(self.points(points.transpose(1, 2)).amax(2))

    return PointNet()


def trained(name: str, options: argparse.Namespace, held_out: tuple[Tensor, Tensor]) -> nn.Module:
    """The network in eval mode: from `options.models`, or trained now and left there."""
    import torch

    from bgnn.models.cascade import train_stage
    from bgnn.models.checkpoint import build_model
    from bgnn.models.clouds import Clouds

    torch.manual_seed(0)
    sizes = {"classes": CLASSES, "num_points": options.points, **SIZES}
    model = pointnet() if name == "PointNet" else build_model("dgcnn", **sizes)
    path = options.models and options.models / f"{name}_{options.points}.pt"
    if path and path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    data = Clouds(None, 0, count=options.clouds, num_points=options.points)
    train_stage(model, name, data, held_out, stage=0, epochs=options.epochs, batch=32, rate=1e-3, decay=1e-5)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    return model.eval()


def runner(file: bytes, runtime: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Runs the file on one batch of clouds."""
    if runtime == "LiteRT":
        opened = open_file(file, threads)
        return lambda points: opened.run(points)[0]
    model = OnnxModel(file, threads)
    return lambda points: next(iter(model.run(**{model.input_names[0]: points}).values()))


def bench(name: str, options: argparse.Namespace, clouds: np.ndarray, labels: np.ndarray) -> None:
    """Prints a table for each runtime."""
    import torch

    from bgnn.converter.api import convert
    from bgnn.converter.calibrate import Calibration
    from bgnn.models.shapes import make_clouds

    model = trained(name, options, (torch.from_numpy(clouds), torch.from_numpy(labels)))
    own = torch.from_numpy(make_clouds(4 * BATCH, options.points, 1)[0]).split(BATCH)
    calibration = Calibration(tuple({"points": points} for points in own))

    def eager(points: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(points)))

    for runtime, targets in RUNTIMES.items():
        runs: dict[str, Callable[[np.ndarray], np.ndarray]] = {"fp32, PyTorch": eager}
        sizes: dict[str, str] = {}
        codes: dict[str, str] = {}
        for kind, target in zip(("fp32", "INT8"), targets, strict=True):
            what = f"{kind}, {target}"
            given = {"calibration": calibration} if kind == "INT8" else {}
            done = convert(model, (own[0],), target=target, **given)
            assert done.model_bytes is not None
            sizes[what] = f"{len(done.model_bytes):,}"
            check = done.report.checks[-1]
            codes[what] = f"{check.codes:,}, {check.stepped:,} at a tie" if check.codes else ""
            runs[what] = runner(done.model_bytes, runtime, options.threads)
        hits = {what: f"{accuracy(run, clouds, labels):.3f}" for what, run in runs.items()}
        candidates = {what: partial(run, clouds[:BATCH]) for what, run in runs.items()}
        result = measure(candidates, base=f"fp32, {targets[0]}", rounds=options.rounds, threads=options.threads)
        title = f"{name}, batch {BATCH}, {options.points} points, {runtime}"
        print_table(result, {"accuracy": hits, "bytes": sizes, "codes compared": codes}, title)


def accuracy(run: Callable[[np.ndarray], np.ndarray], clouds: np.ndarray, labels: np.ndarray) -> float:
    """The share of clouds with the right class; as many as fill batches."""
    count = len(clouds) // BATCH * BATCH
    found = np.concatenate([run(clouds[i : i + BATCH]).argmax(1) for i in range(0, count, BATCH)])
    return float((found == labels[:count]).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    import torch

    from bgnn.models.shapes import HELD_OUT_SEED, make_clouds

    add = (parser := argparse.ArgumentParser(description="INT8 point-cloud networks beside float ones")).add_argument
    add("--networks", nargs="+", choices=("DGCNN", "PointNet"), default=["DGCNN", "PointNet"])
    add("--points", type=int, default=256)
    add("--clouds", type=int, default=3200, help="in an epoch")
    add("--epochs", type=int, default=4)
    add("--held-out", type=int, default=800)
    add("--rounds", type=int, default=9)
    add("--threads", type=int, default=1)
    add("--models", type=Path, help="a folder of networks trained before")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clouds, labels = make_clouds(options.held_out, options.points, HELD_OUT_SEED)
    for name in options.networks:
        bench(name, options, clouds, labels)


if __name__ == "__main__":
    main()
