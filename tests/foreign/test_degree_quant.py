"""Networks as Degree-Quant's authors write them, unpatched, become 8-bit integers, and agree on graphs not seen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torch_geometric")
sys.path.insert(0, str(Path(__file__).parent))

import degree_quant_layers as theirs

from bgnn.converter.api import convert
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_model import TfliteModel


@pytest.mark.parametrize(
    ("kind", "kernels"),
    [
        (theirs.GCN, "stock"),
        (theirs.GAT, "bgnn"),
        (theirs.GIN, "stock"),
        pytest.param(theirs.GCN, "bgnn", marks=pytest.mark.slow),
        pytest.param(theirs.GAT, "stock", marks=pytest.mark.slow),
        pytest.param(theirs.GIN, "bgnn", marks=pytest.mark.slow),
    ],
)
def test_whole_networks(kind: type[nn.Module], kernels: str, tmp_path: Path) -> None:
    model, graphs = theirs.trained(kind), kind is theirs.GIN
    inputs = theirs.sample(60, 0, graphs)
    path = tmp_path / "model.onnx"
    report = convert(model, inputs, target="onnx-int8-x86", kernels=kernels, output=path).report
    share = report.macs["INT8"] / sum(report.macs.values())
    assert share >= 0.99, [(layer.name, layer.became, layer.why) for layer in report.layers]
    file = OnnxModel(path)
    for nodes, seed in ((41, 7), (150, 8)):
        new: tuple[Any, ...] = theirs.sample(nodes, seed, graphs)
        with torch.no_grad():
            expected = model(*new)
        names = ("x", "edge_index", "batch")[: len(new)]
        found = next(iter(file.run(**{n: v.numpy() for n, v in zip(names, new, strict=True)}).values()))
        error = (torch.from_numpy(found) - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
        assert float(error) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", [theirs.GCN, theirs.GAT, theirs.GIN])
def test_whole_networks_on_tflite(kind: type[nn.Module]) -> None:
    """The file turns no code that integers themselves do not turn at a tie, and its outputs are the ONNX file's."""
    model, graphs = theirs.trained(kind), kind is theirs.GIN
    inputs = theirs.sample(60, 0, graphs)
    new: tuple[Any, ...] = theirs.sample(100, 8, graphs)
    most = ["nodes=120", "edges=2000"]
    done = convert(model, inputs, target="tflite-int8-arm64", kernels="bgnn", fixed_sizes=most)
    checks = {check.what: check for check in done.report.checks}
    for graph in ("", ", second graph"):
        integers, file = checks[f"stage target{graph}"], checks[f"emitted file{graph}"]
        assert file.codes > 1000
        assert file.stepped == integers.stepped <= file.codes // 1000
    onnx = convert(model, inputs, target="onnx-int8-x86", kernels="bgnn").model_bytes
    assert done.model_bytes is not None
    assert onnx is not None
    given = {n: v.numpy() for n, v in zip(("x", "edge_index", "batch"), new, strict=False)}
    (found,) = TfliteModel(done.model_bytes).run(**given).values()
    (expected,) = OnnxModel(onnx).run(**given).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
