"""Point networks whose files take any number of clouds and of points: k-NN, gathers and all, on sizes never seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgnn.converter.api import convert
from bgnn.converter.errors import UsageError
from bgnn.converter.onnx.emit import run_file
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

K = 4


def neighbours(x: Tensor) -> Tensor:
    product = -2 * torch.matmul(x.transpose(2, 1), x)
    square = torch.sum(x**2, dim=1, keepdim=True)
    return (-square - product - square.transpose(2, 1)).topk(k=K, dim=-1)[1]


class ChannelFirst(nn.Module):
    """Flat indices with an offset for each cloud, convolutions over [B, C, N, k], a table of features of each edge."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 8, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)) for c in (6, 16)
        )
        self.last = nn.Linear(32, 3)

    def edges(self, x: Tensor) -> Tensor:
        batch, channels, points = x.shape
        table = neighbours(x) + torch.arange(0, batch).view(-1, 1, 1) * points
        rows = x.transpose(2, 1).contiguous()
        found = rows.view(batch * points, -1)[table.view(-1), :].view(batch, points, K, channels)
        own = rows.view(batch, points, 1, channels).repeat(1, 1, K, 1)
        return torch.cat((found - own, own), dim=3).permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for layer in self.layers:
            x = layer(self.edges(x)).max(dim=-1)[0]
            found.append(x)
        x = torch.cat(found, dim=1)
        largest, mean = F.adaptive_max_pool1d(x, 1), F.adaptive_avg_pool1d(x, 1)
        return self.last(torch.cat((largest, mean), 1).view(x.shape[0], -1))


class PointsFirst(nn.Module):
    """Indices with a batch beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        index = torch.cdist(x, x).topk(K, largest=False)[1]
        found = x[torch.arange(x.shape[0])[:, None, None], index]
        edges = torch.cat([x.unsqueeze(2).expand_as(found), found - x.unsqueeze(2)], -1)
        return self.last(torch.relu(self.first(edges)).amax(2))


class Gathered(PointsFirst):
    """`torch.gather`, and distances by all pairs."""

    def forward(self, x: Tensor) -> Tensor:
        index = (-((x[:, :, None] - x[:, None]) ** 2).sum(-1)).topk(K)[1]
        batch, points, width = x.shape
        every = x.unsqueeze(1).expand(batch, points, points, width)
        found = torch.gather(every, 2, index.unsqueeze(-1).expand(batch, points, K, width))
        edges = torch.cat([x.unsqueeze(2).repeat(1, 1, K, 1), found - x.unsqueeze(2)], -1)
        return self.last(torch.relu(self.first(edges)).amax(2)).mean(1)


CASES = [
    (ChannelFirst, (2, 3, 20), ("x=0", "x=2"), "stock"),
    (ChannelFirst, (2, 3, 20), ("x=0", "x=2"), "bgnn"),
    (ChannelFirst, (2, 3, 20), ("x=2",), "stock"),
    (PointsFirst, (2, 20, 3), ("x=0",), "stock"),
    (PointsFirst, (2, 20, 3), ("x=0", "x=1"), "stock"),
    (Gathered, (2, 20, 3), ("x=0", "x=1"), "stock"),
]


@pytest.mark.parametrize(("make", "shape", "axes", "kernels"), CASES)
def test_open_numbers_of_clouds_and_points(
    make: type[nn.Module], shape: tuple[int, ...], axes: tuple[str, ...], kernels: str
) -> None:
    """Verified on a second example, and right on a third; equal points, too, and as few as k."""
    torch.manual_seed(0)
    model = make().eval()
    found = convert(model, (torch.randn(shape),), target="onnx-x86", open_axes=axes, kernels=kernels)
    assert [check.what for check in found.report.checks][-2:] == ["emitted file, second graph", "emitted file"]
    searches = [layer for layer in found.report.layers if layer.name.startswith("k-NN")]
    assert len(searches) == (2 if make is ChannelFirst else 1)
    for size in (33, K):
        other = [size if f"x={i}" in axes and i else n for i, n in enumerate(shape)]
        other[0] = 3 if "x=0" in axes else shape[0]
        x = torch.randn(other)
        if size == K:
            x[:] = 1.0
        result = run_file(found.model_bytes or b"", [x.numpy()])[0]
        assert np.allclose(result, model(x).detach().numpy(), atol=1e-5)


def test_tflite_has_fixed_sizes() -> None:
    with pytest.raises(UsageError, match=r"--open x=1: tflite-arm64 has fixed sizes; .* onnx-x86"):
        convert(PointsFirst().eval(), (torch.randn(2, 9, 3),), target="tflite-arm64", open_axes=("x=1",))


@pytest.mark.parametrize("kernels", ["stock", "bgnn"])
def test_fewer_points_than_neighbours_are_refused_by_number(kernels: str) -> None:
    """The runtime's own error names an operator; the user gets the input, its size and how many it takes."""
    done = convert(PointsFirst().eval(), (torch.randn(2, 9, 3),), target="onnx-x86", open_axes=["x=1"], kernels=kernels)
    model = OnnxModel(done.model_bytes)
    for points in (1, 3):
        with pytest.raises(UsageError, match=rf"input x is \[2, {points}, 3\]: the model picks 4 .* takes 4 or more"):
            model.run(x=np.zeros((2, points, 3), np.float32))
    model.run(x=np.random.default_rng(0).random((2, 4, 3), np.float32))
