"""A table of trained networks, whole: `python -m bgnn.models.table models/tables/cascade.json --data DIR`.

    {"version": 1, "start": "binary-table1-36", "seeds": [0, 1, 2], "set": ["points=64", "k=8", ...],
     "rows": {"RF, scratch": "binary-table1-30", "BF1, cascade": "binary-table1-03 init=random", ...}}

`start` is trained first, once per seed; its network is the teacher in place of the stages up to its own, in every row
that has a teacher. A row is a configuration of `models/configs/` and settings of its own, after those of `set`, which
all have. Runs are kept in a folder each, as of `cascade`: the same command goes on where it was stopped. After each run
`table.md` has what is done so far, and each row's folder a model card.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bgnn.models.card import write_card
from bgnn.models.cascade import train_cascade
from bgnn.models.clouds import load_clouds
from bgnn.models.curves import spread
from bgnn.models.recipes import CloudRecipe, Config, read_config, read_versioned

CONFIGS = Path(__file__).parent / "configs"
START = "start"


@dataclass(frozen=True)
class Table:
    """A file read. `rows`: configurations by title, the start first."""

    seeds: tuple[int, ...]
    rows: dict[str, Config]


def read_table(path: Path, settings: Sequence[str] = ()) -> Table:
    """The table at `path`; `settings` KEY=VALUE go after the file's own.

    Raises FileNotFoundError, or ValueError in one line.
    """
    content = read_versioned(path, "table")
    try:
        seeds, rows = content["seeds"], {START: content["start"], **content["rows"]}
        common = [str(one) for one in content["set"]]
        words = {str(title): str(row).split() for title, row in rows.items()}
        if not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < max(1, len(seeds)):
            raise ValueError("seeds: whole numbers, each once")
        if not all(words.values()):
            raise ValueError("a row names no configuration")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a table of version, start, seeds, set and rows ({error})") from error
    table: dict[str, Config] = {}
    for title, (name, *own) in words.items():
        config = read_config(CONFIGS / f"{name}.json", [*common, *settings, *own])
        if not isinstance(config.recipe, CloudRecipe):
            raise ValueError(f"{path}: {name} is of kind {config.recipe.kind!r}; a table is of point clouds")
        table[title] = replace(config, name=title)
    if len({folder_of(title) for title in table}) < len(table):
        raise ValueError(f"{path}: two titles differ in signs alone")
    if len({config.recipe.points for config in table.values()}) > 1:
        raise ValueError(f"{path}: rows of different numbers of points")
    return Table(tuple(seeds), table)


def folder_of(title: str) -> str:
    """The name of a row's folder."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def results_of(folder: Path, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Of a row's finished runs: percentages by stage, in the order of the seeds."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        path = folder / f"seed{seed}" / "result.json"
        if path.is_file():
            for stage, value in json.loads(path.read_text())["accuracy"].items():
                found.setdefault(stage, []).append(100 * value)
    return found


def as_markdown(table: Table, results: Mapping[str, Mapping[str, list[float]]]) -> str:
    """The rows that have runs: accuracy after each stage, mean and deviation, and the paper's figure."""
    lines = ["| | stage 0 | stage 1 | stage 2 | stage 3 | runs | paper |", "|---" * 7 + "|"]
    for title, config in table.rows.items():
        if results.get(title):
            stages = {0 if name == "dgcnn" else int(name[-1]): values for name, values in results[title].items()}
            cells = [spread(stages.get(stage, [])) for stage in range(4)]
            runs = len(stages[config.recipe.stages[-1]])
            lines.append(f"| {title} | {' | '.join(cells)} | {runs} | {config.paper.removesuffix(' %')} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bgnn.models.table", description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="models/tables/*.json")
    parser.add_argument("--data", type=Path, help="as of bgnn.models.train; without, procedural solids")
    parser.add_argument("--folder", type=Path, help="where runs are kept (default: out/train/NAME)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="in place of the file's, in all rows")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the file's")
    parser.add_argument("--licence", default="", help="of the data, for the model cards")
    parser.add_argument("--print", action="store_true", help="the table of what is done, and train nothing")
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    try:
        table = read_table(options.table, options.set)
        table = replace(table, seeds=tuple(options.seeds or table.seeds))
        folder = options.folder or Path("out/train") / options.table.stem
        if not options.print:
            _train(table, options.data, folder, options.licence)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    finally:
        torch.set_flush_denormal(False)
    print(as_markdown(table, _results(table, folder)))


def _results(table: Table, folder: Path) -> dict[str, dict[str, list[float]]]:
    return {title: results_of(folder / folder_of(title), table.seeds) for title in table.rows}


def _train(table: Table, data: Path | None, folder: Path, licence: str) -> None:
    """All rows of a seed before the next seed."""
    clouds = load_clouds(data, table.rows[START].recipe.points)
    for seed in table.seeds:
        start = folder / START / f"seed{seed}"
        for title, config in table.rows.items():
            print(f"{title}, seed {seed}", flush=True)
            own = folder / folder_of(title)
            taught = title != START and config.recipe.distillation != "none"
            train_cascade(
                config.recipe, clouds, own / f"seed{seed}", seed, teacher=start / "model.pt" if taught else None
            )
            done = [s for s in table.seeds if (own / f"seed{s}/result.json").is_file()]
            write_card(own, config, clouds.about, done, results_of(own, done), licence)
            (folder / "table.md").write_text(as_markdown(table, _results(table, folder)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
