"""`make bench-kernels`: what the project's own kernels are worth, in three sections, each measured interleaved.

files   whole networks: our files on each instruction set beside LiteRT, ONNX Runtime, PyTorch and LCE
ops     every kernel at the networks' sizes on each instruction set
knn     Hamming k-NN alone beside FAISS and usearch, and beside the processor's popcount roofline

All of it goes to `bench_kernels.json` as well. Where the project set itself a figure, a line says whether it was
reached; that decides no exit code.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bgnn.runtime_bench.bench import bench_own_kernels_files as files
from bgnn.runtime_bench.bench import bench_own_kernels_knn as knn
from bgnn.runtime_bench.bench import bench_own_kernels_ops as ops
from bgnn.runtime_bench.bench.cases import Sizes
from bgnn.runtime_bench.bench.measure import describe_machine
from bgnn.runtime_bench.bench.paper import Aim

SECTIONS = ("files", "ops", "knn")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line: sizes default to the paper's, and to the k-NN sizes that the project set itself."""
    parser = argparse.ArgumentParser(
        prog="bench_kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)}; default: all")
    for name, default in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--settings", nargs="+", default=[f"{s.batch}x{s.threads}" for s in files.SETTINGS],
                        help="of the networks, BATCHxTHREADS each")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="of the ops; k-NN is compared on one")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--knn-nodes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--knn-bits", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--output", type=Path, default=Path("out/bench_kernels"), help="folder for the files and JSON")
    given = parser.parse_args(arguments)
    sections = given.sections or SECTIONS
    unknown = set(sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    try:
        settings = tuple(files.Setting(*map(int, text.split("x"))) for text in given.settings)
    except (TypeError, ValueError):
        parser.error(f"--settings wants BATCHxTHREADS, such as 8x1, got {' '.join(given.settings)}")
    sizes = Sizes(given.batch, given.points, given.k, given.classes)
    given.output.mkdir(parents=True, exist_ok=True)

    found: dict[str, Any] = {"machine": describe_machine(), "sizes": asdict(sizes), "rounds": given.rounds}
    aims: list[Aim] = []
    if "files" in sections:
        tables = []
        for table in files.bench_files(settings, sizes, given.rounds, given.output, say):
            files.print_files(table, sizes)
            tables.append(table)
        aims += files.aims(tables)
        found["files"] = [files.to_json(table) for table in tables]
    if "ops" in sections:
        rows = ops.bench_ops(sizes, given.rounds, given.threads, say)
        ops.print_ops(rows, sizes, given.threads)
        found["ops"] = {"threads": given.threads, "rows": rows}
        found["total_ms"] = {network: ops.total_ms(rows, network) for network in ("bf", "rf")}
    if "knn" in sections:
        roofline = knn.words_per_second()
        rows = knn.bench_knn(given.knn_nodes, given.knn_bits, given.k, given.rounds, say)
        knn.print_knn(rows, given.k, roofline)
        aims += knn.aims(rows)
        found["knn"] = {"roofline_words_per_s": roofline, "rows": rows}
    for aim in aims:
        print(aim)
    path = given.output / "bench_kernels.json"
    path.write_text(json.dumps({**found, "aims": [asdict(aim) for aim in aims]}, indent=2) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
