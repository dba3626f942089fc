"""The matrix: model family x target x kernels. Every cell converts, runs and agrees, or is refused with its reason.

A cell that converts is run on inputs that were not seen at conversion, at other sizes where the file's sizes are open,
and compared with PyTorch. A cell that is refused states the words that the user must find in the refusal. What a
family is for is checked too: its binary layers are binary, its quantised ones INT8.

The fast tests take one cell of each family; the slow one takes them all and prints the matrix.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_models import GCN as QuantisedGCN
from graph_models import BinarySAGE, GCNLayer, TorchQuantizer, random_graph
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import DynamicEdgeConv, EdgeConv, GCNConv, SAGEConv, knn_graph

from bgnn.converter.api import convert
from bgnn.converter.calibrate import Calibration
from bgnn.converter.errors import BgnnError
from bgnn.converter.pyg_knn import provide
from bgnn.converter.targets import TARGETS
from bgnn.models.checkpoint import build_model
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_runner import run_file

CELLS = [
    ("lce-arm64", "stock"), ("lce-arm64", "bgnn"), ("tflite-arm64", "stock"), ("tflite-int8-arm64", "stock"),
    ("tflite-arm64", "bgnn"), ("tflite-int8-arm64", "bgnn"),
    ("onnx-x86", "stock"), ("onnx-x86", "bgnn"), ("onnx-int8-x86", "stock"), ("onnx-int8-x86", "bgnn"),
    ("onnx-int8-arm64", "stock"), ("onnx-int8-arm64", "bgnn"),
]  # fmt: skip
Inputs = tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of model. `inputs(size, seed)`: sizes are 0 (the example's) or 1 (another, for files of open sizes).

    `kind`: what its layers must become where the target has it. `told`: more arguments of `convert`. `most`: the
    largest graph, for targets of fixed sizes. `refused`: words of the refusal, by "target kernels".
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    kind: str = "float"
    open: bool = False
    told: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    most: tuple[str, ...] = ()
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    calibrated: bool = False


def clouds(size: int, seed: int) -> Inputs:
    return (torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(seed)),)


def graph(size: int, seed: int) -> Inputs:
    return random_graph(*((20, 70), (45, 260))[size], seed)


def features(size: int, seed: int) -> Inputs:
    return (torch.randn(10, 6, generator=torch.Generator().manual_seed(seed)),)


def frames(size: int, seed: int) -> Inputs:
    return (torch.randn((3, 5)[size], 10, 6, generator=torch.Generator().manual_seed(seed)),)


def batched(size: int, seed: int) -> Inputs:
    nodes = (24, 40)[size]
    return torch.randn(nodes, 6, generator=torch.Generator().manual_seed(seed)), torch.arange(nodes) * 2 // nodes


def any_clouds(size: int, seed: int) -> Inputs:
    return (torch.randn((2, 3)[size], (24, 31)[size], 3, generator=torch.Generator().manual_seed(seed)),)


class PointNet(nn.Module):
    """A shared MLP and a maximum over the points; `quantised`: torch.ao's quantisers around each layer."""

    def __init__(self, quantised: bool = False, binary: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 32), nn.Linear(32, 40), nn.Linear(40, 5)
        self.quantised, self.binary = quantised, binary

    def _coded(self, x: Tensor, scale: float) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, 3, -128, 127) if self.quantised else x

    def _dense(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, self._coded(layer.weight, 0.005), layer.bias)

    def forward(self, points: Tensor) -> Tensor:
        x = self._coded(self._dense(self.first, self._coded(points, 0.03)).relu(), 0.02)
        if self.binary:  # the middle layer of signs, as in networks that keep their ends in 8 bits
            x = F.linear(torch.where(x - 0.4 >= 0, 1.0, -1.0), torch.where(self.second.weight >= 0, 1.0, -1.0)) / 8
        else:
            x = self._dense(self.second, x)
        return self._dense(self.last, self._coded(x.relu().amax(1), 0.02))


class OneGraph(nn.Module):
    """A skeleton: the edges are a buffer."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.register_buffer("edges", random_graph(10, 30)[1])
        self.first, self.second = layers or (GCNConv(6, 8), GCNConv(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x, self.edges).relu(), self.edges)


class FloatGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(6, 8), GCNConv(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Dynamic(nn.Module):
    """k-NN within each graph of a batch, in a learned space."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(6, 8), nn.Linear(16, 5)

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        h = self.embed(x)
        apart = (batch[:, None] != batch[None]).float() * 1e6
        index = (torch.cdist(h, h) + apart).topk(4, largest=False)[1]
        here = h[:, None].expand(-1, 4, -1)
        return self.out(torch.cat([here, h[index] - here], -1)).amax(1)


