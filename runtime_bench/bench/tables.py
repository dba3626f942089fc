"""`bgnn-bench table NAME`: the papers' tables, each row beside the paper's figure. A table is a query over records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bgnn.runtime_bench.bench import cases, conditions, paper
from bgnn.runtime_bench.bench.candidates import DELEGATE_PLAIN, LITERT
from bgnn.runtime_bench.bench.cases import CASES, NETWORKS, OWN, PAPERS_ROUTE, ROUTES, STOCK, Sizes
from bgnn.runtime_bench.bench.measure import Schedule, digits, too_noisy
from bgnn.runtime_bench.bench.paper import Aim
from bgnn.runtime_bench.bench.profile import operator_records, profile_tflite
from bgnn.runtime_bench.bench.records import CPU, WALL, Record, ratio
from bgnn.runtime_bench.bench.report import machine_remarks, print_table, speedup
from bgnn.runtime_bench.bench.running import measure_together, new_run, on_disk
from bgnn.runtime_bench.runtime.errors import UsageError

Say = Callable[[str], None]
BASE = f"DGCNN {PAPERS_ROUTE}"
CLOUDS = "random clouds, seed 0"


@dataclass(frozen=True)
class Table:
    """What it shows, what prints it, and what it is made of: TIMES of the DGCNNs, PROFILES of BF-H, or sizes alone."""

    about: str
    show: Callable[[Sequence[Record], Sizes], None]
    needs: str = ""


TIMES, PROFILES = "times", "profiles"


def find(records: Sequence[Record], network: str, route: str) -> Record | None:
    """The record of a network's file by a route, on the first of its candidates."""
    return next((record for record in records if record.case == f"{network} {route}"), None)


def show_run_times(records: Sequence[Record], sizes: Sizes) -> None:
    """Figure 4: relative run times."""

    def cell(network: str, route: str) -> str:
        base, record = find(records, "DGCNN", PAPERS_ROUTE), find(records, network, route)
        found = base and record and ratio(record, base)
        return f"{found}" if found else ""

    def figure(network: str) -> str:
        known = paper.BGNN_RUN_TIME.get(network)
        return "a bar, no number" if known is None else f"{known:.2g}"

    rows = [[name, figure(name), *(cell(name, route) for route in ROUTES)] for name in NETWORKS]
    heads = ["run time, of DGCNN's", "paper,\nPi 4", f"paper's route\n({PAPERS_ROUTE})", f"ours\n({STOCK})"]
    title = _title("Figure 4 of the binary GNN paper", sizes)
    runs = ", ".join(dict.fromkeys(f"{record.candidate}" for record in records if record.case != BASE))
    caption = f"medians (quartiles) of run times over {BASE}'s on {LITERT} in the same round; on {runs}, each its first"
    print_table(title, [*heads, f"ours\n({OWN})"], rows, caption)


def show_sizes(records: Sequence[Record], sizes: Sizes) -> None:
    """Section 5.1: bytes of the file, and of the process."""

    def cell(network: str, route: str, what: Callable[[Record], float | None]) -> str:
        record = find(records, network, route)
        size = what(record) if record else None
        return "" if size is None else f"{size / 1e6:,.2f}"

    def over(record: Record) -> float | None:
        peak, empty = record.figure("peak_bytes"), record.figure("empty_bytes")
        return None if peak is None or empty is None else peak - empty

    rows = []
    for name in NETWORKS:
        for what, known, figure in (
            ("file", paper.BGNN_FILE_BYTES, lambda record: record.figure("file_bytes")),
            ("peak", paper.BGNN_PEAK_BYTES, lambda record: record.figure("peak_bytes")),
            ("peak over empty", {}, over),
        ):
            of_paper = f"{known[name] / 1e6:,.3g}" if name in known else ""
            rows.append([f"{name}, {what}", of_paper, *(cell(name, route, figure) for route in ROUTES)])
    caption = "peak: resident, of a fresh process; over empty: less that of one that runs a file of one operator"
    heads = ["MB", "paper,\nPi 4", f"paper's route\n({PAPERS_ROUTE})", f"ours\n({STOCK})", f"ours\n({OWN})"]
    print_table(_title("Sizes and memory (section 5.1 of the binary GNN paper)", sizes), heads, rows, caption)


