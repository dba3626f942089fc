"""GraphSAGE, BinSAGE and GCN: the papers' equations, checkpoints, and the whole graph a layer at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bgnn.converter.api import convert
from bgnn.models.checkpoint import build_model, load_checkpoint, load_example, save_checkpoint
from bgnn.models.compare import runner
from bgnn.models.neighbours import Neighbours, graph_of, infer, most_nodes
from bgnn.models.sage import NODE_ARCHITECTURES, scales
from bgnn.runtime_bench.runtime.tflite_runner import run_file


def graph(nodes=30, edges=110, features=6):
    torch.manual_seed(0)
    return torch.randn(nodes, features), torch.randint(nodes, (2, edges))


def settled(architecture, **settings):
    """In eval mode, with statistics and scales that are not the initial ones."""
    model = build_model(architecture, features=6, classes=4, hidden=8, **settings).train()
    with torch.no_grad():
        for _ in range(10):
            model(*graph())
        for scale in scales(model):
            scale.normal_()
    return model.eval()


def means(x, edge_index):
    """Neighbours' means, written node by node."""
    rows = [x[edge_index[0][edge_index[1] == i]] for i in range(len(x))]
    return torch.stack([row.mean(0) if len(row) else torch.zeros(x.shape[1]) for row in rows])


def test_sage_is_equation_5():
    model, (x, edge_index) = settled("sage"), graph()
    want = x
    for i, layer in enumerate(model.convs):
        both = torch.cat([want, means(want, edge_index)], 1)
        if i < 2:
            want = F.normalize(F.relu(F.linear(both, layer[0].weight, layer[0].bias)), dim=1)
        else:
            want = F.linear(both, layer.weight, layer.bias)
    torch.testing.assert_close(model(x, edge_index), want)


@pytest.mark.parametrize(("activation", "normalise"), [("prelu", True), ("none", False)])
def test_binsage_is_equations_14_and_15(activation, normalise):
    model, (x, edge_index) = settled("binsage", activation=activation, normalise=normalise), graph()
    want = x
    for i, block in enumerate(model.convs):
        h = block.center(torch.cat([want, means(want, edge_index)], 1))
        h = torch.where(h >= 0, 1.0, -1.0) @ torch.where(block.core_op.weights_real >= 0, 1.0, -1.0).T
        want = h * block.rescale.scale_a
        if i < 2:
            want = F.prelu(want, block.activ.weight) if activation == "prelu" else want
            want = F.normalize(want, dim=1) if normalise else want
    torch.testing.assert_close(model(x, edge_index), want)
    assert len(scales(model)) == 3


@pytest.mark.parametrize("architecture", NODE_ARCHITECTURES)
def test_a_layer_at_a_time_is_the_same(architecture):
    pytest.importorskip("torch_geometric")
    model, (x, edge_index) = settled(architecture), graph()
    edge_index[:, :3] = 5  # three self-loops at one node
    edge_index[:, 0] = torch.tensor([7, 7])
    with torch.no_grad():
        want = model(x, edge_index)
    for chunk in (50, 2**22):
        torch.testing.assert_close(infer(model, x, graph_of(model, edge_index, len(x)), chunk), want)


def test_samples_hold_the_wanted_nodes_and_no_more_than_was_asked_for():
    rng = np.random.default_rng(0)
    edge_index = torch.from_numpy(rng.integers(0, 200, (2, 4000)))
    whole = Neighbours(edge_index, 200)
    wanted = np.array([7, 3, 150])
    sample = whole.sample(wanted, (4, 2), rng)
    nodes, edges = sample.nodes, sample.edges
    assert nodes[:3].tolist() == [7, 3, 150]
    assert len(nodes.unique()) == len(nodes)
    assert torch.bincount(edges[1], minlength=len(nodes))[:3].tolist() == [4, 4, 4]
    assert torch.bincount(edges[1]).max() <= 4
    most = most_nodes(3, (4, 2))
    assert most == (3 + 12 + 24, 12 + 24)
    assert len(nodes) <= most[0]
    assert edges.shape[1] <= most[1]
    have = {(int(a), int(b)) for a, b in edge_index.T}
    assert all((int(nodes[a]), int(nodes[b])) in have for a, b in edges.T)
    again = whole.sample(wanted, (4, 2), np.random.default_rng(5))
    assert torch.equal(again.edges, whole.sample(wanted, (4, 2), np.random.default_rng(5)).edges)


