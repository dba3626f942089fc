"""One spelling for each operation; no value changes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_models import awkward_graphs, random_graph, run
from graphs import Wrapped, apply, aten, bgnn, count, exported, outputs, randn
from torch import Tensor, nn

from bgnn.converter.sizes import check_open, graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, fold_constants
from bgnn.passes.graph import is_call

X = randn(2, 3, 4)
X4 = randn(2, 3, 4, 5)
CONSTANTS = {
    "w": randn(5, 4),
    "matrix": randn(4, 5),
    "batched": randn(1, 4, 5),
    "vector": randn(4),
    "bias": randn(5),
    "three": torch.tensor(3.0),
    "one": torch.tensor([[[0.7]]]),
    "row": randn(1, 1, 4),
    "index": torch.tensor([1, 0, -1]),
    "repeats": torch.tensor([0, 0, 0, 1, 1, 1]),
}


def canonical(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 0.0) -> list[Any]:
    """The ops after the pass; values and notes were compared."""
    gm = exported(function, *inputs, **CONSTANTS)
    apply(canonicalise.run, gm, *inputs, tolerance=tolerance)
    assert canonicalise.run(gm).rewrites == 0, "a second run finds nothing"
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


RESHAPE, PERMUTE, EXPAND, SLICE = aten.reshape.default, aten.permute.default, aten.expand.default, aten.slice.Tensor
RULES: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "roots": (
        lambda m, x: x.abs().pow(0.5) + x.exp() ** -0.5,
        [aten.abs.default, aten.sqrt.default, aten.exp.default, aten.rsqrt.default, aten.add.Tensor],
    ),
    "powers": (
        lambda m, x: 2**x + x.abs() ** m.three,
        [aten.mul.Tensor, aten.exp.default, aten.abs.default, aten.pow.Tensor_Scalar, aten.add.Tensor],
    ),
    "a constant's power": (
        lambda m, x: x + 2**m.row + 2**m.three,
        [aten.pow.Scalar, aten.add.Tensor, aten.pow.Scalar, aten.add.Tensor],
    ),
    "nothing beside it": (
        lambda m, x: torch.cat([x[0], torch.tensor([]), m.w, x[1, :0]]),
        [SLICE, RESHAPE, aten.cat.default],
    ),
    "nothing else": (lambda m, x: torch.cat([torch.tensor([]), x * 2], 1), [aten.mul.Tensor]),
    "argmax": (lambda m, x: x.argmax(1), [bgnn.topk_lowest.default, operator.getitem, RESHAPE]),
    "argmin of all": (lambda m, x: x.argmin(), [RESHAPE, bgnn.topk_lowest.default, operator.getitem, RESHAPE]),
    "index of the maximum": (lambda m, x: x.max(-1, keepdim=True)[1], [bgnn.topk_lowest.default, operator.getitem]),
    "known places": (lambda m, x: x[[[0], [1]], [[2, -1]]], [RESHAPE, aten.index_select.default, RESHAPE]),
    "view": (lambda m, x: x.view(6, 4), [RESHAPE]),
    "view of views": (lambda m, x: x.view(6, 4).reshape(24).unsqueeze(0), [RESHAPE]),
    "there and back": (lambda m, x: x.view(6, 4).view(2, 3, 4) + 1, [aten.add.Tensor]),
    "minus one": (lambda m, x: x.view(-1, 4), [RESHAPE]),
    "flatten": (lambda m, x: x.flatten(1), [RESHAPE]),
    "unflatten": (lambda m, x: x.unflatten(2, (2, 2)), [RESHAPE]),
    "squeeze": (lambda m, x: x.unsqueeze(1).squeeze(1) * 2, [aten.mul.Tensor]),
    "squeeze all": (lambda m, x: x[:1].squeeze(), [SLICE, RESHAPE]),
    "transpose": (lambda m, x: x.transpose(1, 2), [PERMUTE]),
    "transpose, negative": (lambda m, x: x.transpose(-1, -2), [PERMUTE]),
    "twice transposed": (lambda m, x: x.transpose(1, 2).transpose(2, 1) + 1, [aten.add.Tensor]),
    "movedim": (lambda m, x: x.movedim(0, 2), [PERMUTE]),
    "swapaxes": (lambda m, x: x.swapaxes(0, 1), [PERMUTE]),
    "mT": (lambda m, x: x.mT, [PERMUTE]),
    "t": (lambda m, x: x[0].t(), [SLICE, RESHAPE, PERMUTE]),
    "permutes in a row": (lambda m, x: x.permute(2, 0, 1).permute(0, -1, 1), [PERMUTE]),
    "permute of nothing": (lambda m, x: x.permute(0, 1, 2).relu(), [aten.relu.default]),
    "contiguous, clone, detach": (lambda m, x: x.contiguous().clone().detach() * 2, [aten.mul.Tensor]),
    "dropout in inference": (lambda m, x: F.dropout(x, 0.5, False) * 2, [aten.mul.Tensor]),
    "same type": (lambda m, x: x.float().to(torch.float32).type_as(x) * 2, [aten.mul.Tensor]),
    "in place": (lambda m, x: x.clone().add_(1).relu_(), [aten.add.Tensor, aten.relu.default]),
    "expand": (lambda m, x: x[:, None].expand(2, 6, 3, 4), [RESHAPE, EXPAND]),
    "expand with -1": (lambda m, x: x[:, :1].expand(-1, 5, -1), [SLICE, EXPAND]),
    "expand of nothing": (lambda m, x: x.expand(2, 3, 4) * 2, [aten.mul.Tensor]),
    "expand_as": (lambda m, x: x[:, :1].expand_as(x), [SLICE, EXPAND]),
    "expand to more axes": (lambda m, x: x.expand(5, 2, 3, 4), [RESHAPE, EXPAND]),
    "repeat": (lambda m, x: x.repeat(1, 2, 1), [RESHAPE, EXPAND, RESHAPE]),
    "repeat a size of one": (lambda m, x: x[:, :, None].repeat(1, 1, 5, 1), [RESHAPE, EXPAND]),
    "repeat of nothing": (lambda m, x: x.repeat(1, 1, 1) * 2, [aten.mul.Tensor]),
    "tile": (lambda m, x: x.tile(2), [RESHAPE, EXPAND, RESHAPE]),
    "repeat_interleave": (lambda m, x: x.repeat_interleave(3, dim=1), [RESHAPE, EXPAND, RESHAPE]),
    "slice of everything": (lambda m, x: x[:, 0:3] * 2, [aten.mul.Tensor]),
    "slice from the end": (lambda m, x: x[:, -2:], [SLICE]),
    "slice with a step": (lambda m, x: x[:, :, ::2], [SLICE]),
    "slice of a join": (lambda m, x: torch.cat([x, x * 2], 2)[:, :, 4:], [aten.mul.Tensor]),
    "slice across a join": (
        lambda m, x: torch.cat([x, x * 2], 2)[:, :, 3:7],
        [aten.mul.Tensor, aten.cat.default, SLICE],
    ),
    "narrow": (lambda m, x: x.narrow(1, 1, 2), [SLICE]),
    "select": (lambda m, x: x[:, 1], [SLICE, RESHAPE]),
    "select from the end": (lambda m, x: x[:, -1], [SLICE, RESHAPE]),
    "chunk": (lambda m, x: x.chunk(2, 2)[1], [SLICE]),
    "split": (lambda m, x: x.split([1, 2], 1)[1], [SLICE]),
    "split of one size": (lambda m, x: x.split(2, 1)[1], [SLICE]),
    "unbind": (lambda m, x: x.unbind(1)[2], [SLICE, RESHAPE]),
    "stack": (lambda m, x: torch.stack([x, x * 2], 1), None),
    "cat of one": (lambda m, x: torch.cat([x], 1) * 2, [aten.mul.Tensor]),
    "maximum over an axis": (lambda m, x: x.max(1)[0], [aten.amax.default]),
    "maximum, keepdim": (lambda m, x: x.max(dim=-1, keepdim=True).values, [aten.amax.default]),
    "minimum over an axis": (lambda m, x: x.min(2)[0], [aten.amin.default]),
    "maximum of all": (lambda m, x: x.max(), [aten.amax.default]),
    "minimum of all": (lambda m, x: x.min(), [aten.amin.default]),
    "mean of all": (lambda m, x: x.mean(), [aten.mean.dim]),
    "sum of all": (lambda m, x: x.sum(), [aten.sum.dim_IntList]),
    "mean over an axis of one": (lambda m, x: x[:, :1].mean(1), [SLICE, RESHAPE]),
    "maximum of two": (lambda m, x: torch.max(x, x * 2), [aten.mul.Tensor, aten.maximum.default]),
    "minimum of two": (lambda m, x: torch.min(x, x * 2), [aten.mul.Tensor, aten.minimum.default]),
    "adaptive max": (lambda m, x: F.adaptive_max_pool1d(x, 1), [aten.amax.default]),
    "adaptive mean": (lambda m, x: F.adaptive_avg_pool1d(x, 1), [aten.mean.dim]),
    "max pool over the axis": (lambda m, x: F.max_pool1d(x, 4), [aten.amax.default]),
    "max pool of one": (lambda m, x: F.max_pool1d(x, 1) * 2, [aten.mul.Tensor]),
    "mean pool over the axis": (lambda m, x: F.avg_pool1d(x, 4), [aten.mean.dim]),
    "topk": (lambda m, x: x.topk(2)[1], None),
    "product with a matrix": (lambda m, x: x @ m.matrix, [aten.linear.default]),
    "product with a batched matrix": (lambda m, x: x @ m.batched, [aten.linear.default]),
    "product with a transposed constant": (lambda m, x: x.flatten(0, 1).mm(m.matrix), [RESHAPE, aten.linear.default]),
    "product with a vector": (lambda m, x: x @ m.vector, None),
    "addmm": (lambda m, x: torch.addmm(m.bias, x[0], m.matrix), [SLICE, RESHAPE, aten.linear.default]),
    "square": (lambda m, x: x**2, [aten.mul.Tensor]),
    "square by name": (lambda m, x: x.square(), [aten.mul.Tensor]),
    "number minus": (lambda m, x: 2 - x, [aten.neg.default, aten.add.Tensor]),
    "scaled addition": (lambda m, x: torch.add(x, x * 2, alpha=3), [aten.mul.Tensor, aten.mul.Tensor, aten.add.Tensor]),
    "scaled subtraction": (lambda m, x: torch.sub(x, 1.5, alpha=2), [aten.sub.Tensor]),
    "plus nothing": (lambda m, x: (x + 0) * 1 / 1 - 0, []),
    "one number as a tensor": (lambda m, x: x * m.three, [aten.mul.Tensor]),
    "one number with axes": (lambda m, x: x / m.one, [aten.div.Tensor]),
    "number on the left": (lambda m, x: m.three + x, [aten.add.Tensor]),
    "leading ones": (lambda m, x: x + m.row, [aten.add.Tensor]),
    "zeros_like": (lambda m, x: x + torch.zeros_like(x[:, :1]), [aten.add.Tensor]),
    "full": (lambda m, x: x * torch.full((4,), 2.0), [aten.mul.Tensor]),
    "new_ones": (lambda m, x: x * x.new_ones(4), [aten.mul.Tensor]),
    "index": (lambda m, x: x[:, m.index], [aten.index_select.default]),
    "index of rows": (lambda m, x: x.flatten(0, 1)[m.index], [RESHAPE, aten.index_select.default]),
    "rows repeated": (lambda m, x: x[m.repeats], [RESHAPE, EXPAND, RESHAPE]),
    "embedding": (lambda m, x: F.embedding(m.repeats, x[0]), None),
    "where of numbers": (lambda m, x: torch.where(x > 0.1, 2.0, 1.0), None),
    "linear": (lambda m, x: F.linear(x, m.w), [aten.linear.default]),
    "clamp_min": (lambda m, x: x.clamp_min(0.1), [aten.clamp.default]),
    "clamp_min of a tensor": (lambda m, x: torch.clamp_min(x, x.neg()), [aten.neg.default, aten.maximum.default]),
    "norm": (lambda m, x: x.norm(dim=-1), [aten.mul.Tensor, aten.sum.dim_IntList, aten.sqrt.default]),
    "norm of magnitudes": (lambda m, x: x.norm(1, -1, True), [aten.abs.default, aten.sum.dim_IntList]),
}
# The same sum in another order, or one rounding more.
ROUNDS = ("norm", "product", "powers", "addmm", "scaled addition")


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    function, ops = RULES[name]
    found = canonical(function, X, tolerance=1e-6 if name.startswith(ROUNDS) else 0.0)
    if ops is not None:
        assert found == ops


@pytest.mark.parametrize("dims", [(2, 3), (3,), (2,)])
def test_pools_of_four_axes(dims: tuple[int, ...]) -> None:
    window = tuple(X4.shape[d] if d in dims else 1 for d in (2, 3))
    assert canonical(lambda m, x: F.max_pool2d(x, window), X4) == [aten.amax.default]
    assert canonical(lambda m, x: F.avg_pool2d(x, window), X4, tolerance=1e-6) == [aten.mean.dim]


def test_adaptive_pools_of_four_axes() -> None:
    assert canonical(lambda m, x: F.adaptive_max_pool2d(x, 1), X4) == [aten.amax.default]
    assert canonical(lambda m, x: F.adaptive_avg_pool2d(x, (1, 1)), X4, tolerance=1e-6) == [aten.mean.dim]


LEFT: dict[str, tuple[Callable[..., Any], Any]] = {
    "pool with a stride": (lambda m, x: F.max_pool1d(x, 2), aten.max_pool1d),
    "pool with padding": (lambda m, x: F.max_pool1d(x, 4, padding=1), aten.max_pool1d),
    "adaptive to two": (lambda m, x: F.adaptive_avg_pool1d(x, 2), aten.adaptive_avg_pool1d),
    "mean with another divisor": (lambda m, x: F.avg_pool2d(x, (3, 4), divisor_override=5), aten.avg_pool2d),
    "bits of another type": (lambda m, x: x.view(torch.int32), aten.view),
    "cube": (lambda m, x: x**3, aten.pow),
    "power of another rank": (lambda m, x: x[0, 0].abs() ** m.one, aten.pow),
    "rounded division": (lambda m, x: torch.div(x, 1.0, rounding_mode="floor"), aten.div),
    "product of two tensors": (lambda m, x: x @ x.transpose(1, 2), aten.matmul),
    "sum of booleans": (lambda m, x: (x[:, :1] > 0).sum(1), aten.sum),
    "mean of three": (lambda m, x: x.mean(1), aten.mean),
    "cast": (lambda m, x: x.double(), aten._to_copy),
    "norm of another order": (lambda m, x: x.norm(p=3, dim=-1), None),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name: str) -> None:
    function, op = LEFT[name]
    gm = exported(function, X, **CONSTANTS)
    expected = outputs(gm, X)[0]
    canonicalise.run(gm)
    found = outputs(gm, X)[0]
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    if op is not None:
        assert any(is_call(n, op) for n in gm.graph.nodes)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_lower_median(n: int, keepdim: bool, dim: int) -> None:
    x = randn(*(n if d == dim % 3 else 3 for d in range(3))).round(decimals=0)  # ties
    ops = canonical(lambda m, x: x.median(dim, keepdim)[0], x)
    assert bgnn.topk_lowest.default in ops


TIES = torch.tensor([[[2.0, 1, 1, 2, 1, 0, 2]]])
SEARCHES: dict[str, tuple[Callable[..., Any], list[int]]] = {
    "topk": (lambda m, x: x.topk(4)[1], [0, 3, 6, 1]),
    "topk, smallest": (lambda m, x: x.topk(4, largest=False)[1], [5, 1, 2, 4]),
    "topk along an axis": (lambda m, x: x.transpose(1, 2).topk(4, dim=1)[1].transpose(1, 2), [0, 3, 6, 1]),
    "sort": (lambda m, x: x.sort()[1][:, :, :4], [5, 1, 2, 4]),
    "sort, descending": (lambda m, x: x.sort(dim=-1, descending=True)[1][:, :, :4], [0, 3, 6, 1]),
    "stable sort": (lambda m, x: torch.sort(x, stable=True, dim=2, descending=True)[1][:, :, :4], [0, 3, 6, 1]),
    "argsort": (lambda m, x: x.argsort(2)[:, :, :4], [5, 1, 2, 4]),
    "argsort, descending": (lambda m, x: torch.argsort(x, -1, True)[:, :, :4], [0, 3, 6, 1]),
    "stable argsort": (lambda m, x: torch.argsort(x, dim=-1, descending=True, stable=True)[:, :, :4], [0, 3, 6, 1]),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_ties_go_to_the_lowest_index(name: str) -> None:
    function, expected = SEARCHES[name]
    gm = exported(function, TIES)
    canonicalise.run(gm)
    assert count(gm, bgnn.topk_lowest) == 1
    assert outputs(gm, TIES)[0].flatten().tolist() == expected


def test_values_and_indices_of_one_search() -> None:
    gm = exported(lambda m, x: (lambda t: t[0] + t[1])(x.topk(3)), TIES)
    canonicalise.run(gm)
    assert count(gm, bgnn.topk_lowest) == 1
    assert outputs(gm, TIES)[0].tolist() == [[[2.0, 5, 8]]]


def test_a_slice_in_the_middle_of_a_sort_and_a_whole_sort() -> None:
    for function, expected in (
        (lambda m, x: x.sort()[1][:, :, 1:3], [1, 2]),
        (lambda m, x: x.argsort(descending=True), [0, 3, 6, 1, 2, 4, 5]),
    ):
        gm = exported(function, TIES)
        canonicalise.run(gm)
        assert count(gm, bgnn.topk_lowest) == 1
        assert outputs(gm, TIES)[0].flatten().tolist() == expected


def test_places_behind_the_first_few_of_an_open_sort() -> None:
    """Own k-NN that leaves the node itself out: of any number of nodes, no more than the first few are sorted."""
    gm = trace(Wrapped(lambda m, x: x.sort(0)[1][1:3], {}), (randn(7, 2),), open_axes=[{0: torch.export.Dim.DYNAMIC}])
    apply(canonicalise.run, gm, randn(9, 2))
    (search,) = [n for n in gm.graph.nodes if is_call(n, bgnn.topk_lowest)]
    assert search.args[1] == 3
    assert count(gm, aten.sort) == 0


def test_a_row_by_a_number_of_a_tensor_is_the_row_by_the_tensor() -> None:
    gm = exported(lambda m, x, i: x[:, i[0].item()] * 2, X, torch.tensor([2, 0]))
    apply(canonicalise.run, gm, X, torch.tensor([1, 2]))
    assert count(gm, aten._local_scalar_dense, aten.item, aten.select) == 0
    assert count(gm, aten.index_select) == 1


WRITES: dict[str, Callable[..., None]] = {
    "a diagonal": lambda x: x.__setitem__((slice(None), torch.arange(3), torch.arange(3)), 2.0),
    "rows": lambda x: x.__setitem__(torch.tensor([1]), 0.0),
    "places of a column": lambda x: x.__setitem__((slice(None), slice(None), torch.tensor([0, 3])), x.new_tensor(-1.0)),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_number_written_at_known_places_is_a_choice(name: str) -> None:
    """`adj[:, idx, idx] = 1` of PyG's dense layers; for an open number of clouds, too, where they are written alike."""

    def function(m: Any, x: Tensor) -> Tensor:
        x = x * 2
        WRITES[name](x)
        return x

    axes = None if name == "rows" else [{0: torch.export.Dim.DYNAMIC}]
    gm = trace(Wrapped(function, {}), (X,), open_axes=axes)
    fold_constants.run(gm)
    canonicalise.run(gm)
    assert count(gm, aten.index_put) == 0
    x = X if axes is None else randn(5, 3, 4)
    assert torch.equal(outputs(gm, x)[0], function(None, x))


