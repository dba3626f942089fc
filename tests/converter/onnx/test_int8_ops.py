"""The integer ops on ONNX Runtime: codes equal those of the dialect's reference, every one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_graphs import FORMS, check, file_of, open_graph, random_edges, run

from bgnn.converter.onnx.inspect import operators
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

bgnn = torch.ops.bgnn
ALL_CODES = torch.arange(256, dtype=torch.uint8)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_weights(outputs: int = 16, inputs: int = 8) -> dict[str, torch.Tensor]:
    return {
        "w": torch.randint(-128, 128, (outputs, inputs), generator=generator(), dtype=torch.int8),
        "s": torch.rand(outputs, generator=generator()) * 0.02 + 0.001,
        "b": torch.randint(-3000, 3000, (outputs,), generator=generator(), dtype=torch.int32),
        "f": torch.randn(outputs, generator=generator()),
    }


def codes_of(x: torch.Tensor) -> torch.Tensor:
    return bgnn.quantize(x, 0.0231, 121, 0, 255)


def same_on(function, *inputs: torch.Tensor, **constants: torch.Tensor) -> None:
    """The file and the function agree, number by number."""
    gm = open_graph(function, *inputs, **constants)
    found = run(OnnxModel(file_of(gm)), *inputs)[0]
    module = type("", (), constants)
    np.testing.assert_array_equal(found, function(module, *inputs).numpy())


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 15), (100, 200), (121, 255)])
@pytest.mark.parametrize("scale", [0.1, 0.0231, 1 / 3])
def test_quantize_and_back(scale, low, high):
    x = torch.cat([torch.randn(500) * 20, (torch.arange(-300, 300) + 0.5) * scale, torch.tensor([1e30, -1e30])])
    same_on(lambda m, x: bgnn.quantize(x, scale, 121, low, high), x)
    same_on(lambda m, x: bgnn.dequantize(bgnn.quantize(x, scale, 121, low, high), scale, 121), x)


def test_fake_quantisers():
    x = torch.randn(1000) * 5
    same_on(lambda m, x: bgnn.fake_quant(x, 0.0331, 3, -128, 127), x)


def test_fake_quantiser_of_channels():
    def function(m, x):
        return bgnn.fake_quant_channel(x, m.s, m.z, 1, -8, 7)

    same_on(function, torch.randn(30, 4), s=torch.rand(4) + 0.01, z=torch.tensor([0.0, 1, -3, 2]))


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (13, 255), (0, 15)])
def test_requantize_every_code(slope, low, high):
    same_on(lambda m, x: bgnn.requantize(x, 0.071, 97, slope, 0.0503, 13, low, high), ALL_CODES)


@pytest.mark.parametrize("channels", [1, 16])
def test_tables_of_codes(channels):
    table = torch.randint(0, 256, (channels, 256), generator=generator(), dtype=torch.uint8)
    x = torch.randint(0, 256, (40, 16), generator=generator(2), dtype=torch.uint8)
    same_on(lambda m, x: bgnn.q_table(x, m.t), x, t=table)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (13, 255), (0, 15)])
def test_requantize_channels(slope, low, high, rank):
    """As a depthwise layer, unless negative numbers have a slope of their own; every code on every channel."""
    x = ALL_CODES.reshape(-1, *[1] * (rank - 1)).expand(256, *[3] * (rank - 2), 24).contiguous()

    def function(m, x):
        return bgnn.requantize(x, 0.071, 97, slope, 0.0503, 13, low, high)

    same_on(function, x)
    used = operators(file_of(open_graph(function, x)))
    assert ("QLinearLeakyRelu" in used) == (slope == 0.2 and low < 13)


@pytest.mark.parametrize("channels", [8, 16, 40])
def test_tables_that_are_lines(channels):
    bias = torch.randn(channels, generator=generator())
    real = bgnn.dequantize(ALL_CODES, 0.03, 120)[None] + bias[:, None]
    table = bgnn.quantize(real, 0.041, 97, 97, 255)
    x = ALL_CODES[:, None].expand(256, channels).contiguous()
    same_on(lambda m, x: bgnn.q_table(x, m.t), x, t=table)
    used = operators(file_of(open_graph(lambda m, x: bgnn.q_table(x, m.t), x, t=table)))
    assert "QLinearConv" in used
    assert "Gather" not in used


SCALES = [(0.0737, 0.037, 0.0141), (0.1013, 0.0707, 0.0829), (0.04, 0.0523, 0.3128)]
A, B = ALL_CODES.repeat_interleave(256), ALL_CODES.repeat(256)  # all pairs


@pytest.mark.parametrize("s", SCALES)
def test_products_of_codes(s):
    same_on(lambda m, a, b: bgnn.q_mul(a, s[0], 19, b, s[1], 4, s[2], 44, 0, 255), A, B)
    same_on(lambda m, a, b: bgnn.q_mul(a, s[0], 19, b, s[1], 4, s[2], 44, 50, 60), A, B)


@pytest.mark.parametrize("zero", [128, 127, 3])
def test_products_that_are_ties(zero):
    """Scales of a GCN on Citeseer: 1 / 186, so that 93, 31 and their multiples make halves."""
    s = (0.024501295760273933, 0.003921568859368563, 0.01787153258919716)
    same_on(lambda m, a, b: bgnn.q_mul(a, s[0], 128, b, s[1], 0, s[2], zero, 0, 255), A, B)
    same_on(lambda m, a, b: bgnn.q_mul(a, 0.5, 128, b, 1.0, 0, 1.0, zero, 5, 250), A, B)


@pytest.mark.parametrize("s", SCALES)
def test_sums_of_two_codes(s):
    """ONNX Runtime multiplies by the scales' quotients and rounds ties up: seldom one step away."""

    def function(m, a, b):
        return bgnn.q_add(a, s[0], 19, b, s[1], 4, s[2], 44, 0, 255)

    found = run(OnnxModel(file_of(open_graph(function, A, B))), A, B)[0]
    apart = np.abs(found.astype(int) - function(None, A, B).numpy())
    assert apart.max() <= 1
    assert (apart > 0).mean() < 2e-4


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(37, 8), (5, 3, 8), (2, 3, 4, 8)])
def test_dense_layers(shape, bias, per_channel):
    weights = some_weights()
    weights["s"] = weights["s"] if per_channel else weights["s"][:1]

    def codes(m, x):
        return bgnn.q_linear(x, 0.0231, 121, m.w, m.s, 0, m.b if bias else None, 0.071, 97, 0, 255)

    def real(m, x):
        return bgnn.q_linear_float(x, 0.0231, 121, m.w, m.s, 0, m.f if bias else None)

    x = torch.randint(0, 256, shape, generator=generator(), dtype=torch.uint8)
    same_on(codes, x, **weights)
    gm = open_graph(real, x, **weights)
    found = run(OnnxModel(file_of(gm)), x)[0]
    np.testing.assert_allclose(found, real(type("", (), weights), x).numpy(), rtol=1e-6, atol=1e-5)


