"""The demo's INT8 part: a trained network, two files, a graph that neither has seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from bgnn.converter import demo
from bgnn.converter.errors import BgnnError
from bgnn.runtime_bench.runtime import onnx_ops

try:
    onnx_ops.library_path()
    MISSING = ""
except BgnnError as error:
    MISSING = str(error)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_the_quantised_network(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    assert demo.quantised_network(Console(quiet=True), tmp_path) == {"stock": 1500, "bgnn": 1500}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cora_gcn_dq8_bgnn.onnx", "cora_gcn_dq8_stock.onnx"]


def test_citations() -> None:
    x, edge_index = demo.citations(50, 200, 300, seed=3)
    assert (tuple(x.shape), tuple(edge_index.shape)) == ((50, 300), (2, 200))
    assert int(edge_index.min()) >= 0
    assert int(edge_index.max()) < 50
    filled = x[x.sum(1) > 0].sum(1)
    assert float((filled - 1).abs().max()) < 1e-5
