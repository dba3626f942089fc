"""Tables, as queries over records. Nothing here measures, and nothing is printed that no record says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from bgnn.runtime_bench.bench.emulated import INSTRUCTIONS, MODELLED
from bgnn.runtime_bench.bench.measure import Spread, digits, too_noisy
from bgnn.runtime_bench.bench.records import CPU, WALL, Record, base_of, ratio
from bgnn.runtime_bench.runtime.errors import BgnnError

Column = tuple[str, Callable[[Record], str]]


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: its parts are stacked, in this order."""

    label: str
    parts: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Sheet:
    """A table, and the chart that goes with it, before it is printed or written anywhere."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    notes: Sequence[str] = ()
    """Lines below: what else its reader must know."""
    bars: Sequence[Bar] = ()
    unit: str = ""
    """Of the bars."""


def print_sheet(sheet: Sheet) -> None:
    """A table on standard output; the first column's cells stand left."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for position, head in enumerate(sheet.heads):
        table.add_column(head, justify="right" if position else "left")
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    # Into a file or a CI log a table has no terminal to fit into.
    console = Console(width=None if sys.stdout.isatty() else 180)
    for part in (Text(sheet.title), table, *([Text(sheet.caption)] if sheet.caption else [])):
        console.print(part, soft_wrap=part is not table)  # a title is no narrower than its table
    for line in sheet.notes:
        print(line)


