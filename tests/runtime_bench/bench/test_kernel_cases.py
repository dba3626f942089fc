"""Kernels and single operations run, and only equal answers are compared. Times decide nothing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from bench_records import record

from bgnn.runtime_bench.bench import kernel_cases as made
from bgnn.runtime_bench.bench import tables
from bgnn.runtime_bench.bench.cases import Sizes
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.running import measure_together
from bgnn.runtime_bench.kernels import library

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, so the kernels are not built")
ONCE = Schedule(rounds=1, seconds=0, warmup=1, warmup_seconds=0, burst_ms=0)
TINY = Sizes(2, 40, 5, 3)


def test_every_op_on_every_instruction_set() -> None:
    for op in made.ops(TINY):
        rows = made.kernel_subjects(op, 1)
        assert [row.candidate for row in rows] == [f"bgnn {isa.isa}" for isa in library.runnable()]
        for row in rows:
            row.open().run()


def test_the_sums_count_each_call() -> None:
    found = [record("bgnn avx2", {"BF": bf, "RF": rf}, wall_ms=[ms]) for bf, rf, ms in ((1, 0, 2.0), (3, 2, 10.0))]
    (sheet,) = tables.kernels([*found], TINY)
    assert [row[-1] for row in sheet.rows[-2:]] == ["32.0", "20.0"]


def test_every_search_finds_the_same_distances() -> None:
    rows = made.knn_subjects(50, 64, 5)
    found = measure_together(rows, "random codes", 1, ONCE, lambda line: None)
    assert {r.candidate for r in found} >= {f"bgnn {isa.isa}" for isa in library.runnable()}
    assert all(r.figure("difference") == 0 for r in found)
    others = {"FAISS", "usearch"}
    assert {r.candidate for r in found} & others | {
        n.rpartition(", ")[2] for n in found[0].settings["left_out"]
    } == others


def test_hamming_distances() -> None:
    codes = np.array([[0, 0], [255, 1], [1, 0]], np.uint8)
    assert made.hamming_distances(codes, 2, np.array([[0, 2], [1, 2], [0, 0]])).tolist() == [[0, 1], [0, 8]]


def test_the_table_names_the_sizes_where_another_is_ahead() -> None:
    def run(name: str, theirs: float) -> list:
        how = {"run": name, "words": 100.0, "roofline": 1e9, "left_out": {}}
        return [record("bgnn avx2", how, cpu_ms=[2.0]), record("FAISS", how, cpu_ms=[theirs])]

    (sheet,) = tables.knn([*run("1", 3.0), *run("2", 2.0)], TINY)
    assert sheet.notes == [
        "PASS   Hamming k-NN, bgnn avx2 beside FAISS: ahead on every size (aim: ahead on every size)"
    ]
    (sheet,) = tables.knn([*run("1", 3.0), *run("2", 1.0)], TINY)
    assert sheet.notes[0].startswith("SHORT  Hamming k-NN, bgnn avx2 beside FAISS: behind on a.tflite (0.500)")


def test_one_sum_by_all_that_sum() -> None:
    rows = made.aggregate_subjects(300, 4000, 2)
    found = measure_together(rows, "random graph", 2, ONCE, lambda line: None)
    (sheet,) = tables.aggregation(found, TINY)
    names = {"u8 codes", "u8 codes, weights", "f32", "int32", "SciPy CSR f32", "PyTorch CSR f32", "stock ONNX f32",
             "rows at random", "the graph's rows", "COO to CSR"}  # fmt: skip
    assert {row[0] for row in sheet.rows} == names
    assert sheet.rows[0][0] == "u8 codes"


def test_all_ways_over_segments_agree() -> None:
    """They compare their sums themselves."""
    assert [row.candidate for row in made.segment_subjects(30, 120, 8)] == ["segments", "table", "matrix"]
