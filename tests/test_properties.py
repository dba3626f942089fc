"""Random small networks: converted at -O0 and -O1, verified, run on the real runtime, on inputs it has not seen.

Each network is one draw of what people vary: widths, layers, k, points, batch, layout of the input, edge features and
their order, activation, rescaling, place of the norm, binarisation of features and weights, pools, what is joined.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import randn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bgnn.converter import api, comparison, stages
from bgnn.converter.api import Conversion, convert
from bgnn.converter.eager import EagerModel
from bgnn.converter.examples import Example
from bgnn.converter.trace import trace
from bgnn.converter.verify import OUTPUT_TOLERANCE, Reference

FEW = settings(
    max_examples=9,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking a whole conversion takes many minutes
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
WIDTHS = [1, 5, 31, 32, 33, 64]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One edge convolution."""

    width: int
    binary: bool
    edge: str  # "difference", "xor" (binary features), "neighbour"
    centre: str  # where x_i stands in the join: "first", "last", "absent"
    own_graph: bool  # k-NN on this layer's input, or the first layer's neighbours again
    norm: str  # "before", "after" the maximum, "none"
    activation: str
    gamma: bool
    pool: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A whole network and its input."""

    batch: int
    points: int
    k: int
    channel_first: bool
    layers: tuple[Layer, ...]
    sign: str
    score: str
    joined: bool
    head_pools: tuple[str, ...]
    head_binary: bool
    classes: int
    seed: int


def layers_of(binary: st.SearchStrategy[bool]) -> st.SearchStrategy[Layer]:
    return st.builds(
        Layer,
        width=st.sampled_from(WIDTHS),
        binary=binary,
        edge=st.sampled_from(["difference", "xor", "neighbour"]),
        centre=st.sampled_from(["first", "last", "absent"]),
        own_graph=st.booleans(),
        norm=st.sampled_from(["before", "after", "none"]),
        activation=st.sampled_from(["prelu", "prelu per channel", "relu", "leaky", "none"]),
        gamma=st.booleans(),
        pool=st.sampled_from(["max", "max", "mean"]),
    )


def plans(binary: bool) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        batch=st.sampled_from([1, 2, 3]),
        points=st.integers(4, 9),
        k=st.integers(1, 4),
        channel_first=st.booleans(),
        layers=st.lists(layers_of(st.booleans() if binary else st.just(False)), min_size=1, max_size=3).map(tuple),
        sign=st.sampled_from(["sign", "where", "ge", "ste"]),
        score=st.sampled_from(["cdist", "formula", "pairs"]),
        joined=st.booleans(),
        head_pools=st.sampled_from([("max",), ("mean",), ("max", "mean")]),
        head_binary=st.booleans() if binary else st.just(False),
        classes=st.sampled_from([1, 4, 33]),
        seed=st.integers(0, 1000),
    )


def sign(x: Tensor, how: str) -> Tensor:
    if how == "sign":
        return torch.sign(x)
    if how == "where":
        return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))
    if how == "ge":
        return (x >= 0).float() * 2 - 1
    return (torch.sign(x) - x).detach() + x


class Net(nn.Module):
    """A network as its plan says; features are `[B, C, N]` or `[B, N, C]` inside, as the input is."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        g = torch.Generator().manual_seed(plan.seed)

        def real(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=g))

        width, total = 3, 0
        for i, layer in enumerate(plan.layers):
            fan_in = width * (1 if layer.centre == "absent" else 2)
            self.register_parameter(f"w{i}", real(layer.width, fan_in))
            self.register_parameter(f"gamma{i}", real(layer.width))
            self.register_parameter(f"slope{i}", real(layer.width if layer.activation == "prelu per channel" else 1))
            norm = nn.BatchNorm1d(layer.width)
            for value, spread in ((norm.weight, 1.0), (norm.bias, 0.5), (norm.running_mean, 1.0)):
                value.data = torch.randn(layer.width, generator=g) * spread
            norm.running_var = torch.rand(layer.width, generator=g) * fan_in + 0.2
            self.add_module(f"norm{i}", norm)
            width, total = layer.width, total + layer.width
        self.head = real(plan.classes, (total if plan.joined else width) * len(plan.head_pools))

    def channels(self, module: nn.Module, x: Tensor) -> Tensor:
        """A BatchNorm1d over the last axis."""
        flat = x.reshape(x.shape[0], -1, x.shape[-1]).transpose(1, 2)
        return module(flat).transpose(1, 2).reshape(x.shape)

    def neighbours(self, x: Tensor) -> Tensor:
        if self.plan.score == "cdist":
            score = -torch.cdist(x, x)
        elif self.plan.score == "formula":
            square = (x**2).sum(-1, keepdim=True)
            score = 2 * x @ x.transpose(1, 2) - square - square.transpose(1, 2)
        else:
            score = -((x[:, :, None] - x[:, None]) ** 2).sum(-1)
        return score.topk(min(self.plan.k, x.shape[1]), dim=-1)[1]

    def layer(self, i: int, layer: Layer, x: Tensor, index: Tensor) -> Tensor:
        binary_in = layer.binary and i > 0
        if binary_in:
            x = sign(x, self.plan.sign)
        batch = torch.arange(x.shape[0])[:, None, None]
        near = x[batch, index]
        here = x[:, :, None].expand(near.shape)
        edge = near if layer.edge == "neighbour" else -near * here if layer.edge == "xor" else near - here
        parts = {"first": [here, edge], "last": [edge, here], "absent": [edge]}[layer.centre]
        h = torch.cat(parts, dim=3)
        w = getattr(self, f"w{i}")
        h = F.linear(h, torch.sign(w) if layer.binary else w)
        if layer.gamma:
            h = h * getattr(self, f"gamma{i}")
        slope = getattr(self, f"slope{i}")
        if layer.activation.startswith("prelu"):
            h = F.prelu(h.permute(0, 3, 1, 2), slope).permute(0, 2, 3, 1)
        elif layer.activation != "none":
            h = F.relu(h) if layer.activation == "relu" else F.leaky_relu(h, 0.2)
        norm = getattr(self, f"norm{i}")
        if layer.norm == "before":
            h = self.channels(norm, h)
        h = h.max(dim=2)[0] if layer.pool == "max" else h.mean(dim=2)
        return self.channels(norm, h) if layer.norm == "after" else h

    def forward(self, x: Tensor) -> Tensor:
        if self.plan.channel_first:
            x = x.transpose(1, 2).contiguous()
        index, outs = self.neighbours(x), []
        for i, layer in enumerate(self.plan.layers):
            if layer.own_graph and i > 0:
                index = self.neighbours(sign(x, self.plan.sign) if layer.binary else x)
            x = self.layer(i, layer, x, index)
            outs.append(x)
        x = torch.cat(outs, -1) if self.plan.joined else x
        if self.plan.head_binary:
            x = sign(x, self.plan.sign)
        pools = [x.amax(1) if p == "max" else x.mean(1) for p in self.plan.head_pools]
        return F.linear(torch.cat(pools, -1), self.head)


