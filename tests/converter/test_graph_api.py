"""Graph networks end to end: converted, run on ONNX Runtime, verified; refused in one line where they cannot be."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graph_models import GCN, LoopedGCN, OfficialQuantizer, TorchQuantizer, awkward_graphs, random_graph
from onnx_graphs import FORMS, Form
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv, TransformerConv, global_mean_pool
from torch_geometric.utils import scatter, softmax

from bgnn.converter.api import convert
from bgnn.converter.calibrate import Calibration
from bgnn.converter.errors import BgnnError, ConversionError, UsageError
from bgnn.models.dq.networks import build
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

CODE = 0.027  # what the outputs of GCN are rounded to


def ran(data: bytes, *inputs: Tensor) -> np.ndarray:
    model = OnnxModel(data)
    return next(iter(model.run(**dict(zip(model.input_names, (t.numpy() for t in inputs), strict=True))).values()))


QUANTISED = {"official": GCN(OfficialQuantizer), "torch": GCN(TorchQuantizer), "looped": LoopedGCN()}


@pytest.mark.parametrize(
    ("name", "form"),
    [  # one in each form, the others in turn
        pytest.param(name, *form.values, id=f"{name}-{form.id}", marks=form.marks)
        for name, form in [*(("official", form) for form in FORMS), ("torch", FORMS[0]), ("looped", FORMS[1])]
    ],
)
def test_a_quantised_gcn_and_graphs_it_was_not_converted_with(name: str, form: Form) -> None:
    model: Any = QUANTISED[name].eval()
    graph = random_graph(40, 160)
    done = convert(model, graph, target="onnx-int8-x86", optimize=form[0], kernels=form[1])
    check: Any = done.report.checks[-1]
    assert check.what == "emitted file"
    assert check.codes > 4_000
    assert check.stepped <= 20
    assert done.model_bytes is not None
    for name, other in awkward_graphs().items():
        with torch.no_grad():
            expected = model(*other).numpy()
        apart = np.abs(ran(done.model_bytes, *other) - expected)
        assert apart.max() <= 2.01 * CODE, name  # a code turned by rounding shows once more after the next layer
        assert (apart > CODE / 2).mean() <= 0.02, name


def test_a_layer_that_keeps_the_first_graph_it_meets_is_traced_without_it() -> None:
    """PyG's `cached=True`: what it holds of another graph does not come into the file, and stays in the model."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GCNConv(6, 3, cached=True)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index)

    model, graph = Cached().eval(), random_graph(40, 160)
    expected = model(*graph).detach().numpy()
    kept = model.conv._cached_edge_index
    done = convert(model, random_graph(12, 30), target="onnx-x86")
    assert done.model_bytes is not None
    np.testing.assert_allclose(ran(done.model_bytes, *graph), expected, atol=1e-5)
    assert model.conv._cached_edge_index is kept
    assert model.conv.cached


