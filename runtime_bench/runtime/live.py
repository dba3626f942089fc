"""`bgnn-run --stream`: inputs one after the other, as a robot's or a sensor's loop gives them, and their latencies.

From a folder each .npz is one item, in the order of the names (`cloud_9` before `cloud_10`). On standard input an item
is the file's inputs in their order, each in the form of an .npy file.
"""

from __future__ import annotations

import math
import re
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime import limits, streams
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

STANDARD_INPUT = "-"
Arrays = dict[str, np.ndarray]
Item = tuple[str, Callable[[], Arrays]]
"""An item's name, and what reads it; a BgnnError of the latter begins with the name."""


class ItemsFailed(BgnnError):
    """Some items could not be run; each was told about."""


def items(source: str, inputs: int) -> Iterator[Item]:
    """The items of a folder, or of standard input ("-"), for a file of so many inputs. Raises UsageError where there
    are none to expect: no folder, one without .npz files, a closed standard input or a terminal."""
    if inputs == 0:
        raise UsageError("the file has no inputs, so there is nothing to stream")
    if source == STANDARD_INPUT:
        if sys.stdin is None or sys.stdin.closed:
            raise UsageError("standard input is closed: pipe .npy arrays into it")
        if sys.stdin.isatty():
            raise UsageError("standard input is a terminal: pipe .npy arrays into it")
        return _piped(sys.stdin.buffer, inputs)
    folder = Path(source)
    if not folder.is_dir():
        reason = "not a folder" if folder.exists() else "no such folder"
        raise UsageError(f"--stream {source}: {reason} (- reads standard input)")
    paths = sorted(folder.glob("*.npz"), key=numbers_by_value)
    if not paths:
        raise UsageError(f"--stream {source}: the folder holds no .npz files")
    return ((path.name, lambda path=path: limits.read_npz(path, path.name)) for path in paths)  # type: ignore[misc]


def numbers_by_value(path: Path) -> list[tuple[int, str]]:
    parts = re.findall(r"([0-9]+)|([^0-9]+)", path.name)
    return [(int(number), "") if number else (-1, text) for number, text in parts]


def _piped(stream: Any, inputs: int) -> Iterator[Item]:
    """Ends where the stream does, and after an item that could not be read: where the next begins is not known then."""
    number, intact = 0, True
    while intact and _goes_on(stream):
        number, intact = number + 1, False

        def read(where: str = f"item {number}") -> Arrays:
            nonlocal intact
            found = {f"arr_{i}": limits.read_npy(stream, where, f"array {i + 1} of {inputs}") for i in range(inputs)}
            intact = True
            return found

        yield f"item {number}", read


def _goes_on(stream: Any) -> bool:
    try:
        return bool(stream.peek(1))
    except OSError as error:
        raise UsageError(f"standard input cannot be read ({error.strerror or error})") from error


class Latencies:
    """How long the runs took, of any number of items."""

    def __init__(self) -> None:
        self.milliseconds = array("d")
        self.failed = 0

    def percentile(self, percent: int) -> float:
        """The least latency that so many percent of the items did not exceed."""
        ordered = sorted(self.milliseconds)
        return ordered[max(math.ceil(percent / 100 * len(ordered)) - 1, 0)]

    def __str__(self) -> str:
        total = len(self.milliseconds) + self.failed
        text = f"{total} item{'' if total == 1 else 's'}" + (f", {self.failed} failed" if self.failed else "")
        if not self.milliseconds:
            return text
        figures = {f"p{percent}": self.percentile(percent) for percent in (50, 90, 99)}
        figures |= {"max": max(self.milliseconds), "first": self.milliseconds[0]}
        return f"{text}; latency, ms: {', '.join(f'{name} {ms:.2f}' for name, ms in figures.items())}"


def stream(source: str, inputs: int, run: Callable[[Arrays, str], Arrays], tell: Callable[[Arrays], str]) -> None:
    """Runs every item and prints a line for each, and the latencies at the end, or where it is stopped.

    `inputs`: how many the file has. `run` is given an item's arrays and name. `tell`: the outputs in one line. A
    latency is of the run alone: reading is not in it, checks and a graph's layout are. An item that cannot be read or
    run is told about, and the next one follows.
    Raises ItemsFailed where there was one, UsageError where there was nothing to run.
    """
    latencies = Latencies()
    with streams.results():  # whose reader may leave: nobody waits for the rest then
        try:
            for name, read in items(source, inputs):
                try:
                    given = read()
                    start = time.perf_counter_ns()
                    outputs = _named(name, run, given)
                    milliseconds = (time.perf_counter_ns() - start) / 1e6
                except BgnnError as error:
                    latencies.failed += 1
                    streams.complain(f"bgnn-run: {streams.one_line(str(error))}")
                    continue
                latencies.milliseconds.append(milliseconds)
                print(f"{streams.one_line(name)}: {milliseconds:.2f} ms; {tell(outputs)}", flush=True)
        finally:
            if latencies.milliseconds or latencies.failed:
                print(latencies, flush=True)
    if latencies.failed:
        raise ItemsFailed(f"{latencies.failed} of {latencies.failed + len(latencies.milliseconds)} items failed")
    if not latencies.milliseconds:
        raise UsageError("standard input held no arrays: pipe .npy arrays into it")


def _named(name: str, run: Callable[[Arrays, str], Arrays], given: Arrays) -> Arrays:
    try:
        return run(given, name)
    except BgnnError as error:
        raise BgnnError(f"{name}: {error}") from error
    except MemoryError as error:
        raise BgnnError(f"{name}: out of memory") from error
