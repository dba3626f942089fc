"""The binary GNN paper's building blocks: sign, rescaled binary dot products, k-NN, edge features.

Equation numbers are those of "Binary Graph Neural Networks" (CVPR 2021). Parameter names (`weights_real`,
`scale_a`, ...) are the ones that weights trained with the authors' code carry, so such files load unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SURROGATES = ("straight", "polynomial", "tanh")


class _SignSTE(torch.autograd.Function):
    """Sign as of `sign`; in its gradient another function takes its place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, zero: str, surrogate: str, sharpness: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate, ctx.sharpness = surrogate, sharpness
        return torch.where(x >= 0, 1.0, -1.0) if zero == "plus" else torch.sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        if ctx.surrogate == "straight":
            return torch.where(x.abs() <= 1, grads[0], 0.0), None, None, None
        if ctx.surrogate == "polynomial":
            return grads[0] * (2 - 2 * x.abs()).clamp_(min=0), None, None, None
        t = ctx.sharpness
        return grads[0] * ((1 - (t * x).tanh_().square_()) * max(t, 1.0)), None, None, None


def sign(x: Tensor, zero: str = "plus", surrogate: str = "straight", sharpness: float = 1.0) -> Tensor:
    """Sign of a float32 tensor of any shape as +-1.0, with the gradient of a surrogate.

    `zero`: "plus" has sign(0) = +1 (Eq. 8), where a NaN gives -1 (a comparison with NaN is false); "zero" is
    `torch.sign`, as in the authors' code, where sign(0) = 0.
    `surrogate`: "straight" passes the gradient where |x| <= 1 (straight-through estimator); "polynomial" is Bi-Real
    Net's, of slope 2 - 2 |x| there; "tanh" is IR-Net's max(1 / t, 1) tanh(t x), t the `sharpness`.
    """
    return _SignSTE.apply(x, zero, surrogate, sharpness)


def use_surrogate(model: nn.Module, kind: str, progress: float) -> None:
    """Sets the gradient of all signs in `model`: a name of SURROGATES, and how far its training is, 0 to 1.

    The sharpness of "tanh" rises from 0.1 to 10 with it, as in IR-Net.
    """
    for module in model.modules():
        if isinstance(module, Sign | BinaryDot):
            module.surrogate, module.sharpness = kind, 10 ** (2 * progress - 1)


class Sign(nn.Module):
    """`sign` as a module: the quantiser of stages 2 and 3."""

    def __init__(self, zero: str = "plus") -> None:
        super().__init__()
        self.zero = zero
        self.surrogate, self.sharpness = "straight", 1.0

    def forward(self, x: Tensor) -> Tensor:
        return sign(x, self.zero, self.surrogate, self.sharpness)


def center(x: Tensor, kind: str, dim: int) -> Tensor:
    """Balance function (section 5): `x` minus its mean or median along `dim`; "none" returns `x`.

    The median of an even count is the lower one of the middle two (`torch.median`), so at least half of the
    centred values are >= 0. "first_mean" takes the mean of the first cloud from every cloud of a batch, as the
    authors' code does.
    """
    if kind == "first_mean":
        return x - x.mean(dim, keepdim=True)[0]
    if kind == "mean":
        return x - x.mean(dim, keepdim=True)
    if kind == "median":
        return x - x.median(dim, keepdim=True)[0]
    if kind != "none":
        raise ValueError(f"balance function {kind!r}; known are 'none', 'mean', 'median' and 'first_mean'")
    return x


