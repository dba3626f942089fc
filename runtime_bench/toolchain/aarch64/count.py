"""Executed instructions of one call of each kernel by each instruction set, and of whole files.

    count.py DRIVER PLUGIN QPYTHON FILES [--record]

Counted under qemu: exact and repeatable, unlike time under an emulator. Compares with counts.json beside this file and
fails where a kernel or a file needs over 5% more instructions than were recorded; `--record` writes the file instead.
FILES: the folder with what make_graphs.py wrote; they give x86's bits, or it ends with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

RECORD = Path(__file__).with_name("counts.json")
LIMIT = 1.05
# By instruction set: a processor whose best it is. `portable` is what the compiler makes of the C++.
PROCESSORS = {"portable": "cortex-a72", "neon": "cortex-a72", "dotprod": "cortex-a76", "i8mm": "max"}
# What has kernels of its own for them; the others are NEON's.
GAIN_BY_PRODUCTS = "q_linear_"


def counted(name: str, isa: str) -> bool:
    return isa in {"portable", "neon"} or name.startswith(GAIN_BY_PRODUCTS)


def instructions(driver: Path, plugin: Path, isa: str, case: str) -> int:
    """Instructions of one call of a kernel, when all that is done once has been done."""
    command = ["qemu-aarch64", "-cpu", PROCESSORS[isa], "-E", f"BGNN_ISA={isa}", "-plugin", str(plugin)]
    done = subprocess.run([*command, str(driver), case, "1"], capture_output=True, text=True, check=True)
    found = re.search(r"^instructions (\d+)$", done.stderr, re.MULTILINE)
    if found is None:
        raise SystemExit(f"count: qemu-aarch64 gave no count; is it 7.2, with plugins? {done.stderr.strip()}")
    return int(found[1])


def count(driver: Path, plugin: Path) -> dict[str, int]:
    """Instructions of one call by "kernel and sizes, instruction set"."""
    names = subprocess.run(["qemu-aarch64", str(driver)], capture_output=True, text=True, check=True).stdout.split()
    return {
        f"{name} {isa}": instructions(driver, plugin, isa, name)
        for isa in PROCESSORS
        for name in names
        if counted(name, isa)
    }


# Graph networks: ours, on bags of words and without a zero, and the same network in float, which does the same work on
# both; the float files on one processor.
OURS = {"gcn_int8": "gcn_float", "gat_int8": "gat_float", "gin_int8": "gin_float", "sage_binary": "sage_float"}
FILES = OURS | {f"{ours}_no_zeros": theirs for ours, theirs in OURS.items()}
FLOAT_ON = "cortex-a72"


def file_names(cpu: str) -> list[str]:
    """Which files are counted on a processor."""
    return [*FILES, *(OURS.values() if cpu == FLOAT_ON else ())]


def count_files(qpython: Path, plugin: Path, folder: Path) -> dict[str, int]:
    """Instructions of one call by "file, processor": whatever kernels that processor chooses."""
    counts: dict[str, int] = {}
    for cpu in dict.fromkeys(PROCESSORS.values()):
        names = file_names(cpu)
        command = [str(qpython), str(Path(__file__).with_name("run_files.py"))]
        files = [str(folder / f"graph_{name}.npz") for name in names]
        told = os.environ | {"QEMU_CPU": cpu, "QEMU_PLUGIN": str(plugin)}
        done = subprocess.run([*command, *files], capture_output=True, text=True, env=told)
        found = re.findall(r"^instructions (\d+)$", done.stderr, re.MULTILINE)
        if done.returncode or len(found) != len(names):
            raise SystemExit(f"count: the files do not run on {cpu}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        counts |= {f"{name} {cpu}": int(number) for name, number in zip(names, found, strict=True)}
    return counts


def grown(now: dict[str, int], recorded: dict[str, int]) -> list[str]:
    """One line per kernel that needs over 5% more than recorded, or is recorded but gone, or new and not recorded."""
    lines = [
        f"{name}: {now[name]:,} instructions, {now[name] / before - 1:+.1%} against the recorded {before:,}"
        for name, before in recorded.items()
        if name in now and now[name] > LIMIT * before
    ]
    lines += [f"{name}: recorded, but not counted any more" for name in recorded if name not in now]
    return lines + [f"{name}: counted, but not recorded" for name in now if name not in recorded]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("driver", type=Path)
    parser.add_argument("plugin", type=Path)
    parser.add_argument("qpython", type=Path)
    parser.add_argument("files", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    now = count(options.driver, options.plugin) | count_files(options.qpython, options.plugin, options.files)
    if options.record:
        RECORD.write_text(json.dumps(now, indent=2) + "\n")
        print(f"count: recorded {len(now)} counts in {RECORD}")
        return 0
    recorded = json.loads(RECORD.read_text())
    for name, number in now.items():
        change = f"{number / recorded[name] - 1:+.1%}" if name in recorded else "new"
        print(f"{name:36} {number:>12,}  {change}")
    for ours, theirs in FILES.items():
        print(f"{ours}: {now[f'{ours} {FLOAT_ON}'] / now[f'{theirs} {FLOAT_ON}']:.2f} of {theirs}'s on {FLOAT_ON}")
    lines = grown(now, recorded)
    for line in lines:
        print(f"count: {line}", file=sys.stderr)
    if lines:
        print("count: if that is meant: make -C runtime_bench/toolchain/aarch64 record", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
