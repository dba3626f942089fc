"""Cycles that a program needs on a Cortex-A72: MODELLED from what it executes under qemu, not measured.

profile_plugin.c gives the blocks of code that ran and how often; `llvm-mca -mcpu=cortex-a72` (LLVM 14) gives each
block's cycles. What is assumed:

- Blocks. llvm-mca runs a block again and again, all data in the first-level cache, and gives the steady state: right
  for loops, and for anything else as if the code before and after overlapped as well. A block's result counts as the
  input of its next run, so some dependencies are counted that are none. Blocks that nearly always (90%) follow each
  other are taken as one. LLVM has the Cortex-A57's table of latencies and pipes for the A72, which is slower in places.
- Branches. A gshare predictor of 4096 two-bit counters with 12 outcomes of history; the A72's is larger. A
  mispredicted one costs 15 cycles (the A72's pipeline). Calls, returns and indirect jumps are taken as predicted.
- Memory. First level 32 KiB, 2 ways; second level 1 MiB, 16 ways, all of it for this one core; lines of 64 bytes; the
  least recently used goes. A line from the second level costs 17 cycles on top, one from memory 200. A line next to
  one of the last 16 that missed was asked for by the prefetcher: it costs its transfer only, 6 cycles from the second
  level (about 10 bytes a cycle), 24 from memory (4 GB/s). Nothing of it overlaps with computing. Not modelled: the
  TLBs, the instruction cache, taken branches' bubbles, interrupts.

So a time is given as a range: computing and mispredicted branches; and that with all of the memory's cycles on top.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

GHZ = 1.5
MISPREDICTED = 15
FROM_L2, FROM_L2_STREAMED = 17, 6
FROM_MEMORY, FROM_MEMORY_STREAMED = 200, 24
ITERATIONS = 100
ALWAYS = 0.9
QEMU = ("qemu-aarch64", "-cpu", "cortex-a72")


@dataclass(frozen=True)
class Block:
    """A stretch of code up to a branch: its address, its words, how often it ran, and what that cost beside cycles."""

    address: int
    code: tuple[int, ...]
    runs: int
    mispredicted: int
    memory_cycles: int
    followers: dict[int, int]
    """Number of a block that ran right after this one -> how often."""


@dataclass
class Cost:
    """Instructions, cycles of computing (mispredicted branches among them) and cycles of waiting for memory."""

    instructions: int = 0
    compute: float = 0
    memory: float = 0

    def add(self, other: Cost, times: int = 1) -> None:
        self.instructions += times * other.instructions
        self.compute += times * other.compute
        self.memory += times * other.memory

    @property
    def low_ms(self) -> float:
        """Without memory."""
        return self.compute / (GHZ * 1e6)

    @property
    def high_ms(self) -> float:
        """With all of it."""
        return (self.compute + self.memory) / (GHZ * 1e6)


def profile(plugin: Path, command: Sequence[str | Path], environment: dict[str, str]) -> dict[int, Block]:
    """The blocks that `command` runs between its two calls of getpriority, by number. Raises SystemExit where it fails.

    `command`: what follows qemu's own options.
    """
    return parse(executed(str(plugin), command, environment))


def sections(plugin: Path, command: Sequence[str | Path], environment: dict[str, str]) -> list[dict[int, Block]]:
    """`profile`, cut where `command` looks at CLOCK_MONOTONIC, as our delegate does around each operator."""
    text = executed(f"{plugin},sections=on", command, environment)
    return [parse(part) for part in re.split(r"^section$", text, flags=re.MULTILINE)]


def executed(plugin: str, command: Sequence[str | Path], environment: dict[str, str]) -> str:
    """What the plugin writes about `command`. Raises SystemExit where that fails."""
    done = subprocess.run(
        [*QEMU, "-plugin", plugin, *map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode != 0 or not re.search("^block ", done.stderr, re.MULTILINE):
        said = "\n".join(
            line for line in done.stderr.splitlines() if not line.startswith(("block ", "edge ", "section"))
        )
        raise SystemExit(f"model: {' '.join(map(str, command))} gave no profile; is qemu-aarch64 7.2? {said}")
    return done.stderr


def parse(text: str) -> dict[int, Block]:
    """profile_plugin.c's lines as blocks; other lines are passed over."""
    followers: dict[int, dict[int, int]] = defaultdict(dict)
    blocks = {}
    for line in text.splitlines():
        kind, *words = line.split(" ")
        if kind == "edge":
            before, after, runs = map(int, words)
            followers[before][after] = runs
        elif kind == "block":
            number, runs, mispredicted, l2, l2_streamed, memory, memory_streamed = map(int, [words[0], *words[2:8]])
            code = tuple(int(words[8][i : i + 8], 16) for i in range(0, len(words[8]), 8))
            waited = (
                (l2 - memory) * FROM_L2
                + memory * FROM_MEMORY
                # what the prefetcher had asked for; a line from memory that is next to a missed one was asked for there
                - max(l2_streamed - memory_streamed, 0) * (FROM_L2 - FROM_L2_STREAMED)
                - memory_streamed * (FROM_MEMORY - FROM_MEMORY_STREAMED)
            )
            blocks[number] = Block(int(words[1], 16), code, runs, mispredicted, waited, followers[number])
    return blocks


