"""The DGCNN family of the binary GNN paper: the fp32 baseline, RF (Eq. 12-13), BF1 (Eq. 19), BF2 (Eq. 20).

Every model takes a point cloud `[B, N, 3]` float32 and returns logits `[B, classes]`: four EdgeConv layers
over k-NN graphs (rebuilt in feature space before each), their outputs concatenated and embedded per point,
max and mean pooling, a three-layer classifier (appendix A).

Attribute names, and so the keys of the state_dict, are those of the two public code bases that people have
weights from: DGCNN's (`conv1.0.weight`, `bn1`, `linear1`, ...) for the baseline, and the paper's
(`conv1.0.weights_real`, `linear1.core_op.weights_real`, ...) for RF, BF1 and BF2.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgnn.models.layers import BinaryDot, Rescale, Sign, activation, center, edge_features, knn

ACTIVATIONS = ("prelu", "relu", "leaky_relu", "none")
METRICS = ("l2", "hamming", "l1")
BALANCES = ("none", "mean", "median", "first_mean")
POOLS = ("max+mean", "max", "mean")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


class PointCloudNet(nn.Module):
    """What the four models share: the checked configuration, the way in, and the pooling."""

    architecture: str

    def __init__(self, **config: Any) -> None:
        super().__init__()
        config["channels"], config["mlp"] = list(config["channels"]), list(config["mlp"])
        if len(config["channels"]) != 4:
            raise ValueError(f"channels has {len(config['channels'])} widths; the four EdgeConv layers need 4")
        if len(config["mlp"]) != 2:
            raise ValueError(f"mlp has {len(config['mlp'])} widths; the two hidden layers need 2")
        sizes = {name: config[name] for name in ("classes", "num_points", "k", "embedding")}
        for name, size in [
            *sizes.items(),
            *(("channels", c) for c in config["channels"]),
            *(("mlp", m) for m in config["mlp"]),
        ]:
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; it must be a positive whole number")
        if config["k"] > config["num_points"]:
            raise ValueError(f"k = {config['k']} neighbours of only num_points = {config['num_points']} points")
        if not 0 <= config["dropout"] < 1:
            raise ValueError(f"dropout is {config['dropout']}; it must be in [0, 1)")
        _one_of("activation", config["activation"], ACTIVATIONS)
        _one_of("pool", config["pool"], POOLS)
        #: The constructor's arguments as plain values: what a checkpoint stores.
        self.config: dict[str, Any] = config
        self.k: int = config["k"]
        #: (inputs, outputs) of the four EdgeConvs.
        c1, c2, c3, c4 = config["channels"]
        self.edge_widths = [(2 * 3, c1), (2 * c1, c2), (2 * c2, c3), (2 * c3, c4)]
        self.dp1 = nn.Dropout(config["dropout"])
        self.dp2 = nn.Dropout(config["dropout"])

    def forward(self, points: Tensor) -> Tensor:
        """Logits `[B, classes]` of clouds `[B, N, 3]`, float32. A rescaling over the points fixes N."""
        return self.with_graphs(points)[0]

    def with_graphs(self, points: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The logits, and of each EdgeConv the node features `[B, C, N]` and the neighbours `[B, N, k]`."""
        raise NotImplementedError

    def scales_before_norms(self) -> list[Rescale]:
        """The rescalings whose output a BatchNorm normalises again: what they learn has no effect."""
        return []

    def _node_features(self, points: Tensor) -> Tensor:
        """`[B, N, 3]` to channel-first `[B, 3, N]`, after a look at the shape."""
        if points.dim() != 3 or points.shape[2] != 3:
            raise ValueError(f"the input has shape {list(points.shape)}; a batch of clouds is [B, N, 3]")
        if points.shape[1] < self.k:
            raise ValueError(f"k = {self.k} neighbours of only {points.shape[1]} points")
        return points.transpose(1, 2).contiguous()

    def _pool(self, x: Tensor) -> Tensor:
        """`[B, E, N]` to `[B, 2E]`: the maximum over the points, then the mean; or one of them, `[B, E]`."""
        pooled = []
        for kind in self.config["pool"].split("+"):
            one = F.adaptive_max_pool1d(x, 1) if kind == "max" else F.adaptive_avg_pool1d(x, 1)
            pooled.append(one.view(x.shape[0], -1))
        return torch.cat(pooled, dim=1)

    @property
    def _pooled(self) -> int:
        """How many values `_pool` gives for a cloud."""
        return self.config["embedding"] * len(self.config["pool"].split("+"))


