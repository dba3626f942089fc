"""BF2 as someone porting a PointNet++ style code base writes it: channel-first all the way.

What is peculiar: tensors are `[B, C, N]`, the k-NN is `cdist` with `topk(largest=False)` on binary features
too, the sign is `torch.where(x >= 0, 1, -1)`, neighbours come from `torch.gather` on an expanded tensor,
x_i stands before the edge in the cat, activations are plain ReLU with one single-slope PReLU, and the
global pool is `amax` and `mean`.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def sgn(t):
    return torch.where(t >= 0, 1.0, -1.0)


def neighbours_of(x: Tensor, k: int) -> Tensor:
    pts = x.permute(0, 2, 1)
    return torch.cdist(pts, pts).topk(k, dim=2, largest=False).indices  # B N k


def grouping(x: Tensor, idx: Tensor) -> Tensor:
    b, c, n = x.shape
    k = idx.size(2)
    flat = idx.reshape(b, 1, n * k).expand(b, c, n * k)
    return torch.gather(x, 2, flat).reshape(b, c, n, k)


class BConv(nn.Module):
    """1x1 binary convolution, `Conv1d` and `Conv2d` in one."""

    def __init__(self, cin, cout, dims):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cout, cin, *[1] * dims))
        self.conv = F.conv1d if dims == 1 else F.conv2d
        self.gain = nn.Parameter(torch.empty(cout, *[1] * dims))

    def forward(self, x):
        return self.conv(x, sgn(self.weight)) * self.gain


class EdgeLayer(nn.Module):
    def __init__(self, cin, cout, k, first, act):
        super().__init__()
        self.k, self.first = k, first
        self.conv = BConv(cin * 2, cout, 2)
        self.norm = nn.BatchNorm2d(cout)
        self.act = act

    def forward(self, x):
        idx = neighbours_of(x, self.k)
        xj = grouping(x, idx)
        xi = x.unsqueeze(-1).expand_as(xj)
        edge = xj - xi if self.first else -(xi * xj)
        y = self.act(self.conv(torch.cat([xi, edge], dim=1)))
        y, _ = torch.max(self.norm(y), dim=3)
        return sgn(y)


class Net(nn.Module):
    def __init__(self, k, channels, embedding, hidden, classes):
        super().__init__()
        sizes = [3, *channels]
        self.layers = nn.ModuleList()
        for i in range(len(channels)):
            act = nn.PReLU() if i % 2 else nn.ReLU()
            self.layers.append(EdgeLayer(sizes[i], sizes[i + 1], k, i == 0, act))
        self.fuse = BConv(sum(channels), embedding, 1)
        self.fuse_norm = nn.BatchNorm1d(embedding)
        self.fc1 = nn.Parameter(torch.empty(hidden, 2 * embedding))
        self.fc1_norm = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, xyz):
        feats = []
        x = xyz
        for layer in self.layers:
            x = layer(x)
            feats.append(x)
        x = F.relu(self.fuse_norm(self.fuse(torch.cat(feats, 1))))
        x = torch.cat([torch.amax(x, 2), x.mean(2)], 1)
        x = sgn(x - 0.5)
        x = F.relu(self.fc1_norm(x @ sgn(self.fc1).t()))
        return self.fc2(x)


def make(
    seed: int,
    batch: int = 2,
    points: int = 30,
    k: int = 6,
    channels: tuple[int, ...] = (16, 20, 32),
    embedding: int = 48,
    hidden: int = 24,
    classes: int = 7,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode, with random weights and statistics, and its input `xyz` f32 `[B, 3, N]`."""
    torch.manual_seed(seed)
    net = Net(k, channels, embedding, hidden, classes)
    for p in net.parameters():
        nn.init.normal_(p)
    for m in net.modules():
        if isinstance(m, nn.PReLU):
            nn.init.constant_(m.weight, -0.3)
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(m.running_mean, std=1.5)
            nn.init.uniform_(m.running_var, 0.5, 5.0)
    net.eval()
    return net, (torch.randn(batch, 3, points),)
