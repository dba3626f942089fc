"""The `bgnn::` ops: what ATen has no word for, each with a plain PyTorch reference that runs.

The IR is an FX graph over ATen plus these ops. Every op is implemented here in ordinary PyTorch, so the
graph can be executed after each pass: that is how passes are tested and how verification finds the one
that broke something. No second interpreter exists.

Tensors are channels-last from the semantic stage on: the last axis is the feature axis. A *packed* tensor is
int32 `[..., ceil(C/32)]`: bit `i` of word `w` is set where channel `32*w+i` is -1; padding bits are 0
(Larq Compute Engine's encoding).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WORD = 32
_library = torch.library.Library("bgnn", "DEF")
_BIT_VALUES = [1 << i for i in range(31)] + [-(1 << 31)]  # the values of an int32's bits


def packed_words(channels: int) -> int:
    """The number of int32 words that `channels` bits take."""
    return -(-channels // WORD)


def binarize(x: Tensor) -> Tensor:
    """The sign with sign(0) = +1 (binary GNN paper, Eq. 8). `x`: real `[...]`; returns -1 or +1, same dtype.

    NaN gives -1 (the comparison is false), as `torch.where(x >= 0, 1, -1)` does.
    """
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Eval-mode batch normalisation over the last axis of f32 `x[..., C]`; parameters f32 `[C]`.

    It calls PyTorch's own kernel on a channel-first view, so that the rounding is the model's.
    """
    flat = x.reshape(-1, x.shape[-1]).t().contiguous().unsqueeze(0)
    out = F.batch_norm(flat, mean, var, weight, bias, training=False, eps=eps)
    return out.squeeze(0).t().reshape(x.shape).contiguous()


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """PReLU over the last axis: `x` f32 `[..., C]`, slope `weight` f32 `[C]` or `[1]`."""
    return torch.where(x > 0, x, x * weight)


def topk_lowest(x: Tensor, k: int, dim: int, largest: bool) -> tuple[Tensor, Tensor]:
    """`torch.topk` with its open point settled: equal values go to the lowest index.

    `x` real `[...]`; returns (values, int64 indices) with `k` entries along `dim`. TFLite's TOPK_V2 and ONNX
    Runtime's TopK follow the same rule.
    """
    values, indices = torch.sort(x, dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k).contiguous(), indices.narrow(dim, 0, k).contiguous()


def knn(x: Tensor, k: int, metric: str, group: Tensor | None = None) -> Tensor:
    """The k nearest nodes of every node, itself included; equal distances go to the lowest index.

    With `group`, int `[B, N]`: of the nodes with the same number alone; where these are too few, the lowest indices of
    the others follow.

    `x`: `[B, N, C]`; `metric`: "l2" for real features, "hamming" for features of +-1 (paper, Eq. 21: a matrix
    product); returns int64 `[B, N, k]`, nearest first.
    """
    if k > x.shape[1]:
        raise ValueError(f"knn: k={k} is more than the {x.shape[1]} nodes")
    return topk_lowest(knn_scores(x, metric, group), k, -1, True)[1]


def knn_scores(x: Tensor, metric: str, group: Tensor | None = None) -> Tensor:
    """What `knn` takes the largest of: f32 `[B, N, N]`; arguments as there."""
    if metric not in ("l2", "hamming"):
        raise ValueError(f"knn: metric {metric!r} is neither 'l2' nor 'hamming'")
    score = x @ x.transpose(1, 2)
    if metric == "l2":
        square = (x * x).sum(-1)
        score = 2 * score - square[:, None, :]  # the row's own |x_i|^2 does not change its order
    if group is not None:
        score = score.masked_fill(group[:, :, None] != group[:, None, :], float("-inf"))
    return score


