"""The DGCNN family as the binary GNN paper's public code has it: command-line flags, a wrapper block, `[B, 3, N]`.

What is peculiar: every choice is a flag with the default that the public code has (`FLAGS`); the last layer has flags
of its own, so its inputs stay real when all others are signs; the fp32 network uses LeakyReLU(0.2); rescalings have
one factor, over the channels, unless asked; balance functions work along axis 0 and the mean is that of the first
cloud; a block may hold a BatchNorm that it never applies; latent weights are clamped in place; forward returns the
node features and edge lists beside the logits. The keys of its state_dict are those that `--arch` reads.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLAGS: dict[str, Any] = {
    "k": 20, "num_points": 1024, "emb_dims": 1024, "widths": (64, 64, 128, 256), "mlp": (512, 256), "classes": 40,
    "quantize_weights": False, "quantize_inputs": False, "pseudo_quantize": True, "prelu_in_blocks": True,
    "conv_prelu": True, "rescale_H": False, "rescale_W": False, "rescale_L": False, "knn_op": "l2",
    "global_balance_op": "none", "global_balance_axis": 0, "edge_balance_op": "none", "edge_balance_axis": 0,
    "ll_quantize_weights": False, "ll_quantize_inputs": False, "ll_pseudo_quantize": False,
}  # fmt: skip


class Hard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.sign(x)


def closest(score: Tensor, k: int) -> Tensor:
    """Of equal scores topk takes any; a test may put a rule in its place."""
    return score.topk(k=k, dim=-1)[1]


def by_lp(x, k, p):
    rows = x.transpose(1, 2)
    return closest(-torch.cdist(rows, rows, p=p), k)


def by_agreement(x, k):
    rows = x.transpose(1, 2)
    return closest(-F.relu(-(torch.matmul(rows, rows.transpose(1, 2)) - rows.shape[2])), k)


SEARCHES = {"l1": lambda x, k: by_lp(x, k, 1), "l2": lambda x, k: by_lp(x, k, 2), "hamming": by_agreement}


def graph_feature(x, k, search="l2", xor=False):
    b, c, n = x.shape
    idx = (SEARCHES[search](x, k) + torch.arange(b).view(-1, 1, 1) * n).view(-1)
    x = x.transpose(2, 1).contiguous()
    near = x.view(b * n, c)[idx, :].view(b, n, k, c)
    x = x.view(b, n, 1, c).repeat(1, 1, k, 1)
    edge = -near * x if xor else near - x
    return torch.cat((edge, x), dim=3).permute(0, 3, 1, 2).contiguous(), idx


class Dot(nn.Module):
    def __init__(self, i, o, dims, hard):
        super().__init__()
        self.dims, self.hard = dims, hard
        self.weights_real = nn.Parameter(torch.randn(o, i, *[1] * dims))

    def forward(self, x):
        w = self.weights_real
        if self.hard:
            self.weights_real.data = torch.clamp(self.weights_real.data, -1, 1)
            w = Hard.apply(self.weights_real)
        return (F.linear, F.conv1d, F.conv2d)[self.dims](x, w)


class Scale(nn.Module):
    def __init__(self, *lengths):
        super().__init__()
        for axis, (letter, length) in enumerate(zip("abc", lengths, strict=False)):
            shape = [length if i == axis else 1 for i in range(len(lengths))]
            self.register_parameter(f"scale_{letter}", nn.Parameter(torch.rand(shape) + 0.5))

    def forward(self, x):
        for scale in self.parameters():
            x = x * scale
        return x


def squash(hard, pseudo):
    if hard:
        return lambda x: Hard.apply(x)
    return torch.tanh if pseudo else lambda x: x


class Block(nn.Module):
    def __init__(self, i, o, dims, lengths, hard_w, hard_x, prelu, pseudo, normed=True):
        super().__init__()
        self.activ = nn.PReLU() if prelu else None
        self.center = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(i)
        self.core_op = Dot(i, o, dims, hard_w)
        self.rescale = Scale(o, *lengths)
        self.quantizer, self.normed = squash(hard_x, pseudo), normed

    def forward(self, x):
        x = self.center(x) if self.normed else x
        x = self.rescale(self.core_op(self.quantizer(x)))
        return x if self.activ is None else self.activ(x)


class Head(nn.Module):
    """Pooling and the classifier, which the three binary networks share."""

    def head(self, a, normed=True):
        m1, m2 = a.mlp
        weights, inputs, prelu, pseudo = a.quantize_weights, a.quantize_inputs, a.prelu_in_blocks, a.pseudo_quantize
        self.linear1 = Block(2 * a.emb_dims, m1, 0, (), weights, inputs, prelu, pseudo, normed)
        self.linear2 = Block(m1, m2, 0, (), weights, inputs, prelu, pseudo)
        self.linear3 = Block(
            m2, a.classes, 0, (), a.ll_quantize_weights, a.ll_quantize_inputs, False, a.ll_pseudo_quantize
        )

    def pooled(self, x):
        b = x.shape[0]
        return torch.cat((F.adaptive_max_pool1d(x, 1).view(b, -1), F.adaptive_avg_pool1d(x, 1).view(b, -1)), 1)

    def classify(self, x):
        return self.linear3(self.linear2(self.linear1(x)))


class Base(Head):
    def __init__(self, a):
        super().__init__()
        self.a = a
        c = a.widths
        for i, (before, width) in enumerate(zip((3, *c[:-1]), c, strict=True), 1):
            setattr(self, f"bn{i}", nn.BatchNorm2d(width))
            conv = nn.Conv2d(2 * before, width, kernel_size=1, bias=False)
            setattr(self, f"conv{i}", nn.Sequential(conv, getattr(self, f"bn{i}"), nn.LeakyReLU(0.2)))
        self.bn5 = nn.BatchNorm1d(a.emb_dims)
        self.conv5 = nn.Sequential(nn.Conv1d(sum(c), a.emb_dims, 1, bias=False), self.bn5, nn.LeakyReLU(0.2))
        m1, m2 = a.mlp
        self.linear1, self.bn6 = nn.Linear(2 * a.emb_dims, m1, bias=False), nn.BatchNorm1d(m1)
        self.linear2, self.bn7 = nn.Linear(m1, m2), nn.BatchNorm1d(m2)
        self.linear3 = nn.Linear(m2, a.classes)

    def forward(self, x):
        kept = []
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x, edges = graph_feature(x, self.a.k)
            x = conv(x).max(dim=-1, keepdim=False)[0]
            kept.append((x, edges))
        x = self.pooled(self.conv5(torch.cat([x for x, _ in kept], dim=1)))
        x = F.leaky_relu(self.bn6(self.linear1(x)), negative_slope=0.2)
        return self.linear3(F.leaky_relu(self.bn7(self.linear2(x)), negative_slope=0.2)), kept


class RF(Head):
    def __init__(self, a):
        super().__init__()
        self.a = a
        high, wide = a.num_points if a.rescale_H else 1, a.k if a.rescale_W else 1
        for i, (before, width) in enumerate(zip((3, *a.widths[:-1]), a.widths, strict=True), 1):
            hard = a.quantize_inputs and i > 1
            block = Block(
                2 * before, width, 2, (high, wide), a.quantize_weights, hard, a.prelu_in_blocks, a.pseudo_quantize
            )
            setattr(self, f"conv{i}", block)
        self.conv5 = Block(
            sum(a.widths), a.emb_dims, 1, (a.num_points if a.rescale_L else 1,), a.quantize_weights,
            a.quantize_inputs, a.prelu_in_blocks, a.pseudo_quantize,
        )  # fmt: skip
        self.head(a)

    def forward(self, x):
        kept = []
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x, edges = graph_feature(x, self.a.k)
            x = conv(x).max(dim=-1, keepdim=False)[0]
            kept.append((x, edges))
        return self.classify(self.pooled(self.conv5(torch.cat([x for x, _ in kept], dim=1)))), kept


def centred(x, op, axis):
    if op == "mean":
        return x - x.mean(axis, keepdim=True)[0]
    return x - x.median(axis, keepdim=True)[0] if op == "median" else x


class BF1(Head):
    early = False  # the BatchNorm before the maximum
    normed = True  # the classifier's first

    def __init__(self, a):
        super().__init__()
        self.a = a
        high, wide = a.num_points if a.rescale_H else 1, a.k if a.rescale_W else 1
        for i, (before, width) in enumerate(zip((3, *a.widths[:-1]), a.widths, strict=True), 1):
            setattr(self, f"bn{i}", nn.BatchNorm2d(width) if self.early else nn.BatchNorm1d(width))
            setattr(self, f"conv{i}", self.conv(2 * before, width, 2, (high, wide)))
        self.bn5 = nn.BatchNorm1d(a.emb_dims)
        self.conv5 = self.conv(sum(a.widths), a.emb_dims, 1, (a.num_points if a.rescale_L else 1,))
        self.head(a, self.normed)
        self.quantizer = squash(a.quantize_inputs, a.pseudo_quantize)

    def conv(self, i, o, dims, lengths):
        act = nn.PReLU() if self.a.conv_prelu else nn.Identity()
        return nn.Sequential(Dot(i, o, dims, self.a.quantize_weights), Scale(o, *lengths), act)

    def forward(self, x):
        kept, a = [], self.a
        for i in range(1, 5):
            how = {"search": a.knn_op, "xor": a.quantize_inputs} if kept else {}
            x, edges = graph_feature(x, a.k, **how)
            x, norm = getattr(self, f"conv{i}")(x), getattr(self, f"bn{i}")
            x = norm(x).max(dim=-1, keepdim=False)[0] if self.early else norm(x.max(dim=-1, keepdim=False)[0])
            x = self.quantizer(centred(x, a.edge_balance_op, a.edge_balance_axis))
            kept.append((x, edges))
        x = self.pooled(self.bn5(self.conv5(torch.cat([x for x, _ in kept], dim=1))))
        return self.classify(centred(x, a.global_balance_op, a.global_balance_axis)), kept


class BF2(BF1):
    early = True


class Balanced(BF2):
    normed = False


NETWORKS = {"dgcnn": Base, "rf": RF, "bf1": BF1, "bf2": BF2, "bf1_bal": Balanced}
STAGES: dict[int, dict[str, Any]] = {
    1: {"quantize_weights": False, "quantize_inputs": False, "pseudo_quantize": True},
    2: {"quantize_weights": False, "quantize_inputs": True, "pseudo_quantize": False},
    3: {"quantize_weights": True, "quantize_inputs": True, "pseudo_quantize": False},
}


def make(name: str, stage: int = 3, seed: int = 0, **flags: Any) -> nn.Module:
    """One of NETWORKS in eval mode, with random weights and statistics; it takes clouds `[B, 3, N]`."""
    torch.manual_seed(seed)
    net = NETWORKS[name](SimpleNamespace(**{**FLAGS, **STAGES[stage], **flags}))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.normal_(module.weight, 0.8, 0.6)
                nn.init.normal_(module.bias, 0, 0.5)
                nn.init.normal_(module.running_mean, 0, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            elif isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight, -0.3, 0.3)
    return net.eval()
