"""Files that are wrong, by mistake or on purpose: an error that names the operator and the reason, never a crash."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tflite_files
from bgnn_files import OPS
from flatbuffers import flexbuffers
from tflite_files import Node, Tensor, const, feed, file, flex, one_op

from bgnn.runtime_bench.runtime import delegate
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

I32, F32 = np.int32, np.float32


@pytest.fixture(autouse=True)
def library() -> None:
    tflite_files.build()


def refused(data: bytes, op: str, reason: str) -> None:
    with pytest.raises(BgnnError, match=re.escape(op) + r" \(operator \d+ of the file\): .*" + reason):
        delegate.load_interpreter(data)


def words(*shape: int) -> Tensor:
    return const(np.zeros(shape, I32))


def floats(*shape: int) -> Tensor:
    return const(np.ones(shape, F32))


def words_for_numbers() -> bytes:
    """A k-NN's options with "largest" a string."""
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Int("channels", 40)
        builder.Int("k", 4)
        builder.String("largest", "yes")
    return bytes(builder.Finish())


def knn(options: Any, shape: tuple[int, ...] = (1, 20, 2), dtype: Any = I32, out: Any = I32) -> bytes:
    return one_op("BgnnHammingKnn", [Tensor(shape, dtype)], Tensor((1, 20, 4), out), options)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: knn(b""), "not a flexbuffer map"),
        (lambda: knn(b"\x00"), "not a flexbuffer map"),
        (lambda: knn(b"\xff" * 100), "not a flexbuffer map"),
        (lambda: knn(flex({"channels": 40, "k": 4})[:-1]), "not a flexbuffer map"),
        (lambda: knn({"channels": 40}), "its options have no k"),
        (lambda: knn({"k": 4}), "its options have no channels"),
        (lambda: knn({"channels": 40, "k": 4, "largest": 2}), "largest is neither 0 nor 1"),
        (lambda: knn(words_for_numbers()), "option largest is of another type"),
        (lambda: knn({"channels": 40, "k": 0}), r"k = 0 is outside of \[1, 20 nodes\]"),
        (lambda: knn({"channels": 40, "k": 21}), r"k = 21 is outside of \[1, 20 nodes\]"),
        (lambda: knn({"channels": 40, "k": -(2**63)}), "k = -9223372036854775808"),
        (lambda: knn({"channels": 65, "k": 4}), "dimension 2 of x is 2, but .* is 3"),
        (lambda: knn({"channels": 32, "k": 4}), "dimension 2 of x is 2, but .* is 1"),
        (lambda: knn({"channels": 0, "k": 4}), r"channels is outside of \[1, 65535\]"),
        (lambda: knn({"channels": 2**62, "k": 4}), r"channels is outside of \[1, 65535\]"),
        (lambda: knn({"channels": 40, "k": 4}, (20, 2)), "x has rank 2, not 3"),
        (lambda: knn({"channels": 40, "k": 4}, dtype=F32), "x must be int32"),
        (lambda: knn({"channels": 40, "k": 4}, out=F32), "output 0 must be int32"),
        (lambda: knn({"channels": 40, "k": 4}, (0, 20, 2)), "x is empty"),
        (lambda: knn({"channels": 65535, "k": 4}, (2**14, 20, 2048)), "x is larger than 2 GiB"),
        (lambda: knn({"channels": 32, "k": 2**15}, (2**13, 2**15, 1)), r"its output has 2\^29 elements or more"),
    ],
)
def test_hamming_knn(data: Callable[[], bytes], reason: str) -> None:
    refused(data(), "BgnnHammingKnn", reason)


@pytest.mark.parametrize("op", OPS)
def test_every_input_is_checked(op: str) -> None:
    """One dimension, the rank or the type of one input changes: refused, unless the sizes still agree."""
    case = OPS[op](np.random.default_rng(0))
    for position, array in enumerate(case.inputs):
        variants = [array[None], array.reshape(-1, *array.shape[2:]) if array.ndim > 1 else array[:, None]]
        variants.append(array.astype(F32 if array.dtype == I32 else I32))
        for axis in range(array.ndim):
            variants.append(np.concatenate([array, array], axis))
        for number, variant in enumerate(variants):
            changed = OPS[op](np.random.default_rng(0))
            changed.inputs[position] = np.ascontiguousarray(variant)
            outcome = load_and_run(changed.file(), changed.arrays())
            if outcome is None:
                assert number >= 3, f"input {position} with another rank or type is accepted"
            else:
                assert f"{op} (operator 0 of the file): " in outcome


