"""Wrong commands and files: one line on standard error, the right exit code, no file written, no code run."""

from __future__ import annotations

import io
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bgnn.converter import cli
from bgnn.models.checkpoint import build_model, save_checkpoint

SMALL: dict[str, Any] = {
    "classes": 5,
    "num_points": 20,
    "k": 4,
    "embedding": 16,
    "channels": [8, 8, 8, 8],
    "mlp": [8, 8],
}
STATED = [f"{key}={value}" for key, value in SMALL.items()] + [
    "activation=prelu",
    "mlp_activation=prelu",
    "last_inputs=quantised",
    "last_weights=real",
    "sign_zero=plus",
    "stage=3",
    "knn=hamming",
    "edge_balance=none",
    "global_balance=none",
]
TARGET = ("--target", "lce-arm64")
USER_MODULE = """
import torch
from torch import nn

class Sorted(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)

class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Shapes(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, points):
        return self.linear(points)

class Many(nn.Module):
    def forward(self, points):
        return (points - points).topk(30, dim=1)[0]

class Leaves(Shapes):
    def forward(self, points):
        raise SystemExit(0)

class Odd(Shapes):
    def forward(self, points):
        raise GeneratorExit("odd")

def raises():
    raise FileNotFoundError("labels.txt")

def leaves():
    raise SystemExit(0)
"""


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder with a good model.pt, its weights.pt, a good net.pt2 and a module of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.manual_seed(0)
    model = build_model("bf2", **SMALL).eval()
    save_checkpoint("model.pt", model)
    torch.save(model.state_dict(), "weights.pt")
    torch.save({}, "empty.pt")
    torch.save(torch.nn.ModuleDict({"linear": torch.nn.Linear(3, 2)}).state_dict(), "linear.pt")
    Path("bad_models.py").write_text(USER_MODULE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.randn(4, 3),)), "net.pt2")
    yield tmp_path
    sys.modules.pop("bad_models", None)


