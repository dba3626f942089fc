"""Networks of 8-bit layers in the habits of Degree-Quant's authors (Tailor et al., ICLR 2021), written anew.

Their quantiser is a module with buffers `min_val` and `max_val`; scale and zero point are Python floats of them, made
in forward; a custom function multiplies by `1 / scale`, adds the zero point, rounds, clamps, all in place. Each layer
holds a ModuleDict of quantisers by the stage they are for, "_low" of 8 bits for all and "_high" (the identity) for the
nodes that training protects; edges are taken apart as `row, col = edge_index`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import InplaceFunction
from torch.nn import functional as F
from torch_geometric.nn import global_add_pool
from torch_geometric.utils import add_remaining_self_loops, remove_self_loops, softmax


def quantisation_parameters(
    max_val: Any, min_val: Any, bits: int, signed: bool, eps: float, symmetric: bool
) -> tuple[float, float, float, float]:
    """(lowest code, highest code, zero point, scale)."""
    max_val, min_val = float(max_val), float(min_val)
    min_val, max_val = min(0.0, min_val), max(0.0, max_val)
    qmin = -(2.0 ** (bits - 1)) if signed else 0.0
    qmax = qmin + 2.0**bits - 1
    if max_val == min_val:
        return qmin, qmax, 0, 1.0
    if symmetric:
        scale = 2 * max(abs(max_val), abs(min_val)) / (qmax - qmin)
        return qmin, qmax, 0.0 if signed else 128.0, max(scale, eps)
    scale = max((max_val - min_val) / float(qmax - qmin), eps)
    zero_point = qmin - round(min_val / scale)
    return qmin, qmax, min(qmax, max(qmin, zero_point)), scale


class QuantizeSTE(InplaceFunction):
    """Rounds in forward, lets gradients through in backward."""

    @classmethod
    def forward(
        cls, ctx: Any, inputs: Tensor, max_val: Any, min_val: Any, bits: int, signed: bool, eps: float, symmetric: bool
    ) -> Tensor:
        output = inputs.clone()
        qmin, qmax, zero_point, scale = quantisation_parameters(max_val, min_val, bits, signed, eps, symmetric)
        inv_scale = 1.0 / scale
        output.mul_(inv_scale).add_(zero_point)
        output.round_().clamp_(qmin, qmax)
        output.add_(-zero_point).mul_(scale)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        return grad_output, None, None, None, None, None, None


class IntegerQuantizer(nn.Module):
    """8 bits; the range follows a moving average while training."""

    def __init__(self, bits: int = 8, signed: bool = True, symmetric: bool = False, momentum: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("min_val", torch.tensor([]))
        self.register_buffer("max_val", torch.tensor([]))
        self.bits, self.signed, self.symmetric, self.momentum = bits, signed, symmetric, momentum
        self.register_buffer("eps", torch.tensor(torch.finfo(torch.float32).eps))

    def update_ranges(self, inputs: Tensor) -> None:
        current_min, current_max = torch.min(inputs), torch.max(inputs)
        if self.min_val.numel() == 0:
            self.min_val, self.max_val = current_min, current_max
        else:
            self.min_val += self.momentum * (current_min - self.min_val)
            self.max_val += self.momentum * (current_max - self.max_val)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.update_ranges(inputs.detach())
        return QuantizeSTE.apply(
            inputs, self.max_val, self.min_val, self.bits, self.signed, float(self.eps), self.symmetric
        )


def quantisers(*stages: str) -> nn.ModuleDict:
    made: dict[str, nn.Module] = {}
    for stage in stages:
        made[f"{stage}_low"], made[f"{stage}_high"] = IntegerQuantizer(), nn.Identity()
    return nn.ModuleDict(made)


class MessagePassingQuant(nn.Module):
    """Messages, aggregates and updates go through quantisers; protected nodes through the high ones, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.mp_quantizers = quantisers("message", "aggregate", "update")

    def mixed(self, stage: str, values: Tensor, mask: Tensor | None, which: nn.ModuleDict | None = None) -> Tensor:
        which = self.mp_quantizers if which is None else which
        if not self.training or mask is None:
            return which[f"{stage}_low"](values)
        out = torch.empty_like(values)
        out[mask] = which[f"{stage}_high"](values[mask])
        out[~mask] = which[f"{stage}_low"](values[~mask])
        return out

    def propagate(self, edge_index: Tensor, mask: Tensor | None, size: int, **given: Tensor) -> Tensor:
        row, col = edge_index
        edge_mask = None if mask is None else torch.index_select(mask, 0, row)
        messages = self.mixed("message", self.message(row, col, **given), edge_mask)
        index = col.view(-1, *[1] * (messages.dim() - 1)).expand_as(messages)
        sums = torch.zeros(size, *messages.shape[1:], dtype=messages.dtype).scatter_add_(0, index, messages)
        return self.mixed("update", self.update(self.mixed("aggregate", sums, mask)), mask)

    def message(self, row: Tensor, col: Tensor, **given: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self, sums: Tensor) -> Tensor:
        return sums


