"""The integer ops against NumPy, number by number, at their ends and ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from graphs import randn
from torch import Tensor
from torch.export import Dim

import bgnn.converter.dialect_int8

bgnn = torch.ops.bgnn
F32 = np.float32
EDGES = torch.tensor([[0, 1, 1, 2, 2, 4, 0], [1, 1, 2, 0, 2, 2, 1]])
N = 5  # node 3 and 4 receive nothing


def codes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def weights(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator).to(torch.int8)


def requant(total: Any, multiplier: Any, zero: int, low: int = 0, high: int = 255) -> np.ndarray:
    real = np.asarray(total).astype(F32) * np.asarray(multiplier, dtype=F32)
    return np.clip(np.rint(real).astype(np.int64) + zero, low, high).astype(np.uint8)


def integers(x: Tensor) -> np.ndarray:
    return x.numpy().astype(np.int64)


def test_quantize_rounds_ties_to_even_and_adds_the_zero_point_after() -> None:
    x = torch.tensor([-1e30, -3.0, -1.5, -0.5, 0.5, 1.5, 2.5, 1e30, float("inf")])
    assert bgnn.quantize(x, 1.0, 3, 0, 255).tolist() == [0, 0, 1, 3, 3, 5, 5, 255, 255]
    assert bgnn.quantize(x, 1.0, 3, 2, 4).tolist() == [2, 2, 2, 3, 3, 4, 4, 4, 4]


def test_every_code_comes_back() -> None:
    every = torch.arange(256).to(torch.uint8)
    for scale, zero in ((0.1, 0), (3.7e-5, 128), (12.0, 255)):
        real = bgnn.dequantize(every, scale, zero)
        assert np.array_equal(real.numpy(), (np.arange(256) - zero).astype(F32) * F32(scale))
        assert torch.equal(bgnn.quantize(real, scale, zero, 0, 255), every)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_requantize_is_dequantize_activate_quantize(slope: float) -> None:
    every = torch.arange(256).to(torch.uint8)
    out = bgnn.requantize(every, 0.03, 100, slope, 0.05, 7, 0, 200)
    real = (np.arange(256) - 100).astype(F32) * F32(0.03)
    real = np.where(real > 0, real, real * F32(slope))
    assert np.array_equal(out.numpy(), np.clip(np.rint(real / F32(0.05)) + 7, 0, 200))


def test_q_table() -> None:
    x = codes(4, 3)
    tables = codes(3, 256, seed=1)
    by_hand = [[tables[c, x[r, c].item()].item() for c in range(3)] for r in range(4)]
    assert bgnn.q_table(x, tables).tolist() == by_hand
    assert torch.equal(bgnn.q_table(x, tables[:1]), tables[0][x.long()])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_q_linear(per_channel: bool, with_bias: bool) -> None:
    x, w = codes(6, 19), weights(4, 19)
    scales = torch.tensor([0.01, 0.02, 0.003, 0.05]) if per_channel else torch.tensor([0.01])
    bias = torch.tensor([5000, -70000, 0, 3], dtype=torch.int32) if with_bias else None
    total = (integers(x) - 113) @ (integers(w) - 2).T + (0 if bias is None else integers(bias))
    multiplier = F32(0.04) * scales.numpy() / F32(0.7)
    out = bgnn.q_linear(x, 0.04, 113, w, scales, 2, bias, 0.7, 90, 3, 250)
    assert np.array_equal(out.numpy(), requant(total, multiplier, 90, 3, 250))
    real = bgnn.q_linear_float(x, 0.04, 113, w, scales, 2, None if bias is None else bias.float())
    exact = ((integers(x) - 113) @ (integers(w) - 2).T).astype(F32) * (F32(0.04) * scales.numpy())
    assert np.array_equal(real.numpy(), exact + (F32(0) if bias is None else bias.numpy().astype(F32)))


def test_q_linear_does_not_wrap() -> None:
    """The largest sums there are: 255 * 255 * 1433 exceeds 2^24, where float32 sums would lose units."""
    x, w = torch.full((1, 1433), 255, dtype=torch.uint8), torch.full((1, 1433), 127, dtype=torch.int8)
    out = bgnn.q_linear_float(x, 1.0, 0, w, torch.ones(1), -128, None)
    assert out.item() == float(F32(255 * 255 * 1433))


def test_q_mul_broadcasts() -> None:
    a, b = codes(5, 3), codes(5, 1, seed=1)
    product = (integers(a) - 100) * (integers(b) - 7)
    out = bgnn.q_mul(a, 0.1, 100, b, 0.01, 7, 0.05, 120, 0, 255)
    assert np.array_equal(out.numpy(), requant(product, F32(0.1) * F32(0.01) / F32(0.05), 120))


def test_q_add() -> None:
    a, b = codes(200, 3), codes(200, 3, seed=1)
    real = (integers(a) - 100).astype(F32) * F32(0.1) + (integers(b) - 7).astype(F32) * F32(0.02)
    out = bgnn.q_add(a, 0.1, 100, b, 0.02, 7, 0.06, 120, 0, 255)
    assert np.array_equal(out.numpy(), np.clip(np.rint(real / F32(0.06)) + 120, 0, 255))


def segment(m: np.ndarray, target: Tensor) -> list[np.ndarray]:
    return [m[[e for e in range(len(m)) if target[e] == i]] for i in range(N)]


@pytest.mark.parametrize("trailing", [(3,), (2, 3)])
def test_q_segment_ops(trailing: tuple[int, ...]) -> None:
    m = codes(7, *trailing)
    parts = segment(integers(m) - 120, EDGES[1])
    total = np.stack([p.sum(0) for p in parts])
    out = bgnn.q_segment_sum(m, 0.02, 120, EDGES[1], N, 0.05, 130, 0, 255)
    assert np.array_equal(out.numpy(), requant(total, F32(0.02) / F32(0.05), 130))
    assert bool((out[3:] == 130).all())
    real = bgnn.q_segment_sum_float(m, 0.02, 120, EDGES[1], N)
    assert np.array_equal(real.numpy(), total.astype(F32) * F32(0.02))
    length = np.array([max(len(p), 1) for p in parts]).reshape(-1, *[1] * len(trailing))
    mean = bgnn.q_segment_mean(m, 0.02, 120, EDGES[1], N, 0.05, 130, 0, 255)
    assert np.array_equal(mean.numpy(), requant(total, F32(0.02) / (F32(0.05) * length.astype(F32)), 130))
    largest = bgnn.q_segment_max(m, 120, EDGES[1], N)
    assert np.array_equal(largest.numpy(), [p.max(0) + 120 if len(p) else np.full(trailing, 120) for p in parts])


def test_sums_along_an_axis() -> None:
    m = codes(5, 7, 3)
    total = (integers(m) - 120).sum(1)
    lengths = torch.arange(1.0, 6.0).reshape(-1, 1)
    out = bgnn.q_sum(m, 0.02, 120, 1, None, 0.05, 130, 0, 255)
    assert np.array_equal(out.numpy(), requant(total, F32(0.02) / F32(0.05), 130))
    mean = bgnn.q_sum(m, 0.02, 120, 1, lengths, 0.05, 130, 0, 255)
    assert np.array_equal(mean.numpy(), requant(total, F32(0.02) / (F32(0.05) * lengths.numpy()), 130))
    assert np.array_equal(bgnn.q_sum_float(m, 0.02, 120, 1).numpy(), total.astype(F32) * F32(0.02))


def test_a_long_segment_does_not_wrap() -> None:
    m = torch.full((100_000, 1), 255, dtype=torch.uint8)
    index = torch.zeros(100_000, dtype=torch.int64)
    out = bgnn.q_segment_sum(m, 1.0, 0, index, 1, 255e3, 0, 0, 255)
    assert out.item() == 100


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("message", [0.0, 0.013])
def test_q_aggregate_is_its_parts(weighted: bool, message: float) -> None:
    x, w = codes(N, 3), codes(7, seed=1) if weighted else None
    out = bgnn.q_aggregate(x, 0.02, 110, EDGES, w, 0.005, 128, message, 99, 10, 240, 0.06, 128, 0, 255, N)
    gathered = integers(x)[EDGES[0].numpy()] - 110
    unit = F32(0.02)
    if w is not None:
        gathered, unit = gathered * (integers(w)[:, None] - 128), F32(0.02) * F32(0.005)
    if message:
        ratio = unit / F32(message) if weighted else None
        if weighted:
            gathered = requant(gathered, ratio, 99, 10, 240).astype(np.int64) - 99
        else:
            real = gathered.astype(F32) * unit
            gathered = np.clip(np.rint(real / F32(message)) + 99, 10, 240).astype(np.int64) - 99
        unit = F32(message)
    total = np.stack([p.sum(0) for p in segment(gathered, EDGES[1])])
    assert np.array_equal(out.numpy(), requant(total, unit / F32(0.06), 128))
    table = codes(3, 256, seed=2)
    looked_up = bgnn.q_aggregate(
        x, 0.02, 110, EDGES, w, 0.005, 128, message, 99, 10, 240, 0.06, 128, 0, 255, N, table
    )  # fmt: skip
    assert torch.equal(looked_up, bgnn.q_table(out, table))


@pytest.mark.parametrize("score", [0.0, 0.05])
def test_q_gat_aggregate_is_its_parts(score: float) -> None:
    x, source, target = codes(N, 2, 3), randn(N, 2), randn(N, 2, seed=1)
    out = bgnn.q_gat_aggregate(
        x, 0.02, 110, source, target, EDGES, score, 128, 0, 255, 0.2, 0.01, 100, 0, 255, 0.02, 90, 0, 255, N
    )
    e = source[EDGES[0]] + target[EDGES[1]]
    if score:
        e = bgnn.dequantize(bgnn.quantize(e, score, 128, 0, 255), score, 128)
    attention = bgnn.segment_softmax(torch.nn.functional.leaky_relu(e, 0.2), EDGES[1], N)
    messages = bgnn.quantize(attention[:, :, None] * bgnn.dequantize(x[EDGES[0]], 0.02, 110), 0.01, 100, 0, 255)
    assert torch.equal(out, bgnn.q_segment_sum(messages, 0.01, 100, EDGES[1], N, 0.02, 90, 0, 255))


def test_shapes_are_known_without_values() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", weights(4, 3))
            self.register_buffer("s", torch.tensor([0.01]))
            self.register_buffer("t", codes(1, 256))

        def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
            n = x.shape[0]
            y = (0.1, 128, 0, 255)
            q = bgnn.quantize(x, *y)
            m = bgnn.q_mul(q.index_select(0, edge_index[0]), 0.1, 128, weight[:, None], 0.1, 128, *y)
            s = bgnn.q_segment_sum(m, 0.1, 128, edge_index[1], n, *y)
            s = bgnn.q_add(s, 0.1, 128, bgnn.q_segment_max(m, 128, edge_index[1], n), 0.1, 128, *y)
            s = bgnn.q_add(s, 0.1, 128, bgnn.q_segment_mean(m, 0.1, 128, edge_index[1], n, *y), 0.1, 128, *y)
            a = bgnn.q_aggregate(s, 0.1, 128, edge_index, weight, 0.1, 128, *y, *y, n)
            scores = bgnn.q_linear_float(a, 0.1, 128, self.w, self.s, 0, None)
            h = bgnn.q_gat_aggregate(
                a[:, None], 0.1, 128, scores[:, :1], scores[:, 1:2], edge_index, *y, 0.2, *y, *y, n
            )
            out = bgnn.q_linear(bgnn.q_table(h[:, 0], self.t), 0.1, 128, self.w, self.s, 0, None, *y)
            return bgnn.dequantize(bgnn.requantize(out, 0.1, 128, 0.0, *y), 0.1, 128)

    example = (randn(N, 3), EDGES, codes(7))
    dynamic = ({0: Dim.DYNAMIC}, {1: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    model = Model()
    program = torch.export.export(model, example, dynamic_shapes=dynamic, strict=False).module()
    other = (randn(9, 3), torch.tensor([[0, 8, 3], [4, 4, 4]]), codes(3))
    assert torch.equal(program(*other), model(*other))