Check = Callable[..., str]


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the command, checks all that errors have in common, and returns the message."""

    def run(*arguments: str, code: int) -> str:
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        capsys.readouterr()
        assert cli.main(list(arguments)) == code
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if "error: " in line]
        assert len(errors) == 1, err
        assert err.splitlines()[-1] == errors[0]
        assert "Traceback" not in err
        assert "internal error" not in err
        assert out == ""
        after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert after == before
        return errors[0]

    return run


def test_missing_file(refused: Check) -> None:
    assert "gone.pt: no such file" in refused("gone.pt", *TARGET, code=2)


def test_folder(refused: Check, folder: Path) -> None:
    (folder / "models").mkdir()
    assert "models is a folder" in refused("models", *TARGET, code=2)


@pytest.mark.parametrize("data", [b"", b"model weights, see README\n", b"PK\x03\x04junk", b"\x80\x04junk", b"\x80"])
@pytest.mark.parametrize("name", ["bad.pt", "bad.pt2"])
def test_files_of_other_kinds(refused: Check, folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    message = refused(name, *TARGET, code=2)
    assert name in message
    assert any(text in message for text in ("is empty", "not a PyTorch file", "damaged"))


def test_zip_of_another_kind(refused: Check) -> None:
    with zipfile.ZipFile("photos.pt", "w") as archive:
        archive.writestr("a/b.jpg", b"")
    assert "not one of PyTorch" in refused("photos.pt", *TARGET, code=2)


@pytest.mark.parametrize("name", ["model.pt", "net.pt2"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated(refused: Check, folder: Path, name: str, part: float) -> None:
    data = Path(name).read_bytes()
    (folder / f"short{Path(name).suffix}").write_bytes(data[: int(len(data) * part)])
    assert "truncated" in refused(f"short{Path(name).suffix}", *TARGET, code=2)


def bomb_files() -> dict[str, bytes]:
    zipped, legacy = io.BytesIO(), io.BytesIO()
    whole = {"format_version": 1, "architecture": "bf2", "config": {}, "state_dict": Bomb()}
    torch.save(whole, zipped)
    torch.save(whole, legacy, _use_new_zipfile_serialization=False)
    return {"zip": zipped.getvalue(), "legacy": legacy.getvalue(), "pickle": pickle.dumps(Bomb())}


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_pickle_bomb_does_not_run(refused: Check, folder: Path, kind: str) -> None:
    (folder / "bomb.pt").write_bytes(bomb_files()[kind])
    message = refused("bomb.pt", *TARGET, code=2)
    assert "bomb.pt" in message
    assert "weights_only" not in message  # torch's text advises to switch the check off
    if kind != "pickle":
        assert "system" in message
        assert "--allow-pickle" in message
    assert not (folder / "ran").exists()


def test_pickle_bomb_is_live(folder: Path) -> None:
    """The bombs above would go off: with --allow-pickle they do."""
    (folder / "bomb.pt").write_bytes(bomb_files()["zip"])
    cli.main(["bomb.pt", *TARGET, "--allow-pickle"])
    assert (folder / "ran").exists()


def test_checkpoint_of_another_version(refused: Check) -> None:
    torch.save({"format_version": 99, "architecture": "bf2", "config": {}, "state_dict": {}}, "new.pt")
    assert "format_version 99" in refused("new.pt", *TARGET, code=2)


def test_checkpoints_with_nonsense_in_them(refused: Check) -> None:
    good = torch.load("model.pt", weights_only=True)
    for key, value in (
        ("architecture", "resnet"),
        ("architecture", 3),
        ("config", {"k": -1}),
        ("config", {"layers": 3}),
        ("config", None),
        ("state_dict", [1, 2]),
        ("state_dict", {}),
        ("state_dict", {1: 2}),
    ):
        torch.save({**good, key: value}, "bad.pt")
        assert "bad.pt" in refused("bad.pt", *TARGET, code=2)


@pytest.mark.parametrize("content", [3, [torch.ones(2)], {}, {"a": 1}, {"a": {"b": torch.ones(1)}}, torch.ones(2)])
def test_files_without_a_model(refused: Check, content: Any) -> None:
    torch.save(content, "odd.pt")
    assert "state_dict" in refused("odd.pt", *TARGET, code=2)


def test_bare_state_dict(refused: Check) -> None:
    message = refused("weights.pt", *TARGET, code=2)
    assert "--arch" in message
    assert "--model" in message


def test_unknown_architecture(refused: Check) -> None:
    message = refused("weights.pt", *TARGET, "--arch", "resnet", "--set", *STATED, code=2)
    assert "unknown architecture 'resnet'" in message


def test_missing_settings(refused: Check) -> None:
    message = refused("weights.pt", *TARGET, "--arch", "bf2", "--set", *STATED[:6], code=2)
    assert "--set activation=prelu mlp_activation=prelu stage=3" in message


def test_settings_that_do_not_fit(refused: Check) -> None:
    wrong = [s.replace("embedding=16", "embedding=32") for s in STATED]
    assert "has shape" in refused("weights.pt", *TARGET, "--arch", "bf2", "--set", *wrong, code=2)
    assert "--set 'k'" in refused("weights.pt", *TARGET, "--arch", "bf2", "--set", "k", code=2)


def test_keys_that_do_not_fit(refused: Check) -> None:
    state = torch.load("weights.pt", weights_only=True)
    for change, message in (({"extra": torch.ones(1)}, "has unknown 'extra'"), (None, "lacks")):
        changed = {**state, **change} if change else dict(list(state.items())[1:])
        torch.save(changed, "changed.pt")
        assert message in refused("changed.pt", *TARGET, "--arch", "bf2", "--set", *STATED, code=2)


def test_more_neighbours_than_points(refused: Check) -> None:
    assert "k = 4 neighbours among only 3 points" in refused("model.pt", *TARGET, "--points", "3", code=2)
    assert "3 points" in refused("model.pt", *TARGET, "--input", "points=1x3x3", code=1)


@pytest.mark.parametrize("shape", ["1x20x4", "20x3", "1x20x3x1"])
def test_wrong_input_shape(refused: Check, shape: str) -> None:
    message = refused("model.pt", *TARGET, "--input", f"points={shape}", code=1)
    assert "[B, N, 3]" in message


def test_wrong_input_type(refused: Check) -> None:
    assert "cast the input with .float()" in refused("model.pt", *TARGET, "--input", "points=1x20x3:float64", code=2)


def test_wrong_shape_for_a_program(refused: Check) -> None:
    assert "exported for [4, 3]" in refused("net.pt2", *TARGET, "--input", "input=5x3", code=2)
    assert "exported for [4, 3]" in refused("net.pt2", *TARGET, "--batch", "8", code=2)


@pytest.mark.parametrize("text", ["points", "points=", "points=axb", "points=1x20x3:float33", "points=1x0x3", "x.npz"])
def test_garbage_inputs(refused: Check, text: str) -> None:
    assert "input" in refused("model.pt", *TARGET, "--input", text, code=2)


def test_huge_inputs(refused: Check) -> None:
    for arguments in (
        ("--input", "points=100000x100000x3"),
        ("--batch", "9999999999"),
        ("--points", str(10**30)),
    ):
        assert "2^31" in refused("model.pt", *TARGET, *arguments, code=2)


def test_empty_batch(refused: Check) -> None:
    for flag in ("--batch", "--points"):
        for value in ("0", "-3"):
            assert "at least 1" in refused("model.pt", *TARGET, flag, value, code=2)


def test_hostile_npz(refused: Check, folder: Path) -> None:
    np.savez("bomb.npz", points=np.array([Bomb()], dtype=object))
    assert "pickled" in refused("model.pt", *TARGET, "--input", "bomb.npz", code=2)
    assert not (folder / "ran").exists()


def test_npz_with_nan(refused: Check) -> None:
    np.savez("nan.npz", points=np.full((1, 20, 3), np.nan, np.float32))
    message = refused("model.pt", *TARGET, "--input", "nan.npz", code=2)
    assert "NaN" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(refused: Check, value: float) -> None:
    whole = torch.load("model.pt", weights_only=True)
    key = next(k for k in whole["state_dict"] if k.endswith("weight") and "linear3" not in k)
    whole["state_dict"][key].view(-1)[0] = value
    torch.save(whole, "diverged.pt")
    message = refused("diverged.pt", *TARGET, code=1)
    assert key in message
    assert ("NaN" if value != value else "infinite") in message


def test_unknown_choices(refused: Check) -> None:
    assert "lce-arm64, tflite-arm64" in refused("model.pt", "--target", "onnx", code=2)
    assert "traced" in refused("model.pt", *TARGET, "--stop-after", "end", code=2)
    assert "optimisation level 7" in refused("model.pt", *TARGET, "-O7", code=2)
    assert "k-NN" in refused("model.pt", *TARGET, "--knn", "kd-tree", code=2)
    assert "sign-zero" in refused("model.pt", *TARGET, "--sign-zero", "minus", code=2)


def test_arguments_missing(refused: Check) -> None:
    assert "--target" in refused("model.pt", code=2)
    assert "MODEL" in refused(*TARGET, code=2)
    assert "--frobnicate" in refused("model.pt", *TARGET, "--frobnicate", code=2)


@pytest.mark.parametrize("index", ["1", "-1"])
def test_outputs_that_are_not_there(refused: Check, index: str) -> None:
    assert f"output {index}" in refused("model.pt", *TARGET, f"--keep-output={index}", code=2)


@pytest.mark.parametrize("flag", ["-o", "--report"])
def test_outputs_that_cannot_be_written(
    refused: Check, folder: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    (folder / "taken").mkdir()
    assert "no folder" in refused("model.pt", *TARGET, flag, "nowhere/model.tflite", code=2)
    assert "no folder" in refused("model.pt", *TARGET, flag, "model.pt/model.tflite", code=2)
    assert "it is a folder" in refused("model.pt", *TARGET, flag, "taken", code=2)
    assert "the model itself" in refused("model.pt", *TARGET, flag, "model.pt", code=2)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions do not bind root, who runs CI
    assert "permission denied" in refused("model.pt", *TARGET, flag, "model.tflite", code=2)


def test_a_folder_that_takes_no_files(refused: Check) -> None:
    """Linux's /proc says that root may write there, and refuses."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    assert "cannot write /proc/self/m.tflite" in refused(
        "model.pt", *TARGET, "-o", "/proc/self/m.tflite", "--report", "r.json", "--no-verify", code=2
    )


