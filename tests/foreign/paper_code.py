"""BF2 with Hamming k-NN in the style of the binary GNN paper's research code.

What is peculiar: latent weights are clamped *in place* inside forward (`weight.data = clamp(...)`), the
sign is an autograd Function around `torch.sign`, the k-NN is `topk(-relu(-(XX^T - C)))`, neighbours come
from a flattened index, the edge stands before x_i in the cat, Gamma is a product of parameters `[1, C, 1,
1]`, `[1, 1, 1, 1]`, and forward returns the intermediate features and edge lists beside the logits.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class BinarySign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1).to(grad.dtype)


def knn_l2(x, k):
    inner = -2 * torch.matmul(x, x.transpose(2, 1))
    xx = torch.sum(x**2, dim=2, keepdim=True)
    return (-xx - inner - xx.transpose(2, 1)).topk(k=k, dim=-1)[1]


def knn_hamming(x, k):
    similarity = torch.matmul(x, x.transpose(2, 1)) - x.shape[2]
    return (-F.relu(-similarity)).topk(k=k, dim=-1)[1]


def graph_feature(x, idx, binary):
    batch_size, num_points, num_dims = x.size()
    k = idx.shape[-1]
    idx_base = torch.arange(0, batch_size, device=x.device).view(-1, 1, 1) * num_points
    flat = (idx + idx_base).view(-1)
    neighbours = x.view(batch_size * num_points, -1)[flat, :].view(batch_size, num_points, k, num_dims)
    centre = x.view(batch_size, num_points, 1, num_dims).repeat(1, 1, k, 1)
    edge = -neighbours * centre if binary else neighbours - centre
    return torch.cat((edge, centre), dim=3).permute(0, 3, 1, 2).contiguous()


class BinaryConv2d(nn.Conv2d):
    def __init__(self, cin, cout):
        super().__init__(cin, cout, kernel_size=1, bias=False)
        self.scale_c = nn.Parameter(torch.ones(1, cout, 1, 1))
        self.scale_all = nn.Parameter(torch.ones(1, 1, 1, 1))

    def forward(self, x):
        self.weight.data = torch.clamp(self.weight.data, -1, 1)
        out = F.conv2d(x, BinarySign.apply(self.weight), None, self.stride, self.padding)
        return out * self.scale_c * self.scale_all


class BinaryLinear(nn.Linear):
    def __init__(self, cin, cout):
        super().__init__(cin, cout, bias=False)
        self.scale = nn.Parameter(torch.ones(1, cout))

    def forward(self, x):
        self.weight.data = torch.clamp(self.weight.data, -1, 1)
        return F.linear(x, BinarySign.apply(self.weight)) * self.scale


class XorBlock(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.conv = BinaryConv2d(2 * cin, cout)
        self.prelu = nn.PReLU(cout)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, feature):
        x = self.bn(self.prelu(self.conv(feature)))
        x = x.max(dim=-1, keepdim=False)[0]
        return BinarySign.apply(x).transpose(2, 1).contiguous()


class PaperDGCNN(nn.Module):
    def __init__(self, k, channels, embedding, hidden, classes):
        super().__init__()
        self.k = k
        self.blocks = nn.ModuleList(
            XorBlock(cin, cout) for cin, cout in zip((3, *channels[:-1]), channels, strict=True)
        )
        self.conv5 = BinaryConv2d(sum(channels), embedding)
        self.act5 = nn.PReLU(embedding)
        self.bn6 = nn.BatchNorm1d(2 * embedding)
        self.linear1 = BinaryLinear(2 * embedding, hidden)
        self.act6 = nn.PReLU(hidden)
        self.drop = nn.Dropout(0.5)
        self.linear2 = nn.Linear(hidden, classes)

    def forward(self, points):
        x, features, edges = points, [], []
        for i, block in enumerate(self.blocks):
            idx = knn_l2(x, self.k) if i == 0 else knn_hamming(x, self.k)
            x = block(graph_feature(x, idx, binary=i > 0))
            features.append(x)
            edges.append(idx)
        x = torch.cat(features, dim=2).transpose(2, 1).unsqueeze(-1)
        x = self.act5(self.conv5(x)).squeeze(-1)
        maximum = F.adaptive_max_pool1d(x, 1).view(x.shape[0], -1)
        average = F.adaptive_avg_pool1d(x, 1).view(x.shape[0], -1)
        x = BinarySign.apply(self.bn6(torch.cat((maximum, average), 1)))
        x = self.drop(self.act6(self.linear1(x)))
        return self.linear2(x), features, edges


def make(
    seed: int,
    batch: int = 2,
    points: int = 32,
    k: int = 5,
    channels: tuple[int, ...] = (16, 16, 24, 32),
    embedding: int = 64,
    hidden: int = 32,
    classes: int = 10,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode, with random weights and statistics, and its input `points` f32 `[B, N, 3]`."""
    g = torch.Generator().manual_seed(seed)
    model = PaperDGCNN(k, channels, embedding, hidden, classes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bn" in name or "scale" in name:
                p.copy_(torch.randn(p.shape, generator=g))
            elif "prelu" in name or "act" in name:
                p.copy_(torch.randn(p.shape, generator=g) * 0.4)
            else:
                p.copy_(torch.randn(p.shape, generator=g))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(torch.randn(b.shape, generator=g) * 2)
            elif name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=g) * 4 + 0.5)
    return model.eval(), (torch.rand((batch, points, 3), generator=g) * 2 - 1,)
