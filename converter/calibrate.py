"""Post-training quantisation: a float graph network and sample graphs in, the same network with fake-quantisers out.

The samples run through the traced graph; `converter.ranges` chooses the range of each activation. Everything after
this is the same road as for a model that was trained with quantisers, but that the file is compared with the float
model as well: how far 8 bits are from it is what a user wants to know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.converter.emitted_file import results_of
from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.example_inputs import read_npz
from bgnn.converter.ranges import Range, choose, squares, values
from bgnn.converter.untrusted import read_torch
from bgnn.passes import insert_fake_quant, roundings
from bgnn.passes.graph import is_call, is_static, remove_dead_code, shape_of, snapshot
from bgnn.passes.neighbour_sums import neighbour_sums
from bgnn.passes.user_code import where

bgnn = torch.ops.bgnn
LARGE = 0.1  # a file's relative error beside the float model, beyond which it warns
CLASSES = 0.03  # the same of its rows that have another class: half a point of accuracy needs fewer
SPARED = 0.1  # of the dense layers' weights: a module with no more stays float by itself if that mends a large gap
LABELS, MASKS = "y", ("test_mask", "mask")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Sample graphs, each with the model's inputs by name; labels `y` and the rows that count, if there are any."""

    samples: tuple[Mapping[str, Tensor], ...]
    keep_float: tuple[str, ...] = ()
    percentile: float | None = None
    """Of each activation's values that are not 0, how many percent lie beyond its range at either end; None: chosen."""

    def __post_init__(self) -> None:
        if self.percentile is not None and not 0 <= self.percentile < 50:
            raise UsageError(f"--percentile {self.percentile:g}: from 0 (no value is left out) to less than 50")

    def inputs(self, names: Sequence[str]) -> list[tuple[Tensor, ...]]:
        """Each sample's tensors in the order of the model's inputs `names`. Raises UsageError for a missing one."""
        for sample in self.samples:
            missing = [name for name in names if name not in sample]
            if missing:
                raise UsageError(f"--calibrate: the model takes {missing[0]!r}, the file holds {', '.join(sample)}")
        return [tuple(sample[name].contiguous() for name in names) for sample in self.samples]

    def fitted(self, given: Sequence[fx.Node]) -> Calibration:
        """The same samples as the model's inputs `given` have them.

        A sample of several times as many clouds as a file of fixed sizes takes becomes several. Raises UsageError for a
        missing input, and for one of another dtype or shape.
        """
        self.inputs([node.name for node in given])
        return dataclasses.replace(
            self, samples=tuple(one for sample in self.samples for one in _fitted(sample, given))
        )

    def unused(self, names: Sequence[str]) -> list[str]:
        """What the samples hold beside the model's inputs `names`, labels and the masks of a dataset's rows."""
        known = {*names, LABELS, *MASKS, "train_mask", "val_mask", "batch"}
        return list(dict.fromkeys(name for sample in self.samples for name in sample if name not in known))


def _times(sample: Mapping[str, Tensor], given: Sequence[fx.Node]) -> int:
    """How many times the clouds of a file of fixed sizes a sample holds; 1 where its inputs do not agree in that."""
    if not all(is_static(node) and shape_of(node) and sample[node.name].dim() for node in given):
        return 1
    counts = {divmod(len(sample[node.name]), max(1, shape_of(node)[0])) for node in given}
    times, rest = counts.pop() if len(counts) == 1 else (1, 0)
    return times if times > 1 and rest == 0 else 1


