"""Small graph networks for tests: layers with quantisers in the spellings that people use, and awkward graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_self_loops

from bgnn.converter import stages
from bgnn.converter.sizes import check_open, graph_axes
from bgnn.converter.trace import trace
from bgnn.passes.graph import snapshot


class OfficialQuantizer(nn.Module):
    """As the authors' code has it: a custom function; the zero point is added, then rounded, then clamped."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: float, high: float) -> Tensor:
            return x.div(scale).add(zero).round().clamp(low, high).sub(zero).mul(scale)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0], None, None, None, None

    def __init__(self, scale: float, zero: int, low: int = -128, high: int = 127) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero", torch.tensor(float(zero)))
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return self.Function.apply(x, self.scale, self.zero, self.low, self.high)


class TorchQuantizer(nn.Module):
    """torch.ao's."""

    def __init__(self, scale: float, zero: int, low: int = -128, high: int = 127) -> None:
        super().__init__()
        self.scale, self.zero, self.low, self.high = scale, zero, low, high

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, self.low, self.high)


class GCNLayer(MessagePassing):
    """A GCN layer with a quantiser at every stage (Degree-Quant, B.2.1)."""

    def __init__(self, inputs: int, outputs: int, quantizer: Any, seed: int = 0) -> None:
        super().__init__(aggr="add")
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(inputs, outputs, generator=generator) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs, generator=generator) / 4)
        self.inputs, self.weights, self.features = quantizer(0.031, 5), quantizer(0.011, -3), quantizer(0.023, 11)
        self.norms, self.messages = quantizer(0.0079, -127), quantizer(0.017, 9)
        self.aggregates, self.updates = quantizer(0.029, -2), quantizer(0.027, 1)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, add_self_loops: bool = True
    ) -> Tensor:
        x = self.features(self.inputs(x) @ self.weights(self.weight))
        edge_index, norm = gcn_norm(edge_index, edge_weight, x.size(0), False, add_self_loops, dtype=x.dtype)
        return self.propagate(edge_index, x=x, norm=self.norms(norm))

    def message(self, x_j: Tensor, norm: Tensor) -> Tensor:
        return self.messages(norm.view(-1, 1) * x_j)

    def update(self, inputs: Tensor) -> Tensor:
        return self.updates(self.aggregates(inputs) + self.bias)


class GCN(nn.Module):
    """Two layers, a ReLU between."""

    def __init__(self, quantizer: Any = OfficialQuantizer, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = GCNLayer(width, 8, quantizer), GCNLayer(8, 3, quantizer, seed=1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x, edge_index)), edge_index)


class LoopedGCN(GCN):
    """Self-loops among weighted edges in the first layer, beside those that are there in the second."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        weight = (x[edge_index[0], 0] * x[edge_index[1], 1]).sigmoid()
        x = F.relu(self.first(x, edge_index, weight))
        return self.second(x, add_self_loops(edge_index, num_nodes=x.size(0))[0], add_self_loops=False)


def random_graph(nodes: int, edges: int, seed: int = 0, width: int = 6) -> tuple[Tensor, Tensor]:
    """Features `[N, width]` and edges `[2, E]`, with loops and double edges as chance has it."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, max(nodes, 1), (2, edges), generator=generator)
    return torch.randn(nodes, width, generator=generator), edge_index


def awkward_graphs(width: int = 6) -> dict[str, tuple[Tensor, Tensor]]:
    """Graphs that a model was not converted with."""
    hub = torch.stack([torch.arange(40), torch.full((40,), 7)])
    return {
        "another size": random_graph(57, 301, 1, width),
        "isolated nodes": (random_graph(30, 0, 2, width)[0], torch.tensor([[0, 1], [1, 0]])),
        "loops": (random_graph(9, 0, 3, width)[0], torch.arange(9).repeat(2, 2)),
        "double edges": (random_graph(5, 0, 4, width)[0], torch.tensor([[0, 0, 0, 3, 3], [1, 1, 1, 2, 2]])),
        "hub": (random_graph(40, 0, 5, width)[0], torch.cat([hub, hub.flip(0)], 1)),
        "no edges": random_graph(6, 0, 6, width),
        "one node": random_graph(1, 0, 7, width),
    }


def staged(
    model: nn.Module, inputs: tuple[Tensor, ...], until: str = "target", target: str = "onnx-int8-x86",
    optimize: int = 1, kernels: str = "stock",
) -> fx.GraphModule:  # fmt: skip
    """The model up to a stage."""
    return all_stages(model, inputs, target, optimize, kernels)[until]


def all_stages(
    model: nn.Module, inputs: tuple[Tensor, ...], target: str = "onnx-int8-x86", optimize: int = 1,
    kernels: str = "stock",
) -> dict[str, fx.GraphModule]:  # fmt: skip
    """The model at each stage, and "fused": the target with the project's own operators."""
    gm = trace(model.eval(), inputs, open_axes=graph_axes(inputs))
    made: dict[str, fx.GraphModule] = {}
    for stage in ("traced", "semantic", "integer", "target"):
        if stage == "target":
            made["fused"] = snapshot(gm)
            for _, run in stages.passes_to(stage, stages.Plan(target, optimize, "bgnn")):
                run(made["fused"])
        for _, run in stages.passes_to(stage, stages.Plan(target, optimize, kernels)):
            run(gm)
            check_open(gm)
        if stage == "traced":
            stages.mark_decisions(gm)
        made[stage] = snapshot(gm)
    return made


def run(gm: fx.GraphModule, *inputs: Tensor) -> Tensor:
    """The first output."""
    with torch.no_grad():
        return fx.Interpreter(gm).run(*inputs)[0]


class BinarySAGE(nn.Module):
    """Binary GraphSAGE (binary GNN paper, Eq. 14-15) on edges."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm1d(12), nn.BatchNorm1d(32)])
        self.weights = nn.ParameterList([torch.randn(16, 12), torch.randn(4, 32)])
        self.scales = nn.ParameterList([torch.rand(16) / 4, torch.rand(4) / 4])
        for norm in self.norms:
            nn.init.normal_(norm.running_mean, 0, 0.3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        count = torch.zeros(x.size(0)).index_add_(0, edge_index[1], torch.ones(edge_index.size(1))).clamp(min=1)
        for norm, weight, scale in zip(self.norms, self.weights, self.scales, strict=True):
            sums = torch.zeros_like(x).index_add_(0, edge_index[1], x[edge_index[0]])
            h = norm(torch.cat([x, sums / count[:, None]], 1))
            x = F.linear(torch.sign(h), torch.sign(weight)) * scale
        return x
