"""`bgnn-bench`: what converted files take, on this machine, beside whatever else runs them.

Tables go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 a file or a runtime failed,
2 the command is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from bgnn.runtime_bench.bench import check, device_cli, page, records, report
from bgnn.runtime_bench.bench.candidates import CANDIDATES, Candidate, candidates_for
from bgnn.runtime_bench.bench.cases import Sizes
from bgnn.runtime_bench.bench.inputs import inputs_for
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.profile import (
    PROFILED,
    chrome_trace,
    overlay,
    profiled,
)
from bgnn.runtime_bench.bench.records import Record
from bgnn.runtime_bench.bench.running import run_file
from bgnn.runtime_bench.bench.tables import LONGEST, ROUNDS, TABLES, Plan, check_names, measured, sheets
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
    _add_files(run)
    _add_inputs_and_rounds(run)
    run.add_argument("--json", type=Path, metavar="FILE", help="write the records there, one a line")
    device_cli.add_device(run)

    profile = commands.add_parser(
        "profile", parents=[debug], help="where a file's time goes: by operator and by node type",
        description="Times every operator of a file on LiteRT (by our delegate) or ONNX Runtime (by its profiler). "
        "Operators have the names of the model's layers where bgnn-convert's report lies beside the file.",
    )  # fmt: skip
    profile.add_argument("file", type=Path, metavar="FILE", help="a .tflite or .onnx file")
    profile.add_argument("--candidate", default="", metavar="NAME", help=f"one of {', '.join(PROFILED)}")
    profile.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    _add_inputs_and_rounds(profile)
    profile.add_argument("--json", type=Path, metavar="FILE", help="write the operators' times there, as records")
    profile.add_argument("--trace", type=Path, metavar="FILE", help="write one run for chrome://tracing and Perfetto")
    profile.add_argument("--overlay", type=Path, metavar="FILE", help="write node data for Model Explorer")

    device_cli.add_device(profile)

    pack = commands.add_parser(
        "pack", parents=[debug], help="all that `run` needs, as one archive for a board without ssh",
        description="Unpack it on the board and start its run.sh; records.jsonl, which that writes, is what --json "
        "would have written here.",
    )  # fmt: skip
    _add_files(pack)
    device_cli.add_pack(pack)
    _add_inputs_and_rounds(pack)

    table = commands.add_parser(
        "table", parents=[debug], help="the papers' tables, measured here",
        description="Converts, verifies and measures what these need, side by side in one run, and prints them.",
    )  # fmt: skip
    table.add_argument("names", nargs="+", metavar="NAME", help=f"of {', '.join(TABLES)}")
    for name, default in asdict(Sizes()).items():
        table.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}, the paper's")
    table.add_argument(
        "--rounds", type=int,
        help=f"exactly so many (default: up to {ROUNDS}, 3 at least, in {LONGEST:g} seconds for each candidate)",
    )  # fmt: skip
    table.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    table.add_argument("--files", type=Path, default=Path("out/bench"), metavar="DIR", help="for the converted files")
    table.add_argument("--data", type=Path, metavar="DIR", help="raw files of Cora and Citeseer (default: like graphs)")
    table.add_argument("--json", type=Path, metavar="FILE", help="write the records there, one a line")
    table.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, their charts beside it")
    commands.add_parser("tables", parents=[debug], help="which tables there are")

    compare = commands.add_parser(
        "compare", parents=[debug], help="two files of records beside each other",
        description="Ratios of both; times only where one machine measured both.",
    )  # fmt: skip
    compare.add_argument("before", type=Path, metavar="A")
    compare.add_argument("after", type=Path, metavar="B")

    page_of = commands.add_parser(
        "report", parents=[debug], help="records as one page for a browser",
        description="Writes one self-contained HTML page of records: tables, charts, profiles, conversions, machines.",
    )  # fmt: skip
    page_of.add_argument("records", nargs="+", type=Path, metavar="RECORDS", help="what --json has written")
    page_of.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the page to write")

    worse = commands.add_parser(
        "check", parents=[debug], help="fail where records are worse than a baseline",
        description="Compares size, memory, operators, instructions, binary and INT8 shares, verification, and time as "
        "a ratio to the same run's base. Exit code 1 where anything is worse than the baseline's, or is missing.",
    )  # fmt: skip
    worse.add_argument("now", type=Path, metavar="RECORDS", help="what --json has written")
    worse.add_argument("--baseline", type=Path, required=True, metavar="FILE", help="the records to compare with")
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a .tflite or .onnx file, ours or any other"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1], metavar="N", help="one table for each (default: 1)"
    )
    parser.add_argument(
        "--candidates", nargs="+", default=[], metavar="NAME",
        help=f"only these of {', '.join(row.name for row in CANDIDATES)}",
    )  # fmt: skip


def _add_inputs_and_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, metavar="NPZ", help="the file's inputs by name (default: random ones)")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default: 0)")
    plan = Schedule()
    parser.add_argument(
        "--rounds", type=int,
        help=f"exactly so many (default: {plan.rounds}, for {plan.seconds:g} to {plan.longest:g} seconds each)",
    )  # fmt: skip


_fail = partial(streams.fail, "bgnn-bench: error")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with `argv` (default: the process's arguments) and returns the exit code."""
    try:
        given = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or its error
        return int(stop.code or 0)
    streams.make_safe()
    try:
        with stops_as_errors():
            _COMMANDS[given.command](given)
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
    schedule, arrays = _prepare(given, given.threads, given.files, [given.json])
    work = _work(given)
    found: list[Record] = []
    try:
        if given.device:
            with contextlib.closing(device_cli.run(given, work, arrays, _say)) as groups:
                for some in groups:
                    found += some
                    with streams.results():
                        report.print_run(some)
            return
        for path, content, candidates in work:
            inputs = inputs_for(path, content, arrays, given.seed)
            for threads in dict.fromkeys(given.threads):
                some = run_file(path, content, inputs, candidates, threads, schedule, _say)
                with streams.results():
                    report.print_run(some)
                found += some
    finally:  # what is measured is kept, whatever ends the rest
        if given.json is not None and found:
            write_files({given.json: records.write(found)}, lambda: _say(f"written: {given.json}"))


