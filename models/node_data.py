"""Graphs whose nodes are classified: Cora and Citeseer, OGB's products and proteins.

OGB's sets are read from files of its layout (as `ogb` unpacks them) without that package, else through it, which
downloads them: `ROOT/ogbn_products/raw/edge.csv.gz`, `node-feat.csv.gz`, `node-label.csv.gz`, `num-node-list.csv.gz`,
and `split/sales_ranking/train.csv.gz`, `valid.csv.gz`, `test.csv.gz`. Proteins has `edge-feat.csv.gz` in place of the
nodes' features, and the split `species`. Each edge of the files stands for both directions.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OGB = {"ogbn-products": "sales_ranking", "ogbn-proteins": "species"}
NODE_DATASETS = ("cora", "citeseer", *OGB)


@dataclass
class NodeData:
    """A graph: `x` f32 `[N, F]`, `edge_index` int64 `[2, E]`, and its split as indices int64.

    `y` int64 `[N]` for one class of many, f32 `[N, T]` of zeros and ones for T yes-or-no questions (`multi_label`).
    Raises ValueError, one line, where the parts do not agree.
    """

    what: str
    x: Tensor
    edge_index: Tensor
    y: Tensor
    train: Tensor
    valid: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        nodes = len(self.x)
        if not torch.isfinite(self.x).all():
            raise ValueError(
                f"{self.what}: node {int((~torch.isfinite(self.x)).nonzero()[0, 0])} has a feature that is no number"
            )
        if self.edge_index.numel() and not 0 <= int(self.edge_index.min()) <= int(self.edge_index.max()) < nodes:
            raise ValueError(f"{self.what}: an edge leads outside of the {nodes} nodes")
        if len(self.y) != nodes:
            raise ValueError(f"{self.what}: {len(self.y)} labels for {nodes} nodes")
        seen = torch.zeros(nodes, dtype=torch.int8)
        for title in ("train", "valid", "test"):
            part = getattr(self, title)
            if not len(part) or int(part.min()) < 0 or int(part.max()) >= nodes:
                raise ValueError(
                    f"{self.what}: the {title} part of the split is empty or leads outside of the {nodes} nodes"
                )
            if int(seen[part].max()):
                raise ValueError(f"{self.what}: a node of the {title} part is in another part of the split, too")
            seen[part] = 1
        if self.multi_label:
            if not ((self.y == 0) | (self.y == 1)).all():
                raise ValueError(f"{self.what}: labels are neither 0 nor 1")
            return
        if int(self.y[seen > 0].min()) < 0:
            raise ValueError(f"{self.what}: a node of the split has the label {int(self.y[seen > 0].min())}")
        counts = torch.bincount(self.y[self.train], minlength=self.classes)
        if (counts == 0).any():
            missing = int((counts == 0).nonzero()[0])
            raise ValueError(f"{self.what}: no training node of class {missing}: a file is missing or mislabelled")

    @property
    def multi_label(self) -> bool:
        return self.y.dim() == 2

    @property
    def classes(self) -> int:
        """Classes, or questions."""
        return self.y.shape[1] if self.multi_label else int(self.y.max()) + 1


def load_nodes(name: str, root: Path) -> NodeData:
    """A data set of NODE_DATASETS. Raises FileNotFoundError, ImportError, or ValueError in one line."""
    if name not in NODE_DATASETS:
        raise ValueError(f"unknown data {name!r}; known are {', '.join(NODE_DATASETS)}")
    if name in ("cora", "citeseer"):
        from bgnn.models.dq.data import load_citation

        graph: Any = load_citation(name, root)
        parts = (mask.nonzero().flatten() for mask in (graph.train_mask, graph.val_mask, graph.test_mask))
        return NodeData(name, graph.x, graph.edge_index, graph.y, *parts)
    folder = next(
        (path for path in (root / name.replace("-", "_"), root) if (path / "raw/edge.csv.gz").is_file()), None
    )
    if folder is not None:
        return _from_files(name, folder)
    try:
        from ogb.nodeproppred import NodePropPredDataset
    except ImportError as error:
        raise FileNotFoundError(
            f"{root}: no {name.replace('-', '_')}/raw/edge.csv.gz; to download it: pip install ogb"
        ) from error
    data = NodePropPredDataset(name, str(root))
    graph, labels = data[0]
    split = {title: torch.from_numpy(np.asarray(part)) for title, part in data.get_idx_split().items()}
    edges = torch.from_numpy(graph["edge_index"])
    features = graph["node_feat"]
    x = _of_edges(graph["edge_feat"], edges, graph["num_nodes"]) if features is None else torch.from_numpy(features)
    return _labelled(name, x.float(), edges, labels, split)


def _from_files(name: str, folder: Path) -> NodeData:
    raw = folder / "raw"
    (nodes,) = _table(raw / "num-node-list.csv.gz", np.int64).reshape(-1)[:1]
    one_way = torch.from_numpy(_table(raw / "edge.csv.gz", np.int64)).T
    if one_way.shape[0] != 2:
        raise ValueError(f"{raw / 'edge.csv.gz'}: {one_way.shape[0]} numbers a line; an edge has 2")
    if one_way.numel() and not 0 <= int(one_way.min()) <= int(one_way.max()) < nodes:
        raise ValueError(f"{raw / 'edge.csv.gz'}: an edge leads outside of the {nodes} nodes")
    # Both directions stand one after the other, as `ogb` has them.
    edges = torch.stack([one_way, one_way.flip(0)], dim=2).reshape(2, -1)
    if (raw / "node-feat.csv.gz").is_file():
        x = torch.from_numpy(_table(raw / "node-feat.csv.gz", np.float32))
    else:
        features = _table(raw / "edge-feat.csv.gz", np.float32)
        if len(features) != one_way.shape[1]:
            raise ValueError(f"{raw / 'edge-feat.csv.gz'}: {len(features)} lines for {one_way.shape[1]} edges")
        x = _of_edges(np.repeat(features, 2, axis=0), edges, int(nodes))
    if len(x) != nodes:
        raise ValueError(f"{raw}: features of {len(x)} nodes, and {nodes} nodes in num-node-list.csv.gz")
    labels = _table(raw / "node-label.csv.gz", np.float32)
    parts = {
        t: _table(folder / "split" / OGB[name] / f"{t}.csv.gz", np.int64).reshape(-1)
        for t in ("train", "valid", "test")
    }
    return _labelled(name, x, edges, labels, {title: torch.from_numpy(part) for title, part in parts.items()})


def _labelled(name: str, x: Tensor, edges: Tensor, labels: np.ndarray, split: dict[str, Tensor]) -> NodeData:
    y = torch.from_numpy(np.asarray(labels, np.float32))
    if name == "ogbn-products":
        if y.shape[1:] not in ((), (1,)):
            raise ValueError(f"{name}: {y.shape[1]} labels of a node; it has one class")
        y = torch.nan_to_num(y.reshape(-1), nan=-1).long()
    return NodeData(name, x, edges, y, split["train"], split["valid"], split["test"])


def _of_edges(features: np.ndarray, edges: Tensor, nodes: int) -> Tensor:
    """Nodes' features `[N, F]` as the means of their edges' `[E, F]`: proteins has none of its own."""
    values = torch.from_numpy(np.asarray(features, np.float32))
    count = torch.bincount(edges[1], minlength=nodes).clamp(min=1)
    return torch.zeros(nodes, values.shape[1]).index_add_(0, edges[1], values) / count[:, None]


def _table(path: Path, kind: Any) -> np.ndarray:
    """A compressed table of numbers `[lines, columns]`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with gzip.open(path, "rt") as text:
            return np.loadtxt(text, dtype=kind, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path}: not a compressed table of numbers ({str(error).splitlines()[0]})") from error
