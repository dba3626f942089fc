"""Every kind of model file: what comes back computes what was saved, and contradictions are refused."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bgnn.converter.errors import UsageError
from bgnn.converter.load import LoadOptions, load
from bgnn.models.checkpoint import build_model, save_checkpoint

SMALL: dict[str, Any] = {
    "classes": 5,
    "num_points": 24,
    "k": 4,
    "embedding": 16,
    "channels": [8, 8, 8, 8],
    "mlp": [8, 8],
}
UNSEEN: dict[str, Any] = {
    "mlp_activation": "prelu",
    "last_inputs": "quantised",
    "last_weights": "real",
    "sign_zero": "plus",
    "k": 4,
    "activation": "prelu",
    "stage": 3,
    "knn": "hamming",
    "edge_balance": "none",
    "global_balance": "none",
}
SETTINGS = {**SMALL, **UNSEEN}

USER_MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.scale = scale

    def forward(self, points):
        return self.linear(points).amax(1) * self.scale

def make_net(**settings):
    return Net(**settings)

def broken():
    raise RuntimeError("no data folder\\nsecond line")

not_a_model = dict
"""


@pytest.fixture
def bf2() -> nn.Module:
    torch.manual_seed(0)
    return build_model("bf2", **SETTINGS).eval()


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A user's folder with a module in it, as current folder."""
    (tmp_path / "user_models.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("user_models", None)
    import importlib

    importlib.invalidate_caches()
    sys.path.insert(0, str(tmp_path))
    yield importlib.import_module("user_models")
    sys.modules.pop("user_models", None)


def same(a: nn.Module | ExportedProgram, b: nn.Module, *inputs: Tensor) -> bool:
    with torch.no_grad():
        found = (a.module() if isinstance(a, ExportedProgram) else a)(*inputs)
        found = found[0] if isinstance(found, tuple) else found
        return torch.equal(found, b(*inputs))


def test_model_pt(tmp_path: Path, bf2: nn.Module) -> None:
    save_checkpoint(tmp_path / "cloud.pt", bf2)
    loaded = load(tmp_path / "cloud.pt")
    assert loaded.name == "cloud"
    assert loaded.example_inputs[0].shape == (1, 24, 3)
    assert isinstance(loaded.model, nn.Module)
    assert not loaded.model.training
    assert same(loaded.model, bf2, *loaded.example_inputs)


def test_batch_and_points(tmp_path: Path, bf2: nn.Module) -> None:
    save_checkpoint(tmp_path / "model.pt", bf2)
    loaded = load(tmp_path / "model.pt", LoadOptions(batch=3, points=50))
    assert loaded.example_inputs[0].shape == (3, 50, 3)
    with pytest.raises(UsageError, match="k = 4 neighbours among only 3 points"):
        load(tmp_path / "model.pt", LoadOptions(points=3))


def test_model_pt_with_given_inputs(tmp_path: Path, bf2: nn.Module) -> None:
    save_checkpoint(tmp_path / "model.pt", bf2)
    real = np.random.default_rng(0).normal(size=(2, 30, 3)).astype(np.float32)
    np.savez(tmp_path / "real.npz", points=real)
    loaded = load(tmp_path / "model.pt", LoadOptions(inputs=(str(tmp_path / "real.npz"),)))
    assert np.array_equal(loaded.example_inputs[0].numpy(), real)
    with pytest.raises(UsageError, match="leave out --batch"):
        load(tmp_path / "model.pt", LoadOptions(inputs=("points=2x30x3",), batch=2))


@pytest.mark.parametrize("wrap", ["", "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_bare_state_dict(tmp_path: Path, bf2: nn.Module, wrap: str, prefix: str) -> None:
    state: Any = {prefix + key: value for key, value in bf2.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "weights.pt")
    loaded = load(tmp_path / "weights.pt", LoadOptions(arch="bf2", settings=SETTINGS))
    assert same(loaded.model, bf2, *loaded.example_inputs)


def test_old_format_of_torch_save(tmp_path: Path, bf2: nn.Module) -> None:
    torch.save(bf2.state_dict(), tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    loaded = load(tmp_path / "weights.pth", LoadOptions(arch="bf2", settings=SETTINGS))
    assert same(loaded.model, bf2, *loaded.example_inputs)


def test_an_architecture_is_never_guessed(tmp_path: Path, bf2: nn.Module) -> None:
    torch.save(bf2.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"never guessed.*--arch.*bf1, bf2.*--model"):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", UNSEEN)
def test_settings_that_leave_no_mark_must_be_stated(tmp_path: Path, bf2: nn.Module, name: str) -> None:
    torch.save(bf2.state_dict(), tmp_path / "weights.pt")
    settings = {key: value for key, value in SETTINGS.items() if key != name}
    with pytest.raises(UsageError, match=rf"these settings of bf2.*--set {name}="):
        load(tmp_path / "weights.pt", LoadOptions(arch="bf2", settings=settings))


@pytest.mark.parametrize(
    ("arch", "change", "message"),
    [
        ("bf3", {}, "unknown architecture 'bf3'; known are dgcnn, rf, bf1, bf2"),
        ("bf2", {"depth": 4}, "bf2 has no setting 'depth'"),
        ("bf2", {"stage": 4}, "stage"),
        ("bf2", {"k": "many"}, "'k' is 'many'"),
        ("bf2", {"classes": 6}, r"'linear3.*' has shape \[5, 8\], but BF2 needs \[6, 8\]"),
        ("rf", {}, "these settings of rf"),
        ("rf", {"first_inputs": "real"}, "has no setting 'mlp_activation'"),
    ],
)
def test_wrong_architecture(tmp_path: Path, bf2: nn.Module, arch: str, change: dict[str, Any], message: str) -> None:
    torch.save(bf2.state_dict(), tmp_path / "weights.pt")
    settings = {**SETTINGS, **change}
    if arch == "rf":
        settings["knn"] = "l2"
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "weights.pt", LoadOptions(arch=arch, settings=settings))


def test_missing_and_unexpected_keys(tmp_path: Path, bf2: nn.Module) -> None:
    state = dict(bf2.state_dict())
    first = next(iter(state))
    state["head.bias"] = state.pop(first)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=rf"lacks '{first}' and has unknown 'head.bias'"):
        load(tmp_path / "weights.pt", LoadOptions(arch="bf2", settings=SETTINGS))


@pytest.mark.parametrize("factory", ["Net", "make_net"])
def test_the_users_own_class(user: Any, tmp_path: Path, factory: str) -> None:
    model = user.Net(width=6, scale=2.0)
    torch.save(model.state_dict(), "weights.pt")
    options = LoadOptions(model=f"user_models:{factory}", settings={"width": 6, "scale": 2.0}, inputs=("points=2x5x3",))
    loaded = load("weights.pt", options)
    assert loaded.example_inputs[0].shape == (2, 5, 3)
    assert same(loaded.model, model, *loaded.example_inputs)


EMPTY = """
import torch
from torch import nn
class Observer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("top", torch.tensor([]))
        self.step = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_buffer("rows", torch.empty(0, 3))
    def forward(self, x):
        return x * self.top + self.step + self.rows.sum(0)
class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Observer()
    def forward(self, x):
        return self.inner(x)
class Counted(Outer):  # modules may say themselves what they take, as torch.ao's do
    def _load_from_state_dict(self, state, *args):
        state.pop("old", None)
        super()._load_from_state_dict(state, *args)
"""
FILLED = {"inner.top": torch.tensor(2.0), "inner.step": torch.tensor([1.0, 2.0, 3.0]), "inner.rows": torch.ones(4, 3)}


@pytest.mark.parametrize("kind", ["Outer", "Counted"])
def test_tensors_made_empty_take_the_files_shape(user: Any, kind: str) -> None:
    Path("empty_models.py").write_text(EMPTY)
    torch.save(FILLED | ({"old": torch.ones(1)} if kind == "Counted" else {}), "weights.pt")
    model = load("weights.pt", LoadOptions(model=f"empty_models:{kind}", inputs=("x=2x3",))).model
    assert isinstance(model, nn.Module)
    assert {key: value.tolist() for key, value in model.state_dict().items()} == {
        k: v.tolist() for k, v in FILLED.items()
    }
    assert [name for name, _ in model.named_parameters()] == ["inner.step"]
    assert torch.equal(model(torch.zeros(1, 3)), torch.tensor([[5.0, 6.0, 7.0]]))


def test_shapes_that_a_model_states_must_match(user: Any) -> None:
    Path("empty_models.py").write_text(EMPTY)
    torch.save(FILLED | {"inner.rows": torch.ones(4, 2)}, "weights.pt")
    with pytest.raises(UsageError, match=r"'inner.rows' has shape \[4, 2\], but Outer needs \[0, 3\]"):
        load("weights.pt", LoadOptions(model="empty_models:Outer", inputs=("x=2x3",)))


def test_the_current_folder_is_importable(user: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(user.Net().state_dict(), "weights.pt")
    sys.modules.pop("user_models")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    load("weights.pt", LoadOptions(model="user_models:Net", inputs=("points=2x5x3",)))
    assert str(tmp_path) in sys.path


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("user_models", {}, "package.module:factory"),
        ("user_models:", {}, "package.module:factory"),
        ("nowhere.models:Net", {}, "No module named 'nowhere'"),
        ("user_models:Nett", {}, "no attribute 'Nett'"),
        ("user_models:broken", {}, "raised RuntimeError: no data folder$"),
        ("user_models:Net", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("user_models:not_a_model", {}, "gave a dict, not an nn.Module"),
        ("user_models:Net", {"width": 5}, r"'linear.weight' has shape \[4, 3\], but Net needs \[5, 3\]"),
    ],
)
def test_wrong_factories(user: Any, model: str, settings: dict[str, Any], message: str) -> None:
    torch.save(user.Net().state_dict(), "weights.pt")
    with pytest.raises(UsageError, match=message):
        load("weights.pt", LoadOptions(model=model, settings=settings, inputs=("points=2x5x3",)))


def test_shapes_of_foreign_models_must_be_given(user: Any) -> None:
    torch.save(user.Net().state_dict(), "weights.pt")
    with pytest.raises(UsageError, match="add --input points=SHAPE"):
        load("weights.pt", LoadOptions(model="user_models:Net"))


def test_pickled_modules_only_on_request(user: Any) -> None:
    model = user.Net()
    torch.save(model, "whole.pt")
    with pytest.raises(UsageError, match=r"user_models\.Net.*any code.*--allow-pickle"):
        load("whole.pt", LoadOptions(inputs=("points=2x5x3",)))
    loaded = load("whole.pt", LoadOptions(inputs=("points=2x5x3",), allow_pickle=True))
    assert same(loaded.model, model, *loaded.example_inputs)


def test_pt2(user: Any, tmp_path: Path) -> None:
    model, points = user.Net().eval(), torch.randn(2, 5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (points,)), tmp_path / "net.pt2")
    loaded = load(tmp_path / "net.pt2")
    assert loaded.example_inputs[0].shape == (2, 5, 3)
    assert same(loaded.model, model, points)
    assert load(tmp_path / "net.pt2", LoadOptions(batch=2, points=5)).name == "net"
    for options in (
        LoadOptions(batch=3),
        LoadOptions(points=6),
        LoadOptions(inputs=("points=2x6x3",)),
        LoadOptions(inputs=("points=2x5x3:float64",)),
    ):
        with pytest.raises(UsageError, match="was exported for"):
            load(tmp_path / "net.pt2", options)


def test_pt2_under_any_name(user: Any, tmp_path: Path) -> None:
    """Files are told apart by what they hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(user.Net().eval(), (torch.randn(2, 5, 3),))
        torch.export.save(program, tmp_path / "net.pt2")
    (tmp_path / "net.pt2").rename(tmp_path / "net.pt")
    assert isinstance(load(tmp_path / "net.pt").model, ExportedProgram)


def test_torchscript_is_named(user: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(user.Net().eval(), torch.randn(2, 5, 3)), "script.pt")
    with pytest.raises(UsageError, match=r"TorchScript.*torch\.export"):
        load("script.pt")


def test_contradictions(tmp_path: Path, bf2: nn.Module) -> None:
    save_checkpoint(tmp_path / "model.pt", bf2)
    for options, message in (
        (LoadOptions(arch="bf1"), "states its own architecture"),
        (LoadOptions(model="a:b"), "states its own architecture"),
        (LoadOptions(arch="bf1", model="a:b"), "exclude each other"),
        (LoadOptions(settings={"k": 3}), "--set needs --arch"),
    ):
        with pytest.raises(UsageError, match=message):
            load(tmp_path / "model.pt", options)
