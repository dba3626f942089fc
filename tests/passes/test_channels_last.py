"""The feature axis last, everywhere, with hardly a permute left; no value changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import apply, aten, bgnn, count, graph, only, outputs, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bgnn.passes import channels_last
from bgnn.passes.graph import PassResult, is_call

B, N, K, C, OUT = 2, 5, 4, 3, 6
POINTS = randn(B, N, C)  # channels last at the start, as point clouds are
EDGES = randn(B, N, K, C, seed=1)
CONSTANTS = {
    "w1": randn(OUT, C, 1),
    "w2": randn(OUT, C, 1, 1),
    "v2": randn(OUT, OUT, 1, 1, seed=1),
    "bias": randn(OUT, seed=2),
    "g": randn(OUT, seed=3),
    "mu": randn(OUT, seed=4),
    "va": randn(OUT, seed=5).abs() + 0.1,
    "slope": torch.tensor([0.25]),
    "slopes": randn(OUT, seed=6),
    "gamma": randn(1, OUT, 1, 1, seed=7),
    "per_point": randn(1, 1, N, 1, seed=8),
    "per_neighbour": randn(K, seed=9),
    "window": randn(4, C, 3),
    "grouped": randn(C, 1, 1),
    "small": randn(2, K),
}


def last(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 0.0) -> tuple[Any, PassResult]:
    gm = graph(function, *inputs, **CONSTANTS)
    return gm, apply(channels_last.run, gm, *inputs, tolerance=tolerance)


def first(x: Tensor) -> Tensor:
    """`[B, C, ...]` of `[B, ..., C]`."""
    return x.movedim(-1, 1)


def conv(m: Any, x: Tensor) -> Tensor:
    return F.conv2d(first(x), m.w2)


def bn(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, m.mu, m.va, m.g, m.bias)


# Everything here can be done without a single permute: the results are channels-last themselves or pooled.
FREE: dict[str, Callable[..., Any]] = {
    "conv and back": lambda m, x: conv(m, x).permute(0, 2, 3, 1),
    "conv with bias": lambda m, x: F.conv2d(first(x), m.w2, m.bias).permute(0, 2, 3, 1),
    "two convs": lambda m, x: F.conv2d(conv(m, x).relu(), m.v2).permute(0, 2, 3, 1),
    "norm": lambda m, x: bn(m, conv(m, x)).permute(0, 2, 3, 1),
    "prelu": lambda m, x: F.prelu(conv(m, x), m.slopes).permute(0, 2, 3, 1),
    "prelu of one slope": lambda m, x: F.prelu(conv(m, x), m.slope).permute(0, 2, 3, 1),
    "rescaling": lambda m, x: (conv(m, x) * m.gamma).permute(0, 2, 3, 1),
    "per point": lambda m, x: (conv(m, x) * m.per_point).permute(0, 2, 3, 1),
    "per neighbour": lambda m, x: (m.per_neighbour + conv(m, x)).permute(0, 2, 3, 1),
    "maximum over neighbours": lambda m, x: conv(m, x).amax(3).transpose(1, 2),
    "maximum, keepdim": lambda m, x: conv(m, x).amax(-1, True).permute(0, 2, 3, 1),
    "mean over points": lambda m, x: conv(m, x).mean(2).transpose(1, 2),
    "mean over both": lambda m, x: conv(m, x).mean((2, 3)),
    "everything summed": lambda m, x: conv(m, x).sum((0, 1, 2, 3)),
    "over channels": lambda m, x: conv(m, x).amax(1),
    "over channels, keepdim": lambda m, x: conv(m, x).amin(1, True)[:, 0],
    "over the batch": lambda m, x: conv(m, x).amax(0).permute(1, 2, 0),
    "softmax over channels": lambda m, x: conv(m, x).softmax(1).permute(0, 2, 3, 1),
    "cat of channels": lambda m, x: torch.cat([conv(m, x), first(x)], 1).permute(0, 2, 3, 1),
    "cat of points": lambda m, x: torch.cat([conv(m, x), conv(m, x).relu()], 2).permute(0, 2, 3, 1),
    "cat of neighbours": lambda m, x: torch.cat([conv(m, x), conv(m, x).relu()], -1).permute(0, 2, 3, 1),
    "slice of channels": lambda m, x: conv(m, x)[:, 1:4].permute(0, 2, 3, 1),
    "slice of points": lambda m, x: conv(m, x)[:, :, 1:4].permute(0, 2, 3, 1),
    "expand": lambda m, x: (conv(m, x).amax(3, True).expand(-1, -1, -1, K) - conv(m, x)).permute(0, 2, 3, 1),
    "sign": lambda m, x: bgnn.binarize(conv(m, x)).permute(0, 2, 3, 1),
    "squeeze after the maximum": lambda m, x: conv(m, x).amax(3, True).squeeze(-1).transpose(1, 2),
    "axes of one come and go": lambda m, x: conv(m, x).unsqueeze(1).relu().squeeze(1).permute(0, 2, 3, 1),
    "pooled flat": lambda m, x: conv(m, x).amax((2, 3), True).view(B, -1),
}


@pytest.mark.parametrize("name", FREE)
def test_no_permute_is_left(name: str) -> None:
    gm, result = last(FREE[name], EDGES, tolerance=1e-5)
    assert count(gm, aten.permute, aten.conv2d, aten.batch_norm, aten.prelu) == 0
    assert result.rewrites >= 1
    assert result.refusals == []


def test_one_dimensional_layers_on_points() -> None:
    gm, result = last(
        lambda m, x: F.prelu(bn(m, F.conv1d(x.transpose(1, 2), m.w1)), m.slopes).amax(2), POINTS, tolerance=1e-5
    )
    assert result.rewrites == 3
    assert count(gm, aten.permute) == 0
    assert count(gm, aten.linear, bgnn.batch_norm, bgnn.prelu) == 3


def test_values_of_norm_and_prelu_are_bit_equal() -> None:
    """`bgnn::batch_norm` calls PyTorch's own kernel, so that thresholds come out as in the model."""
    for shape in ((B, OUT), (B, OUT, N), (B, OUT, N, K), (1, OUT, 1), (7, OUT, 33)):
        x = randn(*shape)
        gm = graph(lambda m, x: F.prelu(bn(m, x), m.slopes), x, **CONSTANTS)
        assert apply(channels_last.run, gm, x).rewrites == 2