class DGCNN(PointCloudNet):
    """The fp32 baseline (Eq. 3-4): convolution, BatchNorm, activation, maximum over the neighbours.

    The paper's baseline uses ReLU; weights trained with the DGCNN authors' code need "leaky_relu".

    Parameters with the default sizes: 1,809,576. Table 5 says 1,812,648, because `bn1` to `bn5` are
    registered twice, by themselves and inside `conv1` to `conv5`, and the paper's counting tool counted all
    five BatchNorms (3,072 parameters) both times. `named_parameters(remove_duplicate=False)` does the same.
    """

    architecture = "dgcnn"

    def __init__(
        self,
        *,
        classes: int = 40,
        num_points: int = 1024,
        k: int = 20,
        embedding: int = 1024,
        channels: tuple[int, ...] | list[int] = (64, 64, 128, 256),
        mlp: tuple[int, ...] | list[int] = (512, 256),
        dropout: float = 0.5,
        activation: str = "relu",
        pool: str = "max+mean",
    ) -> None:
        super().__init__(
            classes=classes,
            num_points=num_points,
            k=k,
            embedding=embedding,
            channels=channels,
            mlp=mlp,
            dropout=dropout,
            activation=activation,
            pool=pool,
        )
        (in1, c1), (in2, c2), (in3, c3), (in4, c4) = self.edge_widths
        m1, m2 = mlp
        self.bn1, self.bn2 = nn.BatchNorm2d(c1), nn.BatchNorm2d(c2)
        self.bn3, self.bn4 = nn.BatchNorm2d(c3), nn.BatchNorm2d(c4)
        self.bn5 = nn.BatchNorm1d(embedding)
        self.conv1 = self._edge_conv(in1, c1, self.bn1)
        self.conv2 = self._edge_conv(in2, c2, self.bn2)
        self.conv3 = self._edge_conv(in3, c3, self.bn3)
        self.conv4 = self._edge_conv(in4, c4, self.bn4)
        embed = nn.Conv1d(c1 + c2 + c3 + c4, embedding, 1, bias=False)
        self.conv5 = nn.Sequential(embed, self.bn5, self._activation())
        self.linear1 = nn.Linear(self._pooled, m1, bias=False)
        self.bn6 = nn.BatchNorm1d(m1)
        self.linear2 = nn.Linear(m1, m2)
        self.bn7 = nn.BatchNorm1d(m2)
        self.linear3 = nn.Linear(m2, classes)
        self.act6, self.act7 = self._activation(), self._activation()

    def _activation(self) -> nn.Module:
        return activation(self.config["activation"])

    def _edge_conv(self, inputs: int, outputs: int, norm: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), norm, self._activation())

    def with_graphs(self, points: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        x = self._node_features(points)
        graphs = []
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            idx = knn(x.transpose(1, 2), self.k, "l2", fast=self.training)
            x = conv(edge_features(x, idx, "difference")).max(dim=-1)[0]
            graphs.append((x, idx))
        x = self._pool(self.conv5(torch.cat([x for x, _ in graphs], dim=1)))
        x = self.dp1(self.act6(self.bn6(self.linear1(x))))
        x = self.dp2(self.act7(self.bn7(self.linear2(x))))
        return self.linear3(x), graphs


class BinaryBlock(nn.Module):
    """The XNOR-Net++ block (section 3): BatchNorm, quantiser, dot product, rescaling, activation.

    `dims` is 0 for `[B, C]`, 1 for `[B, C, N]`, 2 for `[B, C, N, k]`; `sizes` are `Rescale`'s rank-1 factors.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        dims: int,
        quantizer: nn.Module,
        binary_weights: bool,
        activation: nn.Module,
        sizes: tuple[int, ...] = (),
        norm: bool = True,
        zero: str = "plus",
    ) -> None:
        super().__init__()
        batch_norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
        self.center = batch_norm(inputs) if norm else nn.Identity()
        self.quantizer = quantizer
        self.core_op = BinaryDot(inputs, outputs, dims, binary_weights, zero)
        self.rescale = Rescale(outputs, sizes)
        self.activ = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activ(self.rescale(self.core_op(self.quantizer(self.center(x)))))


class _UnusedNormBlock(BinaryBlock):
    """A block that has a BatchNorm among its parameters and does not use it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.activ(self.rescale(self.core_op(self.quantizer(x))))


class _BinaryNet(PointCloudNet):
    """What RF, BF1 and BF2 share: the knobs of Table 1 and the classifier.

    Args beyond the baseline's:
        activation: "prelu", "relu" or "none", in every block but the last.
        stage: of the cascade (section 3). 1: tanh in place of sign, real weights; 2: sign on the features,
            real weights; 3: sign on the weights too. The last layer is a matter of its own.
        knn: "l2", or for BF1 and BF2 "hamming" or "l1". The first graph is that of the 3-D coordinates, and uses
            l2. On the real features of stage 1 "hamming" is the authors' formula for it, C - xy.
        edge_balance: centres what the sign after the max aggregation sees, along axis `edge_balance_axis` of
            `[B, C, N]`: 2, over the points, unless said (the authors' code: 0, over the batch).
        global_balance: centres the pooled embedding, along axis `global_balance_axis` of `[B, 2E]`: 1, over the
            channels, unless said (the authors' code: 0); it takes the place of the first BatchNorm of the classifier.
        rescale_h, rescale_w, rescale_l: whether the rescaling has a factor over the points and over the neighbours
            in the EdgeConvs, and over the points in the embedding.
        last_inputs: of the last layer: "quantised" (as those of the other layers), "tanh" or "real".
        last_weights: "real" or "sign".
        sign_zero: "plus" has sign(0) = +1 (Eq. 8), "zero" is torch.sign, as in the authors' code.
    """

    def __init__(
        self,
        *,
        classes: int = 40,
        num_points: int = 1024,
        k: int = 20,
        embedding: int = 1024,
        channels: tuple[int, ...] | list[int] = (64, 64, 128, 256),
        mlp: tuple[int, ...] | list[int] = (512, 256),
        dropout: float = 0.5,
        activation: str = "prelu",
        stage: int = 3,
        knn: str = "l2",
        edge_balance: str = "none",
        global_balance: str = "none",
        edge_balance_axis: int = 2,
        global_balance_axis: int = 1,
        rescale_h: bool = False,
        rescale_w: bool = False,
        rescale_l: bool = False,
        pool: str = "max+mean",
        last_inputs: str = "quantised",
        last_weights: str = "real",
        sign_zero: str = "plus",
        **own: Any,
    ) -> None:
        super().__init__(
            classes=classes,
            num_points=num_points,
            k=k,
            embedding=embedding,
            channels=channels,
            mlp=mlp,
            dropout=dropout,
            activation=activation,
            stage=stage,
            knn=knn,
            edge_balance=edge_balance,
            global_balance=global_balance,
            edge_balance_axis=edge_balance_axis,
            global_balance_axis=global_balance_axis,
            rescale_h=rescale_h,
            rescale_w=rescale_w,
            rescale_l=rescale_l,
            pool=pool,
            last_inputs=last_inputs,
            last_weights=last_weights,
            sign_zero=sign_zero,
            **own,
        )
        _one_of("stage", stage, (1, 2, 3))
        _one_of("knn", knn, METRICS)
        _one_of("edge_balance", edge_balance, BALANCES)
        _one_of("global_balance", global_balance, BALANCES)
        _one_of("edge_balance_axis", edge_balance_axis, (0, 1, 2))
        _one_of("global_balance_axis", global_balance_axis, (0, 1))
        _one_of("last_inputs", last_inputs, ("quantised", "tanh", "real"))
        _one_of("last_weights", last_weights, ("real", "sign"))
        _one_of("sign_zero", sign_zero, ("plus", "zero"))
        self.stage = stage
        self.quantizer: nn.Module = nn.Tanh() if stage == 1 else Sign(sign_zero)
        self._make_convolutions()
        m1, m2 = mlp
        self.linear1 = self._first_hidden(self._pooled, m1)
        self.linear2 = self._block(m1, m2, 0)
        self.linear3 = BinaryBlock(
            m2,
            classes,
            dims=0,
            quantizer={"quantised": self.quantizer, "tanh": nn.Tanh(), "real": nn.Identity()}[last_inputs],
            binary_weights=last_weights == "sign",
            activation=nn.Identity(),
            zero=sign_zero,
        )

    def _make_convolutions(self) -> None:
        """Sets `conv1` to `conv5` and what stands between them."""
        raise NotImplementedError

    def _first_hidden(self, inputs: int, outputs: int) -> BinaryBlock:
        return self._block(inputs, outputs, 0, norm=self.config["global_balance"] == "none")

    def _sizes(self, dims: int) -> tuple[int, ...]:
        """The lengths of the rescaling's further factors, in a layer of so many axes after the channels."""
        points, k = self.config["num_points"], self.k
        if dims == 1:
            return (points if self.config["rescale_l"] else 1,)
        return (points if self.config["rescale_h"] else 1, k if self.config["rescale_w"] else 1)[:dims]

    def _check_points(self, points: int) -> None:
        if points != self.config["num_points"] and (self.config["rescale_h"] or self.config["rescale_l"]):
            raise ValueError(
                f"{points} points; {self.architecture}'s rescaling was made for {self.config['num_points']}"
            )

    def _block(
        self,
        inputs: int,
        outputs: int,
        dims: int,
        norm: bool = True,
        quantizer: nn.Module | None = None,
        kind: type[BinaryBlock] = BinaryBlock,
    ) -> BinaryBlock:
        chosen = self.config.get("mlp_activation", "same") if dims == 0 else "same"
        return kind(
            inputs,
            outputs,
            dims=dims,
            quantizer=quantizer or self.quantizer,
            binary_weights=self.stage == 3,
            activation=activation(self.config["activation"] if chosen == "same" else chosen),
            sizes=self._sizes(dims),
            norm=norm,
            zero=self.config["sign_zero"],
        )

    def _balance_edges(self, x: Tensor) -> Tensor:
        """What the max aggregation gives, `[B, C, N]`, centred."""
        return center(x, self.config["edge_balance"], self.config["edge_balance_axis"])

    def _classify(self, x: Tensor) -> Tensor:
        """Logits `[B, classes]` from the pooled embedding `[B, 2E]`."""
        x = center(x, self.config["global_balance"], self.config["global_balance_axis"])
        x = self.dp1(self.linear1(x))
        x = self.dp2(self.linear2(x))
        return self.linear3(x)


class RF(_BinaryNet):
    """Real graph features: BinEdgeConv (Eq. 12-13), rank-1 rescaling (Eq. 11).

    The rescaling has one factor each over channels, points and neighbours. The first layer's BatchNorm sees
    the real coordinates, and its input is not quantised; `first_inputs` is "real" or "tanh" (the authors' stage 1).
    Parameters with the default sizes at stage 3: 15,243 fp32 and 1,804,672 binary (Table 5).
    """

    architecture = "rf"

    def __init__(
        self,
        *,
        rescale_h: bool = True,
        rescale_w: bool = True,
        rescale_l: bool = True,
        first_inputs: str = "real",
        **config: Any,
    ) -> None:
        _one_of("first_inputs", first_inputs, ("real", "tanh"))
        super().__init__(
            rescale_h=rescale_h, rescale_w=rescale_w, rescale_l=rescale_l, first_inputs=first_inputs, **config
        )

    def _make_convolutions(self) -> None:
        if self.config["knn"] != "l2":
            raise ValueError("rf has real node features, which have no Hamming distance: set knn to 'l2'")
        edge1, edge2, edge3, edge4 = self.edge_widths
        first = nn.Tanh() if self.config["first_inputs"] == "tanh" else nn.Identity()
        self.conv1 = self._block(*edge1, 2, quantizer=first)
        self.conv2 = self._block(*edge2, 2)
        self.conv3 = self._block(*edge3, 2)
        self.conv4 = self._block(*edge4, 2)
        self.conv5 = self._block(sum(self.config["channels"]), self.config["embedding"], 1)

    def with_graphs(self, points: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        x = self._node_features(points)
        self._check_points(x.shape[2])
        graphs = []
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            idx = knn(x.transpose(1, 2), self.k, "l2", fast=self.training)
            x = conv(edge_features(x, idx, "difference")).max(dim=-1)[0]
            x = self._balance_edges(x)
            graphs.append((x, idx))
        x = self.conv5(torch.cat([x for x, _ in graphs], dim=1))
        return self._classify(self._pool(x)), graphs


class _BinaryFeatures(_BinaryNet):
    """What BF1 and BF2 share: binary node features, XorEdgeConv (Eq. 17), channel-wise rescaling (Eq. 10).

    `mlp_activation`: that of the classifier's hidden layers, where it is another ("same": `activation`).
    Parameters with the default sizes at stage 3: 11,064 fp32 and 1,804,672 binary (Table 5).
    """

    def __init__(self, *, mlp_activation: str = "same", **config: Any) -> None:
        _one_of("mlp_activation", mlp_activation, ("same", *ACTIVATIONS))
        super().__init__(mlp_activation=mlp_activation, **config)

    def _make_convolutions(self) -> None:
        embedding = self.config["embedding"]
        edge1, edge2, edge3, edge4 = self.edge_widths
        self.conv1, self.conv2 = self._conv(*edge1, 2), self._conv(*edge2, 2)
        self.conv3, self.conv4 = self._conv(*edge3, 2), self._conv(*edge4, 2)
        self.conv5 = self._conv(sum(self.config["channels"]), embedding, 1)
        self.bn1, self.bn2, self.bn3, self.bn4 = (self._edge_norm(width) for width in self.config["channels"])
        self.bn5 = nn.BatchNorm1d(embedding)

    def scales_before_norms(self) -> list[Rescale]:
        return [cast(Rescale, conv[1]) for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5)]

    def _edge_norm(self, width: int) -> nn.Module:
        """The BatchNorm of one EdgeConv layer: its place is what BF1 and BF2 differ in."""
        raise NotImplementedError

    def _conv(self, inputs: int, outputs: int, dims: int) -> nn.Sequential:
        dot = BinaryDot(inputs, outputs, dims, self.stage == 3, self.config["sign_zero"])
        return nn.Sequential(dot, Rescale(outputs, self._sizes(dims)), activation(self.config["activation"]))

    def _neighbours(self, nodes: Tensor, first: bool) -> Tensor:
        metric = "l2" if first else self.config["knn"]
        if not first and self.stage > 1:  # +-1 features rank alike in all metrics, and "hamming" is fast and exact
            metric = "hamming" if self.training or metric == "l1" else metric
        elif metric == "hamming":
            metric = "inner"
        return knn(nodes, self.k, metric, fast=self.training)

    def _aggregate(self, norm: nn.Module, messages: Tensor) -> Tensor:
        """`[B, C, N, k]` edge messages to real `[B, C, N]` node features, normalised."""
        raise NotImplementedError

    def with_graphs(self, points: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        x = self._node_features(points)
        self._check_points(x.shape[2])
        graphs: list[tuple[Tensor, Tensor]] = []
        for conv, norm in (
            (self.conv1, self.bn1),
            (self.conv2, self.bn2),
            (self.conv3, self.bn3),
            (self.conv4, self.bn4),
        ):
            idx = self._neighbours(x.transpose(1, 2), first=not graphs)
            x = self._aggregate(norm, conv(edge_features(x, idx, "xor" if graphs and self.stage > 1 else "difference")))
            x = self.quantizer(self._balance_edges(x))
            graphs.append((x, idx))
        x = self.bn5(self.conv5(torch.cat([x for x, _ in graphs], dim=1)))
        return self._classify(self._pool(x)), graphs


class BF1(_BinaryFeatures):
    """Binary graph features, BatchNorm after the max aggregation: sign(BN(max_j e_ij)) (Eq. 19)."""

    architecture = "bf1"

    def _edge_norm(self, width: int) -> nn.Module:
        return nn.BatchNorm1d(width)

    def _aggregate(self, norm: nn.Module, messages: Tensor) -> Tensor:
        return norm(messages.max(dim=-1)[0])


class BF2(_BinaryFeatures):
    """Binary graph features, BatchNorm before the max aggregation: sign(max_j BN(e_ij)) (Eq. 20)."""

    architecture = "bf2"

    def _edge_norm(self, width: int) -> nn.Module:
        norm = nn.BatchNorm2d(width)
        # The maximum over the neighbours of normalised messages is nearly always positive: without this start
        # most features are +1 for most points, and training is slow.
        nn.init.constant_(norm.bias, -1.0)
        return norm

    def _aggregate(self, norm: nn.Module, messages: Tensor) -> Tensor:
        return norm(messages).max(dim=-1)[0]


class BF1Balanced(BF2):
    """The authors' `bin_bf1_bal`, which Table 1's balance functions were measured with: BF2's BatchNorms.

    Its classifier has no BatchNorm before the first sign, balanced or not, and yet one among its parameters.
    """

    architecture = "bf1_bal"

    def _first_hidden(self, inputs: int, outputs: int) -> BinaryBlock:
        block = self._block(inputs, outputs, 0, kind=_UnusedNormBlock)
        block.center.requires_grad_(False)
        return block


#: Architecture name, as checkpoints and `--arch` state it, to class.
ARCHITECTURES: dict[str, type[PointCloudNet]] = {cls.architecture: cls for cls in (DGCNN, RF, BF1, BF2, BF1Balanced)}

#: Settings that change what a network computes and leave no mark on the keys and shapes of its state_dict, with the
#: values of the authors' code: the last stage of its script, its command line's defaults otherwise.
_UNSEEN: dict[str, Any] = {
    "k": 20, "activation": "prelu", "mlp_activation": "prelu", "stage": 3, "knn": "l2", "edge_balance": "none",
    "edge_balance_axis": 0, "global_balance": "none", "global_balance_axis": 0, "first_inputs": "real",
    "last_inputs": "real", "last_weights": "real", "sign_zero": "zero",
}  # fmt: skip


def unseen_settings(architecture: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an architecture that a state_dict does not show, with their values in the authors' code.

    `stated`: what is known already, which some depend on: without a balance function it has no axis.
    """
    names = settings_of(ARCHITECTURES[architecture])
    unseen = {name: value for name, value in _UNSEEN.items() if name in names}
    for balance in ("edge_balance", "global_balance"):
        if stated.get(balance, "none") == "none":
            unseen.pop(f"{balance}_axis", None)
    if architecture == "dgcnn":
        unseen["activation"] = "leaky_relu"
    elif architecture == "rf":
        unseen.pop("knn")  # l2, and nothing else
        if stated.get("stage") == 1:
            unseen["first_inputs"] = "tanh"
    return unseen


def settings_of(model: type[PointCloudNet]) -> dict[str, Any]:
    """The keyword arguments of a class and of those it is made from, with their defaults."""
    settings: dict[str, Any] = {}
    for one in reversed(model.__mro__):
        if "__init__" in vars(one) and issubclass(one, PointCloudNet):
            parameters = inspect.signature(one.__init__).parameters.values()
            settings |= {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return settings


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(fp32, binary) parameters as the paper's Table 5 counts them.

    "Binary" are all weights of dot products in RF, BF1 and BF2, the last layer's real ones (10,240 with 40
    classes) included. A parameter registered under two names counts twice (see `DGCNN`).
    """
    counts = [0, 0]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        counts[name.endswith("weights_real")] += parameter.numel()
    return counts[0], counts[1]
