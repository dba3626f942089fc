"""`bgnn-graph run` end to end: the same bits whatever the parts, the workers and the interruptions; wrong inputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_models import random_graph
from torch_geometric.nn import GAT, GIN, SAGEConv, global_add_pool

from bgnn.converter.api import convert
from bgnn.converter.calibrate import Calibration
from bgnn.runtime_bench.graph import manifest, parts, readers, run
from bgnn.runtime_bench.graph.cli import main
from bgnn.runtime_bench.runtime.errors import UsageError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.saturation import SaturationWarning

NODES = 3000  # of the graph `given`


def command(given: Path, output: Path, *more: str, **files: Path) -> list[str]:
    edges, features = files.get("edges", given / "edges.npy"), files.get("features", given / "x.npy")
    return ["run", str(given / "layers"), "--edges", str(edges), "--features", str(features), "-o", str(output), *more]


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    """The one line of a command that fails."""
    assert main(arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bgnn-graph: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(("workers", "spare"), [(1, 8), (2, 8), (1, 1), (3, 1)])
def test_parts_and_workers_change_no_bit(
    given: Path, tmp_path: Path, workers: int, spare: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plan = parts.plan

    def counted(*args: Any) -> list[parts.Part]:
        sizes.append(len(found := plan(*args)))
        return found

    monkeypatch.setattr(parts, "plan", counted)
    room = workers * (run.NUMBERING * NODES + spare * 400_000)
    assert (
        main(command(given, tmp_path / "out.npy", "--workers", str(workers), "--memory", str(run.BASE + int(room))))
        == 0
    )
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(given / "whole.npy"))
    assert not (tmp_path / "out.npy.work").exists()
    assert max(sizes) > (5 if spare == 1 else 1)


def test_a_killed_run_goes_on_where_it_stopped(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], killed_in_a_layer: Callable[[list[str]], None]
) -> None:
    """Killed for good (SIGKILL) in the middle of the third file; the parts that were done are not done again."""
    output, log = tmp_path / "out.npy", tmp_path / "out.npy.work" / "done"
    arguments = command(given, output, "--memory", str(run.BASE + 600_000))
    killed_in_a_layer(arguments)
    before = log.read_text().splitlines()
    assert "1-edges.onnx" in before
    assert not output.exists()
    with log.open("a") as file:
        file.write("2-edges.onnx 0-")  # a line that the kill tore is none
    again: list[str] = []
    finish = run.Work.finish
    try:
        run.Work.finish = lambda self, step: (again.append(step), finish(self, step))[1]  # type: ignore[method-assign]
        assert main(arguments) == 0
    finally:
        run.Work.finish = finish  # type: ignore[method-assign]
    assert not set(again) & set(before)
    assert "going on from" in capsys.readouterr().err
    assert np.array_equal(np.load(output), np.load(given / "whole.npy"))


def test_parquet_with_text_ids(given: Path, tmp_path: Path) -> None:
    """Nodes and edges in another order, in several files; the output names its nodes."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x, edges = np.load(given / "x.npy"), np.load(given / "edges.npy")
    names = np.array([f"item {i * 7919 % 1_000_003}" for i in range(NODES)])
    rows = {"id": names, **{f"f{i}": x[:, i].astype(np.float64) for i in range(x.shape[1])}}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    (tmp_path / "edges").mkdir()
    for number, part in enumerate(np.array_split(edges, 3, axis=1)):
        columns = {"target": names[part[1]], "source": names[part[0]]}
        pq.write_table(pa.table(columns), tmp_path / "edges" / f"part-{number}.parquet")
    files = {"edges": tmp_path / "edges", "features": tmp_path / "x.parquet"}
    assert main(command(given, tmp_path / "out.parquet", **files)) == 0
    made = pq.read_table(tmp_path / "out.parquet")
    assert made["id"].to_pylist() == names.tolist()
    values = np.array(made.column(1).to_pylist(), np.float32)
    assert np.array_equal(values, np.load(given / "whole.npy"))


