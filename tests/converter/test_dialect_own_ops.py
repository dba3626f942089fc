"""The dialect's own operators against plain loops in NumPy, which share nothing with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bgnn.converter.dialect import ops, pack

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
CHANNELS = [1, 3, 31, 32, 33, 70]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def signs(seed: int, *shape: int) -> Array:
    return np.where(rng(seed).random(shape) < 0.5, np.float32(-1), np.float32(1))


def reals(seed: int, *shape: int) -> Array:
    return rng(seed).standard_normal(shape).astype(np.float32)


def indices(seed: int, nodes: int, *shape: int) -> Ints:
    return rng(seed).integers(0, nodes, shape)


def t(array: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def bits(array: Array) -> NDArray[np.int32]:
    """Signs as words: bit `c % 32` of word `c // 32` is set where channel c is -1."""
    words = np.zeros((*array.shape[:-1], (array.shape[-1] + 31) // 32), np.uint32)
    for channel in range(array.shape[-1]):
        words[..., channel // 32] |= np.where(array[..., channel] < 0, np.uint32(1 << channel % 32), np.uint32(0))
    return words.view(np.int32)


def halves(weight: Array) -> NDArray[np.int32]:
    """`[O, 2C]` signs as words, each half by itself."""
    channels = weight.shape[1] // 2
    return np.concatenate([bits(weight[:, :channels]), bits(weight[:, channels:])], 1)


def nearest(distance: Array, k: int) -> list[int]:
    """The k smallest, equal ones by index."""
    return sorted(range(len(distance)), key=lambda j: (distance[j], j))[:k]


@pytest.mark.parametrize("channels", CHANNELS)
def test_packing(channels: int) -> None:
    x = signs(0, 2, 5, channels)
    assert np.array_equal(pack(t(x)).numpy(), bits(x))


@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("channels", CHANNELS)
def test_hamming_knn(channels: int, k: int) -> None:
    """Few channels have many ties; doubled rows tie at distance 0; k = 9 is all of them."""
    x = signs(channels, 2, 9, channels)
    x[:, 6] = x[:, 2]
    found = ops.hamming_knn(t(bits(x)), channels, k)
    assert found.dtype == torch.int64
    for cloud, rows in zip(x, found.numpy(), strict=True):
        for i in range(9):
            differing = np.array([sum(int(a != b) for a, b in zip(cloud[i], row, strict=True)) for row in cloud])
            assert rows[i].tolist() == nearest(differing, k)


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("channels", CHANNELS)
def test_real_knn(channels: int, k: int, grid: bool) -> None:
    """Each step rounded to float32, channels in their order; on a grid of integers there are ties."""
    x = reals(channels, 2, 9, channels)
    if grid:
        x = np.round(x)
    found = ops.real_knn(t(x), k).numpy()
    for cloud, rows in zip(x, found, strict=True):
        for i in range(9):
            distance = np.zeros(9, np.float32)
            for j in range(9):
                for a, b in zip(cloud[i], cloud[j], strict=True):
                    step = np.float32(a - b)
                    distance[j] = np.float32(distance[j] + np.float32(step * step))
            assert rows[i].tolist() == nearest(distance, k)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("channels", CHANNELS)
def test_gather_max(channels: int, k: int) -> None:
    x, index = reals(0, 2, 7, channels), indices(1, 7, 2, 5, k)
    found = ops.gather_max(t(x), t(index)).numpy()
    assert found.shape == (2, 5, channels)
    for batch in range(2):
        for i in range(5):
            for c in range(channels):
                assert found[batch, i, c] == max(x[batch, j, c] for j in index[batch, i])


@pytest.mark.parametrize("scalars", [True, False])
@pytest.mark.parametrize("channels", CHANNELS)
def test_edge_max(channels: int, scalars: bool) -> None:
    x, node, index = reals(0, 2, 7, channels), reals(1, 2, 7, channels), indices(1, 7, 2, 7, 4)
    beta, gamma = reals(2, 1 if scalars else 7), reals(3, 1 if scalars else 4)
    found = ops.edge_max(t(x), t(node), t(index), t(beta), t(gamma)).numpy()
    for b in range(2):
        for i in range(7):
            edges = [
                (x[b, n] + node[b, i]) * beta[0 if scalars else i] * gamma[0 if scalars else j]
                for j, n in enumerate(index[b, i])
            ]
            assert np.array_equal(found[b, i], np.max(edges, axis=0))


def xor_edge(x: Array, index: Ints, weight: Array, thresholds: NDArray[np.int32]) -> Array:
    """Per edge and filter: count the differing signs, turn the sign at each threshold passed, take the maximum."""
    batch, nodes, _ = x.shape
    out = np.full((batch, nodes, len(weight)), -1, np.float32)
    for b in range(batch):
        for i in range(nodes):
            for j in index[b, i]:
                features = [*x[b, i], *(x[b, i] * x[b, j])]
                for o, row in enumerate(weight):
                    differing = sum(int(f != w) for f, w in zip(features, row, strict=True))
                    passed = sum(int(differing > limit) for limit in thresholds[:, o])
                    if passed % 2 == 0:
                        out[b, i, o] = 1
    return out


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (3, 33), (31, 4), (32, 5), (33, 32), (70, 3)])
def test_xor_edge(channels: int, filters: int, steps: int) -> None:
    x, index = signs(1, 2, 5, channels), indices(2, 5, 2, 5, 3)
    weight = signs(3, filters, 2 * channels)
    thresholds = np.sort(rng(4).integers(channels // 2, 2 * channels, (steps, filters)), 0).astype(np.int32)
    thresholds[0, 0], thresholds[-1, -1] = -1, np.iinfo(np.int32).max
    expected = xor_edge(x, index, weight, thresholds)
    found = ops.xor_edge_layer(t(x), t(index), t(weight), t(thresholds)).numpy()
    assert np.array_equal(found, expected)
    words = ops.xor_edge_conv(t(bits(x)), t(index), t(halves(weight)), t(thresholds), channels).numpy()
    assert np.array_equal(words, bits(expected))


@pytest.mark.parametrize("scalars", [True, False])
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (3, 33), (31, 4), (32, 5), (33, 32), (70, 3)])
def test_bin_edge(channels: int, filters: int, scalars: bool) -> None:
    batch, nodes, k = 2, 4, 3
    node, x, index = signs(1, batch, nodes, channels), reals(2, batch, nodes, channels), indices(3, nodes, 2, nodes, k)
    scale, shift, weight = reals(4, channels), reals(5, channels), signs(6, filters, 2 * channels)
    alpha, slope = reals(7, filters), reals(10, 1 if scalars else filters)
    beta, gamma = reals(8, 1 if scalars else nodes), reals(9, 1 if scalars else k)
    expected = np.full((batch, nodes, filters), -np.inf, np.float32)
    for b in range(batch):
        for i in range(nodes):
            for position, j in enumerate(index[b, i]):
                edge = [1 if (x[b, j, c] - x[b, i, c]) * scale[c] + shift[c] >= 0 else -1 for c in range(channels)]
                for o in range(filters):
                    dot = sum(int(f) * int(w) for f, w in zip([*node[b, i], *edge], weight[o], strict=True))
                    value = np.float32(np.float32(dot) * alpha[o])
                    value = np.float32(value * beta[0 if scalars else i])
                    value = np.float32(value * gamma[0 if scalars else position])
                    if not value > 0:
                        value = np.float32(value * slope[0 if scalars else o])
                    expected[b, i, o] = max(expected[b, i, o], value)
    rest = [t(a) for a in (alpha, beta, gamma, slope)]
    found = ops.bin_edge_layer(t(node), t(x), t(index), t(scale), t(shift), t(weight), *rest).numpy()
    assert np.array_equal(found, expected)
    found = ops.bin_edge_conv(
        t(bits(node)), t(x), t(index), t(scale), t(shift), t(halves(weight)), *rest, channels
    ).numpy()
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("points", [1, 6])
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (3, 33), (31, 4), (32, 5), (33, 32), (70, 3)])
def test_dense_pool(channels: int, filters: int, points: int) -> None:
    x, weight = signs(1, 2, points, channels), signs(2, filters, channels)
    expected = np.zeros((2, 4, filters), np.float32)
    for b in range(2):
        for o in range(filters):
            dots = [int(sum(int(f) * int(w) for f, w in zip(row, weight[o], strict=True))) for row in x[b]]
            positive, negative = [d for d in dots if d > 0], [d for d in dots if d < 0]
            expected[b, :, o] = max(dots), min(dots), sum(positive), sum(negative)
    assert np.array_equal(ops.dense_pool_layer(t(x), t(weight)).numpy(), expected)
    assert np.array_equal(ops.dense_pool(t(bits(x)), t(bits(weight)), None, channels).numpy(), expected)


@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (31, 4), (33, 32), (70, 3)])
def test_dense_pool_with_a_factor_per_point(channels: int, filters: int) -> None:
    """Factors that are powers of two keep the sums exact in any order."""
    x, weight = signs(1, 2, 6, channels), signs(2, filters, channels)
    scale = np.array([1, -2, 0.5, -0.25, 0, 4], np.float32)
    dots = (x.astype(np.int64) @ weight.T.astype(np.int64)) * scale[:, None]
    parts = [dots.max(1), dots.min(1), np.maximum(dots, 0).sum(1), np.minimum(dots, 0).sum(1)]
    found = ops.dense_pool(t(bits(x)), t(bits(weight)), t(scale), channels)
    assert np.array_equal(found.numpy(), np.stack(parts, 1).astype(np.float32))


def test_more_neighbours_than_nodes() -> None:
    with pytest.raises(ValueError, match="k=6 is more than the 5 nodes"):
        ops.hamming_knn(t(bits(signs(0, 1, 5, 8))), 8, 6)
    with pytest.raises((ValueError, RuntimeError)):
        ops.real_knn(t(reals(0, 1, 5, 8)), 6)
