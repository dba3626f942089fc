"""The paper's binary DGCNN on one core of a Raspberry Pi 4 at 1.5 GHz: MODELLED times beside the paper's profile.

`make a72` converts BF2 with Hamming k-NN (`--kernels bgnn`, batch 8, 1024 points, k = 20, 40 classes), runs the file
in aarch64's ai-edge-litert under qemu, and prices every block of code that one call executes. How, and what is
assumed: a72_cycles.py; it is printed below the tables.

The weights are random, so about half of a cloud's binary codes repeat, and repeated work is skipped. The second table
prices the same layers with codes that are all different, by count_driver.cc; nothing is skipped there.

The paper's figures are Table 6 of its appendix B.2, by LCE's profiler on a Raspberry Pi 4 (Hamming distances
simulated; perhaps on more than one core).
"""

from __future__ import annotations

import argparse
import bisect
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import a72_cycles
import numpy as np
from a72_cycles import Block, Cost
from rich.console import Console
from rich.table import Table

from bgnn.runtime_bench.bench.paper import BGNN_NODE_TYPES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
AIM_MS = 190

# Kernels' functions (those of generic.h and neon.cc), to what they belong to. The first that fits.
FUNCTIONS = (
    (r"(points|knn)_|finite_distance|select_keys", "k-NN of points"),
    (r"(hamming|codes|nearest|select|order_by)_|find_equal_rows|transpose64|heap_sort|sink", "k-NN of codes"),
    (r"(gather_max|edge_max|bin_edge_conv)_", "edge convolution 1, maximum"),
    (r"(xor_edge_conv|edge)_", "edge convolutions 2-4"),
    (r"(dense_pool|scaled_pool)_|pool_(run|begin|items|block)", "convolution 5 and pooling"),
    (r"(bconv2d|quantize|dequantize|bmaxpool2d)", "binary dense layers"),
    (r"op_|before_|after_|plan|read_|measure|find_|resize|set_scratch|run_task|pool_", "delegate"),
)
RUNTIME = "LiteRT's float layers"
GROUPS = (*(group for _, group in FUNCTIONS), RUNTIME)

# Table 6's operators that do k-NN's work. Some do both: products and subtractions stand with the distances, where most
# of them belong.
OF_KNN = {"TOPK_V2", "FULLY_CONNECTED", "NEG", "PACK", "RESHAPE", "TRANSPOSE", "SLICE", "SUM", "SQUARE"}
KNN_OPS = {name: ms for name, (ms, _) in BGNN_NODE_TYPES.items() if name in OF_KNN}
OTHER_OPS = {name: ms for name, (ms, _) in BGNN_NODE_TYPES.items() if name not in OF_KNN}

# count_driver's cases that make up the network's layers, for one cloud; the other layers are taken from the file.
DISTINCT = {
    "k-NN of codes": {"hamming_knn_64": 2, "hamming_knn_128": 1},
    "edge convolutions 2-4": {"xor_edge_conv_64_64": 1, "xor_edge_conv_64_128": 1, "xor_edge_conv_128_256": 1},
}