def test_dump_into_a_file(refused: Check) -> None:
    assert "--dump weights.pt: not a folder" in refused("model.pt", *TARGET, "--dump", "weights.pt", code=2)


def test_factories(refused: Check) -> None:
    inputs = ("--input", "points=2x5x3")
    for factory, message in (
        ("nowhere:Net", "No module named 'nowhere'"),
        ("bad_models:Net", "no attribute 'Net'"),
        ("bad_models:raises", "raised FileNotFoundError: labels.txt"),
        ("bad_models", "package.module:factory"),
        ("bad_models:torch.ones", "raised TypeError"),
    ):
        assert message in refused("linear.pt", *TARGET, "--model", factory, *inputs, code=2)
    assert "add --input points=SHAPE" in refused("linear.pt", *TARGET, "--model", "bad_models:Shapes", code=2)
    assert "'points'" in refused(
        "linear.pt", *TARGET, "--model", "bad_models:Shapes", *inputs, "--input", "y=3", code=2
    )


def whole(name: str) -> None:
    """Saves a module of the user's without weights, for --allow-pickle."""
    sys.path.insert(0, os.getcwd())
    import importlib

    torch.save(getattr(importlib.import_module("bad_models"), name)(), "whole.pt")


def test_unsupported_op(refused: Check) -> None:
    whole("Sorted")
    message = refused("whole.pt", *TARGET, "--allow-pickle", "--input", "x=2x5x3", code=1)
    assert "svd" in message
    assert "bad_models.py:7" in message
    assert "return torch.linalg.svdvals(x)" in message


