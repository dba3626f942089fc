"""The command: what it prints where, what it writes, and how it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from bgnn.converter import api, cli
from bgnn.converter.errors import ConversionError, UsageError
from bgnn.models.checkpoint import build_model, save_checkpoint
from bgnn.runtime_bench.runtime.tflite_runner import run_file

SMALL: dict[str, Any] = {
    "classes": 5,
    "num_points": 20,
    "k": 4,
    "embedding": 16,
    "channels": [8, 8, 8, 8],
    "mlp": [8, 8],
}

OUT_OF_MEMORY = "bgnn-convert: error: out of memory: give a smaller batch, fewer points or a smaller example graph"
TRAINED = Path(__file__).parents[2] / "models" / "trained"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, holding `small.pt`."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    save_checkpoint("small.pt", build_model("bf2", **SMALL))
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_help_needs_no_torch() -> None:
    """`--help` must be quick."""
    code = "import sys; from bgnn.converter.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


def test_help_explains_every_argument() -> None:
    text = "".join(cli.build_parser().format_help().split())  # lines break at hyphens, too
    for action in cli.build_parser()._actions:
        assert action.help, action
    for name in (*cli.TARGETS, *cli.STAGES):
        assert name in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bgnn-convert 0.")


def test_a_conversion(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["small.pt", "--target", "lce-arm64", "--html", "small.html"]) == 0
    out, err = capsys.readouterr()
    assert files(folder) == {"small.pt", "small.tflite", "report.json", "small.html"}
    assert "small: lce-arm64 -O1" in out
    assert "wrote small.tflite, report.json and small.html" in out
    assert "bgnn-convert: tracing the model" in err
    assert "arning" not in err
    report = json.loads(Path("report.json").read_text())
    assert report["bytes"] == Path("small.tflite").stat().st_size
    page = Path("small.html").read_text()
    for text in ("small: lce-arm64", *(layer["name"] for layer in report["layers"]), f"{report['bytes']:,} bytes",
                 "emitted file", "torch 2."):  # fmt: skip
        assert text in page
    cannot = ("--html", "small.tflite"), ("--html", "small.html", "--stop-after", "traced"), ("--html", "no/folder")
    assert [cli.main(["small.pt", "--target", "lce-arm64", *more]) for more in cannot] == [2, 2, 2]
    (logits,) = run_file(Path("small.tflite").read_bytes(), [torch.randn(1, 20, 3).numpy()])
    assert logits.shape == (1, 5)


def test_places_and_shapes(folder: Path) -> None:
    Path("out").mkdir()
    command = ["small.pt", "--target", "lce-arm64", "-O0", "--batch", "2", "--points", "9"]
    assert cli.main([*command, "-o", "out/net.tflite", "--report", "out/net.json", "--no-verify"]) == 0
    assert files(folder) == {"small.pt", "out/net.tflite", "out/net.json"}
    (logits,) = run_file(Path("out/net.tflite").read_bytes(), [torch.randn(2, 9, 3).numpy()])
    assert logits.shape == (2, 5)
    report = json.loads(Path("out/net.json").read_text())
    assert report["optimize"] == 0
    assert report["checks"] == []


def test_the_report_goes_beside_the_output(folder: Path) -> None:
    Path("out").mkdir()
    assert cli.main(["small.pt", "--target", "lce-arm64", "-o", "out/net.tflite", "--no-verify"]) == 0
    assert files(folder) == {"small.pt", "out/net.tflite", "out/report.json"}


def test_the_report_of_another_output_is_left_alone(folder: Path) -> None:
    def convert(*more: str) -> int:
        return cli.main(["small.pt", "--target", "lce-arm64", "--no-verify", *more])

    assert [convert(), convert("-O0"), convert("-o", "b.tflite"), convert("-o", "b.tflite", "-O0")] == [0, 0, 0, 0]
    assert files(folder) == {"small.pt", "small.tflite", "report.json", "b.tflite", "b.tflite.report.json"}
    for name, output in (("report.json", "small.tflite"), ("b.tflite.report.json", "b.tflite")):
        report = json.loads(Path(name).read_text())
        assert (report["output"], report["optimize"]) == (output, 0)
    assert convert("-o", "b.tflite", "--report", "report.json") == 2
    assert convert("-o", "/dev/null") == 0  # beside it nothing is written
    assert files(folder) == {
        "small.pt",
        "small.tflite",
        "report.json",
        "b.tflite",
        "b.tflite.report.json",
        "null.report.json",
    }


def test_stop_after_and_dump(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["small.pt", "--target", "lce-arm64", "--stop-after", "semantic", "--dump", "ir"]) == 0
    assert "stopped after stage semantic: no file written" in capsys.readouterr().out
    written = files(folder)
    assert {"ir/traced.py", "ir/semantic.py"} <= written
    assert not any("integer" in name or name.endswith((".tflite", ".json")) for name in written)


@pytest.mark.slow
def test_an_old_file_is_replaced_as_a_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("small.tflite").write_bytes(b"old")

    def fail(*args: object, **kwargs: object) -> None:
        raise ConversionError("emitted file: sign 3 differs")

    with monkeypatch.context() as patched:
        patched.setattr(api, "check_file", fail)
        assert cli.main(["small.pt", "--target", "lce-arm64"]) == 1
    assert Path("small.tflite").read_bytes() == b"old"
    assert files(folder) == {"small.pt", "small.tflite"}
    assert cli.main(["small.pt", "--target", "lce-arm64"]) == 0
    assert Path("small.tflite").read_bytes() != b"old"
    assert files(folder) == {"small.pt", "small.tflite", "report.json"}


def test_the_users_class_and_several_outputs(folder: Path) -> None:
    Path("nets_of_test_cli.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(3, width)\n"
        "    def forward(self, points):\n"
        "        x = self.linear(points).relu()\n"
        "        return x, x.amax(1)\n"
    )
    torch.save(torch.nn.ModuleDict({"linear": torch.nn.Linear(3, 7)}).state_dict(), "weights.pt")
    command = [
        "weights.pt",
        "--target",
        "tflite-arm64",
        "--model",
        "nets_of_test_cli:Net",
        "--set",
        "width=7",
    ]
    try:
        arguments = ["--input", "points=2x5x3", "--keep-output", "1", "--keep-output", "0"]
        assert cli.main([*command, *arguments]) == 0
    finally:
        sys.modules.pop("nets_of_test_cli", None)
        sys.path[:] = [p for p in sys.path if p != str(folder)]
    largest, x = run_file(Path("weights.tflite").read_bytes(), [torch.randn(2, 5, 3).numpy()])
    assert largest.shape == (2, 7)
    assert x.shape == (2, 5, 7)


def test_a_graph_network_by_its_path_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_geometric")
    shutil.copy(TRAINED / "cora_gcn_dq8.pt", "cora.pt")
    assert cli.main(["cora.pt", "--target", "onnx-int8-x86"]) == 0
    assert json.loads(Path("report.json").read_text())["checks"][-1]["rows"] == 256
    assert files(folder) == {"small.pt", "cora.pt", "cora.onnx", "report.json"}
    assert cli.main(["cora.pt", "--target", "onnx-int8-x86", "--points", "9"]) == 2
    assert "cora.pt is a graph network: see --input" in capsys.readouterr().err

    whole = torch.load("cora.pt", weights_only=True)
    del whole["example"]  # as checkpoints were before
    torch.save(whole, "old.pt")
    assert cli.main(["old.pt", "--target", "onnx-int8-x86"]) == 2
    assert "--input FILE.npz" in capsys.readouterr().err.splitlines()[-1]


def test_a_network_trained_on_many_graphs_by_its_path_alone(folder: Path) -> None:
    pytest.importorskip("torch_geometric")
    config = {"form": "reddit", "conv": "gin", "features": 1, "classes": 2, "hidden": 4, "layers": 2, "bits": 32}
    edges = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 3, 4, 2]])
    graphs = {"x": torch.randn(5, 1), "edge_index": edges, "batch": torch.tensor([0, 0, 1, 1, 1])}
    save_checkpoint("many.pt", build_model("dq", **config), example=graphs)
    assert cli.main(["many.pt", "--target", "onnx-x86"]) == 0
    assert json.loads(Path("report.json").read_text())["checks"][-1]["rows"] == 2


@pytest.mark.slow
def test_a_program(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(build_model("bf2", **SMALL).eval(), (torch.randn(2, 20, 3),))
        torch.export.save(program, "program.pt2")
    assert cli.main(["program.pt2", "--target", "lce-arm64"]) == 0
    report = json.loads(Path("report.json").read_text())
    assert sum(layer["became"].startswith("binary") for layer in report["layers"]) >= 5


@pytest.mark.slow
def test_in_a_process_of_its_own(folder: Path) -> None:
    command = [sys.executable, "-m", "bgnn.converter.cli", "small.pt", "--target", "lce-arm64"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "what each dot product became" in done.stdout
    assert files(folder) == {"small.pt", "small.tflite", "report.json"}
    done = subprocess.run([*command[:3], "gone.pt", "--target", "lce-arm64"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "bgnn-convert: error: gone.pt: no such file"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no\nsuch   thing"), 2, "bgnn-convert: error: no such thing"),
        (ConversionError("cannot"), 1, "bgnn-convert: error: cannot"),
        (KeyboardInterrupt(), 130, "bgnn-convert: error: interrupted"),
        (MemoryError(), 1, OUT_OF_MEMORY),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
            1,
            OUT_OF_MEMORY,
        ),
        (
            ZeroDivisionError("oh\nno"),
            1,
            "bgnn-convert: error: internal error: ZeroDivisionError: oh "
            "(a bug in bgnn-convert: run again with --debug and report it)",
        ),
    ],
)
def test_errors_are_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(api, "convert", fail)
    assert cli.main(["small.pt", "--target", "lce-arm64"]) == code
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == line
    assert "Traceback" not in err
    assert files(folder) == {"small.pt"}


def test_debug_shows_the_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gone.pt", "--target", "lce-arm64", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "bgnn-convert: error: gone.pt: no such file"


def test_settings() -> None:
    found = cli._settings(["k=20", "dropout=0.5", "knn=hamming", "channels=[64, 64]", "on=true", "path=a=b"])
    assert found == {
        "k": 20,
        "dropout": 0.5,
        "knn": "hamming",
        "channels": [64, 64],
        "on": True,
        "path": "a=b",
    }
    for wrong in (["k"], ["=3"], ["a-b=3"], ["k=1", "k=2"]):
        with pytest.raises(UsageError):
            cli._settings(wrong)