def places(maps: str, library: Path) -> Callable[[Block], str]:
    """What a block of the file's run belongs to: one of GROUPS.

    `maps`: the process's /proc/self/maps. `library`: our delegate, with symbols. Raises SystemExit for a function of
    ours that FUNCTIONS does not name.
    """
    segments = []  # (start, end, offset in the file) of our library in memory
    for line in maps.splitlines():
        span, _, offset, _, _, *path = line.split()
        if path and Path(path[0]).name == library.name:
            start, end = (int(word, 16) for word in span.split("-"))
            segments.append((start, end, int(offset, 16)))
    headers = subprocess.run(["readelf", "-lW", library], capture_output=True, text=True, check=True).stdout
    loads = [
        tuple(int(word, 16) for word in found)  # (offset in the file, address, bytes)
        for found in re.findall(r"LOAD\s+0x(\w+) 0x(\w+) 0x\w+ 0x(\w+)", headers)
    ]
    listing = subprocess.run(["nm", "-C", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    symbols = sorted((int(a, 16), name) for a, name in re.findall(r"^(\w+) [tT] (?!\$)(.*)$", listing, re.MULTILINE))
    starts = [address for address, _ in symbols]

    def place(block: Block) -> str:
        for start, end, offset in segments:
            if not start <= block.address < end:
                continue
            at = block.address - start + offset
            for first, address, size in loads:
                if first <= at < first + size:
                    below = bisect.bisect_right(starts, at - first + address) - 1
                    return of_function(symbols[below][1] if below >= 0 else "")
        return RUNTIME

    return place


def of_function(name: str) -> str:
    """The group of one of our library's functions, by its demangled name."""
    plain = name.replace("(anonymous namespace)::", "").partition("(")[0].partition("<")[0].split(" ")[-1]
    for pattern, group in FUNCTIONS:
        if re.match(pattern, plain):
            return group
    if plain in ("_init", "_fini", "") or plain.startswith(("__", "tflite_", "bgnn_")):
        return "delegate"
    raise SystemExit(f"model: {name} is in none of model_a72.FUNCTIONS")


def make_file(folder: Path) -> tuple[Path, Path, np.ndarray]:
    """Convert the bench's BF2; the file, an input, and x86's output for it."""
    import torch

    from bgnn.converter.api import convert
    from bgnn.runtime_bench.bench import cases
    from bgnn.runtime_bench.runtime.delegate import load_interpreter
    from bgnn.runtime_bench.runtime.tflite_model import run

    torch.set_num_threads(1)
    case = next(case for case in cases.CASES if case.name == f"BF-H {cases.OWN}")
    sizes = cases.Sizes()
    points = cases.clouds(sizes)
    file, given = folder / "bf2_hamming.tflite", folder / "bf2_hamming_input.npy"
    model = cases.calibrated(case, sizes)
    convert(model, (torch.from_numpy(points),), target="lce-arm64", kernels="bgnn", verify=False, output=file)
    np.save(given, points)
    (output,) = run(load_interpreter(file), {"arr_0": points}).values()
    return file, given, output


def run_file(plugin: Path, library: Path, cache: Path, folder: Path) -> dict[str, Cost]:
    """One call of the file on aarch64, by group. Raises SystemExit where its output is not x86's."""
    file, given, expected = make_file(folder)
    maps, found = folder / "maps.txt", folder / "output.npy"
    environment = {
        "PYTHONPATH": f"{cache / 'site'}:{ROOT / 'src'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "BGNN_DELEGATE": str(library),
    }
    root = cache / "root"
    python: list[str | Path] = ["-L", root, root / "usr/bin/python3.11", HERE / "run_once.py"]
    blocks = a72_cycles.profile(plugin, [*python, file, given, found, maps], environment)
    if not np.allclose(np.load(found), expected, rtol=1e-4, atol=1e-5):
        raise SystemExit("model: the file's output on aarch64 is not x86's: run make aarch64")
    return a72_cycles.cost_by_group(blocks, places(maps.read_text(), library))


def distinct_codes(plugin: Path, driver: Path, found: dict[str, Cost], batch: int = 8) -> dict[str, Cost]:
    """The layers of DISTINCT where no two codes are equal, one row each; the others as in the file."""
    costs = {}
    for group, cost in found.items():
        if group not in DISTINCT:
            costs[group] = cost
            continue
        for case, layers in DISTINCT[group].items():
            blocks = a72_cycles.profile(plugin, [driver, case, "2"], {"BGNN_ISA": "neon"})
            (once,) = a72_cycles.cost_by_group(blocks, lambda block: "").values()
            costs[f"{case} x {layers}"] = total = Cost()
            total.add(once, layers * batch)
    return costs


def print_costs(console: Console, title: str, costs: dict[str, Cost]) -> Cost:
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for heading in ("M instructions", "MODELLED ms", "with memory"):
        table.add_column(heading, justify="right")
    total = Cost()
    for name, cost in costs.items():
        table.add_row(name, f"{cost.instructions / 1e6:.1f}", f"{cost.low_ms:.1f}", f"{cost.high_ms:.1f}")
        total.add(cost)
    table.add_section()
    table.add_row("all", f"{total.instructions / 1e6:.1f}", f"{total.low_ms:.0f}", f"{total.high_ms:.0f}")
    console.print(table)
    return total


def print_beside_paper(console: Console, costs: dict[str, Cost]) -> None:
    table = Table(title="beside the paper's profile of 2200 ms (Table 6)", title_justify="left")
    for heading in ("what", "the paper's operators", "paper, measured ms", "here, MODELLED ms"):
        table.add_column(heading, justify="right" if "ms" in heading else "left")
    halves: dict[bool, Cost] = defaultdict(Cost)
    for name, cost in costs.items():
        halves[name.startswith("k-NN")].add(cost)
    everything = Cost()
    rows = (("k-NN: distances and selection", KNN_OPS, halves[True]), ("all else", OTHER_OPS, halves[False]))
    for name, operators, cost in rows:
        everything.add(cost)
        table.add_row(name, ", ".join(operators), f"{sum(operators.values()):.0f}", spread(cost))
    table.add_section()
    table.add_row("all", "", f"{sum((KNN_OPS | OTHER_OPS).values()):.0f}", spread(everything))
    console.print(table)


def spread(cost: Cost) -> str:
    return f"{cost.low_ms:.0f}-{cost.high_ms:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="model_a72", description=__doc__.partition("\n")[0])
    for name in ("plugin", "driver", "library", "cache", "folder"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=120 if not sys.stdout.isatty() else None)
    found = run_file(options.plugin, options.library, options.cache, options.folder)
    costs = {group: found[group] for group in GROUPS if group in found}
    title = "BF2 (Hamming), bgnn kernels, batch 8, 1024 points, k = 20, one Cortex-A72 core at 1.5 GHz: MODELLED"
    as_is = print_costs(console, title, costs)
    print_beside_paper(console, costs)
    distinct = distinct_codes(options.plugin, options.driver, costs)
    worst = print_costs(console, "the same where all codes differ, so that nothing is skipped: MODELLED", distinct)
    print("How the times are MODELLED (runtime_bench/toolchain/aarch64/a72_cycles.py):")
    print((a72_cycles.__doc__ or "").partition("What is assumed:\n\n")[2] or a72_cycles.__doc__)
    for name, cost in (("as it is", as_is), ("all codes different", worst)):
        met = "PASS " if cost.high_ms <= AIM_MS else "SHORT"
        print(f"{met}  MODELLED Cortex-A72 ms, batch 8, one core, {name}: {spread(cost)} (aim: at most {AIM_MS})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
