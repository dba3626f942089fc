"""The commands `python -m bgnn.models.train dq` (train one network) and `dq-table` (Tables 2 and 3, measured)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from bgnn.models.card import write_card
from bgnn.models.checkpoint import save_checkpoint
from bgnn.models.curves import spread
from bgnn.models.dq import presets
from bgnn.models.dq.data import load_citation, load_graphs
from bgnn.models.dq.example import first_graphs, part_of_graph
from bgnn.models.dq.networks import CONVS
from bgnn.models.dq.quantizer import GRADIENTS, OBSERVERS
from bgnn.models.dq.training import Run, train_citation, train_graphs
from bgnn.models.fit import State
from bgnn.models.recipes import DegreeQuantRecipe, read_config

#: The paper's Tables 2 and 3: accuracy in percent and its deviation, per (method, bits).
PAPER = {
    ("cora", "gcn"): {"fp32": "81.2 ± 0.6", "qat8": "81.0 ± 0.7", "dq8": "81.7 ± 0.7", "dq4": "78.3 ± 1.7"},
    ("cora", "gat"): {"fp32": "83.2 ± 0.3", "qat8": "81.9 ± 0.7", "dq8": "82.7 ± 0.7", "dq4": "71.2 ± 2.9"},
    ("cora", "gin"): {"fp32": "77.9 ± 1.1", "qat8": "75.6 ± 1.2", "dq8": "78.7 ± 1.4", "dq4": "69.9 ± 3.4"},
    ("citeseer", "gcn"): {"fp32": "71.4 ± 0.9", "qat8": "71.3 ± 1.0", "dq8": "71.0 ± 0.9", "dq4": "66.9 ± 2.4"},
    ("citeseer", "gat"): {"fp32": "72.4 ± 0.8", "qat8": "71.2 ± 1.0", "dq8": "71.6 ± 1.0", "dq4": "67.6 ± 1.5"},
    ("citeseer", "gin"): {"fp32": "65.8 ± 1.5", "qat8": "63.0 ± 2.6", "dq8": "67.5 ± 1.4", "dq4": "60.8 ± 2.1"},
    ("reddit-binary", "gin"): {"fp32": "92.0 ± 1.5", "qat8": "76.1 ± 7.5", "dq8": "91.8 ± 2.3", "dq4": "81.3 ± 4.4"},
}
CASES = {"fp32": ("fp32", 8), "qat8": ("qat", 8), "dq8": ("dq", 8), "dq4": ("dq", 4)}


def add_parsers(sub: Any) -> None:
    """Adds the two commands to `sub`, what `ArgumentParser.add_subparsers` gave."""
    form = argparse.ArgumentDefaultsHelpFormatter
    add = sub.add_parser("dq", formatter_class=form, help="a Degree-Quant network").add_argument
    add("--config", type=Path, help="a configuration, models/configs/dq-*.json: with --dataset, of that one alone")
    add("--folder", type=Path, help="of --config: where the runs are kept, and go on from (default: out/train/NAME)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of --config: in place of the file's")
    add("--licence", default="", help="of --config: of the data, for the model card")
    add("--dataset", choices=presets.DATASETS)
    add("--model", choices=CONVS)
    add("--method", choices=presets.METHODS, default="dq")
    add("--bits", type=int, default=8, help="of all quantisers (no meaning for fp32)")
    add("--runs", type=int, default=1, help="seeds, counted from --seed; with REDDIT-BINARY its folds in turn")
    add("--seed", type=int, default=0)
    add("--root", type=Path, default=Path("data"), help="folder of local raw files, else where PyG downloads to")
    add("--out", type=Path, help="the model.pt to write: of the runs, the one with the lowest validation loss")
    add("--float-first", action="store_true", help="keep the first layer at full precision (appendix A.5.1)")
    add("--float-last", action="store_true", help="keep the last layer or the readout at full precision (A.5.1)")
    for name, kind, text in (
        ("epochs", int, "at most so many"),
        ("patience", int, "epochs without a lower validation loss before a run stops"),
        ("rate", float, "learning rate"),
        ("decay", float, "weight decay"),
        ("p-min", float, "protection of the nodes of lowest in-degree"),
        ("p-max", float, "protection of the nodes of highest in-degree"),
    ):
        add(f"--{name}", type=kind, default=argparse.SUPPRESS, help=f"{text} (default: the data set's recipe)")
    for name, choices in (("observer", OBSERVERS), ("gradient", GRADIENTS)):
        add(f"--{name}", choices=choices, default=argparse.SUPPRESS, help="of the quantisers, see Scheme")
    for name in ("noise", "percentile", "sample"):
        add(f"--{name}", type=float, default=argparse.SUPPRESS, help="of the quantisers, see Scheme")
    add = sub.add_parser(
        "dq-table", formatter_class=form, help="measured beside the paper's Tables 2 and 3"
    ).add_argument
    add("--runs", type=int, default=10, help="seeds per entry")
    add("--datasets", nargs="+", choices=("cora", "citeseer", "reddit-binary"), default=["cora", "citeseer"])
    add("--models", nargs="+", choices=CONVS[:3], default=list(CONVS[:3]))
    add("--root", type=Path, default=Path("data"), help="folder of local raw files, else where PyG downloads to")
    add("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    add("--epochs", type=int, default=argparse.SUPPRESS, help="at most so many, in rows of their own (default: recipe)")
    add("--results", type=Path, help="a file that keeps each run: an interrupted table goes on where it stopped")


def train(options: argparse.Namespace) -> None:
    """The command `dq`. Raises ValueError or OSError, one line, on bad arguments or data."""
    if options.runs < 1:
        raise ValueError(f"--runs is {options.runs}; at least one run is needed")
    if options.config is not None:
        by_config(options)
        return
    if options.out is not None and not options.out.parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {options.out.parent}")
    config = presets.settings(options.dataset, options.model, options.method, options.bits)
    config |= {"float_first": options.float_first or config.get("float_first", False)}
    config |= {"float_last": options.float_last}
    given = vars(options)
    config |= {k: given[k] for k in ("observer", "gradient", "noise", "percentile", "sample") if k in given}
    recipe = presets.recipe(options.dataset, options.model, options.method, options.bits, **_own(given))
    trained, example = _trainer(options.dataset, options.root)
    runs = []
    best: Run | None = None
    for seed in range(options.seed, options.seed + options.runs):
        run = trained(config, recipe, seed, True)
        runs.append(run.test)
        print(
            f"seed {seed}: test {run.test:.2f}, validation loss {run.validation_loss:.3f}, "
            f"{run.epochs} epochs, {run.seconds:.0f} s",
            flush=True,
        )
        if best is None or run.validation_loss < best.validation_loss:
            best = run
            if options.out is not None:
                save_checkpoint(options.out, run.model, example=example)
    unit = "mean absolute error" if options.dataset == "zinc" else "accuracy in percent"
    print(f"{options.dataset} {options.model} {options.method}, test {unit}: {spread(runs)} of {len(runs)} runs")
    if options.out is not None:
        print(f"wrote {options.out}")


def by_config(options: argparse.Namespace) -> None:
    """The command `dq --config`: every figure of the row, each run kept, and the model card."""
    config = read_config(options.config, options.set)
    recipe = config.recipe
    if not isinstance(recipe, DegreeQuantRecipe):
        raise ValueError(f"{options.config}: of kind {recipe.kind!r}, which the command {recipe.command} trains")
    datasets = recipe.datasets
    if options.dataset is not None:
        if options.dataset not in datasets:
            raise ValueError(f"{options.config} is of {', '.join(datasets)}, and not of {options.dataset}")
        datasets = (options.dataset,)
    folder = options.folder or Path("out/train") / config.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.json"
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    results: dict[str, list[float]] = {}
    seeds = list(range(options.seed, options.seed + options.runs))
    for dataset in datasets:
        trained, example = _trainer(dataset, options.root)
        for gradient, observer, bits in product(recipe.gradients or [""], recipe.observers or [""], recipe.bits):
            settings = presets.settings(dataset, recipe.model, recipe.method, bits)
            settings |= {key: value for key, value in (("gradient", gradient), ("observer", observer)) if value}
            own = {key: value for key in ("p_min", "p_max", "epochs") if (value := getattr(recipe, key)) is not None}
            how = presets.recipe(dataset, recipe.model, recipe.method, bits, **own)
            words = [dataset, recipe.model, recipe.method, f"W{bits}A{bits}" if recipe.method != "fp32" else ""]
            name = " ".join(word for word in [*words, gradient, observer] if word)
            for seed in seeds:
                what = json.dumps([name, seed, settings, asdict(how)])
                run = f"{name} seed {seed}"
                if kept.get(run, {}).get("what") != what:
                    place = folder / run.replace(" ", "-")
                    place.mkdir(exist_ok=True)
                    done = trained(settings, how, seed, True, State(place, what))
                    save_checkpoint(place / "model.pt", done.model, example=example)
                    kept[run] = {"what": what, "test": done.test}
                    path.write_text(json.dumps(kept, indent=1))
                    print(f"{run}: {done.test:.2f} in {done.epochs} epochs, {done.seconds:.0f} s", flush=True)
                results.setdefault(name, []).append(kept[run]["test"])
    data = f"{', '.join(datasets)}; test accuracy in percent (zinc: mean absolute error), epoch of the lowest "
    print(write_card(folder, config, data + "validation loss", seeds, results, options.licence))
    print(f"wrote {folder}/card.md")


def table(options: argparse.Namespace) -> None:
    """The command `dq-table`: trains what is not in `--results` yet, and prints the table in Markdown."""
    results: dict[str, list[float]] = {}
    if options.results is not None and options.results.exists():
        results = json.loads(options.results.read_text())
    for dataset in options.datasets:
        trained, _ = _trainer(dataset, options.root)
        for seed in range(options.runs):  # all cases of a seed before the next seed
            for conv in options.models:
                for case in options.cases:
                    method, bits = CASES[case]
                    name = f"{dataset} {conv} {case}" + (f" {options.epochs} epochs" if "epochs" in options else "")
                    done = results.setdefault(name, [])
                    if (dataset, conv) not in PAPER or len(done) > seed:
                        continue
                    config = presets.settings(dataset, conv, method, bits)
                    recipe = presets.recipe(dataset, conv, method, bits, **_own(vars(options)))
                    run = trained(config, recipe, seed, False)
                    done.append(round(run.test, 2))
                    print(f"{name} seed {seed}: {run.test:.2f} in {run.seconds:.0f} s", flush=True)
                    if options.results is not None:
                        options.results.write_text(json.dumps(results, indent=1))
    print(as_table(results))


def as_table(results: dict[str, list[float]]) -> str:
    """The measured accuracies beside the paper's, in Markdown.

    Keys are "dataset conv case", cases as in CASES, or "dataset conv case N epochs": each N has a row of its own.
    """
    kinds = sorted({" ".join(key.split()[3:]) for key in results}, key=lambda kind: (len(kind), kind))
    titles = {"fp32": "fp32", "qat8": "QAT W8A8", "dq8": "DQ W8A8", "dq4": "DQ W4A4"}
    rows = ["| | " + " | ".join(f"{t} | paper" for t in titles.values()) + " |", "|---" * 9 + "|"]
    for (dataset, conv), paper in PAPER.items():
        for kind in kinds:
            runs = {case: results.get(f"{dataset} {conv} {case} {kind}".rstrip(), []) for case in CASES}
            if any(runs.values()):
                cells = (f"{spread(runs[case])} ({len(runs[case])}) | {paper[case]}" for case in CASES)
                rows.append(f"| {dataset} {conv.upper()}{kind and ', '}{kind} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", "Test accuracy in percent, mean ± standard deviation (number of runs)."])


def _own(given: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a recipe that were given on the command line."""
    return {k: given[k] for k in ("epochs", "patience", "rate", "decay", "p_min", "p_max") if k in given}


def _trainer(dataset: str, root: Path) -> tuple[Callable[..., Run], dict[str, Tensor]]:
    """A function of (settings, recipe, seed, progress[, state]) that trains on the data, read once; a piece of them."""
    if dataset in ("cora", "citeseer"):
        graph = load_citation(dataset, root)

        def on_graph(*args: Any) -> Run:
            config, recipe, *rest = args
            return train_citation(config, recipe, graph, *rest)

        return on_graph, part_of_graph(graph)
    graphs, folds = load_graphs(dataset, root)

    def on_fold(*args: Any) -> Run:
        config, recipe, seed, *rest = args
        return train_graphs(config, recipe, graphs, folds[seed % len(folds)], seed, *rest)

    return on_fold, first_graphs(graphs)
