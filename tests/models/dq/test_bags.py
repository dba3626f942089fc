"""Bags: the same numbers as on a tensor, entry by entry and through whole networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.utils import scatter

from bgnn.models.dq.bags import Bags
from bgnn.models.dq.networks import build


def words(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """40 nodes, some without words; duplicate edges, self-loops, nodes without edges."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(40, 60, generator=generator) * (torch.rand(40, 60, generator=generator) < 0.1)
    x[::7] = 0
    edges = torch.randint(30, (2, 90), generator=generator)
    return x, torch.cat((edges, edges[:, :5], torch.tensor([[3], [3]])), 1)


def test_entries_products_and_gradients():
    x, edges = words()
    bags = Bags.of(x, edges)
    assert len(bags.values) == int((x != 0).sum())
    assert torch.equal(bags.dense(), x)
    first, second = (torch.ones(60, 5).requires_grad_() for _ in range(2))
    torch.testing.assert_close(bags @ first, x @ second)
    (bags @ first).square().sum().backward()
    (x @ second).square().sum().backward()
    torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("edgeless", [False, True])
def test_messages_and_their_sums(edgeless):
    x, edges = words()
    edges = edges[:, :0] if edgeless else edges
    bags = Bags.of(x, edges)
    sent = bags.messages.of(bags)
    assert torch.equal(sent.dense(), x[edges[0]])
    torch.testing.assert_close(bags.messages.sums(sent).dense(), scatter(x[edges[0]], edges[1], dim_size=40))
    assert torch.equal(bags.messages.spread(bags).dense(), x)


@pytest.mark.parametrize("conv", ["gcn", "gat", "gin"])
@pytest.mark.parametrize(
    "scheme",
    [
        {"bits": 32},
        {"bits": 8, "observer": "min_max"},
        {"bits": 8, "observer": "momentum", "gradient": "vanilla"},
        {"bits": 8, "observer": "percentile", "percentile": 0.01},
    ],
)
def test_a_network_does_the_same_on_bags(conv, scheme):
    """A training step and evaluation: outputs, gradients and ranges. In double and at 8 bits, where few
    codes are at a tie: there a sum in another order is another code."""
    x, edges = words()
    x = x.double()
    config = {"conv": conv, "features": 60, "classes": 3, "dropout": 0.0, "hidden": 4, **scheme}
    got = []
    for features in (x, Bags.of(x, edges)):
        torch.manual_seed(0)
        model = build(config).double()
        y = model(features, edges, protect=torch.linspace(0, 0.6, 40))
        y.square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        got.append([y, *gradients, *model.state_dict().values(), model.eval()(features, edges)])
    for one, other in zip(*got, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_drops_entries():
    torch.manual_seed(0)
    x, edges = words()
    model = build({"features": 60, "bits": 32})
    dropped = model._drop(Bags.of(x, edges)).dense()
    kept = dropped != 0
    assert 0.3 < kept.sum() / (x != 0).sum() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * x[kept])
    assert torch.equal(model.eval()._drop(Bags.of(x, edges)).dense(), F.dropout(x, training=False))