@pytest.mark.parametrize("architecture", NODE_ARCHITECTURES)
def test_with_room_for_all_neighbours_a_sample_gives_the_whole_graphs_logits(architecture):
    pytest.importorskip("torch_geometric")
    rng = np.random.default_rng(0)
    edge_index, x, wanted = torch.from_numpy(rng.integers(0, 90, (2, 200))), torch.randn(90, 6), np.array([7, 3, 50])
    model = settled(architecture)
    whole = graph_of(model, edge_index, 90)
    sample = whole.sample(wanted, (99, 99, 99), rng)
    assert sample.node_ends[3] > sample.node_ends[2] > sample.node_ends[1] > 3
    seen = []
    model.convs[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        logits = model.on_sample(x[sample.nodes], whole.degree[sample.nodes], sample)
        torch.testing.assert_close(logits, model(x, edge_index)[wanted])
    assert seen[0] == sample.node_ends[2]  # the rim has no neighbours to take the mean of


def test_neighbours_are_drawn_alike_and_without_replacement():
    edge_index = torch.stack([torch.arange(1, 11), torch.zeros(10, dtype=torch.int64)])
    whole, rng = Neighbours(edge_index, 11), np.random.default_rng(0)
    count = np.zeros(11)
    for _ in range(2000):
        sample = whole.sample(np.array([0]), (3,), rng)
        assert len(sample.nodes) == 4
        assert sample.edges.shape == (2, 3)
        count[sample.nodes.numpy()] += 1
    assert np.abs(count[1:] / 2000 - 0.3).max() < 0.04


@pytest.mark.parametrize("architecture", NODE_ARCHITECTURES)
def test_checkpoints_carry_settings_and_a_graph(architecture, tmp_path):
    pytest.importorskip("torch_geometric")
    model, (x, edge_index) = settled(architecture), graph()
    save_checkpoint(tmp_path / "m.pt", model, example={"x": x, "edge_index": edge_index})
    again, example = load_checkpoint(tmp_path / "m.pt"), load_example(tmp_path / "m.pt")
    assert again.config == model.config
    assert torch.equal(again(**example), model(x, edge_index))


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("sage", {"hidden": 0}, "hidden is 0"),
        ("binsage", {"stage": 4}, "stage is 4"),
        ("binsage", {"activation": "relu"}, "activation is 'relu'"),
        ("gcn", {"stage": 1}, "gcn has no setting 'stage'"),
        ("sage", {"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_settings(architecture, settings, message):
    with pytest.raises(ValueError, match=message):
        build_model(architecture, **settings)


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \[30, 5\]; this network takes \[nodes, 6\]"):
        settled("sage")(torch.zeros(30, 5), graph()[1])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NODE_ARCHITECTURES)
@pytest.mark.parametrize("target", ["onnx-x86", "onnx-int8-x86"])
def test_onnx_files_take_graphs_of_any_size(architecture, target):
    pytest.importorskip("torch_geometric")
    model = settled(architecture)
    done = convert(model, graph(), target=target)
    run = runner(done.model_bytes, ["x", "edge_index"])
    for nodes, edges in ((30, 110), (57, 20), (9, 300)):
        x, edge_index = graph(nodes, edges)
        want = model(x, edge_index).detach().numpy()
        got = run(x.numpy(), edge_index.numpy())
        if architecture == "binsage" or target == "onnx-x86":
            np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
        else:
            assert got.shape == want.shape


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sage", "binsage"])
def test_sampled_graphs_of_a_stated_size_go_to_tflite(architecture):
    """A file of 40 nodes and 150 edges runs sampled neighbourhoods of up to so many."""
    model, rng = settled(architecture), np.random.default_rng(0)
    done = convert(model, graph(), target="lce-arm64", fixed_sizes=("nodes=40", "edges=150"))
    checks = [check for check in done.report.checks if check.what.startswith("emitted file")]
    assert checks
    assert architecture == "sage" or any(check.signs for check in checks)
    x, edge_index = graph(90, 150)
    sample = Neighbours(edge_index, 90).sample(np.array([5, 17, 60]), (4, 2, 2), rng)
    inputs = x[sample.nodes], sample.edges
    assert len(sample.nodes) < 40
    (got,) = run_file(done.model_bytes, [one.numpy() for one in inputs])
    np.testing.assert_allclose(got, model(*inputs).detach().numpy(), atol=1e-4)
