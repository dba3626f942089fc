"""Post-training quantisation: a float graph network and sample graphs in, the same network with fake-quantisers out.

The samples run through the traced graph; the range of each activation lies between percentiles of what was seen, so
that single large values do not widen it (Degree-Quant, 3.3); of several percentiles, those that lose least. Nodes of
high in-degree aggregate the largest values and the noisiest: as in Degree-Quant's training (its Algorithm 1), they are
left out of the observation with a probability that grows with the degree's rank. Everything after this is the same
road as for a model that was trained with quantisers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.example_inputs import read_npz
from bgnn.converter.sizes import features_of, is_edges
from bgnn.passes import insert_fake_quant
from bgnn.passes.graph import is_call
from bgnn.passes.recognise_fake_quant import FAKE

PERCENTILES = (0.0, 0.001, 0.01, 0.1, 1.0)  # of the values, left out at either end: the one with the least error
# Degrees are whole numbers: 1/4 would lie exactly between two codes of a range that ends at 1/2.
WIDER = 1 + 2**-10
PROTECTED = 0.2  # the probability that the node of the highest degree is left out of a range
MOST_VALUES = 2**20  # of one tensor in one sample that are looked at
LABELS, MASKS = "y", ("test_mask", "mask")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Sample graphs, each with the model's inputs by name; labels `y` and the rows that count, if there are any."""

    samples: tuple[Mapping[str, Tensor], ...]
    keep_float: tuple[str, ...] = ()

    def inputs(self, names: Sequence[str]) -> list[tuple[Tensor, ...]]:
        """Each sample's tensors in the order of the model's inputs `names`. Raises UsageError for a missing one."""
        for sample in self.samples:
            missing = [name for name in names if name not in sample]
            if missing:
                raise UsageError(f"--calibrate: the model takes {missing[0]!r}, the file holds {', '.join(sample)}")
        return [tuple(sample[name].contiguous() for name in names) for sample in self.samples]


@dataclasses.dataclass(frozen=True)
class Quantised:
    """What became of one activation: its range, and the error of the quantised network there, against the float one."""

    name: str
    low: float
    high: float
    clipped: float
    """The share of the samples' values beyond the range."""
    error: float
    """Root mean square of the difference over that of the values, all quantisers before it at work."""


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """The table of activations; accuracies if there were labels."""

    activations: list[Quantised]
    output_error: float
    float_accuracy: float | None = None
    quantised_accuracy: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return dataclasses.asdict(self)


def read_samples(path: Path, keep_float: Sequence[str] = ()) -> Calibration:
    """`--calibrate FILE`: one graph in an .npz, or the graphs of a PyG dataset's processed .pt (`weights_only`)."""
    if path.suffix == ".npz":
        return Calibration((read_npz(path, "--calibrate"),), tuple(keep_float))
    if not path.is_file():
        raise UsageError(f"--calibrate {path}: no such file")
    try:
        from torch_geometric.data import Data
    except ImportError as error:
        raise UsageError("--calibrate with a PyG dataset needs torch-geometric: pip install torch-geometric") from error
    try:
        with torch.serialization.safe_globals([Data]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch each have their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"--calibrate {path}: neither an .npz nor a PyG dataset's processed file ({reason})"
        ) from error
    samples = _pyg_samples(content)
    if not samples:
        raise UsageError(f"--calibrate {path}: holds no graph with x and edge_index")
    return Calibration(tuple(samples), tuple(keep_float))


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