def test_numbers_as_ids(given: Path, tmp_path: Path) -> None:
    """64-bit ids in lists of features."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x, edges = np.load(given / "x.npy"), np.load(given / "edges.npy")
    ids = (np.arange(NODES, dtype=np.int64) * 7919 % 1_000_003) << 35
    pq.write_table(pa.table({"x": list(x), "id": ids}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"source": ids[edges[0]], "target": ids[edges[1]]}), tmp_path / "edges.parquet")
    files = {"edges": tmp_path / "edges.parquet", "features": tmp_path / "x.parquet"}
    assert main(command(given, tmp_path / "out.npy", **files)) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(given / "whole.npy"))


def test_numbers_beyond_signed_ones_and_categories(given: Path, tmp_path: Path) -> None:
    """Unsigned 64-bit ids come back as they were; text may be stored as categories."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x, edges = np.load(given / "x.npy"), np.load(given / "edges.npy")
    ids = np.arange(NODES, dtype=np.uint64) * np.uint64(7919) + np.uint64(2**63 - 7919 * 1000)
    files = {"edges": tmp_path / "edges.parquet", "features": tmp_path / "x.parquet"}
    for names in (pa.array(ids), pa.array([f"item {i}" for i in ids]).dictionary_encode()):
        pq.write_table(pa.table({"id": names, "x": list(x)}), files["features"])
        pq.write_table(pa.table({"source": names.take(edges[0]), "target": names.take(edges[1])}), files["edges"])
        assert main(command(given, tmp_path / "out.parquet", **files)) == 0
        made = pq.read_table(tmp_path / "out.parquet")
        assert made["id"].to_pylist() == names.to_pylist()
        assert np.array_equal(np.array(made.column(1).to_pylist(), np.float32), np.load(given / "whole.npy"))


