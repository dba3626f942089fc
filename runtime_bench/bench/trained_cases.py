"""Trained networks to be measured: INT8 graph networks on Cora and Citeseer, and point clouds in INT8 by --calibrate.

Networks are trained here, with seed 0, and kept in a folder for the next time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bgnn.runtime_bench.bench.candidates import CANDIDATES, LITERT, ONNX
from bgnn.runtime_bench.bench.cases import EAGER, ROUTES, STOCK, Eager
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.records import Record
from bgnn.runtime_bench.bench.running import Subject, figures, file_subject
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_runner import open_file

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch_geometric.data import Data

    from bgnn.converter.calibrate import CalibrationReport

DATASETS, LAYERS = ("cora", "citeseer"), ("gcn", "gat", "sage", "gin")
METHODS = {"fp32": "fp32", "dq8": "dq"}  # the file's name says it
AS_ADVISED = "as the report advises"


def trained(dataset: str, layer: str, how: str, graph: Data, folder: Path, say: Callable[[str], None]) -> Any:
    """The network of `folder`/dataset_layer_how.pt; where there is none it is trained with seed 0 and written there."""
    from bgnn.models.checkpoint import load_checkpoint, save_checkpoint
    from bgnn.models.dq import presets
    from bgnn.models.dq.example import part_of_graph
    from bgnn.models.dq.training import train_citation

    path = folder / f"{dataset}_{layer}_{how}.pt"
    if path.exists():
        return load_checkpoint(path)
    say(f"training {dataset} {layer}, {how}")
    which = dataset, layer, METHODS[how], 8
    model = train_citation(presets.settings(*which), presets.recipe(*which), graph, seed=0).model
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model, example=part_of_graph(graph))
    return model


def calibrated(case: str, model: Any, graph: Data) -> list[Record]:
    """A float network under `--calibrate` on its graph: accuracies, and the logits' relative error.

    With ranges from least to largest, with chosen ones (and, where that mends a large gap, a small module left float),
    and as the report advises, if it warns.
    """
    from bgnn.converter.api import convert
    from bgnn.converter.calibrate import Calibration

    inputs = graph.x, graph.edge_index
    sample = {"x": graph.x, "edge_index": graph.edge_index, "y": graph.y, "test_mask": graph.test_mask}

    def quantised(**how: Any) -> CalibrationReport:
        found = convert(
            model, inputs, target="onnx-int8-x86", stop_after="traced", verify=False,
            calibration=Calibration((sample,), **how),
        ).report.calibration  # fmt: skip
        assert found is not None
        return found

    def record(name: str, found: CalibrationReport, kept: str | None) -> Record:
        shares = {"accuracy": found.quantised_accuracy or 0.0, "error": found.output_error}
        return figures(case, name, shares, keeps_float=kept)

    widest, chosen = quantised(percentile=0.0), quantised()
    rows = [
        figures(case, "float", {"accuracy": chosen.float_accuracy or 0.0}),
        record("least to largest", widest, None),
        record("chosen", chosen, chosen.spared.module if chosen.spared is not None else None),
    ]
    if chosen.relief is not None:
        kept = chosen.relief.module
        rows.append(record(AS_ADVISED, quantised(keep_float=(kept,)), kept))
    return rows


def beside_pytorch(case: str, model: Any, graph: Data, route: str) -> Record:
    """The ONNX file made from a network, beside the network, on the whole graph."""
    import torch

    from bgnn.converter.api import convert

    assert graph.x is not None
    assert graph.edge_index is not None
    inputs = graph.x, graph.edge_index
    done = convert(model, inputs, target="onnx-int8-x86", kernels=ROUTES[route][1], name="network")
    assert done.model_bytes is not None
    results = OnnxModel(done.model_bytes).run(x=graph.x.numpy(), edge_index=graph.edge_index.numpy())
    theirs = torch.from_numpy(next(iter(results.values()))).argmax(1)
    with torch.no_grad():
        mine = model(*inputs).argmax(1)
    check: Any = done.report.checks[-1]
    counts = {
        "accuracy": _accuracy(theirs, graph), "accuracy_pytorch": _accuracy(mine, graph), "codes": check.codes,
        "stepped": check.stepped, "rows": len(mine), "changed_rows": int((mine != theirs).sum()),
        "file_bytes": len(done.model_bytes),
    }  # fmt: skip
    return figures(case, route, counts)


def _accuracy(classes: Any, graph: Any) -> float:
    return float((classes == graph.y)[graph.test_mask].float().mean())


# --------------------------------------------------------------------------------------------------------- point clouds

BATCH, CLASSES, POINTS = 8, 16, 256
EPOCHS, CLOUDS, HELD_OUT = 4, 3200, 800  # of training; clouds in an epoch; clouds that accuracies are of
_SIZES = {"k": 10, "channels": [32, 32, 64, 128], "embedding": 512, "mlp": [128, 64], "dropout": 0.1}
# what runs a file: (float target, INT8 target)
CLOUD_TARGETS = {LITERT: ("tflite-arm64", "tflite-int8-arm64"), ONNX: ("onnx-x86", "onnx-int8-x86")}
CLOUD_NETWORKS = ("DGCNN", "PointNet")


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


def trained_on_clouds(name: str, held_out: tuple[np.ndarray, np.ndarray], folder: Path) -> nn.Module:
    """The network in eval mode: from the folder, or trained now on the procedural shapes and left there."""
    import torch

    from bgnn.models.cascade import train_stage
    from bgnn.models.checkpoint import build_model
    from bgnn.models.clouds import Clouds

    torch.manual_seed(0)
    model = pointnet() if name == "PointNet" else build_model("dgcnn", classes=CLASSES, num_points=POINTS, **_SIZES)
    path = folder / f"{name}_{POINTS}.pt"
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    given = torch.from_numpy(held_out[0]), torch.from_numpy(held_out[1])
    data = Clouds(None, 0, count=CLOUDS, num_points=POINTS)
    train_stage(model, name, data, given, stage=0, epochs=EPOCHS, batch=32, rate=1e-3, decay=1e-5)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()


def cloud_subjects(name: str, runtime: str, threads: int, schedule: Schedule, folder: Path, say: Any) -> list[Subject]:
    """A network's float and INT8 files on a runtime, and PyTorch; each with its accuracy on held-out clouds."""
    import torch

    from bgnn.converter.api import convert
    from bgnn.converter.calibrate import Calibration
    from bgnn.models.shapes import HELD_OUT_SEED, make_clouds

    held_out = make_clouds(HELD_OUT, POINTS, HELD_OUT_SEED)
    say(f"{name}: training, unless it was")
    model = trained_on_clouds(name, held_out, folder)
    own = torch.from_numpy(make_clouds(4 * BATCH, POINTS, 1)[0]).split(BATCH)
    calibration = Calibration(tuple({"points": points} for points in own))
    row = next(row for row in CANDIDATES if row.name == runtime)
    points, found = held_out[0][:BATCH], []
    for kind, target in zip(("fp32", "INT8"), CLOUD_TARGETS[runtime], strict=True):
        say(f"{name} {kind}, {target}: converting")
        given: dict[str, Any] = {"calibration": calibration} if kind == "INT8" else {}
        done = convert(model, (own[0],), target=target, **given)
        assert done.model_bytes is not None
        check = done.report.checks[-1]
        about = {"accuracy": accuracy(_runner(done.model_bytes, runtime), *held_out), "codes": check.codes,
                 "stepped": check.stepped}  # fmt: skip
        case, nowhere = f"{name} {kind} {STOCK}", folder / "in memory"
        found.append(file_subject(case, row, nowhere, done.model_bytes, [points], None, threads, schedule, about))

    def eager(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(batch)))

    about = {"accuracy": accuracy(eager, *held_out)}
    found.append(Subject(f"{name} eager", EAGER, None, lambda: Eager(model, [points], threads), None, about))
    return found


def _runner(file: bytes, runtime: str) -> Callable[[np.ndarray], np.ndarray]:
    if runtime == LITERT:
        opened = open_file(file, 1)
        return lambda points: opened.run(points)[0]
    model = OnnxModel(file, 1)
    return lambda points: next(iter(model.run(**{model.input_names[0]: points}).values()))


def accuracy(run: Callable[[np.ndarray], np.ndarray], clouds: np.ndarray, labels: np.ndarray) -> float:
    """The share of clouds with the right class; as many as fill batches."""
    count = len(clouds) // BATCH * BATCH
    found = np.concatenate([run(clouds[i : i + BATCH]).argmax(1) for i in range(0, count, BATCH)])
    return float((found == labels[:count]).mean())
