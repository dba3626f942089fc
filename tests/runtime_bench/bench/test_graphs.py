"""Graphs to measure on: of the papers' shapes, the same in every run, and from raw files without running code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench.bench import graphs
from bgnn.runtime_bench.runtime.errors import UsageError

SHARED = Path(os.environ.get("BGNN_SHARED", Path(__file__).parents[4] / "shared")) / "data"


def test_molecules_look_like_zinc() -> None:
    nodes, edges = graphs.molecules(2000, np.random.default_rng(0))
    assert 22 < nodes / 2000 < 25
    assert 45 < edges.shape[1] / 2000 < 55
    assert edges.min() >= 0
    assert edges.max() < nodes
    both = {tuple(pair) for pair in edges.T.tolist()}
    assert all((b, a) in both for a, b in both)


def test_superpixels_look_like_cifar10() -> None:
    nodes, edges = graphs.superpixels(50, np.random.default_rng(0))
    assert 85 <= nodes / 50 <= 150
    assert 900 < edges.shape[1] / 50 < 980, "941 in the paper's Table 7"
    assert (np.bincount(edges[1], minlength=nodes) == 8).all()
    assert (edges[0] != edges[1]).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
@pytest.mark.parametrize("folder", [SHARED, SHARED / "planetoid"])
def test_cora_from_its_raw_files(folder: Path) -> None:
    graph = graphs.graph("cora", folder)
    assert (graph.what, graph.nodes) == ("Cora", 2708)
    assert 10_500 < graph.edges.shape[1] < 10_900


def test_without_raw_files_the_graph_is_called_random_and_is_the_same(tmp_path: Path) -> None:
    graph = graphs.graph("citeseer", tmp_path)
    assert graph.what == "random graph of Citeseer's size"
    assert np.array_equal(graph.edges, graphs.graph("citeseer", None).edges)


def test_raw_files_run_no_code(tmp_path: Path) -> None:
    (tmp_path / "ind.cora.graph").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(UsageError, match=r"is not Planetoid's"):
        graphs.planetoid(tmp_path, "cora")
