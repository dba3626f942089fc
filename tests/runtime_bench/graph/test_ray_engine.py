"""`--engine ray`: clusters of this machine are really started; workers and the command are killed in mid-layer."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_models import random_graph

from bgnn.converter.api import convert
from bgnn.models.sage import BinSAGE
from bgnn.runtime_bench.graph import in_edges, manifest, parts, ray_edges, ray_engine, readers, run, sorting
from bgnn.runtime_bench.graph.cli import main
from bgnn.runtime_bench.graph.ray_engine import Ray
from bgnn.runtime_bench.graph.work import Work

# Clusters on loopback, as the command makes them, that nobody else can use; Ray reads these when it is imported.
ON_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
os.environ |= {ON_LOOPBACK: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import ray  # noqa: E402

pytestmark = pytest.mark.slow

CLUSTER = """
import ray, sys
ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of four workers on loopback, in processes of its own."""
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], stdin=-1, stdout=-1, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.wait(30)


@pytest.fixture(scope="module")
def parquet(given: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The graph as Parquet: text ids, edges in three files of several row groups."""
    folder = tmp_path_factory.mktemp("parquet")
    x, edges = np.load(given / "x.npy"), np.load(given / "edges.npy")
    ids = np.array([f"item {i * 7919 % 1_000_003}" for i in range(len(x))])
    pq.write_table(pa.table({"id": ids, "x": list(x)}), folder / "x.parquet")
    (folder / "edges").mkdir()
    for number, part in enumerate(np.array_split(edges, 3, axis=1)):
        table = pa.table({"target": ids[part[1]], "source": ids[part[0]]})
        pq.write_table(table, folder / "edges" / f"{number}.parquet", row_group_size=3000)
    return {"edges": folder / "edges", "features": folder / "x.parquet"}


def command(layers: Path, files: dict[str, Path], output: Path, *more: Any) -> list[str]:
    what = ["run", layers, "--edges", files["edges"], "--features", files["features"], "-o", output, *more]
    return [str(one) for one in what]


@pytest.mark.parametrize(("workers", "room"), [(1, 1_500_000), (4, 400_000)])
def test_workers_and_sizes_of_parts_change_no_bit(
    cluster: str, given: Path, parquet: dict[str, Path], tmp_path: Path, workers: int, room: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_engine, "BLOCK_BYTES", 2000)
    memory = run.BASE + workers * (run.NUMBERING * 3000 + room)
    more = ["--engine", "ray", "--address", cluster, "--workers", workers, "--memory", memory]
    assert main(command(given / "layers", parquet, tmp_path / "out.npy", *more)) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(given / "whole.npy"))


