"""Trained networks beside their files, on a graph that is drawn here; nothing is trained for long."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx_graphs import needs_ops
from torch_geometric.data import Data

from bgnn.models.checkpoint import save_checkpoint
from bgnn.models.dq.networks import build
from bgnn.models.dq.quantizer import FLOAT_BITS
from bgnn.runtime_bench.bench import tables, trained_cases
from bgnn.runtime_bench.bench.candidates import LITERT
from bgnn.runtime_bench.bench.cases import OWN, STOCK, Sizes
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.running import measure_together

NODES, FEATURES = 120, 24
NETWORK = {"form": "citation", "conv": "gcn", "hidden": 8, "dropout": 0.0, "features": FEATURES, "classes": 3}


@pytest.fixture(scope="module")
def graph() -> Data:
    g = torch.Generator().manual_seed(0)
    data = Data(x=torch.rand(NODES, FEATURES, generator=g), y=torch.randint(0, 3, (NODES,), generator=g))
    data.edge_index = torch.randint(0, NODES, (2, 500), generator=g)
    data.test_mask = torch.arange(NODES) >= 60
    return data


@needs_ops
def test_the_table_of_networks_that_were_trained_before(
    graph: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, floating = build(NETWORK).train(), build(NETWORK | {"bits": FLOAT_BITS}).eval()
    for _ in range(3):
        model(graph.x, graph.edge_index)
    save_checkpoint(tmp_path / "cora_gcn_dq8.pt", model.eval())
    save_checkpoint(tmp_path / "cora_gcn_fp32.pt", floating)
    monkeypatch.setattr("bgnn.models.dq.data.load_citation", lambda name, root: graph)
    monkeypatch.setattr(trained_cases, "DATASETS", ("cora",))
    monkeypatch.setattr(trained_cases, "LAYERS", ("gcn",))
    found = list(tables.measured(["accuracy"], tables.Plan(folder=tmp_path), print))
    by_name = {r.candidate: r for r in found}
    assert {"float", "least to largest", "chosen", STOCK, OWN} <= set(by_name)
    assert 0 < by_name["chosen"].figure("error") <= by_name["least to largest"].figure("error") < 0.2  # type: ignore[operator]
    with torch.no_grad():
        hits = model(graph.x, graph.edge_index).argmax(1) == graph.y
    for route in (STOCK, OWN):
        one = by_name[route]
        assert one.figure("codes") > NODES * FEATURES  # type: ignore[operator]
        assert (one.figure("stepped"), one.figure("changed_rows")) == (0, 0)
        assert (
            one.figure("accuracy") == one.figure("accuracy_pytorch") == pytest.approx(float(hits[60:].float().mean()))
        )
    files, after = tables.sheets(["accuracy"], found, Sizes())
    assert [row[1] for row in files.rows] == [STOCK, OWN]
    assert [row[1] for row in after.rows][:3] == ["float", "least to largest", "chosen"]


@pytest.mark.slow
def test_calibrated_clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for what, value in (("POINTS", 24), ("CLOUDS", 64), ("EPOCHS", 1), ("HELD_OUT", 16)):
        monkeypatch.setattr(trained_cases, what, value)
    once = Schedule(rounds=1, seconds=0, warmup=1, warmup_seconds=0)
    rows = trained_cases.cloud_subjects("PointNet", LITERT, 1, once, tmp_path, print)
    found = measure_together(rows, "shapes", 1, once, print)
    assert [r.case for r in found] == [f"PointNet fp32 {STOCK}", f"PointNet INT8 {STOCK}", "PointNet eager"]
    assert all(0 <= r.settings["accuracy"] <= 1 for r in found)
    assert found[1].settings["codes"] > 0
    assert (tmp_path / "PointNet_24.pt").is_file()
    (sheet,) = tables.sheets(
        ["calibrated-clouds"], [r for r in found if r.settings.setdefault("source", "clouds")], Sizes()
    )
    assert sheet.heads[-3:] == ["accuracy", "codes", "stepped"]
