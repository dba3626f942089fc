"""Norms, deviations, windows and written slices in elementary ops: the same numbers; what is something else stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Wrapped, apply, aten, count, exported, outputs, randn, same
from torch import Tensor, fx
from torch.nn import functional as F

from bgnn.converter.trace import trace
from bgnn.passes import canonicalise, decompose, merge_equal_nodes

TARGETS = [aten.layer_norm, aten.std, aten.var, aten.addmm, aten.log1p, aten.bitwise_and]
TARGETS += [aten.log2, aten.log10, aten.exp2, aten.ldexp, aten.bitwise_xor, aten.__xor__]
TARGETS += [aten.remainder, aten.fmod, aten.frac, aten.trunc, aten.fix, aten.floor_divide, aten.div.Tensor_mode]
TARGETS += [aten.flip, aten.roll, aten.any, aten.all, aten.__and__, aten.bitwise_or, aten.__or__, aten.bitwise_not]
X = randn(7, 4, 6) * 3 + 1
CASES: dict[str, Callable[..., Any]] = {
    "log1p": lambda m, x: torch.log1p(x.abs()),
    "log2": lambda m, x: torch.log2(x.abs() + 0.1),
    "log10": lambda m, x: torch.log10(x.abs() + 0.1),
    "exp2": lambda m, x: torch.exp2(x),
    "ldexp": lambda m, x: torch.ldexp(x, m.k),
    "conditions' product": lambda m, x: (x > 0) * (x < 2),
    "conditions' sum": lambda m, x: (x > 0) + (x < -2),
    "conditions that differ": lambda m, x: (x > 0) ^ (x < 2),
    "conditions, less": lambda m, x: (x > 0) < (x > -2),
    "conditions, greater": lambda m, x: (x > -2) > (x > 0),
    "conditions, not less": lambda m, x: (x > 0) >= (x > 2),
    "conditions, not greater": lambda m, x: (x > 0) <= (x < 2),
    "remainder": lambda m, x: torch.remainder(x, 0.37),
    "remainder of tensors": lambda m, x: x % (x.abs() + 0.3),
    "fmod": lambda m, x: torch.fmod(x, 0.37),
    "frac": lambda m, x: x.frac(),
    "trunc": lambda m, x: x.trunc(),
    "fix": lambda m, x: torch.fix(x * 2),
    "floor_divide": lambda m, x: x // 0.37,
    "divided and cut off": lambda m, x: torch.div(x, 0.37, rounding_mode="trunc"),
    "conditions": lambda m, x: torch.where((x > 0) & (x < 2), x, 0.0),
    "layer_norm": lambda m, x: F.layer_norm(x, [6], m.w, m.b, 1e-3),
    "layer_norm without weights": lambda m, x: F.layer_norm(x, [4, 6]),
    "std, biased": lambda m, x: x.std(unbiased=False),
    "std over axes": lambda m, x: x.std((0, -1), unbiased=True, keepdim=True),
    "std of PyG's norm": lambda m, x: x / (x.std(dim=1, unbiased=False, keepdim=True) + 1e-5),
    "std of known size": lambda m, x: x.std(),
    "var": lambda m, x: x.var(dim=0, correction=2),
    "any over an axis": lambda m, x: (x > 2).any(-1),
    "any, kept": lambda m, x: (x > 4).any(dim=1, keepdim=True),
    "any over axes": lambda m, x: torch.any(x > 4, (0, 2)),
    "any of all": lambda m, x: (x > 90).any(),
    "all of numbers": lambda m, x: x.round().all(2),
    "all of all": lambda m, x: (x > -90).all(),
    "flip": lambda m, x: x.flip(-1, 1),
    "roll": lambda m, x: x.roll((2, -1), (1, 2)),
    "addmm": lambda m, x: torch.addmm(m.b, x[:, 0], m.a, beta=0.5, alpha=2.0),
    "addmm of tensors": lambda m, x: torch.addmm(x[:, 0], x[:, 1], x[:, 2].t() @ x[:, 3]),
}


def graph(function: Callable[..., Any], **constants: Tensor) -> fx.GraphModule:
    """With an open first axis: what a mask picks has no size that is known."""
    gm = trace(Wrapped(function, constants), (X,), open_axes=[{0: torch.export.Dim.DYNAMIC}])
    canonicalise.run(gm)
    merge_equal_nodes.run(gm)
    return gm


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers(name: str) -> None:
    constants = {"w": randn(6, seed=1), "b": randn(6, seed=2), "a": randn(6, 6, seed=3), "k": torch.tensor(-3)}
    gm = graph(CASES[name], **constants)
    assert count(gm, *TARGETS) == 1 or "conditions" in name
    expected = outputs(gm, X)[0]
    assert decompose.run(gm).rewrites == 1
    assert count(gm, *TARGETS) == 0
    same(outputs(gm, X)[0], expected, 0.0 if expected.dtype == torch.bool else 1e-6)


def test_arithmetic_of_conditions_is_of_numbers_where_one_is() -> None:
    gm = graph(lambda m, x: x * (x > 0) + (x > 1))
    assert decompose.run(gm).rewrites == 0


def written(function: Callable[[Tensor, Tensor], None]) -> Callable[..., Any]:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = x * 2
        function(y, x)
        return y

    return forward


def one(y: Tensor, x: Tensor) -> None:
    y[1:] = x[:-1]


def two(y: Tensor, x: Tensor) -> None:
    y[:-1] = y[:-1] - x[1:]


def three(y: Tensor, x: Tensor) -> None:
    y[2, ..., 1::2] = -x[3, :, ::2]


def four(y: Tensor, x: Tensor) -> None:
    y[..., -1] = 0.5
    y[0] = x[1]


def five(y: Tensor, x: Tensor) -> None:
    y[:, 1:3].copy_(x[:, :2])
    y.select(2, 3).add_(1)


def on_the_diagonal(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    y.diagonal(dim1=1, dim2=2).copy_(x[:, :, -1])
    return y


def above_it(m: Any, x: Tensor) -> Tensor:
    y = x[0, :, :4] * 2
    y.diagonal(1).fill_(7.0)
    y.fill_diagonal_(3.0)
    return y + x[1].diagonal(-1).sum() + x[2, :, :4].trace()


@pytest.mark.parametrize("function", [on_the_diagonal, above_it], ids=lambda f: f.__name__)
def test_diagonals_are_places_that_are_known(function: Callable[..., Any]) -> None:
    gm = trace(Wrapped(function, {}), (X,))
    strided = [aten.diagonal, aten.diagonal_scatter, aten.as_strided, aten.as_strided_scatter]
    assert count(gm, *strided) > 0
    decompose.run(gm)
    assert count(gm, *strided) == 0
    same(outputs(gm, X)[0], function(None, X), 1e-6)


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("function", [one, two, three, four, five], ids=lambda f: f.__name__)
def test_a_written_slice_is_a_cat(function: Callable[[Tensor, Tensor], None], opened: bool) -> None:
    axes = [{0: torch.export.Dim.DYNAMIC}] if opened else None
    gm = trace(Wrapped(written(function), {}), (X,), open_axes=axes)
    assert count(gm, aten.slice_scatter, aten.select_scatter) > 0
    canonicalise.run(gm)
    decompose.run(gm)
    canonicalise.run(gm)
    assert count(gm, aten.slice_scatter, aten.select_scatter) == 0
    for x in (X, randn(11, 4, 6, seed=5)) if opened else (X,):
        same(outputs(gm, x)[0], written(function)(None, x))


NORMS: dict[str, Callable[..., Any]] = {
    "of rows": lambda m, x: F.batch_norm(x[:, 0], None, None, m.w, m.b, True, 0.1, 1e-3),
    "of points": lambda m, x: F.batch_norm(x.transpose(1, 2), None, None, m.w, m.b, training=True),
    "of pixels, plain": lambda m, x: F.batch_norm(
        x.transpose(1, 2)[..., None] * torch.ones(3), None, None, training=True
    ),
    "that would move its statistics": lambda m, x: F.batch_norm(x[:, 0], m.mean, m.var, m.w, m.b, True),
}


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_by_its_own_statistics(name: str) -> None:
    made = {"w": randn(6, seed=1), "b": randn(6, seed=2), "mean": randn(6, seed=3), "var": randn(6, seed=4).abs()}
    gm = graph(NORMS[name], **made)
    expected = outputs(gm, X)[0]
    assert decompose.run(gm).rewrites == 1
    assert not any("batch_norm" in str(node.target) for node in gm.graph.nodes)
    same(outputs(gm, X)[0], expected, 1e-6)


def weights(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape).sin()


WINDOWS: dict[str, Callable[..., Any]] = {
    "over time": lambda m, x: F.conv1d(x, weights(5, 4, 3), torch.arange(5.0), padding=1),
    "strided, apart": lambda m, x: F.conv1d(x, weights(5, 4, 2), None, 2, 1, 2),
    "same": lambda m, x: F.conv1d(x, weights(5, 4, 4), padding="same"),
    "two axes": lambda m, x: F.conv2d(x[:, None], weights(3, 1, 3, 2), torch.arange(3.0), (2, 1), (1, 0), (1, 2)),
    "one row at a time": lambda m, x: F.conv2d(x[:, None], weights(3, 1, 1, 6)),
    "window 1 with steps": lambda m, x: F.conv2d(x[:, None], weights(3, 1, 1, 1), stride=2),
    "groups": lambda m, x: F.conv1d(x, weights(4, 2, 3), groups=2, padding=2),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_become_window_1(name: str) -> None:
    gm = graph(WINDOWS[name])
    assert decompose.run(gm).rewrites >= 1
    for node in gm.graph.nodes:
        if node.target in (aten.conv1d.default, aten.conv2d.default):
            assert set(node.args[1].meta["val"].shape[2:]) == {1}
            assert len(node.args) == 3, "no stride, no padding"
    x = randn(3, 4, 6, seed=3)
    same(outputs(gm, x)[0], WINDOWS[name](None, x), 1e-6)


NORMS_AND_SUCH: dict[str, Callable[..., Any]] = {
    "group_norm": lambda m, x: F.group_norm(x, 2, torch.arange(4.0), torch.arange(4.0) - 1, 1e-3),
    "group_norm of rows": lambda m, x: F.group_norm(x[:, 0], 3),
    "instance_norm": lambda m, x: F.instance_norm(x, weight=torch.arange(4.0), bias=torch.ones(4)),
    "instance_norm that runs": lambda m, x: F.instance_norm(x, torch.ones(4), torch.ones(4) * 2, use_input_stats=False),
    "var_mean": lambda m, x: torch.add(*torch.var_mean(x, 1)),
    "std_mean, kept": lambda m, x: torch.add(*torch.std_mean(x, (1, 2), correction=0, keepdim=True)),
    "selu": lambda m, x: F.selu(x),
    "celu": lambda m, x: F.celu(x, 0.3),
    "logsigmoid": lambda m, x: F.logsigmoid(x * 9),
    "attention": lambda m, x: F.scaled_dot_product_attention(x, x * 2, x.neg()),
    "attention with a scale": lambda m, x: F.scaled_dot_product_attention(x, x, x, scale=0.2),
    "attention with a mask": lambda m, x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=x[:, :, :1] > x[:, :1, 0:1]
    ),
    "pad": lambda m, x: F.pad(x, (1, 2, 0, 3), value=0.5),
    "atan2": lambda m, x: torch.atan2(x.round(), x.flip(1).round()),  # all quarters, zeros and the axes among them
    "pad that cuts": lambda m, x: F.pad(x, (-1, 2)),
}


@pytest.mark.parametrize("name", NORMS_AND_SUCH)
def test_norms_attention_and_padding(name: str) -> None:
    gm = graph(NORMS_AND_SUCH[name])
    before = decompose.run(gm)
    canonicalise.run(gm)
    assert before.rewrites >= 1
    left = {str(n.target) for n in gm.graph.nodes if n.op == "call_function"} & {
        f"aten.{op}.default"
        for op in (
            "group_norm",
            "instance_norm",
            "celu",
            "log_sigmoid",
            "scaled_dot_product_attention",
            "constant_pad_nd",
            "atan2",
        )
    }
    assert not left
    for rows in (7, 3):
        x = randn(rows, 4, 6, seed=rows) * 2
        same(outputs(gm, x)[0], NORMS_AND_SUCH[name](None, x), 2e-6)


@pytest.mark.parametrize("opened", [(0,), (2,), (0, 2)])
def test_norms_and_spreads_over_open_sizes(opened: tuple[int, ...]) -> None:
    """Their counts are those of each run."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = F.group_norm(x, 2, torch.arange(4.0), torch.ones(4))
        return torch.cat([h.std(2), x.var((0, 2))[None].expand(x.size(0), -1), h.var(-1, unbiased=False)], 1)

    sizes = dict.fromkeys(opened, torch.export.Dim.DYNAMIC)
    gm = trace(Wrapped(forward, {}), (randn(3, 4, 6, seed=0),), open_axes=[sizes])
    canonicalise.run(gm)
    decompose.run(gm)
    assert count(gm, aten.group_norm, aten.std, aten.var) == 0
    x = randn(5 if 0 in opened else 3, 4, 9 if 2 in opened else 6, seed=1)
    same(outputs(gm, x)[0], forward(None, x), 2e-6)