def activation(kind: str) -> nn.Module:
    """What follows a dot product: "prelu" (one learned slope), "relu", "leaky_relu" (0.2) or "none"."""
    modules = {"prelu": nn.PReLU(), "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.2), "none": nn.Identity()}
    return modules[kind]


class Rescale(nn.Module):
    """Learned rescaling Gamma of a dot product's output `[B, channels, *sizes]`.

    `sizes` gives the length of each further factor: all 1 is the channel-wise Gamma of Eq. 10, otherwise one
    rank-1 factor per mode (Eq. 11): over the points, and over the neighbours. A factor of length 1 is kept as
    a parameter, as in the authors' code: Table 5 counts it.
    """

    def __init__(self, channels: int, sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        lengths = (channels, *sizes)
        self.names = ["scale_a", "scale_b", "scale_c"][: len(lengths)]
        for axis, (name, length) in enumerate(zip(self.names, lengths, strict=True)):
            shape = [1] * len(lengths)
            shape[axis] = length
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = x * getattr(self, name)
        return x


class BinaryDot(nn.Module):
    """Dot product over channels with weights sign(weights_real), or the real weights where `binary` is False.

    `dims` = 0: a linear layer on `[B, in]`; 1 or 2: a 1x1 convolution on `[B, in, N]` or `[B, in, N, k]`.
    No bias. Input and output float32. `zero`: as of `sign`. `weights_real` is the latent weight: the optimiser moves
    it, and `optim.clip_and_center` keeps it in range; the forward pass never changes it.
    """

    def __init__(self, inputs: int, outputs: int, dims: int, binary: bool, zero: str = "plus") -> None:
        super().__init__()
        self.dims = dims
        self.binary = binary
        self.zero = zero
        self.surrogate, self.sharpness = "straight", 1.0
        self.weights_real = nn.Parameter(torch.empty(outputs, inputs, *[1] * dims))
        nn.init.kaiming_normal_(self.weights_real)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weights_real
        if self.binary:
            weight = sign(weight, self.zero, self.surrogate, self.sharpness)
        product = (F.linear, F.conv1d, F.conv2d)[self.dims]
        return product(x, weight)


def distances(x: Tensor, metric: str) -> Tensor:
    """Between all points of a cloud, float32 `[B, N, N]`; `x` and `metric` as of `knn`. Raises ValueError."""
    channels = x.shape[2]
    if metric == "l1":
        return torch.cdist(x, x, p=1.0)
    inner = torch.matmul(x, x.transpose(1, 2))
    if metric in ("hamming", "inner"):
        return channels - inner
    if metric == "l2":
        square = (x * x).sum(dim=2, keepdim=True)
        return square - 2 * inner + square.transpose(1, 2)
    raise ValueError(f"k-NN metric {metric!r}; known are 'l2', 'l1', 'inner' and 'hamming'")


def knn(x: Tensor, k: int, metric: str, *, fast: bool = False) -> Tensor:
    """The k nearest points of every point, itself included; of equal distances the lowest index comes first.

    Args: `x` float32 `[B, N, C]`; for "hamming" every value is +-1. Returns int64 `[B, N, k]`, values in
    [0, N). "l2" is the squared distance |x|^2 + |y|^2 - 2xy, exact on +-1 values; "hamming" is Eq. 21,
    C - xy = twice the Hamming distance. "inner" is the same expression on real values, "l1" the sum of |x - y|.

    `torch.topk` leaves the order of equal values open, and +-1 features tie nearly always, so the rule is a
    stable sort. topk is several times faster: "hamming" uses it on distance * N + index, an exact integer
    without ties and so the same result, except while exporting, where the plain form is easier to recognise.
    `fast` lets the others use it too, for training: doubled points may then come in any order.
    """
    count, channels, distance = x.shape[1], x.shape[2], distances(x, metric)
    if torch.compiler.is_exporting() or (metric != "hamming" and not fast):
        return torch.sort(distance, dim=-1, stable=True)[1][:, :, :k]
    if metric == "hamming":
        if (2 * channels + 1) * count > 2**24:  # float32 holds integers up to here
            distance = distance.double()
        distance = distance * count + torch.arange(count, device=x.device)
    return distance.topk(k, dim=-1, largest=False)[1]


def edge_features(x: Tensor, idx: Tensor, edge: str) -> Tensor:
    """An EdgeConv's input `[B, 2C, N, k]` from node features `[B, C, N]` and neighbours `idx [B, N, k]`.

    "difference" is x_j - x_i (Eq. 3), for real features; "xor" is -x_j * x_i (Eq. 17), the exclusive or of
    +-1 features. The edge's channels come first and x_i's second, as in the DGCNN authors' code (the paper
    writes them the other way round); trained weights depend on it.
    """
    batch, channels, count = x.shape
    k = idx.shape[2]
    offset = torch.arange(batch, device=x.device).view(-1, 1, 1) * count
    nodes = x.transpose(1, 2).contiguous()
    neighbours = nodes.view(batch * count, channels)[(idx + offset).view(-1), :].view(batch, count, k, channels)
    centre = nodes.view(batch, count, 1, channels).repeat(1, 1, k, 1)
    if edge not in ("difference", "xor"):
        raise ValueError(f"edge feature {edge!r}; known are 'difference' and 'xor'")
    edges = -neighbours * centre if edge == "xor" else neighbours - centre
    return torch.cat((edges, centre), dim=3).permute(0, 3, 1, 2).contiguous()
