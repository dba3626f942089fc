"""Open sizes are symbols that equal nothing but themselves."""

from __future__ import annotations

import pytest
import torch
from graph_models import random_graph
from graphs import Wrapped, aten, only
from torch import fx

from bgnn.converter.errors import ConversionError
from bgnn.converter.sizes import check_open, graph_axes
from bgnn.converter.trace import trace
from bgnn.passes.graph import call, is_static, literal, shape_of


def opened(nodes: int, edges: int) -> fx.GraphModule:
    example = random_graph(nodes, edges)
    function = Wrapped(lambda m, x, e: x.index_select(0, e[0]).relu(), {})
    return trace(function, example, open_axes=graph_axes(example))


def test_axes() -> None:
    x, edges = random_graph(5, 7)
    axes = graph_axes((x, edges, torch.zeros(5, dtype=torch.int64), torch.tensor(3)))
    assert [list(a) for a in axes] == [[0], [1], [0], []]


@pytest.mark.parametrize(("nodes", "edges"), [(20, 20), (6, 6), (20, 70)])
def test_sizes_that_happen_to_be_equal_are_not(nodes: int, edges: int) -> None:
    """6 is the number of features, too."""
    gm = opened(nodes, edges)
    x, e = (n for n in gm.graph.nodes if n.op == "placeholder")
    gathered = only(gm, aten.index_select)
    assert not is_static(x)
    assert shape_of(x)[1] == 6
    assert shape_of(gathered)[0] == shape_of(e)[1]
    assert not shape_of(gathered)[0] == shape_of(x)[0]  # noqa: SIM201  (the symbol's own ==)
    assert not shape_of(x)[0] == 6  # noqa: SIM201
    check_open(gm)


def test_new_nodes_get_open_shapes() -> None:
    gm = opened(20, 70)
    relu = only(gm, aten.relu)
    node = call(relu, aten.reshape.default, relu.args[0], [-1, 2, 3])
    assert literal(shape_of(node)) == [-1, 2, 3]
    assert shape_of(node)[0] == shape_of(relu)[0]
    assert literal((shape_of(node)[0], shape_of(node)[0])) is None


def test_a_size_that_was_fixed_is_an_error() -> None:
    gm = opened(20, 70)
    x = next(n for n in gm.graph.nodes if n.op == "placeholder")
    int(shape_of(x)[0])  # what no pass may do
    with pytest.raises(ConversionError, match="open size"):
        check_open(gm)
