"""The DGCNN family of the binary GNN paper: the fp32 baseline, RF (Eq. 12-13), BF1 (Eq. 19), BF2 (Eq. 20).

Every model takes a point cloud `[B, N, 3]` float32 and returns logits `[B, classes]`: four EdgeConv layers
over k-NN graphs (rebuilt in feature space before each), their outputs concatenated and embedded per point,
max and mean pooling, a three-layer classifier (appendix A).

Attribute names, and so the keys of the state_dict, are those of the two public code bases that people have
weights from: DGCNN's (`conv1.0.weight`, `bn1`, `linear1`, ...) for the baseline, and the paper's
(`conv1.0.weights_real`, `linear1.core_op.weights_real`, ...) for RF, BF1 and BF2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgnn.models.layers import BinaryDot, Rescale, activation, center, edge_features, knn, sign

ACTIVATIONS = ("prelu", "relu", "leaky_relu", "none")
METRICS = ("l2", "hamming")
BALANCES = ("none", "mean", "median")


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
        #: The constructor's arguments as plain values: what a checkpoint stores.
        self.config: dict[str, Any] = config
        self.k: int = config["k"]
        #: (inputs, outputs) of the four EdgeConvs.
        c1, c2, c3, c4 = config["channels"]
        self.edge_widths = [(2 * 3, c1), (2 * c1, c2), (2 * c2, c3), (2 * c3, c4)]
        self.dp1 = nn.Dropout(config["dropout"])
        self.dp2 = nn.Dropout(config["dropout"])

    def _node_features(self, points: Tensor) -> Tensor:
        """`[B, N, 3]` to channel-first `[B, 3, N]`, after a look at the shape."""
        if points.dim() != 3 or points.shape[2] != 3:
            raise ValueError(f"the input has shape {list(points.shape)}; a batch of clouds is [B, N, 3]")
        if points.shape[1] < self.k:
            raise ValueError(f"k = {self.k} neighbours of only {points.shape[1]} points")
        return points.transpose(1, 2).contiguous()

    def _pool(self, x: Tensor) -> Tensor:
        """`[B, E, N]` to `[B, 2E]`: the maximum over the points, then the mean."""
        batch = x.shape[0]
        largest = F.adaptive_max_pool1d(x, 1).view(batch, -1)
        return torch.cat((largest, F.adaptive_avg_pool1d(x, 1).view(batch, -1)), dim=1)


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
        self.linear1 = nn.Linear(2 * embedding, m1, bias=False)
        self.bn6 = nn.BatchNorm1d(m1)
        self.linear2 = nn.Linear(m1, m2)
        self.bn7 = nn.BatchNorm1d(m2)
        self.linear3 = nn.Linear(m2, classes)
        self.act6, self.act7 = self._activation(), self._activation()

    def _activation(self) -> nn.Module:
        return activation(self.config["activation"])

    def _edge_conv(self, inputs: int, outputs: int, norm: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), norm, self._activation())

    def forward(self, points: Tensor) -> Tensor:
        """Logits `[B, classes]` of clouds `[B, N, 3]`, float32."""
        x = self._node_features(points)
        outputs = []
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            idx = knn(x.transpose(1, 2), self.k, "l2", fast=self.training)
            x = conv(edge_features(x, idx, "difference")).max(dim=-1)[0]
            outputs.append(x)
        x = self._pool(self.conv5(torch.cat(outputs, dim=1)))
        x = self.dp1(self.act6(self.bn6(self.linear1(x))))
        x = self.dp2(self.act7(self.bn7(self.linear2(x))))
        return self.linear3(x)


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
    ) -> None:
        super().__init__()
        batch_norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
        self.center = batch_norm(inputs) if norm else nn.Identity()
        self.quantizer = quantizer
        self.core_op = BinaryDot(inputs, outputs, dims, binary_weights)
        self.rescale = Rescale(outputs, sizes)
        self.activ = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activ(self.rescale(self.core_op(self.quantizer(self.center(x)))))


class Sign(nn.Module):
    """`layers.sign` as a module: the quantiser of stages 2 and 3."""

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)


class _BinaryNet(PointCloudNet):
    """What RF, BF1 and BF2 share: the knobs of Table 1 and the classifier.

    Args beyond the baseline's:
        activation: "prelu", "relu" or "none", in every block but the last.
        stage: of the cascade (section 3). 1: tanh in place of sign, real weights; 2: sign on the features,
            real weights; 3: sign on the weights too. The last layer's weights stay real, its inputs do not
            (section 5.2).
        knn: "l2", or "hamming" for BF1 and BF2. The first graph is that of the 3-D coordinates, and stage 1
            has no +-1 features: both use l2.
        edge_balance: centres, for each channel over the points, what the sign after the max aggregation sees.
        global_balance: centres, for each cloud over the channels, the pooled embedding; it takes the place
            of the first BatchNorm of the classifier.
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
        )
        _one_of("stage", stage, (1, 2, 3))
        _one_of("knn", knn, METRICS)
        _one_of("edge_balance", edge_balance, BALANCES)
        _one_of("global_balance", global_balance, BALANCES)
        self.stage = stage
        self.edge_balance = edge_balance
        self.global_balance = global_balance
        self.quantizer: nn.Module = nn.Tanh() if stage == 1 else Sign()
        self._make_convolutions()
        m1, m2 = mlp
        self.linear1 = self._block(2 * embedding, m1, 0, norm=global_balance == "none")
        self.linear2 = self._block(m1, m2, 0)
        self.linear3 = BinaryBlock(
            m2, classes, dims=0, quantizer=self.quantizer, binary_weights=False, activation=nn.Identity()
        )

    def _make_convolutions(self) -> None:
        """Sets `conv1` to `conv5` and what stands between them."""
        raise NotImplementedError

    def _activation(self) -> nn.Module:
        return activation(self.config["activation"])

    def _block(
        self,
        inputs: int,
        outputs: int,
        dims: int,
        sizes: tuple[int, ...] = (),
        norm: bool = True,
        real: bool = False,
    ) -> BinaryBlock:
        return BinaryBlock(
            inputs,
            outputs,
            dims=dims,
            quantizer=nn.Identity() if real else self.quantizer,
            binary_weights=self.stage == 3,
            activation=self._activation(),
            sizes=sizes,
            norm=norm,
        )

    def _classify(self, x: Tensor) -> Tensor:
        """Logits `[B, classes]` from the pooled embedding `[B, 2E]`."""
        x = center(x, self.global_balance, dim=1)
        x = self.dp1(self.linear1(x))
        x = self.dp2(self.linear2(x))
        return self.linear3(x)


