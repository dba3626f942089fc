"""Node data: files of OGB's layout, and what is said of damaged ones."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from bgnn.models.node_data import NodeData, load_nodes


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        np.savetxt(file, np.atleast_1d(rows), delimiter=",", fmt="%g")


def products(root, **replaced):
    """Six nodes on a ring, two classes; returns the folder."""
    folder = root / "ogbn_products"
    tables = {
        "raw/edge": [[i, (i + 1) % 6] for i in range(6)],
        "raw/node-feat": [[i, -i, 0.5] for i in range(6)],
        "raw/node-label": [[i % 2] for i in range(6)],
        "raw/num-node-list": [[6]],
        "raw/num-edge-list": [[6]],
        "split/sales_ranking/train": [[0], [1]],
        "split/sales_ranking/valid": [[2], [3]],
        "split/sales_ranking/test": [[4], [5]],
    }
    for name, rows in (tables | replaced).items():
        write(folder / f"{name}.csv.gz", rows)
    return folder


def test_products(tmp_path):
    products(tmp_path)
    data = load_nodes("ogbn-products", tmp_path)
    assert data.x.tolist()[3] == [3, -3, 0.5]
    assert data.edge_index.tolist() == [[0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0], [1, 0, 2, 1, 3, 2, 4, 3, 5, 4, 0, 5]]
    assert data.y.tolist() == [0, 1] * 3
    assert (data.train.tolist(), data.valid.tolist(), data.test.tolist()) == ([0, 1], [2, 3], [4, 5])
    assert not data.multi_label


def test_proteins_take_the_mean_of_their_edges(tmp_path):
    folder = tmp_path / "ogbn_proteins"
    for name, rows in {
        "raw/edge": [[0, 1], [1, 2]],
        "raw/edge-feat": [[1, 0], [3, 4]],
        "raw/node-label": [[0, 1], [1, 1], [0, 0]],
        "raw/num-node-list": [[3]],
        "split/species/train": [[0]],
        "split/species/valid": [[1]],
        "split/species/test": [[2]],
    }.items():
        write(folder / f"{name}.csv.gz", rows)
    data = load_nodes("ogbn-proteins", tmp_path)
    assert data.x.tolist() == [[1, 0], [2, 2], [3, 4]]
    assert data.multi_label
    assert data.classes == 2
    write(folder / "raw/node-label.csv.gz", [[0, 1], [1, 2], [0, 0]])
    with pytest.raises(ValueError, match="labels are neither 0 nor 1"):
        load_nodes("ogbn-proteins", tmp_path)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"raw/edge": [[0, 9]]}, "edge.csv.gz: an edge leads outside of the 6 nodes"),
        ({"raw/edge": [[0, 1, 2]]}, "3 numbers a line; an edge has 2"),
        ({"raw/node-feat": [[0, 1]] * 5}, "features of 5 nodes, and 6 nodes in"),
        ({"raw/node-label": [[0]] * 4}, "4 labels for 6 nodes"),
        ({"raw/node-feat": [[np.nan, 1]] * 6}, "node 0 has a feature that is no number"),
        ({"split/sales_ranking/train": [[0], [2]]}, "the valid part is in another part of the split"),
        ({"split/sales_ranking/test": [[6]]}, "the test part of the split is empty or leads outside"),
        ({"raw/node-label": [[0], [0], [1], [1], [0], [1]]}, "no training node of class 1: a file is missing or"),
        ({"raw/node-label": [[0], [-3], [1], [1], [0], [1]]}, "a node of the split has the label -3"),
    ],
)
def test_damaged_files(replaced, message, tmp_path):
    products(tmp_path, **replaced)
    with pytest.raises(ValueError, match=message) as error:
        load_nodes("ogbn-products", tmp_path)
    assert "\n" not in str(error.value)


def test_cut_off_and_absent_files(tmp_path):
    file = products(tmp_path) / "raw/node-feat.csv.gz"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"node-feat\.csv\.gz: not a compressed table of numbers"):
        load_nodes("ogbn-products", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no ogbn_products/raw/edge\.csv\.gz"):
        load_nodes("ogbn-products", tmp_path / "c")
    with pytest.raises(ValueError, match="unknown data 'pubmed'"):
        load_nodes("pubmed", tmp_path)


def test_negative_labels_outside_of_the_split_do_not_matter():
    index = [torch.tensor([i]) for i in range(3)]
    x, edges = torch.zeros(4, 2), torch.zeros(2, 0, dtype=torch.int64)
    data = NodeData("a", x, edges, torch.tensor([0, 0, 0, -1]), *index)
    assert data.classes == 1
