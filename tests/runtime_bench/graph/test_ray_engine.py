"""`--engine ray`: a cluster of two workers of this machine is really started; a worker is killed in mid-layer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_models import GCN, random_graph

from bgnn.converter.api import convert
from bgnn.runtime_bench.graph import in_edges, manifest, parts
from bgnn.runtime_bench.graph.cli import main
from bgnn.runtime_bench.graph.ray_engine import Ray

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

NODES = 400


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    done = convert(GCN().eval(), random_graph(40, 160), target="onnx-int8-x86", kernels="bgnn", split_layers=True)
    for name, data in done.layers.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def engine(chain: Path) -> Iterator[Ray]:
    made = Ray(chain, manifest.read(chain), 2)
    yield made
    made.close()


def test_two_actors_give_the_same_bits_even_when_one_is_killed(chain: Path, engine: Ray) -> None:
    """Every part is computed once more or once: each result arrives once."""
    one = manifest.read(chain)
    x, edges = (value.numpy() for value in random_graph(NODES, 3000, seed=5))
    sets = {name: in_edges.sort(lambda: [(edges, {})], NODES, about["pairs"], {}) for name, about in one.sets.items()}
    opened = manifest.opener(lambda file: (chain / file).read_bytes())
    expected = parts.run_in_memory(one, opened, {"x": x}, sets, 1)
    values: dict[str, Any] = {"x": x}
    blocks = [(start, start + 20, 1) for start in range(0, NODES, 20)]
    killed: set[int] = set()
    for stage in one.stages:
        found: dict[parts.Part, Any] = {}
        for part, results in engine.run(stage, blocks, values, sets, NODES):
            assert part not in found
            found[part] = results
            if len(found) == 3 and stage.kind == "edges":
                actor = engine.actors[0]
                number = engine.ray.get(actor.process.remote())
                os.kill(number, signal.SIGKILL)
                killed.add(number)
        assert sorted(found) == blocks
        for name in stage.results:
            values[name] = np.concatenate([found[part][name] for part in blocks])
            assert np.array_equal(values[name], expected[name])
    assert len(killed) == sum(stage.kind == "edges" for stage in one.stages)


@pytest.mark.parametrize("workers", ["1", "4"])
def test_the_command_with_ray_writes_what_it_writes_without(chain: Path, tmp_path: Path, workers: str) -> None:
    x, edges = random_graph(3000, 20_000, seed=5)
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "edges.npy", edges.numpy())
    command = ["run", str(chain), "--edges", str(tmp_path / "edges.npy"), "--features", str(tmp_path / "x.npy"), "-o"]
    assert main([*command, str(tmp_path / "local.npy")]) == 0
    assert main([*command, str(tmp_path / "ray.npy"), "--engine", "ray", "--workers", workers]) == 0
    assert (tmp_path / "ray.npy").read_bytes() == (tmp_path / "local.npy").read_bytes()
