"""A chain, a graph with a hub, and what the whole file gives for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from graph_models import GCN, random_graph

from bgnn.converter.api import convert
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

NODES, EDGES = 3000, 20_000


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """layers/, x.npy and edges.npy of a graph with a hub (node 7), and whole.npy, what the whole file gives."""
    folder = tmp_path_factory.mktemp("given")
    done = convert(GCN().eval(), random_graph(40, 160), target="onnx-int8-x86", kernels="bgnn", split_layers=True)
    (folder / "layers").mkdir()
    for name, data in done.layers.items():
        (folder / "layers" / name).write_bytes(data)
    x, edges = random_graph(NODES, EDGES, seed=5)
    edges[1, :1500] = 7
    np.save(folder / "x.npy", x.numpy())
    np.save(folder / "edges.npy", edges.numpy())
    assert done.model_bytes is not None
    (expected,) = OnnxModel(done.model_bytes).run(x=x.numpy(), edge_index=edges.numpy()).values()
    np.save(folder / "whole.npy", expected)
    return folder


def _killed(changed: str, arguments: list[str]) -> None:
    """Runs a command whose process `changed` kills (SIGKILL)."""
    head = "import os, sys\nfrom bgnn.runtime_bench.graph import work, cli\n"
    code = f"{head}{changed}cli.main(sys.argv[1:])\n"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=100)
    assert done.returncode == -9


@pytest.fixture
def killed_in_removing() -> Callable[[list[str]], None]:
    """Runs a command that is killed when its result is in place."""
    return partial(_killed, "work.Work.remove = lambda self: os.kill(os.getpid(), 9)\n")


@pytest.fixture
def killed_in_a_layer() -> Callable[[list[str]], None]:
    """Runs a command that is killed after the fourth part of the third file."""
    changed = (
        "finish = work.Work.finish\n"
        "def killed(self, step):\n"
        "    finish(self, step)\n"
        "    if step.startswith('2-edges.onnx ') and sum(s.startswith('2-edges.onnx ') for s in self._done) == 4:\n"
        "        os.kill(os.getpid(), 9)\n"
        "work.Work.finish = killed\n"
    )
    return partial(_killed, changed)
