"""Configurations: what is refused, and a few steps of every row of the papers' tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bgnn.models import cascade, recipes
from bgnn.models.clouds import CloudData
from bgnn.models.recipes import CloudRecipe, read_config
from bgnn.models.shapes import make_clouds

FOLDER = Path(recipes.__file__).parent / "configs"
CLOUDS = sorted(path.stem for path in FOLDER.glob("*.json") if json.loads(path.read_text())["kind"] == "clouds")


def test_every_row_of_the_binary_papers_tables_has_a_file():
    want = {f"binary-table1-{i:02}" for i in range(1, 37)} | {f"binary-table2-{i:02}" for i in range(1, 13)}
    assert set(CLOUDS) == want | {f"binary-table8-{i:02}" for i in range(1, 6)}


@pytest.mark.parametrize("name", CLOUDS)
def test_a_few_steps_of_the_row(name, tmp_path):
    sizes = ["points=12", "k=3", "channels=[4,4,4,4]", "embedding=8", "mlp=[8,8]", "batch=8", "epochs=[1,1,1,1]"]
    config = read_config(FOLDER / f"{name}.json", sizes)
    assert config.paper.endswith(" %")
    assert name.replace("binary-table", "").split("-")[0] == config.row.split("Table ")[1][0]
    data = CloudData("solids", make_clouds(16, 12, 0, classes=2), make_clouds(8, 12, 1, classes=2), ("a", "b"))
    done = cascade.train_cascade(config.recipe, data, tmp_path, 0)
    assert len(done) == len(config.recipe.stages)
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert model["architecture"] == config.recipe.arch
    assert model["config"].get("stage", 0) == config.recipe.stage


def test_defaults_are_the_papers():
    """Section 5.2 and appendix A."""
    recipe = read_config(FOLDER / "binary-table1-06.json").recipe
    assert (recipe.epochs, recipe.rate) == ((250, 250, 350, 350), (1e-3, 1e-3, 2.5e-4, 1e-3))
    assert (recipe.decay[1:], recipe.schedule) == ((1e-5, 1e-5, 0), ("shares", "shares", "shares", "every"))
    assert (recipe.lsp_weight, recipe.halve_every, recipe.stages) == (100, 50, (0, 1, 2, 3))
    assert (recipe.points, recipe.k, recipe.embedding, recipe.dropout) == (1024, 20, 1024, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": 2, "kind": "clouds"}, "version 2; this command reads version 1"),
        ({"kind": "clouds"}, "version None; this command reads version 1"),
        ({"version": 1, "kind": "images"}, "kind is 'images'; it must be one of clouds, nodes, dq"),
        ({"version": 1, "kind": "clouds", "epoch": 3}, "unknown key 'epoch'; known are arch"),
        ({"version": 1, "kind": "clouds", "k": "20"}, "k is '20'; it must be of type int"),
        ({"version": 1, "kind": "clouds", "epochs": [1, 2]}, "epochs has 2 entries; it needs 4"),
        ({"version": 1, "kind": "clouds", "epochs": 3}, "epochs is 3; it must be a list"),
        ({"version": 1, "kind": "clouds", "arch": "rf", "lsp": "hamming"}, "rf has real node features"),
        ({"version": 1, "kind": "clouds", "distillation": "none", "lsp": "rbf"}, "without a teacher"),
        ({"version": 1, "kind": "clouds", "arch": "dgcnn", "stage": 0}, "the baseline has no teacher"),
        ([1], "a configuration is an object"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(content, message, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"c\.json: ") as error:
        read_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_take_the_place_of_the_files(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"version": 1, "kind": "clouds", "arch": "bf1"}))
    recipe = read_config(path, ["arch=rf", "mlp=[8, 4]", "lsp_weight=1", "settle=true"]).recipe
    assert recipe == CloudRecipe(arch="rf", mlp=(8, 4), lsp_weight=1.0, settle=True)
    with pytest.raises(ValueError, match="--set arch: expected KEY=VALUE"):
        read_config(path, ["arch"])
    path.write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        read_config(path)
    with pytest.raises(FileNotFoundError, match="no such configuration"):
        read_config(tmp_path / "d.json")
