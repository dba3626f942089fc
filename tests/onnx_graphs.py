"""Graph networks as ONNX files for tests: a Python function, its files in every form, graphs they have not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from graphs import Wrapped
from torch import Tensor, fx

import bgnn.converter.dialect_graph
import bgnn.converter.dialect_int8  # noqa: F401  (defines the ops)
from bgnn.converter.errors import BgnnError
from bgnn.converter.onnx.emit import emit
from bgnn.converter.sizes import graph_axes, host_size
from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, neighbour_tables, sort_edges
from bgnn.passes.graph import calls
from bgnn.runtime_bench.runtime.onnx_ops import library_path
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

try:
    library_path()
    MISSING_OPS = ""
except BgnnError as error:
    MISSING_OPS = str(error)

needs_ops = pytest.mark.skipif(bool(MISSING_OPS), reason=MISSING_OPS)
FORMS = [
    pytest.param((0, "stock"), id="naive"),
    pytest.param((1, "stock"), id="tables"),
    pytest.param((1, "bgnn"), id="own", marks=needs_ops),
]
Form = tuple[int, str]


def open_graph(function: Callable[..., Any], *inputs: Tensor, outputs: int = 1, **constants: Tensor) -> fx.GraphModule:
    """`function(m, *inputs)` with open numbers of nodes and edges; dialect ops may stand in it, in one spelling."""
    gm = trace(Wrapped(function, constants), inputs, range(outputs), graph_axes(inputs))
    canonicalise.run(gm)
    return gm


def write_tables(gm: fx.GraphModule, form: Form) -> None:
    """Puts what a form of file reads of its edges into a graph, once."""
    if any(calls(gm.graph, torch.ops.bgnn.neighbour_table, torch.ops.bgnn.edge_csr)):
        return
    if form == (1, "stock"):
        neighbour_tables.run(gm, host_size)
    elif form == (1, "bgnn"):
        sort_edges.run(gm)


def file_of(gm: fx.GraphModule, form: Form = (1, "stock"), probes: dict[str, fx.Node] | None = None) -> bytes:
    """The file of a graph; inputs in0, in1, ..., outputs out0, out1, ..."""
    write_tables(gm, form)
    count = len(next(node for node in gm.graph.nodes if node.op == "output").args[0])
    inputs = sum(node.op == "placeholder" for node in gm.graph.nodes)
    return emit(
        gm,
        name="tiny",
        input_names=[f"in{i}" for i in range(inputs)],
        output_names=[f"out{i}" for i in range(count)],
        metadata={"bgnn.test": "grün"},
        probes=probes,
        optimize=form[0],
        kernels=form[1],
    )


def run(model: OnnxModel, *inputs: Tensor) -> list[np.ndarray]:
    """The outputs in their order."""
    return list(model.run(**{f"in{i}": value.numpy() for i, value in enumerate(inputs)}).values())


def random_edges(nodes: int, edges: int, seed: int = 0) -> Tensor:
    """int64 [2, edges], with duplicates and self-loops as they fall."""
    return torch.randint(0, max(nodes, 1), (2, edges), generator=torch.Generator().manual_seed(seed))


def unseen_graphs() -> list[tuple[str, int, Tensor]]:
    """Name, number of nodes, edges: what a file made from one graph must be right on as well."""
    hub = torch.stack([torch.arange(700), torch.full((700,), 3)])
    loops = torch.stack([torch.arange(50), torch.arange(50)])
    return [
        ("no edges", 6, torch.zeros(2, 0, dtype=torch.int64)),
        ("one node", 1, torch.zeros(2, 0, dtype=torch.int64)),
        ("one node, its loop three times", 1, torch.zeros(2, 3, dtype=torch.int64)),
        ("isolated nodes", 300, random_edges(40, 90)),
        ("a node with every other as neighbour", 700, torch.cat([hub, random_edges(700, 300)], 1)),
        ("self-loops", 50, torch.cat([loops, random_edges(50, 200), loops], 1)),
        ("duplicates", 9, random_edges(9, 800)),
        ("more edges than a block", 4000, random_edges(4000, 30000)),
    ]


def check(
    function: Callable[..., Any], form: Form, features: int = 8, tolerance: float = 0.0, outputs: int = 1,
    graphs: Sequence[tuple[str, int, Tensor]] | None = None, **constants: Tensor,
) -> OnnxModel:  # fmt: skip
    """Makes a file of `function(m, x, edge_index)` from one graph and compares it with the function on others."""
    gm = open_graph(function, torch.randn(12, features), random_edges(12, 40), outputs=outputs, **constants)
    model = OnnxModel(file_of(gm, form))
    module = Wrapped(function, constants)
    for name, nodes, edges in unseen_graphs() if graphs is None else graphs:
        x = torch.randn(nodes, features, generator=torch.Generator().manual_seed(nodes))
        expected = module(x, edges)
        found = run(model, x, edges)
        for mine, theirs in zip(found, [expected] if outputs == 1 else expected, strict=True):
            assert mine.shape == tuple(theirs.shape), name
            assert mine.dtype == theirs.numpy().dtype, name
            if tolerance:
                np.testing.assert_allclose(mine, theirs.numpy(), atol=tolerance, rtol=tolerance, err_msg=name)
            else:
                np.testing.assert_array_equal(mine, theirs.numpy(), err_msg=name)
    return model
