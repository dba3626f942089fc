"""Binary GraphSAGE (paper, Eq. 14-15) on a fixed, sampled neighbour table, as a recommender team would keep
it.

What is peculiar: no batch axis, the neighbour table `[N, S]` is a buffer of the model, aggregation is
`x[table]` and a mean, BatchNorm precedes the sign, the sign is `torch.sign` with an explicit repair of
zeros, the weight rescaling is applied to the output, and each layer may L2-normalise its rows.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def hard_sign(x: Tensor) -> Tensor:
    s = torch.sign(x)
    return torch.where(s == 0, torch.ones_like(s), s)


class BinarySAGELayer(nn.Module):
    def __init__(self, cin: int, cout: int, normalise: bool):
        super().__init__()
        self.bn = nn.BatchNorm1d(2 * cin)
        self.weight = nn.Parameter(torch.empty(2 * cin, cout))
        self.rescale = nn.Parameter(torch.empty(cout))
        self.prelu = nn.PReLU(cout)
        self.normalise = normalise

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        h = torch.cat([x, x[table].mean(dim=1)], dim=-1)
        h = torch.mm(hard_sign(self.bn(h)), hard_sign(self.weight)) * self.rescale
        h = self.prelu(h)
        return F.normalize(h, p=2.0, dim=-1) if self.normalise else h


class BinarySAGE(nn.Module):
    def __init__(self, table: Tensor, sizes: tuple[int, ...], classes: int, normalise: bool):
        super().__init__()
        self.register_buffer("table", table)
        self.layers = nn.ModuleList(BinarySAGELayer(a, b, normalise) for a, b in pairwise(sizes))
        self.out = nn.Linear(sizes[-1], classes)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for layer in self.layers:
            x = layer(x, self.table)
        return self.out(x)


def make(
    seed: int,
    nodes: int = 40,
    samples: int = 6,
    sizes: tuple[int, ...] = (24, 32, 20),
    classes: int = 4,
    normalise: bool = False,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode, with random weights and statistics, and its input `features` f32 `[N, F]`."""
    torch.manual_seed(seed)
    model = BinarySAGE(torch.randint(nodes, (nodes, samples)), sizes, classes, normalise)
    for layer in model.layers:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.rescale, std=0.3)
        nn.init.normal_(layer.prelu.weight, std=0.4)
        nn.init.normal_(layer.bn.weight)
        nn.init.normal_(layer.bn.bias)
        nn.init.normal_(layer.bn.running_mean)
        nn.init.uniform_(layer.bn.running_var, 0.3, 3.0)
    return model.eval(), (torch.randn(nodes, sizes[0]),)
