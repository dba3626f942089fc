"""Every network exports with dynamic numbers of nodes, edges and graphs, and the program computes what eager does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

from bgnn.models.dq import build
from bgnn.models.dq.networks import CONVS
from bgnn.models.dq.presets import architecture


def graph(nodes: int, edges: int, features: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(nodes, features, generator=generator), torch.randint(nodes, (2, edges), generator=generator)


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("conv", CONVS)
def test_citation_networks_export_with_dynamic_sizes(conv, bits):
    torch.manual_seed(0)
    model = build(architecture("cora", conv) | {"features": 20, "bits": bits})
    model(*graph(30, 80, 20, 0))
    example = graph(30, 80, 20, 1)
    program = export(model.eval(), example, dynamic_shapes=({0: Dim("N", min=2)}, {1: Dim("E", min=2)}))
    for nodes, edges in ((30, 80), (17, 200), (50, 5)):
        unseen = graph(nodes, edges, 20, nodes)
        assert torch.equal(program.module()(*unseen), model(*unseen))


@pytest.mark.parametrize(
    ("dataset", "conv"), [("mnist", "gcn"), ("mnist", "gat"), ("zinc", "gin"), ("reddit-binary", "gin")]
)
def test_graph_networks_export_with_dynamic_numbers_of_graphs(dataset, conv):
    torch.manual_seed(0)
    model = build(architecture(dataset, conv) | {"layers": 2})
    features = model.settings.features
    x, edges = graph(30, 80, features, 0)
    batch = torch.arange(30) // 10
    model(x, edges, batch)
    nodes = Dim("N", min=2)
    shapes = ({0: nodes}, {1: Dim("E", min=2)}, {0: nodes}, Dim.DYNAMIC)
    program = export(model.eval(), (x, edges, batch, 3), dynamic_shapes=shapes)
    x, edges = graph(40, 90, features, 3)
    batch = torch.arange(40) // 10
    assert torch.equal(program.module()(x, edges, batch, 4), model(x, edges, batch))


def test_an_untrained_network_does_not_export():
    model = build(architecture("cora", "gcn") | {"features": 20}).eval()
    with pytest.raises(ValueError, match="never saw data"):
        export(model, graph(30, 80, 20, 0))
