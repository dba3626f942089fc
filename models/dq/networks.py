"""The networks of Degree-Quant (Tables 5 and 6) and their float twins: `build(config)`.

Three forms: "citation" (Cora, Citeseer: two layers, a class per node), "benchmark" (MNIST, CIFAR-10 and ZINC: an
embedding, four layers with BatchNorm and residuals, a readout per graph), and "reddit" (REDDIT-BINARY: five GIN
layers, a class per graph). The float twin is the same network with bits=32.

    forward(x [N, features], edge_index [2, E] int64[, batch [N] int64[, size]]) -> logits [N or graphs, classes]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import global_mean_pool

from bgnn.models.dq import layers
from bgnn.models.dq.bags import Bags
from bgnn.models.dq.mask import sample
from bgnn.models.dq.quantizer import FLOAT_BITS, Scheme

FORMS = ("citation", "benchmark", "reddit")
CONVS = ("gcn", "gat", "gin", "sage")


@dataclass(frozen=True)
class Settings(Scheme):
    """A network's configuration, plain values: what a checkpoint stores. Raises ValueError on a bad value.

    features, classes: widths of input and output (classes = 1 for a regression).
    hidden: width of the hidden layers; with GAT that of one head.
    heads: attention heads (GAT; the last layer of a citation network has one).
    dropout: of features, and in citation networks of attention (GAT).
    signed_input: whether input features can be negative; otherwise their codes are unsigned.
    one_hot: ZINC's form of "benchmark": features are one-hot kinds of atoms, so the embedding has no bias, and
        GIN's readout leaves it out.
    float_first: the first layer ("reddit": the first Linear; "benchmark": the embedding) stays at full precision.
    float_last: the last layer or the readout stays at full precision, as appendix A.5.1 advises.
    """

    form: str = "citation"
    conv: str = "gcn"
    features: int = 1433
    classes: int = 7
    hidden: int = 16
    layers: int = 2
    heads: int = 8
    dropout: float = 0.5
    signed_input: bool = False
    one_hot: bool = False
    float_first: bool = False
    float_last: bool = False

    def __post_init__(self) -> None:
        for name, kind in ((f.name, type(f.default)) for f in fields(self)):
            value = getattr(self, name)
            kinds = (int, float) if kind is float else (kind,)
            if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{name} is {value!r}; it must be of type {kind.__name__}")
        super().__post_init__()
        for name, allowed in (("form", FORMS), ("conv", CONVS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.form == "reddit" and self.conv != "gin":
            raise ValueError(f'conv is {self.conv!r}; the form "reddit" is made of GIN layers')
        if self.form == "citation" and self.layers != 2:
            raise ValueError(f'layers is {self.layers}; the form "citation" has 2')
        for name in ("features", "classes", "hidden", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive whole number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def first(self) -> Scheme:
        """The scheme of the first layer."""
        return replace(self, bits=FLOAT_BITS) if self.float_first else self

    @property
    def last(self) -> Scheme:
        """The scheme of the last layer or the readout."""
        return replace(self, bits=FLOAT_BITS) if self.float_last else self


class DegreeQuantNet(nn.Module):
    """What the three forms share: the configuration and the checks of the input."""

    architecture = "dq"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.dropout = settings.dropout

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain values; `build(config)` makes the network again."""
        return asdict(self.settings)

    def forward(
        self,
        x: Any,
        edge_index: Tensor,
        batch: Tensor | None = None,
        size: int | None = None,
        protect: Tensor | None = None,
    ) -> Tensor:
        """Logits `[N, classes]` ("citation") or `[graphs, classes]` float32.

        `x` float32 `[N, features]`, in training of a citation network `Bags` too; `edge_index` int64 `[2, E]`, sources
        and targets; `batch` int64 `[N]`: the graph of each node, sorted (None: one graph); `size`: how many graphs,
        counted from `batch` if None; `protect` float32 `[N]`: the probability that a node is protected, used in
        training mode only.
        """
        if len(x.shape) != 2 or x.shape[1] != self.settings.features:
            raise ValueError(f"x has shape {list(x.shape)}; this network takes [nodes, {self.settings.features}]")
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"edge_index has shape {list(edge_index.shape)}; it must be [2, edges]")
        return self._logits(x, edge_index, batch, size, protect if self.training else None)

    def _logits(
        self, x: Any, edge_index: Any, batch: Tensor | None, size: int | None, protect: Tensor | None
    ) -> Tensor:
        raise NotImplementedError

    def _drop(self, x: Any) -> Any:
        if isinstance(x, Bags):  # what is zero stays zero
            return x.holding(F.dropout(x.values, self.dropout, self.training))
        return F.dropout(x, self.dropout, self.training)


class CitationNet(DegreeQuantNet):
    """Two layers f-16-c; GAT 8 heads of 8, then 1 head (Kipf & Welling; Velickovic et al.). No BatchNorm."""

    def __init__(self, s: Settings) -> None:
        super().__init__(s)
        if s.conv == "gat":
            self.conv1: nn.Module = layers.QuantizedGAT(
                s.features, s.hidden, s.first, heads=s.heads, dropout=s.dropout, signed=s.signed_input
            )
            self.conv2: nn.Module = layers.QuantizedGAT(
                s.heads * s.hidden, s.classes, s.last, concat=False, dropout=s.dropout
            )
        elif s.conv == "gin":
            linear = layers.QuantizedLinear
            self.conv1 = layers.QuantizedGIN(linear(s.features, s.hidden, s.first, signed=s.signed_input), s.first)
            self.conv2 = layers.QuantizedGIN(linear(s.hidden, s.classes, s.last, signed=False), s.last)
        else:
            layer = layers.QuantizedGCN if s.conv == "gcn" else layers.QuantizedSAGE
            self.conv1 = layer(s.features, s.hidden, s.first, signed=s.signed_input)
            self.conv2 = layer(s.hidden, s.classes, s.last, signed=False)

    def _logits(
        self, x: Any, edge_index: Any, batch: Tensor | None, size: int | None, protect: Tensor | None
    ) -> Tensor:
        x = self.conv1(self._drop(x), edge_index, sample(protect))
        x = F.elu(x) if self.settings.conv == "gat" else F.relu(x)
        return self.conv2(self._drop(x), edge_index, sample(protect))


