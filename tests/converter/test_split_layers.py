"""Networks cut at their aggregations: the chain equals the whole file; what cannot be cut is refused by its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from graph_models import GCN, BinarySAGE, LoopedGCN, awkward_graphs, random_graph, staged
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import DirGNNConv, GATConv, GCNConv, GINEConv, SAGEConv, global_mean_pool

from bgnn.converter import split_layers, split_layers_files, stages
from bgnn.converter.api import convert
from bgnn.converter.calibrate import Calibration
from bgnn.converter.cli import main
from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.split_layers_hubs import hubs_of
from bgnn.runtime_bench.graph import manifest
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

GRAPH = random_graph(40, 160)
KINDS = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(2))
NUMBERS = torch.rand(160, 4, generator=torch.Generator().manual_seed(3))


class Plain(nn.Module):
    """Two layers, a ReLU between."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x, edge_index)), edge_index)


class OnEdges(Plain):
    """Both layers read values of edges."""

    def forward(self, x: Tensor, edge_index: Tensor, on_edges: Tensor) -> Tensor:  # type: ignore[override]
        return self.second(F.relu(self.first(x, edge_index, on_edges)), edge_index, on_edges)


class Kinds(nn.Module):
    """Two inputs with a row for each node, one of them whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds, self.conv = nn.Embedding(5, 2), SAGEConv(8, 3, aggr="max")

    def forward(self, x: Tensor, kind: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(torch.cat([x, self.kinds(kind)], 1), edge_index)


class Pooled(nn.Module):
    """A row for each graph of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense = SAGEConv(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.dense(global_mean_pool(self.conv(x, edge_index).relu(), batch))


class Centred(Plain):
    """A mean of all nodes between two layers."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x, edge_index)
        return self.second((h - h.mean(0, keepdim=True)).relu(), edge_index)


def made(model: nn.Module, inputs: tuple[Tensor, ...], target: str, kernels: str) -> tuple[
    split_layers.Chain, list[str], list[split_layers_files.Check]
]:  # fmt: skip
    """The chain; its files; the checks on the example, and on graphs that are not."""
    torch.manual_seed(0)
    plan = stages.Plan(target, 1, kernels)
    before = staged(model, inputs, "integer", target, kernels=kernels)
    chain = split_layers.split(before)
    layers = split_layers_files.write(chain, plan, "net", {})
    graphs = [("", inputs)]
    if len(inputs) == 2:
        graphs += [(name, other) for name, other in awkward_graphs().items() if name in ("hub", "loops", "no edges")]
    checks = split_layers_files.check(layers, before, chain, plan, graphs)
    return chain, [stage.file for stage in layers.manifest.stages], checks


def _quantised_gat() -> nn.Module:
    from bgnn.models.dq.networks import build

    model = build({"conv": "gat", "features": 6, "hidden": 4, "classes": 3, "heads": 2, "signed_input": True})
    with torch.no_grad():
        model.train()(*GRAPH)
    return model.eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], str, list[str]]] = {
    # Degrees alone, then a file for each layer: deg^-1/2 of the sources flows like a feature.
    "Degree-Quant GCN": (GCN, GRAPH, "onnx-int8-x86", ["nodes", "edges", "edges", "edges"]),
    "loops with weights": (LoopedGCN, GRAPH, "onnx-int8-x86", []),
    "binary SAGE": (BinarySAGE, random_graph(40, 160), "onnx-int8-x86", ["edges", "edges"]),
    "SAGE": (lambda: Plain(SAGEConv(6, 8), SAGEConv(8, 3)), GRAPH, "onnx-x86", ["edges", "edges"]),
    "GAT": (lambda: Plain(GATConv(6, 4, heads=2), GATConv(8, 3)), GRAPH, "onnx-x86", ["nodes", "edges", "edges"]),
    "Degree-Quant GAT": (_quantised_gat, GRAPH, "onnx-int8-x86", []),
    "edge values": (
        lambda: OnEdges(GINEConv(nn.Linear(6, 8), edge_dim=4), GINEConv(nn.Linear(8, 3), edge_dim=4)),
        (*GRAPH, NUMBERS),
        "onnx-x86",
        [],
    ),
    "weights": (lambda: OnEdges(GCNConv(6, 8), GCNConv(8, 3)), (*GRAPH, NUMBERS[:, 0]), "onnx-x86", []),
    "two inputs of nodes": (Kinds, (GRAPH[0], KINDS, GRAPH[1]), "onnx-x86", []),
    "both directions": (
        lambda: Plain(DirGNNConv(SAGEConv(6, 8)), DirGNNConv(SAGEConv(8, 3))), GRAPH, "onnx-x86", ["edges", "edges"],
    ),
    "pooled": (Pooled, (*GRAPH, torch.arange(40) // 20), "onnx-x86", []),
    "centred": (
        lambda: Centred(SAGEConv(6, 8), SAGEConv(8, 3)), GRAPH, "onnx-x86", ["edges", "whole", "nodes", "edges"],
    ),
}  # fmt: skip


STOCK = ("Degree-Quant GCN", "binary SAGE", "GAT", "Degree-Quant GAT", "pooled")


@pytest.mark.parametrize(
    ("name", "kernels"), [*((name, "bgnn") for name in NETWORKS), *((name, "stock") for name in STOCK)]
)
def test_the_chain_equals_the_whole_file(name: str, kernels: str) -> None:
    """In one part and in three, on the example and on graphs with hubs, loops, double edges and lonely nodes."""
    network, inputs, target, kinds = NETWORKS[name]
    torch.manual_seed(0)
    chain, files, checks = made(network(), inputs, target, kernels)
    if "GAT" in name:  # a softmax takes three rounds
        assert [len(hubs.rounds) for hubs in map(hubs_of, chain.stages) if hubs is not None] == [3, 3]
    assert not kinds or [file.split("-")[1].removesuffix(".onnx") for file in files] == kinds
    assert len(checks) == (4 if len(inputs) == 2 else 1)
    assert all(check.column_error < 1e-5 for check in checks)


def test_every_file_counts_the_sums_that_the_whole_file_counts() -> None:
    """Those of hubs too, under the same names, beside the share that the example had."""
    torch.manual_seed(0)
    sample = dict(zip(("x", "edge_index"), GRAPH, strict=True))
    done = convert(
        Plain(GCNConv(6, 8), SAGEConv(8, 3)).eval(), GRAPH, target="onnx-int8-x86", split_layers=True,
        calibration=Calibration((sample,)),
    )  # fmt: skip
    sums = {
        file: {one["name"]: one["seen"] for one in OnnxModel(data).sums}
        for file, data in done.layers.items()
        if file.endswith(".onnx")
    }
    whole = {one["name"]: one["seen"] for one in OnnxModel(done.model_bytes or b"").sums}
    assert {"aggregation 1", "aggregation 2"} <= set(whole)
    assert {name: seen for file in sums if "-edges" in file for name, seen in sums[file].items()} == whole
    assert {name: seen for file in sums if "-finish" in file for name, seen in sums[file].items()} == whole


class Signs(nn.Module):
    """Sums of the sources' signs."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.weight = nn.Linear(6, 40), nn.Parameter(torch.randn(5, 40))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        signs = torch.sign(self.dense(x))
        sums = torch.zeros_like(signs).index_add(0, edge_index[1], signs[edge_index[0]])
        return F.linear(torch.sign(sums + 0.5), torch.sign(self.weight))


@pytest.mark.parametrize("kernels", ["stock", "bgnn"])
def test_signs_flow_as_bits_and_parts_may_have_no_edges(kernels: str) -> None:
    torch.manual_seed(0)
    x, edges = GRAPH
    plan = stages.Plan("onnx-int8-x86", 1, kernels)
    before = staged(Signs(), GRAPH, "integer", kernels=kernels)
    chain = split_layers.split(before)
    (crossing,) = (one for one in chain.stages[1].given if one.rows == "sources")
    assert (crossing.node.meta["val"].dtype, crossing.node.meta["val"].shape[1]) == (torch.int32, 2)  # 40 of 64 bits
    layers = split_layers_files.write(chain, plan, "net", {})
    split_layers_files.check(layers, before, chain, plan, [("", GRAPH), ("no edges to the last", (x, edges // 2))])


class Refused(nn.Module):
    """Something that cannot be cut, after a layer that can."""

    def __init__(self, then: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.then = SAGEConv(6, 4), then

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.then(self.conv(x, edge_index), edge_index)


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "scores of edges": (lambda h, e: (h[e[0]] * h[e[1]]).sum(-1), "gives a row for each edge"),
    "a softmax over nodes": (lambda h, e: h.softmax(0), r"Tensor.softmax \(at .*test_split_layers.py:\d+.* mixes rows"),
    "places": (lambda h, e: h * torch.arange(h.size(0))[:, None], "from their places"),
    "every pair of nodes": (lambda h, e: h @ h.t() @ h, "without --split-layers"),
    "a running sum": (lambda h, e: h.cumsum(0), "mixes rows"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_cut_is_named(name: str) -> None:
    then, said = REFUSED[name]
    before = staged(Refused(then), GRAPH, "integer", "onnx-x86")
    with pytest.raises(ConversionError, match=said):
        split_layers.split(before)


def test_targets_of_fixed_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="--split-layers cuts into ONNX files"):
        convert(GCN().eval(), GRAPH, target="lce-arm64", split_layers=True)


@pytest.mark.parametrize("more", [["--target", "lce-arm64"], ["--target", "onnx-x86", "--stop-after", "traced"]])
def test_a_command_that_cannot_cut_is_wrong(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.pt", "--split-layers", "layers", *more]) == 2
    assert "--split-layers" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_the_folder(tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "models" / "trained" / "cora_gcn_dq8.pt"
    command = [str(model), "--target", "onnx-int8-x86", "-o", str(tmp_path / "gcn.onnx")]
    assert main([*command, "--split-layers", str(tmp_path / "layers")]) == 0
    found = manifest.read(tmp_path / "layers")
    assert [stage.kind for stage in found.stages] == ["nodes", "edges", "edges", "edges"]
    assert sorted(found.files()) == sorted(path.name for path in (tmp_path / "layers").glob("*.onnx"))
    assert found.values[found.stages[0].results[0]].dtype == "uint8"  # what flows from the first layer is codes
