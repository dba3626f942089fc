"""docs/ci.md: its workflow's own commands run, in their order, and the last one fails where the file got worse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bgnn.models.checkpoint import build_model, save_checkpoint

DOC = Path(__file__).parents[3] / "docs" / "ci.md"


def steps() -> dict[str, str]:
    """The commands of the workflow by their steps' names."""
    workflow = re.search(r"```yaml\n(.*?)```", DOC.read_text(), re.S)
    assert workflow is not None
    return dict(re.findall(r"- name: (.*)\n +run: (.*)\n", workflow[1]))


def test_the_workflow_has_every_step() -> None:
    assert list(steps()) == ["install", "convert and verify", "measure", "report", "check"]


@pytest.mark.slow
def test_the_steps_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"channels": (32, 32, 32, 32), "embedding": 64, "mlp": (32, 32)}
    model = build_model("bf2", classes=5, num_points=20, k=4, knn="hamming", **small).eval()
    save_checkpoint(tmp_path / "model.pt", model)
    for name, module in (("convert", "converter.cli"), ("bench", "runtime_bench.bench.cli")):
        command = tmp_path / "bin" / f"bgnn-{name}"
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bgnn.{module} "$@"\n')
        command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}

    def run(command: str) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True)

    commands = steps()
    commands["measure"] = commands["measure"].replace("--rounds 20", "--rounds 1")
    for name in ("convert and verify", "measure", "report"):
        done = run(commands[name])
        assert done.returncode == 0, (name, done.stderr)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("conversion.html", "report.html", "now.jsonl"))
    (tmp_path / "baseline.jsonl").write_bytes((tmp_path / "now.jsonl").read_bytes())
    done = run(commands["check"])
    assert (done.returncode, "as in the baseline" in done.stdout) == (0, True), done.stdout

    records = [json.loads(line) for line in (tmp_path / "baseline.jsonl").read_text().splitlines()]
    for record in records:
        record["samples"]["file_bytes"] = [1.0]
        record["settings"]["conversion"]["checks"][-1]["signs"] += 1
        record["settings"]["conversion"]["operators"].pop("BgnnHammingKnn")
    (tmp_path / "baseline.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    done = run(commands["check"])
    assert done.returncode == 1
    for what in ("file_bytes: 1, now", "emitted file: signs", "operator BgnnHammingKnn: 0, now"):
        assert what in done.stdout
