"""manifest.json of `bgnn-convert --split-layers`: the chain of small ONNX files, and what flows between them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime.errors import UsageError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

VERSION = 2
PER = ("node", "edge", "graph")
HOW = ("whole", "real", "most")
ROWS = ("destinations", "sources", "edges", "all", "list", "whole", "total")


@dataclasses.dataclass(frozen=True)
class Value:
    """What flows: an input of the network or a stage's output. `per`: "node" or "edge" (a row each), or "graph".

    `shape`: of a row, or of all (-1: open). `scale` and `zero`: what codes stand for, where it is known.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    per: str = "node"
    scale: float | None = None
    zero: int | None = None

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Fed:
    """An input of a stage's file: which rows of which value. With `rows` "list" it is the edges of the set `edges`."""

    name: str
    value: str | None
    rows: str
    edges: str | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """One file. `kind`: "nodes" (a block of nodes), "edges" (destination nodes with their in-edges) or "whole".

    `bytes`: what all of its tensors take at most for each destination ("row"), source and edge.
    """

    file: str
    kind: str
    fed: tuple[Fed, ...]
    results: tuple[str, ...]
    bytes: dict[str, int]
    hubs: Hubs | None = None

    def all(self) -> list[Stage]:
        """The stage, and those of its hubs."""
        return [self] if self.hubs is None else [self, *(one.pieces for one in self.hubs.rounds), self.hubs.finish]

    @property
    def sets(self) -> list[str]:
        """The sets of edges that it reads."""
        return list(dict.fromkeys(one.edges for one in self.fed if one.edges is not None))


@dataclasses.dataclass(frozen=True)
class Total:
    """What the pieces of a node's in-edges give, of the set `edges`; `how` they are joined: "whole" numbers and "real"
    ones are added, of "most" the largest is taken."""

    name: str
    how: str
    edges: str


@dataclasses.dataclass(frozen=True)
class Round:
    """A file that gives totals of some of a node's in-edges. It may read the joined ones of earlier rounds (its inputs
    of rows "total")."""

    pieces: Stage
    totals: tuple[Total, ...]


@dataclasses.dataclass(frozen=True)
class Hubs:
    """The files that compute a stage for a node whose in-edges do not fit: the rounds in turn, then `finish`, which
    gives the stage's results from the joined totals."""

    rounds: tuple[Round, ...]
    finish: Stage


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`edges`: the name of the list of edges. `sets`: by name, which of its rows are [source, target] (for each copy,
    where it is taken several times over), and which row of a stage's list has the targets."""

    model: str
    edges: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: dict[str, Value]
    sets: dict[str, dict[str, Any]]
    stages: tuple[Stage, ...]
    max_degree: int
    made_by: dict[str, str]

    def to_json(self) -> str:
        """The file's text."""
        found = {"version": VERSION, **dataclasses.asdict(self)}
        return json.dumps(found, indent=1) + "\n"

    def files(self) -> list[str]:
        """The names of all files."""
        stages = [one for stage in self.stages for one in stage.all()]
        return [stage.file for stage in stages]

    def inputs_per(self, what: str) -> list[Value]:
        """The inputs with a row for each "node" or "edge"."""
        return [self.values[name] for name in self.inputs if self.values[name].per == what]


def read(path: Path) -> Manifest:
    """A manifest, or the one in a folder. Raises UsageError where it is none, or of another version."""
    path = path / "manifest.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no manifest of bgnn-convert --split-layers: it is no JSON") from error
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise UsageError(
            f"{path} is "
            + ("no manifest of bgnn-convert --split-layers" if version is None else f"of version {version}")
            + f": this bgnn-graph reads version {VERSION}; write it with the same bgnn-convert"
        )
    try:
        return _read(found)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error}): write it again") from error


def _name(name: Any) -> str:
    """A name, which files in a folder are named by: it leads nowhere else."""
    if not isinstance(name, str) or not name.isprintable() or name.strip() != name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no name")
    if "/" in name or "\\" in name:
        raise ValueError(f"{name!r} leads out of a folder")
    return name


