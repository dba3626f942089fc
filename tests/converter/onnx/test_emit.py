"""The file itself: valid, the same bytes every time, small; names, probes, properties."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from graphs import exported
from onnx_graphs import FORMS, file_of, needs_ops, open_graph, random_edges, run, write_tables

from bgnn.converter.errors import UsageError
from bgnn.converter.onnx.emit import emit, run_file, supported_ops
from bgnn.converter.onnx.inspect import operators
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

bgnn = torch.ops.bgnn


def network(m, x, edges):
    for _ in range(2):
        x = torch.relu(x @ m.w)
        x = bgnn.segment_mean(x.index_select(0, edges.select(0, 0)), edges.select(0, 1), x.shape[0])
    return x


def network_graph():
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    return open_graph(network, torch.zeros(5, 8), random_edges(5, 9), w=weight)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bytes(form):
    assert file_of(network_graph(), form) == file_of(network_graph(), form)


@pytest.mark.parametrize("form", FORMS)
def test_a_valid_file(form):
    model = onnx.load_from_string(file_of(network_graph(), form))
    onnx.checker.check_model(model, full_check=form[1] == "stock")
    domains = {entry.domain for entry in model.opset_import}
    assert domains == ({"", "bgnn"} if form[1] == "bgnn" else {""})
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["bgnn.test"] == "grün"
    nodes = [[1, {"input": "in0", "axis": 0}]]
    assert json.loads(properties["bgnn.inputs"]) == [
        {"name": "in0", "dtype": "float32", "shape": ["nodes", 8], "indices": []},
        {"name": "in1", "dtype": "int64", "shape": [2, "edges"], "indices": [{"row": None, "below": [nodes]}]},
    ]
    assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == ["nodes", 8]


def test_what_no_output_needs_is_left_out():
    def function(m, x):
        torch.exp(x @ m.w)
        return x + 1

    data = file_of(exported(function, torch.zeros(3, 8), w=torch.zeros(8, 8)))
    assert operators(data) == {"Add": 1, "Identity": 1}
    assert len(data) < 1000


def test_an_input_that_nothing_reads_stays():
    data = file_of(exported(lambda m, x, y: x + 1, torch.zeros(3), torch.zeros(4)))
    assert len(run(OnnxModel(data), torch.zeros(3), torch.zeros(4))) == 1


def test_inputs_and_constants_as_outputs():
    gm = exported(lambda m, x: (x, m.c, x + 0, x), torch.zeros(3), outputs=4, c=torch.ones(2))
    found = run(OnnxModel(file_of(gm)), torch.arange(3.0))
    for mine, theirs in zip(found, ([0, 1, 2], [1, 1], [0, 1, 2], [0, 1, 2]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_probes_of_nodes_and_edges(form):
    """Every tensor of numbers can be asked for, edge tensors in the edges' order; own kernels have none of these."""
    gm = network_graph()
    write_tables(gm, form)
    tensors = [n for n in gm.graph.nodes if n.op == "call_function" and isinstance(n.meta.get("val"), torch.Tensor)]
    nodes = next(n for n in gm.graph.nodes if n.op == "placeholder").meta["val"].shape[0]
    there = [n for n in tensors if form[1] == "stock" or n.meta["val"].shape[0] == nodes]
    probes = {f"tap/{n.name}": n for n in there if n.meta["val"].is_floating_point()}
    assert len(probes) >= 5
    x, edges = torch.randn(40, 8), random_edges(40, 99)
    found = run_file(file_of(gm, form, probes), [x.numpy(), edges.numpy()])
    env: dict[str, torch.Tensor] = {}

    class Collect(torch.fx.Interpreter):
        def run_node(self, n):
            env[n.name] = super().run_node(n)
            return env[n.name]

    Collect(gm).run(x, edges)
    assert len(found) == 1 + len(probes)
    for node, value in zip(probes.values(), found[1:], strict=True):
        np.testing.assert_allclose(value, env[node.name].numpy(), rtol=1e-4, atol=1e-4, err_msg=node.name)


def test_names_that_do_not_fit():
    gm = exported(lambda m, x: x + 1, torch.zeros(3))
    with pytest.raises(UsageError, match="1 inputs and 1 outputs, but 2 and 1 names"):
        emit(gm, name="n", input_names=["a", "b"], output_names=["c"], metadata={})


def test_ops_of_the_kernels():
    assert "bgnn.q_aggregate.default" not in supported_ops()
    assert set(supported_ops()) < set(supported_ops("bgnn"))


@needs_ops
def test_edges_are_sorted_once():
    count = operators(file_of(network_graph(), (1, "bgnn")))
    assert count["bgnn.CooToCsr"] == 1
    assert count["bgnn.Aggregate"] == 2
    assert count["Gather"] == 1  # the number of nodes, from a shape


@pytest.mark.parametrize("form", FORMS)
def test_a_deep_network(form):
    def deep(m, x, edges):
        for _ in range(40):
            x = network(m, x, edges) * 1.1 + x
        return x

    graph = open_graph(deep, torch.zeros(5, 8), random_edges(5, 9), w=torch.eye(8))
    assert len(file_of(graph, form)) > 10_000
