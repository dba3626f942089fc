"""LCE's four operators in stock LiteRT with our delegate, bit for bit against Larq Compute Engine's own interpreter."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import tflite_files
from tflite_files import Node, Tensor, const, feed, file, lce, one_op, packed, random_signs, run

from bgnn.runtime_bench.runtime import delegate
from bgnn.runtime_bench.runtime.errors import BgnnError

try:
    lce(one_op("LceQuantize", [Tensor((1, 1))], Tensor((1, 1), np.int32)), np.ones((1, 1), np.float32))
except BgnnError as error:
    pytest.skip(f"the reference is missing: {error}", allow_module_level=True)

SAME, VALID = 0, 1


def rng_of(*case: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(case).encode()))


def check(data: bytes, *arrays: np.ndarray, kernel: str = "reference") -> list[np.ndarray]:
    """Runs the file on both, with one thread and two, twice each; the outputs must have the same bits."""
    expected = lce(data, *arrays, kernel=kernel)
    tflite_files.build()
    for threads in (1, 2):
        interpreter = delegate.load_interpreter(data, threads)
        for _ in range(2):
            for ours, theirs in zip(feed(interpreter, arrays), expected, strict=True):
                assert ours.dtype == theirs.dtype
                assert ours.shape == theirs.shape
                assert ours.tobytes() == theirs.tobytes()
    return expected


def conv_file(
    rng: np.random.Generator,
    *,
    image: tuple[int, int, int],
    channels: int,
    out_channels: int,
    out: str = "float",
    filter_size: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    padding: int = VALID,
    pad_values: int = 0,
    activation: int = 0,
    groups: int = 1,
) -> bytes:
    """An LceBconv2d of random weights; multipliers are positive, negative and zero."""
    words = -(-channels // 32)
    length = filter_size[0] * filter_size[1] * channels // groups
    weights = packed(random_signs(rng, out_channels, *filter_size, channels // groups))
    shape = (image[0], 1, 1, out_channels)  # of the output; both runtimes infer it
    if out == "bits":
        thresholds = rng.integers(length // 2 - 8, length // 2 + 9, out_channels).astype(np.int32)
        thresholds[::5], thresholds[3::7] = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        extra = [None, None, const(thresholds)]
        result = Tensor((*shape[:3], -(-out_channels // 32)), np.int32)
    else:
        multiplier = rng.normal(size=out_channels).astype(np.float32)
        multiplier[::6] = 0
        extra = [const(multiplier), const(rng.normal(size=out_channels).astype(np.float32)), None]
        result = Tensor(shape)
        if out == "int8":
            result = Tensor(shape, np.int8, scale=0.37, zero_point=-9)
    options = {
        "channels_in": channels,
        "dilation_height_factor": dilation[0],
        "dilation_width_factor": dilation[1],
        "fused_activation_function": activation,
        "pad_values": pad_values,
        "padding": padding,
        "stride_height": stride[0],
        "stride_width": stride[1],
    }
    return one_op("LceBconv2d", [Tensor((*image, words), np.int32), const(weights), *extra], result, options)


def image_of(rng: np.random.Generator, image: tuple[int, int, int], channels: int) -> np.ndarray:
    return packed(random_signs(rng, *image, channels))


@pytest.mark.parametrize("channels", [6, 40, 64, 128, 2048])
@pytest.mark.parametrize("out_channels", [1, 31, 32, 33, 100, 512])
@pytest.mark.parametrize("out", ["float", "bits", "int8"])
def test_dense_convolution(channels: int, out_channels: int, out: str) -> None:
    rng, image = rng_of(channels, out_channels, out), (2, 3, 5)
    data = conv_file(rng, image=image, channels=channels, out_channels=out_channels, out=out)
    check(data, image_of(rng, image, channels))


@pytest.mark.parametrize("kernel", ["default", "indirect"])
@pytest.mark.parametrize("out", ["float", "bits", "int8"])
def test_every_kernel_of_lce_agrees(kernel: str, out: str) -> None:
    rng, image = rng_of(kernel, out), (2, 7, 6)
    data = conv_file(rng, image=image, channels=96, out_channels=40, out=out, filter_size=(3, 2))
    check(data, image_of(rng, image, 96), kernel=kernel)


@pytest.mark.parametrize("activation", [0, 1, 2, 3])
@pytest.mark.parametrize("out", ["float", "int8"])
@pytest.mark.parametrize("channels", [1, 6, 64])
def test_fused_activations(activation: int, out: str, channels: int) -> None:
    rng, image = rng_of(activation, out), (1, 4, 4)
    data = conv_file(
        rng, image=image, channels=channels, out_channels=37, out=out, filter_size=(2, 2), activation=activation
    )
    check(data, image_of(rng, image, channels))


@pytest.mark.parametrize(
    ("size", "filter_size", "stride", "dilation"),
    [
        ((5, 5), (3, 3), (1, 1), (1, 1)),
        ((6, 9), (3, 2), (2, 1), (1, 1)),
        ((7, 8), (1, 4), (3, 2), (1, 1)),
        ((9, 9), (3, 3), (1, 1), (2, 3)),
        ((10, 7), (2, 3), (2, 2), (3, 1)),
        ((2, 2), (5, 5), (1, 1), (1, 1)),
    ],
)
@pytest.mark.parametrize("padding", [(SAME, 0), (SAME, 1), (VALID, 0)])
@pytest.mark.parametrize("out", ["float", "bits", "int8"])
@pytest.mark.parametrize("channels", [6, 64])
def test_windows(size, filter_size, stride, dilation, padding, out, channels) -> None:
    if out == "bits" and padding == (SAME, 0):
        pytest.skip("LCE crashes: it looks for the multiplier that packed output does not have")
    if padding[0] == VALID and filter_size > size:
        pytest.skip("no output")
    rng, image = rng_of(size, filter_size, padding, out), (2, *size)
    data = conv_file(
        rng,
        image=image,
        channels=channels,
        out_channels=35,
        out=out,
        filter_size=filter_size,
        stride=stride,
        dilation=dilation,
        padding=padding[0],
        pad_values=padding[1],
    )
    check(data, image_of(rng, image, channels))


@pytest.mark.parametrize("out", ["float", "bits"])
@pytest.mark.parametrize(("channels", "groups"), [(64, 2), (192, 3), (256, 8)])
def test_groups(channels: int, groups: int, out: str) -> None:
    rng, image = rng_of(channels, groups, out), (1, 4, 3)
    data = conv_file(
        rng, image=image, channels=channels, out_channels=8 * groups, out=out, filter_size=(2, 2), groups=groups
    )
    check(data, image_of(rng, image, channels))


# No denormals: LCE's interpreter flushes them to zero, PyTorch and we do not.
FLOATS = np.array([0.0, -0.0, 2e-38, -2e-38, np.inf, -np.inf, np.nan, -1.0, 1.0], np.float32)


@pytest.mark.parametrize("shape", [(1,), (37,), (2, 64), (3, 4, 6), (1, 2, 3, 128), (2, 2, 2, 2, 33)])
def test_quantize_floats(shape: tuple[int, ...]) -> None:
    x = rng_of(shape).choice(FLOATS, shape)
    check(one_op("LceQuantize", [Tensor(shape)], Tensor((*shape[:-1], -(-shape[-1] // 32)), np.int32)), x)


@pytest.mark.parametrize("threads", [1, 4])
def test_denormals_have_a_sign(threads: int) -> None:
    x = np.tile(np.array([[1e-45, -1e-45, -1e-39, 0.0]], np.float32), (64, 8))
    (ours,) = run(one_op("LceQuantize", [Tensor(x.shape)], Tensor((64, 1), np.int32)), x, threads=threads)
    assert np.array_equal(ours, packed(x))


@pytest.mark.parametrize("zero_point", [-128, -3, 0, 127])
def test_quantize_int8(zero_point: int) -> None:
    x = rng_of(zero_point).integers(-128, 128, (3, 70)).astype(np.int8)
    source = Tensor((3, 70), np.int8, scale=0.1, zero_point=zero_point)
    check(one_op("LceQuantize", [source], Tensor((3, 3), np.int32)), x)


def test_quantize_bool() -> None:
    x = rng_of().integers(0, 2, (3, 70)).astype(bool)
    check(one_op("LceQuantize", [Tensor((3, 70), np.bool_)], Tensor((3, 3), np.int32)), x)


@pytest.mark.parametrize("shape", [(1,), (37,), (2, 64), (3, 4, 6), (1, 2, 3, 128), (2, 2, 2, 2, 33)])
@pytest.mark.parametrize(
    "out",
    [Tensor(()), Tensor((), np.bool_), Tensor((), np.int8, scale=0.5), Tensor((), np.int8, scale=0.003, zero_point=5)],
)
def test_dequantize(shape: tuple[int, ...], out: Tensor) -> None:
    words = packed(random_signs(rng_of(shape), *shape))
    result = Tensor(shape, out.dtype, scale=out.scale, zero_point=out.zero_point)
    check(one_op("LceDequantize", [Tensor(words.shape, np.int32)], result), words)


@pytest.mark.parametrize("padding", [SAME, VALID])
@pytest.mark.parametrize(
    ("size", "filter_size", "stride"),
    [((4, 4), (2, 2), (2, 2)), ((7, 5), (3, 2), (2, 1)), ((1, 20), (1, 20), (1, 1)), ((5, 9), (1, 1), (3, 4))],
)
@pytest.mark.parametrize("words", [1, 2, 5])
def test_max_pool(padding, size, filter_size, stride, words) -> None:
    x = rng_of(size, words).integers(-(2**31), 2**31, (2, *size, words)).astype(np.int32)
    options = {
        "padding": padding,
        "stride_width": stride[1],
        "stride_height": stride[0],
        "filter_width": filter_size[1],
        "filter_height": filter_size[0],
    }
    check(one_op("LceBMaxPool2d", [Tensor(x.shape, np.int32)], Tensor((2, 1, 1, words), np.int32), options), x)


def test_a_chain_of_operators() -> None:
    """Quantize, convolve to bits, pool, convolve to floats: the tensors between our nodes have memory of their own."""
    rng = rng_of()
    conv = {
        "channels_in": 40, "dilation_height_factor": 1, "dilation_width_factor": 1, "fused_activation_function": 0,
        "pad_values": 1, "padding": SAME, "stride_height": 1, "stride_width": 1,
    }  # fmt: skip
    pool = {"padding": VALID, "stride_width": 2, "stride_height": 2, "filter_width": 2, "filter_height": 2}
    tensors = [
        Tensor((1, 8, 8, 40)),
        Tensor((1, 8, 8, 2), np.int32),
        const(packed(random_signs(rng, 70, 3, 3, 40))),
        const(rng.integers(170, 190, 70).astype(np.int32)),
        Tensor((1, 8, 8, 3), np.int32),
        Tensor((1, 4, 4, 3), np.int32),
        const(packed(random_signs(rng, 9, 3, 3, 70))),
        const(rng.normal(size=9).astype(np.float32)),
        const(rng.normal(size=9).astype(np.float32)),
        Tensor((1, 4, 4, 9)),
    ]
    nodes = [
        Node("LceQuantize", [0], [1]),
        Node("LceBconv2d", [1, 2, -1, -1, 3], [4], conv),
        Node("LceBMaxPool2d", [4], [5], pool),
        Node("LceBconv2d", [5, 6, 7, 8, -1], [9], conv | {"channels_in": 70}),
    ]
    data = file(tensors, nodes, [0], [9])
    check(data, rng.normal(size=(1, 8, 8, 40)).astype(np.float32))


def test_resizing() -> None:
    """A resized file gives what a file of that size gives, larger and smaller, before and after a run."""
    sizes = [(2, 5, 5), (1, 9, 4), (3, 2, 2), (2, 5, 5)]
    data = [conv_file(rng_of("w"), image=size, channels=40, out_channels=33, filter_size=(2, 2)) for size in sizes]
    tflite_files.build()
    interpreter = delegate.load_interpreter(data[0], 2)
    for size, other in zip(sizes, data, strict=True):
        x = image_of(rng_of(size), size, 40)
        (ours,) = feed(interpreter, [x])
        (theirs,) = lce(other, x)
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


def test_resizing_a_dequantize_keeps_its_channels() -> None:
    words = packed(random_signs(rng_of(), 5, 3, 37))
    data = one_op("LceDequantize", [Tensor((1, 3, 2), np.int32)], Tensor((1, 3, 37)))
    (ours,) = run(data, words)
    assert ours.shape == (5, 3, 37)
    assert np.array_equal(packed(ours.astype(np.int8)), words)
