"""Pages for people: one self-contained HTML file of records or of one conversion; tables as Markdown with pictures.

No script and no network: styles and charts (SVG) are in the page. Whatever comes from a model, a file or a record is
escaped. Bars and text keep their size on a narrow screen; wide tables scroll inside their own box.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bgnn.runtime_bench.bench.measure import digits
from bgnn.runtime_bench.bench.records import Record
from bgnn.runtime_bench.bench.report import Bar, Sheet, markdown, profile_sheets, run_sheets, runs_of

COLOURS = 8  # of a chart's parts; what is beyond them is one part, "others"
KIND = "is"  # the column with a layer's kind: binary, INT8 or float
_LONGEST = 32  # characters of a label in a chart
_THEME = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--line:#d5d9df;--soft:#f3f5f8;--quiet:#5b6470}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--paper:#14171b;--line:#363c45;--soft:#1e2329;--quiet:#9aa4b1}}
text{font:13px system-ui,sans-serif;fill:var(--ink)}.track{fill:var(--soft)}
.p0{fill:#2f81c7}.p1{fill:#e0822f}.p2{fill:#3f9e5a}.p3{fill:#b455b6}.p4{fill:#c9a227}.p5{fill:#2aa5a0}.p6{fill:#d1495b}
.p7{fill:#7b68c8}.p8{fill:#8a929c}
"""
_STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;font:15px/1.45 system-ui,sans-serif;color:var(--ink);
background:var(--paper)}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;overflow-wrap:anywhere}p,li,summary{overflow-wrap:anywhere}.quiet{color:var(--quiet)}
.box{overflow-x:auto;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:.3rem .55rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}
th{background:var(--soft);white-space:pre-line}
td{overflow-wrap:break-word;max-width:30rem;white-space:pre-line}
th:first-child,td:first-child{text-align:left;min-width:8rem}tr:last-child td{border-bottom:0}
.words td,.words th{text-align:left}
.kind{display:inline-block;padding:0 .5em;border-radius:1em;color:#fff}
.binary{background:#2b6fa8}.INT8{background:#2d7f47}.float{background:#a3571a}
svg.chart{display:block;width:100%;margin:.6rem 0}details{margin:.6rem 0}summary{cursor:pointer}
"""


def _text(value: object) -> str:
    return html.escape(str(value))


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else digits(value)


def chart(bars: Sequence[Bar], unit: str) -> str:
    """Horizontal bars as an SVG element, as wide as what holds it: label and figure above each, the parts' names below.

    Its size is in `height`; widths are shares of the longest bar.
    """
    names: dict[str, float] = {}
    for bar in bars:
        for name, value in bar.parts:
            names[name] = max(names.get(name, 0.0), value)
    kept = sorted(names, key=lambda name: -names[name])[: COLOURS if len(names) > COLOURS else None]
    colour = {name: number for number, name in enumerate(kept)}
    longest = max((sum(value for _, value in bar.parts) for bar in bars), default=0.0) or 1.0
    lines, y = [], 0
    for bar in bars:
        whole = sum(value for _, value in bar.parts)
        lines.append(f'<text x="0" y="{y + 13}"><title>{_text(bar.label)}</title>{_text(_short(bar.label))}: '
                     f"{_amount(whole)}</text>")  # fmt: skip
        lines.append(f'<rect class="track" x="0" y="{y + 18}" width="100%" height="12"/>')
        start = 0.0
        for name, value in bar.parts:
            width = 100 * value / longest
            said = f"{name}: {_amount(value)} {unit}" if name else f"{_amount(value)} {unit}"
            lines.append(f'<rect class="bar p{colour.get(name, COLOURS)}" x="{start:.3f}%" y="{y + 18}" '
                         f'width="{width:.3f}%" height="12"><title>{_text(said)}</title></rect>')  # fmt: skip
            start += width
        y += 38
    shown = [name for name in kept if name]
    if len(names) > 1:
        for name in [*shown, *(["others"] if len(names) > len(kept) else [])]:
            lines.append(f'<rect class="p{colour.get(name, COLOURS)}" x="0" y="{y + 2}" width="12" height="12"/>')
            lines.append(f'<text x="18" y="{y + 13}">{_text(_short(name))}</text>')
            y += 19
    lines.append(f'<text x="0" y="{y + 13}" opacity=".7">{_text(unit)}</text>')
    inside = "".join(lines)
    return f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" width="100%" height="{y + 20}">{inside}</svg>'


def picture(bars: Sequence[Bar], unit: str) -> str:
    """`chart` as a file of its own, 760 wide."""
    drawn = chart(bars, unit)
    start = drawn.index(">") + 1
    head = drawn[:start].replace('width="100%"', 'width="760"')
    ground = '<rect width="100%" height="100%" style="fill:var(--paper)"/>'
    return f"{head}<style>{_THEME}</style>{ground}{drawn[start:]}"


def markdown_files(sheets: Sequence[Sheet], path: Path) -> dict[Path, bytes]:
    """The tables as Markdown, and beside it their charts."""
    files: dict[Path, bytes] = {}
    pictures: dict[int, str] = {}
    for number, sheet in enumerate(sheets):
        if sheet.bars:
            place = path.with_name(f"{path.stem}-{len(pictures)}.svg")
            files[place] = picture(sheet.bars, sheet.unit).encode("utf-8", "backslashreplace")
            pictures[number] = place.name
    files[path] = markdown(sheets, pictures).encode("utf-8", "backslashreplace")
    return files


def table(sheet: Sheet, words: bool = False) -> str:
    """A table in its own scrolling box; `words`: its cells stand left."""
    head = "".join(f"<th>{_text(one)}</th>" for one in sheet.heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(head, one)}</td>' for head, one in zip(sheet.heads, row, strict=True))}</tr>"
        for row in sheet.rows
    )
    kind = ' class="words"' if words else ""
    return f'<div class="box"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(head: str, value: str) -> str:
    return f'<span class="kind {value}">{value}</span>' if head == KIND else _text(value)


def section(sheet: Sheet, words: bool = False) -> str:
    """A sheet with its chart and its notes."""
    parts = [f"<h3>{_text(sheet.title)}</h3>"]
    if sheet.bars:
        parts.append(chart(sheet.bars, sheet.unit))
    if sheet.rows:
        parts.append(table(sheet, words))
    parts += [f'<p class="quiet">{_text(line)}</p>' for line in (sheet.caption, *sheet.notes) if line]
    return "".join(parts)


def page(title: str, sections: Mapping[str, Iterable[str]]) -> str:
    """The whole page; a section without content is left out."""
    body = "".join(f"<section><h2>{_text(name)}</h2>{inside}</section>"
                   for name, parts in sections.items() if (inside := "".join(parts)))  # fmt: skip
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{_THEME}{_STYLE}</style></head>"
        f"<body><h1>{_text(title)}</h1>{body}</body></html>\n"
    )


# ------------------------------------------------------------------------------------------------------- of conversions


def conversion_sections(name: str, found: Mapping[str, Any]) -> list[str]:
    """A conversion's parts: what each layer became and why, the work by kind, operators, verification."""
    layers = []
    for one in found.get("layers", []):
        macs = {"binary": one["binary_macs"], "INT8": one.get("integer_macs", 0), "float": one["float_macs"]}
        kind = max(macs, key=lambda kind: macs[kind])
        row = [one["name"], kind, one["was"], one["became"], f"{sum(macs.values()) / 1e6:,.2f}", one["why"]]
        layers.append((sum(macs.values()) / 1e6, kind, row))
    work = [Bar("all layers", [(kind, count / 1e6) for kind, count in found.get("macs", {}).items() if count])]
    work += [Bar(row[0], [(kind, macs)]) for macs, kind, row in layers if macs]
    heads = ["layer", KIND, "was", "became", "M multiply-accumulates", "why"]
    rows = [row for _, _, row in layers]
    sheets = [Sheet(f"{name}: what each layer became, and why", heads, rows, bars=work,
                    unit="millions of multiply-accumulates")]  # fmt: skip
    operators = found.get("operators") or {}
    counted = [Bar(kind, [("", float(count))]) for kind, count in operators.items()]
    size = f"{found['bytes']:,} bytes; " if found.get("bytes") else ""
    about = f"{size}{found.get('target')} -O{found.get('optimize')}, {found.get('kernels')} kernels; peak activations "
    about += f"{found.get('peak_activation_bytes', 0) / 1e6:,.1f} MB"
    sheets.append(
        Sheet(f"{name}: the file's operators", [], [], about, found.get("warnings", []), counted, "operators")
    )
    return [section(sheet, words=True) for sheet in [*sheets, verification(name, found.get("checks", []))]]


def verification(name: str, checks: Sequence[Mapping[str, Any]]) -> Sheet:
    """What each comparison with the PyTorch model found."""
    heads = [
        "compared", "largest output difference", "of", "signs", "neighbours", "codes", "one beside", "another class",
        "proven layers", "note",
    ]  # fmt: skip
    rows = []
    for one in checks:
        turned = f" ({one['turned_signs']} turned)" if one["turned_signs"] else ""
        tied = f" ({one['turned_rows']} rows nearly tied)" if one["turned_rows"] else ""
        rows.append([
            one["what"], f"{one['output_error']:.2g}" if one["compared"] else "not compared",
            f"{one['output_scale']:.3g}", f"{one['signs']:,}{turned}", f"{one['neighbours']:,}{tied}",
            f"{one['codes']:,}", f"{one['stepped']:,}", f"{one['changed_rows']:,} of {one['rows']:,} rows",
            f"{one['proof']['layers']}", one["note"],
        ])  # fmt: skip
    notes = [] if checks else ["not verified (--no-verify)"]
    return Sheet(f"{name}: verification", heads, rows, notes=notes)


def of_conversion(found: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """One conversion, by bgnn-convert's report."""
    calibration = found.get("calibration") or {}
    heads = ["layer", "activation", "least", "largest", "beyond the range", "error", "by it alone, at the output"]
    ranges = [
        [one["layer"] or "forward", one["what"], f"{one['low']:.4g}", f"{one['high']:.4g}", f"{one['clipped']:.2%}",
         f"{one['error']:.2%}", f"{one['alone']:.2%}"]
        for one in calibration.get("activations", [])
    ]  # fmt: skip
    eight_bits = Sheet("what each activation's 8 bits hold", heads, ranges)
    inputs = Sheet("inputs", [], [], found.get("inputs", ""))
    return page(f"{found['name']}: {found['target']}", {
        "Conversion": [section(inputs), *conversion_sections(str(found["name"]), found)],
        "Calibration": [section(eight_bits)] if ranges else [],
        "Environment": [section(environment([(machine, machine.get("packages", {}), {})]))],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- of records


def of_records(records: Sequence[Record], title: str) -> str:
    """Everything that records say: the papers' tables where they are made of these, runs, profiles, conversions."""
    from bgnn.runtime_bench.bench import tables
    from bgnn.runtime_bench.bench.cases import Sizes

    sources = {record.settings.get("source") for record in records}
    names = [name for name, row in tables.TABLES.items() if row.sources and set(row.sources) <= sources]
    sizes = next(
        (Sizes(**r.settings["sizes"]) for r in records if "sizes" in r.settings and "source" in r.settings), Sizes()
    )
    measured = [section(sheet) for sheet in tables.sheets(names, records, sizes)]
    in_table = [r for r in records if "source" in r.settings and r.samples.get("wall_ms")]
    alone = [r for r in records if "source" not in r.settings]
    runs = [section(sheet) for sheet in run_sheets(alone)]
    details = [section(sheet) for sheet in run_sheets(in_table)]
    profiles = []
    for rows in runs_of(r for r in records if "operator" in r.settings and r.samples.get("wall_ms")):
        what = f"{', '.join(rows[0].settings['base'])}, inputs {rows[0].settings['inputs']}"
        kinds, operators = profile_sheets(rows, what)
        profiles += [section(kinds), f"<details><summary>operator by operator</summary>{section(operators)}</details>"]
    converted = {r.case: r.settings["conversion"] for r in records if "conversion" in r.settings}
    many = len(converted) > 2
    conversions = []
    for name, found in converted.items():
        inside = "".join(conversion_sections(name, found))
        conversions.append(f"<details><summary>{_text(name)}</summary>{inside}</details>" if many else inside)
    folded = [f"<details><summary>every run of the tables</summary>{''.join(details)}</details>"] if details else []
    machines = {(r.device["id"], str(r.versions)): (r.device, r.versions, r.settings.get("after", {})) for r in records}
    return page(title, {
        "Tables": measured,
        "Runs": [*runs, *folded],
        "Where time goes": profiles,
        "Conversions": conversions,
        "Environment": [section(environment(list(machines.values())))],
    })  # fmt: skip


def environment(found: Sequence[tuple[Mapping[str, Any], Mapping[str, str], Mapping[str, Any]]]) -> Sheet:
    """Machines, versions, and how a machine stood when it had measured."""
    rows = []
    for device, versions, state in found:
        memory = f", {device['memory_bytes'] / 1e9:.0f} GB" if device.get("memory_bytes") else ""
        rows.append([
            f"{device.get('cpu', '')}, {device.get('cores', '?')} cores{memory}", device.get("system", ""),
            ", ".join(f"{name} {version}" for name, version in versions.items()),
            ", ".join(f"{key} {value}" for key, value in state.items() if not isinstance(value, (dict, list))),
        ])  # fmt: skip
    return Sheet("machines", ["processor", "system", "versions", "state"], rows)
