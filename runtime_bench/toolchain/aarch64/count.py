"""Executed instructions of one call of each kernel by each instruction set: `count.py DRIVER PLUGIN [--record]`.

Counted under qemu: exact and repeatable, unlike time under an emulator. Compares with counts.json beside this file and
fails where a kernel needs over 5% more instructions than were recorded; `--record` writes the file instead.
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    now = count(options.driver, options.plugin)
    if options.record:
        RECORD.write_text(json.dumps(now, indent=2) + "\n")
        print(f"count: recorded {len(now)} kernels in {RECORD}")
        return 0
    recorded = json.loads(RECORD.read_text())
    for name, number in now.items():
        change = f"{number / recorded[name] - 1:+.1%}" if name in recorded else "new"
        print(f"{name:36} {number:>12,}  {change}")
    lines = grown(now, recorded)
    for line in lines:
        print(f"count: {line}", file=sys.stderr)
    if lines:
        print("count: if that is meant: make -C runtime_bench/toolchain/aarch64 record", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
