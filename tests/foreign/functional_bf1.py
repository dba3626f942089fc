"""BF1 by someone who dislikes modules: parameters in a dict and `torch.nn.functional`.

What is peculiar: the sign is `(x >= 0).float() * 2 - 1`, the Hamming distance counts `!=` of broadcast
features (an int64 tensor goes into topk), BatchNorm is functional and comes after the max, the 1x1
convolution is an einsum in one place and a matmul elsewhere, the x_i half is expanded, not repeated, and
the weights are stored as +-1 already.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def binary(x: Tensor) -> Tensor:
    return (x >= 0).float() * 2 - 1


def hamming_knn(x: Tensor, k: int) -> Tensor:
    distance = (x.unsqueeze(2) != x.unsqueeze(1)).sum(-1)
    return torch.topk(distance, k, dim=-1, largest=False)[1]


def euclid_knn(x: Tensor, k: int) -> Tensor:
    gram = torch.bmm(x, x.transpose(1, 2))
    square = torch.diagonal(gram, dim1=1, dim2=2)
    return torch.topk(square.unsqueeze(1) + square.unsqueeze(2) - 2 * gram, k, dim=-1, largest=False)[1]


def gather_rows(x: Tensor, idx: Tensor) -> Tensor:
    b, n, c = x.shape
    k = idx.shape[2]
    rows = torch.gather(x, 1, idx.reshape(b, n * k, 1).expand(-1, -1, c))
    return rows.reshape(b, n, k, c)


class BF1(nn.Module):
    def __init__(self, p: dict[str, Tensor], k: int, layers: int):
        super().__init__()
        self.k, self.layers = k, layers
        for name, value in p.items():
            self.register_buffer(name, value)

    def norm(self, x: Tensor, name: str) -> Tensor:
        flat = x.flatten(0, -2)
        out = F.batch_norm(
            flat,
            getattr(self, f"{name}_mean"),
            getattr(self, f"{name}_var"),
            getattr(self, f"{name}_weight"),
            getattr(self, f"{name}_bias"),
            eps=1e-3,
        )
        return out.unflatten(0, x.shape[:-1])

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        x, kept = points, []
        for i in range(self.layers):
            idx = hamming_knn(x, self.k) if i else euclid_knn(x, self.k)
            xj = gather_rows(x, idx)
            xi = x.unsqueeze(2).expand_as(xj)
            edge = torch.neg(xi * xj) if i else xj - xi
            e = torch.einsum("bnkc,dc->bnkd", torch.cat([xi, edge], 3), getattr(self, f"w{i}"))
            e = e * getattr(self, f"gamma{i}")
            e = torch.maximum(e, torch.zeros_like(e)) + getattr(self, f"slope{i}") * torch.minimum(
                e, torch.zeros_like(e)
            )
            x = binary(self.norm(torch.amax(e, dim=2), f"bn{i}"))
            kept.append(x)
        h = torch.cat(kept, -1) @ self.w_embed
        h = F.leaky_relu(h * self.gamma_embed, 0.2)
        pooled = torch.cat([h.amax(1), h.sum(1) / h.shape[1]], 1)
        code = binary(self.norm(pooled, "bn_head"))
        hidden = F.leaky_relu(F.linear(code, self.w_hidden) * self.gamma_hidden, 0.2)
        return torch.log_softmax(hidden @ self.w_out + self.b_out, 1), code


def make(
    seed: int,
    batch: int = 2,
    points: int = 26,
    k: int = 5,
    channels: tuple[int, ...] = (16, 24, 36),
    embedding: int = 64,
    hidden: int = 40,
    classes: int = 6,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode, with random weights and statistics, and its input `points` f32 `[B, N, 3]`."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    p: dict[str, Tensor] = {}

    def bn(name: str, c: int) -> None:
        p[f"{name}_mean"], p[f"{name}_var"] = normal(c), torch.rand(c, generator=g) * 3 + 0.2
        p[f"{name}_weight"], p[f"{name}_bias"] = normal(c), normal(c)

    cin = 3
    for i, cout in enumerate(channels):
        p[f"w{i}"] = binary(normal(cout, 2 * cin))
        p[f"gamma{i}"], p[f"slope{i}"] = normal(cout), normal(cout) * 0.5
        bn(f"bn{i}", cout)
        cin = cout
    p["w_embed"] = binary(normal(sum(channels), embedding))
    p["gamma_embed"] = normal(embedding)
    bn("bn_head", 2 * embedding)
    p["w_hidden"] = binary(normal(hidden, 2 * embedding))
    p["gamma_hidden"] = normal(hidden)
    p["w_out"], p["b_out"] = normal(hidden, classes) / hidden**0.5, normal(classes)
    return BF1(p, k, len(channels)).eval(), (torch.randn((batch, points, 3), generator=g),)
