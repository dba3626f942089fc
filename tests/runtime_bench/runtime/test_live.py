"""`bgnn-run --stream`: what is run, what is said of it, and what is not read on after."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tflite_files
from bgnn_files import xor_edge_conv

from bgnn.runtime_bench.runtime import limits, live
from bgnn.runtime_bench.runtime.errors import UsageError
from bgnn.runtime_bench.runtime.run import main

LINE = r"{}: \d+\.\d\d ms; t4: int32 \[2, 30, 2\]"
SUMMARY = r"{}; latency, ms: p50 [\d.]+, p90 [\d.]+, p99 [\d.]+, max [\d.]+, first [\d.]+"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tflite_files.build()
    path = tmp_path / "model.tflite"
    path.write_bytes(xor_edge_conv(np.random.default_rng(0)).file())
    return path


def arrays() -> list[np.ndarray]:
    return xor_edge_conv(np.random.default_rng(0)).arrays()


def saved(*items: np.ndarray) -> bytes:
    stream = io.BytesIO()
    for array in items:
        np.save(stream, array)
    return stream.getvalue()


def pipe(model: Path, data: bytes) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bgnn.runtime_bench.runtime.run", str(model), "--stream", "-"]
    done = subprocess.run(command, input=data, capture_output=True)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def matches(patterns: list[str], text: str) -> None:
    lines = text.splitlines()
    assert len(lines) == len(patterns), text
    for pattern, line in zip(patterns, lines, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_folder_is_run_in_the_order_of_its_numbers(model: Path, tmp_path: Path, capsys) -> None:
    for number in (10, 9, 1):
        np.savez(tmp_path / f"cloud_{number}.npz", *arrays())
    assert main([str(model), "--stream", str(tmp_path)]) == 0
    matches([*(LINE.format(f"cloud_{n}.npz") for n in (1, 9, 10)), SUMMARY.format("3 items")], capsys.readouterr().out)


def test_a_bad_item_is_named_and_the_next_ones_follow(model: Path, tmp_path: Path, capsys) -> None:
    x, index = arrays()
    np.savez(tmp_path / "a.npz", x, index)
    np.savez(tmp_path / "b.npz", x[:, :5], index)
    (tmp_path / "c.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "d.npz", x, index + 30)
    np.savez(tmp_path / "e.npz", x)
    np.savez(tmp_path / "f.npz", x, index)
    assert main([str(model), "--stream", str(tmp_path)]) == 1
    said = capsys.readouterr()
    matches([*(LINE.format(f"{n}.npz") for n in "af"), SUMMARY.format("6 items, 4 failed")], said.out)
    matches(
        [
            r"bgnn-run: b\.npz: input t0 must be int32 \[2, 30, 3\], got int32 \[2, 5, 3\].*",
            r"bgnn-run: c\.npz: not a readable \.npz of plain arrays .*",
            r"bgnn-run: d\.npz: the runtime failed.*a neighbour's index is not one of the graph's nodes.*",
            r"bgnn-run: e\.npz: the file's inputs are t0, t1; .*",
            "bgnn-run: 4 of 6 items failed",
        ],
        said.err,
    )


def test_arrays_from_a_pipe(model: Path) -> None:
    x, index = arrays()
    done = pipe(model, saved(x, index, x[:, :5], index, x.transpose(1, 0, 2).copy().transpose(1, 0, 2), index))
    assert done.returncode == 1
    matches([LINE.format("item 1"), LINE.format("item 3"), SUMMARY.format("3 items, 1 failed")], done.stdout)
    assert done.stderr.startswith("bgnn-run: item 2: input t0 must be int32 [2, 30, 3], got int32 [2, 5, 3]")


def test_a_pipe_that_breaks_ends_the_stream(model: Path) -> None:
    x, index = arrays()
    whole = saved(x, index)
    for data, reason in {
        saved(x): "item 1: the stream ends before array 2 of 2 does",
        saved(x) + whole[: len(saved(x)) // 2]: "item 1: the stream ends before array 2 of 2 does",
        b"\x93NUM": "item 1: the stream ends before array 1 of 2 does",
        b"nonsense" * 20 + whole: "item 1: array 1 of 2 is no .npy array",
        b"PK\x03\x04" + whole: "item 1: an .npz archive cannot be read from a pipe",
        whole.replace(b"(2, 30, 3)", b"(2, 9**9,)"): "item 1: array 1 of 2 is no .npy array",
        saved(np.array([None])).replace(b"\x80", b"\x00"): "item 1: array 1 of 2 holds pickled Python objects",
    }.items():
        done = pipe(model, data)
        assert done.returncode == 1, done
        assert done.stdout == "1 item, 1 failed\n"
        assert done.stderr.startswith(f"bgnn-run: {reason}"), done.stderr
        assert done.stderr.count("\n") == 2


def test_nothing_to_run(model: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def refused(*more: str) -> str:
        assert main([str(model), *more]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    assert refused("--stream", str(tmp_path)) == f"bgnn-run: --stream {tmp_path}: the folder holds no .npz files\n"
    assert "no such folder (- reads standard input)" in refused("--stream", str(tmp_path / "none"))
    assert "not a folder" in refused("--stream", str(model))
    assert "--stream prints them" in refused("--stream", str(tmp_path), "--output", "out.npz")
    monkeypatch.setattr(sys, "stdin", None)
    assert refused("--stream", "-").startswith("bgnn-run: standard input is closed")
    assert (pipe(model, b"").returncode, pipe(model, b"").stdout) == (2, "")
    assert pipe(model, b"").stderr.startswith("bgnn-run: standard input held no arrays")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_stream_tells_what_it_has(number: int, code: int, model: Path) -> None:
    command = [sys.executable, "-m", "bgnn.runtime_bench.runtime.run", str(model), "--stream", "-"]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(saved(*arrays()))
    process.stdin.flush()
    first = process.stdout.readline().decode()  # an item's line comes while the stream is open
    assert re.fullmatch(LINE.format("item 1"), first.strip())
    time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    matches([SUMMARY.format("1 item")], out.decode())
    assert process.returncode == code


def test_a_reader_that_leaves_ends_the_stream(model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "bgnn.runtime_bench.runtime.run", str(model), "--stream", "-"]
    process = subprocess.Popen(command, stdin=-1, stdout=write, stderr=-1)
    os.close(write)
    assert process.stdin is not None
    process.stdin.write(saved(*arrays()))
    process.stdin.flush()
    assert process.wait(timeout=30) == 0  # though its input goes on
    process.communicate()


def test_percentiles_are_latencies_that_were_measured() -> None:
    latencies = live.Latencies()
    latencies.milliseconds.extend([float(n) for n in range(200, 0, -1)])
    assert [latencies.percentile(percent) for percent in (50, 90, 99, 100)] == [100, 180, 198, 200]
    assert str(latencies) == "200 items; latency, ms: p50 100.00, p90 180.00, p99 198.00, max 200.00, first 200.00"
    one = live.Latencies()
    one.milliseconds.append(5.0)
    assert [one.percentile(percent) for percent in (50, 99)] == [5, 5]


@pytest.mark.parametrize(
    "array", [np.zeros((0, 4), np.float32), np.arange(6).reshape(2, 3).T, np.array(2.5), np.zeros(3, bool)]
)
def test_arrays_come_as_they_were_saved(array: np.ndarray) -> None:
    stream = io.BytesIO(saved(array, np.ones(2)))
    found = limits.read_npy(stream, "item 1", "array 1 of 1")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)
    assert np.array_equal(np.load(stream), np.ones(2))  # nothing of the next one is gone


def test_a_stated_size_is_checked_before_it_is_read(monkeypatch) -> None:
    monkeypatch.setenv("BGNN_MEMORY", "1K")
    with pytest.raises(UsageError, match="item 7: array 1 of 1 asks for 2 KiB of memory"):
        limits.read_npy(io.BytesIO(saved(np.zeros(256))), "item 7", "array 1 of 1")


def test_graphs_of_any_size_on_onnx(tmp_path: Path, capsys) -> None:
    import torch
    from onnx_graphs import file_of, open_graph, random_edges

    def layer(m, x, edges):
        return torch.ops.bgnn.segment_sum(x.index_select(0, edges.select(0, 0)), edges.select(0, 1), x.shape[0])

    path = tmp_path / "sum.onnx"
    path.write_bytes(file_of(open_graph(layer, torch.randn(9, 8), random_edges(9, 20))))
    for nodes in (4, 7):
        edges = np.array([[0, 1, 2], [3, 3, 0]])
        np.savez(tmp_path / f"graph{nodes}.npz", in0=np.ones((nodes, 8), np.float32), in1=edges)
    assert main([str(path), "--stream", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[\d.]+ ms", "", line) for line in lines[:2]] == [
        f"graph{n}.npz: ; out0: float32 [{n}, 8], argmax {[0] * n}" for n in (4, 7)
    ]
    items = [np.load(tmp_path / f"graph{nodes}.npz")[name] for nodes in (7, 4) for name in ("in0", "in1")]
    matches(
        [r"item 1: .* float32 \[7, 8\].*", r"item 2: .* float32 \[4, 8\].*", "2 items; .*"],
        pipe(path, saved(*items)).stdout,
    )