class GCNConvQuant(MessagePassingQuant):
    def __init__(self, nin: int, nout: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(nin, nout)), nn.Parameter(torch.randn(nout) * 0.1)
        nn.init.xavier_uniform_(self.weight)
        self.layer_quantizers = quantisers("inputs", "features", "norm")
        self.layer_quantizers["weights_low"] = IntegerQuantizer()

    @staticmethod
    def norm(edge_index: Tensor, num_nodes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        edge_weight = torch.ones((edge_index.size(1),), dtype=dtype)
        edge_index, edge_weight = add_remaining_self_loops(edge_index, edge_weight, 1.0, num_nodes)
        row, col = edge_index
        deg = torch.zeros(num_nodes, dtype=dtype).scatter_add_(0, row, edge_weight)
        deg_inv_sqrt = deg.pow(-0.5)
        deg_inv_sqrt[deg_inv_sqrt == float("inf")] = 0
        return edge_index, deg_inv_sqrt[row] * edge_weight * deg_inv_sqrt[col]

    def forward(self, x: Tensor, edge_index: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.mixed("inputs", x, mask, self.layer_quantizers)
        w = self.layer_quantizers["weights_low"](self.weight)
        x = self.mixed("features", torch.matmul(x, w), mask, self.layer_quantizers)
        edge_index, norm = self.norm(edge_index, x.size(0), x.dtype)
        norm = self.layer_quantizers["norm_low"](norm)
        return self.propagate(edge_index, mask, x.size(0), x=x, norm=norm)

    def message(self, row: Tensor, col: Tensor, **given: Tensor) -> Tensor:
        return given["norm"].view(-1, 1) * given["x"][row]

    def update(self, sums: Tensor) -> Tensor:
        return sums + self.bias


class GATConvQuant(MessagePassingQuant):
    def __init__(self, nin: int, nout: int, heads: int) -> None:
        super().__init__()
        self.heads, self.nout = heads, nout
        self.weight = nn.Parameter(torch.empty(nin, heads * nout))
        self.att = nn.Parameter(torch.empty(1, heads, 2 * nout))
        self.bias = nn.Parameter(torch.randn(heads * nout) * 0.1)
        nn.init.xavier_uniform_(self.weight)
        nn.init.xavier_uniform_(self.att)
        self.layer_quantizers = quantisers("inputs", "features", "alpha")
        self.layer_quantizers["weights_low"], self.layer_quantizers["attention_low"] = (
            IntegerQuantizer(),
            IntegerQuantizer(),
        )

    def forward(self, x: Tensor, edge_index: Tensor, mask: Tensor | None = None) -> Tensor:
        edge_index, _ = remove_self_loops(edge_index)
        edge_index, _ = add_remaining_self_loops(edge_index, num_nodes=x.size(0))
        x = self.mixed("inputs", x, mask, self.layer_quantizers)
        x = torch.matmul(x, self.layer_quantizers["weights_low"](self.weight))
        x = self.mixed("features", x, mask, self.layer_quantizers)
        return self.propagate(edge_index, mask, x.size(0), x=x.view(-1, self.heads, self.nout))

    def message(self, row: Tensor, col: Tensor, **given: Tensor) -> Tensor:
        x_j, x_i = given["x"][row], given["x"][col]
        att = self.layer_quantizers["attention_low"](self.att)
        alpha = (x_i * att[:, :, : self.nout]).sum(dim=-1) + (x_j * att[:, :, self.nout :]).sum(dim=-1)
        alpha = F.leaky_relu(self.layer_quantizers["alpha_low"](alpha), 0.2)
        alpha = softmax(alpha, col, num_nodes=given["x"].size(0))
        return x_j * alpha.view(-1, self.heads, 1)

    def update(self, sums: Tensor) -> Tensor:
        return sums.view(-1, self.heads * self.nout) + self.bias


class LinearQuantized(nn.Linear):
    def __init__(self, nin: int, nout: int, bias: bool = True) -> None:
        super().__init__(nin, nout, bias)
        self.layer_quant = nn.ModuleDict({name: IntegerQuantizer() for name in ("inputs", "weights", "features")})

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_quant["inputs"](x)
        return self.layer_quant["features"](F.linear(x, self.layer_quant["weights"](self.weight), self.bias))


class GINConvQuant(MessagePassingQuant):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.nn, self.eps = mlp, nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, edge_index: Tensor, mask: Tensor | None = None) -> Tensor:
        edge_index, _ = remove_self_loops(edge_index)
        out = self.propagate(edge_index, mask, x.size(0), x=x)
        return self.nn((1 + self.eps) * x + out)

    def message(self, row: Tensor, col: Tensor, **given: Tensor) -> Tensor:
        return given["x"][row]


class GCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = GCNConvQuant(16, 16), GCNConvQuant(16, 7)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.conv1(x, edge_index)), p=0.5, training=self.training)
        return F.log_softmax(self.conv2(x, edge_index), dim=1)


class GAT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = GATConvQuant(16, 8, 4), GATConvQuant(32, 7, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return F.log_softmax(self.conv2(F.elu(self.conv1(x, edge_index)), edge_index), dim=1)


class GIN(nn.Module):
    """A network of whole graphs: layers with norms, a sum over each graph, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            GINConvQuant(
                nn.Sequential(LinearQuantized(n, 32), nn.ReLU(), LinearQuantized(32, 32), nn.ReLU(), nn.BatchNorm1d(32))
            )
            for n in (16, 32)
        )
        self.lin1, self.lin2 = LinearQuantized(32, 32), LinearQuantized(32, 2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index)
        x = global_add_pool(x, batch, 4)
        return F.log_softmax(self.lin2(F.relu(self.lin1(x))), dim=-1)


def sample(nodes: int, seed: int, graphs: bool) -> tuple[Tensor, ...]:
    """Features of few values, as bags of words have them, edges, and for whole graphs each node's graph."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(nodes, 16, generator=generator) < 0.3).float()
    x = x / x.sum(1, keepdim=True).clamp(min=1)
    edges = torch.randint(0, nodes, (2, 4 * nodes), generator=generator)
    if not graphs:
        return x, edges
    batch = torch.arange(nodes) * 4 // nodes
    return x, edges[:, batch[edges[0]] == batch[edges[1]]], batch


def trained(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network whose quantisers saw data."""
    torch.manual_seed(seed)
    model = kind().train()
    with torch.no_grad():
        for step in range(6):
            model(*sample(60, step, kind is GIN))
    return model.eval()
