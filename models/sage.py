"""Networks on the nodes of a graph: GraphSAGE (Eq. 5), BinSAGE (Eq. 14-15), and the float GCN they are compared with.

    forward(x float32 [N, features], edge_index int64 [2, E]) -> logits float32 [N, classes]

Row 0 of `edge_index` has the sources, row 1 the targets; a node's neighbours are the sources of its edges. Three layers
of 256 with the mean, as the OGB baselines (section 5.2). The last layer has neither activation nor norm.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgnn.models.dgcnn import BinaryBlock
from bgnn.models.layers import Rescale, Sign, activation


@dataclass
class Sample:
    """A sampled neighbourhood: nodes int64 `[n]`, the wanted ones first, then those one edge further away, and so on;
    edges int64 `[2, e]` among them by their places, those into the wanted nodes first, and so on.

    node_ends, edge_ends: how many of them are within 0, 1, 2 ... hops.
    """

    nodes: Tensor
    edges: Tensor
    node_ends: list[int]
    edge_ends: list[int]


class NodeNet(nn.Module):
    """What the three share: the checked configuration, and layers applied one after the other.

    features, classes: widths of input and output. hidden, layers: width and number of the layers.
    dropout: of what every layer but the first reads, in training.
    normalise: rows of length 1 after every layer but the last (Norm of Eq. 5 and 15).
    Raises ValueError on a value out of range.
    """

    architecture: str

    def __init__(self, **config: Any) -> None:
        super().__init__()
        for name in ("features", "classes", "hidden", "layers"):
            if config[name] < 1:
                raise ValueError(f"{name} is {config[name]}; it must be a positive whole number")
        if not 0 <= config["dropout"] < 1:
            raise ValueError(f"dropout is {config['dropout']}; it must be in [0, 1)")
        #: The constructor's arguments as plain values: what a checkpoint stores.
        self.config: dict[str, Any] = config
        between = [config["hidden"]] * (config["layers"] - 1)
        widths = list(zip([config["features"], *between], [*between, config["classes"]], strict=True))
        self.convs = nn.ModuleList(self._dense(a, b, i == len(widths) - 1) for i, (a, b) in enumerate(widths))

    def _dense(self, inputs: int, outputs: int, last: bool) -> nn.Module:
        """The layer's part that works on each node by itself."""
        raise NotImplementedError

    def layer(self, i: int, own: Tensor, neighbours: Tensor) -> Tensor:
        """Layer `i` of nodes' own features `[N, C]` and the means of their neighbours' `[N, C]`."""
        x = self.convs[i](torch.cat([own, neighbours], dim=1))
        if i + 1 < len(self.convs) and self.config["normalise"]:
            x = F.normalize(x, dim=1)
        return x

    def part_of_layer(self, i: int, x: Tensor, degree: Tensor, nodes: Tensor, source: Tensor, owner: Tensor) -> Tensor:
        """Layer `i` of some `nodes [M]` alone: `[M, ...]` of all nodes' features `x [N, C]`.

        `degree` f32 `[N]`: edges into each node in the whole graph. `source [E]`, `owner [E]`: edges into `nodes`, all
        or a sample of them, the target by its place there.
        """
        count = torch.zeros(len(nodes)).index_add_(0, owner, torch.ones(len(owner)))
        total = torch.zeros(len(nodes), x.shape[1]).index_add_(0, owner, x[source])
        return self.layer(i, x[nodes], total / count.clamp(min=1)[:, None])

    def on_sample(self, x: Tensor, degree: Tensor, sample: Sample) -> Tensor:
        """The logits of a sample's wanted nodes; `x` and `degree` of its nodes.

        A layer is computed for those nodes whose neighbours were drawn: at the rim there are none, and BatchNorms
        would learn statistics that the whole graph has not.
        """
        for i in range(len(self.convs)):
            hops = len(self.convs) - 1 - i
            if i:
                x = F.dropout(x, self.config["dropout"], self.training)
            source, owner = sample.edges[:, : sample.edge_ends[hops]]
            x = self.part_of_layer(i, x, degree[: len(x)], torch.arange(sample.node_ends[hops]), source, owner)
        return x

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits `[N, classes]`; see the module's docstring."""
        if x.dim() != 2 or x.shape[1] != self.config["features"]:
            raise ValueError(f"x has shape {list(x.shape)}; this network takes [nodes, {self.config['features']}]")
        source, target = edge_index
        degree = torch.zeros(x.size(0)).index_add_(0, target, torch.ones(target.size(0))).clamp(min=1)
        for i in range(len(self.convs)):
            if i:
                x = F.dropout(x, self.config["dropout"], self.training)
            mean = torch.zeros_like(x).index_add_(0, target, x[source]) / degree[:, None]
            x = self.layer(i, x, mean)
        return x


