"""What was measured in training: lines of JSON, a picture of the curves (SVG), TensorBoard events if asked for."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
WIDTH, HEIGHT, LEFT, TOP = 640, 200, 60, 30


def spread(values: list[float]) -> str:
    """ "81.7 ± 0.7": mean and standard deviation; of a single value the value alone, of none a dash."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}" if max(values) >= 10 else f"{statistics.fmean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{len(mean.split('.')[1])}f}"


def write_svg(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Two charts over the epochs of all stages: "loss", and what of the entries are other numbers than "epoch"."""
    names = [name for name, value in history[0].items() if isinstance(value, float)] if history else []
    charts = [[name for name in names if name == "loss"], [name for name in names if name != "loss"]]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + LEFT + 20}" height="{2 * (HEIGHT + 2 * TOP)}"']
    parts[0] += ' font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    for number, chart in enumerate(charts):
        top = TOP + number * (HEIGHT + 2 * TOP)
        values = [entry[name] for entry in history for name in chart]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        high = high if high > low else low + 1
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>')
        for value, y in ((high, top + 8), (low, top + HEIGHT)):
            parts.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{value:.3g}</text>')
        across = WIDTH / max(1, len(history) - 1)
        for i, (before, entry) in enumerate(zip([{}, *history[:-1]], history, strict=True)):
            if before.get("stage") != entry.get("stage"):
                x = LEFT + i * across
                parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + HEIGHT}" stroke="#ddd"/>')
                parts.append(f'<text x="{x + 3:.1f}" y="{top + 12}" fill="#888">{entry.get("stage", "")}</text>')
        for name, colour in zip(chart, COLOURS, strict=False):
            points = " ".join(
                f"{LEFT + i * across:.1f},{top + HEIGHT * (high - entry[name]) / (high - low):.1f}"
                for i, entry in enumerate(history)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            at = LEFT + 160 * chart.index(name)
            parts.append(f'<text x="{at}" y="{top - 6}" fill="{colour}">{name}</text>')
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """`curves.jsonl` (a line per epoch) and `curves.svg` in `folder`."""
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    (folder / "curves.jsonl").write_text(lines, encoding="utf-8")
    write_svg(folder / "curves.svg", history)


def events_writer() -> Any:
    """The class that writes TensorBoard's events. Raises ImportError where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('--tensorboard needs the package: pip install "bgnn-convert[train]"') from error
    return SummaryWriter


def write_events(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """The history as TensorBoard events in `folder`, in place of those that are there."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with events_writer()(str(folder)) as writer:
        for step, entry in enumerate(history, start=1):
            for name, value in entry.items():
                if isinstance(value, float):
                    writer.add_scalar(name, value, step)
