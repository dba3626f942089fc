"""A sign after a binary dense layer is a boolean function of the layer's integer result: thresholds, no floats.

`sign(affine(PReLU(Gamma * acc)))`, acc an integer in [-K, K], is evaluated for every one of the K+1 values acc can
take, per channel, by the model's own ops in PyTorch's float arithmetic: so the table is exact, whatever the
ops' rounding. A table with T steps is T thresholds on the popcount p = (K - acc)/2: one where the function is
monotone, two (an interval) where a PReLU slope is negative. Where the table ends in +1 for the largest p, the channel's
weights are negated instead of spending a threshold on it.

Maxima over neighbours or points inside the expression (sign_through_max): `sign(g(max_j f(acc_j)))` is the maximum
of the signs if g is increasing over f's values, and minus the maximum of minus the signs where it is
decreasing (a negative BatchNorm scale, paper Eq. 19), decided per channel from the same table. An edge gives one bit.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes import domains as dm
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.canonicalise import reshape
from bgnn.passes.chains import data_of, evaluate, is_channel_op
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    leaves_channels,
    only_user,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

NEEDS = ("binarize", "prelu", "batch_norm")
MAKES = ("dot_threshold",)

bgnn = torch.ops.bgnn

MOST_STEPS = 4  # each threshold is one more binary layer where there are only LCE's ops
NEVER = torch.iinfo(torch.int32).max


def run(gm: fx.GraphModule) -> PassResult:
    """Rewrites each `binarize(chain(linear(binary, binary)))` to `dot_threshold` and its maxima."""
    result = PassResult()
    domains = dm.analyse(gm)
    for node in calls(gm.graph, bgnn.binarize):
        chain, layer = _chain_to_layer(node)
        if layer is None:
            continue
        x, weight = cast(fx.Node, layer.args[0]), cast(fx.Node, layer.args[1])
        if domains[x].kind != "binary":
            continue
        rows = binary_rows(value_of(weight))
        if rows is None:
            result.refuse(node, "the layer before it has real weights")
            continue
        shared = next((n for n in [layer, *chain] if only_user(n) is None), None)
        if shared is not None:
            result.refuse(node, f"{shared.name} is read as a number elsewhere too, so it stays float")
            continue
        bias = value_of(cast(fx.Node, layer.args[2])) if len(layer.args) > 2 and layer.args[2] is not None else None
        table = _table(chain, shape_of(x)[-1], rows[1], bias)
        if isinstance(table, str):
            result.refuse(node, table)
            continue
        signs, lower = table
        signs_out, thresholds = _thresholds(signs)
        steps = int(((thresholds >= 0) & (thresholds != NEVER)).any(1).sum())
        if steps > MOST_STEPS:
            result.refuse(node, f"its table has {steps} steps, more than {MOST_STEPS}")
            continue
        new = call(
            node, bgnn.dot_threshold.default, x, constant(node, rows[0] * signs_out[:, None], str(weight.target)),
            constant(node, thresholds, f"{weight.target}_thresholds"), like=layer,
        )  # fmt: skip
        for op in chain:  # the maxima and reshapes stand as they stood
            if is_call(op, aten.amax):
                new = call(node, op.target, new, *op.args[1:], like=op)
            elif is_call(op, aten.reshape):
                new = reshape(node, new, shape_of(op), like=op)
        if bool(lower.any()):
            flip = torch.where(lower, -1.0, 1.0)
            new = call(node, aten.mul.Tensor, new, constant(node, flip, "minimum_channels"))
        whole = bool((rows[1] == 1).all()) and (bias is None or bool((bias == bias.round()).all()))
        if "tap" in node.meta and whole and not layer.meta.get("rescaled"):  # PyTorch added up other numbers
            node.meta["tap"] = node.meta["tap"].changed(exact=True)
        replace(node, new)
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _chain_to_layer(node: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
    """The ops between a dense layer and a sign, first to last; None where something else stands between."""
    chain: list[fx.Node] = []
    current = cast(fx.Node, node.args[0])
    while True:
        if is_call(current, aten.linear) and is_constant(current.args[1]):
            return chain[::-1], current
        if is_call(current, aten.amax):
            if not leaves_channels(current):
                return [], None
            following = cast(fx.Node, current.args[0])
        elif is_call(current, aten.reshape):
            following = cast(fx.Node, current.args[0])
            if shape_of(following)[-1:] != shape_of(current)[-1:]:
                return [], None
        elif is_channel_op(current):
            following = data_of(current)
        else:
            return [], None
        chain.append(current)
        current = following


def _table(chain: list[fx.Node], fan_in: int, scale: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor] | str:
    """(signs `[K+1, C]` for p = 0..K, which channels take the minimum) or why there is no such table."""
    acc = torch.arange(fan_in, -fan_in - 1, -2, dtype=torch.float32)[:, None]  # p = 0 first
    column = acc.expand(-1, len(scale)).contiguous()
    if bool((scale != 1).any()):
        column = column * scale
    if bias is not None:
        column = column + bias
    last_max = max((i for i, op in enumerate(chain) if is_call(op, aten.amax)), default=-1)
    inside = column
    for i, op in enumerate(chain):
        if is_channel_op(op):
            column = evaluate(op, column)
        if i <= last_max:
            inside = column
    signs = torch.where(column >= 0, 1.0, -1.0)
    lower = torch.zeros(len(scale), dtype=torch.bool)
    if last_max >= 0:
        # Between two maxima only increasing ops may stand, or the first one could not be moved either.
        between = [op for i, op in enumerate(chain) if i < last_max and any(is_call(o, aten.amax) for o in chain[:i])]
        if any(is_channel_op(op) for op in between):
            return "there are operations between two maxima"
        order = torch.argsort(inside, dim=0, stable=True)
        steps = torch.gather(signs, 0, order).diff(dim=0)
        rising, falling = (steps >= 0).all(0), (steps <= 0).all(0)
        if not bool((rising | falling).all()):
            return "what follows the maximum is not monotone"
        lower = ~rising
        signs = torch.where(lower, -signs, signs)
    return signs, lower


def _thresholds(signs: Tensor) -> tuple[Tensor, Tensor]:
    """(weight signs `[C]`, thresholds int32 `[T, C]`) that give the table `signs[K+1, C]`.

    A negated row of weights counts p from the other end, so the cheaper end of each channel's table is taken as start.
    Channels that start at -1 have a threshold of -1, in a first row of its own: it is always passed and costs no
    dot product.
    """
    steps: list[list[int]] = []
    flips: list[float] = []
    for column in signs.t():
        options: list[tuple[list[int], float]] = []
        for flip, run_of in ((1.0, column), (-1.0, column.flip(0))):
            turns = (torch.nonzero(run_of[1:] != run_of[:-1]).flatten()).tolist()
            start = [-1] if run_of[0] < 0 else []
            options.append((start + turns, flip))
        best = min(options, key=lambda option: len(option[0]))
        steps.append(best[0])
        flips.append(best[1])
    inverted = any(turns[:1] == [-1] for turns in steps)
    count = max(1, max(sum(t >= 0 for t in turns) for turns in steps)) + inverted
    thresholds = torch.full((count, signs.shape[1]), NEVER, dtype=torch.int32)
    for channel, turns in enumerate(steps):
        if turns[:1] == [-1]:
            thresholds[0, channel] = -1
        for row, turn in enumerate((t for t in turns if t >= 0), start=int(inverted)):
            thresholds[row, channel] = turn
    return torch.tensor(flips), thresholds