class Searched(nn.Module):
    """PyG's own k-NN layers: a search in the points, then one in a learned space, within each graph of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = EdgeConv(nn.Sequential(nn.Linear(12, 8), nn.ReLU()))
        self.second = DynamicEdgeConv(nn.Linear(16, 5), 4)

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        return self.second(self.first(x, knn_graph(x[:, :3], 4, batch)), batch)


class BinarySearched(nn.Module):
    """A binary DGCNN (binary GNN paper, Eq. 6) as a user of PyG writes it: signs within EdgeConv's network."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(6, 32), nn.BatchNorm1d(64), nn.Linear(40, 5)
        self.weight, self.scale = nn.Parameter(torch.randn(40, 64)), nn.Parameter(torch.rand(40) / 8)
        nn.init.normal_(self.norm.running_mean, 0, 0.3)
        self.conv = EdgeConv(self._message, aggr="max")

    def _message(self, edges: Tensor) -> Tensor:
        return F.linear(torch.sign(self.norm(edges)), torch.sign(self.weight)) * self.scale

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        return self.out(self.conv(self.embed(x), knn_graph(x[:, :3], 4, batch)))


class OpenCloud(nn.Module):
    """A dynamic graph in as many clouds of as many points as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        index = torch.cdist(x, x).topk(4, largest=False)[1]
        found = x[torch.arange(x.shape[0])[:, None, None], index]
        edges = torch.cat([x.unsqueeze(2).expand_as(found), found - x.unsqueeze(2)], -1)
        return self.last(torch.relu(self.first(edges)).amax(2)).amax(1)


def cloud_net(name: str, **settings: object) -> nn.Module:
    return build_model(name, k=5, channels=[32, 32, 40, 32], embedding=64, classes=5, num_points=24, **settings)


NO_CALIBRATION = "--calibrate makes 8-bit layers, which"
MOST = ("nodes=45", "edges=260")
NO_CODES = "its 8-bit codes need --target lce-arm64 or tflite-int8-arm64 or onnx-int8-x86 or onnx-int8-arm64"
OPEN = "has fixed sizes; open ones go with --target onnx-x86"
FLOAT_ON_TFLITE = ("tflite-arm64 stock", "tflite-arm64 bgnn")
FLOAT_ONLY = (*FLOAT_ON_TFLITE, "onnx-x86 stock", "onnx-x86 bgnn")
ON_TFLITE = tuple(f"{target} {kernels}" for target, kernels in CELLS if not TARGETS[target].open)
FAMILIES: dict[str, Family] = {
    "float cloud": Family(lambda: cloud_net("dgcnn"), clouds),
    "binary cloud": Family(lambda: cloud_net("bf2", stage=3, knn="hamming"), clouds, "binary"),
    "INT8 cloud": Family(
        lambda: PointNet(quantised=True), clouds, "INT8", refused=dict.fromkeys(FLOAT_ON_TFLITE, NO_CODES)
    ),
    "calibrated cloud": Family(
        lambda: cloud_net("dgcnn"), clouds, "INT8", refused=dict.fromkeys(FLOAT_ONLY, NO_CALIBRATION), calibrated=True
    ),
    "mixed cloud": Family(
        lambda: PointNet(quantised=True, binary=True),
        clouds,
        "binary, INT8",
        refused=dict.fromkeys(FLOAT_ON_TFLITE, NO_CODES),
    ),
    "float graph": Family(FloatGraph, graph, open=True, most=MOST),
    "binary graph": Family(BinarySAGE, graph, "binary", open=True, most=MOST),
    "INT8 graph": Family(
        lambda: QuantisedGCN(TorchQuantizer),
        graph,
        "INT8",
        open=True,
        most=MOST,
        refused=dict.fromkeys(FLOAT_ON_TFLITE, NO_CODES),
    ),
    "k-NN in a graph": Family(Dynamic, batched),
    "PyG's k-NN graphs": Family(
        Searched, batched, open=True, told={"open_axes": ("x",)}, refused=dict.fromkeys(ON_TFLITE, OPEN)
    ),
    "binary on a k-NN graph": Family(BinarySearched, batched, "binary"),
    "open clouds": Family(
        OpenCloud,
        any_clouds,
        open=True,
        told={"open_axes": ("x=0", "x=1")},
        refused=dict.fromkeys(ON_TFLITE, OPEN),
    ),
    "a graph of fixed sizes": Family(
        FloatGraph,
        lambda size, seed: random_graph(20, 70, seed),
        told={"fixed_sizes": ("x=20", "edge_index=70")},
    ),
    "graph in a buffer": Family(OneGraph, features),
    "INT8 graph in a buffer": Family(
        lambda: OneGraph(GCNLayer(6, 8, TorchQuantizer), GCNLayer(8, 3, TorchQuantizer)),
        features,
        "INT8",
        refused=dict.fromkeys(FLOAT_ON_TFLITE, NO_CODES),
    ),
    "graph in a buffer, open batch": Family(
        OneGraph,
        frames,
        open=True,
        told={"open_axes": ("x",)},
        refused=dict.fromkeys(ON_TFLITE, OPEN),
    ),
}


def fresh(family: Family) -> nn.Module:
    torch.manual_seed(0)
    provide()  # as `bgnn-convert` does before it makes a user's model
    return family.make().eval()


def cell(family: Family, target: str, kernels: str) -> str:
    """Converts, runs on what was not seen, compares; returns what the layers became, or the refusal."""
    model = fresh(family)
    try:
        samples = Calibration(tuple({"points": family.inputs(0, seed)[0]} for seed in range(4)))
        calibration = samples if family.calibrated else None
        told: dict[str, Any] = dict(family.told)
        if family.most and not TARGETS[target].open:
            told["fixed_sizes"] = family.most
        done = convert(model, family.inputs(0, 0), target=target, kernels=kernels, calibration=calibration, **told)
    except BgnnError as refusal:
        return f"refused: {refusal}"
    assert done.model_bytes is not None
    for size in (0, 1) if family.open else (0,):
        inputs = family.inputs(size, 7)
        arrays = [t.numpy() for t in inputs]
        if target.startswith("onnx"):
            file = OnnxModel(done.model_bytes)
            (found,) = file.run(**dict(zip(file.input_names, arrays, strict=True))).values()
        else:
            (found,) = run_file(done.model_bytes, [a.astype(np.int32) if a.dtype == np.int64 else a for a in arrays])
        with torch.no_grad():
            expected = model(*inputs).numpy()
        assert found.shape == expected.shape
        # Decisions of real numbers may turn on rounding: rows that agree are what counts where there are any.
        apart = 0.1 if family.calibrated else 2e-3  # 8 bits of a float network are another network
        near = np.isclose(found, expected, rtol=apart / 2, atol=apart * np.abs(expected).max())
        assert near.all(-1).mean() > (0.95 if family.kind == "float" else 0.7), np.abs(found - expected).max()
    return ", ".join(dict.fromkeys(layer.became for layer in done.report.layers))


def check(name: str, target: str, kernels: str) -> str:
    """One cell held against what the table says of it."""
    family = FAMILIES[name]
    found = cell(family, target, kernels)
    expected = family.refused.get(f"{target} {kernels}")
    if expected is not None:
        assert found.startswith("refused: "), found
        assert re.search(expected, found), found
    else:
        assert not found.startswith("refused: "), found
        for kind in {"binary", "INT8"} & set(family.kind.split(", ")):
            assert (kind in found) == (kind in becomes(family, target)), found
    return found


def becomes(family: Family, target: str) -> str:
    """What the family's layers are in a target's file."""
    has = {"binary": TARGETS[target].bits, "INT8": TARGETS[target].codes}
    return ", ".join(kind for kind in family.kind.split(", ") if has.get(kind)) or "float"


def shown() -> str:
    """The matrix as docs/ops.md has it."""
    lines = [f"| | {' | '.join(TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    for name, family in FAMILIES.items():
        cells = ["refused" if f"{t} stock" in family.refused else becomes(family, t) for t in TARGETS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_documentation_shows_this_matrix() -> None:
    text = (Path(__file__).parents[1] / "docs/ops.md").read_text()
    assert f"\n\n{shown()}\n\n" in text, f"docs/ops.md is to have\n{shown()}"
    for family in FAMILIES.values():
        assert all(f"{t} {k}" in family.refused for t, k in CELLS if f"{t} stock" in family.refused)


DIAGONAL = [(name, *CELLS[-1 - i % 6]) for i, name in enumerate(FAMILIES)]
DIAGONAL += [(name, *CELLS[i // 2 % 3]) for i, name in enumerate(FAMILIES) if i % 2]
DIAGONAL += [(name, "tflite-int8-arm64", "stock") for name in FAMILIES if "cloud" in name or name == "INT8 graph"]


@pytest.mark.parametrize(("name", "target", "kernels"), DIAGONAL)
def test_one_cell_of_each(name: str, target: str, kernels: str) -> None:
    check(name, target, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_cell(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for target, kernels in CELLS:
        found = check(name, target, kernels)
        with capsys.disabled():
            print(f"\n{name:18} {target:14} {kernels:6} {found[:120]}", end="")