def gather_nodes(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each batch element: `x[B, N, C]` (any dtype), `index` int `[B, M, k]` -> `[B, M, k, C]`."""
    batch = torch.arange(x.shape[0], device=x.device).view(-1, 1, 1)
    return x[batch, index.long()]


def dot_threshold(x: Tensor, weight: Tensor, thresholds: Tensor) -> Tensor:
    """A binary dense layer and everything up to the next sign, as a boolean function of its integer result.

    `x` +-1 f32 `[..., K]`, `weight` +-1 f32 `[O, K]`, `thresholds` int32 `[T, O]`. With p = (K - dot)/2 differing
    signs, each threshold with `p > threshold` turns the output's sign once, starting from +1: one is a plain
    threshold, two an interval, T any table of T steps. Returns +-1 f32 `[..., O]`.
    """
    differing = (x.shape[-1] - F.linear(x, weight)) / 2
    out = torch.ones_like(differing)
    for row in thresholds.unbind(0):
        out = torch.where(differing > row, -out, out)
    return out


def pack(x: Tensor) -> Tensor:
    """Signs to bits: real `[..., C]` -> packed int32 `[..., ceil(C/32)]`; bit 1 where `x < 0`."""
    channels = x.shape[-1]
    words = packed_words(channels)
    bits = F.pad((x < 0).to(torch.int32), (0, words * WORD - channels))
    values = torch.tensor(_BIT_VALUES, dtype=torch.int32, device=x.device)
    return (bits.reshape(*x.shape[:-1], words, WORD) * values).sum(-1, dtype=torch.int32)


def unpack(p: Tensor, channels: int) -> Tensor:
    """Bits to signs: packed int32 `[..., W]` -> f32 `[..., channels]` of +-1."""
    values = torch.tensor(_BIT_VALUES, dtype=torch.int32, device=p.device)
    bits = (p.unsqueeze(-1) & values) != 0
    flat = bits.reshape(*p.shape[:-1], p.shape[-1] * WORD)[..., :channels]
    return 1.0 - 2.0 * flat.to(torch.float32)


def binary_dot(x: Tensor, weight: Tensor, channels_in: int) -> Tensor:
    """K - 2 popcount(x xor w): packed `x[..., W]`, `weight[O, W]` -> f32 integers `[..., O]`, K = channels_in."""
    return F.linear(unpack(x, channels_in), unpack(weight, channels_in))


def bconv(x: Tensor, weight: Tensor, channels_in: int, multiplier: Tensor, bias: Tensor) -> Tensor:
    """Binary dense layer with real output (LceBconv2d, 1x1): `dot * multiplier + bias`, f32 `[..., O]`.

    `x` packed `[..., W]`, `weight` packed `[O, W]`, `multiplier` and `bias` f32 `[O]`. Written as LCE computes it,
    from p = popcount(x xor w), so that it rounds alike: `p * (-2 multiplier) + (bias + K multiplier)`, in which the
    last sum is rounded once.
    """
    differing = (channels_in - binary_dot(x, weight, channels_in)) / 2
    return differing * (-2 * multiplier) + (bias.double() + channels_in * multiplier.double()).to(bias.dtype)


def bconv_bits(x: Tensor, weight: Tensor, channels_in: int, threshold: Tensor) -> Tensor:
    """Binary dense layer with packed output: bit 1 (a -1) where popcount(x xor w) > threshold.

    `x` packed `[..., W]`, `weight` packed `[O, W]`, `threshold` int32 `[O]`; returns packed `[..., ceil(O/32)]`.
    """
    differing = (channels_in - binary_dot(x, weight, channels_in)) / 2
    return pack(torch.where(differing > threshold, -1.0, 1.0))


def packed_max(x: Tensor, dim: int) -> Tensor:
    """Maximum over axis `dim` (not the last) of the signs in a packed tensor: a bitwise AND; drops the axis."""
    words = x.unbind(dim)
    out = words[0]
    for word in words[1:]:
        out = out & word
    return out.clone()


# The project's own operators (`--kernels bgnn`): each is one fused kernel of runtime_bench/kernels.


def hamming_knn(x: Tensor, channels: int, k: int) -> Tensor:
    """The k nearest rows by Hamming distance, itself included: packed `[B, N, W]` -> int64 `[B, N, k]`.

    Nearest first, equal distances by index: popcount(x_i xor x_j) of paper appendix B.2, without an N x N matrix.
    """
    return knn(unpack(x, channels), k, "hamming")


def real_knn(x: Tensor, k: int) -> Tensor:
    """The k nearest rows by squared distance, itself included: f32 `[B, N, C]` -> int64 `[B, N, k]`.

    The distance is the sum over channels, in their order, of `(x_i - x_j)^2` in f32, each step rounded.
    """
    distance = torch.zeros(x.shape[0], x.shape[1], x.shape[1], device=x.device)
    for column in x.unbind(2):
        step = column[:, :, None] - column[:, None, :]
        distance = distance + step * step
    return topk_lowest(distance, k, 2, False)[1]


def gather_max(x: Tensor, index: Tensor) -> Tensor:
    """The maximum over the neighbours: f32 `[B, N, C]`, int `[B, M, k]` -> f32 `[B, M, C]`."""
    return gather_nodes(x, index).amax(2)


def edge_max(x: Tensor, node: Tensor, index: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """A factored edge layer with rank-1 rescaling (paper, Eq. 11): max over j of `((x_j + node_i) * beta_i) * gamma_j`.

    `x` and `node` f32 `[B, N, C]`, `index` int `[B, N, k]`, `beta` f32 `[N]` or `[1]`, `gamma` f32 `[k]` or `[1]`;
    returns f32 `[B, N, C]`.
    """
    return (((gather_nodes(x, index) + node.unsqueeze(2)) * beta[:, None, None]) * gamma[:, None]).amax(2)


def xor_edge_layer(x: Tensor, index: Tensor, weight: Tensor, thresholds: Tensor) -> Tensor:
    """XorEdgeConv up to the next sign (paper, Eq. 17-20), on signs: max over j of dot_threshold([x_i, x_i * x_j]).

    `x` +-1 f32 `[B, N, C]`, `index` int `[B, N, k]`, `weight` +-1 f32 `[O, 2C]` (node half, then edge half),
    `thresholds` int32 `[T, O]`; returns +-1 f32 `[B, N, O]`.
    """
    other = gather_nodes(x, index)
    node = x.unsqueeze(2).expand(other.shape)
    return dot_threshold(torch.cat([node, node * other], 3), weight, thresholds).amax(2)


def xor_edge_conv(x: Tensor, index: Tensor, weight: Tensor, thresholds: Tensor, channels: int) -> Tensor:
    """`xor_edge_layer` on bits: packed `[B, N, W]`, weights packed `[O, 2W]` (each half padded by itself) -> packed."""
    words = x.shape[-1]
    signs = torch.cat([unpack(weight[:, :words], channels), unpack(weight[:, words:], channels)], 1)
    return pack(xor_edge_layer(unpack(x, channels), index, signs, thresholds))


def bin_edge_layer(
    node_signs: Tensor, x: Tensor, index: Tensor, edge_scale: Tensor, edge_shift: Tensor, weight: Tensor,
    alpha: Tensor, beta: Tensor, gamma: Tensor, slope: Tensor,
) -> Tensor:  # fmt: skip
    """BinEdgeConv with rank-1 rescaling (paper, Eq. 11-13), its node half already signs.

    `node_signs` +-1 f32 `[B, N, C]`, `x` f32 `[B, N, C]`, `index` int `[B, N, k]`; edge signs are those of
    `(x_j - x_i) * edge_scale + edge_shift` (`[C]`); `weight` +-1 f32 `[O, 2C]`; the dot product times `alpha` `[O]`,
    `beta` `[N]` and `gamma` `[k]`, then PReLU with `slope` `[O]` or `[1]`, then the maximum over j: f32 `[B, N, O]`.
    """
    dot = F.linear(bin_edge_signs(node_signs, x, index, edge_scale, edge_shift), weight)
    return prelu(dot * alpha * beta[:, None, None] * gamma[:, None], slope).amax(2)


def bin_edge_signs(node_signs: Tensor, x: Tensor, index: Tensor, edge_scale: Tensor, edge_shift: Tensor) -> Tensor:
    """The signs that `bin_edge_layer` makes of its operands, node half first: +-1 f32 `[B, N, k, 2C]`."""
    other = gather_nodes(x, index)
    edge = binarize((other - x.unsqueeze(2)) * edge_scale + edge_shift)
    return torch.cat([node_signs.unsqueeze(2).expand(edge.shape), edge], 3)


def bin_edge_conv(
    node_bits: Tensor, x: Tensor, index: Tensor, edge_scale: Tensor, edge_shift: Tensor, weight: Tensor,
    alpha: Tensor, beta: Tensor, gamma: Tensor, slope: Tensor, channels: int,
) -> Tensor:  # fmt: skip
    """`bin_edge_layer` on bits: `node_bits` packed `[B, N, W]`, `weight` packed `[O, 2W]` (each half by itself)."""
    words = node_bits.shape[-1]
    signs = torch.cat([unpack(weight[:, :words], channels), unpack(weight[:, words:], channels)], 1)
    nodes = unpack(node_bits, channels)
    return bin_edge_layer(nodes, x, index, edge_scale, edge_shift, signs, alpha, beta, gamma, slope)


def dense_pool(x: Tensor, weight: Tensor, scale: Tensor | None, channels: int) -> Tensor:
    """`dense_pool_layer` on bits: packed `[B, N, W]`, weights packed `[O, W]` -> f32 `[B, 4, O]`."""
    return dense_pool_layer(unpack(x, channels), unpack(weight, channels), scale)


def dense_pool_layer(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """A binary dense layer reduced over the points: +-1 f32 `[B, N, K]`, `[O, K]` -> f32 `[B, 4, O]`.

    The four rows are the largest and the smallest dot product, the sum of the positive ones and of the negative ones,
    all integers; with `scale` f32 `[N]`, of the dot products times each point's factor.
    """
    dot = F.linear(x, weight)
    if scale is not None:
        dot = dot * scale[:, None]
    return torch.stack([dot.amax(1), dot.amin(1), dot.clamp(min=0).sum(1), dot.clamp(max=0).sum(1)], 1)


_OPS: list[tuple[str, object]] = [
    ("binarize(Tensor x) -> Tensor", binarize),
    ("batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps) -> Tensor", batch_norm),
    ("prelu(Tensor x, Tensor weight) -> Tensor", prelu),
    ("topk_lowest(Tensor x, int k, int dim, bool largest) -> (Tensor, Tensor)", topk_lowest),
    ("knn(Tensor x, int k, str metric, Tensor? group=None) -> Tensor", knn),
    ("gather_nodes(Tensor x, Tensor index) -> Tensor", gather_nodes),
    ("dot_threshold(Tensor x, Tensor weight, Tensor thresholds) -> Tensor", dot_threshold),
    ("pack(Tensor x) -> Tensor", pack),
    ("unpack(Tensor p, int channels) -> Tensor", unpack),
    ("bconv(Tensor x, Tensor weight, int channels_in, Tensor multiplier, Tensor bias) -> Tensor", bconv),
    ("bconv_bits(Tensor x, Tensor weight, int channels_in, Tensor threshold) -> Tensor", bconv_bits),
    ("packed_max(Tensor x, int dim) -> Tensor", packed_max),
    ("hamming_knn(Tensor x, int channels, int k) -> Tensor", hamming_knn),
    ("real_knn(Tensor x, int k) -> Tensor", real_knn),
    ("gather_max(Tensor x, Tensor index) -> Tensor", gather_max),
    ("edge_max(Tensor x, Tensor node, Tensor index, Tensor beta, Tensor gamma) -> Tensor", edge_max),
    ("xor_edge_layer(Tensor x, Tensor index, Tensor weight, Tensor thresholds) -> Tensor", xor_edge_layer),
    ("xor_edge_conv(Tensor x, Tensor index, Tensor weight, Tensor thresholds, int channels) -> Tensor", xor_edge_conv),
    (
        "bin_edge_layer(Tensor node_signs, Tensor x, Tensor index, Tensor edge_scale, Tensor edge_shift, "
        "Tensor weight, Tensor alpha, Tensor beta, Tensor gamma, Tensor slope) -> Tensor",
        bin_edge_layer,
    ),
    (
        "bin_edge_conv(Tensor node_bits, Tensor x, Tensor index, Tensor edge_scale, Tensor edge_shift, "
        "Tensor weight, Tensor alpha, Tensor beta, Tensor gamma, Tensor slope, int channels) -> Tensor",
        bin_edge_conv,
    ),
    ("dense_pool_layer(Tensor x, Tensor weight, Tensor? scale=None) -> Tensor", dense_pool_layer),
    ("dense_pool(Tensor x, Tensor weight, Tensor? scale, int channels) -> Tensor", dense_pool),
]
for _schema, _reference in _OPS:
    _library.define(_schema)
    # Composite: under fake tensors the reference itself gives shapes and dtypes, so no second description exists.
    _library.impl(_schema.split("(")[0], _reference, "CompositeExplicitAutograd")

ops = torch.ops.bgnn
