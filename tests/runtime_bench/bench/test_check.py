"""`bgnn-bench check`: what is worse fails, what is better or too noisy is a note, what is missing is not forgotten."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from bench_records import record

from bgnn.runtime_bench.bench import check, cli, records

VERIFIED = {
    "what": "emitted file", "compared": True, "turned_signs": 0, "turned_rows": 0, "stepped": 1, "changed_rows": 0,
    "signs": 100, "neighbours": 10, "codes": 50, "exact": 90, "column_error": 1e-6,
}  # fmt: skip
CONVERSION = {
    "operators": {"RESHAPE": 2, "LceBconv2d": 3}, "macs": {"binary": 90, "INT8": 0, "float": 10},
    "peak_activation_bytes": 1000, "checks": [VERIFIED],
}  # fmt: skip


def found(base: dict[str, Any] | None = None, changes: dict[str, Any] | None = None, **samples: list) -> list[str]:
    """What is worse in a record with these samples, or with these changes of its conversion."""
    usual = {"file_bytes": [1000], "peak_bytes": [60e6], "empty_bytes": [50e6], "instructions": [1e6]}
    conversion = copy.deepcopy(CONVERSION)
    for path, value in (changes or {}).items():
        place, *keys = path.split("/")
        inside: Any = conversion
        for key in (place, *keys[:-1]) if keys else ():
            inside = inside[int(key) if key.isdigit() else key]
        inside[(keys or [place])[-1]] = value
    old = [record(settings={"conversion": CONVERSION}, **usual)]
    new = [record(settings={"conversion": conversion}, **{**usual, **samples})]
    return [finding.what for finding in check.compare(old, new) if finding.worse]


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ({"file_bytes": [1010]}, []),
        ({"file_bytes": [1011]}, ["file_bytes: 1,000, now 1,011 (+1.1%)"]),
        ({"file_bytes": [900]}, []),
        ({"peak_bytes": [62.9e6]}, []),
        ({"peak_bytes": [63.1e6]}, ["memory_bytes: 10,000,000, now 13,100,000 (+31.0%)"]),
        ({"instructions": [1.05e6]}, []),
        ({"instructions": [1.06e6]}, ["instructions: 1,000,000, now 1,060,000 (+6.0%)"]),
        ({"instructions": []}, ["instructions: 1,000,000, and now not known"]),
    ],
)
def test_counted_figures(samples: dict, said: list[str]) -> None:
    assert found(**samples) == said


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("operators/RESHAPE", 3, ["operator RESHAPE: 2, now 3"]),
        ("operators/RESHAPE", 1, []),
        ("operators/TILE", 1, ["operator TILE: 0, now 1"]),
        ("macs/float", 20, ["share of multiply-accumulates that are binary: 90.0%, now 81.8%"]),
        ("macs/float", 5, []),
        ("peak_activation_bytes", 2000, ["peak_activation_bytes: 1,000, now 2,000 (+100.0%)"]),
        ("checks/0/turned_signs", 1, ["emitted file: turned signs 0, now 1"]),
        ("checks/0/stepped", 0, []),
        ("checks/0/signs", 99, ["emitted file: signs 100, now 99"]),
        ("checks/0/signs", 101, []),
        ("checks/0/column_error", 1e-5, ["emitted file: largest output difference 1e-06, now 1e-05"]),
        ("checks/0/compared", False, ["emitted file: is no longer compared"]),
        ("checks", [], ["emitted file: is no longer compared"]),
    ],
)
def test_conversions(path: str, value: Any, said: list[str]) -> None:
    assert found(changes={path: value}) == said


def times(*fast: float) -> list[records.Record]:
    return [record(cpu_ms=[10.0] * len(fast)), record("fast", cpu_ms=list(fast))]


def test_time_is_a_ratio_and_only_where_it_is_quiet() -> None:
    assert [f.worse for f in check.compare(times(5, 5.1, 5, 5.1), times(5.2, 5.3, 5.2, 5.3))] == [False]
    (slower,) = check.compare(times(5, 5.1, 5, 5.1), times(6, 6.1, 6, 6.1))
    assert slower.worse
    assert "x as fast as a.tflite, LiteRT: 1.98 (1.96-2.00), now 1.65" in slower.what
    (few,) = check.compare(times(5, 5.1, 5), times(8, 8.1, 8))
    assert not few.worse, "three rounds are too few"
    (noisy,) = check.compare(times(5, 5.1, 5, 5.1), times(4, 9, 4, 9))
    assert not noisy.worse
    assert "too noisy to be compared" in noisy.what


def test_what_is_no_longer_measured_is_worse() -> None:
    now = [record(settings={"left_out": {"a.tflite, fast": "it refuses"}})]
    (gone,) = check.compare(times(5, 5), now)
    assert (gone.worse, gone.what) == (True, "is no longer measured: it refuses")
    (new,) = check.compare([record()], times(5, 5))
    assert (new.worse, new.what) == (False, "is not in the baseline")
    *_, lost = check.compare([record(settings={"conversion": CONVERSION})], [record()])
    assert lost.what == "bgnn-convert's report no longer lies beside the file"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("base", 1000), ("same", 1000), ("more", 2000)):
        (tmp_path / name).write_bytes(records.write([record(file_bytes=[size])]))
    baseline = ["--baseline", str(tmp_path / "base")]
    assert cli.main(["check", str(tmp_path / "same"), *baseline]) == 0
    assert "as in the baseline: all of 1" in capsys.readouterr().out
    assert cli.main(["check", str(tmp_path / "more"), *baseline]) == 1
    printed = capsys.readouterr()
    assert "WORSE a.tflite, LiteRT: file_bytes: 1,000, now 2,000 (+100.0%)" in printed.out
    assert "1 figure is worse than in" in printed.err
    assert cli.main(["check", str(tmp_path / "none"), *baseline]) == 2
