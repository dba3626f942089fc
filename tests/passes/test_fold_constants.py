"""What depends on constants alone is a constant, and nothing else is."""

from __future__ import annotations

import torch
from graphs import apply, aten, bgnn, count, exported, graph, randn

from bgnn.passes import fold_constants

X = randn(2, 3)


def test_signs_of_weights_become_constants_that_keep_their_name() -> None:
    gm = graph(lambda m, x: x @ bgnn.binarize(m.weight.clamp(-1, 1)).t(), X, weight=randn(4, 3))
    result = apply(fold_constants.run, gm, X, keeps_taps=False)
    assert result.rewrites == 3
    assert [str(n.target) for n in gm.graph.nodes if n.op == "call_function"] == ["aten.matmul.default"]
    (node,) = (n for n in gm.graph.nodes if n.op == "get_attr")
    assert node.meta["source"] == "weight"
    assert set(getattr(gm, str(node.target)).flatten().tolist()) == {-1.0, 1.0}


def test_indices_are_constants() -> None:
    gm = graph(lambda m, x: x.index_select(1, torch.arange(2) + 1), X)
    assert apply(fold_constants.run, gm, X).rewrites >= 1
    assert count(gm, aten.arange, aten.add) == 0


def test_data_is_not_folded() -> None:
    gm = graph(lambda m, x: x * m.c + 1, X, c=randn(3))
    assert apply(fold_constants.run, gm, X).rewrites == 0


def test_a_table_grown_from_little_stays_an_op() -> None:
    gm = graph(lambda m, x: x.sum() + m.c[:, None].expand(100, 100), X, c=randn(100))
    apply(fold_constants.run, gm, X)
    assert count(gm, aten.expand) == 1
    small = graph(lambda m, x: x.sum() + m.c[:, None].expand(3, 4), X, c=randn(3))
    apply(fold_constants.run, small, X)
    assert count(small, aten.expand) == 0


def test_what_is_made_of_numbers_is_a_constant_of_any_size() -> None:
    gm = graph(lambda m, x: x + torch.eye(100, 300)[:, :3].sum(0) + torch.eye(300)[0, 0] * 1e10, X)
    apply(fold_constants.run, gm, X)
    assert count(gm, aten.eye, aten.sum, aten.mul) == 0


def test_one_of_several_results_of_constants_is_one() -> None:
    """PyG's coalesce sorts the edges, in forward, of a graph that the model holds."""
    gm = exported(lambda m, x: x[m.c.sort(stable=True)[1]], X, c=torch.tensor([1, 0]))
    assert apply(fold_constants.run, gm, X).rewrites >= 1
    assert count(gm, aten.sort) == 0
    varying = exported(lambda m, x: x.sort(stable=True)[0] + m.c, X, c=torch.tensor(1.0))
    assert apply(fold_constants.run, varying, X).rewrites == 0
