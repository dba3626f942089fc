"""Forwards that cannot be converted, as users write them: the operation often in a helper, lines away from forward.

A line that must be named ends in `# here`. `CLOUDS` take [2, 20, 3], `GRAPHS` take x [30, 6] and edge_index [2, 90].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv
from torch_geometric.nn.aggr import MedianAggregation
from torch_geometric.utils import to_dense_adj


def levels(x: Tensor) -> Tensor:
    found = x.unique()  # here
    return found * 2


def centroid(x: Tensor) -> Tensor:
    first = torch.randint(0, x.shape[1], (x.shape[0],))  # here
    return x[torch.arange(x.shape[0]), first]


def noise(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)  # here


def dropped(x: Tensor) -> Tensor:
    x = x.relu()
    return F.dropout(x, 0.5)  # here


def chosen(x: Tensor) -> Tensor:
    return x[x.norm(dim=-1) > 1]  # here


def scaled(x: Tensor) -> Tensor:
    peak = x.abs().max().item()  # here
    return x / peak


def branch(x: Tensor) -> Tensor:
    if x.sum() > 0:  # here
        return x
    return -x


def summed_up(x: Tensor) -> Tensor:
    return x.cumsum(-1)  # here


def spectrum(x: Tensor) -> Tensor:
    return torch.fft.rfft(x, dim=1).abs()  # here


def wide(x: Tensor) -> Tensor:
    kernel = torch.ones(8, 4, 3)
    return F.conv_transpose1d(x.transpose(1, 2), kernel)  # here


def manhattan(x: Tensor) -> Tensor:
    return torch.cdist(x, x, p=1).sum(-1)  # here


def doubled(x: Tensor) -> Tensor:
    return x.double().sum(1)  # here


def misfit(x: Tensor) -> Tensor:
    return x @ torch.ones(5, 5)  # here


def spread(x: Tensor) -> Tensor:
    return x.new_zeros(2, 4, 8).scatter_add(1, (x > 0).long(), x)  # here


def running(x: Tensor) -> Tensor:
    return torch.cumprod(x, dim=0)  # here


def inverse(x: Tensor) -> Tensor:
    return torch.linalg.inv(x.t() @ x)  # here


def adjacency(x: Tensor, edge_index: Tensor) -> Tensor:
    return to_dense_adj(edge_index)[0].sum() * x  # here


class Cloud(nn.Module):
    def __init__(self, helper: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lin, self.helper = nn.Linear(3, 8), [helper]

    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(x)
        return self.helper[0](h)


class Graph(nn.Module):
    def __init__(self, helper: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.helper = SAGEConv(6, 8), [helper]

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.conv(x, edge_index)
        return self.helper[0](h)


class Loop(nn.Module):
    """Sums over edges, one by one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.dense, self.how = nn.Linear(6, 4), how

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.dense(x)
        out = torch.zeros_like(h)
        if self.how == "list":
            for source, target in edge_index.t().tolist():  # list
                out[target] += h[source]
        elif self.how == "numbers":
            for e in range(edge_index.shape[1]):
                out[int(edge_index[1, e])] += h[int(edge_index[0, e])]  # numbers
        elif self.how == "tensors":
            for e in range(edge_index.shape[1]):
                out[edge_index[1, e]] += h[edge_index[0, e]]  # tensors
        elif self.how == "nodes":
            for v in range(x.shape[0]):  # nodes
                out[v] = h[edge_index[0][edge_index[1] == v]].sum(0)
        return out


class Switched(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if x.mean() > 9:  # here
            return -x
        return x[edge_index[0]]


class Median(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = MedianAggregation()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        batch = (x[:, 0] > 9).long()
        return self.pool(x, batch, dim_size=1)  # here


# helper: (the operation as the user knows it, words of the way out)
CLOUDS: dict[Callable[[Tensor], Tensor], tuple[str, str]] = {
    levels: ("Tensor.unique", "topk"),
    centroid: ("torch.randint", "random numbers"),
    noise: ("torch.randn_like", "random numbers"),
    dropped: ("torch.nn.functional.dropout", "training=self.training"),
    chosen: ("indexing x[...]", "mask"),
    scaled: ("Tensor.item", "keep it a tensor"),
    branch: ("torch.export cannot trace the model, at ", "torch.where"),
    spectrum: ("torch.fft.rfft", "docs/ops.md"),
    wide: ("torch.nn.functional.conv_transpose1d", "docs/ops.md"),
    manhattan: ("torch.cdist", "docs/ops.md"),
    doubled: ("Tensor.double", "float32"),
    misfit: ("fails eagerly", "mend the model"),
    spread: ("Tensor.scatter_add", "edge_index int64 [2, E]"),
}
GRAPHS: dict[Callable[[Tensor], Tensor], tuple[str, str]] = {
    levels: ("Tensor.unique", "mask them"),
    noise: ("torch.randn_like", "random numbers"),
    dropped: ("torch.nn.functional.dropout", "training=self.training"),
    scaled: ("Tensor.item", "keep it a tensor"),
    branch: ("torch.export cannot trace the model, at ", "torch.where"),
    running: ("torch.cumprod", "docs/ops.md"),
    inverse: ("torch.linalg.inv", "docs/ops.md"),
}