def test_what_is_added_at_places_stays() -> None:
    gm = trace(Wrapped(lambda m, x: x.index_put((torch.arange(2),), torch.tensor(1.0), accumulate=True), {}), (X,))
    fold_constants.run(gm)
    apply(canonicalise.run, gm, X)
    assert count(gm, aten.where) == 0


def test_batch_norm_of_either_export() -> None:
    from bgnn.converter.trace import trace

    norm = nn.BatchNorm1d(3).eval()
    gm = trace(norm, (X,))
    canonicalise.run(gm)
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"] == [aten.batch_norm.default]
    torch.testing.assert_close(outputs(gm, X)[0], norm(X), rtol=0, atol=0)


def test_helpers_look_through_earlier_moves() -> None:
    gm = exported(lambda m, x: x.permute(2, 0, 1).reshape(4, 6) + 0.5, X)
    canonicalise.run(gm)
    (add,) = (n for n in gm.graph.nodes if is_call(n, aten.add))
    view = add.args[0]
    permuted = view.args[0]
    assert canonicalise.reshape(add, view, (4, 2, 3)) is permuted
    assert canonicalise.permute(add, permuted, (1, 2, 0)) is permuted.args[0]


@pytest.mark.parametrize(
    "levels",
    [
        lambda x: torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x)),
        lambda x: torch.where(x < 0, -0.7 * x.new_ones(x.shape), x.new_full(x.shape, 0.7)),
        lambda x: torch.where(x < 0, torch.zeros_like(x), torch.minimum(x, torch.full_like(x, 0.5))),
        lambda x: torch.max(x, torch.zeros(x.shape[0], x.shape[1])),
    ],
)
def test_tensors_of_one_number_and_open_sizes_are_numbers(levels: Callable[[Tensor], Tensor]) -> None:
    """What is as large as the graph is no constant, but where it stands beside x it need not have x's size."""
    example = random_graph(20, 70)
    gm = trace(Wrapped(lambda m, x, e: levels(x), {}), example, open_axes=graph_axes(example))
    canonicalise.run(gm)
    assert count(gm, *canonicalise.MADE) == 0
    check_open(gm)
    for graph in awkward_graphs().values():
        assert torch.equal(run(gm, *graph), levels(graph[0]))