def _fitted(sample: Mapping[str, Tensor], given: Sequence[fx.Node]) -> list[dict[str, Tensor]]:
    found, times = dict(sample), _times(sample, given)
    for node in given:
        value, wanted = sample[node.name], node.meta["val"]
        sizes = [*(times * size for size in wanted.shape[:1]), *wanted.shape[1:]]
        if value.is_floating_point() and wanted.is_floating_point():
            value = found[node.name] = value.to(wanted.dtype)
        fits = value.dim() == len(sizes) and all(
            not isinstance(a, int) or a == b for a, b in zip(sizes, value.shape, strict=True)
        )
        if not fits or value.dtype != wanted.dtype:
            shape = ", ".join(str(size) if isinstance(size, int) else "any" for size in wanted.shape)
            raise UsageError(
                f"--calibrate: {node.name} is {str(value.dtype).removeprefix('torch.')} {list(value.shape)}, the model "
                f"takes {str(wanted.dtype).removeprefix('torch.')} [{shape}]"
            )
    if times == 1:
        return [found]
    rows = {len(sample[node.name]) for node in given}
    parts = {name: t.chunk(times) if t.dim() and len(t) in rows else [t] * times for name, t in found.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(times)]


@dataclasses.dataclass(frozen=True)
class Quantised:
    """What became of one activation."""

    layer: str
    """The module of the user's model."""
    what: str
    low: float
    high: float
    clipped: float
    """The share of the samples' values beyond the range."""
    error: float
    """Against the float network, all quantisers at work: root mean square of the difference over that of the values."""
    alone: float
    """The same at the network's output, of this quantiser alone."""


@dataclasses.dataclass(frozen=True)
class LayerGap:
    """How far a layer's output is from the float network's, all quantisers at work."""

    layer: str
    what: str
    error: float


@dataclasses.dataclass(frozen=True)
class FileGap:
    """A file, or a network, on the samples beside the float model: relative error; rows of another largest column."""

    error: float
    rows: int
    changed_rows: int

    @property
    def excess(self) -> float:
        """Above 1 it is worth a warning."""
        return max(self.error / LARGE, self.changed_rows / (CLASSES * self.rows) if self.rows else 0.0)

    @property
    def is_large(self) -> bool:
        """Whether it is worth a warning; NaN is."""
        return not self.excess <= 1

    def __str__(self) -> str:
        rows = f" and the class of {self.changed_rows:,} of {self.rows:,} rows" if self.changed_rows else ""
        return f"this model's output by {self.error:.1%}{rows}"


@dataclasses.dataclass(frozen=True)
class Relief:
    """A module that would better stay float, and what 8 bits change if it does."""

    module: str
    gap: FileGap


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """The tables of activations and layers; accuracies if there were labels; the file's gap if it was run."""

    activations: list[Quantised]
    layers: list[LayerGap]
    output_error: float
    float_accuracy: float | None = None
    quantised_accuracy: float | None = None
    file: FileGap | None = None
    relief: Relief | None = None
    """Only where the gap is large."""
    spared: Relief | None = None
    """What stays float by itself, and what 8 bits there would have changed."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return dataclasses.asdict(self)

    def note(self) -> str | None:
        """What was not quantised unasked, and why."""
        if self.spared is None:
            return None
        return (
            f"{self.spared.module} stays float: with its 8 bits the file would change {self.spared.gap}, more than "
            f"{LARGE:.0%} or {CLASSES:.0%} of the rows (--percentile 0 quantises it all the same)"
        )

    def warning(self) -> str | None:
        """What to tell a user whose file is far from their model."""
        if self.file is None or not self.file.is_large:
            return None
        worst = max(self.layers, key=lambda gap: gap.error, default=None)
        where = "" if worst is None else f", most at {worst.layer or 'forward'} ({worst.what}: {worst.error:.1%})"
        kept = "LAYER leaves a layer float"
        if self.relief is not None:
            kept = f"{self.relief.module} leaves a part float, then 8 bits change {self.relief.gap}"
        return (
            f"8 bits change {self.file} (relative rms error on the samples{where}): --keep-float {kept}; "
            "samples should be like the graphs the file is for"
        )


def read_samples(path: Path, keep_float: Sequence[str] = (), percentile: float | None = None) -> Calibration:
    """`--calibrate FILE`: one graph in an .npz, or the graphs of a PyG dataset's processed .pt (`weights_only`)."""
    if path.suffix == ".npz":
        return Calibration((read_npz(path, "--calibrate"),), tuple(keep_float), percentile)
    if not path.is_file():
        raise UsageError(f"--calibrate {path}: no such file")
    try:
        from torch_geometric.data import Data
    except ImportError as error:
        raise UsageError("--calibrate with a PyG dataset needs torch-geometric: pip install torch-geometric") from error
    try:
        content = read_torch(path, [Data])
    except UsageError as error:
        raise UsageError(f"--calibrate {path}: {error}") from error
    except Exception as error:  # pickle, zipfile and torch each have their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"--calibrate {path}: neither an .npz nor a PyG dataset's processed file ({reason})"
        ) from error
    samples = _pyg_samples(content)
    if not samples:
        raise UsageError(f"--calibrate {path}: holds no graph with x and edge_index")
    return Calibration(tuple(samples), tuple(keep_float), percentile)


