"""Checkpoints of the binary GNN paper's public code: by `--arch` with the hinted settings, and by `--model`.

Both must be the network itself. The state_dict shows neither flags nor defaults: what is asked for, and what the hint
says, is compared with the network on several clouds.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import published_dgcnn

from bgnn.converter.api import convert
from bgnn.converter.cli import _settings
from bgnn.converter.errors import UsageError
from bgnn.converter.load import LoadOptions, load
from bgnn.runtime_bench.runtime.tflite_runner import run_file

SIZES: dict[str, Any] = {"k": 5, "num_points": 28, "emb_dims": 40, "widths": (16, 16, 24, 32), "mlp": (24, 16),
                         "classes": 6}  # fmt: skip
STATED = {"num_points": 28, "embedding": 40, "channels": [16, 16, 24, 32], "mlp": [24, 16], "classes": 6}
UNSCALED = {"rescale_h": False, "rescale_w": False, "rescale_l": False}
TWO = "median"

# (name, stage, the public code's flags, what must be said beside the hint)
CASES: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    ("dgcnn", 3, {}, {}),
    ("rf", 3, {}, UNSCALED),
    ("rf", 3, {"rescale_H": True, "rescale_W": True, "rescale_L": True}, {}),
    ("rf", 3, {"rescale_W": True}, {"rescale_h": False, "rescale_l": False}),
    ("rf", 2, {}, UNSCALED),
    ("rf", 1, {}, UNSCALED),
    ("rf", 3, {"pseudo_quantize": True}, {**UNSCALED, "first_inputs": "tanh"}),
    ("rf", 3, {"prelu_in_blocks": False}, {**UNSCALED, "activation": "none"}),
    ("rf", 3, {"ll_quantize_inputs": True, "ll_quantize_weights": True},
     {**UNSCALED, "last_inputs": "quantised", "last_weights": "sign"}),
    ("rf", 3, {"ll_pseudo_quantize": True}, {**UNSCALED, "last_inputs": "tanh"}),
    ("bf1", 3, {}, {}),
    ("bf1", 3, {"knn_op": "hamming"}, {"knn": "hamming"}),
    ("bf1", 3, {"knn_op": "l1", "prelu_in_blocks": False}, {"knn": "l1", "mlp_activation": "none"}),
    ("bf1", 1, {"knn_op": "hamming"}, {"knn": "hamming"}),
    ("bf1", 1, {"knn_op": "l1"}, {"knn": "l1"}),
    ("bf2", 3, {"knn_op": "hamming"}, {"knn": "hamming"}),
    ("bf2", 2, {}, {}),
    ("bf2", 1, {}, {}),
    ("bf2", 3, {"rescale_H": True, "conv_prelu": False}, {"rescale_h": True, "activation": "none"}),
    ("bf1_bal", 3, {}, {}),
    ("bf1_bal", 3, {"edge_balance_op": TWO, "edge_balance_axis": 2}, {"edge_balance": TWO, "edge_balance_axis": 2}),
    ("bf1_bal", 3, {"edge_balance_op": "mean"}, {"edge_balance": "first_mean"}),
    ("bf1_bal", 3, {"global_balance_op": TWO, "global_balance_axis": 1},
     {"global_balance": TWO, "global_balance_axis": 1}),
    ("bf1_bal", 3, {"global_balance_op": "mean"}, {"global_balance": "first_mean"}),
]  # fmt: skip
IDS = ["-".join([name, f"stage{stage}", *flags]) for name, stage, flags, _ in CASES]


@pytest.fixture(autouse=True)
def lowest_index_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """topk leaves open which of equally near points it takes; the lowest index is this project's rule."""
    monkeypatch.setattr(
        published_dgcnn, "closest", lambda score, k: score.sort(dim=-1, descending=True, stable=True)[1][..., :k]
    )


def hinted(path: Path, arch: str, stated: dict[str, Any]) -> dict[str, Any]:
    """The settings with those that are asked for, as the refusal hints them."""
    with pytest.raises(UsageError) as refused:
        load(path, LoadOptions(arch=arch, settings=stated))
    assert refused.value.exit_code == 2
    said = re.search(r"the paper's authors' code has --set ([^;]+)", str(refused.value))
    assert said is not None, refused.value
    return {**_settings(said[1].split()), **stated}