def chains(blocks: dict[int, Block], group: Callable[[Block], str]) -> list[list[int]]:
    """The blocks' numbers, those in one list that nearly always follow each other and are of one group."""
    following = {}
    for number, block in blocks.items():
        after, runs = max(block.followers.items(), key=lambda item: item[1], default=(number, 0))
        if after == number or after not in blocks or group(blocks[after]) != group(block):
            continue
        if runs >= ALWAYS * max(block.runs, blocks[after].runs):
            following[number] = after
    found, placed = [], set()
    inner = set(following.values())
    # First those that start at a block which follows none; what is left are loops, open anywhere.
    for start in [*(n for n in blocks if n not in inner), *blocks]:
        chain: list[int] = []
        at: int | None = start
        while at is not None and at not in placed:
            placed.add(at)
            chain.append(at)
            at = following.get(at)
        if chain:
            found.append(chain)
    return found


def disassemble(words: Sequence[int]) -> dict[int, str]:
    """The instructions' texts, by their code. A call or an indirect jump stands as a plain branch, which is what
    llvm-mca can price. Raises SystemExit for a word that is no instruction of the A72."""
    distinct = sorted(set(words))
    text = "\n".join(" ".join(f"0x{byte:02x}" for byte in word.to_bytes(4, "little")) for word in distinct)
    command = ["llvm-mc-14", "--disassemble", "-triple=aarch64", "-mcpu=cortex-a72"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip() and not line.strip().startswith(".text")]
    if len(lines) != len(distinct):
        raise SystemExit(f"model: llvm-mc does not know all instructions: {done.stderr.strip()}")
    branch = re.compile(r"(bl|blr|br|ret)\b.*")
    return {word: branch.sub("b #4", line) for word, line in zip(distinct, lines, strict=True)}


def steady_cycles(sequences: Sequence[Sequence[str]]) -> list[float]:
    """llvm-mca's cycles for one of many runs of each sequence of instructions."""
    regions = [
        "\n".join([f"# LLVM-MCA-BEGIN {number}", *lines, "# LLVM-MCA-END"]) for number, lines in enumerate(sequences)
    ]
    command = ["llvm-mca-14", "-march=aarch64", "-mcpu=cortex-a72", f"-iterations={ITERATIONS}", "-json"]
    done = subprocess.run(
        [*command, "-all-views=0", "-summary-view"],
        input="\n".join(regions) + "\n",
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"model: llvm-mca failed: {done.stderr.strip()}")
    found = {
        int(region["Name"]): region["SummaryView"]["TotalCycles"] / ITERATIONS
        for region in json.loads(done.stdout)["CodeRegions"]
        if region["Name"]
    }
    return [found[number] for number in range(len(sequences))]


def cost_by_group(blocks: dict[int, Block], group: Callable[[Block], str]) -> dict[str, Cost]:
    """What the blocks of each group cost together."""
    text = disassemble([word for block in blocks.values() for word in block.code])
    lists = chains(blocks, group)
    cycles = steady_cycles([[text[word] for number in chain for word in blocks[number].code] for chain in lists])
    costs: dict[str, Cost] = defaultdict(Cost)
    for chain, each in zip(lists, cycles, strict=True):
        members = [blocks[number] for number in chain]
        runs = max(block.runs for block in members)
        costs[group(members[0])].add(
            Cost(
                sum(block.runs * len(block.code) for block in members),
                runs * each + MISPREDICTED * sum(block.mispredicted for block in members),
                sum(block.memory_cycles for block in members),
            )
        )
    return dict(costs)
