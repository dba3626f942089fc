"""Self-loops in a traced graph, in the spellings that people use: added, added beside others, taken away, weighted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import awkward_graphs, random_graph, run
from graphs import Wrapped, aten, bgnn, count, only
from torch import Tensor, fx
from torch_geometric.utils import add_remaining_self_loops, add_self_loops, remove_self_loops, scatter

from bgnn.converter.sizes import check_open, graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, merge_equal_nodes, recognise_self_loops

LEFT = [aten.index, aten.index_put, aten.ne, aten.eq, aten.bitwise_not, aten.arange, aten.repeat]


def found(function: Callable[..., Any], weighted: bool = False) -> fx.GraphModule:
    """The graph after the pass, which must compute on all other graphs what the function does."""

    def inputs(x: Tensor, edges: Tensor) -> tuple[Tensor, ...]:
        weight = torch.rand(edges.shape[1], generator=torch.Generator().manual_seed(len(x)))
        return (x, edges, weight) if weighted else (x, edges)

    example = inputs(*random_graph(20, 70))
    gm = trace(Wrapped(function, {}), example, open_axes=graph_axes(example))
    canonicalise.run(gm)
    merge_equal_nodes.run(gm)
    recognise_self_loops.run(gm)
    check_open(gm)
    for name, graph in awkward_graphs().items():
        assert torch.equal(run(gm, *inputs(*graph)), function(None, *inputs(*graph))), name
    return gm


def nodes(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0])


LISTS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "remaining": ("one", lambda x, e: add_remaining_self_loops(e, num_nodes=x.shape[0])[0]),
    "removed, added": ("one", lambda x, e: add_self_loops(remove_self_loops(e)[0], num_nodes=x.shape[0])[0]),
    "by hand": ("one", lambda x, e: torch.cat([e[:, e[0] != e[1]], nodes(x).expand(2, -1)], 1)),
    "stacked": ("one", lambda x, e: torch.cat([e[:, e[0] != e[1]], torch.stack([nodes(x)] * 2)], 1)),
    "added, then the remaining": (
        "one",
        lambda x, e: add_remaining_self_loops(add_self_loops(e, num_nodes=x.shape[0])[0], num_nodes=x.shape[0])[0],
    ),
    "added": ("more", lambda x, e: add_self_loops(e, num_nodes=x.shape[0])[0]),
    "added by hand": ("more", lambda x, e: torch.cat([e, torch.stack([nodes(x), nodes(x)])], dim=-1)),
    "removed": ("none", lambda x, e: remove_self_loops(e)[0]),
    "removed by hand": ("none", lambda x, e: e[:, ~(e[0] == e[1])]),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str) -> None:
    loops, spelling = LISTS[name]

    def function(m: Any, x: Tensor, e: Tensor) -> Tensor:
        first = spelling(x, e)
        x = scatter(x[first[0]], first[1], 0, x.shape[0])
        second = spelling(x, e)
        return scatter(x[second[0]], second[1], 0, x.shape[0])

    gm = found(function)
    assert only(gm, bgnn.with_self_loops).args[2] == loops  # both layers share them
    assert count(gm, aten.cat, *LEFT) == 0


OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "loops first": lambda x, e: torch.cat([nodes(x).expand(2, -1), e], 1),
    "loops twice": lambda x, e: torch.cat([e, nodes(x).expand(2, -1), nodes(x).expand(2, -1)], 1),
    "only loops": lambda x, e: e[:, e[0] == e[1]],
    "one direction": lambda x, e: e[:, e[0] < e[1]],
    "a star": lambda x, e: torch.cat([e, torch.stack([nodes(x), nodes(x) * 0])], 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_lists_stay(name: str) -> None:
    def function(m: Any, x: Tensor, e: Tensor) -> Tensor:
        e = OTHERS[name](x, e)
        return scatter(x[e[0]], e[1], 0, x.shape[0])

    gm = found(function)
    assert count(gm, bgnn.with_self_loops) == 0
    assert count(gm, aten.cat, aten.index) >= 1


def summed(x: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
    return scatter(x[edges[0]] * weight[:, None], edges[1], 0, x.shape[0])


WEIGHTS: dict[str, tuple[int, int, Callable[..., Tensor]]] = {  # (drop_loops, loop_rows)
    "remaining": (1, 1, lambda m, x, e, w: summed(x, *add_remaining_self_loops(e, w, 2.0, x.shape[0]))),
    "added": (0, 0, lambda m, x, e, w: summed(x, *add_self_loops(e, w, 0.5, x.shape[0]))),
    "added, the mean": (0, 0, lambda m, x, e, w: summed(x, *add_self_loops(e, w, "mean", x.shape[0]))),
    "removed": (1, 0, lambda m, x, e, w: summed(x, *remove_self_loops(e, w))),
    "removed, added": (
        1, 0, lambda m, x, e, w: summed(x, *add_self_loops(*remove_self_loops(e, w), "mean", x.shape[0]))
    ),
    "two masks": (1, 0, lambda m, x, e, w: summed(x, e[:, e[0] != e[1]], w[e[1] != e[0]])),
    "computed": (1, 1, lambda m, x, e, w: summed(x, *add_remaining_self_loops(e, w * 2 - 1, 1.0, x.shape[0]))),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_go_with_the_edges(name: str) -> None:
    dropped, rows, function = WEIGHTS[name]
    gm = found(function, weighted=True)
    assert (count(gm, bgnn.drop_loops), count(gm, bgnn.loop_rows)) == (dropped, rows)
    assert count(gm, *LEFT) == 0


def test_other_masks_and_sums_over_loops_stay() -> None:
    def heavy(m: Any, x: Tensor, e: Tensor, w: Tensor) -> Tensor:
        return summed(x, e[:, w > 0.5], w[w > 0.5])

    assert count(found(heavy, weighted=True), aten.index) == 2

    def added_up(m: Any, x: Tensor, e: Tensor, w: Tensor) -> Tensor:
        loops = e[0] == e[1]
        return x * torch.zeros(x.shape[0]).index_put([e[0][loops]], w[loops], accumulate=True)[:, None]

    gm = found(added_up, weighted=True)
    assert count(gm, bgnn.loop_rows) == 0
    assert count(gm, aten.index_put) == 1