def test_control_flow_on_values(refused: Check) -> None:
    whole("Branch")
    message = refused("whole.pt", *TARGET, "--allow-pickle", "--input", "x=2x5x3", code=1)
    assert "torch.export cannot trace the model" in message


def test_more_neighbours_than_points_in_a_foreign_model(refused: Check) -> None:
    whole("Many")
    message = refused("whole.pt", *TARGET, "--allow-pickle", "--input", "points=2x5x3", code=1)
    assert "forward fails eagerly" in message
    assert "bad_models.py" in message
    assert "k not in range" in message or "out of range" in message


def flipped(data: bytes, name: str) -> bytes:
    """The archive with one bit of a record turned."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(name) and i.file_size)
        extra = int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
        place = info.header_offset + 30 + len(info.filename) + extra + info.file_size // 2
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


@pytest.mark.parametrize("name", ["model.pt", "weights.pt", "net.pt2"])
@pytest.mark.parametrize("record", ["0", "1"])
def test_a_flipped_bit(refused: Check, folder: Path, name: str, record: str) -> None:
    record = f"weight_{record}" if name == "net.pt2" else f"data/{record}"
    (folder / f"flip-{name}").write_bytes(flipped(Path(name).read_bytes(), record))
    message = refused(f"flip-{name}", *TARGET, code=2)
    assert "the checksum of its record" in message
    assert record in message


@pytest.mark.parametrize("change", [str, str.upper])
def test_two_records_of_one_name(refused: Check, change: Callable[[str], str]) -> None:
    with zipfile.ZipFile("model.pt") as whole, zipfile.ZipFile("twice.pt", "w") as archive:
        names = whole.namelist()
        for name in [*names, change(next(n for n in names if n.endswith("data/0")))]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr(name, whole.read(next(n for n in names if n.lower() == name.lower())))
    assert "two of its records have the same name" in refused("twice.pt", *TARGET, code=2)


def test_a_file_without_checksums(folder: Path) -> None:
    """torch can leave them out; that is no damage."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint("plain.pt", build_model("bf2", **SMALL))
    finally:
        torch.serialization.set_crc32_options(before)
    assert cli.main(["plain.pt", *TARGET, "--stop-after", "traced", "--no-verify"]) == 0


