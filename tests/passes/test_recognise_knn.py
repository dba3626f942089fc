"""k-NN searches by what they compute; near misses stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Wrapped, bgnn, check_meta, count, only, outputs, randn, signs, traced
from torch import Tensor, fx

from bgnn.converter import stages
from bgnn.converter.trace import trace
from bgnn.passes import recognise_knn
from bgnn.passes.graph import PassResult

B, N, C, K = 2, 12, 3, 4
X = randn(B, N, C)


def squares(x: Tensor) -> Tensor:
    return (x**2).sum(-1, keepdim=True)


def two_xy(x: Tensor) -> Tensor:
    return 2 * torch.matmul(x, x.transpose(2, 1))


def top(score: Tensor, largest: bool = True) -> Tensor:
    return score.topk(K, dim=-1, largest=largest)[1]


REAL: dict[str, Callable[..., Any]] = {
    "cdist": lambda m, x: top(torch.cdist(x, x), False),
    "minus cdist": lambda m, x: top(-torch.cdist(x, x)),
    "cdist squared": lambda m, x: top(-(torch.cdist(x, x) ** 2)),
    "formula": lambda m, x: top(two_xy(x) - squares(x) - squares(x).transpose(2, 1)),
    "dgcnn's": lambda m, x: top(-squares(x) + two_xy(x) - squares(x).transpose(2, 1)),
    "distance formula": lambda m, x: top(squares(x) - two_xy(x) + squares(x).transpose(2, 1), False),
    "without the row's own": lambda m, x: top(two_xy(x) - squares(x).transpose(2, 1)),
    "pairs": lambda m, x: top(((x[:, :, None] - x[:, None]) ** 2).sum(-1), False),
    "pairs, turned": lambda m, x: top((x[:, None] - x[:, :, None]).pow(2).sum(-1), False),
    "pairs, rooted": lambda m, x: top((x[:, :, None] - x[:, None]).pow(2).sum(-1).sqrt(), False),
    "norm": lambda m, x: top((x[:, :, None] - x[:, None]).norm(dim=-1), False),
    "einsum": lambda m, x: top(2 * torch.einsum("bic,bjc->bij", x, x) - squares(x) - squares(x).transpose(2, 1)),
    "bmm": lambda m, x: top(2 * torch.bmm(x, x.transpose(1, 2)) - squares(x) - squares(x).transpose(2, 1)),
    "positive part": lambda m, x: top((squares(x) - two_xy(x) + squares(x).transpose(2, 1)).clamp(min=0), False),
    "exponential": lambda m, x: top(torch.exp(-torch.cdist(x, x))),
    "scaled": lambda m, x: top(-0.5 * torch.cdist(x, x) / 3),
    "argsort": lambda m, x: torch.argsort(torch.cdist(x, x), dim=-1)[:, :, :K],
    "stable argsort": lambda m, x: torch.argsort(torch.cdist(x, x), dim=-1, stable=True)[..., :K],
    "sort": lambda m, x: torch.sort(-torch.cdist(x, x), dim=-1, descending=True)[1][:, :, :K],
    "stable sort": lambda m, x: torch.sort(torch.cdist(x, x), stable=True)[1][:, :, :K],
    "narrow": lambda m, x: torch.sort(torch.cdist(x, x))[1].narrow(2, 0, K),
    "last dim by number": lambda m, x: torch.cdist(x, x).topk(K, dim=2, largest=False)[1],
    "channel first": lambda m, x: top(
        -((x.transpose(1, 2)[:, :, :, None] - x.transpose(1, 2)[:, :, None]) ** 2).sum(1)
    ),
    "all": lambda m, x: torch.cdist(x, x).topk(N, dim=-1, largest=False)[1],
    "one": lambda m, x: torch.cdist(x, x).topk(1, dim=-1, largest=False)[1],
    "unsorted": lambda m, x: torch.cdist(x, x).topk(N, dim=-1, largest=False, sorted=True).indices,
}
HAMMING: dict[str, Callable[..., Any]] = {
    "matmul": lambda m, s: top(s @ s.transpose(1, 2)),
    "paper's": lambda m, s: top(-((C - s @ s.transpose(1, 2)) / 2)),
    "relu around": lambda m, s: top(-(-(s @ s.transpose(1, 2) - C)).relu()),
    "cdist": lambda m, s: top(-torch.cdist(s, s)),
    "differing": lambda m, s: top((s[:, :, None] != s[:, None]).float().sum(-1), False),
    "differing, integers": lambda m, s: top((s[:, :, None] != s[:, None]).sum(-1), False),
    "formula": lambda m, s: top(two_xy(s) - squares(s) - squares(s).transpose(2, 1)),
    "equal": lambda m, s: top((s[:, :, None] == s[:, None]).float().sum(-1)),
}
NEAR_MISSES: dict[str, Callable[..., Any]] = {
    "farthest": lambda m, x: top(torch.cdist(x, x)),
    "to another tensor": lambda m, x: top(-torch.cdist(x, m.other)),
    "of two functions": lambda m, x: top(-torch.cdist(x, x * m.factors)),
    "weighted": lambda m, x: top(-(((x[:, :, None] - x[:, None]) ** 2) * m.factors).sum(-1)),
    "cosine": lambda m, x: top((lambda u: u @ u.transpose(1, 2))(x / squares(x).sqrt())),
    "inner product": lambda m, x: top(x @ x.transpose(1, 2)),
    "l1": lambda m, x: top(-(x[:, :, None] - x[:, None]).abs().sum(-1)),
    "maximum norm": lambda m, x: top(-(x[:, :, None] - x[:, None]).abs().amax(-1)),
    "without the column's": lambda m, x: top(two_xy(x) - squares(x)),
    "biased by the index": lambda m, x: top(-torch.cdist(x, x) + m.bias),
    "self excluded": lambda m, x: top(-torch.cdist(x, x) - m.diagonal),
    "along the rows": lambda m, x: torch.cdist(x, x).topk(K, dim=1, largest=False)[1],
    "wrong factor": lambda m, x: top(1.5 * torch.matmul(x, x.transpose(2, 1)) - squares(x).transpose(2, 1)),
}


def found(function: Callable[..., Any], x: Tensor = X) -> tuple[fx.GraphModule, PassResult, Tensor]:
    gm = traced(
        function, x, other=randn(B, N, C, seed=1), factors=torch.tensor([1.0, 4.0, 0.2]), bias=randn(N) * 3,
        diagonal=torch.eye(N) * 100,
    )  # fmt: skip
    before = outputs(gm, x)[0]
    result = recognise_knn.run(gm)
    check_meta(gm, x)
    return gm, result, before


@pytest.mark.parametrize("name", REAL)
def test_real_distances(name: str) -> None:
    gm, result, before = found(REAL[name])
    assert (result.rewrites, result.refusals) == (1, [])
    node = only(gm, bgnn.knn)
    assert node.args[2] == "l2"
    assert not node.meta.get("tap") or not node.meta["tap"].exact
    assert torch.equal(outputs(gm, X)[0], before)


@pytest.mark.parametrize("name", HAMMING)
def test_hamming_distances(name: str) -> None:
    """Many ties: the same neighbours in the same order."""
    gm, result, before = found(lambda m, x: HAMMING[name](m, torch.where(x >= 0, 1.0, -1.0)))
    assert (result.rewrites, result.refusals) == (1, [])
    assert only(gm, bgnn.knn).args[2] == "hamming"
    assert torch.equal(outputs(gm, X)[0], before)
    assert [n.meta["tap"].exact for n in gm.graph.nodes if "tap" in n.meta] == [False, True]


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay_and_say_why(name: str) -> None:
    gm, result, before = found(NEAR_MISSES[name])
    assert result.rewrites == 0
    assert count(gm, bgnn.knn) == 0
    if name != "along the rows":
        assert result.refusals[0][1] == "its score is no distance between the rows of one tensor"
    assert torch.equal(outputs(gm, X)[0], before)


def test_used_distances_stay() -> None:
    gm, result, _ = found(lambda m, x: (lambda t: t[0] + t[1])(torch.cdist(x, x).topk(K, largest=False)))
    assert result.rewrites == 0
    del gm


def test_hamming_ties_broken_by_another_rule_stay_generic() -> None:
    """The highest index first among equals is not the rule: it must not become `knn`."""
    bias = torch.arange(N) * 1e-3

    def function(m: Any, x: Tensor) -> Tensor:
        s = torch.where(x >= 0, 1.0, -1.0)
        return top(s @ s.transpose(1, 2) + bias)

    _, result, _ = found(function)
    assert result.rewrites == 0


def test_lowest_index_made_part_of_the_key_is_the_rule() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        s = torch.where(x >= 0, 1.0, -1.0)
        return top((C - s @ s.transpose(1, 2)) * N + torch.arange(N), False)

    gm, result, before = found(function)
    assert torch.equal(outputs(gm, X)[0], before)
    del result


def test_without_a_batch() -> None:
    gm, result, before = found(lambda m, x: torch.cdist(x, x).topk(K, largest=False)[1], X[0])
    assert result.rewrites == 1
    assert torch.equal(outputs(gm, X[0])[0], before)


def test_neighbours_without_the_point_itself() -> None:
    gm, result, before = found(lambda m, x: torch.cdist(x, x).topk(K + 1, largest=False)[1][:, :, 1:])
    assert result.rewrites == 1
    assert torch.equal(outputs(gm, X)[0], before)


def test_search_on_a_layers_output() -> None:
    gm, result, _ = found(lambda m, x: (lambda y: top(-torch.cdist(y, y)))(x * m.factors))
    assert result.rewrites == 1
    assert only(gm, bgnn.knn).args[0].op == "call_function"
    x = signs(B, N, C)
    assert outputs(gm, x)[0].shape == (B, N, K)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_points(n: int) -> None:
    """Chance agreements are likely, errors are not allowed."""
    x = randn(B, n, C)
    gm = traced(lambda m, x: torch.cdist(x, x).topk(n, largest=False)[1], x)
    before = outputs(gm, x)[0]
    recognise_knn.run(gm)
    assert torch.equal(outputs(gm, x)[0], before)


def others(x: Tensor, graph: Tensor) -> Tensor:
    return graph[:, None] != graph[None, :]


WITHIN: dict[str, Callable[..., Any]] = {
    "masked cdist": lambda m, x, g: top(torch.cdist(x, x).masked_fill(others(x, g), float("inf")), False),
    "pairs": lambda m, x, g: top(
        -torch.where(g.view(-1, 1) == g, ((x[:, None] - x[None]) ** 2).sum(-1), torch.tensor(float("inf")))
    ),
    "product": lambda m, x, g: top(
        (two_xy(x[None])[0] - squares(x) - squares(x).T).masked_fill(others(x, g), float("-inf"))
    ),
    "far": lambda m, x, g: torch.where(others(x, g), torch.tensor(1e10), torch.cdist(x, x)).argsort(1)[:, :K],
    "written": lambda m, x, g: (lambda d: (d.__setitem__(others(x, g), 1e12), top(d, False))[1])(torch.cdist(x, x)),
}
GRAPHS = torch.tensor([0] * 6 + [1] * 2 + [2] * 4)


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("name", WITHIN)
def test_searches_within_each_graph(name: str, is_open: bool) -> None:
    """Rows of other graphs are all equally far; a graph of two has too few, and the lowest of the others follow."""
    x = X[0].clone()
    x[3] = x[4]
    axes = [{0: torch.export.Dim.DYNAMIC}] * 2 if is_open else None
    gm = trace(Wrapped(WITHIN[name], {}), (x, GRAPHS), open_axes=axes)
    for _, step in stages.passes_to("traced", stages.Plan("onnx-x86")):
        step(gm)
    before = outputs(gm, x, GRAPHS)[0]
    assert recognise_knn.run(gm).rewrites == 1
    node = only(gm, bgnn.knn)
    assert node.args[2] == "l2"
    assert node.args[3] is not None
    assert torch.equal(outputs(gm, x, GRAPHS)[0], before)
    if is_open:
        more = torch.arange(20) // 7
        y = randn(20, C, seed=3)
        assert torch.equal(outputs(gm, y, more)[0], WITHIN[name](None, y, more))


NOT_WITHIN: dict[str, Callable[..., Any]] = {
    "others farther, by distance": lambda m, x, g: top(torch.cdist(x, x) + 1e3 * others(x, g), False),
    "others nearer": lambda m, x, g: top(torch.cdist(x, x).masked_fill(others(x, g), 0.0), False),
    "of its own graph none": lambda m, x, g: top(torch.cdist(x, x).masked_fill(~others(x, g), float("inf")), False),
    "of two numbers": lambda m, x, g: top(
        torch.cdist(x, x).masked_fill((g[:, None] != g.flip(0)[None, :]), float("inf")), False
    ),
}


@pytest.mark.parametrize("name", NOT_WITHIN)
def test_other_searches_with_whole_numbers_stay(name: str) -> None:
    gm = traced(NOT_WITHIN[name], X[0], GRAPHS)
    before = outputs(gm, X[0], GRAPHS)[0]
    assert recognise_knn.run(gm).rewrites == 0
    assert torch.equal(outputs(gm, X[0], GRAPHS)[0], before)
