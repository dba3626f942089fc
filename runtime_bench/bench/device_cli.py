"""`--device` and `bgnn-bench pack`: the command's side of `devices` and `packing`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench.candidates import DELEGATE, DELEGATE_PLAIN, LCE, Candidate
from bgnn.runtime_bench.bench.devices import measured_on
from bgnn.runtime_bench.bench.emulated import EMULATOR, MODEL, model_file, run_emulated
from bgnn.runtime_bench.bench.inputs import Inputs, inputs_for
from bgnn.runtime_bench.bench.packing import ARCHITECTURES, OLDEST, Job, make_pack, reports
from bgnn.runtime_bench.bench.profile import Operator, Profile
from bgnn.runtime_bench.bench.records import Record
from bgnn.runtime_bench.runtime.errors import UsageError
from bgnn.runtime_bench.runtime.outputs import write_files

Work = Sequence[tuple[Path, bytes, Sequence[Candidate]]]
Say = Callable[[str], None]
# What pip's tags of a pack's wheels promise: Debian 11, Raspberry Pi OS 11 and Ubuntu 20.10 have it, and all since.
PACKED_GLIBC = 31


DEVICES = (
    f"measure there: ssh://user@host[:port]; {EMULATOR}: instructions and outputs, no time; {MODEL}: each operator's "
    "time, MODELLED"
)


def add_device(parser: argparse.ArgumentParser) -> None:
    """What `run` and `profile` take."""
    parser.add_argument("--device", default="", metavar="URL", help=DEVICES)
    parser.add_argument("--keep", action="store_true", help="leave on the board what was sent to it")


def add_pack(parser: argparse.ArgumentParser) -> None:
    """What `pack` alone takes."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the archive, .tar.gz")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="aarch64", help="the board's (default: aarch64)")
    parser.add_argument(
        "--python", default="3.11", metavar="X.Y", help="the board's (default: 3.11, Raspberry Pi OS 12's)"
    )


def _job(given: argparse.Namespace, do: str, work: Work, threads: Sequence[int]) -> Job:
    files = []
    for path, content, candidates in work:
        # LCE's interpreter has no wheel for boards.
        names = [row.name for row in candidates if row.name != LCE]
        if not names:
            raise UsageError(f"{LCE} has no wheel for boards: name another candidate")
        files.append((path, content, names))
    beside = reports([path for path, _, _ in work])
    return Job(do, files, list(dict.fromkeys(threads)), given.rounds, given.seed, given.input, beside)


def run(
    given: argparse.Namespace, work: Work, arrays: Mapping[str, np.ndarray] | None, say: Say
) -> Generator[list[Record], None, None]:
    """The records of `bgnn-bench run`, those of the same rounds together, as they come. What came is complete."""
    # What is no model, or not for these inputs, goes nowhere.
    inputs = [inputs_for(path, content, arrays, given.seed) for path, content, _ in work]
    if given.device not in (EMULATOR, MODEL):
        job = _job(given, "run", work, given.threads)
        for event in measured_on(given.device, job, given.keep, say):
            yield event["records"]
        return
    if given.threads != [1] or given.rounds is not None or given.keep:
        raise UsageError(f"{given.device} counts one run on one thread: leave out --threads, --rounds and --keep")
    for (path, content, candidates), arrays_there in zip(work, inputs, strict=True):
        if given.device == EMULATOR:
            # LCE's interpreter is not there.
            yield run_emulated(path, content, arrays_there, [row for row in candidates if row.name != LCE], say)
        else:
            able = [row for row in candidates if row.name in (DELEGATE, DELEGATE_PLAIN)]
            if not able:
                raise UsageError(f"{path}: {MODEL} models TFLite files on {DELEGATE} or {DELEGATE_PLAIN}")
            yield model_file(path, content, arrays_there, able[0], say)


def profile(
    given: argparse.Namespace, content: bytes, candidate: Candidate, inputs: Inputs, say: Say
) -> tuple[Profile, dict[str, Any], list[Record]]:
    """`profile.profiled` on a board; `inputs` are made anew there."""
    if given.device in (EMULATOR, MODEL):
        raise UsageError(f"{given.device} has no clock: bgnn-bench run --device {MODEL} models operators")
    job = _job(given, "profile", [(given.file, content, [candidate])], [given.threads])
    *_, event = measured_on(given.device, job, given.keep, say)
    told = event["profile"]
    return (
        Profile([Operator(**one) for one in told["operators"]], told["total_ms"]),
        event["settings"],
        event["records"],
    )


def pack(given: argparse.Namespace, work: Work, arrays: Mapping[str, np.ndarray] | None, say: Say) -> None:
    """Writes the archive."""
    version = re.fullmatch(r"3\.(\d{1,2})", given.python)
    if version is None or (3, int(version[1])) < OLDEST:
        raise UsageError(f"--python {given.python}: it is 3.{OLDEST[1]} or newer, as in --python 3.{OLDEST[1] + 1}")
    for path, content, _ in work:
        inputs_for(path, content, arrays, given.seed)
    job = _job(given, "run", work, given.threads)
    made = make_pack(job, given.arch, given.python, PACKED_GLIBC)
    write_files(
        {given.output: made.data},
        lambda: say(
            f"written: {given.output} ({len(made.data) / 1e6:.0f} MB; {made.unpacked_bytes / 1e6:.0f} MB in use), for "
            f"{given.arch} and Python {given.python}: on the board, tar -xf it, then sh bgnn-bench/run.sh"
        ),
    )
