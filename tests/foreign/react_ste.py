"""RF as a ReActNet user writes it: real features, binary edge MLPs, everything channels-last.

What is peculiar: the straight-through estimator is `(sign(x) - x).detach() + x` (whose value differs from
+-1 by an ulp), weights are scaled by their mean absolute value before the linear, a learnable shift stands
before the sign (RSign) and around the PReLU (RPReLU), nodes are gathered by `x[batch, idx]`, the k-NN is a
broadcast difference, and BatchNorm runs on a `[-1, C]` reshape.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def ste_sign(x: Tensor) -> Tensor:
    return (torch.sign(x) - x).detach() + x


class RSign(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return ste_sign(x + self.shift)


class RPReLU(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.before = nn.Parameter(torch.zeros(channels))
        self.act = nn.PReLU(channels)
        self.after = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        y = self.act((x - self.before).reshape(-1, shape[-1]))
        return y.reshape(shape) + self.after


class XnorLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        alpha = self.weight.abs().mean(dim=1, keepdim=True)
        centred = self.weight - self.weight.mean(dim=1, keepdim=True)
        return F.linear(x, alpha * ste_sign(centred), self.bias)


class LastNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis of any tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class ReActEdgeConv(nn.Module):
    def __init__(self, cin: int, cout: int, k: int):
        super().__init__()
        self.k = k
        self.norm = LastNorm(2 * cin)
        self.sign = RSign(2 * cin)
        self.linear = XnorLinear(2 * cin, cout)
        self.act = RPReLU(cout)

    def forward(self, x: Tensor) -> Tensor:
        dist = (x[:, :, None] - x[:, None]).pow(2).sum(-1)
        idx = dist.argsort(-1)[..., : self.k] if self.k == 1 else dist.topk(self.k, largest=False)[1]
        batch = torch.arange(x.shape[0], device=x.device)[:, None, None]
        xj = x[batch, idx]
        xi = x[:, :, None].expand(-1, -1, self.k, -1)
        e = torch.cat((xi, xj - xi), -1)
        return self.act(self.linear(self.sign(self.norm(e)))).max(2).values


class ReActDGCNN(nn.Module):
    def __init__(self, k: int, channels: tuple[int, ...], embedding: int, hidden: int, classes: int):
        super().__init__()
        self.convs = nn.ModuleList(ReActEdgeConv(a, b, k) for a, b in zip((3, *channels), channels, strict=False))
        self.embed = nn.Sequential(
            LastNorm(sum(channels)), RSign(sum(channels)), XnorLinear(sum(channels), embedding, bias=False)
        )
        self.embed_act = RPReLU(embedding)
        self.head = nn.Sequential(
            nn.BatchNorm1d(2 * embedding),
            RSign(2 * embedding),
            XnorLinear(2 * embedding, hidden),
            RPReLU(hidden),
            nn.Dropout(0.3),
            nn.Linear(hidden, classes),
        )

    def forward(self, cloud: Tensor) -> dict[str, Tensor]:
        outs = []
        x = cloud
        for conv in self.convs:
            x = conv(x)
            outs.append(x)
        x = self.embed_act(self.embed(torch.cat(outs, -1)))
        x = torch.cat((x.max(1).values, x.mean(1)), -1)
        return {"logits": self.head(x)}


def make(
    seed: int,
    batch: int = 2,
    points: int = 28,
    k: int = 4,
    channels: tuple[int, ...] = (12, 16, 20),
    embedding: int = 40,
    hidden: int = 24,
    classes: int = 5,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode, with random weights and statistics, and its input `cloud` f32 `[B, N, 3]`."""
    g = torch.Generator().manual_seed(seed)
    model = ReActDGCNN(k, channels, embedding, hidden, classes)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            scale = 0.3 if isinstance(module, (nn.PReLU, RPReLU, RSign)) else 1.0
            p.data = torch.randn(p.shape, generator=g) * scale
            if isinstance(module, nn.Linear) and name == "weight":
                p.data = p.data / p.shape[1] ** 0.5
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean = torch.randn(module.num_features, generator=g) * 0.5
            module.running_var = torch.rand(module.num_features, generator=g) * 2 + 0.3
    return model.eval(), (torch.randn(batch, points, 3, generator=g),)
