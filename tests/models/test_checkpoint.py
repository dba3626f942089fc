"""model.pt: round trips, compact files, bare state_dicts, and files that are not what they say."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from bgnn.models.checkpoint import build_model, load_checkpoint, load_example, load_state_dict, save_checkpoint
from bgnn.models.dgcnn import ARCHITECTURES

SMALL = {
    "classes": 5,
    "num_points": 20,
    "k": 4,
    "embedding": 64,
    "channels": [32, 32, 32, 32],
    "mlp": [32, 16],
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("compact", [False, True])
def test_round_trip_computes_the_same(architecture, compact, tmp_path):
    torch.manual_seed(0)
    model = build_model(architecture, **SMALL).eval()
    if architecture != "dgcnn":
        model.conv2.get_submodule("core_op" if architecture == "rf" else "0").weights_real.data[0] = -0.0
    points = torch.randn(2, 20, 3)
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, compact=compact)
    loaded = load_checkpoint(path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.config == model.config
    assert all(t.dtype in (torch.float32, torch.int64) for t in loaded.state_dict().values())
    with torch.no_grad():
        assert torch.equal(loaded(points), model(points))
    assert os.listdir(tmp_path) == ["model.pt"]


def test_the_file_is_a_plain_dict(tmp_path):
    save_checkpoint(tmp_path / "m.pt", build_model("bf2", **SMALL))
    whole = torch.load(tmp_path / "m.pt", weights_only=True)
    assert set(whole) == {"format_version", "architecture", "config", "state_dict"}
    assert (whole["format_version"], whole["architecture"]) == (1, "bf2")
    assert whole["config"]["channels"] == [32, 32, 32, 32]
    assert type(whole["state_dict"]["conv1.0.weights_real"]) is torch.Tensor


def test_compact_files_are_smaller_and_keep_real_weights(tmp_path):
    stage2, stage3 = (build_model("bf2", **SMALL, stage=stage) for stage in (2, 3))
    save_checkpoint(tmp_path / "full.pt", stage3)
    save_checkpoint(tmp_path / "compact.pt", stage3, compact=True)
    assert os.path.getsize(tmp_path / "compact.pt") < 0.6 * os.path.getsize(tmp_path / "full.pt")
    save_checkpoint(tmp_path / "real.pt", stage2, compact=True)
    loaded = load_checkpoint(tmp_path / "real.pt")
    for key, value in stage2.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_bare_state_dict_with_a_data_parallel_prefix(tmp_path):
    torch.manual_seed(0)
    model = build_model("bf1", **SMALL, knn="hamming").eval()
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, tmp_path / "sd.pt")
    loaded = load_state_dict(tmp_path / "sd.pt", "bf1", **SMALL, knn="hamming")
    points = torch.randn(2, 20, 3)
    with torch.no_grad():
        assert torch.equal(loaded(points), model(points))
    with pytest.raises(ValueError, match=r"sd.pt: 'conv1.0.weights_real' is \[32, 6, 1, 1\].*has \[64, 6, 1, 1\]"):
        load_state_dict(tmp_path / "sd.pt", "bf1")
    with pytest.raises(ValueError, match=r"no tensor 'conv1.center.weight', which rf"):
        load_state_dict(tmp_path / "sd.pt", "rf", **SMALL)
    with pytest.raises(ValueError, match=r"tensor 'conv1.2.weight' is not part of bf1"):
        load_state_dict(tmp_path / "sd.pt", "bf1", **SMALL, activation="relu")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (self.path,))

    def __init__(self, path):
        self.path = path


def test_a_pickle_bomb_does_not_go_off(tmp_path):
    torch.save({"format_version": 1, "architecture": Bomb(str(tmp_path / "boom"))}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb.pt: not a PyTorch file that loads with weights_only=True"):
        load_checkpoint(tmp_path / "bomb.pt")
    assert not (tmp_path / "boom").exists()


def spoilt(**changes):
    whole = {"format_version": 1, "architecture": "bf2", "config": dict(SMALL), "state_dict": {}}
    return {key: value for key, value in (whole | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("just text", "not a PyTorch file"),
        ([1, 2], "not a model.pt of this package"),
        ({"conv1.weight": torch.zeros(1)}, "a bare state_dict needs its architecture"),
        (spoilt(format_version=2), "format_version 2; this version reads 1"),
        (spoilt(architecture=None), "'architecture' is missing"),
        (spoilt(architecture="bf3"), "unknown architecture 'bf3'"),
        (spoilt(config={"colour": 3}), "bf2 has no setting 'colour'"),
        (spoilt(config=[1]), "'config' is missing or not a dict"),
        (spoilt(config=SMALL | {"channels": ["a", 1, 1, 1]}), "channels is 'a'; it must be a positive"),
        (spoilt(), "no tensor 'linear1|no tensor 'conv1"),
    ],
)
def test_bad_files_are_one_clear_line(content, message, tmp_path):
    path = tmp_path / "m.pt"
    if isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_an_example_graph_travels_along(tmp_path):
    x = torch.zeros(9, 50)
    x[3, 7], x[8, 49] = -0.25, 3.0
    example = {"x": x, "edge_index": torch.tensor([[0, 8], [3, 1]]), "weights": torch.tensor([0.0, 1.5])}
    save_checkpoint(tmp_path / "m.pt", build_model("bf2", **SMALL), example=example)
    found = load_example(tmp_path / "m.pt")
    assert list(found) == list(example)
    for name, value in example.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype, name
    assert load_checkpoint(tmp_path / "m.pt").config["channels"] == [32, 32, 32, 32]
    save_checkpoint(tmp_path / "m.pt", build_model("bf2", **SMALL))
    assert load_example(tmp_path / "m.pt") == {}


@pytest.mark.parametrize(
    "example",
    [
        [1],
        {"x": 3},
        {"x": {"shape": [2, 2], "places": torch.tensor([4]), "values": torch.ones(1)}},
        {"x": {"shape": [2, 2], "places": torch.tensor([0, 1]), "values": torch.ones(1)}},
        {"x": {"shape": [2**20, 2**20], "places": torch.tensor([0]), "values": torch.ones(1)}},
    ],
)
def test_a_damaged_example_is_one_clear_line(example, tmp_path):
    torch.save(spoilt(example=example), tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m\.pt: the example in it is damaged; give another with --input FILE\.npz"):
        load_example(tmp_path / "m.pt")


def test_missing_files_and_foreign_models(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file"):
        load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match=r"Linear is not a model of bgnn\.models"):
        save_checkpoint(tmp_path / "m.pt", nn.Linear(2, 2))
    with pytest.raises(OSError, match="no such directory"):
        save_checkpoint(tmp_path / "nowhere" / "m.pt", build_model("bf2", **SMALL))
    assert os.listdir(tmp_path) == []
