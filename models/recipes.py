"""Configurations of training: small JSON files, one per row of the papers' tables (`models/configs/`).

    {"version": 1, "row": "binary GNN paper, Table 1, row 3", "paper": "81.04 %", "kind": "clouds", "arch": "bf1", ...}

What a file leaves out has the paper's value, the default of the field. Unknown keys, values of the wrong type and files
of another version are refused in one line. `--set key=value` on the command line replaces keys.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from bgnn.models.distill import SIMILARITIES
from bgnn.models.layers import SURROGATES

VERSION = 1
SCHEDULES = ("shares", "every", "cosine")
DISTILLATIONS = ("none", "direct", "cascade")
ARCHS = ("dgcnn", "rf", "bf1", "bf2", "bf1_bal")


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class CloudRecipe:
    """A network on point clouds. Raises ValueError, one line, on a value out of range.

    arch: the network; "dgcnn" is the real-valued baseline and has stage 0 alone.
    distillation: "none" trains stage `stage` from scratch, "direct" with the baseline as its teacher, "cascade" through
        stages 0 (the baseline), 1, 2 ... `stage`, each the teacher of the next and, from 2 on, its first weights.
    init: "random" lets stage 3 start from random weights (the paper saw no difference).
    lsp: similarity of the local structures, or "none". "hamming" holds for binary features: the student's in stages 2
        and 3, the teacher's in stage 3 of a cascade; real features are compared by "rbf" (section 5, "Impact of LSP").
        "hamming_share", not in the paper, likewise.
    epochs, rate, decay, schedule: of stages 0, 1, 2, 3. "shares" halves the rate at 50 % and 75 % of the epochs,
        "every" after each `halve_every` epochs, "cosine" lets it fall to 0 after a rise of 100 steps.
    settle: take the BatchNorm statistics anew at the end of each stage (not in the paper).
    surrogate: whose gradient the sign has, see `layers.sign`. latent_rate: the rate of the latent weights of binary
        products, as a multiple of `rate` (neither is in the paper; what is deployed stays the same).
    still_scales: leave the rescaling that a BatchNorm follows at 1 (bf1 and bf2; not in the paper). Its gradient is
        next to nothing, of which Adam makes full steps, until the layer has faded out: docs/accuracy.md.
    augment: scale by 2/3 to 3/2 and shift by up to 0.2 per axis, as the DGCNN authors' code.
    The rest are sizes: `settings_of("bf2")`'s names.
    """

    kind: ClassVar[str] = "clouds"
    command: ClassVar[str] = "dgcnn"
    arch: str = "bf2"
    distillation: str = "cascade"
    stage: int = 3
    init: str = "teacher"
    knn: str = "l2"
    activation: str = "prelu"
    edge_balance: str = "none"
    global_balance: str = "none"
    lsp: str = "none"
    lsp_weight: float = 100.0
    points: int = 1024
    k: int = 20
    channels: tuple[int, ...] = (64, 64, 128, 256)
    embedding: int = 1024
    mlp: tuple[int, ...] = (512, 256)
    dropout: float = 0.5
    batch: int = 32
    epochs: tuple[int, ...] = (250, 250, 350, 350)
    rate: tuple[float, ...] = (1e-3, 1e-3, 2.5e-4, 1e-3)
    decay: tuple[float, ...] = (1e-5, 1e-5, 1e-5, 0.0)
    schedule: tuple[str, ...] = ("shares", "shares", "shares", "every")
    halve_every: int = 50
    settle: bool = False
    surrogate: str = "straight"
    latent_rate: float = 1.0
    still_scales: bool = False
    augment: bool = True

    def __post_init__(self) -> None:
        _one_of("arch", self.arch, ARCHS)
        _one_of("distillation", self.distillation, DISTILLATIONS)
        _one_of("stage", self.stage, (0,) if self.arch == "dgcnn" else (1, 2, 3))
        _one_of("init", self.init, ("teacher", "random"))
        _one_of("lsp", self.lsp, ("none", *SIMILARITIES))
        if self.arch == "dgcnn" and self.distillation != "none":
            raise ValueError("the baseline has no teacher: distillation must be 'none' for arch 'dgcnn'")
        if self.lsp != "none" and self.distillation == "none":
            raise ValueError(f"lsp is {self.lsp!r} without a teacher: set distillation to 'direct' or 'cascade'")
        if self.lsp.startswith("hamming") and self.arch == "rf":
            raise ValueError(f"lsp is {self.lsp!r}, and rf has real node features: set it to 'rbf'")
        _one_of("surrogate", self.surrogate, SURROGATES)
        for name in ("epochs", "rate", "decay", "schedule"):
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; it needs 4, one per stage 0 to 3")
        for one in self.schedule:
            _one_of("schedule", one, SCHEDULES)
        if min(*self.epochs, *self.rate, *self.decay, self.lsp_weight, self.latent_rate) < 0:
            raise ValueError("epochs, rate, decay, lsp_weight and latent_rate must not be negative")
        if self.halve_every < 1 or self.batch < 1:
            raise ValueError("halve_every and batch must be at least 1")

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that are trained, in order."""
        if self.distillation == "cascade":
            return tuple(range(self.stage + 1))
        return (self.stage,) if self.distillation == "none" else (0, self.stage)

    @property
    def sizes(self) -> dict[str, Any]:
        """The settings of every stage's network, but for the number of classes."""
        sizes = {"num_points": self.points, "k": self.k, "embedding": self.embedding, "dropout": self.dropout}
        return sizes | {"channels": list(self.channels), "mlp": list(self.mlp)}

    @property
    def knobs(self) -> dict[str, Any]:
        """The further settings of a binary network."""
        names = ("knn", "activation", "edge_balance", "global_balance")
        return {name: getattr(self, name) for name in names}

    def similarities(self, stage: int) -> tuple[str, str]:
        """Names in SIMILARITIES for the student's and the teacher's local structures at a stage."""
        if not self.lsp.startswith("hamming"):
            return self.lsp, self.lsp
        if stage == 1:
            return "rbf", "rbf"
        return self.lsp, self.lsp if stage == 3 and self.distillation == "cascade" else "rbf"