def test_a_tensor_of_one_number_that_gives_the_size_stays() -> None:
    example = random_graph(20, 70)
    gm = trace(
        Wrapped(lambda m, x, e: torch.where(x[:1] >= 0, torch.ones_like(x), x[:1]), {}),
        example, open_axes=graph_axes(example),
    )  # fmt: skip
    canonicalise.run(gm)
    assert count(gm, aten.full) == 1


def test_columns_that_are_written_and_picked() -> None:
    """One-hot by hand, a mask of the largest, the score of a class; what is written from a tensor stays."""
    x, columns = randn(5, 4), torch.tensor([[0, 3], [2, 2], [1, 0], [3, 1], [0, 1]])

    def choices(m: Any, x: Tensor, i: Tensor) -> Tensor:
        hot, several = torch.zeros(5, 4).scatter(1, i[:, :1], 1), x.scatter(-1, i, -2.5)
        return hot + several + x.gather(1, i[:, 1:])

    made = canonical(choices, x, columns)
    assert not [target for target in made if "scatter" in str(target) or "gather" in str(target)]
    other = canonical(lambda m, x, i: x.scatter(1, i, x.exp()) + x.gather(0, i[:1, :1]), x, columns)
    assert {"aten.scatter.src", "aten.gather.default"} <= {str(target) for target in other}
