"""`--device ssh://...` with a real sshd on loopback: what goes right, and that whatever goes wrong is one line, leaves
nothing on the board and keeps what was measured. Times decide nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boards
import pytest

from bgnn.runtime_bench.bench import cli, devices, packing, records
from bgnn.runtime_bench.bench.devices import Ssh
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[boards.TestBoard]:
    # A short path: sockets and process names are looked for by it.
    with boards.board(tmp_path_factory.mktemp("board")) as found:
        yield found


@pytest.fixture
def board(server: boards.TestBoard, monkeypatch: pytest.MonkeyPatch) -> boards.TestBoard:
    """The packages that the runtime needs are those of the Python here: fetching them has a slow test of its own."""
    server.reset()
    wheel = boards.runtime_wheel(server.folder)
    monkeypatch.setattr(packing, "runtime_wheel", lambda arch: wheel)
    monkeypatch.setattr(packing, "fetch_wheels", lambda *_: [wheel])
    monkeypatch.setenv("PATH", f"{server.folder}/client{os.pathsep}{os.environ['PATH']}")
    return server


@pytest.fixture
def files(tmp_path: Path, float_file: bytes) -> list[Path]:
    for name in ("a.tflite", "b.tflite"):
        (tmp_path / name).write_bytes(float_file)
    return [tmp_path / "a.tflite", tmp_path / "b.tflite"]


QUICK = ["--rounds", "2", "--candidates", "LiteRT"]


def run(*arguments: object) -> int:
    return cli.main(["run", *map(str, arguments)])


def error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bgnn-bench: error: ")]
    assert len(lines) == 1, lines
    return lines[0].removeprefix("bgnn-bench: error: ")


def nothing_left(board: boards.TestBoard) -> bool:
    for _ in range(100):  # a follower ends a moment after its connection
        if not board.left():
            return True
        time.sleep(0.1)
    print(board.left())
    return False


@pytest.mark.slow
def test_a_good_run(
    board: boards.TestBoard, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.jsonl"
    (board.folder / "environment").write_text("echo Welcome to the board\n")
    assert run(files[0], "--device", board.url, *QUICK, "LiteRT + ours", "--json", out) == 0
    found = records.read(out)
    assert [(one.case, one.candidate) for one in found] == [("a.tflite", "LiteRT"), ("a.tflite", "LiteRT + ours")]
    assert all(one.settings["on"] == f"127.0.0.1:{board.port}" and one.settings["rounds"] == 2 for one in found)
    assert not any(one.modelled for one in found)
    printed = capsys.readouterr().out
    assert "a.tflite: " in printed
    assert "2 interleaved rounds" in printed
    assert nothing_left(board)
    profile = ["profile", str(files[0]), "--device", board.url, "--rounds", "2", "--json", str(out)]
    profile += ["--candidate", "LiteRT + ours without XNNPACK", "--keep"]
    assert cli.main(profile) == 0
    assert [one.settings["type"] for one in records.read(out)] == ["ABS", "NEG"]
    captured = capsys.readouterr()
    assert "by operator" in captured.out
    (place,) = board.tmp.iterdir()
    assert f"{place.name} in its temporary folder" in captured.err
    assert (place / "bgnn-bench" / "events.jsonl").exists()
    assert board.left() == [str(place)], "no process"


@pytest.mark.slow
def test_a_lost_connection_is_made_anew(
    board: boards.TestBoard, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = []

    def drop() -> None:  # once the first file is measured
        while (
            not list(board.tmp.glob("*/*/events.jsonl"))
            or b'"records"' not in next(board.tmp.glob("*/*/events.jsonl")).read_bytes()
        ):
            time.sleep(0.05)
        dropped.extend(board.sessions())
        for number in dropped:
            os.kill(number, signal.SIGKILL)

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    assert run(*files, "--device", board.url, *QUICK, "--json", tmp_path / "r.jsonl") == 0
    assert dropped
    assert "connecting again" in capsys.readouterr().err
    assert [one.case for one in records.read(tmp_path / "r.jsonl")] == ["a.tflite", "b.tflite"]
    assert nothing_left(board)


def kill_measuring(board: boards.TestBoard) -> None:
    (place,) = board.tmp.glob("*/*/pid")
    found = subprocess.run(["pgrep", "-P", place.read_text()], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)


def kill_all(board: boards.TestBoard) -> None:
    (place,) = board.tmp.glob("*/*/pid")
    os.killpg(int(place.read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        (kill_measuring, 1, "the measuring process was killed by SIGKILL"),
        (kill_all, 1, "the run was killed"),
        (lambda _: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM"),
    ],
    ids=["measuring", "all", "here"],
)
def test_a_killed_run_keeps_what_is_measured(
    board: boards.TestBoard, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, how: Callable[[boards.TestBoard], None], code: int, message: str,
) -> None:  # fmt: skip
    say = cli._say

    def watch(line: str) -> None:
        say(line)
        if "b.tflite, LiteRT: alone" in line:
            how(board)

    monkeypatch.setattr(cli, "_say", watch)
    assert run(*files, "--device", board.url, *QUICK, "--json", tmp_path / "r.jsonl") == code
    assert message in error(capsys)
    assert [one.case for one in records.read(tmp_path / "r.jsonl")] == ["a.tflite"]
    assert nothing_left(board)


@pytest.mark.slow
def test_what_is_wrong_is_one_line(
    board: boards.TestBoard, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def failed(*more: object, device: str = board.url) -> str:
        assert run(*(more or files), "--device", device, *QUICK, "--json", tmp_path / "r.jsonl") == 1
        assert nothing_left(board)
        assert not (tmp_path / "r.jsonl").exists()
        return error(capsys)

    # the way there
    assert failed(device="ssh://127.0.0.1:1") == "cannot reach 127.0.0.1:1: Connection refused"
    known = board.folder / "known_hosts"
    known.write_text("")
    assert "is not known here: connect once by hand and compare it: ssh -p" in failed()
    kind, key, *_ = (board.folder / "other.pub").read_text().split()
    known.write_text(f"[127.0.0.1]:{board.port} {kind} {key}\n")
    assert "is not the one that is known for it" in failed()
    board.know_host()
    config = board.folder / "ssh_config"
    right = config.read_text()
    config.write_text(right.replace(f"{board.folder}/key", f"{board.folder}/other"))
    assert "refuses the login (publickey): no password is asked for" in failed()
    config.write_text(right)

    # the board
    board.script("uname", "echo Linux armv7l")
    assert failed() == f"127.0.0.1:{board.port} is Linux armv7l: it takes Linux on aarch64 or x86_64"
    board.reset()
    board.script("python3", "echo 'python3: it is broken' >&2; exit 1")
    assert failed().endswith("its python3 does not run: python3: it is broken")
    board.reset()
    with monkeypatch.context() as patch:
        patch.setattr(devices, "SPARE_BYTES", 1 << 50)
        assert "the disk of" in (line := failed())
        assert "MB are needed" in line
    (board.folder / "environment").write_text("ulimit -f 100\n")  # 512-byte blocks
    assert failed() == f"cannot put the files on 127.0.0.1:{board.port}: its disk is full"
    board.reset()

    # the files
    text = tmp_path / "text.tflite"
    text.write_text("no model")
    assert "text.tflite is neither a TFLite file" in failed(files[0], text)
    text.write_bytes(files[0].read_bytes()[:200])
    assert "refuses" in (line := failed(files[0], text)) or "damaged" in line
    assert run(files[0], "--device", board.url, "--candidates", "LCE") == 2
    assert "LCE has no wheel for boards" in error(capsys)


@pytest.mark.slow
def test_a_board_left_alone_cleans_up(board: boards.TestBoard, files: list[Path]) -> None:
    job = packing.Job("run", [(files[0], files[0].read_bytes(), ["LiteRT"])], [1], 10**6, 0, None)
    ssh = Ssh.parse(board.url)
    found = devices.look_at(ssh)
    pack = packing.make_pack(job, found["arch"], "3.11", 31, patience=2, keep=False)
    devices.Board(ssh, False, lambda line: None).start(pack)
    assert board.left(), "it runs, and nobody follows"
    assert nothing_left(board)


@pytest.mark.parametrize(
    ("url", "ssh"),
    [
        ("ssh://pi@board", Ssh("board", "pi")),
        ("ssh://board:2222", Ssh("board", "", 2222)),
        ("ssh://pi@[::1]:22/", Ssh("::1", "pi", 22)),
    ],
)
def test_a_device_is_a_url(url: str, ssh: Ssh) -> None:
    assert Ssh.parse(url) == ssh


@pytest.mark.parametrize(
    "url",
    ["board", "http://board", "ssh://", "ssh://-oProxyCommand=x", "ssh://-l@x", "ssh://a:b@c", "ssh://a/b", "ssh://a:0x1",
     "ssh://a:99999", "ssh://a b"],
)  # fmt: skip
def test_anything_else_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        Ssh.parse(url)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("ssh: Could not resolve hostname x: Name or service not known", "cannot reach x: Name or service not known"),
        ("ssh: connect to host x port 22: Connection timed out", "cannot reach x: Connection timed out"),
        ("Timeout, server x not responding.", "the connection to x failed: Timeout, server x not responding."),
        ("", "the connection to x failed: ssh said nothing"),
        ("a@x: Permission denied (publickey).",
         "x refuses the login (publickey): no password is asked for; set up a key, then try ssh -l a x"),
    ],
)  # fmt: skip
def test_what_ssh_says(said: str, line: str) -> None:
    assert Ssh("x", "a").why(f"Warning: Permanently added.\n{said}\r\n".encode()) == line


GOOD = {"python": [3, 11], "bits": 64, "libc": ["glibc", "2.36"], "part": "0xd08", "memory": 1 << 30,
        "folder": "/tmp", "free": 1 << 34}  # fmt: skip


@pytest.mark.parametrize(
    ("first", "code", "told", "message"),
    [
        ("Linux aarch64", 9, "", "x has no python3: install Python 3.10 or newer on it"),
        ("Linux aarch64", 0, {**GOOD, "python": [3, 9]}, "x has Python 3.9: 3.10 or newer is needed"),
        ("Linux aarch64", 0, {**GOOD, "bits": 32}, "the Python of x is a 32-bit one"),
        ("Linux aarch64", 0, {**GOOD, "libc": ["", ""]}, "x has no glibc"),
        ("Linux aarch64", 1, "", "x: its python3 does not run: broken"),
        ("Darwin arm64", 0, GOOD, "x is Darwin arm64: it takes Linux on aarch64 or x86_64"),
        ("", 127, "", "x is no Unix"),
    ],
)
def test_a_board_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, first: str, code: int, told: object, message: str
) -> None:
    text = f"Welcome!\nbgnn-bench:\n{first}\n{json.dumps(told) if told else ''}\n".encode()
    done = subprocess.CompletedProcess([], code, text, b"more\nbroken\n")
    monkeypatch.setattr(Ssh, "run", lambda *_: done)
    with pytest.raises(BgnnError) as caught:
        devices.look_at(Ssh("x"))
    assert str(caught.value).startswith(message)


def test_what_a_board_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"bgnn-bench:\nLinux aarch64\n{json.dumps(GOOD)}\n".encode()
    monkeypatch.setattr(Ssh, "run", lambda *_: subprocess.CompletedProcess([], 0, text, b""))
    found = devices.look_at(Ssh("x"))
    assert found == {"arch": "aarch64", **GOOD}
    pack = packing.Pack(b"0" * 1000, 4000)
    devices.check_room(Ssh("x"), found, pack, 1000)
    devices.check_room(Ssh("x"), {**found, "memory": 0}, pack, 1000)  # it does not tell
    with pytest.raises(BgnnError, match="the disk of x is too full: /tmp has 5 MB left, and 67 MB are needed"):
        devices.check_room(Ssh("x"), {**found, "free": 5_000_000}, pack, 1000)
    with pytest.raises(BgnnError, match="x has 100 MB of memory left, and 138 MB are needed"):
        devices.check_room(Ssh("x"), {**found, "memory": 100_000_000}, pack, 1_000_000)


def test_a_board_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two events, then nothing: what came is kept, and the line says what ssh said."""
    tries = iter(
        ['echo \'{"say": "a"}\'; echo; echo \'{"say": "b"}\'; printf \'{"say\'; exit 255']
        + ["echo 'ssh: connect to host x port 22: No route to host' >&2; exit 255"] * 3
    )
    monkeypatch.setattr(Ssh, "command", lambda *_: ["sh", "-c", next(tries)])
    monkeypatch.setattr(devices, "RETRY_SECONDS", 0.5)
    said: list[str] = []
    came: list[object] = []

    def follow() -> None:
        with devices.Board(Ssh("x"), False, said.append) as board:
            for event in board.events():
                came.append(event)

    with pytest.raises(devices.Lost, match="cannot reach x: No route to host, for 0 seconds"):
        follow()
    assert came == [{"say": "a"}, {"say": "b"}]
    assert said[0] == "the connection to x failed: ssh said nothing; connecting again"
    assert said[-1].endswith("the board stops and removes what it has of the run by itself within 10 minutes")


def test_no_ssh_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BgnnError, match="no ssh client here"):
        devices.look_at(Ssh("x"))
