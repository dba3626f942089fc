"""Records: what is written is read, what is damaged is named, and a ratio is one of the same rounds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from bench_records import record

from bgnn.runtime_bench.bench import records
from bgnn.runtime_bench.bench.measure import Spread
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, written = tmp_path / "r.jsonl", [record(), record(candidate="other", wall_ms=[3, 4])]
    path.write_bytes(records.write(written))
    assert len(path.read_text().splitlines()) == 2
    assert records.read(path) == written


def test_no_figure_is_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        records.write([record(wall_ms=[float("nan")])])


GOOD = dataclasses.asdict(record())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no records"),
        ("\n\n", "holds no records"),
        ("{", "line 1, is no record"),
        ("[]", "not an object"),
        (json.dumps({**GOOD, "more": 1}), "it has more"),
        (json.dumps({key: GOOD[key] for key in GOOD if key != "device"}), "it lacks device"),
        (json.dumps({**GOOD, "case": 3}), "case is int, not str"),
        (json.dumps({**GOOD, "modelled": 0}), "modelled is int, not bool"),
        (json.dumps({**GOOD, "samples": {"wall_ms": ["1"]}}), "samples wall_ms are no list of numbers"),
        (json.dumps({**GOOD, "samples": {"wall_ms": [True]}}), "no list of numbers"),
        (json.dumps({**GOOD, "samples": {"wall_ms": [float("inf")]}}), "no list of numbers"),
        (json.dumps({**GOOD, "settings": {}}), "settings have no run"),
        (json.dumps({**GOOD, "device": {}}), "device has no id"),
        (json.dumps(GOOD) + "\n" + "[" * 100_000, "line 2, is no record"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(BgnnError, match=why) as caught:
        records.read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_not_there_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        records.read(tmp_path / "nothing")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(BgnnError, match="it is no text"):
        records.read(tmp_path / "bytes")


def test_ratios_are_of_the_same_rounds() -> None:
    base, fast = record(cpu_ms=[10, 100]), record(candidate="fast", cpu_ms=[5, 50], wall_ms=[1, 1])
    assert records.base_of([fast, base], fast) is base
    assert records.ratio(base, fast) == Spread(2, 2, 2, 2, 2), "one thread: of CPU time"
    two = [dataclasses.replace(one, settings={**one.settings, "threads": 2}) for one in (base, fast)]
    assert records.ratio(*two) == Spread.of([1, 2]), "two threads: of elapsed time"
    assert records.ratio(base, record(candidate="fast", cpu_ms=[5])) is None, "another number of rounds"
    other = dataclasses.replace(fast, settings={**fast.settings, "run": "another"})
    assert records.ratio(base, other) is None
    assert records.base_of([base], other) is None


def test_figures() -> None:
    assert record().figure("wall_ms") == 1.5
    assert record().figure("arena_bytes") is None
