"""Quantisers are put where codes are made, once for all that is moved from there, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_models import random_graph
from graphs import bgnn, count
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv, global_mean_pool

from bgnn.converter import stages
from bgnn.converter.sizes import graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import insert_fake_quant, lower_int8
from bgnn.passes.graph import is_call


class Two(nn.Module):
    """Two layers of a kind, a ReLU between."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        make: dict[str, Any] = {
            "gcn": GCNConv, "sage": SAGEConv, "gat": GATConv,
            "gin": lambda a, b: GINConv(nn.Sequential(nn.Linear(a, 9), nn.ReLU(), nn.Linear(9, b))),
        }  # fmt: skip
        self.first, self.second = make[kind](6, 8), make[kind](8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x, edge_index)), edge_index)


class Pooled(nn.Module):
    """A read-out over a batch of graphs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = GCNConv(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.out(global_mean_pool(F.relu(self.conv(x, edge_index)), batch, 2))


def traced(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    gm = trace(model.eval(), inputs, open_axes=graph_axes(inputs))
    for _, run in stages.passes_to("traced", stages.Plan("onnx-int8-x86")):
        run(gm)
    stages.name_layers(gm)
    return gm


# x, each layer's output that is gathered, norms or attention, messages, aggregates (not GIN's), the ReLU between
SITES = {"gcn": (9, 2), "sage": (4, 4), "gat": (10, 2), "gin": (6, 4)}


@pytest.mark.parametrize("kind", SITES)
def test_sites(kind: str) -> None:
    inputs = random_graph(20, 60)
    gm = traced(Two(kind), *inputs)
    sites = insert_fake_quant.sites(gm)
    activations, weights = SITES[kind]
    assert len(sites) == activations, [n.name for n in sites]
    expected = fx.Interpreter(gm).run(*inputs)[0]
    wide = dict.fromkeys(sites, (-1000.0, 1000.0))
    assert insert_fake_quant.insert(gm, wide) == activations + weights
    assert (count(gm, bgnn.fake_quant), count(gm, bgnn.fake_quant_channel)) == (activations, weights)
    assert insert_fake_quant.sites(gm) != sites  # and the codes are what everyone reads now
    for node in gm.graph.nodes:
        if is_call(node, bgnn.fake_quant):
            assert list(node.args[0].users) == [node]
    assert not torch.equal(fx.Interpreter(gm).run(*inputs)[0], expected)


@pytest.mark.parametrize("kind", SITES)
def test_edges_in_a_buffer_have_the_same_sites(kind: str) -> None:
    """But for a GCN's norms, which are constants then, and have their codes all the same; attention stays real."""
    x, edges = random_graph(20, 60)

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Two(kind)
            self.register_buffer("edges", edges)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x, self.edges)

    gm = trace(Held().eval(), (x,))
    for _, run in stages.passes_to("traced", stages.Plan("onnx-int8-x86")):
        run(gm)
    stages.name_layers(gm)
    sites = insert_fake_quant.sites(gm)
    activations, weights = SITES[kind]
    norms = {"gcn": 2, "gin": 0}.get(kind, 0)
    assert len(sites) == activations - {"gcn": 1}.get(kind, 0), [n.name for n in sites]
    assert insert_fake_quant.insert(gm, dict.fromkeys(sites, (-9.0, 9.0))) == len(sites) + norms + weights


def test_sums_that_are_added_to_the_nodes_own_features_stay_exact() -> None:
    """GIN's: nodes' codes summed. Not GCN's, of products made on edges, nor what a dense layer reads as it is."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.out = nn.Linear(6, 8)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            row, col = edge_index
            return self.out(torch.zeros_like(x).index_add(0, col, x[row]))

    inputs = random_graph(20, 60)
    for model, quantised in ((Two("gin"), 0), (Two("gcn"), 2), (Sum(), 1)):
        gm = traced(model, *inputs)
        wide = [n for n in gm.graph.nodes if is_call(n, bgnn.segment_sum) and n.meta["val"].dim() > 1]
        assert len(set(wide).intersection(insert_fake_quant.sites(gm))) == quantised


def test_fine_codes_change_little() -> None:
    inputs = random_graph(20, 60)
    gm = traced(Two("gcn"), *inputs)
    expected = fx.Interpreter(gm).run(*inputs)[0]
    insert_fake_quant.insert(gm, dict.fromkeys(insert_fake_quant.sites(gm), (-4.0, 4.0)))
    assert (fx.Interpreter(gm).run(*inputs)[0] - expected).abs().max() < 0.1 * expected.abs().max()


def test_copies_of_what_was_put_in_have_names_of_their_own() -> None:
    """A later pass copies quantisers of edges' weights, once for each order of the edges."""
    gm = traced(Two("gcn"), *random_graph(20, 60))
    insert_fake_quant.insert(gm, dict.fromkeys(insert_fake_quant.sites(gm), (-4.0, 4.0)))
    lower_int8.run(gm)
    for node in [n for n in gm.graph.nodes if n.op == "call_function"]:
        with gm.graph.inserting_after(node):
            assert gm.graph.node_copy(node).name != node.name
    gm.graph.lint()