def show_parameters(records: Sequence[Record], sizes: Sizes) -> None:
    """Table 5: parameters, counted in our models."""
    rows = []
    for name, (real, binary) in paper.BGNN_PARAMETERS.items():
        arch = {"DGCNN": "dgcnn", "RF": "rf", "BF1": "bf1", "BF2": "bf2"}[name]
        model = cases.build(cases.Case(name, arch, {}, None), Sizes())  # RF has scales for each point
        counts = {key: parameter.numel() for key, parameter in model.named_parameters()}
        bits = sum(count for key, count in counts.items() if key.endswith("weights_real"))
        ours = sum(counts.values()) - bits
        rows.append([name, f"{real:,}", f"{ours:,}", f"{binary:,}", f"{bits:,}", f"{bits / sum(counts.values()):.2%}"])
    heads = ["parameters", "float,\npaper", "float,\nours", "binary,\npaper", "binary,\nours", "share\nbinary"]
    print_table("Table 5 of the binary GNN paper", heads, rows)


def show_node_types(records: Sequence[Record], sizes: Sizes) -> None:
    """Table 6: by node type, beside the paper's; its Hamming distances are matrix products."""
    by_route: dict[str, dict[str, tuple[float, int]]] = {}
    for route in ROUTES:
        kinds = by_route.setdefault(route, {})
        for record in records:
            if record.settings.get("of") == f"BF-H {route}":
                ms, calls = kinds.get(record.settings["type"], (0.0, 0))
                kinds[record.settings["type"]] = ms + (record.figure(WALL) or 0.0), calls + 1
    columns = [paper.BGNN_NODE_TYPES, *by_route.values()]
    sums = [sum(ms for ms, _ in column.values()) for column in columns]

    def cell(column: dict[str, tuple[float, int]], whole: float, kind: str) -> str:
        if kind not in column:
            return ""
        ms, calls = column[kind]
        return f"{digits(ms)} ms, {ms / (whole or 1):.1%}, {calls}"

    kinds_of_all = dict.fromkeys(kind for column in columns for kind in column)
    rows = [[kind, *(cell(c, s, kind) for c, s in zip(columns, sums, strict=True))] for kind in kinds_of_all]
    rows.append(["all", *(f"{digits(whole)} ms" if whole else "" for whole in sums)])
    heads = ["node type: ms, share, calls", "paper,\nPi 4", *(f"{route}\nhere" for route in ROUTES)]
    caption = f"medians on {DELEGATE_PLAIN}; the paper's by LCE's profiler, 50 runs"
    print_table(_title("Table 6 of the binary GNN paper: BF-H", sizes), heads, rows, caption)


def show_all(records: Sequence[Record], sizes: Sizes) -> None:
    """Every row that was measured, with the aims."""
    records = [record for record in records if "of" not in record.settings]
    rows = [
        [
            record.case, record.candidate, str(record.spread(WALL) or ""), str(record.spread(CPU) or ""),
            str(speedup(records, record) or ""),
        ]
        for record in records
    ]  # fmt: skip
    heads = ["", "runs on", "elapsed ms", "CPU ms", f"x as fast as\n{BASE}"]
    first = records[0]
    caption = (
        f"medians (quartiles) of {first.settings['rounds']} interleaved rounds, {first.threads} thread(s), "
        f"{first.device['cpu']}, {first.device['cores']} cores; ratios within a round"
    )
    print_table(_title("DGCNNs", sizes), heads, rows, caption)
    if (sizes, first.threads) == (Sizes(), 1):
        for aim in aims(records):
            print(aim)
    else:
        print("the project's aims are for the paper's sizes and one thread: not compared")


TABLES = {
    "bgnn-fig4": Table("run times of DGCNN, RF, BF, BF-H, relative (Figure 4)", show_run_times, TIMES),
    "bgnn-size-memory": Table("files and memory (section 5.1)", show_sizes, TIMES),
    "bgnn-table5": Table("parameters (Table 5)", show_parameters),
    "bgnn-table6": Table("where BF-H's time goes, by node type (Table 6)", show_node_types, PROFILES),
    "bgnn-all": Table("every file and runtime of the other tables, beside the project's aims", show_all, TIMES),
}


def check_names(names: Sequence[str]) -> None:
    """Raises UsageError for a table that there is not."""
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        raise UsageError(f"there is no table {unknown[0]!r}: there are {', '.join(TABLES)}")


