"""The files that a command writes: all of them or none, and never in place of something else.

A file is written under a temporary name beside its place, and takes its place at the end, when all are complete. Until
the caller is done with telling so, what stood there before can come back. SIGINT, SIGTERM and SIGHUP between two steps
find nothing half done: they wait for the step's end, and then undo it (`stops_as_errors` turns them into exceptions).
Devices and pipes are written to, as a shell would.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from bgnn.runtime_bench.runtime.errors import UsageError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """The process was asked to end, by a signal other than SIGINT (that one is KeyboardInterrupt)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def stops_as_errors() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise `Stopped`, unless whoever started the process ignores them."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS[1:]}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, handler)


def check_output(path: Path, others: Mapping[str, Path]) -> None:
    """Raises UsageError unless `path` can be written and is none of the `others`, which are named by what they are."""
    with _named(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):  # too long a name, links in a ring
        path.stat()
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    if path.is_block_device() or path.is_socket():
        raise UsageError(f"cannot write {path}: it is no file, but a {'disk' if path.is_block_device() else 'socket'}")
    place = _place(path)
    if not place.parent.is_dir():
        raise UsageError(
            f"cannot write {path}: there is no folder {place.parent if path.is_symlink() else path.parent}"
        )
    if not os.access(path if path.exists() else place.parent, os.W_OK) or (
        not is_special(path) and not os.access(place.parent, os.W_OK)
    ):
        raise UsageError(f"cannot write {path}: permission denied")
    for what, other in others.items():
        if not path.is_char_device() and same_place(path, other):
            raise UsageError(f"cannot write {path}: it is {what}")


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths, of files that may not be there yet, lead to the same file."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return _place(one) == _place(other)


def is_special(path: Path) -> bool:
    """Whether there is something at `path` that is no regular file and can be written to: a device, a pipe."""
    return path.is_char_device() or path.is_fifo()


def write_files(files: Mapping[Path, bytes], announce: Callable[[], None] = lambda: None) -> None:
    """Writes all the files, then calls `announce`, which tells about them. After any exception none is there, and what
    was there before is back. Raises UsageError where a file cannot be written."""
    steps = _Steps()
    try:
        for path, data in files.items():
            with _named(path):
                if is_special(path):
                    continue
                steps.stage(_place(path), data)
        for path, data in files.items():
            if is_special(path):
                with _named(path):
                    _write_through(path, data)
        with _signals_wait():
            for path in files:
                with _named(path):
                    steps.put(_place(path))
        announce()
        with _signals_wait():
            steps.finish()
    except BaseException:
        with _signals_wait():
            steps.undo()
        raise


class _Steps:
    """Temporary files, and what they replaced."""

    def __init__(self) -> None:
        self.staged: dict[Path, Path] = {}
        self.done: dict[Path, Path | None] = {}  # places, and where what stood there before is kept

    def stage(self, place: Path, data: bytes) -> None:
        with _signals_wait():
            handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:40]}.")
            self.staged[place] = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        if place.exists():
            mode = stat.S_IMODE(place.stat().st_mode)
        else:
            umask = os.umask(0)
            os.umask(umask)
            mode = 0o666 & ~umask
        os.chmod(name, mode)

    def put(self, place: Path) -> None:
        if place not in self.staged:
            return
        kept = None
        if place.exists():
            kept = self.staged[place].with_name(f"{self.staged[place].name}.old")
            try:
                os.link(place, kept)
            except OSError:  # a file system without hard links
                shutil.copy2(place, kept)
        try:
            os.replace(self.staged[place], place)
        except OSError:
            if kept is not None:
                kept.unlink()
            raise
        del self.staged[place]
        self.done[place] = kept

    def undo(self) -> None:
        for temporary in self.staged.values():
            temporary.unlink(missing_ok=True)
        for place, kept in self.done.items():
            if kept is None:
                place.unlink(missing_ok=True)
            else:
                os.replace(kept, place)

    def finish(self) -> None:
        for kept in self.done.values():
            if kept is not None:
                kept.unlink(missing_ok=True)
        self.done.clear()


def _place(path: Path) -> Path:
    """Where a file named `path` lies: a symbolic link stays one, and the file it names is written."""
    return Path(os.path.realpath(path))


def _write_through(path: Path, data: bytes) -> None:
    # Without O_NONBLOCK, opening a pipe that nobody reads would wait for ever.
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO and path.is_fifo():
            raise UsageError(f"cannot write {path}: nobody reads this pipe") from error
        raise
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that arrive within the block are delivered after it.

    Not by the thread's signal mask: another thread of the process would take the signal, and Python would still run
    its handler in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python's handlers run in the main thread only
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    waiting = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in waiting:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in waiting.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
