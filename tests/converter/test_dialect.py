"""The dialect's ops against numpy written on its own, bit by bit and index by index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import randn, signs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bgnn.converter import dialect

ops = torch.ops.bgnn
SIZES = [1, 2, 31, 32, 33, 63, 64, 65, 100]


def packed_by_numpy(x: np.ndarray) -> np.ndarray:
    """Little-endian bits of `x < 0`, 32 to a word, padded with 0."""
    bits = np.zeros((*x.shape[:-1], -(-x.shape[-1] // 32) * 32), dtype=np.uint8)
    bits[..., : x.shape[-1]] = x < 0
    return np.packbits(bits, axis=-1, bitorder="little").view("<i4")


@pytest.mark.parametrize("channels", SIZES)
def test_pack_and_unpack(channels: int) -> None:
    x = randn(3, 4, channels)
    words = ops.pack(x)
    assert words.dtype == torch.int32
    assert words.shape == (3, 4, dialect.packed_words(channels))
    np.testing.assert_array_equal(words.numpy(), packed_by_numpy(x.numpy()))
    np.testing.assert_array_equal(ops.unpack(words, channels).numpy(), np.where(x.numpy() < 0, -1.0, 1.0))


def test_packed_zeros_are_plus_and_padding_is_clear() -> None:
    assert ops.pack(torch.tensor([[0.0, -0.0, -1e-45]])).tolist() == [[4]]
    assert ops.pack(-torch.ones(1, 32)).tolist() == [[-1]]
    assert ops.pack(-torch.ones(1, 33)).tolist() == [[-1, 1]]
    assert [dialect.packed_words(c) for c in (1, 32, 33, 64)] == [1, 1, 2, 2]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)), st.integers(1, 128))
def test_any_words_survive_a_round_trip(words: np.ndarray, channels: int) -> None:
    channels = min(channels, words.shape[-1] * 32)
    kept = -(-channels // 32)
    mask = packed_by_numpy(-np.ones((1, channels)))[0]
    again = ops.pack(ops.unpack(torch.from_numpy(words), channels)).numpy()
    np.testing.assert_array_equal(again, words[..., :kept] & mask)


def test_binarize() -> None:
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, float("inf"), float("-inf"), float("nan")])
    assert ops.binarize(x).tolist() == [1, 1, 1, -1, 1, -1, -1]
    assert ops.binarize(x.double()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 5), (2, 3, 4, 5), (1, 1, 5), (3, 33, 1, 5)])
def test_batch_norm_is_the_models_to_the_last_bit(shape: tuple[int, ...]) -> None:
    x = (randn(*shape) * 5).round()  # integers: exact ties with the means below
    g, h, va = randn(5, seed=1), torch.tensor([0.0, 0.0, 1.0, -0.3, 2.0]), randn(5, seed=2).abs() + 0.1
    mu = torch.tensor([3.0, -2.0, 0.0, 0.5, 1.0])
    found = ops.batch_norm(x, g, h, mu, va, 1e-5)
    model = F.batch_norm(x.movedim(-1, 1).contiguous(), mu, va, g, h, eps=1e-5).movedim(1, -1)
    assert torch.equal(found, model)
    exact = (x.double() - mu) / (va.double() + 1e-5).sqrt() * g + h
    np.testing.assert_allclose(found.numpy(), exact.numpy(), rtol=1e-5, atol=1e-5)
    assert ops.batch_norm(x, None, None, mu, va, 1e-3).shape == shape


@pytest.mark.parametrize("slopes", [[0.25], [-1.0, 0.0, 0.25, 1.0, 2.0]])
def test_prelu(slopes: list[float]) -> None:
    x = randn(3, 4, 5)
    x[0] = 0.0
    slope = torch.tensor(slopes)
    expected = np.where(x.numpy() > 0, x.numpy(), x.numpy() * slope.numpy())
    np.testing.assert_array_equal(ops.prelu(x, slope).numpy(), expected)
    assert torch.equal(ops.prelu(x, slope), F.prelu(x.movedim(-1, 1), slope).movedim(1, -1))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_topk_gives_equal_values_to_the_lowest_index(largest: bool, dim: int) -> None:
    x = (randn(6, 7, 8) * 2).round()
    values, indices = ops.topk_lowest(x, 4, dim, largest)
    array = np.moveaxis(x.numpy(), dim, -1)
    key = -array if largest else array
    for row, found in zip(
        key.reshape(-1, key.shape[-1]), np.moveaxis(indices.numpy(), dim, -1).reshape(-1, 4), strict=True
    ):
        by_hand = sorted(range(len(row)), key=lambda i: (row[i], i))[:4]
        assert found.tolist() == by_hand
    assert torch.equal(values, torch.gather(x, dim, indices))
    assert indices.dtype == torch.int64


def neighbours_by_hand(x: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros((x.shape[0], x.shape[1], k), dtype=np.int64)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            distance = [float(((x[b, i] - x[b, j]) ** 2).sum()) for j in range(x.shape[1])]
            out[b, i] = sorted(range(x.shape[1]), key=lambda j, d=distance: (d[j], j))[:k]
    return out


@pytest.mark.parametrize("channels", [1, 3, 31, 32, 33, 64, 65])
def test_hamming_neighbours(channels: int) -> None:
    x = signs(2, 9, channels)
    x[:, 4] = x[:, 1]
    np.testing.assert_array_equal(ops.knn(x, 5, "hamming").numpy(), neighbours_by_hand(x.numpy(), 5))


def test_real_neighbours() -> None:
    x = (randn(2, 9, 3) * 2).round()  # exact scores, many ties
    np.testing.assert_array_equal(ops.knn(x, 9, "l2").numpy(), neighbours_by_hand(x.numpy(), 9))
    y = randn(2, 12, 3)
    np.testing.assert_array_equal(ops.knn(y, 4, "l2").numpy(), neighbours_by_hand(y.double().numpy(), 4))


def test_knn_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="k=10 is more than the 9 nodes"):
        ops.knn(randn(2, 9, 3), 10, "l2")
    with pytest.raises(ValueError, match="neither 'l2' nor 'hamming'"):
        ops.knn(randn(2, 9, 3), 3, "cosine")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_gather_nodes(dtype: torch.dtype) -> None:
    x = (randn(2, 5, 3) * 10).to(dtype)
    index = torch.randint(0, 5, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    found = ops.gather_nodes(x, index).numpy()
    for b, m, k in np.ndindex(2, 4, 6):
        np.testing.assert_array_equal(found[b, m, k], x.numpy()[b, index[b, m, k]])
    assert torch.equal(ops.gather_nodes(x, index.int()), torch.from_numpy(found))


def differing(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return (x[..., None, :] != w).sum(-1)


@pytest.mark.parametrize("fan_in", SIZES)
def test_binary_layers(fan_in: int) -> None:
    x, w = signs(3, 4, fan_in), signs(7, fan_in, seed=1)
    px, pw = ops.pack(x), ops.pack(w)
    p = differing(x.numpy(), w.numpy())
    np.testing.assert_array_equal(dialect.binary_dot(px, pw, fan_in).numpy(), fan_in - 2 * p)

    multiplier, bias = randn(7), randn(7, seed=2)
    found = ops.bconv(px, pw, fan_in, multiplier, bias)
    np.testing.assert_allclose(
        found.numpy(), (fan_in - 2 * p) * multiplier.numpy() + bias.numpy(), rtol=1e-5, atol=1e-4
    )
    assert torch.equal(ops.bconv(px, pw, fan_in, torch.ones(7), torch.zeros(7)), x @ w.t())

    threshold = torch.tensor([-(2**31), -1, 0, fan_in // 2, fan_in - 1, fan_in, 2**31 - 1], dtype=torch.int32)
    bits = ops.unpack(ops.bconv_bits(px, pw, fan_in, threshold), 7).numpy()
    np.testing.assert_array_equal(bits, np.where(p > threshold.numpy(), -1.0, 1.0))
    assert (bits[..., :2] == -1).all()
    assert (bits[..., 5:] == 1).all()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_dot_threshold_turns_the_sign_once_for_each_threshold_passed(steps: int) -> None:
    x, w = signs(20, 9), signs(5, 9, seed=1)
    thresholds = torch.randint(-1, 10, (steps, 5), generator=torch.Generator().manual_seed(steps)).int()
    p = differing(x.numpy(), w.numpy())
    passed = (p[None] > thresholds.numpy()[:, None]).sum(0)
    np.testing.assert_array_equal(ops.dot_threshold(x, w, thresholds).numpy(), np.where(passed % 2, -1.0, 1.0))


@pytest.mark.parametrize("channels", [1, 32, 33])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_packed_max(channels: int, dim: int) -> None:
    x = signs(2, 3, 4, channels)
    found = ops.packed_max(ops.pack(x), dim)
    np.testing.assert_array_equal(ops.unpack(found, channels).numpy(), x.numpy().max(dim))
    assert found.is_contiguous()


def test_shapes_come_from_the_reference_itself() -> None:
    """On meta tensors every op gives shape and dtype: passes rely on it."""
    meta = {"device": "meta"}
    x, packed = torch.empty(2, 5, 33, **meta), torch.empty(2, 5, 2, dtype=torch.int32, **meta)
    assert ops.pack(x).shape == (2, 5, 2)
    assert ops.unpack(packed, 33).shape == (2, 5, 33)
    assert ops.knn(x, 3, "l2").shape == (2, 5, 3)
    assert ops.knn(x, 3, "l2").dtype == torch.int64
    assert ops.gather_nodes(x, torch.empty(2, 4, 3, dtype=torch.int64, **meta)).shape == (2, 4, 3, 33)
    weight, vector = torch.empty(7, 2, dtype=torch.int32, **meta), torch.empty(7, **meta)
    assert ops.bconv(packed, weight, 33, vector, vector).shape == (2, 5, 7)
    assert ops.bconv_bits(packed, weight, 33, vector.int()).shape == (2, 5, 1)
    assert ops.packed_max(packed, 1).shape == (2, 2)
    assert ops.batch_norm(x, None, None, torch.empty(33, **meta), torch.empty(33, **meta), 1e-5).shape == (2, 5, 33)
