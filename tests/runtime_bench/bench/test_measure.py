"""bgnn.runtime_bench.bench.measure: order of the rounds, statistics, memory. No test depends on speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgnn.runtime_bench.bench import measure as module
from bgnn.runtime_bench.bench.measure import Elapsed, Spread, in_fresh_process, measure


class Clocks:
    """Stand-ins for the two clocks: a candidate moves them by what it says it takes."""

    def __init__(self) -> None:
        self.wall_ns = 0
        self.cpu_ns = 0
        self.log: list[str] = []

    def candidate(self, name: str, wall_ms: list[int], cpu_ms: int) -> Callable[[], None]:
        def run() -> None:
            self.wall_ns += wall_ms[sum(seen == name for seen in self.log) % len(wall_ms)] * 1_000_000
            self.cpu_ns += cpu_ms * 1_000_000
            self.log.append(name)

        return run


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(module.time, "perf_counter_ns", lambda: clocks.wall_ns)
    monkeypatch.setattr(module.time, "process_time_ns", lambda: clocks.cpu_ns)
    return clocks


def test_every_round_runs_each_candidate_once_in_rotated_order(clocks: Clocks) -> None:
    candidates = {name: clocks.candidate(name, [1], 1) for name in "abc"}
    measure(candidates, rounds=4, warmup=2)
    assert "".join(clocks.log) == "aabbcc" + "abc" + "bca" + "cab" + "abc"


def test_ratios_are_taken_within_a_round(clocks: Clocks) -> None:
    # The machine is ten times slower in the second round; the candidate is twice as fast as the base in every
    # round, and the base uses two cores.
    candidates = {
        "base": clocks.candidate("base", [20, 200, 20], 40),
        "fast": clocks.candidate("fast", [10, 100, 10], 10),
    }
    result = measure(candidates, base="base", rounds=3, warmup=0, threads=2)
    fast, base = result.timings["fast"], result.timings["base"]
    assert fast.wall_ms == [10, 100, 10]
    assert base.wall.median == 20
    assert base.wall.max == 200
    assert fast.speedup == Spread(2, 2, 2, 2, 2)
    assert fast.cpu_speedup is not None
    assert fast.cpu_speedup.median == 4
    assert base.speedup == Spread(1, 1, 1, 1, 1)
    assert result.threads == 2


def test_without_a_base_there_are_no_ratios(clocks: Clocks) -> None:
    result = measure({"only": clocks.candidate("only", [3], 3)}, rounds=1, warmup=0)
    assert result.timings["only"].speedup is None
    assert result.timings["only"].wall == Spread(3, 3, 3, 3, 3)


def test_a_candidate_may_bring_its_own_time(clocks: Clocks) -> None:
    here = clocks.candidate("here", [4], 4)

    def elsewhere() -> Elapsed:
        here()  # waiting takes time here as well, which does not count
        return Elapsed(1, 2)

    result = measure({"here": here, "elsewhere": elsewhere}, base="here", rounds=2, warmup=0)
    assert result.timings["elsewhere"].wall_ms == [1, 1]
    assert result.timings["elsewhere"].cpu_ms == [2, 2]
    assert result.timings["elsewhere"].speedup == Spread(4, 4, 4, 4, 4)


def test_a_run_too_short_for_the_clock_does_not_divide_by_zero(clocks: Clocks) -> None:
    result = measure({"a": clocks.candidate("a", [1], 1), "b": clocks.candidate("b", [0], 0)}, base="a", rounds=2)
    assert result.timings["b"].speedup is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": {}}, "no candidates"),
        ({"candidates": {"a": print}, "base": "b"}, "'b' is not a candidate; they are 'a'"),
        ({"candidates": {"a": print}, "rounds": 0}, "rounds must be at least 1"),
        ({"candidates": {"a": print}, "warmup": -1}, "warmup at least 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(**arguments)


def test_a_failing_candidate_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        measure({"broken": lambda: 1 / 0})


@given(st.lists(st.floats(min_value=1e-3, max_value=1e6), min_size=1, max_size=30))
def test_spread_is_ordered_and_its_median_is_the_median(sample: list[float]) -> None:
    spread = Spread.of(sample)
    assert spread.min <= spread.low <= spread.median <= spread.high <= spread.max
    assert spread.median == pytest.approx(statistics.median(sample))


def test_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Spread.of([])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (99.96, "100.0"), (12345.6, "12346")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert module.digits(value) == text


def test_peak_memory_sees_what_a_task_allocates_and_not_what_this_process_holds() -> None:
    ballast = bytearray(b"x") * (300 << 20)
    _, empty = in_fresh_process()
    _, filled = in_fresh_process("random:randbytes", {"n": 100 << 20})
    assert len(ballast) == 300 << 20
    assert 1 << 20 < empty < 100 << 20
    assert 100 << 20 <= filled - empty < 300 << 20


def test_peak_memory_reports_why_a_task_failed() -> None:
    with pytest.raises(RuntimeError, match=r"no_such_module"):
        in_fresh_process("no_such_module:run")


def test_a_schedule_fills_its_time_and_short_runs_come_in_bursts(clocks: Clocks) -> None:
    candidates = {"slow": clocks.candidate("slow", [40], 40), "fast": clocks.candidate("fast", [1], 1)}
    plan = module.Schedule(rounds=2, seconds=0.1, warmup=1, warmup_seconds=0.08, burst_ms=4)
    result = measure(candidates, base="slow", schedule=plan)
    # 2 x 40 ms of warm-up; then rounds of 40 + 4 ms until both have had 0.1 s: five.
    assert clocks.log[:82] == ["slow"] * 2 + ["fast"] * 80
    assert result.rounds == 5
    assert clocks.log[82:87] == ["slow"] + ["fast"] * 4
    assert result.timings["fast"].wall_ms == [1] * 5
    short = module.Schedule(rounds=9, seconds=0, longest=0.05, warmup_seconds=0, burst_ms=0)
    assert measure(candidates, schedule=short).rounds == 3, "no round begins beyond the longest time"
    assert measure(candidates, schedule=replace(short, least=5)).rounds == 5, "but so many there are"


def test_noise_is_told() -> None:
    assert not Spread(100, 95, 105, 0, 999).noisy
    assert Spread(100, 94, 105, 100, 100).noisy


def test_a_fresh_process_gives_its_result() -> None:
    result, peak = module.in_fresh_process("json:loads", {"s": "[1, 2]"})
    assert result == [1, 2]
    assert peak > 1 << 20


def test_machines_have_ids_that_tell_no_name() -> None:
    import platform

    machine = module.describe_machine()
    assert machine["id"] == module.describe_machine()["id"]
    assert all(str(value) != platform.node() for value in machine.values())