def laughs(innermost: Any, join: Callable[[Any], Any]) -> Any:
    for _ in range(40):
        innermost = join(innermost)
    return innermost


@pytest.mark.parametrize("key", ["format_version", "config", "state_dict", "example"])
def test_lists_in_lists(refused: Check, key: str) -> None:
    """2^40 values in 1.5 KB: neither printed nor counted one by one."""
    good = torch.load("model.pt", weights_only=True)
    for nested in (laughs(["ha"], lambda x: [x, x]), laughs({"ha": 1}, lambda x: {"a": x, "b": x})):
        torch.save({**good, key: {"k": nested} if key == "config" else nested}, "laughs.pt")
        assert "hold one another" in refused("laughs.pt", *TARGET, code=2)


def test_a_key_that_takes_for_ever_to_hash(refused: Check) -> None:
    """{((..., ...), (..., ...)): 1}, 40 levels deep."""
    levels = b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(40))
    with zipfile.ZipFile("hash.pt", "w") as archive:
        archive.writestr("hash/data.pkl", b"\x80\x02}K\x01\x85q\x000" + levels + b"h\x28K\x01s.")
        archive.writestr("hash/version", "3\n")
    assert "hold one another" in refused("hash.pt", *TARGET, code=2)


def test_complex_weights(refused: Check) -> None:
    state = torch.load("weights.pt", weights_only=True)
    key = next(iter(state))
    torch.save({**state, key: state[key] * 1j}, "complex.pt")
    assert "complex" in refused("complex.pt", *TARGET, "--arch", "bf2", "--set", *STATED, code=2)
    good = torch.load("model.pt", weights_only=True)
    torch.save({**good, "state_dict": {**state, key: state[key] * 1j}}, "complex.pt")
    assert "complex" in refused("complex.pt", *TARGET, code=2)


def test_numbers_that_do_not_fit(refused: Check) -> None:
    """num_batches_tracked counts: a fraction would be cut."""
    good = torch.load("model.pt", weights_only=True)
    key = next(k for k in good["state_dict"] if k.endswith("num_batches_tracked"))
    torch.save({**good, "state_dict": {**good["state_dict"], key: torch.tensor(2.5)}}, "odd.pt")
    assert f"'{key}' holds torch.float32 values that torch.int64 cannot" in refused("odd.pt", *TARGET, code=2)
    torch.save({**torch.load("weights.pt", weights_only=True), key: torch.tensor(2.5)}, "odd.pt")
    assert key in refused("odd.pt", *TARGET, "--arch", "bf2", "--set", *STATED, code=2)


def test_a_tensor_twice(refused: Check) -> None:
    good = torch.load("model.pt", weights_only=True)
    key = next(iter(good["state_dict"]))
    twice = {**good["state_dict"], f"module.{key}": good["state_dict"][key] + 1}
    torch.save({**good, "state_dict": twice}, "twice.pt")
    assert f"'module.{key}' is not part of" in refused("twice.pt", *TARGET, code=2)
    torch.save(twice, "twice.pt")
    message = refused("twice.pt", *TARGET, "--arch", "bf2", "--set", *STATED, code=2)
    assert f"has unknown 'module.{key}'" in message


OUTSIDE = torch.sparse_coo_tensor([[0, 9], [1, 1]], torch.ones(2), (3, 3), check_invariants=False)


@pytest.mark.parametrize("tensor", [torch.ones(4).to_sparse(), torch.ones(4, device="meta"), OUTSIDE])
def test_tensors_without_plain_values(refused: Check, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, "odd.pt")
    assert "'a'" in refused("odd.pt", *TARGET, "--arch", "bf2", "--set", *STATED, code=2)


