"""Every kernel: the portable one against plain references, every instruction set against the portable one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime_bench.kernels import references
from tests.runtime_bench.kernels.cases import CASES, Arguments, cases, fresh, guards_are_whole

from bgnn.converter import dialect
from bgnn.runtime_bench.kernels import library
from bgnn.runtime_bench.runtime.errors import UsageError

RUNNABLE = {kernels.isa: kernels for kernels in library.runnable()}
PORTABLE = RUNNABLE["portable"]
FAST = [isa for isa in RUNNABLE if isa != "portable"]


def outputs_of(name: str) -> list[str]:
    return [field.name for field in PORTABLE.fields[name] if field.kind == "out"]


def computed(isa: str, name: str, arguments: Arguments, threads: int = 1) -> dict[str, np.ndarray]:
    arguments = fresh(arguments, outputs_of(name))
    RUNNABLE[isa].call(name, **arguments).run(threads)
    found = {out: arguments[out] for out in outputs_of(name) if arguments[out] is not None}
    assert all(guards_are_whole(array) for array in found.values()), "wrote outside its output"
    return found


def assert_same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], label: str) -> None:
    assert found.keys() == wanted.keys()
    for out, array in found.items():
        other = wanted[out]
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        same = np.array_equal(array.view(np.uint8), np.ascontiguousarray(other).view(np.uint8))
        assert same, f"{label}: {out} differs at {np.argwhere(array != other)[:5].tolist()}"


def test_every_kernel_of_the_list_has_cases_and_a_reference() -> None:
    assert list(PORTABLE.fields) == list(CASES)
    assert all(hasattr(references, name) for name in CASES)


@pytest.mark.parametrize("name", CASES)
def test_portable_equals_the_reference(name: str) -> None:
    for label, arguments in cases(name):
        assert_same_bits(computed("portable", name, arguments), getattr(references, name)(arguments), label)


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_equals_portable(name: str, isa: str) -> None:
    for label, arguments in cases(name):
        assert_same_bits(computed(isa, name, arguments), computed("portable", name, arguments), label)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("name", CASES)
def test_threads_do_not_change_a_bit(name: str, isa: str) -> None:
    for label, arguments in list(cases(name))[::7]:
        one = computed(isa, name, arguments)
        assert_same_bits(computed(isa, name, arguments, threads=3), one, label)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("name", CASES)
def test_items_in_any_order_and_cut(name: str, isa: str) -> None:
    """Each item alone, last first: blocks inside a kernel must not reach over its range."""
    for label, arguments in list(cases(name))[::13]:
        whole = computed(isa, name, arguments)
        single = fresh(arguments, outputs_of(name))
        call = RUNNABLE[isa].call(name, **single)
        for item in reversed(range(call.begin())):
            call.run_items(item, item + 1)
        assert_same_bits({out: single[out] for out in whole}, whole, label)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("name", ["xor_edge_conv", "gather_max", "bin_edge_conv"])
@pytest.mark.parametrize("bad", [-1, -(2**31), 2**31 - 1, "nodes"])
def test_a_bad_neighbour_is_an_error(name: str, isa: str, bad: int | str) -> None:
    for _, arguments in list(cases(name))[:10]:
        neighbours = arguments["neighbours"].copy()
        neighbours.reshape(-1)[-1] = arguments["nodes"] if bad == "nodes" else bad
        call = RUNNABLE[isa].call(name, **{**arguments, "neighbours": neighbours})
        with pytest.raises(UsageError, match="neighbour index"):
            call.begin()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 200), st.data())
def test_hamming_knn_anywhere(seed: int, nodes: int, channels: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, nodes))
    density = data.draw(st.sampled_from([0.0, 0.02, 0.5]))
    packed = references.pack_bits(rng.random((2, nodes, channels)) < density)
    arguments = {
        "x": packed,
        "neighbours": np.zeros((2, nodes, k), np.int32),
        "batch": 2,
        "nodes": nodes,
        "words": packed.shape[-1],
        "k": k,
    }
    wanted = references.hamming_knn(arguments)
    for isa in RUNNABLE:
        RUNNABLE[isa].call("hamming_knn", **arguments).run()
        assert_same_bits({"neighbours": arguments["neighbours"]}, wanted, isa)


def sampled(name: str) -> list[tuple[str, Arguments]]:
    return list(cases(name))[::5]


def test_hamming_knn_is_the_dialects() -> None:
    for label, a in sampled("hamming_knn"):
        x = dialect.unpack(torch.from_numpy(a["x"]), a["words"] * 32)
        found = dialect.knn(x, a["k"], "hamming").to(torch.int32).numpy()
        assert_same_bits(computed("portable", "hamming_knn", a), {"neighbours": found}, label)


def test_dense_layers_are_the_dialects() -> None:
    for label, a in sampled("bconv2d"):
        if a["filter_height"] * a["filter_width"] * a["groups"] > 1 or a["stride_height"] > 1:
            continue
        x, weights = torch.from_numpy(a["x"]), torch.from_numpy(a["weights"]).reshape(a["out_channels"], -1)
        if a["out_bits"] is not None:
            wanted = dialect.bconv_bits(x, weights, a["channels"], torch.from_numpy(a["thresholds"]))
            assert_same_bits(computed("portable", "bconv2d", a), {"out_bits": wanted.numpy()}, label)
        else:
            # As integers: LCE's order of rounding, which the dialect follows, is applied by the delegate.
            one, zero = np.ones_like(a["multiplier"]), np.zeros_like(a["bias"])
            a = {**a, "clamp_min": -(2**31), "clamp_max": 2**31 - 1, "multiplier": one, "bias": zero}
            wanted = dialect.bconv(x, weights, a["channels"], torch.from_numpy(one), torch.from_numpy(zero))
            assert_same_bits(computed("portable", "bconv2d", a), {"out": wanted.numpy()}, label)


def test_xor_edge_conv_is_the_dialects_ops_in_a_row() -> None:
    for label, a in sampled("xor_edge_conv"):
        x, weights = torch.from_numpy(a["x"]), torch.from_numpy(a["weights"])
        other = dialect.gather_nodes(x, torch.from_numpy(a["neighbours"]))
        own = x.unsqueeze(2).expand_as(other)
        channels = 2 * a["words"] * 32  # padding bits agree, so they add nothing to a popcount
        pairs = dialect.unpack(torch.cat([own, own ^ other], dim=-1), channels)
        sign = dialect.dot_threshold(pairs, dialect.unpack(weights, channels), torch.from_numpy(a["thresholds"]))
        wanted = dialect.packed_max(dialect.pack(sign), 2)
        assert_same_bits(computed("portable", "xor_edge_conv", a), {"out": wanted.numpy()}, label)


def test_packing_is_the_dialects() -> None:
    for label, a in cases("quantize"):
        assert_same_bits(
            computed("portable", "quantize", a), {"out": dialect.pack(torch.from_numpy(a["x"])).numpy()}, label
        )
    for label, a in cases("dequantize"):
        wanted = dialect.unpack(torch.from_numpy(a["x"]), a["channels"]).numpy()
        assert_same_bits(computed("portable", "dequantize", a), {"out": wanted}, label)


def test_the_environment_names_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in RUNNABLE:
        monkeypatch.setenv("BGNN_ISA", isa)
        assert library.Kernels().isa == isa
    monkeypatch.setenv("BGNN_ISA", "mmx")
    with pytest.raises(UsageError, match="instruction set"):
        library.Kernels()
    monkeypatch.delenv("BGNN_ISA")
    assert library.Kernels().isa == list(RUNNABLE)[-1]


def test_wrong_arguments_are_named() -> None:
    _, arguments = next(cases("quantize"))
    with pytest.raises(UsageError, match="quantize: wants"):
        PORTABLE.call("quantize", x=arguments["x"])
    with pytest.raises(UsageError, match="x must be a dense float32"):
        PORTABLE.call("quantize", **{**arguments, "x": arguments["x"].astype(np.float64)})


def test_the_library_needs_nothing_but_libc() -> None:
    needed = [line for line in _readelf(library.build()) if "NEEDED" in line]
    assert needed
    assert all("libc.so" in line for line in needed), needed


def _readelf(path: Path) -> list[str]:
    return subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout.split("\n")