def test_an_id_that_only_looks_equal_is_refused(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same 64 bits, read as a signed number, name another node."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    edges = np.load(given / "edges.npy")
    ids = np.arange(NODES, dtype=np.uint64) + np.uint64(2**63)
    files = {"edges": tmp_path / "edges.parquet", "features": tmp_path / "x.parquet"}
    for of_nodes, of_edges in ((ids, ids.view(np.int64)), (ids.view(np.int64), ids)):
        pq.write_table(pa.table({"id": of_nodes, "x": list(np.load(given / "x.npy"))}), files["features"])
        pq.write_table(pa.table({"source": of_edges[edges[0]], "target": of_edges[edges[1]]}), files["edges"])
        line = fails(capsys, command(given, tmp_path / "out.npy", **files), 2)
        assert f"sources name node {of_edges[edges[0, 0]]}, which" in line
    np.save(tmp_path / "edges.npy", edges.astype(np.uint64) + np.uint64(2**63))
    line = fails(capsys, command(given, tmp_path / "out.npy", edges=tmp_path / "edges.npy"), 2)
    assert f"sources name node {int(edges[0, 0]) + 2**63}, and" in line


def test_features_in_several_files(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns go by their names, not by their places; files by the numbers in their names; no file is passed over."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = np.load(given / "x.npy")
    folder = tmp_path / "x"
    folder.mkdir()
    for number, rows in enumerate(np.array_split(x, 12)):
        columns = {f"f{i}": rows[:, i] for i in range(x.shape[1])}
        table = pa.table(dict(reversed(columns.items())) if number else columns)
        pq.write_table(table, folder / f"part.{number}.{'pq' if number == 3 else 'parquet'}")
    assert main(command(given, tmp_path / "out.npy", features=folder)) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(given / "whole.npy"))
    spoilt = folder / "part.9.parquet"
    pq.write_table(table.rename_columns([f"g{i}" for i in range(x.shape[1])]), spoilt)
    line = fails(capsys, command(given, tmp_path / "out.npy", features=folder), 2)
    assert "part.9.parquet has other columns than" in line
    pq.write_table(
        pa.table({"id": np.arange(table.num_rows), **dict(zip(table.column_names, table.columns, strict=True))}), spoilt
    )
    assert "rows have no id" in fails(capsys, command(given, tmp_path / "out.npy", features=folder), 2)
    (folder / "deeper").mkdir()
    spoilt.rename(folder / "deeper" / spoilt.name)
    assert "lies in a folder of its own" in fails(capsys, command(given, tmp_path / "out.npy", features=folder), 2)


def test_lists_of_lists_have_one_shape(tmp_path: Path) -> None:
    """As many numbers in all are not enough."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for rows, right in ([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], True), ([[[1, 2, 3], [4]], [[5], [6, 7, 8]]], False):
        pq.write_table(pa.table({"x": pa.array(rows, pa.list_(pa.list_(pa.float32())))}), tmp_path / "x.parquet")
        column = pq.read_table(tmp_path / "x.parquet")["x"].chunk(0)
        if right:
            found = readers._rows(column, manifest.Value("x", "float32", (2, 2)), tmp_path)
            assert np.array_equal(found, np.array(rows, np.float32))
        else:
            with pytest.raises(UsageError, match="of different lengths"):
                readers._rows(column, manifest.Value("x", "float32", (2, 2)), tmp_path)


class Pooled(torch.nn.Module):
    """A row for each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SAGEConv(6, 4)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return global_add_pool(self.conv(x, edge_index), batch)


def test_rows_of_graphs_have_no_ids_of_nodes(given: Path, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    batch = torch.arange(40) // 10
    done = convert(Pooled().eval(), (*random_graph(40, 160), batch), target="onnx-x86", split_layers=True)
    (tmp_path / "layers").mkdir()
    for name, data in done.layers.items():
        (tmp_path / "layers" / name).write_bytes(data)
    x, of_nodes = np.load(given / "x.npy"), np.arange(NODES) // 1000
    pq.write_table(pa.table({"id": np.arange(NODES), "x": list(x), "batch": of_nodes}), tmp_path / "x.parquet")
    files = {"edges": given / "edges.npy", "features": tmp_path / "x.parquet"}
    assert main(command(tmp_path, tmp_path / "out.parquet", **files)) == 0
    made = pq.read_table(tmp_path / "out.parquet")
    (whole,) = (
        OnnxModel(done.model_bytes or b"").run(x=x, edge_index=np.load(given / "edges.npy"), batch=of_nodes).values()
    )
    assert made.num_columns == 1
    assert np.allclose(np.array(made.column(0).to_pylist()), whole, rtol=1e-5)


def test_an_output_that_is_a_link_stays_one(given: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "there" / "real.npy")
    assert main(command(given, tmp_path / "out.npy")) == 0
    assert (tmp_path / "out.npy").is_symlink()
    assert np.array_equal(np.load(tmp_path / "there" / "real.npy"), np.load(given / "whole.npy"))


def test_an_output_among_the_inputs_is_refused(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next run would read it."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    edges = np.load(given / "edges.npy")
    pq.write_table(pa.table({"source": edges[0], "target": edges[1]}), tmp_path / "0.parquet")
    line = fails(capsys, command(given, tmp_path / "out.parquet", edges=tmp_path), 2)
    assert "its folder is that of the edges" in line


def test_a_run_killed_when_the_result_is_in_its_place(
    given: Path, tmp_path: Path, killed_in_removing: Callable[[list[str]], None]
) -> None:
    """What is left of its folder does not stop the next one."""
    arguments = command(given, tmp_path / "out.npy")
    killed_in_removing(arguments)
    assert (tmp_path / "out.npy").exists()
    assert (tmp_path / "out.npy.work").exists()
    assert main(arguments) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(given / "whole.npy"))
    assert not (tmp_path / "out.npy.work").exists()


def test_a_processed_file_of_pyg(given: Path, tmp_path: Path) -> None:
    from torch_geometric.data import Data, InMemoryDataset

    x, edges = (torch.from_numpy(np.load(given / name)) for name in ("x.npy", "edges.npy"))
    InMemoryDataset.save([Data(x=x, edge_index=edges, y=torch.zeros(len(x)))], str(tmp_path / "data.pt"))
    files = {"edges": tmp_path / "data.pt", "features": tmp_path / "data.pt"}
    assert main(command(given, tmp_path / "out.npy", **files)) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(given / "whole.npy"))


def _beyond(folder: Path) -> dict[str, Path]:
    edges = np.load(folder / "edges.npy")
    edges[0, 55] = NODES
    np.save(folder / "beyond.npy", edges)
    return {"edges": folder / "beyond.npy"}


def _nan(folder: Path) -> dict[str, Path]:
    x = np.load(folder / "x.npy")
    x[5, 1] = np.nan
    np.save(folder / "nan.npy", x)
    return {"features": folder / "nan.npy"}


def _torn(folder: Path) -> dict[str, Path]:
    data = (folder / "edges.npy").read_bytes()
    (folder / "torn.npy").write_bytes(data[: len(data) // 2])
    return {"edges": folder / "torn.npy"}


WRONG: dict[str, tuple[Callable[[Path], dict[str, Path]], str, int]] = {
    "an id beyond the features": (_beyond, r"sources name node 3000, and .*x.npy has rows 0 to 2999", 2),
    "a number that is none": (_nan, r"input x holds 1 NaN", 2),
    "a torn file": (_torn, r"torn.npy is no whole .npy array", 2),
    "no file": (lambda folder: {"edges": folder / "none.npy"}, r"none.npy: no such file", 2),
    "features of another width": (
        lambda folder: {"features": folder / "whole.npy"},
        r"x must be float32 \[rows, 6\]",
        2,
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_inputs_are_one_line(given: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, said, code = WRONG[name]
    folder = tmp_path / "given"
    shutil.copytree(given, folder)
    line = fails(capsys, command(folder, tmp_path / "out.npy", **spoil(folder)), code)
    assert re.search(said, line), line
    assert not (tmp_path / "out.npy").exists()
    assert (tmp_path / "out.npy.work").exists() == (name == "a number that is none")  # the edges are sorted then


def test_wrong_parquet_is_one_line(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing column, an id that the features do not have, and a last file that is torn."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    ids = np.arange(NODES) + 10**12
    pq.write_table(pa.table({"id": ids, "x": list(np.load(given / "x.npy"))}), tmp_path / "x.parquet")
    ends = {"source": ids, "target": ids[::-1].copy()}
    (tmp_path / "edges").mkdir()
    first, last = (tmp_path / "edges" / f"{i}.parquet" for i in (0, 1))
    files = {"edges": tmp_path / "edges", "features": tmp_path / "x.parquet"}
    output = tmp_path / "out.npy"
    pq.write_table(pa.table({"source": ids, "dest": ids}), first)
    assert "has no column 'target': its columns are source, dest" in fails(capsys, command(given, output, **files), 2)
    pq.write_table(pa.table({**ends, "source": ids + 1}), first)
    assert f"name node {10**12 + NODES}, which" in fails(capsys, command(given, output, **files), 2)
    pq.write_table(pa.table(ends), first)
    last.write_bytes(first.read_bytes()[:-100])
    assert "1.parquet is no whole Parquet file" in fails(capsys, command(given, output, **files), 2)
    last.unlink()
    twice = pa.Table.from_arrays([pa.array(ids), pa.array(ids), pa.array(ids)], names=["source", "target", "source"])
    pq.write_table(twice, first)
    assert "0.parquet has 2 columns 'source'" in fails(capsys, command(given, output, **files), 2)
    pq.write_table(pa.table(ends), first)
    rows = np.load(given / "x.npy").astype(np.float64)
    rows[3, 1] = 1e300
    pq.write_table(pa.table({"id": ids, "x": list(rows)}), files["features"])
    assert "column 'x' holds numbers beyond float32" in fails(capsys, command(given, output, **files), 2)


def test_a_manifest_of_another_version(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(given, tmp_path / "given")
    path = tmp_path / "given" / "layers" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))
    line = fails(capsys, command(tmp_path / "given", tmp_path / "out.npy"), 2)
    assert "of version 9: this bgnn-graph reads version 2" in line


def test_names_that_lead_elsewhere_are_refused(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manifest of somebody else's: no name in it writes or reads outside of the work folder and its own."""
    shutil.copytree(given, tmp_path / "a" / "b" / "given")
    folder = tmp_path / "a" / "b" / "given"
    path = folder / "layers" / "manifest.json"
    good = json.loads(path.read_text())
    stage = good["stages"][1]
    before = sorted(tmp_path.rglob("*"))
    for name in (stage["results"][0], stage["file"], "edges0", good["inputs"][0]):
        for other in ("../../x", "/tmp/x", "..", "a\\b", "a\nb", ""):
            path.write_text(json.dumps(good).replace(json.dumps(name), json.dumps(other)))
            assert "is damaged" in fails(capsys, command(folder, folder / "out.npy"), 2)
            assert sorted(tmp_path.rglob("*")) == before


def _places(found: Any, *at: str | int) -> Iterator[tuple[str | int, ...]]:
    yield at
    for key in found if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ():
        yield from _places(found[key], *at, key)


@pytest.mark.parametrize("other", [None, -1, "x", [], {}, 10**30])
def test_a_damaged_manifest_is_one_line(given: Path, tmp_path: Path, other: Any) -> None:
    """Whatever stands in place of something: it is refused, or can be read."""
    good = (given / "layers" / "manifest.json").read_text()
    refused = 0
    for *at, last in list(_places(json.loads(good)))[1:]:
        found = within = json.loads(good)
        for key in at:
            within = within[key]
        within[last] = other
        (tmp_path / "manifest.json").write_text(json.dumps(found))
        try:
            manifest.read(tmp_path)
        except UsageError:
            refused += 1
    assert refused > 100


def test_debug_shows_the_traceback(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(given, tmp_path / "out.npy", edges=tmp_path / "none.npy")
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main([*arguments, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(
    given: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fills up between two layers; with more room the same command goes on."""
    np.save(tmp_path / "few.npy", np.load(given / "edges.npy")[:, :2000])
    assert main(command(given, tmp_path / "out.npy", edges=tmp_path / "few.npy")) == 0
    output = small_disk / "out.npy"
    line = fails(capsys, command(given, output, edges=tmp_path / "few.npy"), 1)
    assert "No space left on device; what is finished stays there, and the same command goes on from it" in line
    done = (small_disk / "out.npy.work" / "done").read_text().splitlines()
    assert "0-nodes.onnx" in done
    assert not output.exists()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert main(command(given, output, edges=tmp_path / "few.npy")) == 0
    assert "going on from" in capsys.readouterr().err
    assert np.array_equal(np.load(output), np.load(tmp_path / "out.npy"))


def test_a_full_disk_leaves_what_is_finished(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, allocate = tmp_path / "out.npy", os.posix_fallocate

    count = 0

    def later(*args: Any) -> None:
        nonlocal count
        count += 1
        if count > 5:
            raise OSError(28, "No space left on device")
        allocate(*args)

    monkeypatch.setattr(os, "posix_fallocate", later)
    line = fails(capsys, command(given, output), 1)
    assert "No space left on device; what is finished stays there, and the same command goes on from it" in line
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    assert main(command(given, output)) == 0
    assert np.array_equal(np.load(output), np.load(given / "whole.npy"))


def noted_pieces(monkeypatch: pytest.MonkeyPatch, of: int | None = None) -> list[int]:
    """Gets in how many pieces each part that is planned is computed; `of`: of those that begin with this node."""
    pieces: list[int] = []
    plan = parts.plan

    def noted(*args: Any) -> list[parts.Part]:
        found = plan(*args)
        pieces.extend(part[2] for part in found if of in (None, part[0]))
        return found

    monkeypatch.setattr(parts, "plan", noted)
    return pieces


def test_a_hub_that_does_not_fit_is_summed_in_pieces(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 7 has 1500 in-edges, in more memory than there is."""
    pieces = noted_pieces(monkeypatch, of=7)
    memory = str(run.BASE + 2 * (run.NUMBERING * NODES + 95_000))
    assert main(command(given, tmp_path / "out.npy", "--memory", memory, "--workers", "2")) == 0
    assert max(pieces) > 1
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(given / "whole.npy"))


def test_sums_that_leave_their_range_are_told(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the whole file tells it: the same codes are counted, whatever the parts, a hub in pieces among them."""
    torch.manual_seed(0)
    small = random_graph(40, 160)
    model, sample = GIN(6, 8, num_layers=2, out_channels=3), dict(zip(("x", "edge_index"), small, strict=True))
    done = convert(
        model.eval(), small, target="onnx-int8-x86", kernels="bgnn", split_layers=True,
        calibration=Calibration((sample,)),
    )  # fmt: skip
    (tmp_path / "layers").mkdir()
    for name, data in done.layers.items():
        (tmp_path / "layers" / name).write_bytes(data)
    x, edges = np.load(given / "x.npy"), np.load(given / "edges.npy")
    whole = OnnxModel(done.model_bytes or b"")
    with pytest.warns(SaturationWarning):
        (expected,) = whole.run(x=x, edge_index=edges).values()
    counts = [f"{one.name}: {one.at_ends} of {one.codes} codes" for one in whole.saturation if one.is_more]
    pieces = noted_pieces(monkeypatch)
    files = {"edges": given / "edges.npy", "features": given / "x.npy"}
    for room in (95_000, 4_000_000):
        memory = str(run.BASE + 2 * (run.NUMBERING * NODES + room))
        assert main(command(tmp_path, tmp_path / "out.npy", "--memory", memory, "--workers", "2", **files)) == 0
        assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: layer ")]
        assert told
        assert all(any(count in line for count in counts) for line in told), (told, counts)
        assert (max(pieces) > 1) == (room == 95_000)
        pieces.clear()


def test_attention_of_a_hub_that_does_not_fit(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds over the pieces: largest scores, sums of powers, weighted sums."""
    torch.manual_seed(0)
    model = GAT(6, 8, num_layers=2, out_channels=3, heads=2).eval()
    done = convert(model, random_graph(40, 160), target="onnx-x86", kernels="bgnn", split_layers=True)
    (tmp_path / "layers").mkdir()
    for name, data in done.layers.items():
        (tmp_path / "layers" / name).write_bytes(data)
    assert done.model_bytes is not None
    x, edges = np.load(given / "x.npy"), np.load(given / "edges.npy")
    (expected,) = OnnxModel(done.model_bytes).run(x=x, edge_index=edges).values()
    pieces = noted_pieces(monkeypatch, of=7)
    files = {"edges": given / "edges.npy", "features": given / "x.npy"}
    memory = str(run.BASE + run.NUMBERING * NODES + 300_000)
    assert main(command(tmp_path, tmp_path / "out.npy", "--memory", memory, **files)) == 0
    assert max(pieces) > 1
    assert np.allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5 * np.abs(expected).max())


def test_memory_that_is_too_small_says_so(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.npy"
    assert "a larger --memory than 100 MiB is needed" in fails(capsys, command(given, output, "--memory", "100M"), 1)
    assert "--memory lots is no size" in fails(capsys, command(given, output, "--memory", "lots"), 2)
