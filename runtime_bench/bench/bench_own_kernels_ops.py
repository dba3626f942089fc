"""Each kernel at the sizes of the paper's binary DGCNNs, on each instruction set; part of `make bench-kernels`.

The codes are random and no two rows of a cloud are equal, so nothing is saved by sharing equal rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench.cases import Sizes
from bgnn.runtime_bench.bench.measure import Spread, measure
from bgnn.runtime_bench.bench.report import print_table
from bgnn.runtime_bench.kernels import library

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Op:
    """A row of the table: a kernel, its arguments, and how often BF and RF call it."""

    name: str
    kernel: str
    arguments: Arguments
    bf: int
    rf: int


def random_bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-(2**31), 2**31, shape, dtype=np.int32)


def random_floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def ops(sizes: Sizes) -> list[Op]:
    """Four k-NN and edge convolutions (3-64-64-128-256), the dense layer 512-1024 with pooling, BF's classifier."""
    rng = np.random.default_rng(0)
    batch, nodes, k = sizes.batch, sizes.points, sizes.k
    neighbours = rng.integers(0, nodes, (batch, nodes, k), dtype=np.int32)
    common = {"batch": batch, "nodes": nodes, "k": k}
    found = np.zeros_like(neighbours)

    def knn(channels: int) -> Arguments:
        x = random_floats(rng, batch, nodes, channels)
        return {"x": x, "neighbours": found, "channels": channels, **common}

    def quantize(channels: int) -> Arguments:
        rows = batch * nodes
        out = np.zeros((rows, channels // 32), np.int32)
        return {"x": random_floats(rng, rows, channels), "out": out, "rows": rows, "channels": channels}

    def hamming_knn(channels: int) -> Arguments:
        x = random_bits(rng, batch, nodes, channels // 32)
        return {"x": x, "neighbours": found, "words": channels // 32, **common}

    def xor_edge_conv(channels: int, outputs: int) -> Arguments:
        return {
            "x": random_bits(rng, batch, nodes, channels // 32),
            "neighbours": neighbours,
            "weights": random_bits(rng, outputs, 2 * channels // 32),
            "thresholds": np.full((1, outputs), channels - 10, np.int32),
            "out": np.zeros((batch, nodes, outputs // 32), np.int32),
            "words": channels // 32,
            "out_channels": outputs,
            "tables": 1,
            **common,
        }

    def bin_edge_conv(channels: int, outputs: int) -> Arguments:
        return {
            "node_bits": random_bits(rng, batch, nodes, channels // 32),
            "x": random_floats(rng, batch, nodes, channels),
            "neighbours": neighbours,
            "edge_scale": random_floats(rng, channels),
            "edge_shift": random_floats(rng, channels),
            "weights": random_bits(rng, outputs, 2 * channels // 32),
            "alpha": random_floats(rng, outputs),
            "beta": random_floats(rng, nodes),
            "gamma": random_floats(rng, k),
            "slope": random_floats(rng, 1),
            "out": np.zeros((batch, nodes, outputs), np.float32),
            "channels": channels,
            "words": channels // 32,
            "out_channels": outputs,
            "betas": nodes,
            "gammas": k,
            "slopes": 1,
            **common,
        }

    edge_max = {
        "x": random_floats(rng, batch, nodes, 64),
        "node": random_floats(rng, batch, nodes, 64),
        "neighbours": neighbours,
        "beta": random_floats(rng, nodes),
        "gamma": random_floats(rng, k),
        "out": np.zeros((batch, nodes, 64), np.float32),
        "channels": 64,
        "betas": nodes,
        "gammas": k,
        **common,
    }
    gather_max = {
        "x": random_floats(rng, batch, nodes, 64),
        "neighbours": neighbours,
        "out": np.zeros((batch, nodes, 64), np.float32),
        "rows": nodes,
        "channels": 64,
        **common,
    }
    dense_pool = {
        "x": random_bits(rng, batch, nodes, 16),
        "weights": random_bits(rng, 1024, 16),
        "out": np.zeros((batch, 4, 1024), np.float32),
        "batch": batch,
        "nodes": nodes,
        "words": 16,
        "channels": 512,
        "out_channels": 1024,
    }
    scaled_pool = {
        **dense_pool,
        "scale": random_floats(rng, nodes),
        "out": np.zeros((batch, 4, 1024), np.float32),
        "scales": nodes,
    }
    ones = dict.fromkeys(
        ["out_height", "out_width", "filter_height", "filter_width", "stride_height", "stride_width"], 1
    )
    classifier = {
        "x": random_bits(rng, batch, 1, 1, 64),
        "weights": random_bits(rng, 512, 1, 1, 64),
        "multiplier": random_floats(rng, 512),
        "bias": random_floats(rng, 512),
        "thresholds": None,
        "out": np.zeros((batch, 1, 1, 512), np.float32),
        "out_bits": None,
        "batch": batch,
        "height": 1,
        "width": 1,
        "words": 64,
        "channels": 2048,
        "groups": 1,
        "out_channels": 512,
        "dilation_height": 1,
        "dilation_width": 1,
        "pad_top": 0,
        "pad_left": 0,
        "pad_one": 1,
        "clamp_min": -(2**31),
        "clamp_max": 2**31 - 1,
        **ones,
    }
    return [
        Op("k-NN, 3-D", "knn", knn(3), 1, 1),
        Op("k-NN, 64-D", "knn", knn(64), 0, 2),
        Op("k-NN, 128-D", "knn", knn(128), 0, 1),
        Op("Hamming k-NN, 64 bits", "hamming_knn", hamming_knn(64), 2, 0),
        Op("Hamming k-NN, 128 bits", "hamming_knn", hamming_knn(128), 1, 0),
        Op("gather + max, 64 floats", "gather_max", gather_max, 1, 0),
        Op("gather + scale + max, 64 floats", "edge_max", edge_max, 0, 1),
        Op("sign + pack, 64", "quantize", quantize(64), 1, 4),
        Op("sign + pack, 128", "quantize", quantize(128), 0, 2),
        Op("sign + pack, 256", "quantize", quantize(256), 0, 1),
        Op("XOR edge conv 64-64", "xor_edge_conv", xor_edge_conv(64, 64), 1, 0),
        Op("XOR edge conv 64-128", "xor_edge_conv", xor_edge_conv(64, 128), 1, 0),
        Op("XOR edge conv 128-256", "xor_edge_conv", xor_edge_conv(128, 256), 1, 0),
        Op("RF edge conv 64-64", "bin_edge_conv", bin_edge_conv(64, 64), 0, 1),
        Op("RF edge conv 64-128", "bin_edge_conv", bin_edge_conv(64, 128), 0, 1),
        Op("RF edge conv 128-256", "bin_edge_conv", bin_edge_conv(128, 256), 0, 1),
        Op("dense 512-1024 + pooling", "dense_pool", dense_pool, 1, 0),
        Op("dense 512-1024 + scales + pooling", "scaled_pool", scaled_pool, 0, 1),
        Op("dense 2048-512", "bconv2d", classifier, 1, 1),
    ]


def bench_ops(sizes: Sizes, rounds: int, threads: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One measurement per op, the instruction sets interleaved."""
    isas = list(library.runnable())
    rows = []
    for op in ops(sizes):
        say(op.name)
        calls = {isa.isa: isa.call(op.kernel, **op.arguments) for isa in isas}
        result = measure({name: partial(call.run, threads) for name, call in calls.items()}, rounds=rounds)
        rows.append(
            {
                "op": op.name,
                "calls_in_bf": op.bf,
                "calls_in_rf": op.rf,
                "wall_ms": {name: asdict(timing.wall) for name, timing in result.timings.items()},
                "cpu_ms": {name: asdict(timing.cpu) for name, timing in result.timings.items()},
            }
        )
    return rows


def print_ops(rows: list[dict[str, Any]], sizes: Sizes, threads: int) -> None:
    """The table, with the sums of each network's calls."""
    isas = list(rows[0]["wall_ms"])
    body = [
        [row["op"], str(row["calls_in_bf"] or ""), str(row["calls_in_rf"] or "")]
        + [str(Spread(**row["wall_ms"][isa])) for isa in isas]
        for row in rows
    ]
    for network in ("bf", "rf"):
        totals = total_ms(rows, network)
        body.append([f"{network.upper()}, the sum of its calls", "", "", *(f"{totals[isa]:.1f}" for isa in isas)])
    title = f"ms, batch {sizes.batch}, {sizes.points} points, k = {sizes.k}, {threads} thread(s), no equal rows"
    print_table(title, ["", "in BF", "in RF", *isas], body)


def total_ms(rows: list[dict[str, Any]], network: str) -> dict[str, float]:
    """Milliseconds of all the calls of "bf" or "rf", by instruction set."""
    isas = rows[0]["wall_ms"]
    return {isa: sum(row[f"calls_in_{network}"] * row["wall_ms"][isa]["median"] for row in rows) for isa in isas}