class SAGE(NodeNet):
    """GraphSAGE (Eq. 5): Norm(ReLU(W [x_i || mean_j x_j]))."""

    architecture = "sage"

    def __init__(
        self,
        *,
        features: int = 100,
        classes: int = 47,
        hidden: int = 256,
        layers: int = 3,
        dropout: float = 0.5,
        normalise: bool = True,
    ) -> None:
        super().__init__(
            features=features, classes=classes, hidden=hidden, layers=layers, dropout=dropout, normalise=normalise
        )

    def _dense(self, inputs: int, outputs: int, last: bool) -> nn.Module:
        linear = nn.Linear(2 * inputs, outputs)
        return linear if last else nn.Sequential(linear, nn.ReLU())


class BinSAGE(NodeNet):
    """Binary GraphSAGE (Eq. 14-15): Norm(act(sign(W) sign(BN([x_i || mean_j x_j])) * Gamma)), Gamma of Eq. 10.

    stage: of the cascade. 1: tanh in place of sign, real weights; 2: signs of the inputs; 3: of the weights too.
    activation: "prelu" (OGB proteins) or "none" (products).
    """

    architecture = "binsage"

    def __init__(
        self,
        *,
        features: int = 100,
        classes: int = 47,
        hidden: int = 256,
        layers: int = 3,
        dropout: float = 0.5,
        normalise: bool = True,
        activation: str = "none",
        stage: int = 3,
    ) -> None:
        if activation not in ("prelu", "none"):
            raise ValueError(f"activation is {activation!r}; it must be one of 'prelu', 'none'")
        if stage not in (1, 2, 3):
            raise ValueError(f"stage is {stage}; it must be one of 1, 2, 3")
        super().__init__(
            features=features,
            classes=classes,
            hidden=hidden,
            layers=layers,
            dropout=dropout,
            normalise=normalise,
            activation=activation,
            stage=stage,
        )

    def _dense(self, inputs: int, outputs: int, last: bool) -> nn.Module:
        block = BinaryBlock(
            2 * inputs,
            outputs,
            dims=0,
            quantizer=nn.Tanh() if self.config["stage"] == 1 else Sign(),
            binary_weights=self.config["stage"] == 3,
            activation=activation("none" if last else self.config["activation"]),
        )
        # A sum of 2 C signs is of the order of its root: logits start near 1.
        nn.init.constant_(block.rescale.get_parameter("scale_a"), (2 * inputs) ** -0.5)
        return block


class GCN(NodeNet):
    """The float GCN of Table 3: ReLU(D^-1/2 (A + I) D^-1/2 X W + b). Needs torch-geometric for its norm."""

    architecture = "gcn"

    def __init__(
        self, *, features: int = 100, classes: int = 47, hidden: int = 256, layers: int = 3, dropout: float = 0.5
    ) -> None:
        super().__init__(features=features, classes=classes, hidden=hidden, layers=layers, dropout=dropout)
        widths = [hidden] * (layers - 1) + [classes]
        self.biases = nn.ParameterList(torch.zeros(width) for width in widths)

    def _dense(self, inputs: int, outputs: int, last: bool) -> nn.Module:
        return nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits `[N, classes]`; see the module's docstring."""
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        if x.dim() != 2 or x.shape[1] != self.config["features"]:
            raise ValueError(f"x has shape {list(x.shape)}; this network takes [nodes, {self.config['features']}]")
        (source, target), each = gcn_norm(edge_index, None, x.size(0))
        for i, dense in enumerate(self.convs):
            if i:
                x = F.dropout(F.relu(x), self.config["dropout"], self.training)
            h = dense(x)
            x = torch.zeros_like(h).index_add_(0, target, h[source] * each[:, None]) + self.biases[i]
        return x

    def part_of_layer(self, i: int, x: Tensor, degree: Tensor, nodes: Tensor, source: Tensor, owner: Tensor) -> Tensor:
        """As of `NodeNet`, of a graph without self-loops; here a node is its own neighbour, once.

        The sum over a sample stands for that over all edges.
        """
        x, root = (x.relu() if i else x), (degree + 1).rsqrt()
        count = torch.zeros(len(nodes)).index_add_(0, owner, torch.ones(len(owner)))
        total = torch.zeros(len(nodes), x.shape[1]).index_add_(0, owner, x[source] * root[source][:, None])
        total = total * (degree[nodes] / count.clamp(min=1))[:, None] + x[nodes] * root[nodes][:, None]
        return self.convs[i](total * root[nodes][:, None]) + self.biases[i]


#: Architecture name, as checkpoints state it, to class.
NODE_ARCHITECTURES: dict[str, type[NodeNet]] = {cls.architecture: cls for cls in (SAGE, BinSAGE, GCN)}


def settings_of(model: type[NodeNet]) -> dict[str, Any]:
    """The keyword arguments of a class with their defaults."""
    return {name: one.default for name, one in inspect.signature(model.__init__).parameters.items() if name != "self"}


def scales(model: nn.Module) -> list[nn.Parameter]:
    """The learned rescaling factors, which alone are regularised (section 5.2)."""
    return [parameter for module in model.modules() if isinstance(module, Rescale) for parameter in module.parameters()]