def test_channel_first_input_is_permuted_once() -> None:
    x = randn(B, C, N)
    gm, _ = last(
        lambda m, x: torch.cat([F.conv1d(x, m.w1).amax(2), F.conv1d(x, m.w1).relu().amax(2)], 1), x, tolerance=1e-5
    )
    assert count(gm, aten.permute) <= 2
    gm, _ = last(lambda m, x: x.transpose(1, 2).relu() @ x, x)
    assert count(gm, aten.permute) == 1


def test_an_output_that_is_channel_first_is_permuted_at_the_end() -> None:
    gm, _ = last(lambda m, x: bn(m, conv(m, x)), EDGES, tolerance=1e-5)
    assert only(gm, aten.permute).args[1] == [0, 3, 1, 2]


def test_ops_that_need_their_axes_get_them() -> None:
    last(lambda m, x: conv(m, x).reshape(B, OUT * N, K), EDGES, tolerance=1e-5)
    last(lambda m, x: conv(m, x).flatten(1), EDGES, tolerance=1e-5)
    last(lambda m, x: conv(m, x).amax(3) @ x[:, :, 0], EDGES, tolerance=1e-5)
    last(lambda m, x: conv(m, x).softmax(2), EDGES, tolerance=1e-5)
    last(lambda m, x: bgnn.topk_lowest(conv(m, x), 2, 3, True)[0], EDGES, tolerance=1e-5)
    last(lambda m, x: F.linear(conv(m, x), m.small), EDGES, tolerance=1e-5)