def markdown(sheets: Iterable[Sheet], pictures: Mapping[int, str]) -> str:
    """Tables as Markdown. `pictures`: the paths of charts by their sheets' numbers."""

    def row(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"

    lines: list[str] = []
    for number, sheet in enumerate(sheets):
        lines += [f"### {sheet.title}", ""]
        if number in pictures:
            lines += [f"![{sheet.title}]({pictures[number]})", ""]
        lines += [row(sheet.heads), "|---|" + "---:|" * (len(sheet.heads) - 1), *map(row, sheet.rows), ""]
        lines += [f"{line}  " for line in (sheet.caption, *sheet.notes) if line] + [""]
    return "\n".join(lines)


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> None:
    """`print_sheet` of what is nowhere else written."""
    print_sheet(Sheet(title, heads, list(rows), caption))


def run_sheets(records: Sequence[Record]) -> list[Sheet]:
    """A table for each run: for each file and number of threads, with what else a reader must know."""
    counted = [record for record in records if INSTRUCTIONS in record.samples]
    timed = [record for record in records if INSTRUCTIONS not in record.samples and "operator" not in record.settings]
    return [*map(_counts_sheet, runs_of(counted)), *map(_run_sheet, runs_of(timed))]


def runs_of(records: Iterable[Record]) -> list[list[Record]]:
    """The records, those of the same rounds together."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.run, []).append(record)
    return list(found.values())


def _run_sheet(rows: Sequence[Record]) -> Sheet:
    first = rows[0]
    one_case = len({row.case for row in rows}) == 1
    columns: list[Column] = [
        ("", lambda record: record.candidate if one_case else f"{record.case}, {record.candidate}"),
        ("elapsed ms", lambda record: str(record.spread(WALL) or "")),
        ("CPU ms", lambda record: str(record.spread(CPU) or "")),
        (
            f"x as fast as\n{', '.join(first.settings['base'][one_case:])}",
            lambda record: str(speedup(rows, record) or ""),
        ),
        ("initialise\nms", lambda record: _figure(record, "init_ms")),
        ("first\nms", lambda record: _figure(record, "first_ms")),
        ("warm-up\nms", lambda record: _figure(record, "warmup_ms")),
        ("peak MB\nover empty", _over_empty),
        ("arena\nMB", lambda record: _megabytes(record.figure("arena_bytes"))),
        (
            "file\nbytes",
            lambda record: "" if one_case or not (size := record.figure("file_bytes")) else f"{size:,.0f}",
        ),
        (
            "output's\ndifference",
            lambda record: f"{record.figure('difference'):.2g}" if "difference" in record.samples else "",
        ),
    ]
    cells = [(head, [cell(row) for row in rows]) for head, cell in columns]
    cells = [(head, column) for head, column in cells if any(column)]
    size = first.figure("file_bytes")
    what = f"{size:,.0f} bytes, " if one_case and size else ""
    words = zip(*(row.case.split() for row in rows), strict=False)
    shared = " ".join(at[0] for at in takewhile(lambda at: len(set(at)) == 1, words))
    title = f"{shared or 'side by side'}: {what}{_threads(first)}"
    caption = (
        f"medians (quartiles) of {first.settings.get('rounds')} interleaved rounds, {first.device['cpu']}, "
        f"{first.device['cores']} cores; ratios: of {'CPU time' if first.threads == 1 else 'elapsed time'} in a "
        "round; peak: of a fresh process, over one that runs a file of one operator"
    )
    bars = [Bar(name, [("", time)]) for name, row in zip(cells[0][1], rows, strict=True) if (time := row.figure(WALL))]
    body = list(zip(*(column for _, column in cells), strict=True))
    title += f", inputs {first.settings.get('inputs')}"
    return Sheet(title, [head for head, _ in cells], body, caption, remarks(rows), bars, "ms")


def print_run(records: Sequence[Record]) -> None:
    """`run_sheets`, printed."""
    for sheet in run_sheets(records):
        print_sheet(sheet)


def _counts_sheet(rows: Sequence[Record]) -> Sheet:
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
        title = f"{title}, {first.candidate}"
        caption = f"{first.settings['error_bar']}. {first.settings['assumptions']}"
    notes = [f"left out: {name}: {why}" for name, why in first.settings.get("left_out", {}).items()]
    body = [[cell(row) for _, cell in columns] for row in rows]
    bars = []
    for line, row in zip(body, rows, strict=True):
        if MODELLED in row.samples:
            low, high = row.samples[MODELLED]
            bars.append(Bar(line[0], [("computing", low), ("waiting for memory", high - low)]))
    return Sheet(title, [head for head, _ in columns], body, caption, notes, bars, "ms, MODELLED")


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
    one_case = len({row.case for row in rows}) == 1
    noisy = [
        row.candidate if one_case else ", ".join(row.name)
        for row in rows
        if (found := speedup(rows, row)) and found.noisy
    ]
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


def profile_sheets(records: Sequence[Record], title: str) -> list[Sheet]:
    """Two tables of operators' records, as the paper's Tables 6 and 7: by node type, and one by one; shares are of the
    sum."""
    times = [Spread.of(one.samples[WALL]) for one in records]
    whole = sum(time.median for time in times) or 1.0
    kinds: dict[str, tuple[float, int]] = {}
    layers: dict[str, float] = {}
    for one, time in zip(records, times, strict=True):
        ms, count = kinds.get(one.settings["type"], (0.0, 0))
        kinds[one.settings["type"]] = ms + time.median, count + 1
        name = one.settings.get("layer") or one.settings["type"]
        layers[name] = layers.get(name, 0.0) + time.median
    kinds = dict(sorted(kinds.items(), key=lambda item: -item[1][0]))
    rows = [[kind, digits(ms), f"{ms / whole:.2%}", str(count)] for kind, (ms, count) in kinds.items()]
    bars = [Bar("by node type", [(kind, ms) for kind, (ms, _) in kinds.items()]), Bar("by layer", list(layers.items()))]
    by_kind = Sheet(f"{title}: by node type", ["", "ms", "share", "times called"], rows, bars=bars, unit="ms")
    rows = []
    for one, time in zip(records, times, strict=True):
        how = one.settings
        kind = how["type"] if not how["parts"] else f"{how['type']} of {', '.join(dict.fromkeys(how['parts']))}"
        name = how["layer"] or how["tensor"] or how["type"]
        rows.append([name, kind, how["tensor"], str(time), f"{time.median / whole:.2%}"])
    first = records[0].settings
    runs = f"{first['rounds']} runs of {first['whole']} ms; " if "whole" in first else ""
    caption = f"{runs}the sum of the operators' medians is {digits(whole)} ms"
    heads = ["layer", "node type", "writes", "ms", "share"]
    return [by_kind, Sheet(f"{title}: by operator", heads, rows, caption, machine_remarks(first))]


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
