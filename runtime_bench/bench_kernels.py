"""`make bench-kernels`: every kernel at BF's sizes on each instruction set, and Hamming k-NN beside other libraries.

Two tables, written to `bench_kernels.json` as well. In the first, each op of the paper's DGCNN in its binary form
(batch 8, 1024 points, k = 20) on random codes, in which no two rows are equal, so nothing is saved by sharing
equal rows. In the second, exact k-NN among codes of 64 to 1024 bits: FAISS's `IndexBinaryFlat` and usearch's exact
search, where they are installed (`pip install faiss-cpu usearch`), and the words a second beside what the
processor could xor and popcount from its first-level cache.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.kernels import library
from bgnn.runtime_bench.measure import Spread, describe_machine, measure

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Batch, points in a cloud, neighbours."""

    batch: int = 8
    nodes: int = 1024
    k: int = 20


@dataclass(frozen=True)
class Op:
    """A row of the first table: a kernel, its arguments, and how often BF calls it (0: not in BF)."""

    name: str
    kernel: str
    arguments: Arguments
    calls: int


def random_bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-(2**31), 2**31, shape, dtype=np.int32)


def random_floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def bf_ops(sizes: Sizes) -> list[Op]:
    """BF's ops: four k-NN and edge convolutions (3-64-64-128-256), the dense layer 512-1024 with pooling."""
    rng = np.random.default_rng(0)
    batch, nodes, k = sizes.batch, sizes.nodes, sizes.k
    neighbours = rng.integers(0, nodes, (batch, nodes, k), dtype=np.int32)
    common = {"batch": batch, "nodes": nodes, "k": k}
    found = np.zeros_like(neighbours)

    def knn(channels: int) -> Arguments:
        x = random_floats(rng, batch, nodes, channels)
        return {"x": x, "neighbours": found, "channels": channels, **common}

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

    gather_max = {
        "x": random_floats(rng, batch, nodes, 64),
        "neighbours": neighbours,
        "out": np.zeros((batch, nodes, 64), np.float32),
        "rows": nodes,
        "channels": 64,
        **common,
    }
    quantize = {
        "x": random_floats(rng, batch * nodes, 64),
        "out": np.zeros((batch * nodes, 2), np.int32),
        "rows": batch * nodes,
        "channels": 64,
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
        Op("k-NN, 3-D", "knn", knn(3), 1),
        Op("gather + max, 64 floats", "gather_max", gather_max, 1),
        Op("sign + pack, 64", "quantize", quantize, 1),
        Op("Hamming k-NN, 64 bits", "hamming_knn", hamming_knn(64), 2),
        Op("XOR edge conv 64-64", "xor_edge_conv", xor_edge_conv(64, 64), 1),
        Op("XOR edge conv 64-128", "xor_edge_conv", xor_edge_conv(64, 128), 1),
        Op("Hamming k-NN, 128 bits", "hamming_knn", hamming_knn(128), 1),
        Op("XOR edge conv 128-256", "xor_edge_conv", xor_edge_conv(128, 256), 1),
        Op("dense 512-1024 + pooling", "dense_pool", dense_pool, 1),
        Op("dense 2048-512", "bconv2d", classifier, 1),
        Op("RF edge conv 64-64", "bin_edge_conv", bin_edge_conv(64, 64), 0),
        Op("k-NN, 64-D", "knn", knn(64), 0),
    ]