REFUSED: dict[str, Callable[..., Any]] = {
    "window": lambda m, x: F.conv1d(x, m.window),
    "stride": lambda m, x: F.conv1d(x, m.w1, stride=2),
    "padding": lambda m, x: F.conv1d(x, m.w1, padding=1),
    "groups": lambda m, x: F.conv1d(x, m.grouped, groups=C),
    "padding by name": lambda m, x: F.conv1d(x, m.window, padding="same"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_convolutions_are_refused(name: str) -> None:
    gm, result = last(REFUSED[name], randn(B, C, N), tolerance=1e-5)
    assert result.rewrites == 0
    assert "a convolution with a window other than 1" in result.refusals[0][1]
    assert count(gm, aten.conv1d) == 1


def test_taps_know_the_new_order() -> None:
    gm, _ = last(lambda m, x: bgnn.binarize(conv(m, x)).amax(3), EDGES, tolerance=1e-5)
    tap = only(gm, bgnn.binarize).meta["tap"]
    assert tap.perm == (0, 3, 1, 2)


def test_mixed_layouts_follow_the_larger_side() -> None:
    gm, _ = last(lambda m, x: (conv(m, x) + conv(m, x).amax(3, True)).amax(3).transpose(1, 2), EDGES, tolerance=1e-5)
    assert count(gm, aten.permute) == 0


MOVES = ["permute", "one", "squeeze", "reduce", "elementwise", "add", "slice", "cat", "flat", "expand"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_mixture_of_moves_and_elementwise_ops(data: st.DataObject) -> None:
    """Permutes, views that add and drop axes of one, reductions, slices and joins in any order."""
    steps: list[Callable[[Tensor], Tensor]] = []
    x = randn(2, 3, 1, 4)
    shape = x
    for _ in range(data.draw(st.integers(1, 7))):
        kind = data.draw(
            st.sampled_from(
                ["permute", "one", "squeeze", "reduce", "elementwise", "add", "slice", "cat", "flat", "expand"]
            )
        )
        rank = shape.dim()
        dim = data.draw(st.integers(0, rank - 1)) if rank else 0
        if kind == "permute":
            order = tuple(data.draw(st.permutations(range(rank))))
            step = lambda t, o=order: t.permute(o)  # noqa: E731
        elif kind == "one" and rank < 5:
            step = lambda t, d=dim: t.unsqueeze(d)  # noqa: E731
        elif kind == "squeeze" and rank > 2:
            step = lambda t, d=dim: t.squeeze(d)  # noqa: E731
        elif kind == "reduce" and rank > 2:
            keep = data.draw(st.booleans())
            step = lambda t, d=dim, k=keep: t.amax(d, k)  # noqa: E731
        elif kind == "add":
            step = lambda t, d=dim: t + t.amax(d, True)  # noqa: E731
        elif kind == "slice":
            step = lambda t, d=dim: t.narrow(d, t.shape[d] // 2, 1)  # noqa: E731
        elif kind == "cat":
            step = lambda t, d=dim: torch.cat([t, t.neg()], d)  # noqa: E731
        elif kind == "flat":
            step = lambda t: t.reshape(t.shape[0], -1)  # noqa: E731
        elif kind == "expand":
            step = lambda t: t.unsqueeze(0).expand(2, *t.shape)[0]  # noqa: E731
        else:
            step = lambda t: bgnn.binarize(t * 2 - 0.5) + t  # noqa: E731
        steps.append(step)
        shape = step(shape)

    def function(m: Any, x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x + 0.25

    gm = graph(function, x)
    expected = outputs(gm, x)[0]
    apply(channels_last.run, gm, x)
    assert torch.equal(outputs(gm, x)[0], expected)
    assert not any(is_call(n, aten.conv2d) for n in gm.graph.nodes)