def measured(names: Sequence[str], sizes: Sizes, rounds: int, threads: int, folder: Path, say: Say) -> list[Record]:
    """What the tables are made of, measured in one run; nothing where they need no times."""
    needed = {TABLES[name].needs for name in names}
    if needed == {""}:
        return []
    schedule = Schedule(rounds, seconds=0, longest=float("inf"), warmup_seconds=0)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Record] = []
    if TIMES in needed:
        with on_disk([cases.clouds(sizes)]) as npz:
            rows = cases.subjects(CASES, sizes, npz, threads, schedule, folder, say)
            found += measure_together(rows, CLOUDS, threads, schedule, say)
    if PROFILES in needed:
        for case in (case for case in CASES if case.target and case.name.startswith("BF-H ")):
            path, _ = cases.file_of(case, sizes, folder, say)
            say(f"{case.name}: operator by operator")
            found += profiled(case.name, path.read_bytes(), sizes, threads, schedule)
    return found


def profiled(case: str, content: bytes, sizes: Sizes, threads: int, schedule: Schedule) -> list[Record]:
    """A record for each operator, on LiteRT's own operators and ours, as LCE's profiler had it in the paper."""
    before = conditions.now()
    with conditions.pinned(threads) as cores:
        found = profile_tflite(content, threads, [cases.clouds(sizes)], False, schedule)
    after = conditions.now()
    settings = {
        "run": new_run(), "base": [case, DELEGATE_PLAIN], "threads": threads, "cores": cores, "inputs": CLOUDS,
        "rounds": len(found.total_ms), "before": before, "after": after, "of": case,
        "throttled": conditions.throttling(before, after),
    }  # fmt: skip
    return operator_records(found, case, DELEGATE_PLAIN, settings)


def show(names: Sequence[str], records: Sequence[Record], sizes: Sizes) -> None:
    """Prints the tables, and below them what their reader must know."""
    for name in names:
        TABLES[name].show(records, sizes)
    if records:
        timed = [r for r in records if "of" not in r.settings]
        noisy = [", ".join(r.name) for r in timed if (found := speedup(records, r)) and found.noisy]
        for line in ([too_noisy(noisy)] if noisy else []) + machine_remarks(records[0].settings):
            print(line)


def aims(records: Sequence[Record]) -> list[Aim]:
    """What the project set itself, beside what was found."""

    def speed(network: str, route: str, factor: float, note: str = "") -> list[Aim]:
        record = find(records, network, route)
        found = speedup(records, record) if record else None
        if not found:
            return []
        return [Aim(f"speed of {network} {route}{note}", f"{factor:g} x {BASE}", f"{found} x", found.median >= factor)]

    def size(route: str, limit: int) -> list[Aim]:
        record = find(records, "BF-H", route)
        found = record.figure("file_bytes") if record else None
        aim = f"at most {limit:,} bytes"
        return [] if found is None else [Aim(f"size of BF-H {route}", aim, f"{found:,.0f} bytes", found <= limit)]

    isa = paper.instruction_set(records[0].device["flags"])
    lines = size(STOCK, paper.STOCK_FILE_BYTES) + speed("BF-H", STOCK, paper.STOCK_SPEED)
    base, best, own = (find(records, *name) for name in (("DGCNN", PAPERS_ROUTE), ("BF-H", STOCK), ("BF-H", OWN)))
    if base and best:
        share = (best.figure("peak_bytes") or 0) / (base.figure("peak_bytes") or 1)
        aim = f"at most {paper.STOCK_PEAK_SHARE:g} of {BASE}'s"
        lines.append(Aim(f"peak memory of BF-H {STOCK}", aim, f"{share:.2f} of it", share <= paper.STOCK_PEAK_SHARE))
    lines += size(OWN, paper.OWN_FILE_BYTES)
    if isa in paper.OWN_SPEED:
        lines += speed("BF-H", OWN, paper.OWN_SPEED[isa], f" with {isa}")
    lines += speed("RF", OWN, paper.OWN_RF_SPEED)
    if own:
        net = (own.figure("peak_bytes") or 0) - (own.figure("empty_bytes") or 0)
        aim, limit = f"at most {digits(paper.OWN_MEMORY_BYTES / 1e6)} MB", paper.OWN_MEMORY_BYTES
        lines.append(Aim(f"peak memory of BF-H {OWN} over the empty runtime", aim, f"{net / 1e6:.1f} MB", net <= limit))
    return lines


def _title(what: str, sizes: Sizes) -> str:
    return f"{what}: batch {sizes.batch}, {sizes.points} points, k = {sizes.k}, {sizes.classes} classes"