class Molecules(nn.Module):
    """Kinds of atoms and bonds, as numbers: an embedding of the one, a one-hot of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.atoms, self.out = nn.Embedding(9, 6), nn.Linear(6 + 4, 2)

    def forward(self, kinds: Tensor, edge_index: Tensor, bonds: Tensor) -> Tensor:
        source, target = edge_index
        messages = torch.cat([self.atoms(kinds)[source], nn.functional.one_hot(bonds, 4).float()], 1)
        return self.out(torch.zeros(kinds.shape[0], 10).index_add(0, target, messages))


@pytest.mark.parametrize("kernels", ["stock", "bgnn"])
def test_features_may_be_numbers_of_classes(kernels: str) -> None:
    def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.arange(nodes) % 9, torch.arange(2 * edges).reshape(2, -1) * 7 % nodes, torch.arange(edges) % 4

    model = Molecules().eval()
    done = convert(model, graph(20, 50), target="onnx-x86", kernels=kernels)
    assert done.model_bytes is not None
    for sizes in ((20, 50), (7, 3), (50, 300)):
        expected = model(*graph(*sizes)).detach().numpy()
        np.testing.assert_allclose(ran(done.model_bytes, *graph(*sizes)), expected, atol=1e-5)
    with pytest.raises(UsageError, match=r"edge_index holds 2[0-2], but there are 20 nodes"):
        convert(model, (graph(20, 50)[0], graph(23, 50)[1], graph(20, 50)[2]), target="onnx-x86")


def test_the_file_says_what_was_verified_and_its_largest_degree() -> None:
    done = convert(GCN(), random_graph(40, 160), target="onnx-int8-x86")
    assert done.model_bytes is not None
    properties = {p.key: p.value for p in onnx.load_from_string(done.model_bytes).metadata_props}
    assert "codes compared" in properties["verification"]
    assert int(properties["bgnn.max_degree"]) >= 1 << 20
    kinds = done.report.macs
    assert kinds["INT8"] > 0
    assert kinds["float"] == 0
    assert {layer.became for layer in done.report.layers} == {"INT8"}
    assert done.report.operators["QLinearConv"] == 4  # two dense layers, and a bias behind each aggregation


class Convolution(nn.Module):
    """One of PyG's layers and a ReLU; `batch` pools over graphs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        x = self.layer(x, edge_index).relu()
        return x if batch is None else global_mean_pool(x, batch)


FLOAT = {
    "gcn": lambda: GCNConv(6, 4),
    "gat": lambda: GATConv(6, 4, heads=2),
    "gin": lambda: GINConv(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))),
    "sage": lambda: SAGEConv(6, 4),
    "sage max": lambda: SAGEConv(6, 4, aggr="max"),
}


@pytest.mark.parametrize("optimize", [0, 1])
@pytest.mark.parametrize("name", FLOAT)
def test_float_layers_of_pyg(name: str, optimize: int) -> None:
    torch.manual_seed(0)
    model = Convolution(FLOAT[name]()).eval()
    done = convert(model, random_graph(20, 70), target="onnx-x86", optimize=optimize)
    assert done.model_bytes is not None
    for other, graph in awkward_graphs().items():
        with torch.no_grad():
            expected = model(*graph).numpy()
        assert np.allclose(ran(done.model_bytes, *graph), expected, atol=2e-5), other


