"""Training in two processes, as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from cloud_files import write_h5

from bgnn.models.checkpoint import load_checkpoint


@pytest.fixture
def command(tmp_path):
    """A command in two processes on a tiny recipe; `own` goes after --set."""
    write_h5(tmp_path, 24, 16, 3)
    config = tmp_path / "c.json"
    config.write_text('{"version": 1, "kind": "clouds", "arch": "bf1", "distillation": "direct"}')

    def run(*own: str) -> subprocess.CompletedProcess[str]:
        arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bgnn.models.train"]
        arguments += ["dgcnn", "--config", str(config), "--data", str(tmp_path), "--folder", str(tmp_path / "run")]
        arguments += ["--set", "points=16", "k=3", "channels=[8,8,8,8]", "embedding=8", "mlp=[8,8]", "batch=8"]
        arguments += ["epochs=[2,1,1,2]", *own]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=100
        )

    return run


@pytest.mark.slow
def test_two_processes_train_one_network_and_write_once(command, tmp_path):
    done = command()
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run/seed0"
    lines = done.stdout.splitlines()
    for once in ("dgcnn epoch 1/2", "dgcnn epoch 2/2", "bf1 stage 3 epoch 2/2", f"wrote {folder}/model.pt"):
        assert sum(line.startswith(once) for line in lines) == 1, once
    history = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    assert [entry["stage"] for entry in history] == ["dgcnn"] * 2 + ["bf1 stage 3"] * 2
    result = json.loads((folder / "result.json").read_text())
    assert list(result["accuracy"]) == ["dgcnn", "bf1 stage 3"]
    assert load_checkpoint(folder / "model.pt").config["stage"] == 3
    assert not list(tmp_path.rglob("*.partial"))
    assert json.loads((folder / "config.json").read_text())["recipe"]["arch"] == "bf1"


@pytest.mark.slow
def test_a_bad_batch_ends_both_processes(command, tmp_path):
    done = command("batch=7")
    assert done.returncode != 0
    assert "batch 7 is not a multiple of the 2 processes" in done.stderr
    assert not list((tmp_path).rglob("*.pt"))
