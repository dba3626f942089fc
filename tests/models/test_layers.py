"""Sign, rescaling, k-NN and edge features against their definitions in the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgnn.models.layers import BinaryDot, Rescale, Sign, center, edge_features, knn, sign, use_surrogate


def nearest_by_definition(distance: np.ndarray, k: int) -> np.ndarray:
    """Lowest index first among equal distances: sort by (distance, index), one row at a time."""
    return np.array([[sorted(range(len(row)), key=lambda j: (row[j], j))[:k] for row in m] for m in distance])


def test_sign_is_plus_one_at_both_zeros():
    assert sign(torch.tensor([-2.0, -0.0, 0.0, 3.0, 1e-45, -1e-45])).tolist() == [-1, 1, 1, 1, 1, -1]


def test_sign_passes_the_gradient_only_within_one():
    x = torch.tensor([-1.5, -1.0, 0.0, 0.5, 1.0, 1.01], requires_grad=True)
    sign(x).backward(torch.arange(1.0, 7.0))
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 0]


def test_surrogates_give_their_slopes_and_leave_the_sign():
    x = torch.tensor([-1.5, -0.5, 0.0, 0.25, 1.0], requires_grad=True)
    assert torch.equal(sign(x, surrogate="polynomial"), sign(x))
    (slope,) = torch.autograd.grad(sign(x, surrogate="polynomial").sum(), x)
    assert slope.tolist() == [0, 1, 2, 1.5, 0]
    for sharpness in (0.1, 1.0, 10.0):
        (slope,) = torch.autograd.grad(sign(x, surrogate="tanh", sharpness=sharpness).sum(), x)
        (want,) = torch.autograd.grad((max(1 / sharpness, 1) * torch.tanh(sharpness * x)).sum(), x)
        torch.testing.assert_close(slope, want)


def test_a_surrogate_is_set_in_all_signs_and_sharpens():
    model = torch.nn.Sequential(BinaryDot(2, 2, 0, binary=True), Sign())
    for progress, sharpness in ((0, 0.1), (0.5, 1), (1, 10)):
        use_surrogate(model, "tanh", progress)
        assert [(m.surrogate, m.sharpness) for m in model] == [("tanh", pytest.approx(sharpness))] * 2


def test_binary_dot_takes_signs_and_leaves_the_latent_weights():
    torch.manual_seed(0)
    for dims, shape in ((0, (4, 6)), (1, (4, 6, 9)), (2, (4, 6, 9, 3))):
        dot = BinaryDot(6, 5, dims, binary=True)
        with torch.no_grad():
            dot.weights_real[0] = 0.0
        before = dot.weights_real.detach().clone()
        x = torch.randn(shape)
        weight = torch.where(before.reshape(5, 6) >= 0, 1.0, -1.0)
        torch.testing.assert_close(dot(x), torch.einsum("bi...,oi->bo...", x, weight))
        assert torch.equal(dot.weights_real, before)
        real = BinaryDot(6, 5, dims, binary=False)
        want = torch.einsum("bi...,oi->bo...", x, real.weights_real.reshape(5, 6))
        torch.testing.assert_close(real(x), want)


def test_rescale_is_the_outer_product_of_its_factors():
    torch.manual_seed(0)
    rescale = Rescale(4, (5, 3))
    for factor in rescale.parameters():
        torch.nn.init.normal_(factor)
    x = torch.randn(2, 4, 5, 3)
    a, b, c = (p.detach().flatten() for p in (rescale.scale_a, rescale.scale_b, rescale.scale_c))
    torch.testing.assert_close(rescale(x), x * torch.einsum("c,n,k->cnk", a, b, c))
    assert sum(p.numel() for p in Rescale(4, (1, 1)).parameters()) == 4 + 2


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 40),
    channels=st.integers(1, 12),
    data=st.data(),
)
def test_binary_neighbours_tie_to_the_lowest_index(seed, count, channels, data):
    """Few channels and many points: nearly every distance is shared. Both metrics rank +-1 features alike."""
    k = data.draw(st.integers(1, count))
    x = sign(torch.randn(2, count, channels, generator=torch.Generator().manual_seed(seed)))
    hamming = (x[:, :, None, :] != x[:, None, :, :]).sum(-1).numpy()
    want = nearest_by_definition(hamming, k)
    assert np.array_equal(knn(x, k, "hamming").numpy(), want)
    assert np.array_equal(knn(x, k, "l2").numpy(), want)


@pytest.mark.parametrize("metric", ["l2", "hamming"])
def test_the_exported_neighbours_are_the_eager_ones(metric):
    class Neighbours(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return knn(x, 9, metric)

    program = torch.export.export(Neighbours(), (torch.ones(2, 70, 5),))
    assert any("sort.stable" in str(node.target) for node in program.graph.nodes)
    x = sign(torch.randn(2, 70, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(program.module()(x), knn(x, 9, metric))


def test_large_hamming_keys_stay_exact():
    """2 C N is beyond float32's whole numbers here: the keys must move to float64."""
    count, channels = 1024, 8200
    x = torch.ones(1, count, channels)
    x[:, ::2] = -1  # two codes only: neighbours are the lowest indices of one's own parity
    found = knn(x, 20, "hamming")
    assert found[0, 1023].tolist() == list(range(1, 41, 2))
    assert found[0, 0].tolist() == list(range(0, 40, 2))


def test_doubled_points_tie_to_the_lowest_index():
    x = torch.tensor([[[0.5, 0.0, 0.0]] * 5 + [[2.0, 0.0, 0.0]] * 5])
    assert knn(x, 3, "l2")[0].tolist() == [[0, 1, 2]] * 5 + [[5, 6, 7]] * 5


def test_fast_neighbours_are_the_same_without_ties():
    x = torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(knn(x, 7, "l2"), knn(x, 7, "l2", fast=True))


def test_edge_features_per_point():
    torch.manual_seed(0)
    x = sign(torch.randn(2, 3, 6))
    idx = torch.randint(0, 6, (2, 6, 4))
    difference, xor = edge_features(x, idx, "difference"), edge_features(x, idx, "xor")
    for b in range(2):
        for i in range(6):
            for j in range(4):
                mine, other = x[b, :, i], x[b, :, idx[b, i, j]]
                assert torch.equal(difference[b, :, i, j], torch.cat([other - mine, mine]))
                exclusive_or = torch.where(mine != other, 1.0, -1.0)
                assert torch.equal(xor[b, :, i, j], torch.cat([exclusive_or, mine]))


def test_balance_functions_center():
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(2))
    assert center(x, "mean", 1).mean(1).abs().max() < 1e-6
    assert torch.equal((center(x, "median", 1) >= 0).sum(1), torch.full((3, 5), 4))  # the median itself too
    assert center(x, "none", 1) is x


@pytest.mark.parametrize("call", [lambda x: knn(x, 1, "l3"), lambda x: center(x, "mode", 1)])
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match="known are"):
        call(torch.zeros(1, 2, 3))