def test_a_cluster_of_its_own_for_a_binary_network(tmp_path: Path) -> None:
    """Two workers on loopback, which end with the command."""
    model, example = BinSAGE(features=6, classes=3, hidden=40, layers=2).eval(), random_graph(40, 160)
    for name, data in convert(
        model, example, target="onnx-int8-x86", kernels="bgnn", split_layers=True
    ).layers.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    x, edges = random_graph(2000, 20_000, seed=5)
    files = {"features": tmp_path / "x.npy", "edges": tmp_path / "edges.npy"}
    np.save(files["features"], x.numpy())
    np.save(files["edges"], edges.numpy())
    assert main(command(tmp_path, files, tmp_path / "local.npy")) == 0
    code = (
        "import sys\n"
        "from bgnn.runtime_bench.graph import cli, ray_engine\n"
        "close = ray_engine.Ray.close\n"
        "def closed(self):\n"
        "    print([(n['NodeManagerAddress'], n['Resources']['CPU']) for n in self.ray.nodes()])\n"
        "    close(self)\n"
        "ray_engine.Ray.close = closed\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    arguments = command(tmp_path, files, tmp_path / "ray.npy", "--engine", "ray", "--workers", "2")
    environment = {key: value for key, value in os.environ.items() if key != ON_LOOPBACK}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[('127.0.0.1', 2.0)]")
    assert (tmp_path / "ray.npy").read_bytes() == (tmp_path / "local.npy").read_bytes()


def test_a_worker_that_is_killed_is_replaced(cluster: str, given: Path) -> None:
    """Its parts are computed again, and each result arrives once."""
    chain = manifest.read(given / "layers")
    x, edges = np.load(given / "x.npy"), np.load(given / "edges.npy")
    sets = {
        name: in_edges.sort(lambda: [(edges, {})], len(x), about["pairs"], {}) for name, about in chain.sets.items()
    }
    opened = manifest.opener(lambda file: (given / "layers" / file).read_bytes())
    expected = parts.run_in_memory(chain, opened, {"x": x}, sets, 1)
    values: dict[str, Any] = {"x": x}
    blocks = [(start, start + 150, 1) for start in range(0, len(x), 150)]
    killed: set[int] = set()
    engine = Ray(given / "layers", chain, 2, cluster)
    try:
        for stage in chain.stages:
            found: dict[parts.Part, Any] = {}
            for part, results in engine.run(stage, blocks, values, sets, len(x)):
                assert part not in found
                found[part] = results.arrays
                if len(found) == 3 and stage.kind == "edges":
                    number = ray.get(engine.actors[0].process.remote())
                    os.kill(number, signal.SIGKILL)
                    killed.add(number)
            assert sorted(found) == blocks
            for name in stage.results:
                values[name] = np.concatenate([found[part][name] for part in blocks])
                assert np.array_equal(values[name], expected[name])
    finally:
        engine.close()
    assert len(killed) == sum(stage.kind == "edges" for stage in chain.stages)


def test_a_killed_command_goes_on(
    cluster: str,
    given: Path,
    parquet: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    killed_in_a_layer: Callable[[list[str]], None],
) -> None:
    output = tmp_path / "out.npy"
    more = ["--engine", "ray", "--address", cluster, "--workers", 2, "--memory", run.BASE + 900_000]
    arguments = command(given / "layers", parquet, output, *more)
    killed_in_a_layer(arguments)
    assert main(arguments) == 0
    assert re.search("going on from", capsys.readouterr().err)
    assert np.array_equal(np.load(output), np.load(given / "whole.npy"))


def test_ray_data_sorts_as_the_driver_does(
    cluster: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edges of both directions with values: the arrays of the two are equal, the order within a node too."""
    random = np.random.default_rng(0)
    pairs = {"edges0": {"target": 1, "pairs": [[0, 1], [1, 0]]}, "edges1": {"target": 0, "pairs": [[1, 0]]}}
    chain = manifest.Manifest(
        "net", "edge_index", ("w", "v"), (),
        {"w": manifest.Value("w", "float32", (2,), "edge"), "v": manifest.Value("v", "float32", (), "edge")},
        pairs, (), 1 << 20, {},
    )  # fmt: skip
    ends, w = random.integers(0, 50, (2, 5000)), random.random((5000, 2), np.float32)
    v = random.random(5000, np.float32)
    table = pa.table({"source": ends[0], "target": ends[1], "w": list(w), "v": v})
    pq.write_table(table, tmp_path / "edges.parquet", row_group_size=700)
    names = readers.Names(tmp_path, None, 60)
    engine = Ray(tmp_path, chain, 2, cluster)
    monkeypatch.setattr(ray_edges, "PIECE", 500)
    try:
        given_edges = readers.Edges(tmp_path / "edges.parquet", chain)
        expected = sorting.sort(chain, given_edges, names, 1 << 30, Work(tmp_path / "local", "key"))
        made = engine.sort(given_edges, names, 1 << 30, Work(tmp_path / "ray", "key"))
        for name in pairs:
            for one, other in zip(made[name].arrays(), expected[name].arrays(), strict=True):
                assert one.dtype == other.dtype
                assert np.array_equal(one, other)
    finally:
        engine.close()


def test_a_part_gets_the_blocks_that_hold_its_rows(cluster: str, tmp_path: Path) -> None:
    chain = manifest.Manifest("net", "edge_index", (), (), {}, {}, (), 1 << 20, {})
    engine = Ray(tmp_path, chain, 1, cluster)
    try:
        array = np.arange(70, dtype=np.uint8).reshape(35, 2)
        objects = [ray.put(array[start : start + 10]) for start in range(0, 35, 10)]
        blocks: Any = ray_engine.Blocks(objects, 10, 35, (2,), array.dtype)
        rows = np.array([3, 9, 31, 34])
        out = np.empty([4, 2], np.uint8)
        np.take(blocks, rows, axis=0, out=out, mode="clip")
        assert np.array_equal(out, array[rows])
        assert sorted(blocks.held) == [0, 3]
        assert np.array_equal(blocks[8:12], array[8:12])
        assert sorted(blocks.held) == [0, 1, 3]
        assert np.array_equal(blocks[...], array)
        blocks.let_go()
        assert not blocks.held
    finally:
        engine.close()


def test_what_a_worker_finds_wrong_is_one_line(
    cluster: str, given: Path, parquet: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"source": ["item 0", "nobody"], "target": ["item 0", "item 0"]})
    pq.write_table(table, tmp_path / "edges.parquet")
    files = {**parquet, "edges": tmp_path / "edges.parquet"}
    more = ["--engine", "ray", "--address", cluster]
    assert main(command(given / "layers", files, tmp_path / "out.npy", *more)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bgnn-graph: ")]
    assert len(lines) == 1
    assert "edges.parquet: sources name node nobody, which" in lines[0]


def test_more_workers_than_processors(
    cluster: str, given: Path, parquet: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--engine", "ray", "--address", cluster, "--workers", "5"]
    assert main(command(given / "layers", parquet, tmp_path / "out.npy", *more)) == 2
    assert "bgnn-graph: --workers 5: the cluster has 4 processors" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_one_line(
    given: Path, parquet: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--engine", "ray", "--address", "nowhere"]
    assert main(command(given / "layers", parquet, tmp_path / "out.npy", *more)) == 1
    assert "bgnn-graph: Ray does not start: " in capsys.readouterr().err
