"""What a machine says of itself, from files as they stand in Linux's /sys and /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bgnn.runtime_bench.bench import conditions


def system(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


CPU = "sys/devices/system/cpu/cpu"


def test_what_is_told(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        {
            f"{CPU}0/cpufreq/scaling_governor": "performance",
            f"{CPU}1/cpufreq/scaling_governor": "powersave",
            f"{CPU}0/cpufreq/scaling_cur_freq": 1_500_000,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 61_234,
            f"{CPU}0/thermal_throttle/core_throttle_count": 3,
            f"{CPU}1/thermal_throttle/core_throttle_count": 4,
            "sys/fs/cgroup/cpu.stat": "usage_usec 9\nnr_throttled 5",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50000",
            "proc/loadavg": "0.50 0.20 0.10 1/99 4",
        },
    )
    assert conditions.now(root) == {
        "governor": "performance, powersave",
        "mhz": [1500],
        "celsius": {"cpu-thermal": 61.234},
        "throttled": {"cores too hot": 7, "the container's CPU quota": 5},
        "pi_throttled": 0x50000,
        "load": 0.5,
    }


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert conditions.now(tmp_path) == {}
    assert conditions.throttling({}, {}) == []


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ({"throttled": {"cores too hot": 3}}, {"throttled": {"cores too hot": 3}}, []),
        ({"throttled": {"cores too hot": 3}}, {"throttled": {"cores too hot": 5}}, ["cores too hot, 2 times"]),
        # A Pi that was too hot long before, and is not now; that was too hot in between; that is now.
        ({"pi_throttled": 0x40000}, {"pi_throttled": 0x40000}, []),
        ({"pi_throttled": 0}, {"pi_throttled": 0x40000}, ["throttled"]),
        ({"pi_throttled": 0x50005}, {"pi_throttled": 0x50005}, ["under-voltage", "throttled"]),
    ],
)
def test_throttling(before: dict, after: dict, reasons: list[str]) -> None:
    assert conditions.throttling(before, after) == reasons


def test_fast_cores_first_and_one_thread_of_each(tmp_path: Path) -> None:
    files: dict[str, object] = {}
    for cpu, (siblings, capacity) in enumerate([("0,1", 400), ("0,1", 400), ("2-3", 1024), ("2-3", 1024)]):
        files |= {f"{CPU}{cpu}/topology/thread_siblings_list": siblings, f"{CPU}{cpu}/cpu_capacity": capacity}
    root = system(tmp_path, files)
    assert conditions.cores_for(1, {0, 1, 2, 3}, root) == {2}
    assert conditions.cores_for(2, {0, 1, 2, 3}, root) == {0, 2}
    assert conditions.cores_for(1, {1, 3}, root) == {3}, "the first of its siblings is not allowed"
    assert conditions.cores_for(9, {0, 1}, root) == {0, 1}


def test_of_equal_cores_the_idle_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = system(tmp_path, {"proc/stat": "cpu  9 9 9\ncpu0 10 0 10 5\ncpu1 900 0 900 5"})
    monkeypatch.setattr(
        conditions.time, "sleep", lambda _: system(root, {"proc/stat": "cpu0 15 0 15 5\ncpu1 901 0 900 9"})
    )
    assert conditions.cores_for(1, {0, 1}, root) == {1}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin")
def test_pinned_within_the_block_only() -> None:
    before = os.sched_getaffinity(0)
    with conditions.pinned(1) as cores:
        assert cores is not None
        assert os.sched_getaffinity(0) == set(cores) <= before
        assert len(cores) == 1
    assert os.sched_getaffinity(0) == before
