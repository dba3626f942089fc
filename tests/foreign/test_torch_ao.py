"""torch.ao's flows as its tutorials have them, of clouds and of graphs: every layer that it quantises is INT8.

PT2E's `convert_pt2e` gives quantize and dequantize calls around stored bytes; it has moved to torchao, which is none of
our packages, so what it makes is written here by hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (it defines the operators of PT2E)
from torch.ao.quantization.quantize_fx import prepare_qat_fx
from torch.nn import functional as F

from bgnn.converter.api import Conversion, convert
from bgnn.converter.onnx.emit import run_file as run_onnx
from bgnn.runtime_bench.runtime.tflite_runner import run_file

decomposed = torch.ops.quantized_decomposed


def cloud(seed: int) -> Tensor:
    return torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(seed))


def edges(nodes: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, 12, generator=generator), torch.randint(0, nodes, (2, count), generator=generator)


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stub, self.unstub = tq.QuantStub(), tq.DeQuantStub()
        self.conv1, self.bn1, self.relu1 = nn.Conv1d(3, 24, 1), nn.BatchNorm1d(24), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv1d(24, 40, 1), nn.BatchNorm1d(40)
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stub(x.transpose(1, 2).contiguous())
        x = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.unstub(self.head(x.max(2)[0]))


class Skip(nn.Module):
    """What FX quantises on both sides of `+` and `cat`: one quantiser for all that is joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 24), nn.Linear(24, 24), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = h + self.second(h)
        return self.head(torch.cat([h.mean(1), h.amax(1)], -1))


class SumOfNeighbours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stub, self.again, self.unstub = tq.QuantStub(), tq.QuantStub(), tq.DeQuantStub()
        self.lin, self.relu, self.head = nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.relu(self.lin(self.stub(x)))
        h = torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
        return self.unstub(self.head(self.again(h)))


def trained(model: nn.Module, backend: str, *samples: tuple[Tensor, ...]) -> nn.Module:
    model.train()
    if isinstance(model, PointNet):
        model = tq.fuse_modules_qat(model, [["conv1", "bn1", "relu1"], ["conv2", "bn2"]])
    model.qconfig = tq.get_default_qat_qconfig(backend)
    tq.prepare_qat(model, inplace=True)
    for sample in samples:
        model(*sample)
    return model.eval()


def compare(conversion: Conversion, model: nn.Module, inputs: tuple[Tensor, ...], tolerance: float) -> None:
    assert conversion.model_bytes is not None
    run = run_file if conversion.report.target.startswith("tflite") else run_onnx
    found = run(conversion.model_bytes, [x.numpy() for x in inputs])
    first = next(iter(found.values())) if isinstance(found, dict) else found[0]
    with torch.no_grad():
        expected = model(*inputs)
    error = float((torch.from_numpy(first) - expected).norm() / expected.norm())
    assert error <= tolerance  # a code or two beside the model's at a tie


def integer(conversion: Conversion) -> None:
    assert conversion.report.macs["float"] == 0, [(x.name, x.why) for x in conversion.report.layers]
    assert {layer.why for layer in conversion.report.layers} <= {
        "inputs and weights are quantised", "its messages are quantised",
    }  # fmt: skip
    assert conversion.report.not_understood == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["onnx-int8-x86", "tflite-int8-arm64"])
def test_fused_layers(target: str) -> None:
    torch.manual_seed(0)
    model = trained(PointNet(), "fbgemm", (cloud(0),), (cloud(5),))
    model.apply(tq.disable_observer)
    conversion = convert(model, (cloud(0),), target=target)
    integer(conversion)
    compare(conversion, model, (cloud(1),), 0.02)


