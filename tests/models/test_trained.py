"""The checkpoint that ships: small, of the stated kind, and as accurate as its README says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from bgnn.models.cascade import accuracy
from bgnn.models.checkpoint import load_checkpoint
from bgnn.models.dq.data import load_citation
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
