"""Files that a command writes: all of them or none, whatever happens; devices and pipes stay what they are."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from bgnn.runtime_bench.runtime import outputs
from bgnn.runtime_bench.runtime.errors import UsageError
from bgnn.runtime_bench.runtime.outputs import Stopped, check_output, stops_as_errors, write_files


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_all_are_written(tmp_path: Path) -> None:
    write_files({tmp_path / "a": b"1", tmp_path / "b": b"22"})
    assert (tmp_path / "a").read_bytes() == b"1"
    assert (tmp_path / "b").read_bytes() == b"22"
    assert names(tmp_path) == {"a", "b"}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [UsageError("no"), KeyboardInterrupt(), Stopped(signal.SIGTERM), BrokenPipeError()])
def test_none_is_written_where_the_announcement_fails(tmp_path: Path, old: bool, error: BaseException) -> None:
    if old:
        (tmp_path / "a").write_bytes(b"old")

    def announce() -> None:
        assert (tmp_path / "a").read_bytes() == b"1"
        raise error

    with pytest.raises(type(error)):
        write_files({tmp_path / "a": b"1", tmp_path / "b": b"22"}, announce)
    assert names(tmp_path) == ({"a"} if old else set())
    if old:
        assert (tmp_path / "a").read_bytes() == b"old"


def test_none_is_written_where_the_second_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UsageError, match=r"cannot write .*nowhere"):
        write_files({tmp_path / "a": b"1", tmp_path / "nowhere" / "b": b"22"})
    assert names(tmp_path) == {"a"}
    real = os.replace

    def full(source: Any, target: Any) -> None:  # the disk fills when the second takes its place
        if Path(target).name == "b":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UsageError, match=r"cannot write .*b: No space left"):
        write_files({tmp_path / "a": b"1", tmp_path / "b": b"22"})
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", ["mkstemp", "chmod", "link", "replace"])
def test_a_signal_between_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    where: Any = outputs.tempfile if step == "mkstemp" else os
    real = getattr(where, step)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        monkeypatch.setattr(where, step, real)
        os.kill(os.getpid(), number)
        return found

    monkeypatch.setattr(where, step, interrupted)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Stopped) as caught, stops_as_errors():
        write_files({tmp_path / "a": b"1", tmp_path / "b": b"22"})
    if number != signal.SIGINT:
        assert caught.value.exit_code == 128 + number  # type: ignore[union-attr]
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"old"


def test_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stops_as_errors():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    thread = threading.Thread(target=write_files, args=({},))
    thread.start()
    thread.join()


def test_pipes_and_devices_are_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="nobody reads this pipe"):
        write_files({tmp_path / "a": b"1", pipe: b"22"})
    assert names(tmp_path) == {"pipe"}
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_files({tmp_path / "a": b"1", pipe: b"22"})
    assert os.read(reader, 9) == b"22"
    os.close(reader)
    assert pipe.is_fifo()
    (tmp_path / "link").symlink_to("/dev/null")
    check_output(tmp_path / "link", {})
    write_files({tmp_path / "link": b"333"})
    assert Path("/dev/null").is_char_device()
    assert (tmp_path / "link").is_symlink()


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_files({tmp_path / "link": b"new"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_outputs_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    os.link(tmp_path / "in", tmp_path / "same")
    for path in (tmp_path / "in", tmp_path / "same", tmp_path / "." / "in"):
        with pytest.raises(UsageError, match="it is the input"):
            check_output(path, {"the input": tmp_path / "in"})
    with pytest.raises(UsageError, match="it is the output"):  # neither is there yet
        check_output(tmp_path / "new", {"the output": tmp_path / ".." / tmp_path.name / "new"})
    check_output(tmp_path / "new", {"the input": tmp_path / "in"})
    (tmp_path / "round").symlink_to("round")
    for name, reason in (("round", "symbolic links"), ("n" * 300, "too long"), ("in/new", "no folder")):
        with pytest.raises(UsageError, match=rf"cannot write .*: .*{reason}"):
            check_output(tmp_path / name, {})