class RF(_BinaryNet):
    """Real graph features: BinEdgeConv (Eq. 12-13), rank-1 rescaling (Eq. 11).

    The rescaling has one factor each over channels, points and neighbours. The first layer's BatchNorm sees
    the real coordinates, and its input is not quantised.
    Parameters with the default sizes at stage 3: 15,243 fp32 and 1,804,672 binary (Table 5).
    """

    architecture = "rf"

    def _make_convolutions(self) -> None:
        if self.config["knn"] != "l2":
            raise ValueError("rf has real node features, which have no Hamming distance: set knn to 'l2'")
        points, k, embedding = self.config["num_points"], self.k, self.config["embedding"]
        edge1, edge2, edge3, edge4 = self.edge_widths
        self.conv1 = self._block(*edge1, 2, (points, k), real=True)
        self.conv2 = self._block(*edge2, 2, (points, k))
        self.conv3 = self._block(*edge3, 2, (points, k))
        self.conv4 = self._block(*edge4, 2, (points, k))
        self.conv5 = self._block(sum(self.config["channels"]), embedding, 1, (points,))

    def forward(self, points: Tensor) -> Tensor:
        """Logits `[B, classes]` of clouds `[B, num_points, 3]`, float32: the rescaling fixes num_points."""
        x = self._node_features(points)
        if x.shape[2] != self.config["num_points"]:
            raise ValueError(f"{x.shape[2]} points; rf's rescaling was made for {self.config['num_points']}")
        outputs = []
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            idx = knn(x.transpose(1, 2), self.k, "l2", fast=self.training)
            x = conv(edge_features(x, idx, "difference")).max(dim=-1)[0]
            x = center(x, self.edge_balance, dim=2)
            outputs.append(x)
        x = self.conv5(torch.cat(outputs, dim=1))
        return self._classify(self._pool(x))


