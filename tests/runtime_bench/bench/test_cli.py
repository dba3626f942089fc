"""`bgnn-bench`: what it prints and writes, and that whatever is wrong is one line. Times decide nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench_records import record

from bgnn.runtime_bench.bench import cli, records, running
from bgnn.runtime_bench.bench.candidates import Alone
from bgnn.runtime_bench.runtime.errors import BgnnError


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fresh processes: they take a second each, and have tests of their own."""
    monkeypatch.setattr(running, "run_alone", lambda *_: Alone(2.0, 3.0, 1.0, 60 << 20, 50 << 20, 1 << 20))


def failed(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    assert cli.main([str(one) for one in arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bgnn-bench: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("bgnn-bench: error: ")


def test_run_prints_and_writes_records(
    tmp_path: Path, float_file: bytes, alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.tflite").write_bytes(float_file)
    names = ["LiteRT", "LiteRT without XNNPACK"]
    arguments = ["run", tmp_path / "a.tflite", "--rounds", 3, "--threads", 1, 2, "--json", tmp_path / "r.jsonl"]
    assert cli.main([*map(str, arguments), "--candidates", *names]) == 0
    printed = capsys.readouterr().out
    for text in (*names, "1 thread,", "2 threads,", "x as fast as", "10.5", "3 interleaved rounds", "pinned to"):
        assert text in printed
    found = records.read(tmp_path / "r.jsonl")
    assert [(one.candidate, one.threads) for one in found] == [(name, n) for n in (1, 2) for name in names]
    assert len({one.run for one in found}) == 2, "rounds of their own for each number of threads"
    for one in found:
        assert (one.case, one.modelled, one.settings["base"]) == ("a.tflite", False, ["a.tflite", "LiteRT"])
        assert len(one.samples["wall_ms"]) == len(one.samples["cpu_ms"]) == one.settings["rounds"] == 3
        assert one.samples["file_bytes"] == [len(float_file)]
        assert one.samples["difference"] == [0]
        assert one.versions["numpy"] == np.__version__
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tflite", "r.jsonl"]


def test_what_cannot_run_is_said(tmp_path: Path, lce_file: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tflite").write_bytes(lce_file)
    arguments = ["run", tmp_path / "a.tflite", "--rounds", 1, "--candidates", "LiteRT", "LiteRT + ours"]
    assert cli.main(list(map(str, arguments))) == 0
    printed = capsys.readouterr().out
    assert (
        "left out: a.tflite, LiteRT: LiteRT refuses the file: Encountered unresolved custom op: LceQuantize" in printed
    )
    message = failed(capsys, 1, *arguments[:-1])
    assert message.startswith("nothing runs a.tflite, LiteRT: LiteRT refuses the file")


def test_what_is_measured_is_kept(
    tmp_path: Path, float_file: bytes, alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.tflite").write_bytes(float_file)
    (tmp_path / "b.tflite").write_bytes(float_file[:200])
    arguments = [tmp_path / "a.tflite", tmp_path / "b.tflite", "--rounds", 1, "--json", tmp_path / "r.jsonl"]
    failed(capsys, 1, "run", *arguments, "--candidates", "LiteRT")
    assert [one.case for one in records.read(tmp_path / "r.jsonl")] == ["a.tflite"]


def test_a_killed_run_keeps_what_is_measured(
    tmp_path: Path, float_file: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_one(path: Path, *_: object) -> list[records.Record]:
        if path.name == "b.tflite":
            raise KeyboardInterrupt
        return [record(file_bytes=[9])]

    monkeypatch.setattr(cli, "run_file", measure_one)
    for name in ("a.tflite", "b.tflite"):
        (tmp_path / name).write_bytes(float_file)
    arguments = [tmp_path / "a.tflite", tmp_path / "b.tflite", "--json", tmp_path / "r.jsonl"]
    assert failed(capsys, 130, "run", *arguments) == "interrupted"
    assert [one.case for one in records.read(tmp_path / "r.jsonl")] == ["a.tflite"]


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ["run", "none.tflite"], "cannot read none.tflite: No such file"),
        (2, ["run", "."], "cannot read .: Is a directory"),
        (1, ["run", "text.onnx"], "ONNX Runtime refuses the file"),
        (1, ["run", "text.tflite"], "text.tflite is neither a TFLite file"),
        (1, ["run", "empty.onnx"], "empty.onnx is empty"),
        (1, ["run", "half.tflite"], "damaged|refuses"),
        (2, ["run", "a.tflite", "--threads", "0"], "--threads = 0"),
        (2, ["run", "a.tflite", "--rounds", "0"], "--rounds 0: at least one"),
        (2, ["run", "a.tflite", "--seed", "-1"], "--seed -1"),
        (2, ["run", "a.tflite", "--input", "text.onnx"], "not a readable .npz"),
        (2, ["run", "a.tflite", "--input", "b.npz"], "missing y"),
        (2, ["run", "a.tflite", "--candidates", "fast"], "no candidate 'fast'"),
        (2, ["run", "a.tflite", "--json", "a.tflite"], "cannot write a.tflite: it is the file a.tflite"),
        (2, ["run", "a.tflite", "--json", "no/folder"], "there is no folder no"),
        (2, ["compare", "none", "none"], "cannot read none"),
        (1, ["compare", "text.onnx", "text.onnx"], "text.onnx, line 1, is no record of bgnn-bench"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], float_file: bytes, code: int,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.savez("b.npz", x=np.ones((2, 3), np.float32))
    for name, content in (
        ("text.onnx", b"some text"), ("text.tflite", b"some text"), ("empty.onnx", b""), ("a.tflite", float_file),
        ("half.tflite", float_file[: len(float_file) // 2]),
    ):  # fmt: skip
        Path(name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    assert re.search(message, failed(capsys, code, *arguments))
    assert sorted(tmp_path.iterdir()) == before


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "none.tflite", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert cli.main(["walk"]) == 2


def test_a_bug_is_told_as_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(records, "read", lambda path: 1 / 0)
    assert "internal error: ZeroDivisionError" in failed(capsys, 1, "compare", "a", "b")
    monkeypatch.setattr(records, "read", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    assert failed(capsys, 130, "compare", "a", "b") == "interrupted"


def compared(tmp_path: Path, capsys: pytest.CaptureFixture[str], *after: records.Record) -> str:
    before = [record(), record("fast", cpu_ms=[0.5, 1])]
    for name, content in (("a", before), ("b", after)):
        (tmp_path / name).write_bytes(records.write(content))
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    return capsys.readouterr().out


def test_compare_on_one_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = compared(tmp_path, capsys, record(), record("fast", cpu_ms=[0.25, 0.5]))
    assert "A: elapsed ms" in said
    (row,) = (line for line in said.splitlines() if "fast, 1 thread" in line)
    assert [cell.strip() for cell in row.split("│")[3:6]] == ["2.00 (2.00-2.00)", "4.00 (4.00-4.00)", "2.00"]


@pytest.mark.parametrize("modelled", [False, True])
def test_times_of_different_machines_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], modelled: bool
) -> None:
    other = [record(id="here" if modelled else "there"), record("fast", id="here" if modelled else "there")]
    said = compared(tmp_path, capsys, *(dataclasses.replace(one, modelled=modelled) for one in other))
    assert "elapsed" not in said
    assert "times are not compared, only ratios" in said
    assert ("modelled" in said) == modelled
    assert "2.00 (2.00-2.00)" in said


def test_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, inputs in (("a", "given"), ("b", "random")):
        (tmp_path / name).write_bytes(records.write([record(settings={"inputs": inputs})]))
    assert "in common" in failed(capsys, 1, "compare", tmp_path / "a", tmp_path / "b")


def test_noise_and_throttling_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    from bgnn.runtime_bench.bench import report

    how = {"throttled": ["cores too hot, 2 times"], "cores": [1], "after": {"governor": "powersave", "load": 3}}
    calm = [record(settings=how, file_bytes=[9]), record("calm", how, cpu_ms=[0.5, 1])]
    lines = report.remarks([*calm, record("rough", how, cpu_ms=[0.5, 9])])
    assert lines[0].startswith("the machine was too noisy for rough: ")
    assert lines[1] == "the machine throttled while it measured: cores too hot, 2 times"
    assert lines[2] == "governor powersave; load 3; pinned to processors 1"
    assert len(report.remarks(calm)) == 2
    report.print_run(calm)
    assert "9 bytes" in capsys.readouterr().out


def test_measuring_files_needs_no_compiler_and_no_torch(tmp_path: Path, float_file: bytes) -> None:
    """A board has neither."""
    (tmp_path / "a.tflite").write_bytes(float_file)
    code = (
        "import sys\nfrom bgnn.runtime_bench.bench import cli\n"
        f"code = cli.main(['run', {str(tmp_path / 'a.tflite')!r}, '--rounds', '1', '--candidates', 'LiteRT'])\n"
        "print(code, [name for name in sys.modules if name in ('torch', 'onnx', 'bgnn.converter', 'bgnn.passes')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_json_lines_are_plain(tmp_path: Path) -> None:
    assert json.loads(records.write([record()]))["case"] == "a.tflite"
    with pytest.raises(BgnnError):
        records.read(Path(__file__))
