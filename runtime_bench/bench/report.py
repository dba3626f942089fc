"""Tables, as queries over records. Nothing here measures, and nothing is printed that no record says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bgnn.runtime_bench.bench.emulated import INSTRUCTIONS, MODELLED
from bgnn.runtime_bench.bench.measure import Spread, digits, too_noisy
from bgnn.runtime_bench.bench.profile import Profile
from bgnn.runtime_bench.bench.records import CPU, WALL, Record, base_of, ratio
from bgnn.runtime_bench.runtime.errors import BgnnError

Column = tuple[str, Callable[[Record], str]]


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> None:
    """A table on standard output; the first column's cells stand left."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for position, head in enumerate(heads):
        table.add_column(head, justify="right" if position else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    # Into a file or a CI log a table has no terminal to fit into.
    console = Console(width=None if sys.stdout.isatty() else 180)
    for part in (Text(title), table, *([Text(caption)] if caption else [])):
        console.print(part, soft_wrap=part is not table)  # a title is no narrower than its table


def print_run(records: Sequence[Record]) -> None:
    """A table for each file and number of threads; below it what else a reader must know."""
    for run in dict.fromkeys(record.run for record in records):
        rows = [record for record in records if record.run == run]
        first = rows[0]
        if INSTRUCTIONS in first.samples:
            print_counts(rows)
            continue
        columns: list[Column] = [
            ("", lambda record: record.candidate),
            ("elapsed ms", lambda record: str(record.spread(WALL) or "")),
            ("CPU ms", lambda record: str(record.spread(CPU) or "")),
            (f"x as fast as\n{first.candidate}", lambda record: str(speedup(records, record) or "")),
            ("initialise\nms", lambda record: _figure(record, "init_ms")),
            ("first\nms", lambda record: _figure(record, "first_ms")),
            ("warm-up\nms", lambda record: _figure(record, "warmup_ms")),
            ("peak MB\nover empty", _over_empty),
            ("arena\nMB", lambda record: _megabytes(record.figure("arena_bytes"))),
            ("output's\ndifference", lambda record: f"{record.figure('difference') or 0:.2g}"),
        ]
        size = first.figure("file_bytes")
        title = f"{first.case}: {size:,.0f} bytes, {_threads(first)}, inputs {first.settings['inputs']}"
        caption = (
            f"medians (quartiles) of {first.settings['rounds']} interleaved rounds, {first.device['cpu']}, "
            f"{first.device['cores']} cores; ratios: of {'CPU time' if first.threads == 1 else 'elapsed time'} in a "
            "round; peak: of a fresh process, over one that runs a file of one operator"
        )
        print_table(title, [head for head, _ in columns], [[cell(row) for _, cell in columns] for row in rows], caption)
        for line in remarks(rows):
            print(line)


def print_counts(rows: Sequence[Record]) -> None:
    """One run without a clock: instructions and outputs (emulated), or a range of time (modelled) by operator."""
    first = rows[0]
    columns: list[Column] = [
        ("", lambda record: record.case.removeprefix(f"{rows[-1].case}: ") if first.modelled else record.candidate),
        ("M instructions", lambda record: f"{(record.figure(INSTRUCTIONS) or 0) / 1e6:.3f}"),
    ]
    if first.modelled:
        columns += [("node type", lambda record: record.settings.get("type", "all")), ("MODELLED ms", _range)]
    else:
        columns.append(("output's difference", lambda record: f"{record.figure('difference') or 0:.2g}"))
    title = f"{rows[-1].case}, {first.device['cpu']}, inputs {first.settings['inputs']}"
    caption = "of one inference; the emulator's own time means nothing"
    if first.modelled:
        title, caption = (
            f"{title}, {first.candidate}",
            f"{first.settings['error_bar']}. {first.settings['assumptions']}",
        )
    print_table(title, [head for head, _ in columns], [[cell(row) for _, cell in columns] for row in rows], caption)
    for line in (f"left out: {name}: {why}" for name, why in first.settings.get("left_out", {}).items()):
        print(line)


def _range(record: Record) -> str:
    return "-".join(digits(ms) for ms in record.samples[MODELLED])


def print_predicted(pairs: Sequence[tuple[Record, Record]]) -> None:
    """What a model predicted beside what was measured: (modelled, measured) by operator."""
    rows, inside = [], 0
    for predicted, measured in pairs:
        time, (low, high) = measured.spread(), predicted.samples[MODELLED]
        if time is None:
            continue
        met = low <= time.median <= high
        inside += met
        factor = digits(2 * time.median / (low + high)) if high else ""
        rows.append([f"{measured.case}, {measured.candidate}", _range(predicted), str(time), factor,
                     "yes" if met else "no"])  # fmt: skip
    if not rows:
        return
    first, other = pairs[0]
    heads = ["", "predicted ms", "measured ms", "measured /\nmiddle of predicted", "within"]
    caption = f"{inside} of {len(rows)} measured medians lie within what was predicted"
    title = f"predicted ({first.device['cpu']}) beside measured ({other.device['cpu']}), {_threads(other)}"
    print_table(title, heads, rows, caption)
    if other.device.get("part") != first.device.get("part"):
        print("the processor that measured is not the one that is modelled: this is no test of the model")


def speedup(records: Sequence[Record], record: Record) -> Spread | None:
    """How many times as fast as its base a record is; None where its base is not among the records."""
    base = base_of(records, record)
    return ratio(base, record) if base else None


def remarks(rows: Sequence[Record]) -> list[str]:
    """What one run went through: noise, throttling, what could not run, how the machine stood."""
    lines = []
    noisy = [row.candidate for row in rows if (found := speedup(rows, row)) and found.noisy]
    if noisy:
        lines.append(too_noisy(noisy))
    lines += machine_remarks(rows[0].settings)
    return lines


def machine_remarks(settings: Mapping[str, Any]) -> list[str]:
    """What a run's settings say of the machine, and of what could not run."""
    lines = []
    if settings.get("throttled"):
        lines.append(f"the machine throttled while it measured: {'; '.join(settings['throttled'])}")
    lines += [f"left out: {name}: {why}" for name, why in settings.get("left_out", {}).items()]
    state = settings.get("after", {})
    told = [f"governor {state['governor']}"] if "governor" in state else []
    if state.get("celsius"):
        told.append(f"{max(state['celsius'].values()):.0f} °C")
    told.append(f"load {state['load']:g}" if "load" in state else "")
    cores = settings.get("cores")
    told.append(f"pinned to processors {', '.join(map(str, cores))}" if cores else "not pinned")
    lines.append("; ".join(filter(None, told)))
    if cores and len(cores) < settings["threads"]:
        lines.append(f"{settings['threads']} threads shared {len(cores)} processors")
    return lines


def print_profile(profile: Profile, title: str) -> None:
    """Two tables, as the paper's Tables 6 and 7: by node type, and operator by operator; shares are of the sum."""
    kinds = profile.by_kind()
    times = [Spread.of(one.ms) for one in profile.operators]
    whole = sum(time.median for time in times) or 1.0
    rows = [[kind, digits(ms), f"{ms / whole:.2%}", str(count)] for kind, (ms, count) in kinds.items()]
    print_table(f"{title}: by node type", ["", "ms", "share", "times called"], rows)
    rows = [
        [
            one.name,
            one.kind if not one.parts else f"{one.kind} of {', '.join(dict.fromkeys(one.parts))}",
            one.tensor,
            str(time),
            f"{time.median / whole:.2%}",
        ]
        for one, time in zip(profile.operators, times, strict=True)
    ]
    runs = f"{len(profile.total_ms)} runs of {Spread.of(profile.total_ms)} ms"
    caption = f"{runs}; the sum of the operators' medians is {digits(whole)} ms"
    print_table(f"{title}: by operator", ["layer", "node type", "writes", "ms", "share"], rows, caption)


def print_comparison(before: Sequence[Record], after: Sequence[Record]) -> None:
    """Two files of records beside each other, by case, candidate and threads: ratios, which are comparable anywhere,
    and times where one machine measured both. Raises BgnnError where they have nothing in common."""
    pairs = [(old, new) for old in before for new in after if _same_question(old, new)]
    if not pairs:
        raise BgnnError("the two have no case, candidate and number of threads in common")
    predicted = [(old, new) if old.modelled else (new, old) for old, new in pairs if old.modelled != new.modelled]
    print_predicted([(model, measured) for model, measured in predicted if MODELLED in model.samples])
    counted = [(a, b) for a, b in pairs if INSTRUCTIONS in a.samples and INSTRUCTIONS in b.samples]
    if counted:
        print_table(
            "A beside B, one inference", ["", "A: M instructions", "B: M instructions", "B / A"], map(_counts, counted)
        )
    pairs = [(old, new) for old, new in pairs if WALL in old.samples and WALL in new.samples]
    if not pairs:
        return
    absolute = all(_same_machine(old, new) for old, new in pairs)
    heads = ["", "x as fast as", "A: x", "B: x", "B / A"]
    rows = []
    for old, new in pairs:
        ours, theirs = speedup(before, old), speedup(after, new)
        row = [f"{new.case}, {new.candidate}, {_threads(new)}", ", ".join(new.settings["base"])]
        row += [str(ours or ""), str(theirs or "")]
        row.append(digits(theirs.median / ours.median) if ours and theirs and ours.median else "")
        if absolute:
            row += [str(old.spread() or ""), str(new.spread() or "")]
        rows.append(row)
    print_table("A beside B", heads + (["A: elapsed ms", "B: elapsed ms"] if absolute else []), rows)
    if not absolute:
        machines = {f"{record.device['cpu']} ({record.device['id']})" for pair in pairs for record in pair}
        why = "different machines measured them" if len(machines) > 1 else "one of them is modelled"
        print(f"times are not compared, only ratios: {why} ({'; '.join(sorted(machines))})")
    for name, records in (("A", before), ("B", after)):
        noisy = [f"{r.case}, {r.candidate}" for r in records if (found := speedup(records, r)) and found.noisy]
        if noisy:
            print(f"{name}: {too_noisy(noisy)}")


def _counts(pair: tuple[Record, Record]) -> list[str]:
    old, new = (record.figure(INSTRUCTIONS) or 0 for record in pair)
    where = " and ".join(dict.fromkeys(str(record.device["cpu"]) for record in pair))
    ratio = digits(new / old) if old else ""
    return [f"{pair[0].case}, {pair[0].candidate}, {where}", f"{old / 1e6:.3f}", f"{new / 1e6:.3f}", ratio]


def _same_question(one: Record, other: Record) -> bool:
    """Whether two records answer one question: the same case, runtime, threads, inputs and base."""
    keys = ("threads", "inputs", "base")
    return (one.case, one.candidate) == (other.case, other.candidate) and all(
        one.settings.get(key) == other.settings.get(key) for key in keys
    )


def _same_machine(one: Record, other: Record) -> bool:
    return one.device["id"] == other.device["id"] and one.modelled == other.modelled


def _threads(record: Record) -> str:
    return f"{record.threads} thread{'s' if record.threads > 1 else ''}"


def _figure(record: Record, what: str) -> str:
    figure = record.figure(what)
    return "" if figure is None else digits(figure)


def _over_empty(record: Record) -> str:
    peak, empty = record.figure("peak_bytes"), record.figure("empty_bytes")
    return "" if peak is None or empty is None else _megabytes(peak - empty)


def _megabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"
