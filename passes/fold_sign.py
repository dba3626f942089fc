"""The sign of an increasing or decreasing function of a real number is a comparison with one number per channel.

`sign(f(x)) = sign(x - t)` for an increasing f (BatchNorm with a positive scale, PReLU, a bias), and `-sign(x - t)` for
a decreasing one, t being the first float32 on the other side. t is found by bisection over all float32 numbers with the
model's own ops in PyTorch's arithmetic, so the comparison decides exactly as PyTorch does, whatever the rounding of f.
One subtraction and one constant remain of a norm; the minus goes into the next layer's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes.chains import data_of, evaluate, is_channel_op
from bgnn.passes.float_order import number, order
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    constant,
    is_call,
    only_user,
    remove_dead_code,
    replace,
    shape_of,
)
from bgnn.passes.reduce_before_elementwise import direction

NEEDS = ("binarize", "prelu", "batch_norm")
MAKES = ("sign(x - t)",)

bgnn = torch.ops.bgnn
LARGEST = torch.finfo(torch.float32).max


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites each `binarize(chain(x))` of two or more channel ops, or of one BatchNorm."""
    result = PassResult()
    for node in calls(gm.graph, bgnn.binarize):
        chain: list[fx.Node] = []
        x = cast(fx.Node, node.args[0])
        while is_channel_op(x) and only_user(x) is not None and direction(x) in ("rising", "falling", "ends"):
            chain.append(x)
            x = data_of(x)
        if len(chain) < 2 and not any(is_call(op, bgnn.batch_norm) for op in chain):
            continue
        if x.meta["val"].dtype != torch.float32 or not shape_of(node):
            continue
        found = thresholds(chain[::-1], shape_of(node)[-1])
        if found is None:
            result.refuse(node, "its sign is no comparison with one number")
            continue
        threshold, sign = found
        shifted = call(node, aten.sub.Tensor, x, constant(node, threshold, "sign_threshold"))
        new = call(node, bgnn.binarize.default, shifted)
        if bool((sign < 0).any()):
            new = call(node, aten.mul.Tensor, new, constant(node, sign, "falling_channels"))
        replace(node, new)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def thresholds(chain: list[fx.Node], channels: int) -> tuple[Tensor, Tensor] | None:
    """(t, s) f32 `[C]` with `sign(chain(x)) = s * sign(x - t)` for every float32 x; None if there is no such t."""

    def positive(x: Tensor) -> Tensor:
        column = x[None]
        for op in chain:
            column = evaluate(op, column)
        return column[0] >= 0

    low, high = torch.full((channels,), -LARGEST), torch.full((channels,), LARGEST)
    at_low, at_high = positive(low), positive(high)
    falling = at_low & ~at_high
    # Bisection over the float32 numbers in their order: `high` is always on the far side, `low` never.
    lo, hi = order(low), order(high)
    while bool((hi - lo > 1).any()):
        middle = (lo + hi) // 2
        beyond = positive(number(middle)) == at_high
        lo, hi = torch.where(beyond, lo, middle), torch.where(beyond, middle, hi)
    threshold = number(hi)
    same = at_low == at_high  # one sign for every x
    threshold = torch.where(same, torch.where(at_high, -LARGEST, LARGEST), threshold)
    sign = torch.where(falling, -1.0, 1.0)
    return (threshold, sign) if _holds(positive, threshold, sign, same) else None


def _holds(positive: Callable[[Tensor], Tensor], threshold: Tensor, sign: Tensor, same: Tensor) -> bool:
    """Whether the comparison gives the chain's sign on numbers around the threshold and far from it."""
    for factor in (-1e6, -3.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 3.0, 1e6):
        x = torch.where(same, torch.tensor(factor), threshold + factor * threshold.abs().clamp(1e-3, 1e6))
        x = x.clamp(-1e30, 1e30)
        expected = torch.where(x - threshold >= 0, sign, -sign) > 0
        if not torch.equal(positive(x), expected):
            return False
    return True
