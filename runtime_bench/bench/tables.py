"""`bgnn-bench table NAME`: the papers' tables, each row beside the paper's figure. A table is a query over records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bgnn.runtime_bench.bench import cases, conditions, graphs, paper
from bgnn.runtime_bench.bench.candidates import DELEGATE_PLAIN, LITERT
from bgnn.runtime_bench.bench.cases import CASES, NETWORKS, OWN, PAPERS_ROUTE, ROUTES, STOCK, Sizes
from bgnn.runtime_bench.bench.measure import Schedule, digits, too_noisy
from bgnn.runtime_bench.bench.paper import Aim
from bgnn.runtime_bench.bench.profile import name_layers, operator_records, profile_tflite
from bgnn.runtime_bench.bench.records import CPU, WALL, Record, ratio
from bgnn.runtime_bench.bench.report import Bar, Sheet, machine_remarks, run_sheets, runs_of, speedup
from bgnn.runtime_bench.bench.running import (
    Subject,
    measure_together,
    new_run,
    on_disk,
    report_of,
)
from bgnn.runtime_bench.runtime.errors import UsageError

Say = Callable[[str], None]
BASE = f"DGCNN {PAPERS_ROUTE}"
CLOUDS = "random clouds, seed 0"
ROUNDS, LONGEST = 9, 4.0  # 3 rounds at least: a median has quartiles


@dataclass(frozen=True)
class Plan:
    """What the tables' reader asked for. `rounds`: exactly so many, else up to `ROUNDS` in `LONGEST` seconds for each
    candidate. `data`: where raw files of the citation graphs are, if anywhere."""

    sizes: Sizes = field(default_factory=Sizes)
    rounds: int | None = None
    threads: int = 1
    folder: Path = Path("out/bench")
    data: Path | None = None

    def schedule(self) -> Schedule:
        longest = LONGEST if self.rounds is None else float("inf")
        return Schedule(self.rounds or ROUNDS, seconds=0, longest=longest, least=3, warmup_seconds=0)


@dataclass(frozen=True)
class Table:
    """What it shows, what makes its sheets of the records that its sources measured."""

    about: str
    sheets: Callable[[Sequence[Record], Sizes], list[Sheet]]
    sources: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------------- binary graph networks


def find(records: Sequence[Record], network: str, route: str) -> Record | None:
    """The record of a network's file by a route, on the first of its candidates."""
    return next((r for r in records if r.case == f"{network} {route}" and "operator" not in r.settings), None)


def top_k_share(records: Sequence[Record], network: str, route: str) -> float | None:
    """Which share of a profiled file's time its TOPK_V2 operators take: the paper's "incompressible"."""
    operators = [r for r in records if r.settings.get("of") == f"{network} {route}"]
    whole = sum(r.figure(WALL) or 0.0 for r in operators)
    return sum(r.figure(WALL) or 0.0 for r in operators if r.settings["type"] == "TOPK_V2") / whole if whole else None


