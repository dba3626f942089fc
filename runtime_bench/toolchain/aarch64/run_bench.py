"""run_bench.py JOB.json: runs in the emulator what bgnn-bench wants of it (bench/emulated.py), between the system calls
of the plugins; a file's first run is not counted: the runtime packs its weights then.

The job: "path" and "inputs" (an .npz, in order) of a file; "candidates"; "profile": whether the one candidate's
operators are to be timed, whose clock then tells the plugin where each begins and ends; "outputs", a folder. Writes
there "found.json", what ran or why not, and NUMBER.npz, the outputs of each candidate.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench.candidates import CANDIDATES, DELEGATE, versions
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.profile import profile_tflite
from bgnn.runtime_bench.runtime.errors import BgnnError


def mark() -> None:
    """Where the counted stretch begins, and ends."""
    os.getpriority(os.PRIO_PROCESS, 0)


class Marked(Schedule):
    """One run to warm up, and one that is counted."""

    def warm_up(self, run: Callable[[], object]) -> list[float]:
        run()
        mark()
        return [0.0]

    def goes_on(self, rounds: int, seconds: float) -> bool:
        if rounds:
            mark()
        return rounds == 0


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    content, folder = Path(job["path"]).read_bytes(), Path(job["outputs"])
    with np.load(job["inputs"]) as archive:
        arrays = [archive[f"arr_{i}"] for i in range(len(archive.files))]
    found: list[dict[str, Any]] = []
    for number, name in enumerate(job["candidates"]):
        candidate = next(row for row in CANDIDATES if row.name == name)
        try:
            if job["profile"]:
                profile = profile_tflite(content, 1, arrays, name == DELEGATE, Marked())
                found.append({"operators": list(map(vars, profile.operators))})
                continue
            candidate.check(content)
            opened = candidate.open(content, 1, arrays)
            opened.run()
            mark()
            opened.run()
            mark()
            np.savez(folder / f"{number}.npz", *opened.outputs())
            found.append({})
        except BgnnError as error:
            found.append({"error": " ".join(str(error).split())})
    (folder / "found.json").write_text(json.dumps({"found": found, "versions": versions()}))


if __name__ == "__main__":
    main()
