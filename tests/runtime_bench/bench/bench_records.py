"""A record for tests."""

from __future__ import annotations

from typing import Any

from bgnn.runtime_bench.bench.records import Record

BASE = "LiteRT"


def record(candidate: str = BASE, settings: dict[str, Any] | None = None, id: str = "here", **samples: list) -> Record:
    """One of two rounds, in the run "r" on one thread."""
    given = {"wall_ms": [1, 2], "cpu_ms": [1, 2], **samples}
    how = {
        "run": "r",
        "base": ["a.tflite", BASE],
        "threads": 1,
        "rounds": 2,
        "inputs": "random, seed 0",
        **(settings or {}),
    }
    device = {"id": id, "cpu": "a CPU", "cores": 2, "flags": []}
    return Record("a.tflite", candidate, device, False, given, {}, {**how, **(settings or {})})