def _pyg_samples(content: Any) -> list[dict[str, Tensor]]:
    """The graphs of `(data, slices, ...)` as InMemoryDataset saves it; `data` may be a Data or its dictionary."""
    data, slices = (
        (content[0], content[1]) if isinstance(content, (tuple, list)) and len(content) > 1 else (content, None)
    )
    if hasattr(data, "to_dict"):
        data = data.to_dict()
    if not isinstance(data, dict):
        return []
    tensors = {k: v.float() if v.dtype == torch.float64 else v for k, v in data.items() if isinstance(v, Tensor)}
    if not {"x", "edge_index"} <= set(tensors):
        return []
    if not slices:
        return [tensors]
    graphs = []
    for i in range(len(slices["x"]) - 1):
        graph = {}
        for key, value in tensors.items():
            if key in slices:
                axis = 1 if key == "edge_index" else 0
                start, end = int(slices[key][i]), int(slices[key][i + 1])
                graph[key] = value.narrow(axis, start, end - start)
        graph.setdefault("batch", torch.zeros(len(graph["x"]), dtype=torch.int64))
        graphs.append(graph)
    return graphs


def check_float(gm: fx.GraphModule) -> None:
    """Raises ConversionError where a model, as traced, rounds values itself: it would be quantised twice."""
    node = roundings.first(gm)
    if node is not None:
        raise ConversionError(
            "the model has quantisers of its own, or rounds values as they do, with "
            f"{str(node.target).removesuffix('.default')}{where(node)}: convert it without --calibrate, which is for "
            "float models"
        )


def quantise(
    gm: fx.GraphModule, calibration: Calibration, results: bool = False, bits: bool = True
) -> CalibrationReport:
    """Inserts fake-quantisers into a traced graph, in place, with ranges from the samples; norms are folded already.

    `results`: see `insert_fake_quant.sites`. `bits`: the target has binary layers, and they stay that. Raises
    UsageError for names that no layer has.
    """
    named = [n for n in gm.graph.nodes if "layer" in n.meta]
    for name in calibration.keep_float:
        if not any(insert_fake_quant.is_kept(node, [name]) for node in named):
            known = ", ".join(insert_fake_quant.layer_names(gm))
            raise UsageError(f"--keep-float {name}: there is no such layer; the layers are {known}")
    samples = calibration.inputs([n.name for n in gm.graph.nodes if n.op == "placeholder"])
    kept = [*calibration.keep_float, *(insert_fake_quant.binary_layers(gm) if bits else ())]
    plain = snapshot(gm)
    found = {
        site.name: choose(plain, site, samples, calibration.percentile)
        for site in insert_fake_quant.sites(plain, kept, results)
    }
    ranges, widest = ({name: both[i] for name, both in found.items()} for i in (0, 1))
    expected = _first_outputs(plain, samples)
    coded = _coded(plain, ranges, kept, results)
    gap = _compare(expected, _first_outputs(coded, samples))
    if calibration.percentile is None and ranges != widest:  # alone each was better; together they must be as well
        other = _coded(plain, widest, kept, results)
        other_gap = _compare(expected, _first_outputs(other, samples))
        if other_gap.error <= gap.error:
            ranges, coded, gap = widest, other, other_gap
    relief, spared = _relief(plain, expected, gap, ranges, samples, kept, results), None
    if relief is not None and calibration.percentile is None and _may_be_spared(plain, relief, gap):
        spared, relief = Relief(relief.module, gap), None
        kept.append(spared.module)
        coded = _coded(plain, ranges, kept, results)
    _become(gm, coded)
    return dataclasses.replace(
        _report(plain, gm, ranges, samples, kept, calibration, results), relief=relief, spared=spared
    )


