"""The packed ops: bit-equal with the dialect's references, for every kernel of LCE."""

from __future__ import annotations

import pytest
import torch

from bgnn.converter.dialect import pack as packed
from bgnn.converter.dialect import packed_words
from bgnn.converter.errors import ConversionError
from bgnn.runtime_bench.runtime.tflite_runner import run_file

aten, bgnn = torch.ops.aten, torch.ops.bgnn

SHAPES = [(5,), (3, 37), (1, 32), (3, 4, 64), (1, 4, 5, 6), (3, 2, 5, 100), (2, 1, 3, 2, 33)]


def words(*shape: int) -> torch.Tensor:
    """Random packed words, padding included."""
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).int()


@pytest.mark.parametrize("shape", SHAPES)
def test_pack(check, shape):
    x = torch.randn(shape)
    x.view(-1)[::3] = 0.0
    x.view(-1)[1::5] = -0.0
    check(lambda m, x: bgnn.pack(x), x)


def test_pack_of_integers(check):
    check(lambda m, x: bgnn.pack(x), torch.randint(-2, 3, (4, 37), dtype=torch.int32))


@pytest.mark.parametrize("shape", SHAPES)
def test_unpack(check, shape):
    p = words(*shape[:-1], packed_words(shape[-1]))
    check(lambda m, p: bgnn.unpack(p, shape[-1]), p, tolerance=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("out_channels", [1, 31, 64, 70])
def test_bconv(check, shape, out_channels):
    channels = shape[-1]
    check(
        lambda m, x: bgnn.bconv(x, m.weight, channels, m.multiplier, m.bias),
        packed(torch.randn(shape)),
        tolerance=0,
        weight=packed(torch.randn(out_channels, channels)),
        multiplier=torch.randn(out_channels),
        bias=torch.randn(out_channels),
    )


@pytest.mark.parametrize("channels", [7, 100, 513])
def test_bconv_arithmetic(graph, emitted, channels):
    """The float output to the last bit: popcount * (-2 multiplier) + (bias + channels * multiplier)."""
    x, weight = packed(torch.randn(60, channels)), packed(torch.randn(33, channels))
    multiplier, bias = torch.randn(33) * 3, torch.randn(33) * 10
    gm = graph(
        lambda m, x: bgnn.bconv(x, m.weight, channels, m.multiplier, m.bias),
        [x],
        weight=weight,
        multiplier=multiplier,
        bias=bias,
    )
    popcount = (channels - bgnn.bconv(x, weight, channels, torch.ones(33), torch.zeros(33))) / 2
    offset = (bias.double() + channels * multiplier.double()).float()  # one rounding
    expected = popcount * (-2 * multiplier) + offset
    (found,) = run_file(emitted(gm), [x.numpy()])
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_bconv_gives_exact_integers(check, shape):
    channels = shape[-1]
    check(
        lambda m, x: bgnn.bconv(x, m.weight, channels, m.one, m.zero),
        packed(torch.randn(shape)),
        tolerance=0,
        weight=packed(torch.randn(40, channels)),
        one=torch.ones(40),
        zero=torch.zeros(40),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("out_channels", [1, 31, 64, 70])
def test_bconv_bits(check, shape, out_channels):
    channels = shape[-1]
    threshold = torch.randint(-1, channels + 2, (out_channels,), dtype=torch.int32)
    threshold[0] = -(2**31)  # always -1
    threshold[-1] = 2**31 - 1  # always +1
    check(
        lambda m, x: bgnn.bconv_bits(x, m.weight, channels, m.threshold),
        packed(torch.randn(shape)),
        weight=packed(torch.randn(out_channels, channels)),
        threshold=threshold,
    )


def test_bconv_refuses_a_weight_that_changes(graph, emitted):
    gm = graph(
        lambda m, x, w: bgnn.bconv(x, w, 32, m.one, m.zero),
        [words(4, 1), words(3, 1)],
        one=torch.ones(3),
        zero=torch.zeros(3),
    )
    with pytest.raises(ConversionError, match=r"bgnn\.bconv.*constant"):
        emitted(gm)


@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((5, 2), 0),
        ((3, 5, 2), 1),
        ((3, 5, 2), -2),
        ((5, 3, 2), 0),
        ((2, 3, 5, 2), 2),
        ((2, 5, 3, 1), 1),
        ((5, 2, 3, 1), 0),
        ((2, 3, 1, 2), 2),
        ((2, 1, 3, 5, 2), 3),
    ],
)
def test_packed_max(check, shape, dim):
    check(lambda m, x: bgnn.packed_max(x, dim), words(*shape) | words(*shape))


@pytest.mark.parametrize(
    ("left", "right"), [((3, 37), (3, 37)), ((2, 3, 4), (2, 1, 4)), ((5,), (5,)), ((2, 3, 4, 1), (1,))]
)
def test_bitwise_and(check, left, right):
    check(lambda m, x, y: aten.bitwise_and.Tensor(x, y), words(*left), words(*right))


def test_bitwise_and_of_booleans(check):
    check(
        lambda m, x, y: aten.bitwise_and.Tensor(aten.gt.Scalar(x, 0.0), aten.lt.Scalar(y, 0.5)),
        torch.randn(3, 4),
        torch.randn(3, 4),
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("channels", "out_channels"), [(32, 64), (64, 33)])
def test_a_packed_edge_convolution(check, batch, channels, out_channels):
    """Gather, XOR, concat, binary layer, maximum: nothing leaves the packed domain."""
    nodes, k, count = 11, 4, packed_words(channels)

    def edge_conv(m, x, index):
        neighbours = bgnn.gather_nodes(x, index)
        node = aten.expand.default(aten.unsqueeze.default(x, 2), [batch, nodes, k, count])
        edges = aten.cat.default([node, aten.bitwise_xor.Tensor(neighbours, node)], 3)
        return bgnn.packed_max(bgnn.bconv_bits(edges, m.weight, 2 * channels, m.threshold), 2)

    check(
        edge_conv,
        packed(torch.randn(batch, nodes, channels)),
        torch.randint(0, nodes, (batch, nodes, k)),
        weight=packed(torch.randn(out_channels, 2 * channels)),
        threshold=torch.randint(0, 2 * channels, (out_channels,), dtype=torch.int32),
    )