def quantise(gm: fx.GraphModule, calibration: Calibration) -> CalibrationReport:
    """Inserts fake-quantisers into a traced graph, in place, with ranges from the samples; norms are folded already.

    Raises ConversionError where the model is quantised already, UsageError for names that no layer has.
    """
    if any(is_call(node, *FAKE) for node in gm.graph.nodes):
        raise ConversionError(
            "the model has quantisers of its own: convert it without --calibrate, which is for float models"
        )
    names = insert_fake_quant.layer_names(gm)
    for name in calibration.keep_float:
        if not any(label == name or label.startswith(f"{name}.") for label in names):
            raise UsageError(f"--keep-float {name}: there is no such layer; the layers are {', '.join(names)}")
    inputs = calibration.inputs([n.name for n in gm.graph.nodes if n.op == "placeholder"])
    sites = insert_fake_quant.sites(gm, calibration.keep_float)
    before = [_values(gm, sample, [n.name for n in sites]) for sample in inputs]
    ranges = {node: _range([values[node.name] for values, _ in before], inputs, i) for i, node in enumerate(sites)}
    insert_fake_quant.insert(gm, ranges, calibration.keep_float)
    after = [_values(gm, sample, [f"{n.name}_codes" for n in sites]) for sample in inputs]
    rows = []
    for node in sites:
        seen = torch.cat([values[node.name].flatten() for values, _ in before])
        coded = torch.cat([values[f"{node.name}_codes"].flatten() for values, _ in after])
        low, high = ranges[node]
        clipped = float(((seen < low) | (seen > high)).float().mean()) if seen.numel() else 0.0
        rows.append(Quantised(node.name, low, high, clipped, _relative(seen, coded)))
    float_outputs, coded_outputs = [out for _, out in before], [out for _, out in after]
    error = _relative(torch.cat([o.flatten() for o in float_outputs]), torch.cat([o.flatten() for o in coded_outputs]))
    accuracies = (_accuracy(float_outputs, calibration.samples), _accuracy(coded_outputs, calibration.samples))
    return CalibrationReport(rows, error, *accuracies)


def _values(gm: fx.GraphModule, inputs: Sequence[Tensor], names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
    """(the values of the named nodes, the first output)."""
    wanted, found = set(names), {}

    class Collect(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in wanted:
                found[n.name] = value
            return value

    with torch.no_grad():
        outputs = Collect(gm).run(*inputs)
    return found, outputs[0]


def _range(seen: Sequence[Tensor], inputs: Sequence[tuple[Tensor, ...]], seed: int) -> tuple[float, float]:
    """The percentiles of an activation's values, nodes of high degree left out at random."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for values, sample in zip(seen, inputs, strict=True):
        degrees = in_degrees(sample)
        if degrees is not None and len(values) == len(degrees):
            rank = degrees.argsort(stable=True).argsort(stable=True).double() / max(len(degrees) - 1, 1)
            chosen = values[torch.rand(len(degrees), generator=generator) >= PROTECTED * rank]
            values = chosen if chosen.numel() else values
        flat = values.flatten()
        if flat.numel() > MOST_VALUES:
            flat = flat[torch.randint(flat.numel(), (MOST_VALUES,), generator=generator)]
        kept.append(flat)
    every = torch.cat(kept).double().numpy()
    if not every.size:
        return 0.0, 0.0
    found = [tuple(np.percentile(every, [p, 100 - p])) for p in PERCENTILES]
    low, high = min(found, key=lambda ends: _lost(every, *ends))
    return float(low) * WIDER, float(high) * WIDER


def _lost(values: np.ndarray, low: float, high: float) -> float:
    """What 256 codes over a range lose: rounding inside, clipping outside."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / insert_fake_quant.CODES, 1e-12)
    coded = np.clip(np.round((values - low) / scale), 0, insert_fake_quant.CODES) * scale + low
    return float(np.abs(coded - values).sum())


def in_degrees(sample: Sequence[Tensor]) -> Tensor | None:
    """How many edges end at each node; None without edges or features."""
    edges = next((t for t in sample if is_edges(t)), None)
    features = features_of(sample)
    if edges is None or features is None:
        return None
    return torch.bincount(edges[1], minlength=len(features))


def _relative(expected: Tensor, found: Tensor) -> float:
    size = float(expected.double().square().sum())
    return (float((expected.double() - found.double()).square().sum()) / size) ** 0.5 if size else 0.0


def _accuracy(outputs: Sequence[Tensor], samples: Sequence[Mapping[str, Tensor]]) -> float | None:
    """The share of rows whose largest output is the label, over those that a mask marks; None without labels."""
    right = total = 0
    for output, sample in zip(outputs, samples, strict=True):
        labels = sample.get(LABELS)
        if labels is None or labels.is_floating_point() or output.dim() != 2 or labels.numel() != len(output):
            return None
        mask = next((sample[name] for name in MASKS if name in sample), None)
        mask = torch.ones(len(output), dtype=torch.bool) if mask is None else mask.bool()
        right += int((output.argmax(1) == labels.flatten())[mask].sum())
        total += int(mask.sum())
    return right / total if total else None