def _coded(plain: fx.GraphModule, ranges: Mapping[str, Range], kept: Sequence[str], results: bool) -> fx.GraphModule:
    """A copy with quantisers; `ranges`: by the names of the nodes, those that stay real as well."""
    gm = snapshot(plain)
    ends = {site: ranges[site.name] for site in insert_fake_quant.sites(gm, kept, results)}
    insert_fake_quant.insert(gm, {site: (r.low, r.high) for site, r in ends.items()}, kept)
    return gm


def _become(gm: fx.GraphModule, other: fx.GraphModule) -> None:
    """Makes `gm` the other graph, with its constants."""
    for name, value in other.named_buffers(recurse=False):
        if not hasattr(gm, name):
            gm.register_buffer(name, value)
    gm.graph = other.graph
    remove_dead_code(gm)


def _may_be_spared(plain: fx.GraphModule, relief: Relief, before: FileGap) -> bool:
    """Whether a module may stay float unasked: that mends the gap, and it holds few of the layers' weights."""
    weights = {
        n: n.args[1].meta["val"].numel()
        for n in plain.graph.nodes
        if insert_fake_quant.is_layer(n) and "layer" in n.meta
    }
    inside = sum(size for n, size in weights.items() if insert_fake_quant.is_kept(n, [relief.module]))
    mends = not relief.gap.is_large and relief.gap.error <= before.error
    return mends and inside <= SPARED * sum(weights.values())


def _report(
    plain: fx.GraphModule, gm: fx.GraphModule, ranges: Mapping[str, Range], samples: Sequence[Sequence[Tensor]],
    kept: Sequence[str], calibration: Calibration, results: bool,
) -> CalibrationReport:  # fmt: skip
    """What became of a network `plain` in `gm`, the same with quantisers."""
    sites = insert_fake_quant.sites(plain, kept, results)
    inner = {part for end, one in neighbour_sums(plain.graph).items() for part in one.parts if part is not end}
    named = [n for n in plain.graph.nodes if n.op == "call_function" and "layer" in n.meta]
    layers = [n for n in named if n not in inner]
    theirs = {n.name: n for n in gm.graph.nodes}
    coded = {site: next(u for u in theirs[site.name].users if is_call(u, bgnn.fake_quant)) for site in sites}
    outputs = results_of(plain)[0], results_of(gm)[0]
    pairs = [(n, coded.get(n, theirs[n.name])) for n in [*sites, *layers]]
    *errors, output_error = _errors(plain, gm, samples, [*pairs, outputs])
    rows = [
        Quantised(*insert_fake_quant.place(site), r.low, r.high, r.clipped, error, r.alone)
        for site, r, error in zip(sites, (ranges[site.name] for site in sites), errors, strict=False)
    ]
    gaps = [LayerGap(*insert_fake_quant.place(n), e) for n, e in zip(layers, errors[len(sites) :], strict=True)]
    before, after = (
        _accuracy(graph, out, samples, calibration) for graph, out in zip((plain, gm), outputs, strict=True)
    )
    return CalibrationReport(rows, gaps, output_error, before, after)


