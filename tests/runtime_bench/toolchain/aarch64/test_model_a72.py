"""The Cortex-A72's model: reading profiles, joining blocks, pricing them with llvm-mca, and what belongs to what."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import bgnn.runtime_bench

AARCH64 = Path(bgnn.runtime_bench.__file__).resolve().parent / "toolchain" / "aarch64"
ADD, MUL, LOOP, RET = 0x8B010000, 0x9B017C00, 0x54FFFFE1, 0xD65F03C0  # add x0, x0, x1; mul; b.ne; ret
needs_llvm = pytest.mark.skipif(
    not (shutil.which("llvm-mca-14") and shutil.which("llvm-mc-14")), reason="llvm-14: make a72 fetches its own"
)


@pytest.fixture(autouse=True)
def folder_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(AARCH64))


def cycles() -> ModuleType:
    return importlib.import_module("a72_cycles")


def model() -> ModuleType:
    return importlib.import_module("model_a72")


PROFILE = f"""INFO: something else
edge 0 1 100
edge 1 1 900
edge 1 2 100
edge 9 0 100
block 0 1000 100 0 0 0 0 0 {ADD:08x}{ADD:08x}
block 1 1008 1000 7 5 2 3 1 {MUL:08x}{LOOP:08x}
block 2 1010 100 0 0 0 0 0 {RET:08x}
"""


def test_profile_is_read() -> None:
    blocks = cycles().parse(PROFILE)
    assert list(blocks) == [0, 1, 2]
    assert (blocks[1].address, blocks[1].runs, blocks[1].mispredicted) == (0x1008, 1000, 7)
    assert blocks[1].code == (MUL, LOOP)
    assert blocks[1].followers == {1: 900, 2: 100}
    # 2 lines from the second level, 1 of them streamed; 3 from memory, 1 of them streamed
    assert blocks[1].memory_cycles == 17 + 6 + 2 * 200 + 24


def test_blocks_that_follow_each_other_are_one() -> None:
    block = cycles().Block
    straight = {
        n: block(n, (ADD,), runs, 0, 0, followers)
        for n, runs, followers in [(0, 100, {1: 100}), (1, 100, {2: 95, 3: 5}), (2, 95, {3: 95}), (3, 300, {0: 99})]
    }
    assert cycles().chains(straight, lambda _: "all") == [[0, 1, 2], [3]]
    assert cycles().chains(straight, lambda b: "odd" if b.address == 1 else "even") == [[0], [1], [2], [3]]
    loop = {0: block(0, (ADD,), 50, 0, 0, {1: 50}), 1: block(1, (LOOP,), 50, 0, 0, {0: 49})}
    assert sorted(cycles().chains(loop, lambda _: "all")[0]) == [0, 1]


@needs_llvm
def test_cycles_of_known_blocks() -> None:
    """A chain of additions takes a cycle each, one of 64-bit products five (the table of the A57), a wide block's
    independent vector operations two a cycle."""
    found = cycles().steady_cycles(
        [
            ["add x0, x0, x1"] * 6,
            ["mul x0, x0, x1"] * 2,
            [f"eor v{n}.16b, v30.16b, v31.16b" for n in range(8)],
        ]
    )
    assert found == pytest.approx([6, 10, 4], abs=0.3)


@needs_llvm
def test_cost_adds_up() -> None:
    costs = cycles().cost_by_group(cycles().parse(PROFILE), lambda block: "loop" if block.code[0] == MUL else "rest")
    assert costs["loop"].instructions == 2000
    assert costs["loop"].memory == 447
    assert costs["loop"].compute == pytest.approx(1000 * 5 + 7 * 15, rel=0.02)  # a product waits for the last one
    assert costs["loop"].high_ms == pytest.approx((costs["loop"].compute + 447) / 1.5e6)
    assert costs["rest"].instructions == 300


@needs_llvm
def test_unknown_instructions_are_an_error() -> None:
    with pytest.raises(SystemExit, match="does not know all instructions"):
        cycles().disassemble([ADD, 0xFFFFFFFF])


def test_papers_profile_is_whole() -> None:
    assert model().KNN_OPS.keys() == model().OF_KNN, "each is one of the table"
    assert sum((model().KNN_OPS | model().OTHER_OPS).values()) == pytest.approx(2200, abs=1)


@pytest.mark.parametrize(
    ("function", "group"),
    [
        ("(anonymous namespace)::points_run(void const*, void const*, void*, long, long)", "k-NN of points"),
        ("knn_begin(void const*, void*)", "k-NN of points"),
        ("(anonymous namespace)::codes_run(void const*, void const*, void*, long, long)", "k-NN of codes"),
        ("hamming_knn_begin(void const*, void*)", "k-NN of codes"),
        ("void (anonymous namespace)::edge_items<2l, false>(BgnnXorEdgeConv const&, long)", "edge convolutions 2-4"),
        ("pool_run(Pool*, int, long, void (*)(void*, int, long, long), void*)", "convolution 5 and pooling"),
        ("op_prepare(TfLiteContext*, TfLiteNode*)", "delegate"),
    ],
)
def test_functions_have_groups(function: str, group: str) -> None:
    assert model().of_function(function) == group


def test_a_function_without_a_group_is_an_error() -> None:
    with pytest.raises(SystemExit, match="brand_new_run"):
        model().of_function("brand_new_run(void const*)")


def test_every_kernel_has_a_group() -> None:
    header = (AARCH64.parents[1] / "kernels" / "kernels.h").read_text()
    kernels = re.findall(r"KERNEL\((\w+), Bgnn", header)
    assert kernels
    for kernel in kernels:
        for part in ("begin", "run", "shared_bytes", "scratch_bytes"):
            model().of_function(f"{kernel}_{part}(void const*)")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("qemu-aarch64")), reason="gcc and qemu-user are needed")
def test_plugin_counts_a_loop(tmp_path: Path) -> None:
    """A program of known length between two calls of getpriority: x8 = 141 and svc, around a loop of 1000 rounds."""
    source = tmp_path / "loop.s"
    source.write_text(
        ".globl _start\n_start: mov x8, #141\nsvc #0\nmov x0, #1000\n"
        "1: ldr x1, [sp]\nsubs x0, x0, #1\nb.ne 1b\nmov x8, #141\nsvc #0\nmov x8, #93\nmov x0, #0\nsvc #0\n"
    )
    cache = AARCH64.parents[2] / ".cache" / "zig"
    if not (cache / "ziglang").is_dir():
        pytest.skip("ziglang is needed: make wheels")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-nostdlib", "-static"]
    subprocess.run(
        [*zig, "-o", tmp_path / "loop", source], check=True, env={"PYTHONPATH": str(cache), "HOME": str(tmp_path)}
    )
    plugin = tmp_path / "profile_plugin.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", plugin, AARCH64 / "profile_plugin.c"], check=True)
    blocks = cycles().profile(plugin, [tmp_path / "loop"], {})
    loops = [block for block in blocks.values() if len(block.code) == 3]
    assert sum(block.runs for block in loops) == 999  # the first round is of the block before
    assert 1 <= sum(block.mispredicted for block in blocks.values()) <= 20
    assert sum(len(block.code) * block.runs for block in blocks.values()) == pytest.approx(3000, abs=10)
    # A look at CLOCK_MONOTONIC (x8 = 113, x0 = 1) ends a section; one at another clock does not.
    looks = "".join(f"mov x8, #113\nmov x0, #{clock}\nsub x1, sp, #64\nsvc #0\n" for clock in (0, 1))
    loop = "mov x0, #{0}\n{1}: subs x0, x0, #1\nb.ne {1}b\n"
    mark = "mov x8, #141\nsvc #0\n"
    text = loop.format(100, 1) + looks + loop.format(1000, 2) + looks + loop.format(10, 3)
    source.write_text(f".globl _start\n_start: {mark}{text}{mark}mov x8, #93\nmov x0, #0\nsvc #0\n")
    subprocess.run(
        [*zig, "-o", tmp_path / "loop", source], check=True, env={"PYTHONPATH": str(cache), "HOME": str(tmp_path)}
    )
    parts = cycles().sections(plugin, [tmp_path / "loop"], {})
    counts = [sum(len(block.code) * block.runs for block in part.values()) for part in parts]
    assert counts == [pytest.approx(n, abs=15) for n in (200, 2000, 20)]
