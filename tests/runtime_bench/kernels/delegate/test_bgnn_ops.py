"""The project's own operators in stock LiteRT with our delegate, against NumPy, bit for bit."""

from __future__ import annotations

import ctypes
import os
import signal

import numpy as np
import pytest
import tflite_files
from bgnn_files import OPS, Case, hamming_far, hamming_knn, xor_edge_conv
from tflite_files import feed

from bgnn.runtime_bench.runtime import delegate

ISAS = ["portable", "avx2", "avx512", "neon"]
SIZES = [(1, 20, 3), (2, 33, 32), (3, 64, 65), (1, 200, 128), (2, 21, 512)]


def isa() -> str | None:
    """The kernels that a new delegate would use; None where BGNN_ISA names none of this machine."""
    tflite_files.build()
    library = ctypes.CDLL(str(delegate.library_path()))
    library.bgnn_delegate_isa.restype = ctypes.c_char_p
    name = library.bgnn_delegate_isa()
    return name.decode() if name else None


def check(case: Case, threads: int) -> None:
    tflite_files.build()
    interpreter = delegate.load_interpreter(case.file(), threads)
    for _ in range(2):
        (out,) = feed(interpreter, case.arrays())
        assert out.dtype == case.expected.dtype
        assert out.shape == case.expected.shape
        assert out.tobytes() == case.expected.tobytes()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("batch", "nodes", "channels"), SIZES)
@pytest.mark.parametrize("op", OPS)
def test_operator(op: str, batch: int, nodes: int, channels: int, threads: int) -> None:
    check(OPS[op](np.random.default_rng(nodes), batch=batch, nodes=nodes, channels=channels), threads)


@pytest.mark.parametrize("chosen", ISAS)
@pytest.mark.parametrize("op", OPS)
def test_every_instruction_set(op: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGNN_ISA", chosen)
    # ctypes and the delegate read the C environment, which os.environ writes through to.
    if isa() is None:
        pytest.skip(f"no {chosen} here")
    assert isa() == chosen
    check(OPS[op](np.random.default_rng(1)), 2)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("batch", "nodes", "channels"), SIZES)
def test_the_farthest_instead_of_the_nearest(batch: int, nodes: int, channels: int, threads: int) -> None:
    check(hamming_far(np.random.default_rng(nodes), batch=batch, nodes=nodes, channels=channels), threads)


@pytest.mark.parametrize("tables", [1, 2, 3, 4])
def test_threshold_tables(tables: int) -> None:
    check(xor_edge_conv(np.random.default_rng(tables), tables=tables), 1)


SCALED = ("BgnnBinEdgeConv", "BgnnEdgeMax", "BgnnScaledPool")


@pytest.mark.parametrize("op", SCALED)
def test_one_factor_for_all(op: str) -> None:
    check(OPS[op](np.random.default_rng(0), scalars=True), 1)


@pytest.mark.parametrize("op", OPS)
def test_resizing(op: str) -> None:
    """The batch and the number of points change between runs, to more and to fewer."""
    # beta [N] would fix the number of nodes: one factor for all does not.
    more = {"scalars": True} if op in SCALED else {}
    first = OPS[op](np.random.default_rng(9), **more)
    tflite_files.build()
    interpreter = delegate.load_interpreter(first.file(), 2)
    for batch, nodes in [(2, 30), (1, 12), (4, 90), (2, 30)]:
        case = OPS[op](np.random.default_rng(9), batch=batch, nodes=nodes, **more)
        # The weights are the file's: take the first case's, and the reference's answer for them.
        if case.inputs[case.fed :]:
            case = rebuilt(op, case, first)
        (out,) = feed(interpreter, case.arrays())
        assert out.shape == case.expected.shape
        assert out.tobytes() == case.expected.tobytes()


def rebuilt(op: str, case: Case, weights_of: Case) -> Case:
    """`case` with the constants of another case: a fresh file, run at its own size, says what is right."""
    case.inputs[case.fed :] = weights_of.inputs[weights_of.fed :]
    (case.expected,) = tflite_files.run(case.file(), *case.arrays())
    return case


@pytest.mark.parametrize("index", [-1, 30, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("op", ["BgnnXorEdgeConv", "BgnnGatherMax", "BgnnBinEdgeConv", "BgnnEdgeMax"])
def test_a_neighbour_outside_the_graph_is_refused(op: str, index: int) -> None:
    case = OPS[op](np.random.default_rng(0), nodes=30)
    position = 2 if op in SCALED else 1
    case.inputs[position][-1, -1, -1] = index
    tflite_files.build()
    interpreter = delegate.load_interpreter(case.file(), 2)
    with pytest.raises(RuntimeError, match=f"{op} .operator 0 of the file.: a neighbour's index"):
        feed(interpreter, case.arrays())
    case.inputs[position][-1, -1, -1] = 29  # and the interpreter still works
    feed(interpreter, case.arrays())


def test_two_interpreters_share_nothing() -> None:
    cases = [hamming_knn(np.random.default_rng(seed), nodes=50 + seed) for seed in range(3)]
    tflite_files.build()
    interpreters = [delegate.load_interpreter(case.file(), 2) for case in cases]
    for _ in range(2):
        for case, interpreter in zip(cases, interpreters, strict=True):
            (out,) = feed(interpreter, case.arrays())
            assert np.array_equal(out, case.expected)
    del interpreters[0]
    (out,) = feed(interpreters[0], cases[1].arrays())
    assert np.array_equal(out, cases[1].expected)


def test_a_forked_child_starts_threads_of_its_own() -> None:
    """A child has the parent's memory, but not its threads: the pool must not wait for them."""
    tflite_files.build()
    case = hamming_knn(np.random.default_rng(0), nodes=200)
    interpreter = delegate.load_interpreter(case.file(), 2)
    feed(interpreter, case.arrays())
    child = os.fork()
    if child == 0:  # nothing of pytest may run in it
        signal.alarm(20)
        same = False
        try:
            (out,) = feed(interpreter, case.arrays())
            same = bool(np.array_equal(out, case.expected))
        finally:
            os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    (out,) = feed(interpreter, case.arrays())
    assert np.array_equal(out, case.expected)
