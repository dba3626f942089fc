"""Layers cut down to codes, and whole networks, run on their graphs. What is measured decides no test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_graphs import needs_ops

from bgnn.runtime_bench.bench import graph_cases
from bgnn.runtime_bench.bench.cases import OWN, PAPERS_ROUTE, STOCK
from bgnn.runtime_bench.bench.graphs import Graph
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.running import measure_together
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

SMALL = Graph("small", "a small graph", 300, np.random.default_rng(0).integers(0, 300, (2, 900)))
ONCE = Schedule(rounds=1, seconds=0, warmup=1, warmup_seconds=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", graph_cases.LAYERS)
def test_layers_on_codes(kind: str, tmp_path: Path) -> None:
    """Cut to codes, a layer computes what the whole one does between its first and last quantiser."""
    layer = graph_cases.quantised_layer(kind)
    model = OnnxModel(graph_cases.layer_file(kind, "INT8", STOCK, tmp_path).read_bytes())
    assert [one["dtype"] for one in model.inputs] == ["uint8", "int64"]
    x = torch.randn(300, graph_cases.FEATURES)
    with torch.no_grad():
        scale, zero = layer.before.affine()  # type: ignore[union-attr, operator]
        codes = (torch.round(x / scale + zero).clamp(-128, 127) + 128).to(torch.uint8)
        expected = layer(x, torch.from_numpy(SMALL.edges)).numpy()
    found = model.run(**dict(zip(model.input_names, (codes.numpy(), SMALL.edges), strict=True)))["output"]
    assert found.dtype == np.uint8
    # A value is (code - zero) * scale: all pairs of the two lie on one line, but for codes that a tie moved by one,
    # which with these ranges are 1.3 % of GCN's.
    step, start = np.polyfit(found.reshape(-1).astype(float), expected.reshape(-1), 1)
    apart = np.abs(start + step * found - expected) / step
    assert apart.max() < 1.5
    assert (apart > 0.1).mean() < 0.02


@pytest.mark.slow
@needs_ops
def test_every_candidate_of_a_layer_runs_and_says_what_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_cases, "LARGEST_COPIES", 2.5 * 900 * graph_cases.FEATURES * 4)
    rows = graph_cases.layer_subjects(SMALL, "gcn", 1, ONCE, tmp_path, print)
    found = measure_together(rows, SMALL.what, 1, ONCE, print)
    cases = {record.case.removeprefix("small GCN ") for record in found}
    assert cases == {f"{what} {route}" for what in ("fp32", "INT8") for route in (STOCK, OWN)} | {"fp32"}
    left_out = found[0].settings["left_out"]
    assert sum("-O0, stock" in name for name in left_out) == 2, "their edge tensors would be too large"
    assert {r.candidate for r in found if r.case == "small GCN fp32"} == {"PyG eager", "torch.compile", "torch CSR"}
    assert all(r.figure("difference") < 1e-4 for r in found if r.case == "small GCN fp32")  # type: ignore[operator]
    assert f"small GCN fp32 {PAPERS_ROUTE}, ONNX Runtime" in left_out


@pytest.mark.slow
@needs_ops
@pytest.mark.parametrize(("name", "runtime"), [("GCN", "TFLite"), ("GraphSAGE", "TFLite"), ("binary GCN", "ONNX")])
def test_every_file_of_a_network_runs(name: str, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for what, value in (("PART", 80), ("WORDS", 40), ("HIDDEN", 32)):
        monkeypatch.setattr(graph_cases, what, value)
    rows = graph_cases.network_subjects(SMALL, name, runtime, False, 1, ONCE, tmp_path, print)
    found = measure_together(rows, SMALL.what, 1, ONCE, print)
    low = "INT8" if name == "GCN" else "binary"
    assert [r.case for r in found] == [
        f"small {name} {runtime} {what} {route}" for what in ("fp32", low) for route in (STOCK, OWN)
    ]
    check = found[2].settings["conversion"]["checks"][-1]
    assert check["signs" if low == "binary" else "codes"] > 0


def test_words_and_dense_features() -> None:
    words = graph_cases.features(Graph("cora", "", 500, SMALL.edges), False, 1433)
    assert 0.011 < (words != 0).mean() < 0.014
    assert np.allclose(words.sum(1)[words.any(1)], 1)
    assert (graph_cases.features(SMALL, True, 100) != 0).mean() > 0.999
