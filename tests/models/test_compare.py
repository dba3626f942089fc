"""Accuracy of a network beside its file's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bgnn.models import compare
from bgnn.models.checkpoint import build_model
from bgnn.models.shapes import make_clouds


def test_what_cannot_be_read_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        compare.main([str(tmp_path / "m.pt"), "--target", "lce-arm64"])
    assert error.value.code == 1
    assert capsys.readouterr().err.endswith("m.pt: no such file\n")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sage_cora", [], "is a sage network without --nodes"),
        ("bf2_shapes", ["--nodes", "cora"], "is a bf2 network with --nodes, which is of node networks"),
    ],
)
def test_data_of_another_kind_is_one_line(name, options, said, capsys):
    model = Path(compare.__file__).parent / "trained" / f"{name}.pt"
    with pytest.raises(SystemExit) as error:
        compare.main([str(model), "--target", "onnx-x86", *options])
    assert error.value.code == 1
    assert capsys.readouterr().err.endswith(f"{said}\n")


@pytest.mark.slow
def test_predictions_of_the_file_are_counted_against_the_networks(monkeypatch):
    torch.manual_seed(0)
    sizes = {"num_points": 16, "k": 3, "embedding": 8, "channels": [8, 8, 8, 8], "mlp": [8, 8], "classes": 3}
    model = build_model("dgcnn", **sizes).eval()
    points, labels = make_clouds(6, 16, 0, classes=3)
    own, file, differ = compare.compare_clouds(model, points, labels, "tflite-arm64")
    assert (own, differ) == (file, 0)
    real = compare.runner
    monkeypatch.setattr(compare, "runner", lambda *given: lambda cloud: -real(*given)(cloud))
    assert compare.compare_clouds(model, points, labels, "tflite-arm64")[2] == 6