def load_and_run(data: bytes, arrays: list[np.ndarray]) -> str | None:
    """The error of loading or running a file; None where there is none."""
    try:
        feed(delegate.load_interpreter(data), arrays)
    except (BgnnError, RuntimeError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("op", [*OPS, "LceQuantize", "LceDequantize", "LceBconv2d", "LceBMaxPool2d"])
def test_wrong_numbers_of_tensors(op: str) -> None:
    tensors = [Tensor((1, 4, 4, 2), I32), Tensor((1, 4, 4, 2), I32), Tensor((1, 4, 4, 2), I32)]
    refused(file(tensors, [Node(op, [0] * 11, [1])], [0], [1]), op, "inputs?, the file gives 11")
    refused(file(tensors, [Node(op, [], [1])], [0], [1]), op, "is missing")
    count = {"LceBconv2d": 5, "BgnnXorEdgeConv": 4, "BgnnBinEdgeConv": 10, "BgnnGatherMax": 2, "BgnnDensePool": 2}
    count |= {"BgnnEdgeMax": 5, "BgnnScaledPool": 3}
    inputs = [0] * count.get(op, 1)
    refused(file(tensors, [Node(op, inputs, [1, 2])], [0], [1]), op, "it has 1 output, the file says 2")


def test_operators_out_of_order() -> None:
    """Older runtimes crash where a delegate's operator reads what it, or a later one, writes."""
    same = file([Tensor((1, 4))], [Node("LceQuantize", [0], [0])], [0], [0])
    with pytest.raises(BgnnError, match="operator 0 of the file reads tensor 0, which operator 0 writes later"):
        delegate.load_interpreter(same)
    tensors = [Tensor((1, 4), I32), Tensor((1, 4), I32)]
    pool = [Node("LceQuantize", [0], [1]), Node("LceQuantize", [1], [0])]
    with pytest.raises(BgnnError, match="operator 0 of the file reads tensor 0, which operator 1 writes later"):
        delegate.load_interpreter(file(tensors, pool, [], [1]))


CONV = {
    "channels_in": 40,
    "dilation_height_factor": 1,
    "dilation_width_factor": 1,
    "fused_activation_function": 0,
    "pad_values": 0,
    "padding": 1,
    "stride_height": 1,
    "stride_width": 1,
}


def conv(
    image: tuple[int, ...] = (1, 5, 5, 2),
    weights: Tensor | None = None,
    extra: tuple[Tensor | None, ...] = (),
    out: Tensor | None = None,
    **options: int,
) -> bytes:
    weights = weights or words(8, 3, 3, 2)
    inputs = [Tensor(image, I32), weights, *(extra or (floats(8), floats(8), None))]
    return one_op("LceBconv2d", inputs, out or Tensor((1, 3, 3, 8)), CONV | options)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        *((lambda key=key, value=value: conv(**{key: value}), f"{key} = {value} is outside")
          for key in CONV if key != "channels_in" for value in (-1, 2**31, 2**63 - 1)),
        (lambda: conv(stride_height=0), "stride_height = 0"),
        (lambda: conv(dilation_width_factor=0), "dilation_width_factor = 0"),
        (lambda: conv(fused_activation_function=4), "fused_activation_function = 4"),
        (lambda: conv(pad_values=2), "pad_values = 2"),
        (lambda: conv(channels_in=65), "dimension 3 of x is 2, but .* is 3"),
        (lambda: conv((1, 2, 5, 2)), "covers 3 pixels of height, the image has 2"),
        (lambda: conv(dilation_width_factor=3), "covers 7 pixels of width, the image has 5"),
        (lambda: conv(weights=words(8, 3, 3, 1)), "does not fit 40 input channels"),
        (lambda: conv(weights=words(8, 3, 3, 3)), "does not fit 40 input channels"),
        (lambda: conv((1, 5, 5, 4), words(9, 3, 3, 2), channels_in=128), "does not fit 128 input channels"),
        (lambda: conv(extra=(None, None, None)), "the multiplier is missing"),
        (lambda: conv(extra=(floats(8), None, None)), "the bias is missing"),
        (lambda: conv(extra=(floats(7), floats(8), None)), "dimension 0 of the multiplier is 7"),
        (lambda: conv(extra=(floats(8), floats(8, 1), None)), "the bias must be a vector of float32"),
        (lambda: conv(extra=(words(8), floats(8), None)), "the multiplier must be a vector of float32"),
        (lambda: conv(out=Tensor((1, 3, 3, 1), I32)), "the threshold is missing"),
        (lambda: conv(extra=(None, None, words(9)), out=Tensor((1, 3, 3, 1), I32)), "dimension 0 of the threshold"),
        (lambda: conv(extra=(None, None, floats(8)), out=Tensor((1, 3, 3, 1), I32)), "a vector of int32"),
        (lambda: conv(out=Tensor((1, 3, 3, 8), np.bool_)), "must be float32, int8 or int32, the file says bool"),
        (lambda: conv(out=Tensor((1, 3, 3, 8), np.int8)), "no usable scale"),
        (
            lambda: conv(channels_in=39, padding=0, extra=(None, None, words(8)), out=Tensor((1, 5, 5, 1), I32)),
            "an even number of channels, got 39",
        ),
        (lambda: conv((2**10, 2**10, 2**8, 2)), "x is larger than 2 GiB"),
    ],
)  # fmt: skip
def test_bconv2d(data: Callable[[], bytes], reason: str) -> None:
    refused(data(), "LceBconv2d", reason)


POOL = {"padding": 1, "stride_width": 1, "stride_height": 1, "filter_width": 1, "filter_height": 1}


