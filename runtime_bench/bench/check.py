"""`bgnn-bench check`: whether records are worse than a baseline's, for CI.

Counted figures (bytes, operators, instructions, shares, verification) decide alone. Times are only compared as ratios
to the same run's base, and only where neither run was too noisy for it; a change counts where the quartiles lie apart
by more than a tenth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bgnn.runtime_bench.bench.records import CPU, Record
from bgnn.runtime_bench.bench.report import speedup

# How much a figure may grow, as a share and beside it in its own unit: memory holds what the system rounds up.
GROWTH = {
    "file_bytes": (0.01, 0.0), "arena_bytes": (0.01, 0.0), "memory_bytes": (0.10, 2e6), "instructions": (0.05, 0.0),
    "peak_activation_bytes": (0.01, 0.0),
}  # fmt: skip
TIME, FEW = 0.1, 4  # how much slower counts; rounds below which nothing is said about time
# Of a verification: what may not grow, and what may not shrink.
_NOT_MORE = ("turned_signs", "turned_rows", "stepped", "changed_rows")
_NOT_LESS = ("signs", "neighbours", "codes", "exact")


@dataclass(frozen=True)
class Finding:
    """One difference; `worse`: it fails the check."""

    where: str
    what: str
    worse: bool

    def __str__(self) -> str:
        return f"{'WORSE ' if self.worse else 'note  '}{self.where}: {self.what}"


def compare(baseline: Sequence[Record], now: Sequence[Record]) -> list[Finding]:
    """What differs, by case, candidate and threads; a record that the baseline has and these have not is worse."""
    found: list[Finding] = []
    mine = {_key(record): record for record in now}
    for record in baseline:
        other = mine.pop(_key(record), None)
        where = f"{record.case}, {record.candidate}" + (f", {record.threads} threads" if record.threads > 1 else "")
        if other is None:
            why = next((r.settings["left_out"][f"{record.case}, {record.candidate}"] for r in now
                        if f"{record.case}, {record.candidate}" in r.settings.get("left_out", {})), "")  # fmt: skip
            found.append(Finding(where, f"is no longer measured{f': {why}' if why else ''}", True))
            continue
        found += [Finding(where, what, worse) for what, worse in _differences(record, other)]
        before, after = speedup(baseline, record), speedup(now, other)
        rounds = min(len(one.samples.get(CPU, [])) for one in (record, other))
        if before is None or after is None or record.name == record.settings["base"] or rounds < FEW:
            continue
        base = ", ".join(record.settings["base"])
        if before.noisy or after.noisy:
            found.append(
                Finding(where, f"x as fast as {base}: too noisy to be compared ({before}, now {after})", False)
            )
        elif after.high < (1 - TIME) * before.low:
            found.append(Finding(where, f"x as fast as {base}: {before}, now {after}", True))
    found += [Finding(f"{r.case}, {r.candidate}", "is not in the baseline", False) for r in mine.values()]
    return found or [Finding("all", f"as in the baseline: all of {len(baseline)}", False)]


def _key(record: Record) -> tuple[Any, ...]:
    return record.case, record.candidate, record.threads


def _differences(old: Record, new: Record) -> list[tuple[str, bool]]:
    found = []
    before, after = _counted(old), _counted(new)
    for name, (share, more) in GROWTH.items():
        was, now = before.get(name), after.get(name)
        if was is None:
            continue
        if now is None:
            found.append((f"{name}: {was:,.0f}, and now not known", True))
        elif now > was * (1 + share) + more:
            found.append(
                (f"{name}: {was:,.0f}, now {now:,.0f} ({now / was - 1:+.1%})" if was else f"{name}: {now:,.0f}", True)
            )
        elif now < was * (1 - share) - more:
            found.append((f"{name}: {was:,.0f}, now {now:,.0f}", False))
    mine, theirs = old.settings.get("conversion"), new.settings.get("conversion")
    if mine is None:
        return found
    if theirs is None:
        return [*found, ("bgnn-convert's report no longer lies beside the file", True)]
    return found + _of_conversions(mine, theirs)


def _counted(record: Record) -> dict[str, float]:
    figures = {name: record.figure(name) for name in GROWTH}
    peak, empty = record.figure("peak_bytes"), record.figure("empty_bytes")
    figures["memory_bytes"] = None if peak is None or empty is None else peak - empty
    figures["peak_activation_bytes"] = record.settings.get("conversion", {}).get("peak_activation_bytes")
    return {name: figure for name, figure in figures.items() if figure is not None}


def _of_conversions(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, bool]]:
    """Operators that are more, shares of the multiply-accumulates that are less, and verification that found more."""
    found = []
    before, after = old.get("operators", {}), new.get("operators", {})
    for kind in dict.fromkeys([*before, *after]):
        was, now = before.get(kind, 0), after.get(kind, 0)
        if was != now:
            found.append((f"operator {kind}: {was}, now {now}", now > was))
    for kind in ("binary", "INT8"):
        was, now = (_share(one.get("macs", {}), kind) for one in (old, new))
        if abs(was - now) > 1e-3:
            found.append((f"share of multiply-accumulates that are {kind}: {was:.1%}, now {now:.1%}", now < was))
    checks = {check["what"]: check for check in new.get("checks", [])}
    for was in old.get("checks", []):
        now = checks.get(was["what"])
        if now is None or (was["compared"] and not now["compared"]):
            found.append((f"{was['what']}: is no longer compared", True))
            continue
        for key in (*_NOT_MORE, *_NOT_LESS):
            if was[key] != now[key]:
                worse = now[key] > was[key] if key in _NOT_MORE else now[key] < was[key]
                found.append((f"{was['what']}: {key.replace('_', ' ')} {was[key]:,}, now {now[key]:,}", worse))
        if now["column_error"] > max(2 * was["column_error"], 1e-6):
            line = f"{was['what']}: largest output difference {was['column_error']:.1g}, now {now['column_error']:.1g}"
            found.append((line, True))
    return found


def _share(macs: dict[str, int], kind: str) -> float:
    return macs.get(kind, 0) / (sum(macs.values()) or 1)
