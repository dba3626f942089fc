"""The ops of message passing against loops in NumPy and against PyG, with graphs of every awkward kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs import randn
from torch import Tensor
from torch.export import Dim
from torch_geometric.utils import add_remaining_self_loops, add_self_loops, remove_self_loops, scatter, softmax

import bgnn.converter.dialect_graph as dg

bgnn = torch.ops.bgnn
# (nodes, edges as (source, target)): loops, doubles, isolated nodes, a hub, no edges, no nodes
GRAPHS = {
    "plain": (4, [(0, 1), (1, 2), (2, 3), (3, 0)]),
    "loops and doubles": (3, [(0, 0), (0, 1), (0, 1), (2, 2), (2, 2), (1, 0)]),
    "isolated": (6, [(5, 2)]),
    "hub": (9, [(i, 4) for i in range(9)]),
    "no edges": (3, []),
    "no nodes": (0, []),
}


def edges_of(name: str) -> tuple[int, Tensor]:
    n, pairs = GRAPHS[name]
    return n, torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t().contiguous()


def loop(values: Tensor, index: Tensor, n: int, reduce: str) -> np.ndarray:
    v = values.double().numpy()
    out = np.zeros((n, *v.shape[1:]))
    for i in range(n):
        mine = [v[e] for e in range(len(v)) if index[e] == i]
        if mine:
            out[i] = {"sum": np.sum, "mean": np.mean, "max": np.max}[reduce](np.stack(mine), axis=0)
    return out


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", GRAPHS)
def test_segment_reductions(name: str, trailing: tuple[int, ...], reduce: str) -> None:
    n, edges = edges_of(name)
    values = randn(edges.shape[1], *trailing) - 3  # below zero: an empty segment's 0 is not the largest
    out = getattr(bgnn, f"segment_{reduce}")(values, edges[1], n)
    assert out.shape == (n, *trailing)
    assert np.allclose(out.numpy(), loop(values, edges[1], n, reduce), atol=1e-6)
    if trailing == (3,):  # bit for bit what PyG's scatter gives
        assert torch.equal(out, scatter(values, edges[1], 0, n, reduce))


@pytest.mark.parametrize("name", GRAPHS)
def test_segment_softmax_is_pygs(name: str) -> None:
    n, edges = edges_of(name)
    values = 20 * randn(edges.shape[1], 2)
    out = bgnn.segment_softmax(values, edges[1], n)
    assert torch.equal(out, softmax(values, edges[1], num_nodes=n))
    sums = loop(out, edges[1], n, "sum")
    assert np.allclose(sums[np.isin(np.arange(n), edges[1].numpy())], 1)


@pytest.mark.parametrize("name", GRAPHS)
def test_with_self_loops_is_pygs(name: str) -> None:
    n, edges = edges_of(name)
    assert torch.equal(bgnn.with_self_loops(edges, n), add_remaining_self_loops(edges, num_nodes=n)[0])
    assert torch.equal(bgnn.with_self_loops(edges, n, "more"), add_self_loops(edges, num_nodes=n)[0])
    assert torch.equal(bgnn.with_self_loops(edges, n, "none"), remove_self_loops(edges)[0])


@pytest.mark.parametrize("trailing", [(), (3,)])
@pytest.mark.parametrize("name", GRAPHS)
def test_what_edges_carry_goes_with_their_loops(name: str, trailing: tuple[int, ...]) -> None:
    n, edges = edges_of(name)
    values = randn(edges.shape[1], *trailing)
    kept, base = bgnn.drop_loops(values, edges), torch.full((n, *trailing), 7.0)
    assert torch.equal(kept, remove_self_loops(edges, values)[1])
    joined = torch.cat([kept, bgnn.loop_rows(values, edges, base)])
    assert torch.equal(joined, add_remaining_self_loops(edges, values, 7.0, n)[1])
    last = {int(s): values[e] for e, (s, t) in enumerate(edges.t()) if s == t}
    for node in range(n):
        assert torch.equal(joined[len(kept) + node], last.get(node, base[node]))


def test_fake_quant_adds_the_zero_point_before_rounding() -> None:
    x = torch.tensor([-9.0, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 9.0])
    assert bgnn.fake_quant(x, 1.0, 1, -4, 4).tolist() == [-5, -1, -1, 0, 1, 1, 3, 3]
    assert bgnn.fake_quant(x, 1.0, 2, -4, 4).tolist() == [-6, -2, 0, 0, 0, 2, 2, 2]
    assert dg.fake_quant_codes(x, 1.0, 1, -4, 4).tolist() == [-4, 0, 0, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("axis", [0, 1])
def test_fake_quant_channel(axis: int) -> None:
    x, scales, zeros = randn(3, 3), torch.tensor([0.1, 0.02, 1.0]), torch.tensor([0.0, 3.0, -2.0])
    out = bgnn.fake_quant_channel(x, scales, zeros, axis, -8, 7)
    for c in range(3):
        one = bgnn.fake_quant(x.select(axis, c), float(scales[c]), int(zeros[c]), -8, 7)
        assert torch.equal(out.select(axis, c), one)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_aggregate(reduce: str, weighted: bool) -> None:
    n, edges = edges_of("loops and doubles")
    x, weight = randn(n, 4), randn(edges.shape[1], seed=1) if weighted else None
    messages = x[edges[0]] * (1 if weight is None else weight[:, None])
    assert np.allclose(
        bgnn.aggregate(x, edges, weight, n, reduce).numpy(), loop(messages, edges[1], n, reduce), atol=1e-6
    )


def test_gat_aggregate() -> None:
    n, edges = edges_of("loops and doubles")
    x, source, target = randn(n, 2, 3), randn(n, 2, seed=1), randn(n, 2, seed=2)
    attention = softmax(torch.nn.functional.leaky_relu(source[edges[0]] + target[edges[1]], 0.2), edges[1], num_nodes=n)
    expected = loop(attention[:, :, None] * x[edges[0]], edges[1], n, "sum")
    assert np.allclose(bgnn.gat_aggregate(x, source, target, edges, n, 0.2).numpy(), expected, atol=1e-6)


def test_shapes_are_known_without_values() -> None:
    """torch.export follows every op with the numbers of nodes and edges open."""

    class Model(torch.nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            n = x.shape[0]
            edges = bgnn.with_self_loops(edge_index, n)
            messages = bgnn.fake_quant(x.index_select(0, edges[0]), 0.1, 3, -128, 127)
            channels = bgnn.fake_quant_channel(messages, torch.ones(3), torch.zeros(3), 1, -128, 127)
            out = bgnn.segment_sum(bgnn.segment_softmax(channels, edges[1], n), edges[1], n)
            out = out + bgnn.segment_mean(messages, edges[1], n) + bgnn.segment_max(messages, edges[1], n)
            heads = bgnn.gat_aggregate(x[:, None], x[:, :1], x[:, 1:2], edges, n, 0.2)
            return out + bgnn.aggregate(x, edges, None, n, "sum") + heads[:, 0]

    n, edges = edges_of("loops and doubles")
    example = (randn(n, 3), edges)
    dynamic = ({0: Dim.DYNAMIC}, {1: Dim.DYNAMIC})
    program = torch.export.export(Model(), example, dynamic_shapes=dynamic, strict=False).module()
    for name in ("hub", "isolated"):
        n, edges = edges_of(name)
        assert torch.equal(program(randn(n, 3), edges), Model()(randn(n, 3), edges))