@pytest.mark.parametrize("key", POOL)
@pytest.mark.parametrize("value", [-1, 2**16, 2**40])
def test_max_pool(key: str, value: int) -> None:
    data = one_op("LceBMaxPool2d", [Tensor((1, 4, 4, 2), I32)], Tensor((1, 4, 4, 2), I32), POOL | {key: value})
    refused(data, "LceBMaxPool2d", f"{key} = {value} is outside")


def test_dequantize_needs_the_channels() -> None:
    source = Tensor((1, 3, 2), I32)
    refused(
        one_op("LceDequantize", [source], Tensor((1, 3, 65))), "LceDequantize", "dimension 2 of x is 2, but .* is 3"
    )
    refused(one_op("LceDequantize", [source], Tensor((3, 40))), "LceDequantize", "its output has rank 2, its input 3")
    refused(one_op("LceDequantize", [source], Tensor((1, 3, 40), I32)), "LceDequantize", "float32, int8 or bool")
    refused(one_op("LceDequantize", [source], Tensor((1, 3, 40), np.int8)), "LceDequantize", "no usable scale")


def test_an_output_that_is_a_constant_is_not_written() -> None:
    data = file([Tensor((1, 40)), words(1, 2)], [Node("LceQuantize", [0], [1])], [0], [1])
    refused(data, "LceQuantize", "output 0 is a constant of the file")


@pytest.mark.parametrize(
    ("name", "x", "out"),
    [("LceQuantize", (1, 40), Tensor((1, 2), I32, variable=True)), ("BgnnDegree", (9,), Tensor((8,), variable=True))],
)
def test_an_output_that_is_a_variable_is_not_written(name: str, x: tuple[int, ...], out: Tensor) -> None:
    """It keeps the memory that it has for the file's shapes: after resized inputs, too little."""
    dtype = I32 if name == "BgnnDegree" else F32
    refused(one_op(name, [Tensor(x, dtype)], out), name, "output 0 is a variable of the file")


def test_two_operators_that_write_one_tensor() -> None:
    """The second one's shape wins; the first must not write its own, larger one."""
    tensors = [Tensor((1, 4000)), Tensor((1, 20)), Tensor((1, 125), I32)]
    nodes = [Node("LceQuantize", [0], [2]), Node("LceQuantize", [1], [2])]
    outcome = load_and_run(file(tensors, nodes, [0, 1], [2]), [np.ones((1, 4000), F32), np.ones((1, 20), F32)])
    assert outcome is None or "output 0 has another shape" in outcome


def test_an_input_that_nobody_writes() -> None:
    data = file([Tensor((1, 40)), Tensor((1, 2), I32)], [Node("LceQuantize", [0], [1])], [], [1])
    with pytest.raises((BgnnError, RuntimeError), match=r"lacks data|has no memory"):
        delegate.load_interpreter(data).invoke()


def test_resizing_to_what_does_not_fit() -> None:
    interpreter = delegate.load_interpreter(knn({"channels": 40, "k": 20}))
    interpreter.resize_tensor_input(0, (1, 19, 2))
    with pytest.raises(RuntimeError, match=r"k = 20 is outside of \[1, 19 nodes\]"):
        interpreter.allocate_tensors()
    interpreter.resize_tensor_input(0, (1, 20, 3))
    with pytest.raises(RuntimeError, match="dimension 2 of x is 3"):
        interpreter.allocate_tensors()
    interpreter.resize_tensor_input(0, (1, 25, 2))
    interpreter.allocate_tensors()
    (out,) = feed(interpreter, [np.zeros((1, 25, 2), I32)])
    assert np.array_equal(out, np.tile(np.arange(20), (1, 25, 1)))


def test_other_custom_operators_stay_unresolved() -> None:
    data = one_op("SomebodyElses", [Tensor((1, 4))], Tensor((1, 4)))
    with pytest.raises(BgnnError, match="SomebodyElses"):
        delegate.load_interpreter(data)


def test_what_is_no_file(tmp_path) -> None:
    with pytest.raises(BgnnError, match="not a TFLite file"):
        delegate.load_interpreter(b"no flatbuffer at all")
    with pytest.raises(UsageError, match=r"cannot read .*: No such file"):
        delegate.load_interpreter(tmp_path / "missing.tflite")
    with pytest.raises(UsageError, match="num_threads = 0"):
        delegate.load_interpreter(knn({"channels": 40, "k": 4}), 0)


def test_the_library_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("BGNN_DELEGATE", str(tmp_path / "libbgnn_delegate.so"))
    with pytest.raises(BgnnError, match=r"BGNN_DELEGATE=.* is not a file"):
        delegate.library_path()
    monkeypatch.delenv("BGNN_DELEGATE")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(BgnnError, match=r"on riscv64, .*: build it with `make kernels`"):
        delegate.library_path()


def test_an_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGNN_ISA", "mmx")
    with pytest.raises(BgnnError, match="BGNN_ISA=mmx names no instruction set of this machine"):
        delegate.load_delegate()
