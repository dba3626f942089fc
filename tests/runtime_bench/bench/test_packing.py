"""`bgnn-bench pack`: the archive runs where nothing but Python is, and what it writes is read here."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import boards
import pytest

from bgnn.runtime_bench.bench import board, cli, packing, records
from bgnn.runtime_bench.runtime.errors import BgnnError

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = boards.runtime_wheel(tmp_path)
    monkeypatch.setattr(packing, "runtime_wheel", lambda arch: made)
    monkeypatch.setattr(packing, "fetch_wheels", lambda *_: [made])
    return made


def pack(tmp_path: Path, *more: str) -> Path:
    """Unpacks what the command makes."""
    command = ["pack", *more, "-o", str(tmp_path / "pack.tar.gz"), "--rounds", "2", "--candidates", "LiteRT"]
    assert cli.main(command) == 0
    with tarfile.open(tmp_path / "pack.tar.gz") as archive:
        archive.extractall(tmp_path / "on the board", filter="data")
    return tmp_path / "on the board" / packing.TOP


@pytest.mark.slow
def test_a_pack_runs_and_its_records_are_read_here(
    tmp_path: Path, float_file: bytes, wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.tflite").write_bytes(float_file)
    room = pack(tmp_path, str(tmp_path / "a.tflite"), "--arch", platform.machine(), "--python", HERE)
    before = sorted(path.name for path in room.iterdir())
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", str(room / "run.sh")], env={"PATH": f"{python.parent}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in room.iterdir()) == sorted([*before, "records.jsonl"])
    (found,) = records.read(room / "records.jsonl")
    assert (found.case, found.candidate, found.settings["rounds"]) == ("a.tflite", "LiteRT", 2)
    assert cli.main(["compare", str(room / "records.jsonl"), str(room / "records.jsonl")]) == 0
    assert "a.tflite, LiteRT, 1 thread" in capsys.readouterr().out


def test_what_is_in_it(tmp_path: Path, float_file: bytes, wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tflite").write_bytes(float_file)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.tflite").write_bytes(float_file)
    room = pack(tmp_path, str(tmp_path / "a.tflite"), str(tmp_path / "b" / "a.tflite"), "--arch", "aarch64")
    assert "for aarch64 and Python 3.11: on the board, tar -xf it" in capsys.readouterr().err
    job = json.loads((room / "job.json").read_text())
    assert [one["path"] for one in job["files"]] == ["files/0/a.tflite", "files/1/a.tflite"]
    assert all((room / one["path"]).read_bytes() == float_file for one in job["files"])
    assert sorted(path.name for path in (room / "wheels").iterdir()) == ["bench.whl", wheel.name]
    done = subprocess.run([sys.executable, str(room / "board.py"), "run"], capture_output=True, text=True)
    if platform.machine() != "aarch64":
        assert done.returncode == 1
        assert "the pack is for aarch64 and Python 3.11, and this is Python" in done.stderr
        assert done.stderr.count("\n") == 1
    name = str(tmp_path / "a.tflite")
    assert cli.main(["pack", name, "-o", str(tmp_path / "p"), "--python", "2.7"]) == 2
    assert "--python 2.7: it is 3.10 or newer" in capsys.readouterr().err


def test_a_run_that_died_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the disk is full nobody could write why."""
    (tmp_path / board.EVENTS).write_bytes(b'{"say": "a"}\n{"say": "b"}\n{"say": "cut o')
    board.follow(tmp_path, 1)
    end = '{"end": true}'
    assert capsys.readouterr().out.splitlines() == ['{"say": "b"}', '{"error": "the run was killed", "code": 1}', end]
    full = type(shutil.disk_usage("/"))(1 << 30, 1 << 30, 4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    board.follow(tmp_path, 2)
    told, last = capsys.readouterr().out.splitlines()
    assert json.loads(told)["error"] == f"the disk is full: {tmp_path.parent}"
    assert last == end


def test_an_event_is_whole_or_not_there(tmp_path: Path) -> None:
    """A file that may not grow further, as on a full disk."""
    script = (
        "import sys, resource, signal; from pathlib import Path; from bgnn.runtime_bench.bench.board import _Events\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "events = _Events(Path(sys.argv[1])); events.say('a' * 60)\n"
        "try: events.say('b' * 60)\n"
        "except OSError: events.say('c')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "events")], check=True)
    said = [json.loads(line)["say"] for line in (tmp_path / "events").read_text().splitlines()]
    assert said == ["a" * 60, "c"]


def test_what_pip_does_not_find_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BgnnError) as caught:
        packing.fetch_wheels(Path("numpy"), "aarch64", "3.11", 31, False, tmp_path)  # a name will do
    assert str(caught.value).startswith("pip finds no wheels for aarch64, Python 3.11, glibc 2.31 (ai-edge-litert ")
    assert str(caught.value).endswith("No matching distribution found for numpy")


def test_wheels_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BgnnError, match=r"no wheel of bgnn-runtime for riscv64 in .*dist or \./dist: make wheels"):
        packing.runtime_wheel("riscv64")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dist").mkdir()
    boards.runtime_wheel(tmp_path).rename(tmp_path / "dist" / "bgnn_runtime-0-py3-none-any_riscv64.whl")
    assert packing.runtime_wheel("riscv64").name.endswith("riscv64.whl")
    room = tmp_path / "room"
    room.mkdir()
    (room / "run.py").write_text("")
    monkeypatch.setattr(packing, "ROOM", room)
    with pytest.raises(BgnnError, match=r"riscv64\.whl is of other sources than those here: make wheels"):
        packing.runtime_wheel("riscv64")
