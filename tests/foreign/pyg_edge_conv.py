"""The fp32 DGCNN of a PyTorch Geometric user: `EdgeConv` message passing on a fixed-k graph built densely.

What is peculiar: nodes of all clouds stand in one `[B*N, C]` tensor, the graph is an `edge_index [2,
B*N*k]` made from a dense cdist (the batch has one size, so no torch-cluster is needed), the maximum over
neighbours is a scatter, BatchNorm sits inside the edge MLP, and the readout is `global_max_pool` of a
sorted batch vector.
"""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor
from torch_geometric.nn import EdgeConv, global_max_pool


def edge_mlp(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * cin, cout), nn.BatchNorm1d(cout), nn.ReLU(), nn.Linear(cout, cout), nn.LeakyReLU(0.2)
    )


def dense_knn_graph(x: Tensor, batch_size: int, k: int) -> Tensor:
    """`edge_index` int64 `[2, B*N*k]`, neighbours first, as PyG's `knn_graph(flow="source_to_target")`."""
    clouds = x.view(batch_size, -1, x.size(-1))
    n = clouds.size(1)
    nearest = torch.cdist(clouds, clouds).topk(k, largest=False).indices
    offset = torch.arange(batch_size).view(-1, 1, 1) * n
    source = (nearest + offset).flatten()
    target = torch.arange(batch_size * n).repeat_interleave(k)
    return torch.stack([source, target])


class PyGDGCNN(nn.Module):
    def __init__(self, k: int, channels: tuple[int, ...], embedding: int, classes: int):
        super().__init__()
        self.k = k
        sizes = (3, *channels)
        self.convs = nn.ModuleList(EdgeConv(edge_mlp(a, b), aggr="max") for a, b in zip(sizes, channels, strict=False))
        self.lin1 = nn.Linear(sum(channels), embedding)
        self.lin2 = nn.Linear(embedding, classes)

    def forward(self, pos: Tensor) -> Tensor:
        batch_size, n, _ = pos.shape
        batch = torch.arange(batch_size).repeat_interleave(n)
        x, outs = pos.reshape(batch_size * n, 3), []
        for conv in self.convs:
            x = conv(x, dense_knn_graph(x, batch_size, self.k))
            outs.append(x)
        x = self.lin1(torch.cat(outs, dim=1)).relu()
        return self.lin2(global_max_pool(x, batch, size=batch_size))


def make(
    seed: int,
    batch: int = 2,
    points: int = 24,
    k: int = 4,
    channels: tuple[int, ...] = (16, 24),
    embedding: int = 32,
    classes: int = 5,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode, with random weights and statistics, and its input `pos` f32 `[B, N, 3]`."""
    torch.manual_seed(seed)
    model = PyGDGCNN(k, channels, embedding, classes)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
    return model.eval(), (torch.randn(batch, points, 3),)
