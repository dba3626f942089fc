"""The checkpoints that ship: small, of the stated kind, and as accurate as their README says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from bgnn.models.cascade import accuracy
from bgnn.models.checkpoint import load_checkpoint, load_example
from bgnn.models.clouds import load_clouds
from bgnn.models.dq.data import load_citation
from bgnn.models.node_data import load_nodes
from bgnn.models.nodes import score
from bgnn.models.shapes import HELD_OUT_SEED, SHAPES, make_clouds

FOLDER = Path(__file__).parents[2] / "models" / "trained"
DATA = Path(os.environ.get("BGNN_SHARED", Path(__file__).parents[2] / ".." / "shared")) / "data"


def test_the_file_is_small_and_a_binary_bf2():
    model = load_checkpoint(FOLDER / "bf2_shapes.pt")
    assert (FOLDER / "bf2_shapes.pt").stat().st_size < 1_000_000
    assert model.architecture == "bf2"
    assert (model.config["stage"], model.config["knn"]) == (3, "hamming")
    assert model.config["classes"] == len(SHAPES)


@pytest.mark.slow
def test_the_accuracy_is_the_stated_one():
    model = load_checkpoint(FOLDER / "bf2_shapes.pt")
    points, labels = make_clouds(1000, model.config["num_points"], HELD_OUT_SEED)
    stated = float(re.search(r"\| ([\d.]+) %", (FOLDER / "README.md").read_text())[1]) / 100
    measured = accuracy(model, torch.from_numpy(points), torch.from_numpy(labels))
    assert measured == pytest.approx(stated, abs=0.003)  # near-ties of the first layer round per machine


def test_the_degree_quant_gcn_is_what_its_readme_says():
    model = load_checkpoint(FOLDER / "cora_gcn_dq8.pt")
    assert (FOLDER / "cora_gcn_dq8.pt").stat().st_size < 150_000
    assert (model.config["conv"], model.config["bits"], model.config["features"]) == ("gcn", 8, 1433)


@pytest.mark.skipif(not (DATA / "planetoid").is_dir(), reason="needs ../shared/data/planetoid")
def test_its_accuracy_is_the_stated_one():
    graph = load_citation("cora", DATA)
    hits = load_checkpoint(FOLDER / "cora_gcn_dq8.pt")(graph.x, graph.edge_index).argmax(1) == graph.y
    stated = float(re.search(r"Test accuracy ([\d.]+) %", (FOLDER / "README.md").read_text())[1]) / 100
    assert hits[graph.test_mask].float().mean().item() == pytest.approx(stated, abs=0.002)


#: (name, what it is, data, stated accuracy) of the rows `| NAME.pt | WHAT | DATA | ACCURACY | ...` of README.md.
ROWS = re.findall(r"^\| `(\w+)\.pt` \| ([^|]+?) \| ([\w-]+) \| ([\d.]+) \|", (FOLDER / "README.md").read_text(), re.M)


def test_every_checkpoint_is_in_the_readme():
    stated = {name for name, *_ in ROWS} | {"bf2_shapes", "cora_gcn_dq8"}
    assert stated == {path.stem for path in FOLDER.glob("*.pt")}


@pytest.mark.parametrize(("name", "what", "data", "stated"), ROWS)
def test_small_with_a_card_and_of_the_stated_kind(name, what, data, stated):
    assert (FOLDER / f"{name}.pt").stat().st_size < 1_000_000
    model = load_checkpoint(FOLDER / f"{name}.pt")
    words = {"baseline": "dgcnn"}.get(what.split()[0].lower(), what.split()[0].lower())
    assert model.architecture == words
    assert model.config.get("stage", 0) == (int(what.split("stage ")[1]) if "stage " in what else 0)
    card = (FOLDER / f"{name}.md").read_text()
    assert "Licence of the data" in card
    assert "Seeds" in card
    if data in ("cora", "citeseer"):
        with torch.no_grad():
            assert model(**load_example(FOLDER / f"{name}.pt")).shape[1] == model.config["classes"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("data", sorted({row[2] for row in ROWS}))
def test_accuracies_are_the_stated_ones(data):
    nodes = load_nodes(data, DATA) if data in ("cora", "citeseer") else None
    clouds = None if nodes is not None else load_clouds(DATA / data, 32 if "voxels" in data else 64)
    for name, _, own, stated in ROWS:
        if own != data:
            continue
        model = load_checkpoint(FOLDER / f"{name}.pt")
        if nodes is not None:
            with torch.no_grad():
                measured = score(model(nodes.x, nodes.edge_index), nodes, nodes.test)
        else:
            assert clouds.test[0].shape[1] == model.config["num_points"]
            measured = accuracy(model, *map(torch.from_numpy, clouds.test))
        assert 100 * measured == pytest.approx(float(stated), abs=0.3), name  # rounding turns near-ties per machine
