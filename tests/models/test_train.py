"""Training: latent weights, distillation, and the command line on a tiny problem."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bgnn.models import train
from bgnn.models.checkpoint import build_model, load_checkpoint
from bgnn.models.optim import clip_and_center
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


def test_distillation_loss_is_nothing_on_equal_logits():
    logits = torch.randn(4, 7)
    assert train.distillation_loss(logits, logits).item() == pytest.approx(0, abs=1e-6)
    softened = torch.softmax(logits / 3, 1)
    other = torch.randn(4, 7)
    by_hand = 9 * (softened * (softened.log() - torch.log_softmax(other / 3, 1))).sum(1).mean()
    torch.testing.assert_close(train.distillation_loss(other, logits), by_hand)


@pytest.mark.parametrize("architecture", ["dgcnn", "rf", "bf1", "bf2"])
def test_steps_reduce_the_loss(architecture):
    """Spheres and tori, one batch, sixty steps: the loss falls by half, the latent weights stay in range."""
    torch.manual_seed(0)
    points, labels = map(torch.from_numpy, make_clouds(256, 32, seed=0))
    chosen = (labels == SHAPES.index("sphere")) | (labels == SHAPES.index("torus"))
    points, labels = points[chosen], (labels[chosen] > 0).long()
    model = build_model(architecture, classes=2, **SMALL)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = [train.train_step(model, optimizer, points, labels, None) for _ in range(60)]
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
    train.settle_batch_norm(model, batches)
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
    assert train.accuracy(Fixed(), points, labels) == pytest.approx(2 / 3)


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
    h5py = pytest.importorskip("h5py")
    points, labels = make_clouds(48, 20, seed=0, classes=3)
    for name in ("train", "test"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"], file["label"] = points, labels
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


@pytest.mark.parametrize(
    "arguments",
    [
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
