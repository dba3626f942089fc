"""Model cards: a page of Markdown beside trained networks, with what the command knows and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bgnn.models.curves import spread
from bgnn.models.recipes import Config


def write_card(
    folder: Path, config: Config, data: str, seeds: Sequence[int], results: Mapping[str, Sequence[float]], licence: str
) -> str:
    """Writes `card.md` in `folder`, and returns the lines of its table.

    `results`: by what was measured, a value per seed, in percent or as its name says. `licence`: of the data, as stated
    by the user; empty if not.
    """
    rows = ["| | mean ± standard deviation | runs |", "|---|---|---|"]
    rows += [
        f"| {name} | {spread(list(values))} | {', '.join(f'{v:.2f}' for v in values)} |"
        for name, values in results.items()
    ]
    own = {
        field.name: getattr(config.recipe, field.name)
        for field in dataclasses.fields(config.recipe)
        if getattr(config.recipe, field.name) != field.default
    }
    page = [
        f"# {config.name}",
        "",
        f"Stands for: {config.row or 'no row of a paper'}"
        + (f" (the paper's figure: {config.paper})" if config.paper else ""),
        "",
        f"- Data: {data}",
        f"- Licence of the data: {licence or 'not stated to the command (--licence)'}",
        f"- Seeds: {', '.join(map(str, seeds))}",
        f"- Settings other than the defaults: `{json.dumps(own)}`",
        "",
        *rows,
        "",
    ]
    (folder / "card.md").write_text("\n".join(page), encoding="utf-8")
    return "\n".join(rows)