@pytest.mark.filterwarnings("ignore")
def test_observers_that_were_left_on() -> None:
    """`eval()` leaves them on, and a forward moves their ranges: the file has those that are stored."""
    torch.manual_seed(0)
    sample = edges(40, 150, 0)
    model = trained(SumOfNeighbours(), "qnnpack", sample)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    conversion = convert(model, sample, target="onnx-int8-x86")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    integer(conversion)
    model.apply(tq.disable_observer)
    compare(conversion, model, edges(77, 260, 1), 0.02)


@pytest.mark.filterwarnings("ignore")
def test_fx_mode_with_one_quantiser_for_all_that_is_joined() -> None:
    torch.manual_seed(0)
    model = prepare_qat_fx(Skip().train(), tq.get_default_qat_qconfig_mapping("x86"), (cloud(0),))
    model(cloud(0))
    model.eval().apply(tq.disable_observer)
    conversion = convert(model, (cloud(0),), target="onnx-int8-x86")
    integer(conversion)
    compare(conversion, model, (cloud(1),), 0.02)


class Converted(nn.Module):
    """As `convert_pt2e` leaves a network: bytes for weights, and each reader's own dequantize call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, shape in (("first", (24, 3)), ("second", (24, 24)), ("head", (5, 24))):
            weight = torch.randn(shape) / 3
            scale = weight.abs().amax(1) / 127
            self.register_buffer(name, torch.round(weight / scale[:, None]).to(torch.int8))
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_zero", torch.zeros(len(scale), dtype=torch.int64))

    def layer(self, x: Tensor, name: str) -> Tensor:
        stored = [getattr(self, name + end) for end in ("", "_scale", "_zero")]
        return F.linear(x, decomposed.dequantize_per_channel(*stored, 0, -127, 127, torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        def quantised(x: Tensor, scale: float, zero: int) -> Callable[[], Tensor]:
            codes = decomposed.quantize_per_tensor(x, scale, zero, -128, 127, torch.int8)
            return lambda: decomposed.dequantize_per_tensor(codes, scale, zero, -128, 127, torch.int8)

        h = quantised(F.relu(self.layer(quantised(x, 0.03, 4)(), "first")), 0.02, -128)
        both = quantised(h() + quantised(self.layer(h(), "second"), 0.02, 5)(), 0.03, -20)
        return self.layer(quantised(both().amax(1), 0.03, -20)(), "head")


@pytest.mark.parametrize("target", ["onnx-int8-x86", "tflite-int8-arm64"])
def test_converted_programs(target: str) -> None:
    model = Converted().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (cloud(0),))
    conversion = convert(program, (cloud(0),), target=target)
    integer(conversion)
    compare(conversion, model, (cloud(1),), 0.02)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("target", ["onnx-int8-x86", "tflite-int8-arm64"])
def test_quantised_convolutions_of_points(window: int, target: str) -> None:
    """Of window 1, with one scale for a weight and with one for each channel."""

    def quantised(x: Tensor, scale: float | Tensor) -> Tensor:
        return (x / scale).round().clamp(-128, 127) * scale

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = nn.Conv1d if window == 1 else nn.Conv2d
            self.first, self.second, self.head = kind(3, 24, 1), kind(24, 40, 1, bias=False), nn.Linear(40, 5)

        def forward(self, x: Tensor) -> Tensor:
            layer = F.conv1d if window == 1 else F.conv2d
            x = x.transpose(1, 2)
            x = x if window == 1 else x[..., None]
            w, v, u = self.first.weight, self.second.weight, self.head.weight
            x = layer(quantised(x, 0.03), quantised(w, w.abs().max() / 127), self.first.bias).relu()
            x = layer(quantised(x, 0.03), quantised(v, v.abs().amax(1, keepdim=True) / 127))
            x = x.flatten(2).amax(2)
            return F.linear(quantised(x, 0.03), quantised(u, 0.002), self.head.bias)

    torch.manual_seed(0)
    model = Net().eval()
    conversion = convert(model, (cloud(0),), target=target)
    integer(conversion)
    compare(conversion, model, (cloud(1),), 0.02)
