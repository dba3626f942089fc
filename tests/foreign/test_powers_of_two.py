"""Quantisers whose scales are powers of 2 of a parameter, as accumulator-aware training has them: constants all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MessagePassing

from bgnn import convert
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel


def through(values: Tensor, rounded: Tensor) -> Tensor:
    return values + (rounded - values).detach()


class Activation(nn.Module):
    """Codes of 8 bits; the scale is spelled in a way of its own."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, self.exponent = spelling, nn.Parameter(torch.tensor(-4.6))
        self.register_buffer("bits", torch.tensor(8))

    def forward(self, x: Tensor) -> Tensor:
        least, most = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        if self.spelling == "ldexp":
            shift = torch.round(self.exponent).int()
            steps = torch.ldexp(x, -shift)
            return torch.ldexp(through(steps, steps.round()).clamp(least, most), shift)
        scale = torch.exp2(self.exponent) if self.spelling == "exp2" else 2**self.exponent
        steps = torch.clamp(x / scale, least, most)
        return through(steps, torch.round(steps)) * scale


class Weight(nn.Module):
    """Rows of a bounded sum of magnitudes, `g * v / |v|`, cut off at codes of a scale for each row."""

    def __init__(self, rows: int, inputs: int, spelling: str) -> None:
        super().__init__()
        self.v, self.bound = nn.Parameter(torch.randn(rows, inputs)), nn.Parameter(torch.rand(rows) + 1)
        self.exponent, self.spelling = nn.Parameter(torch.rand(rows) - 6), spelling

    def forward(self) -> Tensor:
        if self.spelling == "ldexp":
            scale = 2 ** torch.ceil(torch.log2(self.v.abs().amax(1, keepdim=True) / 127))
            return torch.clamp((self.v / scale).round(), -128, 127) * scale
        scale = (2**self.exponent)[:, None]
        norm = self.v.norm(p=1, dim=1, keepdim=True)
        steps = self.v * 2 ** torch.minimum(self.bound, self.exponent + 9)[:, None] / norm / scale
        return through(steps, steps.trunc()).clamp(-128, 127) * scale


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int, spelling: str) -> None:
        super().__init__()
        self.activation, self.weight = Activation(spelling), Weight(outputs, inputs, spelling)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.activation(x), self.weight(), self.bias)


class Convolution(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(self.activation(x), self.weight().unsqueeze(-1), self.bias)


class Layer(MessagePassing):
    def __init__(self, inputs: int, outputs: int, spelling: str) -> None:
        super().__init__(aggr="add")
        self.linear, self.nodes = Linear(inputs, outputs, spelling), Activation(spelling)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=self.nodes(self.linear(x)))


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(6, 8, "power"), Layer(8, 8, "exp2"), Layer(8, 3, "ldexp")])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index).relu()
        return x


class Cloud(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Convolution(3, 8, "power"), Convolution(8, 8, "ldexp")])
        self.head = Linear(8, 3, "exp2")

    def forward(self, points: Tensor) -> Tensor:
        x = points.transpose(1, 2)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x.amax(-1))


def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    return torch.randn(nodes, 6), torch.randint(nodes, (2, edges))


def test_a_graph_network_is_of_integers_alone() -> None:
    torch.manual_seed(0)
    model = Graph().eval()
    done = convert(model, graph(20, 60), target="onnx-int8-x86")
    assert done.report.macs["float"] == 0
    x, edge_index = graph(31, 77)
    (found,) = OnnxModel(done.model_bytes or b"").run(x=x.numpy(), edge_index=edge_index.numpy()).values()
    assert torch.allclose(torch.from_numpy(found), model(x, edge_index), atol=1e-5)


def test_a_cloud_network_is_of_integers_alone() -> None:
    torch.manual_seed(0)
    done = convert(Cloud().eval(), (torch.randn(1, 24, 3),), target="tflite-int8-arm64")
    assert done.report.macs["float"] == 0
