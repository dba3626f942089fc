"""GCN, GAT, GIN and SAGE layers with quantisers at every stage of message passing (appendix B.2, figure 11).

Each layer quantises its inputs, weights and features, and after them the messages, the aggregated messages and
the updated nodes. Quantised everywhere with the same weights; a protected node (`protected`, bool [N], training
only) keeps its own values, and the messages that it sends, at full precision. Bias, epsilon and the attention
after the softmax are not quantised. With a scheme of 32 bits the layers compute what PyG's own do.

The names of quantisers are those of the authors' code: `*_low` is the quantiser of unprotected nodes; there, the
one of protected nodes (`*_high`) is an identity without state, and here it is the mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.nn.inits import glorot
from torch_geometric.utils import add_self_loops, remove_self_loops, softmax

from bgnn.models.dq.bags import Bags
from bgnn.models.dq.quantizer import Scheme, quantizer


class QuantizedMessagePassing(MessagePassing):
    """PyG's message passing with quantised messages, aggregates and updates.

    `signed` says whether the layer's inputs can be negative; all else is signed.
    """

    def __init__(self, scheme: Scheme, aggr: str) -> None:
        super().__init__(aggr=aggr, node_dim=0)
        stages = ("message_low", "aggregate_low", "update_low")
        self.mp_quantizers = nn.ModuleDict({stage: quantizer(scheme) for stage in stages})

    def _message(self, message: Tensor, protected_j: Tensor | None) -> Tensor:
        """Messages `[E, ...]` quantised, but for those whose source is protected (bool `[E]`)."""
        return self.mp_quantizers["message_low"](message, protected_j)

    def aggregate(
        self,
        inputs: Tensor,
        index: Tensor,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        protected: Tensor | None = None,
    ) -> Tensor:
        total = super().aggregate(inputs, index, ptr, dim_size)
        return self.mp_quantizers["aggregate_low"](total, protected)

    def _update(self, nodes: Tensor, protected: Tensor | None) -> Tensor:
        return self.mp_quantizers["update_low"](nodes, protected)


class QuantizedLinear(nn.Linear):
    """`[M, inputs]` to `[M, outputs]` with quantised input, weight and output. The bias is not quantised."""

    def __init__(self, inputs: int, outputs: int, scheme: Scheme, *, signed: bool = True, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        self.layer_quant = nn.ModuleDict(
            {
                "inputs": quantizer(scheme, signed=signed),
                "weights": quantizer(scheme, weight=True),
                "features": quantizer(scheme),
            }
        )

    def forward(self, input: Tensor) -> Tensor:
        weight = self.layer_quant["weights"](self.weight)
        input = self.layer_quant["inputs"](input)
        if isinstance(input, Bags):
            output = input @ weight.t()
            return self.layer_quant["features"](output if self.bias is None else output + self.bias)
        return self.layer_quant["features"](F.linear(input, weight, self.bias))


class QuantizedGCN(QuantizedMessagePassing):
    """GCN: `x [N, inputs]`, `edge_index [2, E]` to `[N, outputs]` (section 2.1; self-loops are added)."""

    def __init__(self, inputs: int, outputs: int, scheme: Scheme, *, signed: bool = True, bias: bool = True) -> None:
        super().__init__(scheme, aggr="add")
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)
        glorot(self.weight)
        self.layer_quantizers = nn.ModuleDict(
            {
                "inputs_low": quantizer(scheme, signed=signed),
                "weights_low": quantizer(scheme, weight=True),
                "features_low": quantizer(scheme),
                "norm_low": quantizer(scheme),
            }
        )

    def forward(self, x: Any, edge_index: Any, protected: Tensor | None = None) -> Tensor:
        q = self.layer_quantizers
        x = q["features_low"](q["inputs_low"](x, protected) @ q["weights_low"](self.weight), protected)
        edge_index, norm = gcn_norm(edge_index, None, x.size(0), add_self_loops=True, dtype=x.dtype)
        return self.propagate(edge_index, x=x, norm=q["norm_low"](norm), protected=protected)

    def message(self, x_j: Tensor, norm: Tensor, protected_j: Tensor | None) -> Tensor:
        return self._message(norm.view(-1, 1) * x_j, protected_j)

    def update(self, inputs: Tensor, protected: Tensor | None) -> Tensor:
        return self._update(inputs if self.bias is None else inputs + self.bias, protected)


class QuantizedGAT(QuantizedMessagePassing):
    """GAT: `x [N, inputs]` to `[N, heads * outputs]`, or, without `concat`, `[N, outputs]` (mean over heads).

    The attention's score a^T [W x_i | W x_j] is the sum of two scores per node, and is quantised per edge,
    before the LeakyReLU and softmax.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        scheme: Scheme,
        *,
        heads: int = 1,
        concat: bool = True,
        dropout: float = 0.0,
        signed: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(scheme, aggr="add")
        self.heads, self.outputs, self.concat, self.dropout = heads, outputs, concat, dropout
        self.weight = nn.Parameter(torch.empty(inputs, heads * outputs))
        self.att = nn.Parameter(torch.empty(1, heads, 2 * outputs))  # the target's part, then the source's
        width = heads * outputs if concat else outputs
        self.register_parameter("bias", nn.Parameter(torch.zeros(width)) if bias else None)
        glorot(self.weight)
        glorot(self.att)
        self.layer_quantizers = nn.ModuleDict(
            {
                "inputs_low": quantizer(scheme, signed=signed),
                "weights_low": quantizer(scheme, weight=True),
                "features_low": quantizer(scheme),
                "attention_low": quantizer(scheme, weight=True),
                "alpha_low": quantizer(scheme),
            }
        )

    def forward(self, x: Any, edge_index: Any, protected: Tensor | None = None) -> Tensor:
        q = self.layer_quantizers
        x = q["features_low"](q["inputs_low"](x, protected) @ q["weights_low"](self.weight), protected)
        x = x.view(-1, self.heads, self.outputs)
        target, source = q["attention_low"](self.att).split(self.outputs, dim=-1)
        alpha_i, alpha_j = (x * target).sum(-1), (x * source).sum(-1)
        edge_index, _ = remove_self_loops(edge_index)
        edge_index, _ = add_self_loops(edge_index, num_nodes=x.size(0))
        return self.propagate(edge_index, x=x, alpha=(alpha_j, alpha_i), protected=protected)

    def message(
        self,
        x_j: Tensor,
        alpha_i: Tensor,
        alpha_j: Tensor,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
        protected_j: Tensor | None,
    ) -> Tensor:
        alpha = self.layer_quantizers["alpha_low"](alpha_i + alpha_j, protected_j)
        alpha = softmax(F.leaky_relu(alpha, 0.2), index, ptr, size_i)
        alpha = F.dropout(alpha, self.dropout, self.training)
        return self._message(x_j * alpha.unsqueeze(-1), protected_j)

    def update(self, inputs: Tensor, protected: Tensor | None) -> Tensor:
        nodes = inputs.flatten(1) if self.concat else inputs.mean(1)
        return self._update(nodes if self.bias is None else nodes + self.bias, protected)


