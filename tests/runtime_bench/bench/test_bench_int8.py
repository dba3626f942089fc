"""The bench's graphs, and its layers cut down to codes. What is measured decides no test."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bgnn.runtime_bench.bench import bench_int8
from bgnn.runtime_bench.runtime import run
from bgnn.runtime_bench.runtime.errors import UsageError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

SHARED = Path(os.environ.get("BGNN_SHARED", Path(__file__).parents[4] / "shared")) / "data" / "planetoid"
SMALL = bench_int8.Graph("small", "a small graph", 300, np.random.default_rng(0).integers(0, 300, (2, 900)), 1)


def test_molecules_look_like_zinc():
    nodes, edges = bench_int8.molecules(2000, np.random.default_rng(0))
    assert 22 < nodes / 2000 < 25
    assert 45 < edges.shape[1] / 2000 < 55
    assert edges.min() >= 0
    assert edges.max() < nodes
    both = {tuple(pair) for pair in edges.T.tolist()}
    assert all((b, a) in both for a, b in both)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
def test_cora_from_its_raw_files():
    graph = bench_int8.graphs(["cora"], SHARED, 10)[0]
    assert (graph.what, graph.nodes) == ("Cora", 2708)
    assert 10_500 < graph.edges.shape[1] < 10_900


def test_without_raw_files_the_graph_is_called_random(tmp_path):
    graph = bench_int8.graphs(["citeseer"], tmp_path, 10)[0]
    assert graph.what == "random graph of Citeseer's size"


def test_raw_files_run_no_code(tmp_path):
    (tmp_path / "ind.cora.graph").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(UsageError, match=r"is not Planetoid's"):
        bench_int8.planetoid(tmp_path, "cora")


@pytest.mark.slow
@pytest.mark.parametrize("kind", bench_int8.LAYERS)
def test_layers_on_codes(kind):
    """Cut to codes, a layer computes what the whole one does between its first and last quantiser."""
    layer = bench_int8.quantised_layer(kind, SMALL)
    model = OnnxModel(bench_int8.file_of(layer, SMALL, "onnx-int8-x86", "stock"))
    assert [one["dtype"] for one in model.inputs] == ["uint8", "int64"]
    x = torch.randn(300, bench_int8.FEATURES)
    with torch.no_grad():
        scale, zero = layer.before.affine()
        codes = (torch.round(x / scale + zero).clamp(-128, 127) + 128).to(torch.uint8)
        expected = layer(x, torch.from_numpy(SMALL.edges)).numpy()
    found = model.run(**dict(zip(model.input_names, (codes.numpy(), SMALL.edges), strict=True)))["output"]
    assert found.dtype == np.uint8
    # A value is (code - zero) * scale: all pairs of the two lie on one line, but for codes a tie moved by one.
    step, start = np.polyfit(found.reshape(-1).astype(float), expected.reshape(-1), 1)
    apart = np.abs(start + step * found - expected) / step
    assert apart.max() < 1.5
    assert (apart > 0.1).mean() < 1e-3


def test_bgnn_run_takes_onnx_files(tmp_path, capsys):
    from onnx_graphs import file_of, open_graph, random_edges

    def layer(m, x, edges):
        return torch.ops.bgnn.segment_sum(x.index_select(0, edges.select(0, 0)), edges.select(0, 1), x.shape[0])

    path = tmp_path / "sum.onnx"
    path.write_bytes(file_of(open_graph(layer, torch.randn(9, 8), random_edges(9, 20))))
    x, edges = np.ones((4, 8), np.float32), np.array([[0, 1, 2], [3, 3, 0]])
    np.savez(tmp_path / "by_name.npz", in0=x, in1=edges)
    np.savez(tmp_path / "by_place.npz", x, edges)
    for name in ("by_name", "by_place"):
        out = tmp_path / "out.npz"
        assert run.main([str(path), "--input", str(tmp_path / f"{name}.npz"), "--output", str(out)]) == 0
        np.testing.assert_array_equal(np.load(out)["out0"][:, 0], [1, 0, 0, 2])
    assert "out0: float32 [4, 8]" in capsys.readouterr().out
    np.savez(tmp_path / "wrong.npz", in0=x, in1=edges + 9)
    assert run.main([str(path), "--input", str(tmp_path / "wrong.npz")]) == 2
    assert "in1 holds" in capsys.readouterr().err
