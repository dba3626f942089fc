"""Every row of Degree-Quant's tables as a configuration: a step of each figure, and going on after a break."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

from bgnn.models import recipes, train
from bgnn.models.checkpoint import load_checkpoint
from bgnn.models.dq import command, presets, training
from bgnn.models.fit import State
from bgnn.models.recipes import read_config

FOLDER = Path(recipes.__file__).parent / "configs"
ROWS = sorted(path.stem for path in FOLDER.glob("dq-*.json"))


def citation(name="cora", root=None):
    torch.manual_seed(0)
    x = (torch.rand(30, presets._SIZES[name]["features"]) < 0.02).float()
    part = torch.arange(30) % 3
    masks = {f"{title}_mask": part == i for i, title in enumerate(("train", "val", "test"))}
    return Data(x=x, edge_index=torch.randint(30, (2, 80)), y=torch.randint(6, (30,)), **masks)


def graphs(name, root=None):
    torch.manual_seed(0)
    size = presets._SIZES[name]
    made = []
    for i in range(6):
        x = torch.randn(8, size["features"])
        x = torch.eye(28)[x.argmax(1)] if size.get("one_hot") else x
        y = torch.randn(1) if size["classes"] == 1 else torch.tensor([i % 2])
        made.append(Data(x=x, edge_index=torch.randint(8, (2, 20)), y=y))
    return made, [([0, 1], [2, 3], [4, 5])] * 2


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch):
    monkeypatch.setattr(command, "load_citation", citation)
    monkeypatch.setattr(command, "load_graphs", graphs)


def test_every_row_of_the_tables_has_a_file():
    """Without the reference rows, which cite others."""
    convs, schemes = ("gcn", "gat", "gin"), [f"{m}-w{b}a{b}" for m in ("qat", "nqat", "dq") for b in (8, 4)]
    want = {f"dq-table1-{data}-{conv}" for data in ("cora", "mnist", "zinc") for conv in convs}
    want |= {f"dq-table2-{scheme}-{conv}" for scheme in ("fp32", *schemes) for conv in convs}
    want |= {f"dq-table3-{scheme}" for scheme in ("fp32", *schemes)}
    want |= {"dq-table8-fp32"} | {f"dq-table8-dq-{p}" for p in ("00-01", "01-02", "02-02", "02-03")}
    ablations = ("qat-int8-masking", "qat-int4-masking", "nqat-int4-percentile")
    assert set(ROWS) == want | {f"dq-table9-{kind}-{conv}" for kind in ablations for conv in convs}


@pytest.mark.parametrize("name", ROWS)
def test_a_step_of_every_figure_of_the_row(name, tmp_path, capsys):
    arguments = f"dq --config {FOLDER / name}.json --folder {tmp_path} --set epochs=1"
    train.main(arguments.split())
    config = read_config(FOLDER / f"{name}.json")
    rows = [line for line in (tmp_path / "card.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(config.paper.split(" | "))
    assert f"Table {name[8]}: " in config.row
    assert len(list(tmp_path.glob("*/model.pt"))) == len(rows)


def test_what_a_row_sets_reaches_the_network(tmp_path, capsys):
    train.main(f"dq --config {FOLDER}/dq-table1-cora-gin.json --folder {tmp_path} --set epochs=1 bits=[4]".split())
    found = [load_checkpoint(path).config for path in sorted(tmp_path.glob("*/model.pt"))]
    assert sorted((one["gradient"], one["observer"]) for one in found) == [
        *(("clipped", "min_max"), ("clipped", "momentum"), ("vanilla", "min_max"), ("vanilla", "momentum")),
    ]
    assert {one["bits"] for one in found} == {4}
    printed = capsys.readouterr().out
    assert printed.count(" in 1 epochs") == 4
    train.main(f"dq --config {FOLDER}/dq-table1-cora-gin.json --folder {tmp_path} --set epochs=1 bits=[4]".split())
    assert " in 1 epochs" not in capsys.readouterr().out  # what is done already is not done again


def test_masking_alone_protects_and_keeps_its_observer():
    recipe = read_config(FOLDER / "dq-table9-qat-int8-masking-gcn.json").recipe
    assert presets.recipe("cora", "gcn", "qat", 8).p_max == 0
    assert recipe.p_max == 0.1
    assert presets.settings("cora", "gcn", recipe.method, 8)["observer"] != "percentile"
    assert read_config(FOLDER / "dq-table8-dq-02-03.json").recipe.p_min == 0.2


class Killed(BaseException):
    """As SIGKILL: nothing of ours runs after it."""


def test_a_killed_run_goes_on_with_the_same_result(tmp_path, monkeypatch):
    config = presets.settings("reddit-binary", "gin", "dq", 8)
    recipe = presets.recipe("reddit-binary", "gin", "dq", 8, epochs=5, halve_every=2)
    data, folds = graphs("reddit-binary")
    whole = training.train_graphs(config, recipe, data, folds[0], 0)
    real, count = training._whole, 0

    def killed(*args):
        nonlocal count
        count += 1
        if count == 6:
            raise Killed
        return real(*args)

    monkeypatch.setattr(training, "_whole", killed)
    with pytest.raises(Killed):
        training.train_graphs(config, recipe, data, folds[0], 0, False, State(tmp_path, "a"))
    run = training.train_graphs(config, recipe, data, folds[0], 0, False, State(tmp_path, "a"))
    assert count == 6 + 2 * 3  # from the third epoch on
    assert (run.test, run.validation_loss, run.epochs) == (whole.test, whole.validation_loss, whole.epochs)
    for key, value in run.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[key]), key


def test_wrong_configurations_are_one_line(tmp_path, capsys):
    path = tmp_path / "c.json"
    for content, message in (
        ({"kind": "clouds"}, "which the command dgcnn trains"),
        ({"kind": "dq", "method": "fp32", "observers": ["min_max"]}, "fp32 has no quantisers"),
        ({"kind": "dq", "p_max": 1.5}, "not 1.5"),
        ({"kind": "dq", "datasets": ["pubmed"]}, "datasets is 'pubmed'"),
    ):
        path.write_text(json.dumps({"version": 1, **content}))
        with pytest.raises(SystemExit) as error:
            train.main(f"dq --config {path} --folder {tmp_path}/run".split())
        assert error.value.code == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        train.main(["dq", "--dataset", "cora"])
    assert error.value.code == 2
