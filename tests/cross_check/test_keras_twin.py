"""Our files against the paper's own route (Keras, larq, LCE's converter) on the same weights and clouds.

Both files run on LCE's interpreter. The clouds lie on a grid of 1/256, where every squared distance and every
sum of the first layer is exact in float32: both routes then see the same neighbours and ties, and everything
binary must agree bit for bit. Only the logits pass through float arithmetic whose order differs (a mean over
the points, BatchNorms folded or not).
"""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from lce import needs_lce
from torch import Tensor, nn

from bgnn.converter.api import convert
from bgnn.models.dgcnn import ARCHITECTURES
from bgnn.runtime_bench.bench.lce import LceInterpreter

HERE = Path(__file__).parent
KERAS_PYTHON = Path(os.environ.get("BGNN_KERAS_PYTHON", HERE.parent.parent / ".venv-keras" / "bin" / "python"))
pytestmark = [
    needs_lce,
    pytest.mark.skipif(not KERAS_PYTHON.is_file(), reason="`make cross-check` makes an environment with TensorFlow"),
]

# Of a logit, relative to the largest one: float32 sums over up to 1024 points in another order.
LOGIT_TOLERANCE = 1e-4


def random_model(arch: str, knn: str, points: int, k: int) -> nn.Module:
    """Full-size, stage 3; scales and slopes of both signs, BatchNorm statistics of random clouds."""
    torch.manual_seed(0)
    model = ARCHITECTURES[arch](num_points=points, k=k, knn=knn)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("weights_real"):
                parameter.copy_(torch.randn(parameter.shape))
        model.train()
        for _ in range(2):
            model(torch.rand(2, points, 3) * 2 - 1)
    return model.eval()


def clouds(batch: int, points: int) -> Tensor:
    """Random points of the unit cube, f32 `[batch, points, 3]`, multiples of 1/256."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-256, 257, (batch, points, 3), generator=generator) / 256


def features_only(model: nn.Module) -> nn.Module:
    """The model cut off behind its four EdgeConv layers: their binary features, `[B, sum of channels, N]`."""
    model = copy.deepcopy(model)
    model.conv5 = model.bn5 = nn.Identity()
    model._pool = model._classify = lambda x: x
    return model


def differing_by_layer(a: np.ndarray, b: np.ndarray, widths: list[int]) -> list[int]:
    """How many of the binary features `[B, N, sum of widths]` differ, layer by layer."""
    return [int(layer.sum()) for layer in np.split(a != b, np.cumsum(widths)[:-1], axis=2)]


def keras_twin(model: nn.Module, folder: Path, *settings: str | int) -> bytes:
    """The file that LCE's converter makes of the model's Keras twin, in the Python that has TensorFlow."""
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    command = [KERAS_PYTHON, HERE / "keras_twin.py", folder / "weights.npz", folder / "theirs.tflite", *settings]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return (folder / "theirs.tflite").read_bytes()


CASES = [
    ("bf2", "hamming", 2, 128, 10),
    ("bf2", "l2", 2, 100, 7),
    ("bf1", "hamming", 2, 128, 10),
    ("bf1", "l2", 2, 100, 7),
    pytest.param("bf2", "hamming", 8, 1024, 20, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("arch", "knn", "batch", "points", "k"), CASES)
def test_our_file_agrees_with_the_papers_route(
    arch: str, knn: str, batch: int, points: int, k: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, x = random_model(arch, knn, points, k), clouds(batch, points)
    theirs = keras_twin(model, tmp_path, arch, knn, batch, points, k)
    their_logits, their_features = sorted(LceInterpreter(theirs).run(x.numpy()), key=np.ndim)

    # Each layer's signs are both +1 and -1, or agreement would say nothing.
    widths = model.config["channels"]
    for layer in np.split(their_features, np.cumsum(widths)[:-1], axis=2):
        assert 0.05 < (layer > 0).mean() < 0.95

    path = tmp_path / "ours.tflite"
    sizes = {}
    for level in (0, 1):
        convert(features_only(model), (x,), target="lce-arm64", optimize=level, output=path)
        (ours,) = LceInterpreter(path.read_bytes()).run(x.numpy())
        differing = differing_by_layer(ours.transpose(0, 2, 1), their_features, widths)
        assert differing == [0, 0, 0, 0], f"-O{level}"

        convert(model, (x,), target="lce-arm64", optimize=level, output=path)
        (logits,) = LceInterpreter(path.read_bytes()).run(x.numpy())
        error = np.abs(logits - their_logits).max() / np.abs(their_logits).max()
        assert error <= LOGIT_TOLERANCE, f"-O{level}"
        sizes[f"-O{level}"] = path.stat().st_size
    with capsys.disabled():  # figures worth seeing when all agrees
        print(f"\n{arch}, {knn}: their file {len(theirs)} bytes, ours {sizes}")
