"""The emulated Cortex-A72: counts and outputs, and no time; the modelled one: a range by operator, beside what was
measured. With qemu where BGNN_AARCH64 says that it is there: `make -C runtime_bench/toolchain/aarch64 bench`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import boards
import pytest
from bench_records import record

from bgnn.runtime_bench.bench import cli, emulated, packing, records
from bgnn.runtime_bench.bench.emulated import CORTEX_A72, EMULATOR, MODEL, MODELLED
from bgnn.runtime_bench.bench.records import Record

needs_qemu = pytest.mark.skipif(
    "BGNN_AARCH64" not in os.environ, reason="run by make -C runtime_bench/toolchain/aarch64 bench"
)
DELEGATE = "LiteRT + ours without XNNPACK"


@pytest.fixture
def file(tmp_path: Path, float_file: bytes) -> Path:
    (tmp_path / "a.tflite").write_bytes(float_file)
    return tmp_path / "a.tflite"


def modelled(low: float, high: float, number: int) -> Record:
    device = {"id": MODEL, "cpu": "a model", "part": CORTEX_A72, "cores": 1, "flags": []}
    samples = {"instructions": [1000.0], MODELLED: [low, high]}
    more = {"assumptions": "much", "error_bar": "a bar", "type": "ABS"}
    made = record()
    return replace(made, case=f"a.tflite: {number} x", device=device, modelled=True, samples=samples,
                   settings=made.settings | more)  # fmt: skip


def test_predicted_stands_beside_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted, measured, other = (tmp_path / name for name in ("predicted", "measured", "other"))
    predicted.write_bytes(records.write([modelled(1, 2, 0), modelled(1, 3, 1)]))
    times = [[1.5, 1.5], [5.0, 5.0]]
    there = [replace(record(id="pi", wall_ms=ms), case=f"a.tflite: {n} x") for n, ms in enumerate(times)]
    pi = [replace(one, device=one.device | {"part": CORTEX_A72}) for one in there]
    measured.write_bytes(records.write(pi))
    other.write_bytes(records.write(there))
    for pair in ([predicted, measured], [measured, predicted]):
        assert cli.main(["compare", *map(str, pair)]) == 0
        printed = capsys.readouterr().out
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if " x, " in line]
        assert rows == [
            ["a.tflite: 0 x, LiteRT", "1.00-2.00", "1.50 (1.50-1.50)", "1.00", "yes"],
            ["a.tflite: 1 x, LiteRT", "1.00-3.00", "5.00 (5.00-5.00)", "2.50", "no"],
        ]
        assert "1 of 2 measured medians lie within" in printed
        assert "no test of the model" not in printed
    assert cli.main(["compare", str(predicted), str(other)]) == 0
    assert "the processor that measured is not the one that is modelled" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert cli.main(["report", str(predicted), "-o", str(page)]) == 0
    assert "waiting for memory" in page.read_text()
    assert "1.00-2.00" in page.read_text()


def test_what_is_wrong_is_one_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failed(*arguments: object, code: int) -> str:
        assert cli.main([str(one) for one in arguments]) == code
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("bgnn-bench: error: "))
        return line

    monkeypatch.setattr(emulated, "_CACHE", tmp_path)
    for device in (EMULATOR, MODEL):
        line = failed("run", file, "--device", device, code=1)
        assert "the emulated Cortex-A72 lacks" in line
        assert "make -C runtime_bench/toolchain/aarch64 devices" in line
        assert "leave out --threads, --rounds" in failed("run", file, "--device", device, "--rounds", 3, code=2)
        assert "has no clock" in failed("profile", file, "--device", device, code=2)
    assert "models TFLite files" in failed("run", file, "--device", MODEL, "--candidates", "LCE", code=2)


@pytest.mark.slow
@needs_qemu
def test_counts_and_outputs_of_the_emulator(file: Path, lce_file: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.tflite").write_bytes(lce_file)
    names = ["LiteRT", DELEGATE]
    out = tmp_path / "r.jsonl"
    command = ["run", str(file), str(tmp_path / "b.tflite"), "--device", EMULATOR, "--json", str(out)]
    assert cli.main([*command, "--candidates", *names]) == 0
    found = records.read(out)
    assert [(one.case, one.candidate) for one in found] == [
        ("a.tflite", "LiteRT"), ("a.tflite", DELEGATE), ("b.tflite", DELEGATE),
    ]  # fmt: skip
    for one in found:
        assert one.samples.keys() == {"instructions", "difference", "file_bytes"}, "no time"
        assert one.figure("difference") == 0
        assert 1000 < one.figure("instructions") < 1e6
    assert list(found[2].settings["left_out"]) == ["b.tflite, LiteRT"]


@pytest.mark.slow
@needs_qemu
def test_the_model_prices_each_operator(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    command = ["run", str(file), "--device", MODEL, "--candidates", DELEGATE, "--json", str(out)]
    assert cli.main(command) == 0
    *operators, whole = records.read(out)
    assert [(one.case, one.settings["type"]) for one in operators] == [
        ("a.tflite: 0 magnitude", "ABS"), ("a.tflite: 1 negated", "NEG"),
    ]  # fmt: skip
    assert all(one.modelled and "Not modelled" in one.settings["assumptions"] for one in operators)
    for what in (0, 1):  # without, and with, memory
        assert whole.samples[MODELLED][what] == pytest.approx(sum(one.samples[MODELLED][what] for one in operators))
    for one in operators:
        low, high = one.samples[MODELLED]
        assert 0 < low <= high < 0.1
        assert 50 < one.figure("instructions") < 5000


@pytest.mark.slow
@needs_qemu
def test_a_board_of_another_architecture(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The emulated Python behind a real sshd, with the wheels that a Raspberry Pi gets."""
    try:
        packing.runtime_wheel("aarch64")
    except packing.BgnnError as error:
        pytest.skip(str(error))
    root = Path(os.environ["BGNN_AARCH64"])
    with boards.board(tmp_path / "board") as board:
        monkeypatch.setenv("PATH", f"{board.folder}/client{os.pathsep}{os.environ['PATH']}")
        board.script("uname", "echo Linux aarch64")
        # Python finds itself by its name: the processes that it starts go through here too.
        board.script(
            "python3",
            f'export PYTHONHOME="{root}/usr" PATH="{os.environ["PATH"]}"\n'
            f'exec qemu-aarch64 -0 "{board.folder}/bin/python3" -cpu cortex-a72 -L "{root}" '
            f'"{root}/usr/bin/python3.11" "$@"',
        )
        command = ["run", str(file), "--device", board.url, "--rounds", "2", "--candidates", DELEGATE]
        assert cli.main([*command, "--json", str(tmp_path / "r.jsonl")]) == 0
        (found,) = records.read(tmp_path / "r.jsonl")
        assert (found.candidate, found.device["part"]) == (DELEGATE, CORTEX_A72)
        assert "aarch64" in found.device["system"]
        assert "aarch64, 0xd08, Python 3.11" in capsys.readouterr().err
        assert board.left() == []