def bench_ops(sizes: Sizes, rounds: int, threads: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One measurement per op, the instruction sets interleaved."""
    isas = list(library.runnable())
    rows = []
    for op in bf_ops(sizes):
        say(op.name)
        calls = {isa.isa: isa.call(op.kernel, **op.arguments) for isa in isas}
        result = measure({name: partial(call.run, threads) for name, call in calls.items()}, rounds=rounds)
        rows.append(
            {
                "op": op.name,
                "calls_in_bf": op.calls,
                "wall_ms": {name: asdict(timing.wall) for name, timing in result.timings.items()},
                "cpu_ms": {name: asdict(timing.cpu) for name, timing in result.timings.items()},
            }
        )
    return rows


# ------------------------------------------------------------------------------------------------- k-NN


def words_per_second() -> float:
    """The processor's popcount roofline: 64-bit words xored and counted a second, by its best instruction."""
    subprocess.run(["make", "-s", "-C", str(library.HERE), "roofline"], check=True)
    roofline = ctypes.CDLL(str(library.build().with_name("roofline.so")))
    run = roofline.roofline_avx512 if roofline.roofline_has_avx512() else roofline.roofline_popcnt
    run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_uint64
    data, rounds = library.aligned(4096), 20_000
    data[:] = 0x5A
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run(data.ctypes.data, rounds)
        times.append(time.perf_counter() - start)
    return 512 * rounds / min(times)


def faiss_search(codes: np.ndarray, queries: int, k: int, threads: int) -> Callable[[], np.ndarray] | None:
    """FAISS's exact search as a callable that returns distances `[queries, k]`; None where it is not installed."""
    try:
        import faiss  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(codes.shape[1] * 8)
    index.add(codes)
    return lambda: index.search(codes[:queries], k)[0]


def usearch_search(codes: np.ndarray, queries: int, k: int, threads: int) -> Callable[[], np.ndarray] | None:
    """usearch's exact search, likewise."""
    try:
        from usearch.index import MetricKind, search  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None

    def run() -> np.ndarray:
        found = search(codes, codes[:queries], k, MetricKind.Hamming, exact=True, threads=threads, dtype="b1")
        return found.distances.astype(np.int64)

    return run


def our_search(
    codes: np.ndarray, queries: int, k: int, threads: int, isa: library.Kernels
) -> tuple[Callable[[], np.ndarray], np.ndarray]:
    """Our kernel on the first `queries` rows, and the array it fills with neighbours `[n, k]`."""
    neighbours = np.zeros((codes.shape[0], k), np.int32)
    call = isa.call(
        "hamming_knn",
        x=codes.view(np.int32),
        neighbours=neighbours,
        batch=1,
        nodes=codes.shape[0],
        words=codes.shape[1] // 4,
        k=k,
    )
    if call.begin() != codes.shape[0]:
        raise SystemExit("bench_kernels: random codes repeat, so the rows cannot be compared one by one")
    if threads != 1:
        raise SystemExit("bench_kernels: the k-NN table is for one thread")

    def run() -> np.ndarray:
        call.run_items(0, queries)
        return neighbours

    return run, neighbours


def hamming_distances(codes: np.ndarray, queries: int, neighbours: np.ndarray) -> np.ndarray:
    differing = codes[:queries, None] ^ codes[neighbours[:queries]]
    return np.unpackbits(differing, axis=-1).sum(-1, dtype=np.int64)


def bench_knn(
    nodes: list[int], bits: list[int], k: int, rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """For each size the same random codes through every library; raises where their distances differ."""
    rng = np.random.default_rng(0)
    isas = list(library.runnable())
    rows = []
    for width in bits:
        for count in nodes:
            say(f"k-NN among {count} codes of {width} bits")
            codes = rng.integers(0, 256, (count, width // 8), dtype=np.uint8)
            queries = min(count, 1000)
            candidates: dict[str, Callable[[], np.ndarray]] = {}
            for isa in isas:
                candidates[f"bgnn {isa.isa}"], neighbours = our_search(codes, queries, k, 1, isa)
            candidates[f"bgnn {isas[-1].isa}"]()
            wanted = hamming_distances(codes, queries, neighbours)
            for name, make in (("faiss", faiss_search), ("usearch", usearch_search)):
                run = make(codes, queries, k, 1)
                if run is None:
                    continue
                if not np.array_equal(np.sort(run(), axis=1), wanted):
                    raise SystemExit(f"bench_kernels: {name} finds other distances for {count} x {width} bits")
                candidates[name] = run
            result = measure(candidates, rounds=rounds)
            words = queries * count * width / 64
            rows.append(
                {
                    "bits": width,
                    "nodes": count,
                    "queries": queries,
                    "wall_ms": {name: asdict(timing.wall) for name, timing in result.timings.items()},
                    "cpu_ms": {name: asdict(timing.cpu) for name, timing in result.timings.items()},
                    "gigawords_per_s": {name: words / timing.cpu.min / 1e6 for name, timing in result.timings.items()},
                }
            )
    return rows


# ------------------------------------------------------------------------------------------------- output


def print_rows(title: str, heads: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for position, head in enumerate(heads):
        table.add_column(head, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_ops(rows: list[dict[str, Any]], sizes: Sizes, threads: int) -> None:
    isas = list(rows[0]["wall_ms"])
    body = [
        [row["op"], str(row["calls_in_bf"] or ""), *(str(Spread(**row["wall_ms"][isa])) for isa in isas)]
        for row in rows
    ]
    totals = [sum(row["calls_in_bf"] * row["wall_ms"][isa]["median"] for row in rows) for isa in isas]
    body.append(["BF, the sum of its calls", "", *(f"{total:.1f}" for total in totals)])
    title = f"ms, batch {sizes.batch}, {sizes.nodes} points, k = {sizes.k}, {threads} thread(s), no equal rows"
    print_rows(title, ["", "calls", *isas], body)


def print_knn(rows: list[dict[str, Any]], k: int, roofline: float) -> None:
    names = list(rows[0]["cpu_ms"])
    ours = [name for name in names if name.startswith("bgnn")][-1]
    others = [name for name in names if not name.startswith("bgnn")]
    body = []
    for row in rows:
        cpu = {name: row["cpu_ms"][name]["median"] for name in names}
        share = row["gigawords_per_s"][ours] * 1e9 / roofline
        body.append(
            [
                f"{row['bits']} bits, {row['nodes']}",
                str(row["queries"]),
                *(str(Spread(**row["cpu_ms"][name])) for name in names),
                *(f"{cpu[name] / cpu[ours]:.2f}" for name in others),
                f"{row['gigawords_per_s'][ours]:.1f} ({share:.0%})",
            ]
        )
    heads = ["codes", "queries", *names, *(f"{name} /\n{ours}" for name in others), f"{ours}\nGwords/s (of roofline)"]
    print_rows(f"Exact Hamming k-NN, k = {k}, CPU ms, one thread; roofline {roofline / 1e9:.1f} Gwords/s", heads, body)
    for name in ("faiss", "usearch"):
        if name not in others:
            print(f"{name}: not installed, so not compared (pip install faiss-cpu usearch)")


def main(arguments: list[str] | None = None) -> None:
    """The command line: sizes default to the paper's, and to the k-NN sizes that the project set itself."""
    parser = argparse.ArgumentParser(prog="bench_kernels", description=__doc__.partition("\n")[0])
    for name, default in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1, help="of the ops; k-NN is compared on one")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--knn-nodes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--knn-bits", type=int, nargs="*", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--output", type=Path, default=Path("out/bench_kernels"), help="folder for the JSON")
    given = parser.parse_args(arguments)
    sizes = Sizes(given.batch, given.nodes, given.k)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    ops = bench_ops(sizes, given.rounds, given.threads, say)
    print_ops(ops, sizes, given.threads)
    roofline = words_per_second()
    knn = bench_knn(given.knn_nodes, given.knn_bits, given.k, given.rounds, say) if given.knn_nodes else []
    if knn:
        print_knn(knn, given.k, roofline)
    path = given.output / "bench_kernels.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "machine": describe_machine(),
        "sizes": asdict(sizes),
        "threads": given.threads,
        "rounds": given.rounds,
        "ops": ops,
        "total_ms": {
            isa: sum(row["calls_in_bf"] * row["wall_ms"][isa]["median"] for row in ops) for isa in ops[0]["wall_ms"]
        },
        "roofline_words_per_s": roofline,
        "knn": knn,
    }
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