def run_times(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Figure 4: relative run times."""
    rows, bars = [], []
    base = find(records, "DGCNN", PAPERS_ROUTE)
    for name in NETWORKS:
        known = paper.BGNN_RUN_TIME.get(name)
        cells = [name, "a bar, no number" if known is None else f"{known:.2g}"]
        for route in ROUTES:
            record = find(records, name, route)
            found = ratio(record, base) if base and record else None
            share = top_k_share(records, name, route)
            cells.append("" if not found else f"{found}" + (f", top-k {share:.0%}" if share else ""))
            if found and share is not None:
                parts = [("top-k", found.median * share), ("the rest", found.median * (1 - share))]
                bars.append(Bar(f"{name}, {route}", parts))
            elif found:
                bars.append(Bar(f"{name}, {route}", [("the rest", found.median)]))
        rows.append(cells)
    heads = ["run time, of DGCNN's", "paper,\nPi 4", f"paper's route\n({PAPERS_ROUTE})", f"ours\n({STOCK})"]
    shown = [find(records, name, route) for route in ROUTES for name in NETWORKS]
    runs = ", ".join(dict.fromkeys(record.candidate for record in shown if record))
    caption = f"medians (quartiles) of run times over {BASE}'s on {LITERT} in the same round; on {runs}; "
    caption += "top-k: its share of the profiled time, which the paper calls incompressible"
    title = _title("Figure 4 of the binary GNN paper", sizes)
    timed = [record for record in records if "isa" not in record.settings]
    notes = [*without_equal_codes(records), *noise(timed)]
    return [Sheet(title, [*heads, f"ours\n({OWN})"], rows, caption, notes, bars, "of DGCNN's run time")]


def without_equal_codes(records: Sequence[Record]) -> list[str]:
    """What our kernels take where no two nodes have equal codes, whose work they share else."""
    every = [record for record in records if "isa" in record.settings]
    if not every:
        return []
    best = [record for record in every if record.settings["isa"] == every[-1].settings["isa"]]
    lines = []
    for network, file in (("BF", "BF-H"), ("RF", "RF")):
        alone = digits(sum(record.settings[network] * (record.figure(WALL) or 0.0) for record in best))
        whole = find(records, file, OWN)
        beside = f"; the whole file, on these clouds: {digits(whole.figure(WALL) or 0.0)} ms" if whole else ""
        lines.append(f"{file}'s kernels alone, no two nodes of equal codes: {alone} ms ({best[0].candidate}){beside}")
    return lines


def features(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Table 4: what is binary in each network, as its conversion found it."""
    rows = []
    for name, marks in paper.BGNN_FEATURES.items():
        cells = [name]
        layers: list[list[dict[str, Any]]] = []
        for route in ROUTES:
            record = find(records, name, route)
            layers.append(record.settings.get("conversion", {}).get("layers", []) if record else [])
        of_any = [one for some in layers for one in some]
        weights = any("x binary" in one["was"] for one in of_any)
        signs = any(one["was"].startswith("k-NN") and "features are signs" in one["why"] for one in of_any)
        for mark, here in zip(marks, (weights, signs, None), strict=True):
            if here is None:
                became = (
                    sorted({one["became"] for one in some if "features are signs" in one["why"]}) for some in layers
                )
                routes = [f"{route}: {', '.join(what)}" for route, what in zip(ROUTES, became, strict=True) if what]
                cells += ["yes" if mark else "", "\n".join(routes)]
            else:
                cells += ["yes" if mark else "", ("yes" if here else "") if of_any else "not measured"]
        rows.append(cells)
    heads = [
        "",
        "binary weights,\npaper",
        "here",
        "binary features,\npaper",
        "here",
        "Hamming distance,\npaper",
        "here",
    ]
    caption = "here: what the converter's report says of the network's layers and of its k-NN among signs"
    return [Sheet("Table 4 of the binary GNN paper", heads, rows, caption)]


def sizes_and_memory(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Section 5.1: bytes of the file, and of the process."""

    def over(record: Record) -> float | None:
        peak, empty = record.figure("peak_bytes"), record.figure("empty_bytes")
        return None if peak is None or empty is None else peak - empty

    rows, bars = [], []
    for name in NETWORKS:
        for what, known, figure in (
            ("file", paper.BGNN_FILE_BYTES, lambda record: record.figure("file_bytes")),
            ("peak", paper.BGNN_PEAK_BYTES, lambda record: record.figure("peak_bytes")),
            ("peak over empty", {}, over),
        ):
            every = {route: figure(record) for route in ROUTES if (record := find(records, name, route))}
            found = {route: size for route, size in every.items() if size is not None}
            cells = [f"{found[route] / 1e6:,.2f}" if route in found else "" for route in ROUTES]
            rows.append([f"{name}, {what}", f"{known[name] / 1e6:,.3g}" if name in known else "", *cells])
            if what == "peak over empty":
                bars += [Bar(f"{name}, {route}", [("", size / 1e6)]) for route, size in found.items() if size]
    caption = "peak: resident, of a fresh process; over empty: less that of one that runs a file of one operator"
    heads = ["MB", "paper,\nPi 4", f"paper's route\n({PAPERS_ROUTE})", f"ours\n({STOCK})", f"ours\n({OWN})"]
    title = _title("Sizes and memory (section 5.1 of the binary GNN paper)", sizes)
    return [Sheet(title, heads, rows, caption, bars=bars, unit="MB of memory over an empty runtime")]


def parameters(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
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
    return [Sheet("Table 5 of the binary GNN paper", heads, rows)]


def by_kind(records: Sequence[Record], case: str, layer: str | None = None) -> dict[str, tuple[float, int]]:
    """Milliseconds and operators by node type, of a profiled file or of one layer in it."""
    kinds: dict[str, tuple[float, int]] = {}
    for record in records:
        if record.settings.get("of") == case and layer in (None, record.settings["layer"]):
            ms, calls = kinds.get(record.settings["type"], (0.0, 0))
            kinds[record.settings["type"]] = ms + (record.figure(WALL) or 0.0), calls + 1
    return kinds


def _beside(title: str, known: dict[str, tuple[float, int]], columns: dict[str, dict], caption: str) -> list[Sheet]:
    every = {"paper,\nPi 4": known, **columns}
    sums = [sum(ms for ms, _ in column.values()) for column in every.values()]

    def cell(column: dict[str, tuple[float, int]], whole: float, kind: str) -> str:
        if kind not in column:
            return ""
        ms, calls = column[kind]
        return f"{digits(ms)} ms, {ms / (whole or 1):.1%}, {calls}"

    kinds = dict.fromkeys(kind for column in every.values() for kind in column)
    rows = [[kind, *(cell(c, s, kind) for c, s in zip(every.values(), sums, strict=True))] for kind in kinds]
    rows.append(["all", *(f"{digits(whole)} ms" if whole else "" for whole in sums)])
    ordered = [sorted(column.items(), key=lambda item: -item[1][0]) for column in columns.values()]
    bars = [Bar(head.partition("\n")[0], [(kind, ms) for kind, (ms, _) in parts])
            for head, parts in zip(columns, ordered, strict=True) if parts]  # fmt: skip
    return [Sheet(title, ["node type: ms, share, calls", *every], rows, caption, bars=bars, unit="ms")]


def node_types(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Table 6: by node type, beside the paper's; its Hamming distances are matrix products."""
    columns = {f"{route}\nhere": by_kind(records, f"BF-H {route}") for route in ROUTES}
    caption = f"medians on {DELEGATE_PLAIN}; the paper's by LCE's profiler, 50 runs"
    return _beside(_title("Table 6 of the binary GNN paper: BF-H", sizes), paper.BGNN_NODE_TYPES, columns, caption)


def one_distance(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Table 7: the second k-NN, among 64 signs: the distances as a matrix product, and our operator."""
    columns = {f"{route}\nhere": by_kind(records, f"BF-H {route}", "k-NN 2") for route in ROUTES}
    caption = f"of BF-H's second k-NN (64 signs), medians on {DELEGATE_PLAIN}; here TOPK_V2 and what follows it, which "
    caption += "the paper's table leaves out, is in, as our operator's one number has the selection in it"
    title = _title("Table 7 of the binary GNN paper: one Hamming distance", sizes)
    return _beside(title, paper.BGNN_ONE_DISTANCE, columns, caption)


def everything(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Every row that was measured, with the aims."""
    records = [record for record in records if "operator" not in record.settings]
    if not records:
        return []
    notes = ["the project's aims are for the paper's sizes and one thread: not compared"]
    if (sizes, records[0].threads) == (Sizes(), 1):
        notes = [str(aim) for aim in aims(records)]
    return [
        replace(sheet, title=_title("DGCNNs", sizes), notes=[*notes, *sheet.notes]) for sheet in run_sheets(records)
    ]


# ------------------------------------------------------------------------------------------------ INT8 graph networks


def layer_times(which: Sequence[str]) -> Callable[[Sequence[Record], Sizes], list[Sheet]]:
    """Tables 4 and 10: how many times as fast W8A8 is as fp32, by layer and graph."""

    def sheets(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
        from bgnn.runtime_bench.bench.graph_cases import FLOAT, INT8, LAYERS

        rows, bars, noisy = [], [], []
        for name in which:
            for layer in LAYERS:
                mine = [r for r in records if (r.settings.get("graph"), r.settings.get("layer")) == (name, layer)]
                by_case = {r.case.partition(f"{layer.upper()} ")[2]: r for r in mine}
                floats = [r for r in mine if FLOAT in r.case and not r.case.endswith(OWN)]
                fp32, w8a8, speed = paper.DQ_LATENCY[name][layer]
                cells = [f"{name} {layer.upper()}", f"{fp32:,g} / {w8a8:,g} ms, {speed} x"]
                for route in ROUTES:
                    slow, fast = by_case.get(f"{FLOAT} {route}"), by_case.get(f"{INT8} {route}")
                    times = ratio(slow, fast) if slow and fast else None
                    cells.append(str(times or ""))
                    noisy += [f"{cells[0]} {route}"] if times and times.noisy else []
                own = by_case.get(f"{INT8} {OWN}")
                best = min(floats, key=lambda r: r.figure(CPU if r.threads == 1 else WALL) or 0.0, default=None)
                found = best and own and ratio(best, own)
                cells.append(
                    f"{found} ({best.candidate}{': -O0' if '-O0' in best.case else ''})" if found and best else ""
                )
                cells.append(str(own.spread(WALL)) if own else "")
                rows.append(cells)
                bars += [Bar(f"{name} {layer.upper()}, paper", [("", speed)])]
                bars += [Bar(f"{name} {layer.upper()}, here", [("", found.median)])] if found else []
        heads = ["W8A8, x as fast as fp32", "paper, 22 cores of a Xeon", f"paper's route\n({PAPERS_ROUTE})"]
        heads += [f"ours\n({STOCK})", f"ours\n({OWN})", "ours, by the best fp32\nwithout our operators", "ours, ms"]
        known = {r.settings["graph"]: f"{r.settings['inputs']}, {r.settings['nodes']:,} nodes, "
                 f"{r.settings['edges']:,} edges" for r in records if r.settings.get("graph") in which}  # fmt: skip
        caption = f"layers of 128 features in and out, {_threads_of(records)}; a ratio is of the same round; "
        caption += "; ".join(f"{name}: {what}" for name, what in known.items())
        number = 4 if "zinc" in which else 10
        notes = [*([too_noisy(noisy)] if noisy else []), *left_out(records, which)]
        return [Sheet(f"Table {number} of Degree-Quant", heads, rows, caption, notes, bars, "x as fast as fp32")]

    return sheets


def left_out(records: Sequence[Record], which: Sequence[str]) -> list[str]:
    """What could not run in any of the runs on these graphs, and why: each once."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.settings.get("graph") in which:
            for name, why in record.settings.get("left_out", {}).items():
                found.setdefault(why, []).append(name)
    return [f"left out: {'; '.join(dict.fromkeys(names))}: {why}" for why, names in found.items()]


def dq_parameters(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Table 6 of Degree-Quant: parameters, counted in our models."""
    from bgnn.models.dq import presets
    from bgnn.models.dq.networks import build

    rows = []
    for conv, known in presets.TABLE_6.items():
        for dataset, count in known.items():
            model = build(presets.architecture(dataset, conv))
            ours = sum(parameter.numel() for parameter in model.parameters())
            rows.append(
                [f"{dataset} {conv.upper()}", f"{count:,}", f"{ours:,}", f"{ours - count:+,}" if ours != count else ""]
            )
    caption = "docs/degree-quant.md says where the three differences come from"
    return [Sheet("Table 6 of Degree-Quant: parameters", ["", "paper", "ours", ""], rows, caption)]


# --------------------------------------------------------------------------------------------- the project's own tables


def kernels(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Each kernel on each instruction set, with the sums of each network's calls."""
    isas = list(dict.fromkeys(r.candidate for r in records))
    ops = {r.case: r for r in records}
    found = {(r.case, r.candidate): r for r in records}
    rows = [
        [op, str(first.settings["BF"] or ""), str(first.settings["RF"] or "")]
        + [str(found[op, isa].spread(WALL)) for isa in isas]
        for op, first in ops.items()
    ]
    for network in ("BF", "RF"):
        sums = [
            sum(r.settings[network] * (r.figure(WALL) or 0.0) for r in records if r.candidate == isa) for isa in isas
        ]
        rows.append([f"{network}, the sum of its calls", "", "", *map(digits, sums)])
    caption = f"ms, {_threads_of(records)}, no equal rows"
    return [Sheet(_title("Kernels", sizes), ["", "in BF", "in RF", *isas], rows, caption)]


def knn(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Hamming k-NN alone; processor time, which neighbours on the machine disturb least."""
    names = list(dict.fromkeys(r.candidate for r in records))
    ours, rows = names[0], []
    behind: dict[str, list[str]] = {name: [] for name in names if not name.startswith("bgnn")}
    for run in runs_of(records):
        by_name = {r.candidate: r for r in run}
        first = by_name[ours]
        rate = first.settings["words"] / min(first.samples[CPU]) * 1e3
        cells = [first.case, *(str(by_name[n].spread(CPU)) if n in by_name else "" for n in names)]
        for name in behind:
            found = ratio(by_name[name], first) if name in by_name else None
            cells.append(str(found or ""))
            if found and found.median < 1:
                behind[name].append(f"{first.case} ({digits(found.median)})")
        rows.append([*cells, f"{rate / 1e9:.1f} ({rate / first.settings['roofline']:.0%})"])
    heads = ["", *names, *(f"{ours}, x as\nfast as {n}" for n in behind), f"{ours}\nGwords/s (of roofline)"]
    notes = [str(Aim(f"Hamming k-NN, {ours} beside {name}", "ahead on every size",
                     f"behind on {', '.join(where)}" if where else "ahead on every size", not where))
             for name, where in behind.items() if any(r.candidate == name for r in records)]  # fmt: skip
    wrong = [", ".join(r.name) for r in records if r.figure("difference")]
    notes += [f"other distances: {'; '.join(wrong)}"] if wrong else []
    notes += list(
        dict.fromkeys(f"left out: {name}: {why}" for r in records for name, why in r.settings["left_out"].items())
    )
    caption = f"CPU ms, k = {sizes.k}, one thread; roofline {records[0].settings['roofline'] / 1e9:.1f} Gwords/s"
    return [Sheet("Exact Hamming k-NN", heads, rows, caption, notes)]


def aggregation(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """One sum over a large graph's neighbours: GB/s of rows (by processor time: a wait is nobody's memory traffic)."""
    from bgnn.runtime_bench.bench.kernel_cases import RANDOM, STOCK_FLOAT

    by_name = {r.candidate: r for r in records}
    best = min((by_name[name] for name in STOCK_FLOAT), key=lambda r: r.figure(CPU) or 0.0)
    rows = []
    for name, r in by_name.items():
        bytes_read, share = r.settings["row_bytes"], ratio(by_name[RANDOM], r)
        speed = digits(bytes_read / (r.figure(CPU) or 1.0) / 1e6) if bytes_read else ""
        rows.append([name, str(r.spread(CPU)), speed, str(share or ""), str(ratio(best, r) or "")])
    heads = ["", "CPU ms", "GB/s", f"x as fast as\n{RANDOM}", f"x as fast as\n{best.candidate}"]
    return [Sheet(records[0].case, heads, rows, _threads_of(records), noise(records))]


def accuracies(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """Trained graph networks: PyTorch's accuracy beside the file's, and quantised after training beside float."""
    rows, rows_after = [], []
    for r in records:
        if "codes" in r.samples:
            counts = [f"{r.figure(key):,.0f}" for key in ("codes", "stepped", "changed_rows", "file_bytes")]
            rows.append(
                [r.case, r.candidate, *(f"{r.figure(key):.3f}" for key in ("accuracy_pytorch", "accuracy")), *counts]
            )
        else:
            error = r.figure("error")
            kept = r.settings.get("keeps_float")
            rows_after.append([r.case, r.candidate, f"{r.figure('accuracy'):.3f}",
                               "" if error is None else f"{error:.1%}", kept or ""])  # fmt: skip
    heads = ["", "kernels", "accuracy,\nPyTorch", "accuracy,\nfile", "codes\ncompared", "one\nbeside",
             "nodes of\nanother class", "bytes"]  # fmt: skip
    after = ["", "ranges", "accuracy", "the logits'\nrelative error", "left float"]
    return [Sheet("Degree-Quant W8A8 networks and the ONNX files made from them", heads, rows),
            Sheet("--calibrate: float networks quantised after training", after, rows_after)]  # fmt: skip


def each_run(*more: str) -> Callable[[Sequence[Record], Sizes], list[Sheet]]:
    """A sheet for each run as `bgnn-bench run` prints it; `more`: settings that get a column."""

    def sheets(records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
        found = []
        for run, sheet in zip(runs_of(records), run_sheets(records), strict=True):
            rows = [[*row, *(_setting(r, key) for key in more)] for row, r in zip(sheet.rows, run, strict=True)]
            found.append(replace(sheet, heads=[*sheet.heads, *more], rows=rows))
        return found

    return sheets


def _setting(record: Record, key: str) -> str:
    value = record.settings.get(key)
    if key == "verified":
        checks = record.settings.get("conversion", {}).get("checks", [])
        return "; ".join(f"{c['signs']:,} signs, {c['codes']:,} codes" for c in checks[-1:])
    return f"{value:,.3g}" if isinstance(value, float) else "" if value is None else f"{value:,}"


TABLES = {
    "bgnn-fig4": Table("run times of DGCNN, RF, BF, BF-H, relative (Figure 4)", run_times,
                       ("times", "profiles", "kernels")),
    "bgnn-table4": Table("what is binary in which network (Table 4)", features, ("times",)),
    "bgnn-size-memory": Table("files and memory (section 5.1)", sizes_and_memory, ("times",)),
    "bgnn-table5": Table("parameters (Table 5)", parameters),
    "bgnn-table6": Table("where BF-H's time goes, by node type (Table 6)", node_types, ("profiles",)),
    "bgnn-table7": Table("one Hamming distance, as a matrix product and by our operator (Table 7)", one_distance,
                         ("profiles",)),
    "bgnn-all": Table("every file and runtime of the other tables, beside the project's aims", everything, ("times",)),
    "dq-table4": Table("INT8 layers on ZINC- and Reddit-shaped graphs (Degree-Quant, Table 4)",
                       layer_times(("zinc", "reddit")), ("zinc", "reddit")),
    "dq-table6": Table("parameters (Degree-Quant, Table 6)", dq_parameters),
    "dq-table10": Table("INT8 layers on CIFAR-10-, Cora- and Citeseer-shaped graphs (Degree-Quant, Table 10)",
                        layer_times(("cifar10", "cora", "citeseer")), ("cifar10", "cora", "citeseer")),
    "knn": Table("Hamming k-NN alone beside FAISS and usearch", knn, ("knn",)),
    "kernels": Table("every kernel on every instruction set, at the networks' sizes", kernels, ("kernels",)),
    "aggregate": Table("one sum over a large graph's neighbours, beside memory", aggregation, ("aggregate",)),
    "segments": Table("sums over edges by TFLite's own operators", each_run(), ("segments",)),
    "graph-networks": Table("whole INT8 and binary graph networks", each_run("verified"), ("networks",)),
    "accuracy": Table("trained INT8 networks on Cora and Citeseer beside the files", accuracies, ("accuracy",)),
    "calibrated-clouds": Table("point-cloud networks in INT8 by --calibrate beside float",
                               each_run("accuracy", "codes", "stepped"), ("clouds",)),
}  # fmt: skip


def check_names(names: Sequence[str]) -> None:
    """Raises UsageError for a table that there is not."""
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        raise UsageError(f"there is no table {unknown[0]!r}: there are {', '.join(TABLES)}")


# ------------------------------------------------------------------------------------------ what the tables are made of


def _times(plan: Plan, say: Say) -> list[Record]:
    cases.write_all(CASES, plan.sizes, plan.folder, say)
    with on_disk([cases.clouds(plan.sizes)]) as npz:
        rows = cases.subjects(CASES, plan.sizes, npz, plan.threads, plan.schedule(), plan.folder, say)
        return measure_together(rows, CLOUDS, plan.threads, plan.schedule(), say)


def _profiles(plan: Plan, say: Say) -> list[Record]:
    """A record for each operator, on LiteRT's own operators and ours, as LCE's profiler had it in the paper."""
    found = []
    profiled = [case for case in CASES if case.target and not case.target.startswith("onnx")]
    cases.write_all(profiled, plan.sizes, plan.folder, say)
    for case in profiled:
        path = cases.file_of(case, plan.sizes, plan.folder, say)
        say(f"{case.name}: operator by operator")
        before = conditions.now()
        with conditions.pinned(plan.threads) as cores:
            profile = profile_tflite(
                path.read_bytes(), plan.threads, [cases.clouds(plan.sizes)], False, plan.schedule()
            )
        name_layers(profile, report_of(path))
        after = conditions.now()
        settings = {
            "run": new_run(), "base": [case.name, DELEGATE_PLAIN], "threads": plan.threads, "cores": cores,
            "inputs": CLOUDS, "rounds": len(profile.total_ms), "before": before, "after": after, "of": case.name,
            "throttled": conditions.throttling(before, after),
        }  # fmt: skip
        found += operator_records(profile, case.name, DELEGATE_PLAIN, settings)
    return found


def _layers(name: str) -> Callable[[Plan, Say], list[Record]]:
    def measured_layers(plan: Plan, say: Say) -> list[Record]:
        from bgnn.runtime_bench.bench import graph_cases

        graph = graphs.graph(name, plan.data)
        found = []
        for kind in graph_cases.LAYERS:
            rows = graph_cases.layer_subjects(graph, kind, plan.threads, plan.schedule(), plan.folder, say)
            found += measure_together(rows, graph.what, plan.threads, plan.schedule(), say)
        return found

    return measured_layers


def _runs(make: Callable[[Plan, Say], list[tuple[list[Subject], str]]]) -> Callable[[Plan, Say], list[Record]]:
    def source(plan: Plan, say: Say) -> list[Record]:
        return [record for rows, what in make(plan, say)
                for record in measure_together(rows, what, plan.threads, plan.schedule(), say)]  # fmt: skip

    return source


def _knn(plan: Plan, say: Say) -> list[Record]:
    from bgnn.runtime_bench.bench import kernel_cases as made

    found, roofline = [], made.words_per_second()
    for bits in made.KNN_BITS:
        for nodes in made.KNN_NODES:
            say(f"k-NN among {nodes} codes of {bits} bits")
            rows = [replace(row, about={**row.about, "roofline": roofline})
                    for row in made.knn_subjects(nodes, bits, plan.sizes.k)]  # fmt: skip
            found += measure_together(rows, "random codes, seed 0", 1, plan.schedule(), say)
    return found


def _kernels(plan: Plan, say: Say) -> list[tuple[list[Subject], str]]:
    from bgnn.runtime_bench.bench import kernel_cases as made

    return [(made.kernel_subjects(op, plan.threads), "random codes") for op in made.ops(plan.sizes)]


def _aggregate(plan: Plan, say: Say) -> list[tuple[list[Subject], str]]:
    from bgnn.runtime_bench.bench import kernel_cases as made

    return [(made.aggregate_subjects(graphs.REDDIT_NODES, graphs.REDDIT_EDGES, plan.threads), "power-law graph")]


def _segments(plan: Plan, say: Say) -> list[tuple[list[Subject], str]]:
    from bgnn.runtime_bench.bench import kernel_cases as made

    return [(made.segment_subjects(*sizes), "random graph") for sizes in made.SEGMENT_GRAPHS]


def _networks(plan: Plan, say: Say) -> list[Record]:
    from bgnn.runtime_bench.bench import graph_cases as made

    found = []
    for graph, dense in (("cora", False), ("cora", True), ("power-law", True)):
        chosen = graphs.graph(graph, plan.data)
        for name in made.NETWORKS:
            for runtime in ("TFLite", "ONNX"):
                rows = made.network_subjects(
                    chosen, name, runtime, dense, plan.threads, plan.schedule(), plan.folder, say
                )
                found += measure_together(rows, chosen.what, plan.threads, plan.schedule(), say)
    return found


def _accuracy(plan: Plan, say: Say) -> list[Record]:
    from bgnn.models.dq.data import load_citation
    from bgnn.runtime_bench.bench import trained_cases as made

    found = []
    for dataset in made.DATASETS:
        graph = load_citation(dataset, plan.data or Path("data"))
        for layer in made.LAYERS:
            case = f"{dataset.capitalize()} {layer.upper()}"
            say(f"{case}: calibrating")
            found += made.calibrated(case, made.trained(dataset, layer, "fp32", graph, plan.folder, say), graph)
            if layer == "sage":  # the paper has the other three
                continue
            model = made.trained(dataset, layer, "dq8", graph, plan.folder, say)
            for route in (STOCK, OWN):
                say(f"{case} {route}: converting")
                found.append(made.beside_pytorch(case, model, graph, route))
    return found


def _clouds(plan: Plan, say: Say) -> list[tuple[list[Subject], str]]:
    from bgnn.runtime_bench.bench import trained_cases as made

    return [(made.cloud_subjects(name, runtime, plan.threads, plan.schedule(), plan.folder, say), "shapes")
            for name in made.CLOUD_NETWORKS for runtime in made.CLOUD_TARGETS]  # fmt: skip


SOURCES: dict[str, Callable[[Plan, Say], list[Record]]] = {
    "times": _times, "profiles": _profiles, "knn": _knn, "kernels": _runs(_kernels), "aggregate": _runs(_aggregate),
    "segments": _runs(_segments), "networks": _networks, "accuracy": _accuracy, "clouds": _runs(_clouds),
    **{name: _layers(name) for name in paper.DQ_LATENCY},
}  # fmt: skip


def measured(names: Sequence[str], plan: Plan, say: Say) -> Iterator[Record]:
    """What the tables are made of, each source measured once; a record's settings say its source and the sizes."""
    needed = dict.fromkeys(source for name in names for source in TABLES[name].sources)
    if needed:
        plan.folder.mkdir(parents=True, exist_ok=True)
    for source in needed:
        for record in SOURCES[source](plan, say):
            yield replace(record, settings={**record.settings, "source": source, "sizes": asdict(plan.sizes)})


def sheets(names: Sequence[str], records: Sequence[Record], sizes: Sizes) -> list[Sheet]:
    """The tables' sheets; a table none of whose sources is among the records has none."""
    found = []
    for name in names:
        table = TABLES[name]
        own = [record for record in records if record.settings.get("source") in table.sources]
        if own or not table.sources:
            found += table.sheets(own, sizes)
    return found


def noise(records: Sequence[Record]) -> list[str]:
    """The warning that a table's reader needs, if any, and how the machine stood."""
    timed = [r for r in records if "operator" not in r.settings]
    noisy = [", ".join(r.name) for run in runs_of(timed) for r in run if (found := speedup(run, r)) and found.noisy]
    rest = machine_remarks({**timed[0].settings, "left_out": {}}) if timed else []
    return ([too_noisy(noisy)] if noisy else []) + rest


def _threads_of(records: Sequence[Record]) -> str:
    return (
        f"{records[0].threads} thread(s), {records[0].device['cpu']}, {records[0].device['cores']} cores"
        if records
        else ""
    )


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