@dataclass(frozen=True)
class NodeRecipe:
    """A network on the nodes of a graph: rows of Table 3. Raises ValueError, one line, on a value out of range.

    data: "cora", "citeseer", "ogbn-products" or "ogbn-proteins". arch: "sage", "binsage" or "gcn".
    distillation: "none", or "cascade": stages 0 (float SAGE), 1, 2, 3 of BinSAGE, through logits alone (section 5).
    scale_decay: l2 on the learned scales, the only decay (section 5.2). sizes: neighbours drawn per hop, one a layer.
    settle: before each measurement take BatchNorm statistics anew, from nodes of the whole graph (not in the paper).
    The epoch of the best validation score counts, as in OGB's procedure.
    """

    kind: ClassVar[str] = "nodes"
    command: ClassVar[str] = "sage"
    data: str = "ogbn-products"
    arch: str = "binsage"
    distillation: str = "none"
    activation: str = "none"
    normalise: bool = True
    hidden: int = 256
    layers: int = 3
    dropout: float = 0.5
    batch: int = 1024
    sizes: tuple[int, ...] = (15, 10, 5)
    epochs: int = 20
    rate: float = 3e-3
    scale_decay: float = 1e-4
    settle: bool = False

    def __post_init__(self) -> None:
        _one_of("arch", self.arch, ("sage", "binsage", "gcn"))
        _one_of("distillation", self.distillation, ("none", "cascade"))
        if self.distillation == "cascade" and self.arch != "binsage":
            raise ValueError(f"{self.arch} has no teacher: distillation is of binsage")
        if self.activation != "none" and self.arch != "binsage":
            raise ValueError(f"activation is {self.activation!r}; {self.arch} has its own")
        if len(self.sizes) != self.layers or min(self.sizes, default=0) < 1:
            raise ValueError(f"sizes is {list(self.sizes)}; it needs {self.layers} whole numbers, one per layer")
        if self.batch < 1 or self.epochs < 1 or self.rate < 0 or self.scale_decay < 0:
            raise ValueError("batch and epochs must be at least 1, rate and scale_decay not negative")

    @property
    def stages(self) -> tuple[int, ...]:
        """0: a float network; 1, 2, 3: those of BinSAGE."""
        if self.distillation == "cascade":
            return (0, 1, 2, 3)
        return (3,) if self.arch == "binsage" else (0,)