class QuantizedGIN(QuantizedMessagePassing):
    """GIN: `nn((1 + eps) x_i + sum_j x_j)`; `nn` maps `[N, inputs]` to `[N, outputs]` and quantises for itself.

    As in the authors' code, the mask does not reach into `nn`. As in PyG's GINConv, a self-loop counts as any edge.
    """

    eps: Tensor

    def __init__(self, network: nn.Module, scheme: Scheme, *, train_eps: bool = False) -> None:
        super().__init__(scheme, aggr="add")
        self.nn = network
        if train_eps:
            self.eps = nn.Parameter(torch.zeros(1))
        else:
            self.register_buffer("eps", torch.zeros(1))

    def forward(self, x: Any, edge_index: Tensor, protected: Tensor | None = None) -> Tensor:
        if isinstance(x, Bags) and x.messages is not None:
            sent = x.messages.of(x)
            sent = self.mp_quantizers["message_low"](sent, None if protected is None else protected[edge_index[0]])
            total = self.mp_quantizers["aggregate_low"](x.messages.sums(sent), protected)
            nodes = total.holding((1 + self.eps) * x.messages.spread(x).values + total.values)
            return self._update(self.nn(nodes), protected)
        return self.propagate(edge_index, x=x, protected=protected)

    def message(self, x_j: Tensor, protected_j: Tensor | None) -> Tensor:
        return self._message(x_j, protected_j)

    def update(self, inputs: Tensor, x: Tensor, protected: Tensor | None) -> Tensor:
        return self._update(self.nn((1 + self.eps) * x + inputs), protected)


class QuantizedSAGE(QuantizedMessagePassing):
    """GraphSAGE with the mean: `W_l mean_j x_j + b + W_r x_i`, quantised by the same method (not in the paper)."""

    def __init__(self, inputs: int, outputs: int, scheme: Scheme, *, signed: bool = True, bias: bool = True) -> None:
        super().__init__(scheme, aggr="mean")
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.root_weight = nn.Parameter(torch.empty(inputs, outputs))
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)
        glorot(self.weight)
        glorot(self.root_weight)
        self.layer_quantizers = nn.ModuleDict(
            {
                "inputs_low": quantizer(scheme, signed=signed),
                "weights_low": quantizer(scheme, weight=True),
                "root_weights_low": quantizer(scheme, weight=True),
            }
        )

    def forward(self, x: Tensor, edge_index: Tensor, protected: Tensor | None = None) -> Tensor:
        x = self.layer_quantizers["inputs_low"](x, protected)
        return self.propagate(edge_index, x=x, protected=protected)

    def message(self, x_j: Tensor, protected_j: Tensor | None) -> Tensor:
        return self._message(x_j, protected_j)

    def update(self, inputs: Tensor, x: Tensor, protected: Tensor | None) -> Tensor:
        q: Any = self.layer_quantizers
        nodes = torch.matmul(inputs, q["weights_low"](self.weight))
        nodes = nodes + torch.matmul(x, q["root_weights_low"](self.root_weight))
        return self._update(nodes if self.bias is None else nodes + self.bias, protected)