@pytest.mark.parametrize(("keep", "layers"), [("second", 1), ("second.lin.weight", 1), ("aggregation 2", 2)])
def test_what_is_kept(keep: str, layers: int) -> None:
    gm = traced(Two("gcn"), *random_graph(20, 60))
    insert_fake_quant.insert(gm, dict.fromkeys(insert_fake_quant.sites(gm, [keep]), (-1.0, 1.0)), [keep])
    assert count(gm, bgnn.fake_quant_channel) == layers
    assert count(gm, bgnn.fake_quant) < SITES["gcn"][0]


@pytest.mark.parametrize("kind", SITES)
def test_a_module_is_kept_with_its_sums_over_edges(kind: str) -> None:
    gm = traced(Two(kind), *random_graph(20, 60))
    kept = insert_fake_quant.sites(gm, ["first"])
    inside = [n for n in kept if insert_fake_quant.module_of(n).startswith("first")]
    assert len(inside) <= 1, "but for what the second layer reads, if the first one's last step makes it"
    assert not any(is_call(n, bgnn.segment_sum, bgnn.segment_mean) for n in inside)
    assert {n.name for n in kept} < {n.name for n in insert_fake_quant.sites(gm)}
    assert sum(insert_fake_quant.module_of(n).startswith("second") for n in kept) > 0


def test_the_read_out_stays_real() -> None:
    x, edge_index = random_graph(20, 60)
    batch = torch.arange(20) // 10
    gm = traced(Pooled(), x, edge_index, batch)
    sites = insert_fake_quant.sites(gm)
    (over_edges,) = [n for n in gm.graph.nodes if is_call(n, bgnn.segment_sum) and n.meta["val"].dim() > 1]
    (pooled,) = [n for n in gm.graph.nodes if is_call(n, bgnn.segment_mean)]
    assert over_edges in sites
    assert pooled in sites, "it is what a dense layer reads"
    kept = insert_fake_quant.sites(gm, ["out"])
    assert over_edges in kept
    assert pooled not in kept, "a read-out whose layer stays float is no sum over edges"


@pytest.mark.parametrize("ends", [(0.0, 0.0), (2.0, 3.0), (-3.0, -2.0), (-1.0, 3.0)])
def test_zero_is_a_code(ends: tuple[float, float]) -> None:
    gm = traced(Two("sage"), *random_graph(20, 60))
    first = insert_fake_quant.sites(gm)[0]
    insert_fake_quant.insert(gm, {first: ends})
    (quantiser,) = first.users
    _, scale, zero, low, high = quantiser.args
    assert low <= zero <= high
    assert float(bgnn.fake_quant(torch.zeros(1), scale, zero, low, high)) == 0.0
    assert scale > 0


class Edges(nn.Module):
    """EdgeConv on a cloud's neighbours, as it stands before quantisers are put in: per node."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.near, self.here, self.out = nn.Linear(3, 8, bias=False), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        index = bgnn.knn(x, 3, "l2")
        h = (bgnn.gather_nodes(self.near(x), index).amax(2) + self.here(x)).relu()
        return self.out(h).relu().amax(1)


def test_a_clouds_layers_are_quantised_per_node() -> None:
    gm = traced(Edges(), torch.randn(2, 9, 3))
    sites = insert_fake_quant.sites(gm)
    assert [is_call(n, torch.ops.aten.linear) for n in sites] == [False, True, True, False], sites  # x, both, the ReLU
    insert_fake_quant.insert(gm, dict.fromkeys(sites, (-4.0, 4.0)))
    (search,) = [n for n in gm.graph.nodes if is_call(n, bgnn.knn)]
    assert search.args[0].op == "placeholder"  # the points as they are given


def test_results_of_layers_are_quantised_where_that_is_asked_for() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            return self.last(torch.cat([h.amax(1), h.mean(1)], 1))

    gm = traced(Two(), torch.randn(2, 9, 3))
    plain, more = insert_fake_quant.sites(gm), insert_fake_quant.sites(gm, results=True)
    assert len(plain) == 2  # x and the pooled; not what only the output reads
    (new,) = set(more) - set(plain)
    assert is_call(new, torch.ops.aten.relu)