def _relief(
    plain: fx.GraphModule, expected: Sequence[Tensor], gap: FileGap, ranges: Mapping[str, Range],
    samples: Sequence[Sequence[Tensor]], kept: Sequence[str], results: bool,
) -> Relief | None:  # fmt: skip
    """The smallest module that, kept float, leaves a small gap where `gap` is large; else that of the least.

    `expected`: the float outputs. `ranges`: by the names of the nodes. Modules that hold all layers, or none that is
    not float yet, are left out.
    """
    least = gap.excess
    if least <= 1:
        return None
    layers = [n for n in plain.graph.nodes if "layer" in n.meta and not insert_fake_quant.is_kept(n, kept)]
    paths = [insert_fake_quant.module_of(n).split(".") for n in layers]
    names = dict.fromkeys(".".join(path[:end]) for path in paths for end in range(1, len(path) + 1))
    holds = {name: sum(insert_fake_quant.is_kept(n, [name]) for n in layers) for name in names if name}
    best: Relief | None = None
    for name in sorted((name for name, count in holds.items() if 0 < count < len(layers)), key=holds.__getitem__):
        coded = _coded(plain, ranges, [*kept, name], results)
        found = Relief(name, _compare(expected, _first_outputs(coded, samples)))
        if not found.gap.is_large:
            return found
        if found.gap.excess < least:
            best, least = found, found.gap.excess
    return best


def _first_outputs(gm: fx.GraphModule, samples: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """A network's first output on each sample."""
    end = results_of(gm)[0]
    return [values(gm, inputs, {end})[end] for inputs in samples]


def _errors(
    plain: fx.GraphModule, gm: fx.GraphModule, samples: Sequence[Sequence[Tensor]],
    pairs: Sequence[tuple[fx.Node, fx.Node]],
) -> list[float]:  # fmt: skip
    """The relative errors of nodes of `gm`, beside those of `plain`, over all samples."""
    lost, size = [0.0] * len(pairs), [0.0] * len(pairs)
    for inputs in samples:
        expected, found = values(plain, inputs, {a for a, _ in pairs}), values(gm, inputs, {b for _, b in pairs})
        for i, (mine, theirs) in enumerate(pairs):
            lost[i] += squares(expected[mine], found[theirs])
            size[i] += squares(expected[mine])
    return [(a / b) ** 0.5 if b else 0.0 for a, b in zip(lost, size, strict=True)]


def compare_file(
    run: Callable[[Sequence[np.ndarray]], list[np.ndarray]], samples: Sequence[Sequence[Tensor]],
    expected: Sequence[Tensor],
) -> FileGap:  # fmt: skip
    """`run`s an emitted file on samples, its inputs in order; `expected`: the float model's first output of each."""
    found = [torch.from_numpy(np.array(run([t.numpy() for t in inputs])[0])) for inputs in samples]
    return _compare(expected, found)


def _compare(expected: Sequence[Tensor], found: Sequence[Tensor]) -> FileGap:
    lost = size = 0.0
    rows = changed = 0
    for mine, theirs in zip(expected, found, strict=True):
        lost, size = lost + squares(mine, theirs), size + squares(mine)
        if mine.dim() == 2 and mine.shape[1] > 1:
            rows += len(mine)
            changed += int((mine.argmax(1) != theirs.argmax(1)).sum())
    return FileGap((lost / size) ** 0.5 if size else 0.0, rows, changed)


def _accuracy(
    gm: fx.GraphModule, output: fx.Node, samples: Sequence[Sequence[Tensor]], calibration: Calibration
) -> float | None:
    """The share of rows whose largest output is the label, over those that a mask marks; None without labels."""
    right = total = 0
    for inputs, sample in zip(samples, calibration.samples, strict=True):
        labels, found = sample.get(LABELS), values(gm, inputs, {output})[output]
        if labels is None or labels.is_floating_point() or found.dim() != 2 or labels.numel() != len(found):
            return None
        mask = next((sample[name] for name in MASKS if name in sample), None)
        mask = torch.ones(len(found), dtype=torch.bool) if mask is None else mask.bool()
        right += int((found.argmax(1) == labels.flatten())[mask].sum())
        total += int(mask.sum())
    return right / total if total else None
