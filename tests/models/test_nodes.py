"""Training on the nodes of a graph: what is regularised, scores, and going on after a break."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bgnn.models import nodes, recipes, train
from bgnn.models.checkpoint import load_checkpoint, load_example
from bgnn.models.node_data import NodeData
from bgnn.models.nodes import roc_auc, train_nodes
from bgnn.models.recipes import NodeRecipe, read_config

pytest.importorskip("torch_geometric")  # of the GCN
FOLDER = Path(recipes.__file__).parent / "configs"
ROWS = sorted(path.stem for path in FOLDER.glob("binary-table3-*.json"))


def data(multi_label=False):
    """80 nodes of two kinds that a linear layer could tell apart."""
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, 2, 80))
    x = torch.from_numpy(rng.normal(size=(80, 6)).astype(np.float32)) + 2 * y[:, None]
    edges = torch.from_numpy(rng.integers(0, 80, (2, 400)))
    parts = torch.arange(80).split([40, 20, 20])
    return NodeData("toy", x, edges, torch.stack([y, 1 - y], 1).float() if multi_label else y, *parts)


def test_table_3_has_a_file_per_figure():
    assert [
        *("binary-table3-01-products", "binary-table3-01-proteins", "binary-table3-02-products"),
        *("binary-table3-02-proteins", "binary-table3-03-products", "binary-table3-04-products"),
        "binary-table3-04-proteins",
    ] == ROWS


@pytest.mark.parametrize("name", ROWS)
def test_a_few_steps_of_the_row(name, tmp_path):
    settings = ["hidden=8", "batch=20", "epochs=1", "sizes=[3,2,2]"]
    config = read_config(FOLDER / f"{name}.json", settings)
    multi_label = config.recipe.data == "ogbn-proteins"
    done = train_nodes(config.recipe, data(multi_label), tmp_path, 0)
    assert len(done) == (4 if "-03-" in name else 1)
    model = load_checkpoint(tmp_path / "model.pt")
    assert model.architecture == config.recipe.arch
    assert model(**load_example(tmp_path / "model.pt")).shape[1] == 2


def test_defaults_are_the_papers():
    recipe = read_config(FOLDER / "binary-table3-02-products.json").recipe
    assert (recipe.layers, recipe.hidden, recipe.epochs, recipe.scale_decay) == (3, 256, 20, 1e-4)
    assert recipe.activation == "none"
    assert read_config(FOLDER / "binary-table3-02-proteins.json").recipe.activation == "prelu"


RECIPE = NodeRecipe(hidden=8, batch=8, epochs=3, sizes=(3, 2, 2), rate=0.02)


def test_only_the_scales_are_regularised(tmp_path, monkeypatch):
    seen = []
    real = nodes.train_step

    def watched(model, optimizer, *rest):
        seen.append([(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups])
        return real(model, optimizer, *rest)

    monkeypatch.setattr(nodes, "train_step", watched)
    train_nodes(RECIPE, data(), tmp_path, 0)
    rest = len(list(load_checkpoint(tmp_path / "model.pt").parameters())) - 3
    assert seen[0] == [(0.0, rest), (1e-4, 3)]
    assert len(seen) == 15


def test_it_learns_and_the_best_epoch_counts(tmp_path):
    recipe = NodeRecipe(hidden=16, batch=10, epochs=8, sizes=(3, 2, 2), rate=0.02, dropout=0.0)
    done = train_nodes(recipe, data(), tmp_path, 0)
    assert done["binsage stage 3"] > 0.7
    history = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    best = max(history, key=lambda entry: entry["validation"])
    assert done["binsage stage 3"] == pytest.approx(best["test"])


class Killed(BaseException):
    """As SIGKILL: nothing of ours runs after it."""


def test_a_killed_run_goes_on_with_the_same_result(tmp_path, monkeypatch):
    recipe = NodeRecipe(distillation="cascade", hidden=8, batch=8, epochs=2, sizes=(3, 2, 2), rate=0.02)
    whole = train_nodes(recipe, data(), tmp_path / "whole", 0, save_every=2)
    real, count = nodes.train_step, 0

    def killed(*args):
        nonlocal count
        count += 1
        if count in (4, 20):
            raise Killed
        return real(*args)

    monkeypatch.setattr(nodes, "train_step", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            train_nodes(recipe, data(), tmp_path / "broken", 0, save_every=2)
    assert train_nodes(recipe, data(), tmp_path / "broken", 0, save_every=2) == whole
    want = load_checkpoint(tmp_path / "whole/stage3.pt").state_dict()
    for key, value in load_checkpoint(tmp_path / "broken/stage3.pt").state_dict().items():
        assert torch.equal(value, want[key]), key


def test_logit_matching_needs_one_class_a_node(tmp_path):
    with pytest.raises(ValueError, match="logit matching is of one class"):
        train_nodes(NodeRecipe(distillation="cascade"), data(multi_label=True), tmp_path, 0)


def test_roc_auc_by_hand():
    scores = torch.tensor([[0.1, 1.0], [0.4, 1.0], [0.35, 1.0], [0.8, 2.0]])
    assert roc_auc(scores[:, :1], torch.tensor([[0.0], [0], [1], [1]])) == pytest.approx(0.75)
    labels = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    assert roc_auc(scores, labels) == pytest.approx((0.75 + 0.75) / 2)  # ties count half
    assert np.isnan(roc_auc(scores[:, :1], torch.zeros(4, 1)))


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "load_nodes", lambda name, root: data())
    config = tmp_path / "c.json"
    config.write_text('{"version": 1, "kind": "nodes", "arch": "sage", "hidden": 8, "epochs": 1}')
    train.main(f"sage --config {config} --folder {tmp_path}/run".split())
    assert "80 nodes, 400 edges; accuracies in percent on its 20 test nodes" in (tmp_path / "run/card.md").read_text()
    with pytest.raises(SystemExit) as error:
        train.main(f"dgcnn --config {config} --folder {tmp_path}/other".split())
    assert error.value.code == 1
    assert capsys.readouterr().err.endswith("of kind 'nodes', which the command sage trains\n")


def test_settled_statistics_are_those_of_the_whole_graph(tmp_path):
    recipe = NodeRecipe(hidden=8, batch=8, epochs=1, sizes=(9, 9, 9), layers=3, rate=0.02, settle=True)
    train_nodes(recipe, data(), tmp_path, 0)
    model, toy = load_checkpoint(tmp_path / "model.pt"), data()
    seen = []
    model.convs[0].center.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(toy.x, toy.edge_index)
    torch.testing.assert_close(model.convs[0].center.running_mean, seen[0].mean(0), atol=0.15, rtol=0)
    assert model.convs[0].center.momentum == 0.1
