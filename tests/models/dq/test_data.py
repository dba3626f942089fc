"""Local raw files: Planetoid's format, powerful-gnns' zip, and the folds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bgnn.models.dq.data import load_citation, load_graphs

SHARED = Path(os.environ.get("BGNN_SHARED", Path(__file__).parents[3] / ".." / "shared")) / "data"


@pytest.mark.skipif(not (SHARED / "planetoid").is_dir(), reason="needs ../shared/data/planetoid")
@pytest.mark.parametrize(("name", "sizes"), [("cora", (2708, 1433, 10556)), ("citeseer", (3327, 3703, 9104))])
def test_planetoid_from_raw_files(name, sizes):
    before = sorted(p.name for p in SHARED.rglob("*"))
    graph = load_citation(name, SHARED)
    assert (*graph.x.shape, graph.edge_index.shape[1]) == sizes
    assert (int(graph.val_mask.sum()), int(graph.test_mask.sum())) == (500, 1000)
    sums = graph.x.sum(1)
    torch.testing.assert_close(sums[sums > 0], torch.ones(int((sums > 0).sum())))
    assert sorted(p.name for p in SHARED.rglob("*")) == before


def test_reddit_from_its_zip(zipped):
    graphs, folds = load_graphs("reddit-binary", zipped)
    assert [g.num_nodes for g in graphs] == list(range(3, 23))
    assert [int(g.y) for g in graphs] == [0, 1] * 10
    assert graphs[0].edge_index.tolist() == [[0, 0, 1, 2], [1, 2, 0, 0]]
    degrees = torch.cat([g.x for g in graphs])
    assert degrees.mean().item() == pytest.approx(0, abs=1e-5)
    assert degrees.std().item() == pytest.approx(1, abs=1e-5)
    assert len(folds) == 10
    for train, validation, test in folds:
        assert sorted((*train, *validation, *test)) == list(range(20))
    assert folds[1][1] == folds[0][2]


@pytest.mark.skipif(not (SHARED / "reddit-binary").is_dir(), reason="needs ../shared/data/reddit-binary")
@pytest.mark.slow
def test_the_whole_of_reddit_binary():
    graphs, folds = load_graphs("reddit-binary", SHARED)
    assert (len(graphs), sum(int(g.y) for g in graphs)) == (2000, 1000)
    assert sum(g.num_nodes for g in graphs) / 2000 == pytest.approx(429.63, abs=0.01)
    assert {tuple(map(len, fold)) for fold in folds} == {(1600, 200, 200)}
