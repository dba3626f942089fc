"""Message passing in float32: every form of every segment op against its reference, on graphs not seen before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx_graphs import FORMS, check, file_of, open_graph, random_edges, run, unseen_graphs
from torch import Tensor
from torch.nn import functional as F

from bgnn.converter.errors import UsageError
from bgnn.converter.onnx.inspect import operators
from bgnn.passes import recognise_self_loops
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

bgnn = torch.ops.bgnn
SEGMENTS = ("segment_sum", "segment_mean", "segment_max")


def gathered(x: Tensor, edges: Tensor, row: int) -> Tensor:
    return x.index_select(0, edges.select(0, row))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", SEGMENTS)
def test_neighbours_are_reduced(op, form):
    def layer(m, x, edges):
        return getattr(bgnn, op)(gathered(x, edges, 0), edges.select(0, 1), x.shape[0])

    check(layer, form, tolerance=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", SEGMENTS)
def test_flow_from_target_to_source(op, form):
    def layer(m, x, edges):
        return getattr(bgnn, op)(gathered(x, edges, 1), edges.select(0, 0), x.shape[0])

    check(layer, form, tolerance=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loops", ["one", "more", "none"])
def test_self_loops(loops, form):
    def layer(m, x, edges):
        looped = bgnn.with_self_loops(edges, x.shape[0], loops)
        return bgnn.segment_sum(gathered(x, looped, 0), looped.select(0, 1), x.shape[0])

    check(layer, form, tolerance=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loops", ["one", "more", "none"])
@pytest.mark.parametrize(("flow", "one_size"), [(0, True), (1, True), (0, False)])
def test_weights_of_edges_with_other_self_loops(flow, one_size, loops, form):
    def layer(m, x, edges, weight):
        n = x.shape[0]
        looped = bgnn.with_self_loops(edges, n, loops)
        rows = weight if loops == "more" else bgnn.drop_loops(weight, edges)
        if loops == "one":
            rows = torch.cat([rows, bgnn.loop_rows(weight, edges, x.new_full([n], 0.25))])
        elif loops == "more":
            rows = torch.cat([rows, x[:, 0]])
        degree = bgnn.segment_sum(rows, looped.select(0, 1 - flow), n)
        messages = gathered(x, looped, flow) * (rows * gathered(degree.tanh(), looped, flow)).view(-1, 1)
        return bgnn.segment_sum(messages, looped.select(0, 1 - flow), n), degree

    gm = open_graph(layer, torch.randn(12, 8), random_edges(12, 40), torch.rand(40), outputs=2)
    if one_size:
        recognise_self_loops.run(gm)  # one symbol for the length of a list, wherever it is counted
    model = OnnxModel(file_of(gm, form))
    for name, nodes, edges in unseen_graphs():
        generator = torch.Generator().manual_seed(nodes)
        inputs = torch.randn(nodes, 8, generator=generator), edges, torch.rand(edges.shape[1], generator=generator)
        for mine, theirs in zip(run(model, *inputs), layer(None, *inputs), strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
    assert "ScatterND" not in operators(file_of(gm, form))


@pytest.mark.parametrize("form", FORMS)
def test_sums_over_the_features_of_edges_without_edges(form):
    """ONNX Runtime leaves the shape of a tensor without rows as it is."""

    def layer(m, x, edges):
        return (gathered(x, edges, 0) * gathered(x, edges, 1)).sum(-1), gathered(x, edges, 0).amax(1, keepdim=True)

    check(layer, form, tolerance=1e-6, outputs=2)


@pytest.mark.parametrize("form", FORMS)
def test_gcn_normalisation(form):
    def layer(m, x, edges):
        n = x.shape[0]
        looped = bgnn.with_self_loops(edges, n)
        degree = bgnn.segment_sum(torch.ones(looped.shape[1]), looped.select(0, 1), n)
        root = degree.pow(-0.5)
        root = root.masked_fill(root == float("inf"), 0)
        weight = gathered(root, looped, 0) * gathered(root, looped, 1)
        return bgnn.segment_sum(weight.view(-1, 1) * gathered(F.linear(x, m.w), looped, 0), looped.select(0, 1), n)

    check(layer, form, tolerance=1e-5, w=torch.randn(16, 8))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads", [1, 4])
def test_attention(heads, form):
    def layer(m, x, edges):
        n = x.shape[0]
        h = F.linear(x, m.w).view(-1, heads, 5)
        source, target = (h * m.a).sum(-1), (h * m.b).sum(-1)
        score = F.leaky_relu(gathered(source, edges, 0) + gathered(target, edges, 1), 0.2)
        attention = bgnn.segment_softmax(score, edges.select(0, 1), n)
        return bgnn.segment_sum(attention.unsqueeze(-1) * gathered(h, edges, 0), edges.select(0, 1), n).view(
            -1, heads * 5
        )

    check(layer, form, tolerance=1e-4, w=torch.randn(heads * 5, 8), a=torch.randn(1, heads, 5), b=torch.randn(heads, 5))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", SEGMENTS)
def test_edge_networks(op, form):
    """A layer on each edge (PyG's EdgeConv): concatenation, dense layers, activations, then the reduction."""

    def layer(m, x, edges):
        target, source = gathered(x, edges, 1), gathered(x, edges, 0)
        hidden = F.relu(F.linear(torch.cat([target, source - target], -1), m.w, m.b))
        return getattr(bgnn, op)(F.linear(hidden, m.v), edges.select(0, 1), x.shape[0])

    check(layer, form, tolerance=1e-4, w=torch.randn(6, 16), b=torch.randn(6), v=torch.randn(5, 6))


@pytest.mark.parametrize("form", FORMS)
def test_values_that_are_not_neutral_in_free_entries(form):
    """exp(0) = 1 and x + 1 would count the free entries of a table if nothing masked them."""

    def layer(m, x, edges):
        source, index = gathered(x, edges, 0), edges.select(0, 1)
        total = bgnn.segment_sum(source.exp() + 1, index, x.shape[0])
        return total + bgnn.segment_max(-source.abs() - 5, index, x.shape[0])

    check(layer, form, tolerance=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_edge_weights_and_attributes(form):
    """Inputs with a row for each edge, in the edges' order."""

    def layer(m, x, edges, weight, attributes):
        message = weight.view(-1, 1) * gathered(x, edges, 0) + F.linear(attributes, m.w)
        return bgnn.segment_sum(message, edges.select(0, 1), x.shape[0])

    def inputs(nodes, count):
        return torch.randn(nodes, 8), random_edges(nodes, count), torch.randn(count), torch.randn(count, 3)

    weight = torch.randn(8, 3)
    gm = open_graph(layer, *inputs(10, 30), w=weight)
    model = OnnxModel(file_of(gm, form))
    for nodes, count in ((10, 30), (400, 3000), (5, 0), (2, 1)):
        given = inputs(nodes, count)
        expected = layer(type("", (), {"w": weight}), *given)
        np.testing.assert_allclose(run(model, *given)[0], expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_one_number_of_each_edge_is_made_once(form):
    """A GCN's norms, here with weights of the edges: outside of the buckets' bodies, in the tables' order."""

    def layer(m, x, edges, weight):
        a, b = x.sum(1).abs() + 1, x.amax(1).abs() + 1
        norm = (gathered(a, edges, 0) * weight / gathered(b, edges, 1)).sqrt()
        hidden = bgnn.segment_sum(norm.view(-1, 1) * gathered(x, edges, 0), edges.select(0, 1), x.shape[0])
        hidden = bgnn.segment_sum(norm.view(-1, 1) * gathered(hidden, edges, 0), edges.select(0, 1), x.shape[0])
        back = bgnn.segment_sum(norm.view(-1, 1) * gathered(x, edges, 1), edges.select(0, 0), x.shape[0])
        return hidden + back  # against the edges: other tables, another order

    def inputs(nodes, count):
        return torch.randn(nodes, 8), random_edges(nodes, count), torch.rand(count)

    file = file_of(open_graph(layer, *inputs(10, 30)), form)
    graph = onnx.load_from_string(file).graph
    assert sum(node.op_type == "Sqrt" for node in graph.node) == (2 if form == (1, "stock") else 1)
    bodies = [a.g for node in graph.node if node.op_type == "Scan" for a in node.attribute if a.name == "body"]
    assert all(node.op_type != "Sqrt" for body in bodies for node in body.node)
    model = OnnxModel(file)
    for nodes, count in ((10, 30), (400, 3000), (5, 0), (2, 1), (1, 1)):
        given = inputs(nodes, count)
        np.testing.assert_allclose(run(model, *given)[0], layer(None, *given).numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", SEGMENTS)
def test_batches_of_graphs(op, form):
    """PyG's `batch` as an index, the number of graphs from an input's shape."""

    def read_out(m, x, edges, batch, targets):
        hidden = bgnn.segment_sum(gathered(x, edges, 0), edges.select(0, 1), x.shape[0])
        return getattr(bgnn, op)(hidden + x, batch, targets.shape[0])

    def inputs(nodes, count, graphs):
        batch = torch.randint(0, graphs, (nodes,))
        return torch.randn(nodes, 8), random_edges(nodes, count), batch, torch.zeros(graphs, 3)

    gm = open_graph(read_out, *inputs(10, 30, 4))
    model = OnnxModel(file_of(gm, form))
    for nodes, count, graphs in ((10, 30, 4), (300, 900, 17), (4, 0, 9), (3000, 9000, 1)):
        given = inputs(nodes, count, graphs)
        np.testing.assert_allclose(run(model, *given)[0], read_out(None, *given).numpy(), atol=1e-3)


def test_two_layers_share_their_tables():
    def network(m, x, edges):
        for _ in range(2):
            x = F.relu(bgnn.segment_sum(gathered(x, edges, 0), edges.select(0, 1), x.shape[0]))
        return x

    model = check(network, (1, "stock"), tolerance=1e-3, graphs=[("some", 30, random_edges(30, 50))])
    assert len(model.tables) == 1
    assert not any(one.name == "in1" for one in model.session.get_inputs())  # the edges themselves are not read


def test_what_needs_whole_edge_tensors_scatters():
    """A softmax over all edges of the graph has no table form."""

    def layer(m, x, edges):
        return bgnn.segment_sum(F.softmax(gathered(x, edges, 0), 0), edges.select(0, 1), x.shape[0])

    model = check(layer, (1, "stock"), tolerance=1e-4, graphs=[("some", 30, random_edges(30, 90))])
    assert not model.tables


def test_a_number_of_all_edges_inside_tables():
    """The mean over all edges is taken of a whole edge tensor, the rest on tables."""

    def layer(m, x, edges):
        source = gathered(x, edges, 0)
        return bgnn.segment_sum(source - source.mean(0, keepdim=True), edges.select(0, 1), x.shape[0])

    model = check(layer, (1, "stock"), tolerance=1e-4, graphs=[("some", 30, random_edges(30, 90))])
    assert model.tables


@pytest.mark.parametrize("optimize", [0, 1])
def test_nothing_races(optimize):
    """ScatterND with a reduction gives other sums in other runs (onnxruntime issues 18048, 23396)."""

    def layer(m, x, edges):
        return bgnn.segment_mean(gathered(x, edges, 0), edges.select(0, 1), x.shape[0])

    data = file_of(open_graph(layer, torch.randn(9, 8), random_edges(9, 20)), (optimize, "stock"))
    assert "ScatterND" not in operators(data)
    assert ("ScatterElements" in operators(data)) == (optimize == 0)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)


OTHER_SIZES = [(60, 50), (50, 60), (60, 7), (7, 60)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", SEGMENTS)
def test_sources_and_targets_of_different_kinds(op, form):
    """Both have 40 rows in the example, and other numbers in every graph after it; each has a row of its own for -1."""

    def layer(m, x, y, edges, back):
        forth = getattr(bgnn, op)(gathered(x, edges, 0), edges.select(0, 1), y.shape[0])
        other = getattr(bgnn, op)(gathered(y, back, 0) + gathered(x, back, 1), back.select(0, 1), x.shape[0])
        return forth, other

    def sample(sources, targets, seed):
        x, y = torch.randn(sources, 8), torch.randn(targets, 8)
        generator = torch.Generator().manual_seed(seed)
        ends = [torch.randint(0, n, (150,), generator=generator) for n in (sources, targets, targets, sources)]
        return x, y, torch.stack(ends[:2]), torch.stack(ends[2:])

    model = OnnxModel(file_of(open_graph(layer, *sample(40, 40, 0), outputs=2), form))
    for sources, targets in OTHER_SIZES:
        inputs = sample(sources, targets, sources)
        for mine, theirs in zip(run(model, *inputs), layer(None, *inputs), strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5, rtol=1e-5)
    x, y, edges, back = sample(60, 7, 0)
    edges[1, 3] = 7
    with pytest.raises(UsageError, match=r"row 1 of input in2 holds 7, but in1 has 7 rows: indices go from 0 to 6"):
        run(model, x, y, edges, back)


@pytest.mark.parametrize("form", FORMS)
def test_loops_at_the_nodes_that_both_sides_have(form):
    def layer(m, x, y, edges):
        looped = bgnn.with_self_loops(edges, torch.sym_min(x.shape[0], y.shape[0]))
        return bgnn.segment_sum(gathered(x, looped, 0), looped.select(0, 1), y.shape[0])

    def sample(sources, targets):
        ends = torch.randint(0, min(sources, targets), (2, 90), generator=torch.Generator().manual_seed(targets))
        return torch.randn(sources, 8), torch.randn(targets, 8), ends

    model = OnnxModel(file_of(open_graph(layer, *sample(40, 40)), form))
    for sizes in OTHER_SIZES:
        inputs = sample(*sizes)
        np.testing.assert_allclose(run(model, *inputs)[0], layer(None, *inputs).numpy(), atol=1e-5, rtol=1e-5)


FACTORS = {
    "over a sum": lambda w, d: w / d,
    "log": lambda w, d: w.log(),
    "power": lambda w, d: w.pow(-0.5),
    "one over": lambda w, d: 1 / w,
    "root": lambda w, d: w.rsqrt() * d.sqrt(),
    "exp of one over": lambda w, d: (1 / w).clamp(max=9).exp() / w,
    "no number": lambda w, d: (w - w) / w + d,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", FACTORS)
def test_a_factor_that_is_not_finite_in_free_entries(how, form):
    """0 times infinity is no 0: what free entries hold is computed, not assumed."""

    def layer(m, x, edges, weight):
        total = bgnn.segment_sum(weight, edges.select(0, 1), x.shape[0])
        factor = FACTORS[how](weight, total.index_select(0, edges.select(0, 1)))
        message = gathered(x, edges, 0) * factor.unsqueeze(-1)
        return bgnn.segment_sum(message, edges.select(0, 1), x.shape[0])

    gm = open_graph(layer, torch.randn(12, 8), random_edges(12, 40), torch.rand(40) + 0.1)
    model = OnnxModel(file_of(gm, form))
    for nodes, edges in ((30, random_edges(30, 100)), (9, random_edges(4, 50))):
        inputs = torch.randn(nodes, 8), edges, torch.rand(edges.shape[1]) + 0.1
        expected = layer(None, *inputs).numpy()
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(run(model, *inputs)[0], expected, atol=1e-5, rtol=1e-4)


def test_what_is_known_to_be_0_is_not_masked():
    """GCN's messages: a norm of each edge, and rows of sources; no pass over them is spent on free entries."""

    def layer(m, x, edges, weight):
        message = torch.nn.functional.leaky_relu(gathered(x, edges, 0)) * weight.unsqueeze(-1)
        return bgnn.segment_sum(message, edges.select(0, 1), x.shape[0])

    data = file_of(open_graph(layer, torch.randn(12, 8), random_edges(12, 40), torch.rand(40)), (1, "stock"))
    assert "Where" not in operators(data)