GROUPED = {
    "two": (lambda m, x: F.conv1d(x, m.two, m.bias, groups=2), 2),
    "with a window": (lambda m, x: F.conv1d(x, m.wide, groups=2, padding=1), 2),
    "of computed weights": (lambda m, x: F.conv1d(x, m.two.sign(), groups=2), 2),
    "depthwise": (lambda m, x: F.conv1d(x, m.one, m.bias, groups=6), 0),
    "a multiplier": (lambda m, x: F.conv1d(x, m.more, groups=6), 6),
}


@pytest.mark.parametrize("kind", GROUPED)
def test_grouped_convolutions(kind: str) -> None:
    function, left = GROUPED[kind]
    x = randn(2, 6, 5)
    constants = {
        "two": randn(6, 3, 1), "wide": randn(8, 3, 3), "one": randn(6, 1, 1), "more": randn(12, 1, 1), "bias": randn(6),
    }  # fmt: skip
    gm = exported(function, x, **constants)
    assert apply(decompose.run, gm, x, tolerance=1e-6).rewrites == (3 if kind == "with a window" else 1)
    assert count(gm, aten.conv1d) == left
    assert apply(decompose.run, gm, x).rewrites == 0


def test_a_plain_convolution_stays() -> None:
    x = randn(2, 6, 5)
    gm = exported(lambda m, v: F.conv1d(v, m.w), x, w=randn(4, 6, 1))
    assert apply(decompose.run, gm, x).rewrites == 0
