"""The table of accuracies, on a graph that is drawn here; nothing is trained for long."""

from __future__ import annotations

import json

import pytest
import torch
from onnx_graphs import needs_ops
from torch_geometric.data import Data

from bgnn.models.checkpoint import save_checkpoint
from bgnn.models.dq.networks import build
from bgnn.models.dq.quantizer import FLOAT_BITS
from bgnn.runtime_bench.bench import bench_accuracy

NODES, FEATURES = 120, 24


@pytest.fixture(scope="module")
def graph() -> Data:
    g = torch.Generator().manual_seed(0)
    data = Data(x=torch.rand(NODES, FEATURES, generator=g), y=torch.randint(0, 3, (NODES,), generator=g))
    data.edge_index = torch.randint(0, NODES, (2, 500), generator=g)
    data.test_mask = torch.arange(NODES) >= 60
    return data


@pytest.fixture(scope="module")
def network(graph):
    torch.manual_seed(0)
    model = build({"form": "citation", "conv": "gcn", "hidden": 8, "dropout": 0.0, "features": FEATURES, "classes": 3})
    model.train()
    for _ in range(3):
        model(graph.x, graph.edge_index)
    return model.eval()


@needs_ops
@pytest.mark.parametrize("kernels", bench_accuracy.KERNELS)
def test_a_file_beside_its_network(graph, network, kernels):
    row = bench_accuracy.compared(network, graph, kernels)
    assert (row["codes"] > NODES * FEATURES, row["beside"], row["other class"]) == (True, 0, 0)
    assert row["PyTorch"] == row["file"]
    with torch.no_grad():
        hits = network(graph.x, graph.edge_index).argmax(1) == graph.y
    assert row["PyTorch"] == pytest.approx(float(hits[60:].float().mean()))


def test_calibrated_beside_float(graph, capsys):
    torch.manual_seed(1)
    settings = {"form": "citation", "conv": "gcn", "hidden": 8, "dropout": 0.0, "features": FEATURES, "classes": 3}
    model = build(settings | {"bits": FLOAT_BITS}).eval()
    row = bench_accuracy.calibrated(model, graph)
    with torch.no_grad():
        hits = model(graph.x, graph.edge_index).argmax(1) == graph.y
    assert row["float"] == pytest.approx(float(hits[60:].float().mean()))
    assert 0 < row["chosen"][1] <= row["min/max"][1] < 0.2
    assert all(0 <= row[name][0] <= 1 for name in ("min/max", "chosen"))
    assert ("kept" in row) == ("with it" in row)
    bench_accuracy.print_calibrated([{"network": "GCN"} | row | {"kept": "conv2", "with it": (0.5, 0.125)}])
    assert "0.500, 12.5% (--keep-float conv2)" in capsys.readouterr().out


@needs_ops
def test_the_command_takes_checkpoints(graph, network, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bgnn.models.dq.data.load_citation", lambda name, root: graph)
    save_checkpoint(tmp_path / "cora_gcn_dq8.pt", network)
    settings = {"form": "citation", "conv": "gcn", "hidden": 8, "dropout": 0.0, "features": FEATURES, "classes": 3}
    save_checkpoint(tmp_path / "cora_gcn_fp32.pt", build(settings | {"bits": FLOAT_BITS}).eval())
    arguments = ["--datasets", "cora", "--layers", "gcn", "--checkpoints", str(tmp_path)]
    assert bench_accuracy.main(arguments) == 0
    assert capsys.readouterr().out.count("Cora GCN") == 3
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["network"] for row in results["calibrated"]] == ["Cora GCN"]
    rows = results["Degree-Quant"]
    assert [row["kernels"] for row in rows] == ["stock", "bgnn"]
    (tmp_path / "cora_gcn_dq8.pt").write_bytes(b"nothing")
    assert bench_accuracy.main(arguments) == 1
    assert capsys.readouterr().err.count("bench_accuracy:") == 1
