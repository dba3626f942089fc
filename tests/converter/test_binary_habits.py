"""Binary layers as people write them become binary layers of the file, which computes what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgnn.converter.api import convert
from bgnn.converter.onnx.emit import run_file as run_onnx
from bgnn.runtime_bench.runtime.tflite_runner import run_file

INPUTS = {  # of a layer: x [B, N, C] real, p the layer's parameters
    "scale of the layer": lambda p, x: p.alpha * torch.sign(x),
    "levels": lambda p, x: torch.where(x > p.t, p.alpha, -p.alpha / 2),
    "channel-wise scale that the weights undo": lambda p, x: torch.where(x < 0, -p.c, p.c),
    "magnitude of the row": lambda p, x: x.norm(p=1, dim=-1, keepdim=True) / x.size(-1) * x.sign(),
    "estimator of a tanh": lambda p, x: torch.tanh(x) + (torch.sign(x) - torch.tanh(x)).detach(),
    "estimator in pieces": lambda p, x: torch.sign(x).detach() - pieces(x).detach() + pieces(x),
    "scaled estimator": lambda p, x: p.alpha * ((torch.sign(x) - F.hardtanh(x)).detach() + F.hardtanh(x)),
    "steps": lambda p, x: (x + p.t > 0).to(x.dtype),
    "written into a copy": lambda p, x: written(x),
}
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "scale of the row": lambda w: torch.sign(w) * w.abs().mean(1, keepdim=True),
    "power of two": lambda w: torch.sign(w) * 2 ** w.abs().mean(1, keepdim=True).log2().round(),
    "estimator": lambda w: w.clamp(-1, 1) + (0.3 * torch.sign(w) - w.clamp(-1, 1)).detach(),
}


def pieces(x: Tensor) -> Tensor:
    inner = torch.where(x < 0, x * (x + 2), x * (2 - x))
    return torch.where(x.abs() < 1, inner, torch.sign(x))


def written(x: Tensor) -> Tensor:
    out = x.clone()
    out[x >= 0] = 0.8
    out[x < 0] = -0.8
    return out


class Net(nn.Module):
    def __init__(self, inputs: str, weights: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inputs, self.weights = inputs, weights
        self.first, self.last = nn.Linear(3, 32), nn.Linear(24, 5)
        self.w, self.bias = nn.Parameter(torch.randn(24, 32)), nn.Parameter(torch.randn(24))
        self.alpha, self.t = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.randn(32) / 8)
        self.c = nn.Parameter(torch.rand(32) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = WEIGHTS[self.weights](self.w)
        if self.inputs == "channel-wise scale that the weights undo":
            weight = weight / self.c
        return self.last(torch.relu(F.linear(INPUTS[self.inputs](self, self.first(x)), weight, self.bias)))


CASES = [(inputs, "scale of the row", "lce-arm64") for inputs in INPUTS]
CASES += [("scale of the layer", "power of two", "lce-arm64"), ("steps", "power of two", "onnx-int8-x86")]
CASES += [("steps", "estimator", "onnx-int8-x86"), ("magnitude of the row", "estimator", "onnx-int8-x86")]


@pytest.mark.parametrize(("inputs", "weights", "target"), CASES)
def test_the_layer_is_binary_and_right(inputs: str, weights: str, target: str) -> None:
    net = Net(inputs, weights).eval()
    conversion = convert(net, (torch.randn(2, 20, 3),), target=target)
    (layer,) = (layer for layer in conversion.report.layers if layer.name == "w")
    assert (layer.became, layer.why) == ("binary, float out", "inputs and weights are signs, with scales")
    run = run_onnx if target.startswith("onnx-") else run_file
    assert conversion.model_bytes is not None
    x = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        expected = net(x).numpy()
    np.testing.assert_allclose(run(conversion.model_bytes, [x.numpy()])[0], expected, rtol=1e-4, atol=1e-5)


def test_a_scale_per_channel_that_no_row_of_signs_takes_is_said() -> None:
    net = Net("channel-wise scale that the weights undo", "scale of the row").eval()
    net.inputs = "scale of the channel"
    INPUTS["scale of the channel"] = lambda p, x: p.c * torch.sign(x)
    report = convert(net, (torch.randn(2, 20, 3),), target="lce-arm64", verify=False).report
    del INPUTS["scale of the channel"]
    (layer,) = (layer for layer in report.layers if layer.name == "w")
    assert layer.became == "float"
    assert "a scale for each channel" in layer.why


def test_groups_are_layers_of_their_own() -> None:
    """As many products as groups, each of its own channels; not one layer's products per node and per edge."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.w = nn.Conv1d(3, 64, 1), nn.Parameter(torch.randn(48, 32, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(torch.sign(self.first(x)), torch.sign(self.w), groups=2)

    net, x = Grouped().eval(), torch.randn(1, 3, 20)
    conversion = convert(net, (x,), target="lce-arm64")
    became = {layer.name: layer.became for layer in conversion.report.layers if "w" in layer.name.split()}
    assert became == {"w 1 of 2": "binary, float out", "w 2 of 2": "binary, float out"}