def test_sizes_beyond_the_budget(refused: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number repeated, wide networks, more points than there is memory for."""
    good = torch.load("model.pt", weights_only=True)
    torch.save({**good, "example": {"points": torch.ones(1).expand(10**6, 10**3)}}, "wide.pt")
    assert "budget of 2 GiB" in refused("wide.pt", *TARGET, code=2)
    for key, value in (("embedding", 10**9), ("channels", [8, 10**9, 8, 8]), ("mlp", [10**9, 10**9])):
        torch.save({**good, "config": {**good["config"], key: value}}, "wide.pt")
        assert "wide.pt" in refused("wide.pt", *TARGET, code=2)
        wrong = [s for s in STATED if not s.startswith(f"{key}=")] + [f"{key}={value}"]
        assert "weights.pt" in refused("weights.pt", *TARGET, "--arch", "bf2", "--set", *wrong, code=2)
    torch.save({**good, "config": {**good["config"], "num_points": 10**9}}, "wide.pt")
    assert "2^31" in refused("wide.pt", *TARGET, code=2)
    monkeypatch.setenv("BGNN_MEMORY", "1K")
    assert "BGNN_MEMORY" in refused("model.pt", *TARGET, code=2)


def test_deep_graph_networks(refused: Check) -> None:
    pytest.importorskip("torch_geometric")
    config = {"form": "benchmark", "conv": "gin", "features": 4, "classes": 2, "hidden": 4, "layers": 2}
    save_checkpoint("dq.pt", build_model("dq", **config))
    good = torch.load("dq.pt", weights_only=True)
    for key, message in (("layers", "more layers than it has tensors"), ("hidden", "with these settings has")):
        torch.save({**good, "config": {**good["config"], key: 10**7}}, "deep.pt")
        assert message in refused("deep.pt", *TARGET, code=2)


def test_outputs_that_are_inputs(refused: Check) -> None:
    np.savez("in.npz", points=np.zeros((1, 20, 3), np.float32))
    Path("old.json").write_text('{"name": "net", "target": "lce-arm64", "checks": []}')
    command = ("model.pt", *TARGET, "--input", "in.npz")
    assert "the --input data" in refused(*command, "-o", "in.npz", code=2)
    assert "the --input data" in refused(*command, "--report", "./in.npz", code=2)
    assert "the --calibrate data" in refused("model.pt", *TARGET, "--calibrate", "in.npz", "-o", "in.npz", code=2)
    assert "it is the output, too" in refused(*command, "-o", "report.json", code=2)
    assert "-o '': name a file" in refused(*command, "-o", "", code=2)
    assert "name a file in the folder" in refused(*command, "-o", "new/", code=2)
    assert "it is the output, too" in refused(*command, "-o", "n", "--report", f"../{Path.cwd().name}/n", code=2)
    assert "the report of another conversion" in refused(*command, "-o", "old.json", code=2)
    assert "the report of another conversion" in refused(*command, "--report", "old.json", code=2)
    assert "no report of a conversion" in refused(*command, "--report", "bad_models.py", code=2)
    assert "the code of --model" in refused(
        "linear.pt", *TARGET, "--model", "bad_models:Shapes", "--input", "in.npz", "-o", "bad_models.py", code=2
    )


@pytest.mark.parametrize(
    ("factory", "code"), [("leaving:Net", 2), ("bad_models:leaves", 2), ("bad_models:Leaves", 1), ("bad_models:Odd", 1)]
)
def test_the_users_code_ends_the_program(refused: Check, factory: str, code: int) -> None:
    Path("leaving.py").write_text("import sys\nsys.exit(0)\n")
    Path("none.pt").write_bytes(Path("linear.pt").read_bytes())
    message = refused("none.pt", *TARGET, "--input", "points=2x5x3", "--model", factory, code=code)
    assert any(said in message for said in ("SystemExit: 0", "sys.exit(0)", "GeneratorExit: odd"))


def test_names_and_sizes_that_are_none(refused: Check) -> None:
    for model in (":Net", "..:Net"):
        assert "--model" in refused("linear.pt", *TARGET, "--model", model, "--input", "points=2x5x3", code=2)
    for shape in ("9" * 5000, "1x" * 70 + "3"):
        command = ("linear.pt", *TARGET, "--model", "bad_models:Shapes", "--input", f"points={shape}")
        assert "is neither NAME=SHAPE" in refused(*command, code=2)
