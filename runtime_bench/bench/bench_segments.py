"""What sums over edges cost by TFLite's own operators: `python -m bgnn.runtime_bench.bench.bench_segments`.

A gather and UNSORTED_SEGMENT_SUM do the edges' work; a neighbour table of fixed width is gathered and summed to the
width of the largest hub; an adjacency matrix is a product of nodes by nodes. Milliseconds, medians of interleaved
rounds on one thread, each way on the same random graph.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from bgnn.converter.tflite.builder import FileBuilder, Value
from bgnn.runtime_bench.bench.measure import measure
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int32)
GRAPHS = ((30, 120, 32), (1000, 8000, 64), (2708, 10832, 16), (2708, 10832, 64), (10000, 80000, 64))
MOST_DENSE = 4000  # nodes: beyond it the matrix alone has more than 64 MB


def file_of(inputs: dict[str, np.ndarray], body: Callable[[FileBuilder, list[Value], Value], None]) -> bytes:
    """A file whose output has x's shape."""
    builder = FileBuilder("segments")
    values = [builder.tensor(name, array.shape, array.dtype) for name, array in inputs.items()]
    out = builder.tensor("sums", inputs["x"].shape, inputs["x"].dtype)
    body(builder, values, out)
    return builder.finish(list(zip(inputs, values, strict=True)), [("sums", out)], {})


def segments(builder: FileBuilder, values: list[Value], out: Value) -> None:
    x, source, target = values
    rows = builder.tensor("rows", (*source.shape, *x.shape[1:]), x.dtype)
    builder.builtin("GATHER", [x, source], [rows], schema.GatherOptionsT(axis=0))
    number = builder.constant("number", np.array(x.shape[0], INT))
    builder.builtin("UNSORTED_SEGMENT_SUM", [rows, target, number], [out])


def table(builder: FileBuilder, values: list[Value], out: Value) -> None:
    x, neighbours = values
    rows = builder.tensor("rows", (*neighbours.shape, *x.shape[1:]), x.dtype)
    builder.builtin("GATHER", [x, neighbours], [rows], schema.GatherOptionsT(axis=0))
    axis = builder.constant("axis", np.array([1], INT))
    builder.builtin("SUM", [rows, axis], [out], schema.ReducerOptionsT())


def matrix(builder: FileBuilder, values: list[Value], out: Value) -> None:
    x, adjacency = values
    builder.builtin("BATCH_MATMUL", [adjacency, x], [out], schema.BatchMatMulOptionsT())


def compare(nodes: int, edges: int, width: int, rounds: int) -> dict[str, float]:
    """Milliseconds by way; all give the same sums, but for rounding."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((nodes, width)).astype(np.float32)
    source, target = rng.integers(0, nodes, (2, edges)).astype(np.int32)
    degrees = np.bincount(target, minlength=nodes)
    # A row of zeros behind x stands for what the table has free.
    with_zeros = np.concatenate([x, np.zeros((1, width), np.float32)])
    neighbours = np.full((nodes + 1, degrees.max()), nodes, np.int32)
    order = np.argsort(target, kind="stable")
    neighbours[target[order], np.arange(edges) - np.repeat(degrees.cumsum() - degrees, degrees)] = source[order]
    ways = {
        "segments": ({"x": x, "source": source, "target": target}, segments),
        "table": ({"x": with_zeros, "neighbours": neighbours}, table),
    }
    if nodes <= MOST_DENSE:
        adjacency = np.zeros((nodes, nodes), np.float32)
        np.add.at(adjacency, (target, source), 1)
        ways["matrix"] = ({"x": x, "adjacency": adjacency}, matrix)
    calls = {
        name: partial(LiteRTInterpreter(file_of(inputs, body)).run, *inputs.values())
        for name, (inputs, body) in ways.items()
    }
    wanted = calls["segments"]()[0]
    for run in calls.values():
        np.testing.assert_allclose(run()[0][:nodes], wanted, rtol=1e-3, atol=1e-3)
    return {name: timing.wall.median for name, timing in measure(calls, rounds=rounds).timings.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args(arguments).rounds
    for nodes, edges, width in GRAPHS:
        took = ", ".join(f"{name} {ms:.3f} ms" for name, ms in compare(nodes, edges, width, rounds).items())
        print(f"{nodes} nodes, {edges} edges, {width} channels: {took}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
