"""RF after XNOR-Net++ by someone who thinks in outer products: rank-1 rescaling over point, neighbour,
channel.

What is peculiar: Gamma is `alpha[:, None, None] * beta[None, :, None] * gamma` (paper, Eq. 11), given once
as a product and once as an einsum; `x.sign()` on a BatchNorm written out by hand as `(x - mean) * rsqrt(var
+ eps) * w + b`; the binary linear is a `torch.matmul` with a transposed sign; the head rescales by a full
`[C]` vector.
"""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor


class HandNorm(nn.Module):
    def __init__(self, c: int, eps: float = 1e-5):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
        self.register_buffer("mean", torch.zeros(c))
        self.register_buffer("var", torch.ones(c))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * torch.rsqrt(self.var + self.eps) * self.w + self.b


class OuterScale(nn.Module):
    """alpha over points, beta over neighbours, gamma over channels, of `[B, N, K, C]`."""

    def __init__(self, n: int, k: int, c: int, einsum: bool):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(n)), nn.Parameter(torch.ones(k))
        self.gamma, self.einsum = nn.Parameter(torch.ones(c)), einsum

    def forward(self, x: Tensor) -> Tensor:
        if self.einsum:
            return x * torch.einsum("n,k,c->nkc", self.alpha, self.beta, self.gamma)
        return x * (self.alpha[:, None, None] * self.beta[None, :, None] * self.gamma)


class Block(nn.Module):
    def __init__(self, n: int, k: int, cin: int, cout: int, einsum: bool):
        super().__init__()
        self.k = k
        self.norm = HandNorm(2 * cin)
        self.weight = nn.Parameter(torch.randn(cout, 2 * cin))
        self.scale = OuterScale(n, k, cout, einsum)
        self.act = nn.PReLU(cout)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        xx = (x * x).sum(-1, keepdim=True)
        neg_dist = 2 * x @ x.mT - xx - xx.mT
        nbr = neg_dist.topk(self.k, dim=-1).indices
        xj = torch.stack([x[i].index_select(0, nbr[i].flatten()) for i in range(b)]).view(b, n, self.k, c)
        xi = x[:, :, None, :].repeat(1, 1, self.k, 1)
        h = self.norm(torch.cat([xj - xi, xi], -1)).sign()
        h = self.scale(torch.matmul(h, self.weight.sign().T))
        h = self.act(h.movedim(-1, 1)).movedim(1, -1)
        return h.max(dim=-2)[0]


class RankOneRF(nn.Module):
    def __init__(self, n: int, k: int, channels: tuple[int, ...], embedding: int, classes: int):
        super().__init__()
        sizes = (3, *channels)
        self.blocks = nn.ModuleList(
            Block(n, k, a, b, i % 2 == 1) for i, (a, b) in enumerate(zip(sizes, channels, strict=False))
        )
        self.norm = HandNorm(sum(channels))
        self.weight = nn.Parameter(torch.randn(embedding, sum(channels)))
        self.scale = nn.Parameter(torch.ones(embedding))
        self.act = nn.PReLU()
        self.out = nn.Linear(2 * embedding, classes)

    def forward(self, x: Tensor) -> Tensor:
        feats = []
        for block in self.blocks:
            x = block(x)
            feats.append(x)
        h = self.norm(torch.cat(feats, -1)).sign()
        h = self.act(torch.matmul(h, self.weight.sign().T) * self.scale)
        return self.out(torch.cat([h.max(1)[0], h.mean(1)], -1))


def make(
    seed: int,
    batch: int = 2,
    points: int = 20,
    k: int = 4,
    channels: tuple[int, ...] = (16, 24, 32),
    embedding: int = 48,
    classes: int = 5,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode, with random weights and statistics, and its input `x` f32 `[B, N, 3]`."""
    g = torch.Generator().manual_seed(seed)
    model = RankOneRF(points, k, channels, embedding, classes)
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("var"):
                t.copy_(torch.rand(t.shape, generator=g) * 2 + 0.5)
            elif name.endswith("act.weight"):
                t.copy_(torch.randn(t.shape, generator=g) * 0.4)
            elif name.endswith(("scale.alpha", "scale.beta", "scale.gamma", "scale")):
                t.copy_(torch.randn(t.shape, generator=g))
            else:
                t.copy_(torch.randn(t.shape, generator=g) * 0.5)
    return model.eval(), (torch.randn((batch, points, 3), generator=g),)
