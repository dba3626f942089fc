"""Stages, schedules, and going on after a break."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from bgnn.models import cascade
from bgnn.models.cascade import train_cascade
from bgnn.models.checkpoint import build_model, load_checkpoint
from bgnn.models.clouds import CloudData
from bgnn.models.fit import rate_at
from bgnn.models.optim import clip_and_center
from bgnn.models.recipes import CloudRecipe
from bgnn.models.shapes import SHAPES, make_clouds

SMALL = {
    "num_points": 32,
    "k": 4,
    "embedding": 32,
    "channels": [16, 16, 16, 16],
    "mlp": [16, 16],
    "dropout": 0.0,
}


@pytest.mark.parametrize("architecture", ["bf2", "rf"])
def test_clip_and_center_touches_binary_weights_alone(architecture):
    torch.manual_seed(0)
    model = build_model(architecture, **SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0, 2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clip_and_center(model)
    for name, value in model.state_dict().items():
        if name.endswith("weights_real") and "linear3" not in name:
            want = (before[name] - before[name].mean(1, keepdim=True)).clamp(-1, 1)
            torch.testing.assert_close(value, want)
        else:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("architecture", ["dgcnn", "rf", "bf1", "bf2"])
def test_steps_reduce_the_loss(architecture):
    """Spheres and tori, one batch, sixty steps: the loss falls by half, the latent weights stay in range."""
    torch.manual_seed(0)
    points, labels = map(torch.from_numpy, make_clouds(256, 32, seed=0))
    chosen = (labels == SHAPES.index("sphere")) | (labels == SHAPES.index("torus"))
    points, labels = points[chosen], (labels[chosen] > 0).long()
    model = build_model(architecture, classes=2, **SMALL)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = [cascade.train_step(model, optimizer, points, labels, None)[0] for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    for name, value in model.state_dict().items():
        if name.endswith("weights_real") and "linear3" not in name:
            assert value.abs().max() <= 1


def test_settled_batch_norms_hold_the_mean_statistics_of_the_batches():
    torch.manual_seed(0)
    model = build_model("bf2", **SMALL)
    batches = [torch.randn(4, 32, 3) for _ in range(3)]
    seen: list[torch.Tensor] = []
    handle = model.bn1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    cascade.settle_batch_norm(model, batches)
    handle.remove()
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(model.bn1.running_mean, mean)
    torch.testing.assert_close(model.bn1.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    assert not any(module.training for module in model.modules())
    assert model.bn1.momentum == 0.1


def test_accuracy_counts_in_eval_mode():
    class Fixed(torch.nn.Module):
        def forward(self, points):
            assert not self.training
            return points[:, 0]

    points = torch.eye(3).repeat(40, 1)[:, None]
    labels = torch.tensor([0, 1, 0]).repeat(40)
    assert cascade.accuracy(Fixed(), points, labels) == pytest.approx(2 / 3)


def test_the_papers_rates():
    """Section 5.2: halved at 50 % and 75 % of the epochs; in stage 3 every 50 epochs."""
    shares = [rate_at("shares", 1.0, epoch, 250, 0, 10, 50) for epoch in (0, 124, 125, 187, 188, 249)]
    assert shares == [1, 1, 0.5, 0.5, 0.25, 0.25]
    every = [rate_at("every", 1.0, epoch, 350, 0, 10, 50) for epoch in (0, 49, 50, 99, 100, 349)]
    assert every == [1, 1, 0.5, 0.5, 0.25, 0.5**6]


DATA = CloudData("solids", make_clouds(40, 16, 0, classes=4), make_clouds(20, 16, 1, classes=4), ("a", "b", "c", "d"))
TINY = {"points": 16, "k": 3, "channels": (8, 8, 8, 8), "embedding": 8, "mlp": (8, 8), "batch": 8}


def tiny(**settings):
    return CloudRecipe(**TINY, epochs=(2, 1, 1, 2), **settings)


def test_the_cascade_hands_on_weights_and_teachers(tmp_path, monkeypatch):
    """Stage 2 and 3 start from the weights before them, stage 1 does not; every stage but the first has a teacher."""
    begun = {}
    real = cascade.train_stage

    def watched(model, name, *args, **kwargs):
        state = {key: value.clone() for key, value in model.state_dict().items()}
        begun[kwargs["stage"]] = (state, kwargs["teacher"], kwargs["lsp"], kwargs["rate"], kwargs["decay"])
        real(model, name, *args, **kwargs)

    monkeypatch.setattr(cascade, "train_stage", watched)
    train_cascade(tiny(arch="bf1", knn="hamming", lsp="hamming"), DATA, tmp_path, 3)
    assert [begun[stage][3:] for stage in range(4)] == [(1e-3, 1e-5), (1e-3, 1e-5), (2.5e-4, 1e-5), (1e-3, 0)]
    assert begun[0][1] is None
    assert begun[1][1].architecture == "dgcnn"
    assert [begun[stage][2][:2] for stage in (1, 2, 3)] == [("rbf", "rbf"), ("hamming", "rbf"), ("hamming", "hamming")]
    for stage in (2, 3):
        before = load_checkpoint(tmp_path / f"stage{stage - 1}.pt").state_dict()
        assert all(torch.equal(value, before[key]) for key, value in begun[stage][0].items())
    assert load_checkpoint(tmp_path / "model.pt").config["stage"] == 3
    history = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert [entry["stage"] for entry in history] == ["dgcnn"] * 2 + [f"bf1 stage {i}" for i in (1, 2, 3, 3)]
    assert (tmp_path / "curves.svg").read_text().count("<polyline") == 3


class Killed(BaseException):
    """As SIGKILL: nothing of ours runs after it."""


@pytest.mark.parametrize("steps", [3, 9, 16])  # in the first stage, at the end of an epoch, in the second stage
def test_a_killed_run_goes_on_with_the_same_result(tmp_path, monkeypatch, steps):
    recipe = tiny(arch="bf2", distillation="direct", dropout=0.5)
    whole = train_cascade(recipe, DATA, tmp_path / "whole", 0, save_every=2)
    real, count = cascade.train_step, 0

    def killed(*args):
        nonlocal count
        count += 1
        if count > steps:
            raise Killed
        return real(*args)

    monkeypatch.setattr(cascade, "train_step", killed)
    with pytest.raises(Killed):
        train_cascade(recipe, DATA, tmp_path / "broken", 0, save_every=2)
    torch.manual_seed(99)  # of another process
    count = -1000
    assert train_cascade(recipe, DATA, tmp_path / "broken", 0, save_every=2) == whole
    want = load_checkpoint(tmp_path / "whole/stage3.pt").state_dict()
    for key, value in load_checkpoint(tmp_path / "broken/stage3.pt").state_dict().items():
        assert torch.equal(value, want[key]), key
    assert (tmp_path / "broken/curves.jsonl").read_text() == (tmp_path / "whole/curves.jsonl").read_text()
    assert 1000 + count < 20  # what was done was not done again: 4 epochs of 5 steps


def test_a_folder_of_another_run_and_a_damaged_state_are_refused(tmp_path):
    recipe = tiny(arch="bf1", distillation="none")
    train_cascade(recipe, DATA, tmp_path / "a", 0)
    with pytest.raises(ValueError, match="another configuration or other data"):
        train_cascade(recipe, DATA, tmp_path / "a", 1)
    (tmp_path / "a/state.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"state.pt: damaged; remove it"):
        train_cascade(recipe, DATA, tmp_path / "a", 0)


def test_a_loss_that_is_no_number_is_said_with_its_place(tmp_path):
    recipe = tiny(arch="dgcnn", distillation="none", stage=0, rate=(1e30, 0, 0, 0))
    with pytest.raises(ValueError, match=r"dgcnn, epoch 1, step \d: the loss is nan at rate 1e\+30; lower it\."):
        train_cascade(recipe, DATA, tmp_path, 0)


def test_another_baseline_takes_the_place_of_stage_0(tmp_path):
    train_cascade(tiny(arch="dgcnn", distillation="none", stage=0), DATA, tmp_path / "base", 0)
    recipe = tiny(arch="rf", distillation="direct")
    done = train_cascade(recipe, DATA, tmp_path / "rf", 0, teacher=tmp_path / "base/model.pt")
    assert list(done) == ["dgcnn", "rf stage 3"]
    assert not (tmp_path / "rf/stage0.pt").exists()
    shutil.rmtree(tmp_path / "rf")
    with pytest.raises(ValueError, match="a dgcnn network, which teaches none of the stages \\[3\\] of rf"):
        train_cascade(tiny(arch="rf", distillation="none"), DATA, tmp_path, 0, teacher=tmp_path / "base/model.pt")
    wide = CloudRecipe(**TINY | {"embedding": 16}, arch="rf")
    with pytest.raises(ValueError, match="embedding is 8, and 16 here"):
        train_cascade(wide, DATA, tmp_path / "rf", 0, teacher=tmp_path / "base/model.pt")


def test_a_network_of_stage_2_takes_the_place_of_what_is_before(tmp_path):
    """Stage 3 from it is that of the whole cascade, bit for bit."""
    whole = train_cascade(tiny(arch="bf1", knn="hamming"), DATA, tmp_path / "whole", 0)
    recipe = tiny(arch="bf1", knn="hamming")
    done = train_cascade(recipe, DATA, tmp_path / "last", 0, teacher=tmp_path / "whole/stage2.pt")
    assert done == {name: whole[name] for name in ("bf1 stage 2", "bf1 stage 3")}
    want = load_checkpoint(tmp_path / "whole/stage3.pt").state_dict()
    for key, value in load_checkpoint(tmp_path / "last/stage3.pt").state_dict().items():
        assert torch.equal(value, want[key]), key
    assert not (tmp_path / "last/stage2.pt").exists()
    other = tiny(arch="bf1", knn="l2")
    with pytest.raises(ValueError, match="knn is hamming, and l2 here"):
        train_cascade(other, DATA, tmp_path / "other", 0, teacher=tmp_path / "whole/stage2.pt")
    with pytest.raises(ValueError, match="a bf1 network of stage 2, which teaches none of the stages"):
        train_cascade(
            tiny(arch="bf2", knn="hamming"), DATA, tmp_path / "other", 0, teacher=tmp_path / "whole/stage2.pt"
        )


def test_knobs_of_training_change_it_and_not_what_is_deployed(tmp_path):
    """The gradient's surrogate, and the rate of latent weights, reach the training; networks stay of the same form."""
    plain = tiny(arch="bf1", knn="hamming", distillation="none")
    train_cascade(plain, DATA, tmp_path / "plain", 0)
    want = load_checkpoint(tmp_path / "plain/stage3.pt")
    for name, value in (("surrogate", "polynomial"), ("surrogate", "tanh"), ("latent_rate", 9.0)):
        own = tmp_path / f"{name}-{value}"
        train_cascade(dataclasses.replace(plain, **{name: value}), DATA, own, 0)
        model = load_checkpoint(own / "stage3.pt")
        assert model.config == want.config
        before, after = want.state_dict()["conv2.0.weights_real"], model.state_dict()["conv2.0.weights_real"]
        assert not torch.equal(before, after)
    torch.manual_seed(3)  # as `train_cascade`: seed 0, stage 3
    fresh = build_model("bf1", classes=4, stage=3, **plain.sizes, **plain.knobs)
    train_cascade(dataclasses.replace(plain, latent_rate=0.0), DATA, tmp_path / "still", 0)
    still = load_checkpoint(tmp_path / "still/stage3.pt").state_dict()
    clip_and_center(fresh)
    latent = fresh.state_dict()["conv2.0.weights_real"]
    torch.testing.assert_close(still["conv2.0.weights_real"], latent)
    assert not torch.equal(still["linear3.core_op.weights_real"], fresh.state_dict()["linear3.core_op.weights_real"])


def test_still_scales_stay_at_1_and_a_batch_norm_makes_them_idle(tmp_path):
    plain = tiny(arch="bf1", knn="hamming", distillation="none")
    train_cascade(dataclasses.replace(plain, still_scales=True), DATA, tmp_path / "still", 0)
    train_cascade(plain, DATA, tmp_path / "plain", 0)
    still, moved = (load_checkpoint(tmp_path / name / "stage3.pt") for name in ("still", "plain"))
    assert len(still.scales_before_norms()) == 5
    for scale in still.scales_before_norms():
        assert all((factor == 1).all() for factor in scale.parameters())
    assert not any((factor == 1).all() for scale in moved.scales_before_norms() for factor in scale.parameters())
    assert (still.linear1.rescale.scale_a != 1).any()  # a sign follows that one, and no norm of its own layer
    fresh = build_model("bf1", classes=4, stage=3, **plain.sizes | {"dropout": 0.0}, **plain.knobs)
    points = torch.from_numpy(DATA.train[0])
    before = fresh(points)  # in training mode
    with torch.no_grad():
        for scale in fresh.scales_before_norms():
            for factor in scale.parameters():
                factor.mul_(3)
    assert (fresh(points).argmax(1) == before.argmax(1)).float().mean() > 0.9
