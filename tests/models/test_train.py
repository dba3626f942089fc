"""Training: the command line on a tiny problem."""

from __future__ import annotations

import sys

import pytest
import torch
from cloud_files import write_h5

from bgnn.models import train
from bgnn.models.checkpoint import load_checkpoint


def test_the_cascade_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "model.pt"
    arguments = "dgcnn --arch bf1 --knn hamming --points 16 --k 3 --channels 8 8 8 8 --embedding 8 --mlp 8 8"
    arguments += f" --clouds 64 --batch 16 --epochs 1 1 1 2 --compact --out {out}"
    train.main(arguments.split())
    printed = capsys.readouterr().out
    for line in (
        "dgcnn epoch 1/1",
        "bf1 stage 1 epoch 1/1",
        "bf1 stage 2 epoch 1/1",
        "bf1 stage 3 epoch 2/2",
    ):
        assert line in printed
    model = load_checkpoint(out)
    assert (model.architecture, model.config["stage"], model.config["knn"]) == ("bf1", 3, "hamming")
    first = {key: value.clone() for key, value in model.state_dict().items()}
    train.main(arguments.split())
    for key, value in load_checkpoint(out).state_dict().items():
        assert torch.equal(value, first[key]), key  # the same seed, the same weights


def test_training_on_h5_files(tmp_path, capsys):
    write_h5(tmp_path, 48, 20, 3)
    arguments = "dgcnn --arch dgcnn --points 16 --k 3 --channels 8 8 8 8 --embedding 8 --mlp 8 8 --batch 16"
    arguments += f" --epochs 2 0 0 0 --train {tmp_path}/train.h5 --test {tmp_path}/test.h5 --out {tmp_path}/m.pt"
    train.main(arguments.split())
    assert load_checkpoint(tmp_path / "m.pt").config["classes"] == 3
    assert "dgcnn epoch 2/2" in capsys.readouterr().out


def test_bad_settings_are_one_line_and_exit_with_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(f"dgcnn --arch rf --knn hamming --points 16 --k 3 --epochs 0 0 0 1 --out {tmp_path}/m.pt".split())
    assert error.value.code == 1
    assert capsys.readouterr().err.endswith("set knn to 'l2'\n")


def test_a_configuration_of_two_seeds_and_its_card(tmp_path, capsys):
    write_h5(tmp_path, 24, 16, 3)
    config = tmp_path / "mine.json"
    config.write_text('{"version": 1, "kind": "clouds", "arch": "bf1", "distillation": "none", "paper": "61.26 %"}')
    arguments = f"dgcnn --config {config} --data {tmp_path} --folder {tmp_path}/run --seeds 0 1 --licence CC0"
    arguments += " --set points=16 k=3 channels=[8,8,8,8] embedding=8 mlp=[8,8] batch=8 epochs=[1,1,1,1]"
    train.main(arguments.split())
    card = (tmp_path / "run/card.md").read_text()
    assert "3 classes, 16 points; accuracies in percent on its 24 test clouds" in card
    assert "the paper's figure: 61.26 %" in card
    assert "Licence of the data: CC0" in card
    assert "Seeds: 0, 1" in card
    row = next(line for line in card.splitlines() if line.startswith("| bf1 stage 3 | "))
    assert " ± " in row
    assert row in capsys.readouterr().out
    for seed in (0, 1):
        assert load_checkpoint(tmp_path / f"run/seed{seed}/model.pt").config["classes"] == 3
    train.main(arguments.split())  # what is done already is not done again
    assert "bf1 stage 3 is trained already" in capsys.readouterr().out


def test_tensorboard_is_asked_for_or_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    config = tmp_path / "c.json"
    config.write_text('{"version": 1, "kind": "clouds", "arch": "dgcnn", "distillation": "none", "stage": 0}')
    with pytest.raises(SystemExit) as error:
        train.main(f"dgcnn --config {config} --folder {tmp_path}/run --tensorboard".split())
    assert error.value.code == 1
    assert capsys.readouterr().err.endswith('--tensorboard needs the package: pip install "bgnn-convert[train]"\n')
    assert not (tmp_path / "run").exists()  # it is said before anything is trained


@pytest.mark.parametrize(
    "arguments",
    [
        "dgcnn --config c.json --arch bf2",
        "dgcnn --config c.json --points 64",
        "dgcnn --config c.json --seeds 1 1",
        "dgcnn --arch bf2 --out m.pt --data x",
        "dgcnn --out m.pt",
        "dgcnn --arch bf2 --out nowhere/m.pt",
        "dgcnn --arch bf2 --out m.pt --train a.h5",
        "dgcnn --arch bf2",
        "dgcnn --arch bf4 --out m.pt",
        "",
    ],
)
def test_wrong_arguments_exit_with_2(arguments):
    with pytest.raises(SystemExit) as error:
        train.main(arguments.split())
    assert error.value.code == 2