def _work(given: argparse.Namespace) -> list[tuple[Path, bytes, list[Candidate]]]:
    """All files are looked at before the first is measured."""
    contents = {path: _read(path) for path in given.files}
    return [(path, content, candidates_for(path, content, given.candidates)) for path, content in contents.items()]


def _pack(given: argparse.Namespace) -> None:
    _, arrays = _prepare(given, given.threads, given.files, [given.output])
    device_cli.pack(given, _work(given), arrays, _say)


def _profile(given: argparse.Namespace) -> None:
    outputs = [given.json, given.trace, given.overlay]
    schedule, arrays = _prepare(given, [given.threads], [given.file], outputs)
    content, path = _read(given.file), given.file
    named = candidates_for(path, content, [given.candidate] if given.candidate else [])
    able = [row for row in named if row.name in PROFILED and (given.candidate or row.fits(content))]
    if not able:
        raise UsageError(f"{given.candidate} does not tell where time goes: {', '.join(PROFILED)} do")
    chosen, inputs = able[0], inputs_for(path, content, arrays, given.seed)
    if given.device:
        profile, settings, found = device_cli.profile(given, content, chosen, inputs, _say)
    else:
        profile, settings, found = profiled(path, content, inputs, chosen, given.threads, schedule)
    files = {}
    if given.json is not None:
        files[given.json] = records.write(found)
    if given.trace is not None:
        files[given.trace] = json.dumps(chrome_trace(profile, path.name)).encode()
    if given.overlay is not None:
        files[given.overlay] = json.dumps(overlay(profile)).encode()

    def announce() -> None:
        with streams.results():
            for sheet in report.profile_sheets(found, f"{path.name}, {chosen.name}, inputs {settings['inputs']}"):
                report.print_sheet(sheet)
        for written in files:
            _say(f"written: {written}")

    write_files(files, announce)


def _table(given: argparse.Namespace) -> None:
    check_names(given.names)
    sizes = Sizes(given.batch, given.points, given.k, given.classes)
    rounds = [] if given.rounds is None else [given.rounds]
    if min(*rounds, *asdict(sizes).values()) < 1:
        raise UsageError("--rounds, --batch, --points, --k and --classes are 1 or more")
    limits.check_threads("--threads", given.threads)
    _check_outputs([given.json, given.markdown], {})
    plan = Plan(sizes, given.rounds, given.threads, given.files, given.data)
    found: list[Record] = []
    try:
        found.extend(measured(given.names, plan, _say))
    except BaseException:  # what is measured is kept, whatever ends the rest
        if given.json is not None and found:
            write_files({given.json: records.write(found)}, lambda: _say(f"written: {given.json}"))
        raise
    shown = sheets(given.names, found, sizes)
    files = {} if given.json is None else {given.json: records.write(found)}
    if given.markdown is not None:
        files |= page.markdown_files(shown, given.markdown)

    def announce() -> None:
        with streams.results():
            for sheet in shown:
                report.print_sheet(sheet)

    write_files(files, announce)


def _report(given: argparse.Namespace) -> None:
    _check_outputs([given.output], {f"the records {path}": path for path in given.records})
    found = [record for path in given.records for record in records.read(path)]
    text = page.of_records(found, "bgnn-bench: " + ", ".join(path.name for path in given.records))
    write_files({given.output: text.encode()}, lambda: _say(f"written: {given.output}"))


def _check(given: argparse.Namespace) -> None:
    findings = check.compare(records.read(given.baseline), records.read(given.now))
    with streams.results():
        for finding in findings:
            print(finding)
    worse = sum(finding.worse for finding in findings)
    if worse:
        raise BgnnError(f"{worse} figure{'s are' if worse > 1 else ' is'} worse than in {given.baseline}")


def _tables(given: argparse.Namespace) -> None:
    with streams.results():
        for name, table in TABLES.items():
            print(f"{name:18} {table.about}")


def _prepare(
    given: argparse.Namespace, threads: Sequence[int], files: Sequence[Path], outputs: Sequence[Path | None]
) -> tuple[Schedule, dict[str, np.ndarray] | None]:
    """Checks what `run` and `profile` have in common; how long to measure, and the given arrays."""
    schedule = Schedule()
    if given.rounds is not None:
        if given.rounds < 1:
            raise UsageError(f"--rounds {given.rounds}: at least one is needed")
        schedule = Schedule(given.rounds, seconds=0, longest=float("inf"))
    if given.seed < 0:
        raise UsageError(f"--seed {given.seed}: seeds go up from 0")
    for number in threads:
        limits.check_threads("--threads", number)
    _check_outputs(outputs, {f"the file {path}": path for path in [*files, given.input] if path})
    return schedule, None if given.input is None else limits.read_npz(given.input, str(given.input))


def _check_outputs(outputs: Sequence[Path | None], others: dict[str, Path]) -> None:
    for output in outputs:
        if output is not None:
            check_output(output, others)
            others[f"another output, {output}"] = output


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


_COMMANDS = {"run": _run, "profile": _profile, "pack": _pack, "compare": _compare, "table": _table, "tables": _tables,
             "report": _report, "check": _check}  # fmt: skip


def _say(line: str) -> None:
    streams.complain(f"bgnn-bench: {streams.one_line(line)}")


if __name__ == "__main__":
    sys.exit(main())
