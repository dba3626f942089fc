"""What our chains are compared with at scale is what PyG computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bgnn.runtime_bench.bench import scale
from bgnn.runtime_bench.graph.synthetic import products_like


def test_inference_by_blocks_is_the_network_of_the_whole_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "BLOCK", 64)
    edges = products_like(300, 4000)
    edges[1, :600] = 7
    x = np.random.default_rng(0).standard_normal((300, scale.FEATURES), np.float32)
    np.save(tmp_path / "edges.npy", edges)
    np.save(tmp_path / "x.npy", x)
    scale.layer_by_layer(tmp_path)
    with torch.no_grad():
        expected = scale.sage()(torch.from_numpy(x), torch.from_numpy(edges)).numpy()
    assert np.allclose(np.load(tmp_path / "PyG.npy"), expected, atol=1e-5)