def by_arch(path: Path, name: str, stage: int, said: dict[str, Any]) -> Any:
    stage_said = {} if name == "dgcnn" else {"stage": stage}
    settings = hinted(path, name, {**STATED, "k": 5, **stage_said, **said})
    return load(path, LoadOptions(arch=name, settings=settings)).model


def clouds(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 28, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("name", "stage", "flags", "said"), CASES, ids=IDS)
def test_the_hinted_settings_are_the_network(
    name: str, stage: int, flags: dict[str, Any], said: dict[str, Any], tmp_path: Path
) -> None:
    net = published_dgcnn.make(name, stage, **SIZES, **flags)
    torch.save({f"module.{key}": value for key, value in net.state_dict().items()}, tmp_path / "model.t7")
    ours = by_arch(tmp_path / "model.t7", name, stage, said)
    points = clouds(6)
    with torch.no_grad():
        found, (expected, _) = ours(points), net(points.transpose(1, 2).contiguous())
    near = (found - expected).abs().amax(1) < 1e-3 * expected.abs().max()
    assert near.sum() >= 5, (found - expected).abs().amax(1)  # one cloud may have a sign that rounding turns


@pytest.mark.parametrize("name", ["dgcnn", "rf", "bf1", "bf2", "bf1_bal"])
def test_every_setting_that_keys_do_not_show_is_asked_for(name: str, tmp_path: Path) -> None:
    net = published_dgcnn.make(name, **SIZES)
    torch.save(net.state_dict(), tmp_path / "model.t7")
    asked = hinted(tmp_path / "model.t7", name, {})
    assert asked["activation"] == ("leaky_relu" if name == "dgcnn" else "prelu")
    for missing in asked:
        stated = {**STATED, **{key: value for key, value in asked.items() if key != missing}}
        with pytest.raises(UsageError, match=missing):
            load(tmp_path / "model.t7", LoadOptions(arch=name, settings=stated))
    if name != "dgcnn":
        assert (asked["last_inputs"], asked["last_weights"], asked["sign_zero"]) == ("real", "real", "zero")


def test_the_authors_unscaled_rf_is_not_taken_for_a_scaled_one(tmp_path: Path) -> None:
    net = published_dgcnn.make("rf", **SIZES)
    torch.save(net.state_dict(), tmp_path / "model.t7")
    settings = hinted(tmp_path / "model.t7", "rf", {**STATED, "k": 5})
    with pytest.raises(UsageError, match=r"scale_b.*rescale_h"):
        load(tmp_path / "model.t7", LoadOptions(arch="rf", settings=settings))


CONVERTED = [
    pytest.param("rf", {}, UNSCALED, id="rf"),
    pytest.param("bf2", {"knn_op": "hamming"}, {"knn": "hamming"}, id="bf2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "flags", "said"), CONVERTED)
def test_both_files_are_the_network(name: str, flags: dict[str, Any], said: dict[str, Any], tmp_path: Path) -> None:
    net = published_dgcnn.make(name, 3, **SIZES, **flags)
    torch.save(net.state_dict(), tmp_path / "model.t7")
    ours = by_arch(tmp_path / "model.t7", name, 3, said)
    mine = convert(ours, (clouds(2),), target="lce-arm64")
    theirs = convert(net, (clouds(2).transpose(1, 2).contiguous(),), target="lce-arm64")
    for conversion in (mine, theirs):  # the first EdgeConv and the last layer have real inputs, in both
        became = [layer.became for layer in conversion.report.layers if not layer.was.startswith("k-NN")]
        assert sum(text.startswith("binary") for text in became) == 6, became
    for seed in range(1, 4):
        points = clouds(2, seed)
        with torch.no_grad():
            expected, _ = net(points.transpose(1, 2).contiguous())
        assert mine.model_bytes is not None
        assert theirs.model_bytes is not None
        (a,) = run_file(mine.model_bytes, [points.numpy()])
        (b,) = run_file(theirs.model_bytes, [points.transpose(1, 2).contiguous().numpy()])
        torch.testing.assert_close(torch.from_numpy(a), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(torch.from_numpy(b), expected, rtol=1e-3, atol=1e-3)