def test_a_batch_of_graphs() -> None:
    model = Convolution(GCNConv(6, 4)).eval()
    x, edges = random_graph(20, 70)
    done = convert(model, (x, edges, torch.arange(20) // 7), target="onnx-x86")
    assert done.model_bytes is not None
    x, edges = random_graph(50, 200, 3)
    batch = torch.arange(50) // 11
    with torch.no_grad():
        assert np.allclose(ran(done.model_bytes, x, edges, batch), model(x, edges, batch).numpy(), atol=2e-5)


def degree_quant(conv: str, **settings: Any) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = build({"conv": conv, "features": 6, "classes": 3, "hidden": 8, "heads": 2, **settings}).train()
    graph = random_graph(60, 300)
    with torch.no_grad():
        for _ in range(2):
            model(graph[0].abs(), graph[1])
    return model.eval(), (graph[0].abs(), graph[1])


@pytest.mark.parametrize(("conv", "bits"), [("gcn", 8), ("gcn", 4), ("gat", 8), ("gin", 4), ("sage", 8)])
def test_degree_quant(conv: str, bits: int) -> None:
    model, graph = degree_quant(conv, bits=bits)
    done = convert(model, graph, target="onnx-int8-x86")
    check: Any = done.report.checks[-1]
    # With 4 bits the ends of ranges are few codes apart, and sums of codes meet ties between others' codes often.
    assert check.stepped <= (10 if bits == 8 else check.codes // 30)
    assert check.changed_rows == 0 or bits == 4
    assert done.report.macs["float"] == 0


def test_a_quantiser_that_never_saw_data() -> None:
    model = build({"conv": "gcn", "features": 6, "classes": 3}).eval()
    with pytest.raises(ConversionError, match="never saw data"):
        convert(model, random_graph(20, 70), target="onnx-int8-x86")


def replaced(position: int, value: Tensor) -> tuple[Tensor, Tensor]:
    graph = list(random_graph(20, 70))
    graph[position] = value
    return graph[0], graph[1]


X, EDGES = random_graph(20, 70)
BAD = {
    "float edges": (replaced(1, EDGES.float()), "fails eagerly, in PyTorch itself .*float32"),
    "turned edges": (replaced(1, EDGES.t().contiguous()), r"fails eagerly, in PyTorch itself .*\[70, 2\]"),
    "index out of range": (replaced(1, EDGES + 15), "indices go from 0 to 19"),
    "negative index": (replaced(1, EDGES - 1), "holds -1: indices are numbers of rows, from 0"),
    "NaN": (replaced(0, X.clone().fill_(float("nan"))), "NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_example_graphs(name: str) -> None:
    inputs, message = BAD[name]
    with pytest.raises(BgnnError, match=message) as caught:
        convert(GCN().eval(), inputs, target="onnx-int8-x86")
    assert "\n" not in str(caught.value)


def test_another_width_of_features() -> None:
    with pytest.raises(ConversionError, match=r"forward fails eagerly.*mat1 and mat2"):
        convert(GCN().eval(), random_graph(20, 70, width=5), target="onnx-int8-x86")


def test_stops_and_dumps(tmp_path: Path) -> None:
    done = convert(GCN(), random_graph(20, 70), target="onnx-int8-x86", stop_after="integer", dump=tmp_path)
    assert done.model_bytes is None
    text = (tmp_path / "integer.py").read_text()
    assert "q_segment_sum" in text
    compile(text, "integer.py", "exec")


def test_a_float_network_stays_float_and_says_why() -> None:
    done = convert(Convolution(GCNConv(6, 4)), random_graph(20, 70), target="onnx-int8-x86")
    assert done.report.macs["INT8"] == 0
    whys = [layer.why for layer in done.report.layers]
    assert any("not quantised" in why for why in whys)


class SharesOfSources(nn.Module):
    """Shares among the edges that leave a node, summed where they end; a sign of each edge."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        shares = softmax(x[edge_index[0]] + x[edge_index[1]], edge_index[0], num_nodes=x.size(0))
        sign = torch.sign(x[:, 0][edge_index[0]] - x[:, 1][edge_index[1]])
        sums = scatter(shares * x[edge_index[0]], edge_index[1], dim=0, dim_size=x.size(0))
        return sums + scatter((sign * 2)[:, None] * x[edge_index[0]], edge_index[1], dim=0, dim_size=x.size(0))


def test_a_dump_names_the_tables_and_what_is_in_their_order(tmp_path: Path) -> None:
    """A softmax by the edges' other end is in no row of a table, and signs of edges are compared all the same."""
    edges = random_graph(20, 70)
    done = convert(SharesOfSources(), edges, target="onnx-x86", dump=tmp_path)
    text = (tmp_path / "target.py").read_text()
    assert text.count("bgnn_ops.neighbour_table.default(") == text.count("bgnn_ops.edge_list.default(") == 1
    assert next(check.signs for check in done.report.checks if check.what == "emitted file") == 70
    file = OnnxModel(done.model_bytes)
    (table,) = json.loads(file.properties["bgnn.neighbour_tables"])
    assert table["row"] == 1
    assert f", {table['buckets']}, {table['powers_of_two']})  # i64" in text


class SeedNodes(nn.Module):
    """NeighborLoader's pattern: only the first rows are the batch's; how many, an input says."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by, self.first, self.second = by, SAGEConv(6, 6), SAGEConv(6, 4)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        out = self.second(self.first(x, edge_index).relu(), edge_index)
        return {"number": lambda: out[:batch], "item": lambda: out[batch.item() :], "rows": lambda: out[: len(batch)]}[
            self.by
        ]().log_softmax(-1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["number", "item", "rows"])
def test_a_slice_whose_end_is_an_input(by: str, form: Form) -> None:
    model = SeedNodes(by).eval()

    def sample(nodes: int, first: int) -> tuple[Tensor, ...]:
        x, edge_index = random_graph(nodes, 3 * nodes, 6)
        return x, edge_index, torch.zeros(first, 2) if by == "rows" else torch.tensor(first)

    data = convert(model, sample(20, 5), target="onnx-x86", optimize=form[0], kernels=form[1]).model_bytes
    assert data is not None
    for nodes, first in ((30, 7), (9, 9), (9, 2)):
        inputs = sample(nodes, first)
        expected = model(*inputs).detach().numpy()
        assert ran(data, *inputs).shape == expected.shape
        np.testing.assert_allclose(ran(data, *inputs), expected, atol=1e-5)


class OfEdges(nn.Module):
    """Dense layers and a mean over all edges: of a molecule of one atom there are none."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean, self.edge, self.out = mean, nn.Linear(3, 6), nn.Linear(6, 4)
        self.attention = TransformerConv(6, 6, edge_dim=6)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        edges = self.edge(edge_attr).relu()
        if self.mean:
            edges = edges - edges.mean()
        return self.out(self.attention(x, edge_index, edges).relu())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("target", ["onnx-x86", "onnx-int8-x86"])
def test_no_edges_at_run_time(target: str, mean: bool, form: Form) -> None:
    torch.manual_seed(0)
    model = OfEdges(mean).eval()
    inputs = (*random_graph(20, 60), torch.randn(60, 3))
    names = ("x", "edge_index", "edge_attr")
    calibration = Calibration((dict(zip(names, inputs, strict=True)),)) if "int8" in target else None
    done = convert(model, inputs, target=target, optimize=form[0], kernels=form[1], calibration=calibration)
    assert done.model_bytes is not None
    for nodes in (1, 9):
        alone = torch.randn(nodes, 6), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 3)
        expected = model(*alone).detach().numpy()
        assert np.isfinite(expected).all()
        found = ran(done.model_bytes, *alone)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= (0.3 if calibration else 1e-5) * np.abs(expected).max()


def test_zeros_that_only_other_graphs_have_are_told() -> None:
    """A mean over no neighbours is 0, and its torch.sign 0; every node of the example has a neighbour."""

    class Signs(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            count = torch.zeros(x.size(0)).index_add(0, edge_index[1], torch.ones(edge_index.size(1)))
            mean = torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]]) / count.clamp(min=1)[:, None]
            return torch.sign(mean) * 2

    ring = torch.stack([torch.arange(20), (torch.arange(20) + 1) % 20])
    example = (torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), ring)
    report = convert(Signs(), example, target="onnx-x86").report
    assert report.sign_zeros == 0
    (warning,) = report.warnings
    assert re.search(r"exact zeros \(first at .*torch.sign\(mean\) \* 2\) on a graph that is not the example", warning)
    with pytest.raises(ConversionError, match=r"exact zeros \(first at .*on a graph that is not the example"):
        convert(Signs(), example, target="onnx-x86", sign_zero="error")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "of_sizes",
    [
        lambda h, n, e: h / n**0.5, lambda h, n, e: h * (1.0 / n), lambda h, n, e: h * (e / n) + n / 2,
        lambda h, n, e: h / math.sqrt(n), lambda h, n, e: h + torch.full_like(h[:, :1], n),
        lambda h, n, e: h * h.new_full((n, 1), e),
    ],
    ids=["root", "inverse", "mean degree", "math.sqrt", "full_like", "new_full"],
)  # fmt: skip
def test_real_numbers_of_open_sizes(of_sizes: Any, form: Form) -> None:
    """A module's name may be a keyword, too."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({"in": nn.Linear(6, 4)})

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            summed = torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])
            return self.layers["in"](of_sizes(summed, x.size(0), edge_index.size(1)))

    torch.manual_seed(0)
    model = Net().eval()
    done = convert(model, random_graph(20, 60), target="onnx-x86", optimize=form[0], kernels=form[1])
    x, edges = random_graph(33, 90)
    (found,) = OnnxModel(done.model_bytes).run(x=x.numpy(), edge_index=edges.numpy()).values()
    np.testing.assert_allclose(found, model(x, edges).detach().numpy(), rtol=2e-5, atol=2e-5)
