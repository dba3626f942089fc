"""The data sets of Degree-Quant (Table 7), from local raw files where there are any, through PyG.

`root` is a folder with raw files as published: Planetoid's `ind.cora.*` (in it or in `planetoid/`),
`REDDIT-BINARY.zip` of powerful-gnns (in it or in `reddit-binary/`). Where they are absent, PyG downloads into
`root`. Nothing is written beside raw files that were found.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import degree

GRAPH_DATASETS = ("mnist", "cifar10", "zinc", "reddit-binary")


def load_citation(name: str, root: str | Path) -> Data:
    """Cora or Citeseer: one graph with `x` (rows sum to 1), `y` and Kipf & Welling's masks of the split."""
    from torch_geometric.datasets import Planetoid

    title = {"cora": "Cora", "citeseer": "CiteSeer"}[name]
    raw = _find(root, "planetoid", f"ind.{name}.x")
    if raw is None:
        return Planetoid(str(root), title, transform=NormalizeFeatures())[0]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / title / "raw"
        target.mkdir(parents=True)
        for file in raw.parent.glob(f"ind.{name}.*"):
            shutil.copy(file, target)
        return Planetoid(folder, title, transform=NormalizeFeatures())[0]


def load_graphs(name: str, root: str | Path) -> tuple[list[Data], list[tuple[list[int], list[int], list[int]]]]:
    """Graphs `Data(x float32, edge_index, y)` and folds of (train, validation, test) indices into them.

    MNIST, CIFAR-10 and ZINC have one fold, the standard split; REDDIT-BINARY has ten.
    """
    if name == "reddit-binary":
        return _reddit(root)
    from torch_geometric.datasets import ZINC, GNNBenchmarkDataset

    parts: list[list[Data]] = []
    for split in ("train", "val", "test"):
        data: Any = (
            ZINC(str(Path(root) / "ZINC"), subset=True, split=split)
            if name == "zinc"
            else GNNBenchmarkDataset(str(root), {"mnist": "MNIST", "cifar10": "CIFAR10"}[name], split=split)
        )
        parts.append([_plain(graph, name) for graph in data])
    bounds = torch.tensor([0, *map(len, parts)]).cumsum(0).tolist()
    train, validation, test = (list(range(a, b)) for a, b in pairwise(bounds))
    return [graph for part in parts for graph in part], [(train, validation, test)]


def _plain(graph: Data, name: str) -> Data:
    """The tensors that the networks take: atoms as one-hot rows, a superpixel's colour and place as 3 or 5 numbers."""
    if name == "zinc":
        x = torch.nn.functional.one_hot(graph.x.view(-1), 28).float()
    else:
        x = torch.cat((graph.x, graph.pos), dim=1)
    return Data(x=x, edge_index=graph.edge_index, y=graph.y.view(-1))


def _find(root: str | Path, folder: str, file: str) -> Path | None:
    """`file` in `root` or in its `folder`."""
    return next((path for path in (Path(root) / file, Path(root) / folder / file) if path.is_file()), None)


def _reddit(root: str | Path) -> tuple[list[Data], list[tuple[list[int], list[int], list[int]]]]:
    """REDDIT-BINARY with the standardised degree as the one feature, as the authors' code has it.

    Ten folds: powerful-gnns' from its zip, else split here by class. A fold's validation part is the next one's
    test part.
    """
    path = _find(root, "reddit-binary", "REDDIT-BINARY.zip")
    if path is None:
        from torch_geometric.datasets import TUDataset

        raw: Any = TUDataset(str(root), "REDDIT-BINARY")
        graphs = [Data(edge_index=g.edge_index, y=g.y, num_nodes=g.num_nodes) for g in raw]
        tests = _stratified([int(g.y) for g in graphs], 10)
    else:
        with zipfile.ZipFile(path) as archive:
            graphs = _powerful_gnns(archive.read("REDDIT-BINARY/REDDIT-BINARY.txt").decode())
            folder = "REDDIT-BINARY/10fold_idx/test_idx-"
            tests = [[int(i) for i in archive.read(f"{folder}{k}.txt").split()] for k in range(1, 11)]
    names = sorted({int(g.y) for g in graphs})  # any two numbers
    for g in graphs:
        g.y = torch.tensor([names.index(int(g.y))])
    degrees = torch.cat([degree(g.edge_index[0], g.num_nodes) for g in graphs])
    mean, deviation = degrees.mean(), degrees.std()
    for g in graphs:
        g.x = ((degree(g.edge_index[0], g.num_nodes) - mean) / deviation).view(-1, 1)
    folds = []
    for k, test in enumerate(tests):
        validation = tests[k - 1]
        out = {*test, *validation}
        folds.append(([i for i in range(len(graphs)) if i not in out], validation, test))
    return graphs, folds


def _powerful_gnns(text: str) -> list[Data]:
    """Graphs of the format of powerful-gnns: "nodes label", then per node "tag count neighbour neighbour ..."."""
    lines = iter(text.splitlines())
    graphs = []
    for _ in range(int(next(lines))):
        nodes, label = map(int, next(lines).split()[:2])
        sources: list[int] = []
        targets: list[int] = []
        for node in range(nodes):
            neighbours = [int(word) for word in next(lines).split()[2:]]
            sources += [node] * len(neighbours)
            targets += neighbours
        edges = torch.tensor([sources, targets], dtype=torch.int64)
        graphs.append(Data(edge_index=edges, y=torch.tensor([label]), num_nodes=nodes))
    return graphs


def _stratified(labels: list[int], folds: int) -> list[list[int]]:
    """`folds` parts of the indices with equal shares of each label, from a fixed shuffle."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(12345)).tolist()
    parts: list[list[int]] = [[] for _ in range(folds)]
    place = 0
    for label in sorted(set(labels)):
        for i in (i for i in order if labels[i] == label):
            parts[place % folds].append(i)
            place += 1
    return parts