class _BinaryFeatures(_BinaryNet):
    """What BF1 and BF2 share: binary node features, XorEdgeConv (Eq. 17), channel-wise rescaling (Eq. 10).

    Parameters with the default sizes at stage 3: 11,064 fp32 and 1,804,672 binary (Table 5).
    """

    def _make_convolutions(self) -> None:
        embedding = self.config["embedding"]
        edge1, edge2, edge3, edge4 = self.edge_widths
        self.conv1, self.conv2 = self._conv(*edge1, 2), self._conv(*edge2, 2)
        self.conv3, self.conv4 = self._conv(*edge3, 2), self._conv(*edge4, 2)
        self.conv5 = self._conv(sum(self.config["channels"]), embedding, 1)
        self.bn1, self.bn2, self.bn3, self.bn4 = (self._edge_norm(width) for width in self.config["channels"])
        self.bn5 = nn.BatchNorm1d(embedding)

    def _edge_norm(self, width: int) -> nn.Module:
        """The BatchNorm of one EdgeConv layer: its place is what BF1 and BF2 differ in."""
        raise NotImplementedError

    def _conv(self, inputs: int, outputs: int, dims: int) -> nn.Sequential:
        dot = BinaryDot(inputs, outputs, dims, self.stage == 3)
        return nn.Sequential(dot, Rescale(outputs, (1,) * dims), self._activation())

    def _neighbours(self, nodes: Tensor, binary: bool) -> Tensor:
        if self.training:  # +-1 features rank alike in both metrics, and "hamming" is fast and exact
            return knn(nodes, self.k, "hamming" if binary else "l2", fast=True)
        return knn(nodes, self.k, self.config["knn"] if binary else "l2")

    def _aggregate(self, norm: nn.Module, messages: Tensor) -> Tensor:
        """`[B, C, N, k]` edge messages to real `[B, C, N]` node features, normalised."""
        raise NotImplementedError

    def forward(self, points: Tensor) -> Tensor:
        """Logits `[B, classes]` of clouds `[B, N, 3]`, float32."""
        x = self._node_features(points)
        binary = False
        outputs = []
        for conv, norm in (
            (self.conv1, self.bn1),
            (self.conv2, self.bn2),
            (self.conv3, self.bn3),
            (self.conv4, self.bn4),
        ):
            idx = self._neighbours(x.transpose(1, 2), binary)
            x = self._aggregate(norm, conv(edge_features(x, idx, "xor" if binary else "difference")))
            x = self.quantizer(center(x, self.edge_balance, dim=2))
            outputs.append(x)
            binary = self.stage > 1
        x = self.bn5(self.conv5(torch.cat(outputs, dim=1)))
        return self._classify(self._pool(x))


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


#: Architecture name, as checkpoints and `--arch` state it, to class.
ARCHITECTURES: dict[str, type[PointCloudNet]] = {cls.architecture: cls for cls in (DGCNN, RF, BF1, BF2)}


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(fp32, binary) parameters as the paper's Table 5 counts them.

    "Binary" are all weights of dot products in RF, BF1 and BF2, the last layer's real ones (10,240 with 40
    classes) included. A parameter registered under two names counts twice (see `DGCNN`).
    """
    counts = [0, 0]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        counts[name.endswith("weights_real")] += parameter.numel()
    return counts[0], counts[1]
