"""The command line on data as small as it gets."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch_geometric.data import Data

from bgnn.models import train
from bgnn.models.checkpoint import load_checkpoint, load_example
from bgnn.models.dq import command, presets, training


@pytest.fixture
def citation(monkeypatch):
    """Two communities of 30 nodes; a node's first features say which, most edges stay inside."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    source = torch.randint(60, (300,), generator=generator)
    target = torch.randint(30, (300,), generator=generator) * 2 + y[source]
    x = torch.rand(60, 1433, generator=generator) * 0.05
    x[:, :10], x[:, 10:20] = y[:, None], 1 - y[:, None]  # more than the 0.1 % that Degree-Quant cuts off
    place = torch.arange(60)
    masks = {"train_mask": place < 20, "val_mask": (place >= 20) & (place < 40), "test_mask": place >= 40}
    graph = Data(x=x, edge_index=torch.stack((source, target)), y=y, **masks)
    monkeypatch.setattr(command, "load_citation", lambda name, root: graph)
    return graph


@pytest.mark.parametrize("method", presets.METHODS)
@pytest.mark.parametrize("conv", ["gcn", "gat", "gin", "sage"])
def test_all_methods_learn(citation, conv, method):
    recipe = presets.recipe("cora", conv, method, 8, epochs=120 if method == "nqat" else 60)
    settings = presets.settings("cora", conv, method, 8)
    if settings.get("observer") == "momentum":  # follows too slowly for so few epochs (section 4.1)
        settings["observer"] = "min_max"
    run = training.train_citation(settings, recipe, citation, seed=0)
    assert run.test > 75  # by chance 50
    assert not run.model.training


def test_learned_steps_are_learned_without_decay_and_kept(citation, tmp_path):
    out = tmp_path / "m.pt"
    train.main(f"dq --dataset cora --model gcn --bits 4 --observer learned --epochs 40 --out {out}".split())
    model = load_checkpoint(out)
    steps = [value.item() for name, value in model.named_parameters() if name.endswith("log_step")]
    assert len(steps) > 4
    assert sum(abs(step) > 0.05 for step in steps) > len(steps) / 2
    groups = training._adam(model, presets.recipe("cora", "gcn", "dq", 4)).param_groups
    assert [(group["weight_decay"] > 0, len(group["params"])) for group in groups][1] == (False, len(steps))


def test_train_prints_and_saves_the_best_run(citation, tmp_path, capsys):
    out = tmp_path / "m.pt"
    train.main(f"dq --dataset cora --model gcn --runs 2 --epochs 20 --p-max 0.3 --out {out}".split())
    printed = capsys.readouterr().out
    assert "epoch 20: loss" in printed
    assert "seed 1: test" in printed
    assert "cora gcn dq, test accuracy in percent:" in printed
    assert "of 2 runs" in printed
    model = load_checkpoint(out)
    assert (model.config["bits"], model.config["observer"]) == (8, "percentile")
    first = model(citation.x, citation.edge_index)
    example = load_example(out)
    assert torch.equal(example["x"], citation.x)
    assert torch.equal(example["edge_index"], citation.edge_index)
    train.main(f"dq --dataset cora --model gcn --runs 2 --epochs 20 --p-max 0.3 --out {out}".split())
    assert torch.equal(load_checkpoint(out)(citation.x, citation.edge_index), first)  # the same seeds


def test_early_stopping(citation):
    recipe = presets.recipe("cora", "gcn", "fp32", 8, epochs=200, patience=5, rate=0.0)
    run = training.train_citation(presets.settings("cora", "gcn", "fp32", 8), recipe, citation, seed=0)
    assert run.epochs == 10  # measured at 5 and 10, no better


def test_reddit_on_the_command_line(zipped, tmp_path, capsys):
    out = tmp_path / "m.pt"
    train.main(f"dq --dataset reddit-binary --model gin --bits 4 --epochs 3 --root {zipped} --out {out}".split())
    assert set(load_example(out)) == {"x", "edge_index", "batch"}
    assert "reddit-binary gin dq, test accuracy" in capsys.readouterr().out


def test_the_table_goes_on_where_it_stopped(citation, tmp_path, capsys, monkeypatch):
    results = tmp_path / "r.json"
    results.write_text(json.dumps({"cora gcn fp32": [80.0], "cora gcn dq4": [1.0, 2.0]}))
    short = {"epochs": 5}
    monkeypatch.setattr(presets, "recipe", partial(presets.recipe, **short))
    train.main(f"dq-table --datasets cora --models gcn --runs 2 --results {results}".split())
    kept = json.loads(results.read_text())
    assert kept["cora gcn fp32"][0] == 80.0
    assert [len(kept[f"cora gcn {case}"]) for case in command.CASES] == [2, 2, 2, 2]
    printed = capsys.readouterr().out
    assert "1.5 ± 0.707 (2)" not in printed  # below 10: three digits
    assert "| cora GCN |" in printed
    assert "| 1.500 ± 0.707 (2) | 78.3 ± 1.7 |" in printed


def test_runs_of_other_lengths_are_kept_apart(citation, tmp_path, capsys):
    results = tmp_path / "r.json"
    results.write_text(json.dumps({"cora gcn fp32": [80.0]}))
    command_line = "dq-table --datasets cora --models gcn --cases fp32 dq8 --runs 1 --results"
    train.main(f"{command_line} {results} --epochs 10".split())
    kept = json.loads(results.read_text())
    assert kept.pop("cora gcn fp32") == [80.0]
    assert sorted(kept) == ["cora gcn dq8 10 epochs", "cora gcn fp32 10 epochs"]
    rows = [line for line in capsys.readouterr().out.splitlines() if "cora GCN" in line]
    assert rows[0].startswith("| cora GCN | 80.0 (1) |")
    assert rows[1].startswith("| cora GCN, 10 epochs | ")


@pytest.mark.parametrize(
    "arguments",
    [
        "--dataset cora --model gcn --runs 0",
        "--dataset cora --model gcn --bits 1",
        "--dataset cora --model gcn --out nowhere/m.pt",
        "--dataset reddit-binary --model gcn",
    ],
)
def test_bad_arguments_are_one_line(citation, zipped, capsys, arguments):
    with pytest.raises(SystemExit) as error:
        train.main(["dq", *arguments.split(), "--root", str(zipped)])
    assert error.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