@dataclass(frozen=True)
class DegreeQuantRecipe:
    """Degree-Quant networks: a row of the paper's Tables 1, 2, 3, 8 or 9, which has a figure per data set and setting.

    method: "fp32", "qat", "nqat" or "dq". bits, gradients, observers: all combinations are trained; without the latter
    two, those of `presets.settings`. p_min, p_max: protection of nodes (with "qat" too: masking alone, Table 9). All
    else is `presets.recipe`'s. Raises ValueError, one line, on a value out of range.
    """

    kind: ClassVar[str] = "dq"
    command: ClassVar[str] = "dq"
    datasets: tuple[str, ...] = ("cora",)
    model: str = "gcn"
    method: str = "dq"
    bits: tuple[int, ...] = (8,)
    gradients: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    p_min: float | None = None
    p_max: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        for dataset in self.datasets:
            _one_of("datasets", dataset, ("cora", "citeseer", "mnist", "cifar10", "zinc", "reddit-binary"))
        _one_of("model", self.model, ("gcn", "gat", "gin", "sage"))
        _one_of("method", self.method, ("fp32", "qat", "nqat", "dq"))
        if not self.datasets or not self.bits:
            raise ValueError("datasets and bits need an entry each")
        if self.method == "fp32" and (self.gradients or self.observers or len(self.bits) > 1):
            raise ValueError("fp32 has no quantisers: leave out gradients, observers and bits")
        for p in (self.p_min, self.p_max):
            if p is not None and not 0 <= p <= 1:
                raise ValueError(f"a node is protected with a probability between 0 and 1, not {p}")


_KINDS: dict[str, type] = {kind.kind: kind for kind in (CloudRecipe, NodeRecipe, DegreeQuantRecipe)}
#: Keys that say what a file is.
_ABOUT = ("version", "kind", "row", "paper")


@dataclass(frozen=True)
class Config:
    """A file read: its name, the table's row and figure it stands for (empty if none), and the recipe."""

    name: str
    row: str
    paper: str
    recipe: Any


def read_config(path: Path, settings: Sequence[str] = ()) -> Config:
    """The file at `path` with `settings` (KEY=VALUE, values as JSON or text) in place of its own.

    Raises FileNotFoundError, or ValueError in one line.
    """
    content = read_versioned(path, "configuration")
    kind = content.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"{path}: kind is {str(kind)[:40]!r}; it must be one of {', '.join(_KINDS)}")
    own = {key: value for key, value in content.items() if key not in _ABOUT}
    try:
        recipe: Any = make(_KINDS[kind], own | dict(map(_setting, settings)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Config(path.stem, str(content.get("row", "")), str(content.get("paper", "")), recipe)


def read_versioned(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file of this version holds; `what` it is, in words.

    Raises FileNotFoundError, or ValueError in one line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {what}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a {what} is an object of keys and values")
    version = content.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"{path}: version {str(version)[:40]}; this command reads version {VERSION}")
    return content


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


T = TypeVar("T")


def make(kind: type[T], values: Mapping[str, Any]) -> T:
    """A recipe of plain values. Raises ValueError on an unknown key or a value of another type."""
    hints = typing.get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {key!r}; known are {', '.join(known)}")
    return kind(**{key: _typed(key, value, hints[key]) for key, value in values.items()})


def _typed(key: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type has it: a list as a tuple, a whole number as a float."""
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{key} is {value!r}; it must be a list")
        return tuple(_typed(key, one, typing.get_args(hint)[0]) for one in value)
    if isinstance(hint, types.UnionType):
        return None if value is None else _typed(key, value, typing.get_args(hint)[0])
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{key} is {value!r}; it must be of type {hint.__name__}")
    return value
