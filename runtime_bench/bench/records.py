"""What a measurement is on disk: one record, one line of JSON; every table is a query over records.

A record holds the samples of one candidate on one case. Records of one run (`settings["run"]`) were measured in the
same rounds, so that a ratio may be taken sample by sample; no other ratio is one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bgnn.runtime_bench.bench.measure import Spread
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

WALL, CPU = "wall_ms", "cpu_ms"


@dataclass(frozen=True)
class Record:
    """One candidate on one case."""

    case: str
    """What ran: a file's name, or a row of `cases`."""
    candidate: str
    """What ran it: a name of `candidates`."""
    device: dict[str, Any]
    """`measure.describe_machine`; equal "id"s are one machine."""
    modelled: bool
    """Whether the samples come from a model of the device, and no run on it."""
    samples: dict[str, list[float]]
    """Figures by what they are, with the unit at the end of the name; of times, one for each round, in order."""
    versions: dict[str, str]
    """Of the packages that ran it."""
    settings: dict[str, Any]
    """run (the rounds), base (the case and the candidate that ratios refer to), threads, and whatever else tells two
    runs apart."""

    @property
    def threads(self) -> int:
        return int(self.settings["threads"])

    @property
    def run(self) -> str:
        """Records with one run were measured in the same rounds."""
        return str(self.settings["run"])

    @property
    def name(self) -> list[str]:
        """Which of its run's it is."""
        return [self.case, self.candidate]

    def spread(self, what: str = WALL) -> Spread | None:
        """The summary of a kind of samples; None where there are none."""
        return Spread.of(self.samples[what]) if self.samples.get(what) else None

    def figure(self, what: str) -> float | None:
        """The median of a kind of samples; None where there are none."""
        spread = self.spread(what)
        return spread.median if spread else None


def base_of(records: Iterable[Record], record: Record) -> Record | None:
    """The record of the same rounds that ratios refer to."""
    return next((r for r in records if r.run == record.run and r.name == record.settings["base"]), None)


def ratio(base: Record, record: Record) -> Spread | None:
    """How many times as fast `record` is, round by round; None where they did not share their rounds.

    With one thread by processor time, which neighbours on the machine disturb less, else by the clock.
    """
    what = CPU if record.threads == 1 else WALL
    ours, theirs = record.samples.get(what, []), base.samples.get(what, [])
    if base.run != record.run or not ours or len(ours) != len(theirs):
        return None
    return Spread.of_ratios(theirs, ours)


def write(records: Sequence[Record]) -> bytes:
    """The records as a file's content. Raises ValueError for a figure that is no number."""
    return "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in records).encode()


def read(path: Path) -> list[Record]:
    """The records of a file. Raises UsageError where there is none, BgnnError with the line where it is damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BgnnError(f"{path} holds no records of bgnn-bench: it is no text") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(checked(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise BgnnError(f"{path}, line {number}, is no record of bgnn-bench: {error}") from error
    if not found:
        raise BgnnError(f"{path} holds no records of bgnn-bench")
    return found


_TYPES = {"case": str, "candidate": str, "device": dict, "modelled": bool, "samples": dict, "versions": dict,
          "settings": dict}  # fmt: skip


def checked(data: Any) -> Record:
    if not isinstance(data, dict):
        raise ValueError("not an object")
    wanted = {field.name for field in fields(Record)}
    if data.keys() != wanted:
        missing, unknown = sorted(wanted - data.keys()), sorted(data.keys() - wanted)
        raise ValueError(f"it lacks {', '.join(missing)}" if missing else f"it has {', '.join(map(str, unknown))}")
    for name, kind in _TYPES.items():
        if not isinstance(data[name], kind):
            raise ValueError(f"{name} is {type(data[name]).__name__}, not {kind.__name__}")
    for name, sample in data["samples"].items():
        if not isinstance(sample, list) or not all(_is_number(one) for one in sample):
            raise ValueError(f"samples {name} are no list of numbers")
    settings = data["settings"]
    for name, kind in (("run", str), ("base", list), ("threads", int)):
        if not isinstance(settings.get(name), kind):
            raise ValueError(f"settings have no {name}")
    if not isinstance(data["device"].get("id"), str):
        raise ValueError("device has no id")
    return Record(**data)


def _is_number(one: Any) -> bool:
    return isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one)