def sample(plan: Plan, seed: int) -> Tensor:
    shape = (3, plan.points) if plan.channel_first else (plan.points, 3)
    return randn(plan.batch, *shape, seed=seed)


def check_unseen(conversion: Conversion, model: nn.Module, x: Tensor) -> None:
    """The file on an input that conversion did not see: every sign, neighbour and output, with verification's rules.

    Where no decision was turned by rounding, the output is compared with the plain model's as well.
    """
    gm = trace(model, (x,))
    expected = EagerModel(model, [0]).outputs([x])[0]
    for stage, _ in stages.walk(gm, stages.Plan("tflite-arm64", 0)):
        if stage == "traced":
            break
    reference = Reference(gm, [x])
    report = conversion.report
    plan = stages.Plan(report.target, report.optimize, report.kernels)
    emit, run = api._writer_and_runtime(conversion.graph, plan, "unseen", {}, {})
    example = Example(EagerModel(model, [0]), (x,), [], reference=reference)
    check = comparison.check_file(conversion.graph, conversion.graph, emit, run, plan, example)
    assert check.signs + check.neighbours > 0
    assert conversion.model_bytes is not None
    (found,) = run(conversion.model_bytes, [x.numpy()])
    if check.turned_signs == check.turned_rows == 0:
        scale = max(float(expected.abs().max()), 1e-3)
        assert np.abs(found - expected.numpy()).max() <= OUTPUT_TOLERANCE * scale


def check_plan(plan: Plan, target: str, kernels: str = "stock") -> None:
    model = Net(plan).eval()
    for optimize in (0, 1) if kernels == "stock" else (1,):
        conversion = convert(model, (sample(plan, 1),), target=target, optimize=optimize, kernels=kernels)
        assert conversion.report.checks[-1].what == "emitted file"
        check_unseen(conversion, model, sample(plan, 2))


@FEW
@given(plans(binary=True))
def test_binary_networks_for_lce(plan: Plan) -> None:
    check_plan(plan, "lce-arm64")


@FEW
@given(plans(binary=False))
def test_float_networks_for_tflite(plan: Plan) -> None:
    check_plan(plan, "tflite-arm64")


@settings(FEW, max_examples=5)
@given(plans(binary=True))
def test_binary_networks_with_our_kernels(plan: Plan) -> None:
    check_plan(plan, "lce-arm64", "bgnn")


@pytest.mark.slow
@settings(FEW, max_examples=25)
@given(plans(binary=True), st.sampled_from(sorted(stages.TARGETS)))
def test_many_more(plan: Plan, target: str) -> None:
    check_plan(plan, target)