def _read(found: dict[str, Any]) -> Manifest:
    values = {_name(name): _value(one) for name, one in found["values"].items()}
    sets = {_name(name): _set(one) for name, one in found["sets"].items()}
    stages = tuple(_stage(one) for one in found["stages"])
    inputs, outputs = tuple(map(_name, found["inputs"])), tuple(map(_name, found["outputs"]))
    known: set[str | None] = set(inputs)
    for stage in stages:
        totals: set[str | None] = set()
        others: dict[str, set[str | None]] = {"list": {None}, "total": totals}
        for one in stage.all():
            for fed in one.fed:
                if fed.rows not in ROWS or fed.value not in others.get(fed.rows, known):
                    raise ValueError(f"{one.file} is given {fed.value}")
                if fed.edges not in (sets if fed.rows in ("list", "edges") else {None}):
                    raise ValueError(f"{one.file} reads edges {fed.edges}")
            if one is not stage:
                totals |= set(one.results)
        rounds = stage.hubs.rounds if stage.hubs is not None else ()
        if not all(total.edges in sets for one in rounds for total in one.totals):
            raise ValueError(f"{stage.file} sums over other edges")
        known |= set(stage.results)
    if not known <= set(values) or not outputs or not set(outputs) <= known:
        raise ValueError("it names values that nothing makes")
    if not any(values[name].per == "node" for name in inputs):
        raise ValueError("it has no input of nodes")
    return Manifest(
        str(found["model"]), _name(found["edges"]), inputs, outputs, values, sets, stages, int(found["max_degree"]),
        dict(found["made_by"]),
    )  # fmt: skip


def _value(one: dict[str, Any]) -> Value:
    dtype, shape = np.dtype(one["dtype"]), tuple(map(int, one["shape"]))
    least = -1 if one["per"] == "graph" else 0
    if dtype.kind not in "biuf" or one["per"] not in PER or not all(least <= size < 1 << 31 for size in shape):
        raise ValueError(f"{one['name']} is no value of nodes, edges or graphs")
    return Value(_name(one["name"]), str(dtype), shape, one["per"], one["scale"], one["zero"])


def _set(one: dict[str, Any]) -> dict[str, Any]:
    target, pairs = int(one["target"]), [list(map(int, pair)) for pair in one["pairs"]]
    if target not in (0, 1) or not pairs or not all(sorted(pair) == [0, 1] for pair in pairs):
        raise ValueError("its sets of edges are none")
    return {"target": target, "pairs": pairs}


def _fed(one: dict[str, Any]) -> Fed:
    value, edges = (one[key] if one[key] is None else _name(one[key]) for key in ("value", "edges"))
    return Fed(_name(one["name"]), value, one["rows"], edges)


def _round(one: dict[str, Any]) -> Round:
    totals = tuple(Total(_name(total["name"]), total["how"], _name(total["edges"])) for total in one["totals"])
    pieces = _stage(one["pieces"])
    if tuple(total.name for total in totals) != pieces.results or not all(total.how in HOW for total in totals):
        raise ValueError(f"{pieces.file} gives other totals")
    return Round(pieces, totals)


def _stage(one: dict[str, Any]) -> Stage:
    hubs = one["hubs"]
    if one["kind"] not in ("nodes", "edges", "whole"):
        raise ValueError(f"{one['file']} is of kind {one['kind']}")
    takes = {key: int(one["bytes"][key]) for key in ("row", "source", "edge")}
    if not all(0 <= size < 1 << 40 for size in takes.values()):
        raise ValueError(f"{one['file']} takes {takes}")
    return Stage(
        _name(one["file"]), one["kind"], tuple(map(_fed, one["fed"])), tuple(map(_name, one["results"])),
        takes, None if hubs is None else Hubs(tuple(map(_round, hubs["rounds"])), _stage(hubs["finish"])),
    )  # fmt: skip


def opener(read: Callable[[str], bytes]) -> Callable[[str], OnnxModel]:
    """Opens files of a chain on ONNX Runtime, one thread, each once. `read(file)`: its bytes. Raises BgnnError."""

    @functools.cache
    def opened(file: str) -> OnnxModel:
        return OnnxModel(read(file), 1)

    return opened