def test_a_dense_layer_is_one_convolution():
    data = file_of(open_graph(lambda m, x: bgnn.q_linear(x, 0.02, 3, m.w, m.s, 0, m.b, 0.07, 9, 0, 255),
                              torch.zeros(4, 8, dtype=torch.uint8), **some_weights()))  # fmt: skip
    assert operators(data) == {"Reshape": 2, "Identity": 1, "QLinearConv": 1}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", ["q_segment_sum", "q_segment_mean"])
@pytest.mark.parametrize("scales", [(0.0231, 0.31), (0.0231, 0.05), (0.02, 0.08)])
def test_sums_of_codes(op, form, scales):
    """Scales whose third is exact in float32 and others."""

    def layer(m, x, edges):
        message = bgnn.quantize(x, scales[0], 121, 0, 255).index_select(0, edges.select(0, 0))
        return getattr(bgnn, op)(message, scales[0], 121, edges.select(0, 1), x.shape[0], scales[1], 120, 0, 255)

    check(layer, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads", [0, 2])
def test_sums_of_codes_as_real_numbers(form, heads):
    def layer(m, x, edges):
        codes = codes_of(x).reshape(-1, heads, 4) if heads else codes_of(x)
        message = codes.index_select(0, edges.select(0, 0))
        return bgnn.q_segment_sum_float(message, 0.0231, 121, edges.select(0, 1), x.shape[0])

    check(layer, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("low", "high", "zero"), [(0, 15, 7), (130, 255, 120), (120, 255, 120)])
def test_ranges_of_sums(low, high, zero, form):
    """4 bits; a ReLU in the range; a zero point that is no code: an empty segment is clamped as well."""

    def layer(m, x, edges):
        message = codes_of(x).index_select(0, edges.select(0, 0))
        return bgnn.q_segment_sum(message, 0.0231, 121, edges.select(0, 1), x.shape[0], 0.21, zero, low, high)

    check(layer, form)


@pytest.mark.parametrize("shape", [(5, 7, 4), (2, 5, 7, 4)])
def test_sums_along_an_axis(shape):
    """As codes, by lengths, and as real numbers."""
    x, axis = torch.randn(shape) * 3, len(shape) - 2
    last = (0.05, 120, 0, 255)
    lengths = torch.linspace(1, 9, 4)
    same_on(lambda m, x: bgnn.q_sum(codes_of(x), 0.0231, 121, axis, None, *last), x)
    same_on(lambda m, x: bgnn.q_sum(codes_of(x), 0.0231, 121, axis, m.n, *last), x, n=lengths)
    same_on(lambda m, x: bgnn.q_sum_float(codes_of(x), 0.0231, 121, axis), x)


@pytest.mark.parametrize("form", FORMS)
def test_maxima_of_codes(form):
    def layer(m, x, edges):
        return bgnn.q_segment_max(codes_of(x).index_select(0, edges.select(0, 0)), 121, edges.select(0, 1), x.shape[0])

    check(layer, form)


@pytest.mark.parametrize("form", FORMS)
def test_gcn_on_codes(form):
    """Degree-Quant's GCN: dense layer, norm, message and sum, all codes."""

    def layer(m, x, edges):
        n = x.shape[0]
        h = bgnn.q_linear(codes_of(x), 0.0231, 121, m.w, m.s, 0, m.b, 0.071, 97, 0, 255)
        looped = bgnn.with_self_loops(edges, n)
        root = bgnn.segment_sum(torch.ones(looped.shape[1]), looped.select(0, 1), n).pow(-0.5)
        norm = root.index_select(0, looped.select(0, 0)) * root.index_select(0, looped.select(0, 1))
        codes = bgnn.quantize(norm, 0.004, 3, 0, 255)
        message = bgnn.q_mul(
            h.index_select(0, looped.select(0, 0)), 0.071, 97, codes.unsqueeze(1), 0.004, 3, 0.03, 110, 0, 255
        )
        return bgnn.q_segment_sum(message, 0.03, 110, looped.select(0, 1), n, 0.05, 120, 0, 255)

    check(layer, form, **some_weights())


@pytest.mark.parametrize("form", FORMS)
def test_attention_on_codes(form):
    """Degree-Quant's GAT: real attention, quantised messages. An exponential that rounds otherwise is one step."""

    def layer(m, x, edges):
        n, target = x.shape[0], edges.select(0, 1)
        h = bgnn.q_linear(codes_of(x), 0.0231, 121, m.w, m.s, 0, m.b, 0.071, 97, 0, 255)
        real = bgnn.dequantize(h, 0.071, 97).view(-1, 4, 4)
        score = (real * m.a).sum(-1)
        edge = score.index_select(0, edges.select(0, 0)) + score.index_select(0, target)
        edge = torch.nn.functional.leaky_relu(bgnn.dequantize(bgnn.quantize(edge, 0.11, 128, 0, 255), 0.11, 128), 0.2)
        attention = bgnn.segment_softmax(edge, target, n)
        message = bgnn.quantize(attention.unsqueeze(-1) * real.index_select(0, edges.select(0, 0)), 0.05, 110, 0, 255)
        return bgnn.q_segment_sum(message, 0.05, 110, target, n, 0.06, 120, 0, 255)

    constants = {**some_weights(), "a": torch.randn(4, 4, generator=generator()) * 0.3}
    gm = open_graph(layer, torch.randn(12, 8), random_edges(12, 40), **constants)
    model, module = OnnxModel(file_of(gm, form)), type("", (), constants)
    for nodes, edges in ((12, 40), (500, 4000), (7, 0)):
        x, index = torch.randn(nodes, 8), random_edges(nodes, edges)
        found, expected = run(model, x, index)[0], layer(module, x, index).numpy()
        apart = np.abs(found.astype(int) - expected)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3


@settings(deadline=None, max_examples=25)
@given(nodes=st.integers(1, 60), edges=st.integers(0, 300), seed=st.integers(0, 2**31))
def test_any_graph(nodes, edges, seed):
    """One file, any graph: sums of codes are exact."""
    x = torch.randn(nodes, 8, generator=generator(seed))
    index = random_edges(nodes, edges, seed)
    np.testing.assert_array_equal(run(_any_graph_model(), x, index)[0], _any_graph_layer(None, x, index).numpy())


def _any_graph_layer(m, x, edges):
    looped = bgnn.with_self_loops(edges, x.shape[0])
    message = codes_of(x).index_select(0, looped.select(0, 0))
    return bgnn.q_segment_sum(message, 0.0231, 121, looped.select(0, 1), x.shape[0], 0.21, 120, 0, 255)


_model: list[OnnxModel] = []


def _any_graph_model() -> OnnxModel:
    if not _model:
        _model.append(OnnxModel(file_of(open_graph(_any_graph_layer, torch.randn(12, 8), random_edges(12, 40)))))
    return _model[0]


@pytest.mark.parametrize("optimize", [0, 1])
def test_pairs_of_quantisers_are_not_merged(optimize):
    """ONNX Runtime's optimiser turns Q DQ Q DQ into one pair, whatever the scales are."""

    def function(m, x):
        first = bgnn.dequantize(bgnn.quantize(x, 0.05, 124, 0, 255), 0.05, 124)
        second = bgnn.dequantize(bgnn.quantize(first.view(-1, 4, 2), 0.21, 100, 0, 255), 0.21, 100)
        third = bgnn.quantize(torch.relu(second), 0.17, 0, 0, 255)
        return bgnn.dequantize(third, 0.17, 0).view(-1, 8) @ m.w

    x, weight = torch.randn(50, 8), torch.randn(8, 8)
    gm = open_graph(function, x, w=weight)
    found = run(OnnxModel(file_of(gm, (optimize, "stock"))), x)[0]
    np.testing.assert_allclose(found, function(type("", (), {"w": weight}), x).numpy(), atol=1e-5)