class BenchmarkNet(DegreeQuantNet):
    """Embedding, four bias-free layers each with BatchNorm, activation and residual, mean over the graph, readout.

    The readout of GCN, GAT and SAGE is an MLP h, h/2, h/2, c; GIN adds one linear readout per layer. The layout is
    that of "Benchmarking Graph Neural Networks" (Dwivedi et al., 2020), which the paper takes its baselines from.
    """

    def __init__(self, s: Settings) -> None:
        super().__init__(s)
        linear = layers.QuantizedLinear
        width = s.hidden * s.heads if s.conv == "gat" else s.hidden
        self.embedding = linear(s.features, width, s.first, signed=s.signed_input, bias=not s.one_hot)
        self.convs = nn.ModuleList(self._conv(s, width) for _ in range(s.layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(s.layers))
        if s.conv == "gin":
            count = s.layers + (not s.one_hot)
            self.readouts = nn.ModuleList(linear(width, s.classes, s.last) for _ in range(count))
        else:
            half = (width + 1) // 2
            self.readout = nn.Sequential(
                linear(width, half, s.last),
                nn.ReLU(),
                linear(half, half, s.last, signed=False),
                nn.ReLU(),
                linear(half, s.classes, s.last, signed=False),
            )

    @staticmethod
    def _conv(s: Settings, width: int) -> nn.Module:
        if s.conv == "gat":
            return layers.QuantizedGAT(width, s.hidden, s, heads=s.heads, dropout=s.dropout, bias=False)
        if s.conv == "gin":
            first, second = (layers.QuantizedLinear(width, width, s, signed=signed) for signed in (True, False))
            return layers.QuantizedGIN(nn.Sequential(first, nn.ReLU(), second), s, train_eps=True)
        layer = layers.QuantizedGCN if s.conv == "gcn" else layers.QuantizedSAGE
        return layer(width, width, s, bias=False)

    def _logits(
        self, x: Any, edge_index: Any, batch: Tensor | None, size: int | None, protect: Tensor | None
    ) -> Tensor:
        activation = F.elu if self.settings.conv == "gat" else F.relu
        states = [self.embedding(x)]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = activation(norm(conv(states[-1], edge_index, sample(protect))))
            states.append(self._drop(states[-1] + h))
        if self.settings.conv != "gin":
            return self.readout(global_mean_pool(states[-1], batch, size))
        pooled = [global_mean_pool(state, batch, size) for state in states[-len(self.readouts) :]]
        logits = self.readouts[0](pooled[0])
        for readout, graph in zip(list(self.readouts)[1:], pooled[1:], strict=True):
            logits = logits + readout(graph)
        return logits


class RedditNet(DegreeQuantNet):
    """Five GIN layers of two-layer MLPs with BatchNorm, mean over the graph, two linear layers.

    The names of parameters and quantisers are those of the authors' code.
    """

    def __init__(self, s: Settings) -> None:
        super().__init__(s)
        self.conv1 = self._conv(s, s.features, s.first, s.signed_input)
        self.convs = nn.ModuleList(self._conv(s, s.hidden, s, True) for _ in range(s.layers - 1))
        self.lin1 = layers.QuantizedLinear(s.hidden, s.hidden, s.last)
        self.lin2 = layers.QuantizedLinear(s.hidden, s.classes, s.last, signed=False)

    @staticmethod
    def _conv(s: Settings, inputs: int, first: Scheme, signed: bool) -> layers.QuantizedGIN:
        linear = layers.QuantizedLinear
        mlp = nn.Sequential(
            linear(inputs, s.hidden, first, signed=signed),
            nn.ReLU(),
            linear(s.hidden, s.hidden, s, signed=False),
            nn.ReLU(),
            nn.BatchNorm1d(s.hidden),
        )
        return layers.QuantizedGIN(mlp, s, train_eps=True)

    def _logits(
        self, x: Any, edge_index: Any, batch: Tensor | None, size: int | None, protect: Tensor | None
    ) -> Tensor:
        protected = sample(protect)  # one mask for all layers, as in the authors' code
        for conv in (self.conv1, *self.convs):
            x = conv(x, edge_index, protected)
        x = F.relu(self.lin1(global_mean_pool(x, batch, size)))
        return self.lin2(self._drop(x))


def build(config: Mapping[str, Any] | Settings) -> DegreeQuantNet:
    """A fresh network in training mode. Raises ValueError, one line, on an unknown setting or a bad value."""
    if not isinstance(config, Settings):
        known = {field.name for field in fields(Settings)}
        for name in config:
            if name not in known:
                raise ValueError(f"dq has no setting {name!r}; it has {', '.join(sorted(known))}")
        config = Settings(**config)
    return {"citation": CitationNet, "benchmark": BenchmarkNet, "reddit": RedditNet}[config.form](config)
