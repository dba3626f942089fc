"""Local raw files: Planetoid's format, powerful-gnns' zip, and the folds."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch_geometric.utils import degree

from bgnn.models.dq import presets
from bgnn.models.dq.data import load_citation, load_graphs
from bgnn.models.dq.training import train_graphs

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


def molecules(count: int) -> list[dict[str, torch.Tensor]]:
    """Rings of atoms in the form of ZINC's pickles."""
    made = []
    for i in range(count):
        bonds = torch.zeros(i + 3, i + 3, dtype=torch.int64)
        place = torch.arange(i + 3)
        bonds[place, place.roll(1)] = bonds[place.roll(1), place] = 1 + i % 3
        made.append(
            {
                "atom_type": (place * 5) % 28,
                "bond_type": bonds,
                "logP_SA_cycle_normalized": torch.tensor([i / 2 - 1]),
            }
        )
    return made


def test_zinc_from_raw_files(tmp_path):
    raw = tmp_path / "ZINC" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        (raw / f"{split}.pickle").write_bytes(pickle.dumps(molecules(count)))
        (raw / f"{split}.index").write_text(",".join(map(str, range(1, count))) + "\n")
    graphs, folds = load_graphs("zinc", tmp_path)
    assert folds == [([0, 1, 2, 3, 4], [5, 6], [7, 8, 9])]
    assert graphs[5].x.shape == (4, 28)
    assert graphs[5].x.argmax(1).tolist() == [0, 5, 10, 15]
    assert graphs[5].y.tolist() == [-0.5]
    assert graphs[5].edge_index.shape == (2, 8)
    trained(graphs, folds[0], "zinc", "gin")


@pytest.mark.parametrize(("name", "channels", "conv"), [("mnist", 1, "gcn"), ("cifar10", 3, "gat")])
def test_superpixels_from_raw_files(tmp_path, name, channels, conv):
    raw = tmp_path / name.upper() / "raw"
    raw.mkdir(parents=True)
    torch.manual_seed(0)
    parts = []
    for count in (5, 2, 3):
        part = []
        for i in range(count):
            edges = torch.randint(8 + i, (2, 40))
            part.append({"x": torch.rand(8 + i, channels), "pos": torch.rand(8 + i, 2), "edge_index": edges})
            part[-1] |= {"edge_attr": torch.rand(40), "y": torch.tensor([i])}
        parts.append(part)
    torch.save(parts, raw / f"{name.upper()}_v2.pt")
    graphs, folds = load_graphs(name, tmp_path)
    assert folds == [([0, 1, 2, 3, 4], [5, 6], [7, 8, 9])]
    assert torch.equal(graphs[6].x, torch.cat((parts[1][1]["x"], parts[1][1]["pos"]), 1))
    assert graphs[6].y.tolist() == [1]
    trained(graphs, folds[0], name, conv)


def trained(graphs, fold, name, conv):
    """One epoch runs on what was read."""
    config = presets.settings(name, conv, "dq", 8)
    run = train_graphs(config, presets.recipe(name, conv, "dq", 8, epochs=1, batch=3), graphs, fold, seed=0)
    assert run.epochs == 1
    assert run.validation_loss < 1e3


def as_tu_dataset(graphs, labels, folder):
    """Writes graphs as TUDataset's raw files: "source, target", from 1, of all graphs; a graph and a label a line."""
    raw = folder / "REDDIT-BINARY" / "raw"
    raw.mkdir(parents=True)
    start, edges, nodes = 1, [], []
    for k, graph in enumerate(graphs):
        edges += [f"{a}, {b}" for a, b in (graph.edge_index + start).t().tolist()]
        nodes += [str(k + 1)] * graph.num_nodes
        start += graph.num_nodes
    for name, lines in (("A", edges), ("graph_indicator", nodes), ("graph_labels", labels)):
        (raw / f"REDDIT-BINARY_{name}.txt").write_text("\n".join(map(str, lines)) + "\n")


def same_as_tu_dataset(graphs, folder):
    as_tu_dataset(graphs, [2 * int(g.y) - 1 for g in graphs], folder)
    other, folds = load_graphs("reddit-binary", folder)
    assert len(other) == len(graphs)
    degrees = torch.cat([degree(g.edge_index[0], g.num_nodes) for g in graphs])
    start = 0
    for one, two in zip(graphs, other, strict=True):
        assert (one.num_nodes, int(one.y)) == (two.num_nodes, int(two.y))
        assert {tuple(e) for e in one.edge_index.t().tolist()} == {tuple(e) for e in two.edge_index.t().tolist()}
        own = degrees[start : start + one.num_nodes]
        torch.testing.assert_close(two.x.view(-1), (own - degrees.mean()) / degrees.std())
        start += one.num_nodes
    tests = [test for _, _, test in folds]
    assert sorted(i for test in tests for i in test) == list(range(len(graphs)))
    assert {sum(int(other[i].y) for i in test) for test in tests} == {len(graphs) // 20}


def test_reddit_from_tu_datasets_files(zipped, tmp_path_factory):
    same_as_tu_dataset(load_graphs("reddit-binary", zipped)[0], tmp_path_factory.mktemp("tu"))


@pytest.mark.skipif(not (SHARED / "reddit-binary").is_dir(), reason="needs ../shared/data/reddit-binary")
@pytest.mark.slow
def test_a_sample_of_reddit_from_tu_datasets_files(tmp_path):
    graphs, _ = load_graphs("reddit-binary", SHARED)
    one, zero = ([g for g in graphs if int(g.y) == y][:20] for y in (1, 0))
    same_as_tu_dataset([g for pair in zip(one, zero, strict=True) for g in pair], tmp_path)
