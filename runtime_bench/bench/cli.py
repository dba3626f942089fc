"""`bgnn-bench`: what converted files take, on this machine, beside whatever else runs them.

Tables go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 a file or a runtime failed,
2 the command is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from bgnn.runtime_bench.bench import records, report
from bgnn.runtime_bench.bench.candidates import CANDIDATES, candidates_for
from bgnn.runtime_bench.bench.inputs import inputs_for
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.records import Record
from bgnn.runtime_bench.bench.running import new_run, run_file
from bgnn.runtime_bench.runtime import limits, streams
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.outputs import Stopped, check_output, stops_as_errors, write_files


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="bgnn-bench", description=__doc__.partition("\n")[0])
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", parents=[debug], help="measure files: time, memory, size",
        description="Runs each file by every candidate that can: alone in a fresh process, then all in interleaved "
        "rounds. Times are medians with quartiles; a ratio is taken within a round.",
    )  # fmt: skip
    run.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a .tflite or .onnx file, ours or any other")
    run.add_argument("--input", type=Path, metavar="NPZ", help="the files' inputs by name (default: random ones)")
    run.add_argument("--seed", type=int, default=0, help="of the random inputs (default: 0)")
    run.add_argument("--threads", type=int, nargs="+", default=[1], metavar="N", help="one table for each (default: 1)")
    run.add_argument(
        "--candidates", nargs="+", default=[], metavar="NAME",
        help=f"only these of {', '.join(row.name for row in CANDIDATES)}",
    )  # fmt: skip
    plan = Schedule()
    run.add_argument(
        "--rounds", type=int,
        help=f"exactly so many (default: {plan.rounds}, for {plan.seconds:g} to {plan.longest:g} seconds each)",
    )  # fmt: skip
    run.add_argument("--json", type=Path, metavar="FILE", help="write the records there, one a line")

    compare = commands.add_parser(
        "compare", parents=[debug], help="two files of records beside each other",
        description="Ratios of both; times only where one machine measured both.",
    )  # fmt: skip
    compare.add_argument("before", type=Path, metavar="A")
    compare.add_argument("after", type=Path, metavar="B")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with `argv` (default: the process's arguments) and returns the exit code."""
    try:
        given = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or its error
        return int(stop.code or 0)
    streams.make_safe()
    try:
        with stops_as_errors():
            {"run": _run, "compare": _compare}[given.command](given)
        return 0
    except (Stopped, KeyboardInterrupt) as stop:
        return _fail(str(stop) or "interrupted", getattr(stop, "exit_code", 130), False)
    except MemoryError:
        return _fail("out of memory: measure on a smaller batch or graph", 1, given.debug)
    except (BgnnError, OSError) as error:
        return _fail(str(error), getattr(error, "exit_code", 1), given.debug)
    except Exception as error:
        hint = "" if given.debug else " (a bug in bgnn-bench: run again with --debug and report it)"
        return _fail(f"internal error: {type(error).__name__}: {error}{hint}", 1, given.debug)


def _run(given: argparse.Namespace) -> None:
    schedule = Schedule()
    if given.rounds is not None:
        if given.rounds < 1:
            raise UsageError(f"--rounds {given.rounds}: at least one is needed")
        schedule = Schedule(given.rounds, seconds=0, longest=float("inf"))
    if given.seed < 0:
        raise UsageError(f"--seed {given.seed}: seeds go up from 0")
    for threads in given.threads:
        limits.check_threads("--threads", threads)
    if given.json is not None:
        check_output(given.json, {f"the file {path}": path for path in [*given.files, given.input] if path})
    arrays = None if given.input is None else limits.read_npz(given.input, str(given.input))
    # All files are looked at before the first is measured.
    work = []
    for path in given.files:
        content = _read(path)
        work.append((path, content, candidates_for(path, content, given.candidates)))
    found: list[Record] = []
    run = new_run()
    try:
        for path, content, candidates in work:
            inputs = inputs_for(path, content, arrays, given.seed)
            for threads in dict.fromkeys(given.threads):
                some = run_file(path, content, inputs, candidates, threads, schedule, run, _say)
                with streams.results():
                    report.print_run(some)
                found += some
    finally:  # what is measured is kept, whatever ends the rest
        if given.json is not None and found:
            write_files({given.json: records.write(found)}, lambda: _say(f"written: {given.json}"))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    if not content:
        raise BgnnError(f"{path} is empty")
    return content


def _compare(given: argparse.Namespace) -> None:
    before, after = records.read(given.before), records.read(given.after)
    with streams.results():
        report.print_comparison(before, after)


def _say(line: str) -> None:
    streams.complain(f"bgnn-bench: {streams.one_line(line)}")


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    streams.complain(f"bgnn-bench: error: {streams.one_line(message)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
