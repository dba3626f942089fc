"""Protection: probabilities by degree rank, per graph, and masks drawn from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from bgnn.models.dq.mask import Protect, protection, sample


def test_probabilities_by_hand():
    edges = torch.tensor([[0, 1, 2, 3, 0], [3, 3, 3, 2, 2]])  # in-degrees 0, 0, 2, 3
    p = protection(edges, 4, 0.1, 0.5)
    torch.testing.assert_close(p, torch.tensor([0.3, 0.3, 0.4, 0.5]))


@given(st.integers(1, 40), st.integers(0, 100), st.integers(0, 2**31), st.integers(0, 50), st.integers(50, 100))
def test_rises_with_the_degree_from_p_min_to_p_max(nodes, edges, seed, p_min, p_max):
    p_min, p_max = p_min / 100, p_max / 100
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes, (2, edges), generator=generator)
    p = protection(edge_index, nodes, p_min, p_max)
    degree = torch.bincount(edge_index[1], minlength=nodes)
    assert p.shape == (nodes,)
    assert (p >= p_min).all()
    assert p[degree == degree.max()].tolist() == pytest.approx([p_max] * int((degree == degree.max()).sum()))
    for d in degree.unique():
        assert len(p[degree == d].unique()) == 1
        assert (p[degree > d] > p[degree == d][0] - 1e-7).all()


def test_without_nodes():
    assert protection(torch.empty(2, 0, dtype=torch.int64), 0, 0.0, 0.1).shape == (0,)


def test_bad_probabilities():
    with pytest.raises(ValueError, match="p_min"):
        protection(torch.zeros(2, 1, dtype=torch.int64), 1, 0.3, 0.1)


def test_transform_and_sample():
    data = Protect(0.0, 1.0)(Data(edge_index=torch.tensor([[0, 1], [2, 2]]), num_nodes=3))
    assert data.protect[2] == 1
    torch.manual_seed(0)
    share = torch.stack([sample(torch.tensor([0.0, 0.3, 1.0])) for _ in range(2000)]).float().mean(0)
    torch.testing.assert_close(share, torch.tensor([0.0, 0.3, 1.0]), atol=0.04, rtol=0)
    assert sample(None) is None
