"""Signs are taken before joins, repetitions and gathers: the same signs, of fewer numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import apply, aten, bgnn, count, graph, randn, signs
from torch import Tensor

from bgnn.passes import hoist_binarize
from bgnn.passes.graph import PassResult, is_call

b = bgnn.binarize
INDEX = torch.tensor([[[0, 1, 1], [3, 2, 0]], [[1, 0, 3], [2, 2, 2]]])


def norm(c: int) -> dict[str, Tensor]:
    return {
        "g": randn(c, seed=1),
        "h": randn(c, seed=2),
        "mu": randn(c, seed=3),
        "va": randn(c, seed=4).abs() + 0.1,
        "slopes": randn(c, seed=5),
        "slope": torch.tensor([-0.3]),
        "c": randn(c, seed=6),
    }


def hoisted(function: Callable[..., Any], *inputs: Tensor, **constants: Tensor) -> tuple[Any, PassResult]:
    gm = graph(function, *inputs, **constants)
    return gm, apply(hoist_binarize.run, gm, *inputs)


def bn(m: Any, x: Tensor) -> Tensor:
    return bgnn.batch_norm(x, m.g, m.h, m.mu, m.va, 1e-5)


CHAINS: dict[str, Callable[..., Any]] = {
    "none": lambda m, x: x,
    "norm": bn,
    "prelu": lambda m, x: bgnn.prelu(x, m.slopes),
    "prelu of one slope": lambda m, x: bgnn.prelu(x, m.slope),
    "arithmetic": lambda m, x: (m.c - x * m.c) / 3 + 0.1,
    "all": lambda m, x: bgnn.prelu(bn(m, x.tanh()) * m.c, m.slopes) - m.c,
}
MOVES: dict[str, Callable[..., Any]] = {
    "gather": lambda m, x, i: bgnn.gather_nodes(x, i),
    "expand": lambda m, x, i: x[:, :, None].expand(-1, -1, 3, -1),
    "rows": lambda m, x, i: x[:, 1:3],
    "select": lambda m, x, i: x.index_select(1, i[0, 0]),
    "reshape": lambda m, x, i: x.reshape(8, -1),
    "two moves": lambda m, x, i: bgnn.gather_nodes(x, i).reshape(12, -1),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("move", MOVES)
def test_above_moves(move: str, chain: str) -> None:
    channels = 5
    gm, result = hoisted(
        lambda m, x, i: b(CHAINS[chain](m, MOVES[move](m, x, i))), randn(2, 4, channels), INDEX, **norm(channels)
    )
    assert result.rewrites == (2 if move in ("two moves", "expand") else 1)  # an expand comes with a reshape
    moved = next(n for n in gm.graph.nodes if n.op == "output").args[0][0]
    assert is_call(moved, bgnn.gather_nodes, aten.expand, aten.slice, aten.index_select, aten.reshape)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("sizes", [(32, 5), (32, 64, 1), (64,), (32, 32)])
def test_above_joins_that_fill_words(sizes: tuple[int, ...], chain: str) -> None:
    """Channel constants are cut where the parts meet."""
    parts = [randn(2, 3, c, seed=c + i) for i, c in enumerate(sizes)]
    gm, result = hoisted(lambda m, *parts: b(CHAINS[chain](m, torch.cat(parts, -1))), *parts, **norm(sum(sizes)))
    if len(sizes) > 1:
        assert result.rewrites == 1
        assert count(gm, b) == len(sizes)


def test_joins_that_do_not_fill_words_stay_and_say_so() -> None:
    gm, result = hoisted(lambda m, x, y: b(torch.cat([x, y], -1)), randn(2, 33), randn(2, 32))
    assert result.rewrites == 0
    assert result.refusals[0][1] == "the joined parts do not fill words of 32 channels"
    assert count(gm, b) == 1


def test_the_node_half_of_an_edge_is_binarised_once_per_node() -> None:
    """RF's edges (paper, Eq. 12): cat(x_i repeated, x_j - x_i), norm, sign."""
    c, index = 32, torch.tensor([[[0, 1, 1], [3, 2, 0], [0, 0, 0], [3, 1, 2]]] * 2)

    def edges(x: Tensor, i: Tensor) -> Tensor:
        return torch.cat([x[:, :, None].expand(-1, -1, 3, -1), bgnn.gather_nodes(x, i) - x[:, :, None]], -1)

    gm, result = hoisted(lambda m, x, i: b(bn(m, edges(x, i))), randn(2, 4, c), index, **norm(2 * c))
    assert result.rewrites >= 2
    sizes = sorted(n.meta["val"].numel() for n in gm.graph.nodes if is_call(n, b))
    assert sizes == [2 * 4 * c, 2 * 4 * 3 * c]


STAYS: dict[str, Callable[..., Any]] = {
    "sum": lambda m, x, i: b(bgnn.gather_nodes(x, i) - x[:, :2, None]),
    "chain read elsewhere": lambda m, x, i: (lambda a: b(a) + a)(bgnn.gather_nodes(x, i) * 2),
    "maximum": lambda m, x, i: b(x.amax(1)),
    "slice of channels": lambda m, x, i: b(x[:, :, :3]),
    "join of rows": lambda m, x, i: b(torch.cat([x, x], 1)),
    "reshape through channels": lambda m, x, i: b(x.reshape(2, -1)),
    "one channel grown to many": lambda m, x, i: b(x[:, :, :1].expand(-1, -1, 5)),
    "input": lambda m, x, i: b(x),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    _, result = hoisted(STAYS[name], randn(2, 4, 5), INDEX)
    assert result.rewrites == 0


def test_a_gather_read_as_numbers_too_is_kept_for_that() -> None:
    gm, result = hoisted(lambda m, x, i: (lambda a: b(a) + a)(bgnn.gather_nodes(x, i)), randn(2, 4, 5), INDEX)
    assert result.rewrites == 1
    assert count(gm, bgnn.gather_nodes) == 2


def test_constants_per_channel_on_one_channel() -> None:
    gm, result = hoisted(lambda m, x, i: b(bn(m, bgnn.gather_nodes(x, i))), randn(2, 4, 1), INDEX, **norm(1))
    assert result.rewrites == 1
    del gm


def test_binary_inputs_too() -> None:
    _, result = hoisted(lambda m, x, i: b(bgnn.gather_nodes(x, i) * m.s), signs(2, 4, 5), INDEX, s=randn(5))
    assert result.rewrites == 1
