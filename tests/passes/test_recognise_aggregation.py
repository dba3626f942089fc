"""PyG's message passing in a traced graph, on open sizes: segment reductions, softmax, and what stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import awkward_graphs, random_graph, run
from graphs import Wrapped, aten, bgnn, count
from torch import Tensor, fx
from torch_geometric.nn import global_mean_pool
from torch_geometric.utils import scatter, softmax

from bgnn.converter.sizes import check_open, graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, fold_constants, merge_equal_nodes, recognise_aggregation


def found(function: Callable[..., Any]) -> tuple[fx.GraphModule, int]:
    """The graph after the pass, which must compute on all other graphs what the function does."""
    example = random_graph(20, 70)
    gm = trace(Wrapped(function, {}), example, open_axes=graph_axes(example))
    canonicalise.run(gm)
    merge_equal_nodes.run(gm)
    rewrites = recognise_aggregation.run(gm).rewrites
    check_open(gm)
    for name, graph in awkward_graphs().items():
        assert torch.equal(run(gm, *graph), function(None, *graph)), name
    return gm, rewrites


SEGMENTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "sum": ("segment_sum", lambda m, x, e: scatter(x[e[0]], e[1], 0, x.shape[0], "sum")),
    "mean": ("segment_mean", lambda m, x, e: scatter(x[e[0]], e[1], 0, x.shape[0], "mean")),
    "max": ("segment_max", lambda m, x, e: scatter(x[e[0]], e[1], 0, x.shape[0], "max")),
    "index_add": ("segment_sum", lambda m, x, e: torch.zeros_like(x).index_add(0, e[1], x[e[0]])),
    "scatter_add": (
        "segment_sum",
        lambda m, x, e: x.new_zeros(x.shape[0], 6).scatter_add(0, e[1][:, None].expand(-1, 6), x[e[0]]),
    ),
    "scatter_reduce mean": (
        "segment_mean",
        lambda m, x, e: x.new_zeros(x.shape[0], 6).scatter_reduce(
            0, e[1][:, None].expand(-1, 6), x[e[0]], "mean", include_self=False
        ),
    ),
    "heads": ("segment_sum", lambda m, x, e: scatter(x.view(-1, 2, 3)[e[0]], e[1], 0, x.shape[0], "sum")),
    "targets to sources": ("segment_sum", lambda m, x, e: scatter(x[e[1]], e[0], 0, x.shape[0], "sum")),
    "degrees": (
        "segment_sum", lambda m, x, e: x * scatter(torch.ones_like(e[1], dtype=torch.float32), e[1], 0, len(x))[:, None]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTS)
def test_reductions(name: str) -> None:
    op, function = SEGMENTS[name]
    gm, _ = found(function)
    assert count(gm, getattr(bgnn, op)) == 1
    assert count(gm, aten.scatter_add, aten.scatter_reduce, aten.index_add, aten.expand, aten.new_zeros) == 0


def test_min_is_a_max() -> None:
    gm, _ = found(lambda m, x, e: scatter(x[e[0]], e[1], 0, x.shape[0], "min"))
    assert count(gm, bgnn.segment_max) == 1


def test_softmax() -> None:
    gm, _ = found(lambda m, x, e: scatter(softmax(x[e[0]], e[1], num_nodes=x.shape[0]), e[1], 0, x.shape[0]))
    assert count(gm, bgnn.segment_softmax) == 1
    assert count(gm, aten.exp, bgnn.segment_max) == 0


def test_another_softmax_stays() -> None:
    def warmer(m: Any, x: Tensor, e: Tensor) -> Tensor:
        v = x[e[0]]
        powers = (v - scatter(v, e[1], 0, x.shape[0], "max")[e[1]]).exp()
        return scatter(powers / (scatter(powers, e[1], 0, x.shape[0])[e[1]] + 1.0), e[1], 0, x.shape[0])

    gm, _ = found(warmer)
    assert count(gm, bgnn.segment_softmax) == 0
    assert count(gm, aten.exp) == 1


def test_a_known_number_of_graphs() -> None:
    """`global_mean_pool(x, batch, 2)`: the zeros are a constant of the traced graph."""

    class Pooled(torch.nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
            return global_mean_pool(x, batch, 2)

    inputs = (*random_graph(20, 60), torch.arange(20) // 10)
    gm = trace(Pooled().eval(), inputs, open_axes=graph_axes(inputs))
    expected = run(gm, *inputs)
    for step in (canonicalise, fold_constants, merge_equal_nodes):
        step.run(gm)
    assert recognise_aggregation.run(gm).rewrites
    assert (count(gm, bgnn.segment_mean), count(gm, aten.scatter_add)) == (1, 0)
    assert torch.equal(run(gm, *inputs), expected)


def spread(e: Tensor, x: Tensor) -> Tensor:
    return e[1].view(-1, 1).expand(-1, x.shape[1])


ONTO: dict[str, Callable[..., Any]] = {
    "add": lambda m, x, e: x.index_add(0, e[1], x[e[0]]),
    "add with a factor": lambda m, x, e: torch.zeros_like(x).index_add(0, e[1], x[e[0]], alpha=0.5),
    "put": lambda m, x, e: (x * 2).index_put((e[1],), x[e[0]], accumulate=True),
    "sum": lambda m, x, e: x.scatter_reduce(0, spread(e, x), x[e[0]], "sum"),
    "max": lambda m, x, e: x.scatter_reduce(0, spread(e, x), x[e[0]], "amax"),
    "min": lambda m, x, e: x.index_reduce(0, e[1], x[e[0]], "amin"),
    "mean": lambda m, x, e: x.scatter_reduce(0, spread(e, x), x[e[0]], "mean"),
    "max where there is one": lambda m, x, e: x.scatter_reduce(0, spread(e, x), x[e[0]], "amax", include_self=False),
    "sum where there is one": lambda m, x, e: x.scatter_reduce(0, spread(e, x), x[e[0]], "sum", include_self=False),
    "counted": lambda m, x, e: (
        x * torch.zeros(x.shape[0], 1, dtype=torch.long).index_add(0, e[1], torch.ones_like(e[1:].T))
    ),
}


@pytest.mark.parametrize("how", ONTO)
def test_onto_what_is_there(how: str) -> None:
    example = random_graph(20, 70)
    gm = trace(Wrapped(ONTO[how], {}), example, open_axes=graph_axes(example))
    canonicalise.run(gm)
    merge_equal_nodes.run(gm)
    assert recognise_aggregation.run(gm).rewrites == 1
    check_open(gm)
    assert count(gm, *recognise_aggregation.SCATTERS) == 0
    for name, graph in awkward_graphs().items():
        torch.testing.assert_close(run(gm, *graph), ONTO[how](None, *graph), msg=name)


def test_a_scatter_of_a_part_stays() -> None:
    example = random_graph(20, 70)
    half = lambda m, x, e: torch.zeros_like(x).scatter_add(0, e[1].view(-1, 1).expand(-1, 3), x[e[0]])  # noqa: E731
    gm = trace(Wrapped(half, {}), example, open_axes=graph_axes(example))
    canonicalise.run(gm)
    assert recognise_aggregation.run(gm).rewrites == 0
    assert torch.equal(run(gm, *example), half(None, *example))


def test_a_scatter_takes_as_many_rows_as_its_index_has() -> None:
    function = lambda m, x, e, b: torch.zeros(3, 6).scatter_add(0, b[:, None].expand(-1, 6), x)  # noqa: E731
    example = (*random_graph(20, 70), torch.arange(20) % 3)
    gm = trace(Wrapped(function, {}), example, open_axes=graph_axes(example))
    canonicalise.run(gm)
    assert recognise_aggregation.run(gm).rewrites == 1
    check_open(gm)
    for batch in (example[2], torch.arange(7) % 2):
        assert torch.equal(run(gm, *example[:2], batch), function(None, *example[:2], batch))


@pytest.mark.parametrize("is_open", [True, False])
def test_as_many_for_each_node_are_rows_of_a_table(is_open: bool) -> None:
    """A target repeated for its k neighbours, by hand: no index is left, at open sizes either."""

    def function(m: Any, x: Tensor) -> Tensor:
        target = torch.arange(x.shape[0]).repeat_interleave(3)
        messages = x[target] * x[:, :1].repeat_interleave(3, 0)
        summed = x.new_zeros(x.shape[0], x.shape[1]).index_add(0, target, messages)
        return summed + x.new_zeros(x.shape).scatter_reduce(
            0, target[:, None].expand_as(messages), messages, "amax", include_self=False
        )

    x = torch.randn(9, 4)
    gm = trace(Wrapped(function, {}), (x,), open_axes=[{0: torch.export.Dim.DYNAMIC}] if is_open else None)
    canonicalise.run(gm)
    recognise_aggregation.run(gm)
    assert not any(count(gm, op) for op in (bgnn.segment_sum, bgnn.segment_max, aten.index_add, aten.scatter_reduce))
    for y in (x, torch.randn(14, 4)) if is_open else (x,):
        assert torch.allclose(run(gm, y), function(None, y))
