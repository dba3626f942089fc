"""What a machine did while it measured, as far as the system tells: clock governor, temperatures, throttling; and the
pinning of a process to as many cores as it has threads.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CPUS = "sys/devices/system/cpu"
# Raspberry Pi's firmware: these bits stand for what is so now; sixteen further up, for what has been so since the boot.
_PI_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
_PI_BITS = ("under-voltage", "clock capped", "throttled", "soft temperature limit")


def now(root: Path = Path("/")) -> dict[str, Any]:
    """The system's state under the file system `root`: governor, clocks in MHz, temperatures in °C, counters of
    throttling, load. What the system does not tell is not there."""
    found: dict[str, Any] = {}
    governors = {_text(path) for path in root.glob(f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_governor")}
    if governors:
        found["governor"] = ", ".join(sorted(governors))
    clocks = [_number(path) for path in sorted(root.glob(f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    if clocks:
        found["mhz"] = [round(khz / 1000) for khz in clocks]
    temperatures = {
        _text(zone / "type") or zone.name: _number(zone / "temp") / 1000
        for zone in sorted(root.glob("sys/class/thermal/thermal_zone*"))
        if _text(zone / "temp")
    }
    if temperatures:
        found["celsius"] = temperatures
    counters = {}
    for kind in ("core", "package"):
        counts = list(root.glob(f"{_CPUS}/cpu[0-9]*/thermal_throttle/{kind}_throttle_count"))
        if counts:
            counters[f"{kind}s too hot"] = sum(map(_number, counts))
    for line in _text(root / "sys/fs/cgroup/cpu.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "nr_throttled" and value.isdigit():
            counters["the container's CPU quota"] = int(value)
    if counters:
        found["throttled"] = counters
    pi = _text(root / _PI_THROTTLED)
    if pi:
        with contextlib.suppress(ValueError):
            found["pi_throttled"] = int(pi, 16)
    with contextlib.suppress(ValueError, IndexError):
        found["load"] = float(_text(root / "proc/loadavg").split()[0])
    return found


def throttling(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What slowed the processor between two looks at it; empty where nothing is known to have."""
    earlier = before.get("throttled", {})
    reasons = [
        f"{name}, {count - earlier.get(name, count)} times"
        for name, count in after.get("throttled", {}).items()
        if count > earlier.get(name, count)
    ]
    bits = after.get("pi_throttled", 0)
    started = (bits & ~before.get("pi_throttled", 0)) >> 16
    return reasons + [name for place, name in enumerate(_PI_BITS) if (bits | started) >> place & 1]


def cores_for(threads: int, allowed: set[int], root: Path = Path("/")) -> set[int]:
    """Which of the allowed processors to run on: one of each core first, of a big.LITTLE machine the fastest, and of
    equal ones those that have least to do."""
    before = _busy_ticks(root)
    time.sleep(0.1)
    busy = {cpu: ticks - before.get(cpu, ticks) for cpu, ticks in _busy_ticks(root).items()}

    def rank(cpu: int) -> tuple[int, float, int, int]:
        siblings = _text(root / f"{_CPUS}/cpu{cpu}/topology/thread_siblings_list")
        first = int(siblings.replace("-", ",").split(",")[0]) if siblings[:1].isdigit() else cpu
        return (
            int(first != cpu and first in allowed),
            -_number(root / f"{_CPUS}/cpu{cpu}/cpu_capacity"),
            busy.get(cpu, 0),
            cpu,
        )

    return set(sorted(allowed, key=rank)[:threads])


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Within the block this thread, and what it starts, runs on `threads` processors, or on all where there are fewer;
    gives their numbers, or None where the system cannot pin."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    chosen = cores_for(threads, before)
    try:
        os.sched_setaffinity(0, chosen)
    except OSError:
        yield None
        return
    try:
        yield sorted(chosen)
    finally:
        os.sched_setaffinity(0, before)


def _busy_ticks(root: Path) -> dict[int, int]:
    """How long each processor has worked since the boot: user, nice, system."""
    lines = (line.split() for line in _text(root / "proc/stat").splitlines())
    return {int(words[0][3:]): sum(map(int, words[1:4])) for words in lines if words[0][3:].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float:
    try:
        return float(_text(path))
    except ValueError:
        return 0
