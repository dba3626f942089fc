"""make_int8.py FOLDER: converts INT8 networks, and stores the files, an input, and x86's codes and outputs.

`tests/runtime_bench/toolchain/aarch64/test_int8_file.py` runs the same files on aarch64: every code must be the same.
The codes of all quantisers are further outputs of the files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bgnn.converter.api import Conversion, convert
from bgnn.converter.calibrate import Calibration
from bgnn.converter.emitted_file import io_names
from bgnn.converter.onnx.emit import emit as emit_onnx
from bgnn.converter.onnx.emit import run_file as run_onnx
from bgnn.converter.tflite.emit import emit as emit_tflite
from bgnn.models.checkpoint import build_model
from bgnn.passes.insert_fake_quant import is_edge_tensor
from bgnn.runtime_bench.runtime.tflite_runner import run_file as run_tflite

POINTS, K, BATCH, CLASSES = 100, 8, 2, 10


class Graph(nn.Module):
    """Two GCN layers."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.first, self.second = GCNConv(24, 70), GCNConv(70, CLASSES)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """Scores f32 `[N, CLASSES]` of x f32 `[N, 24]` and edges int64 `[2, E]`."""
        return self.second(self.first(x, edge_index).relu(), edge_index)


def graph(nodes: int, edges: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and edges at random."""
    return torch.randn(nodes, 24), torch.randint(0, nodes, (2, edges))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cloud = build_model("dgcnn", classes=CLASSES, num_points=POINTS, k=K, channels=[32, 32, 64, 64], embedding=128)
    clouds = torch.rand(4, BATCH, POINTS, 3) * 2 - 1
    with torch.no_grad():
        for points in clouds:  # BatchNorm statistics
            cloud.train()(points)
    samples = Calibration(tuple({"points": points} for points in clouds))
    for target in ("tflite-int8-arm64", "onnx-int8-arm64"):
        done = convert(cloud.eval(), (clouds[0],), target=target, calibration=samples, verify=False)
        store(folder / f"int8_dgcnn_{target}.npz", done, clouds[1])
    x, edges = graph(60, 300)
    samples = Calibration(({"x": x, "edge_index": edges},))
    done = convert(Graph().eval(), (x, edges), target="onnx-int8-arm64", calibration=samples, verify=False)
    given = graph(90, 500)
    store(folder / "int8_gcn_onnx-int8-arm64.npz", done, *given)
    most = {"nodes": 120, "edges": 700}  # larger than the graph: runs resize the file
    told = tuple(f"{word}={number}" for word, number in most.items())
    target = "tflite-int8-arm64"
    done = convert(
        Graph().eval(), (x, edges), target=target, kernels="bgnn", fixed_sizes=told, calibration=samples, verify=False
    )  # fmt: skip
    store(folder / "int8_gcn_tflite-int8-arm64.npz", done, *given, kernels="bgnn", most=most)


def store(path: Path, done: Conversion, *inputs: torch.Tensor, **options: Any) -> None:
    """Writes the file with its codes as outputs, an input, and what x86 gives. `options`: the emitter's."""
    gm = done.graph
    codes = [
        n for n in gm.graph.nodes if n.op == "call_function" and getattr(n.meta["val"], "dtype", None) == torch.uint8
    ]
    probes = {f"codes/{n.name}": n for n in codes if not is_edge_tensor(n)}
    names, outputs = io_names(gm)
    emit, run = (emit_onnx, run_onnx) if "onnx" in path.stem else (emit_tflite, run_tflite)
    file = emit(gm, name="int8", input_names=names, output_names=outputs, metadata={}, probes=probes, **options)
    arrays = {f"input_{i}": value.numpy() for i, value in enumerate(inputs)}
    found = {f"output_{i}": value for i, value in enumerate(run(file, list(arrays.values())))}
    np.savez(path, model=np.frombuffer(file, np.uint8), **arrays, **found)  # type: ignore[arg-type]
    print(f"{path.stem}: {len(file)} bytes, {sum(v.size for v in found.values() if v.dtype.itemsize == 1):,} codes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
