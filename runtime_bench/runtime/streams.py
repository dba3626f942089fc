"""Standard output and standard error of the commands: what they print never breaks them, and never goes unnoticed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from typing import TextIO

from bgnn.runtime_bench.runtime.errors import BgnnError

_MOST_MESSAGE = 4000


def make_safe() -> None:
    """No character fails to be printed, and what opens a file does not get the number of a closed standard stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def results() -> Iterator[None]:
    """For a block that prints to standard output: its reader may leave (`| head`), which is no error. That it takes
    nothing (a full disk) is one: BgnnError."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget(sys.stdout)
    except OSError as error:
        _forget(sys.stdout)
        raise BgnnError(f"cannot write to standard output: {error.strerror or error}") from error


def complain(line: str) -> None:
    """Prints a line on standard error, if somebody takes it."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def fail(said_by: str, message: str, code: int, debug: bool = False) -> int:
    """Tells why a command ends, in one line (`debug`: after the traceback), and returns its exit code."""
    if debug:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    complain(f"{said_by}: {one_line(message)}")
    return code


def one_line(message: str) -> str:
    """Without line ends and other control characters, which names in a file may hold."""
    text = "".join(c if c.isprintable() else " " for c in message[:_MOST_MESSAGE])
    return " ".join(text.split())


def _forget(stream: TextIO) -> None:
    """What is left in it would fail again when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
