"""Exact Hamming k-NN alone, beside FAISS's `IndexBinaryFlat` and usearch's exact search; part of `make bench-kernels`.

All search the same random codes on one thread and must find the same distances. What is done once for the codes is not
timed: adding them to an index, and our kernel's search for equal rows. The words a second stand beside what the
processor can xor and popcount from its first-level cache.
"""

from __future__ import annotations

import ctypes
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench.measure import Spread, measure
from bgnn.runtime_bench.bench.paper import Aim
from bgnn.runtime_bench.bench.report import print_table
from bgnn.runtime_bench.kernels import library


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


def ours_and_others(rows: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """Our fastest instruction set's name in the rows, and the other libraries'."""
    names = list(rows[0]["cpu_ms"])
    return [n for n in names if n.startswith("bgnn")][-1], [n for n in names if not n.startswith("bgnn")]


def aims(rows: list[dict[str, Any]]) -> list[Aim]:
    """Whether we are ahead of each library on every size, and where not."""
    ours, others = ours_and_others(rows)
    lines = []
    for other in others:
        ratio = {f"{r['bits']} bits x {r['nodes']}": r["cpu_ms"][other]["median"] / r["cpu_ms"][ours]["median"]
                 for r in rows}  # fmt: skip
        behind = [f"{size} ({times:.2f})" for size, times in ratio.items() if times < 1]
        found = f"behind on {', '.join(behind)}" if behind else f"{min(ratio.values()):.2f} x or more"
        lines.append(Aim(f"Hamming k-NN, {ours} beside {other}", "ahead on every size", found, not behind))
    return lines


def print_knn(rows: list[dict[str, Any]], k: int, roofline: float) -> None:
    """The table; processor time, which neighbours on the machine disturb least."""
    names = list(rows[0]["cpu_ms"])
    ours, others = ours_and_others(rows)
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
    print_table(f"Exact Hamming k-NN, k = {k}, CPU ms, one thread; roofline {roofline / 1e9:.1f} Gwords/s", heads, body)
    for name in ("faiss", "usearch"):
        if name not in others:
            print(f"{name}: not installed, so not compared (`make bench-kernels` installs it)")
