"""Chains of per-channel operations: what several passes walk over, evaluate and move.

A *channel op* acts on each value by itself, with constants that depend on the last axis at most: a rescaling
Gamma, BatchNorm, a bias, PReLU, ReLU, tanh. On a column of values it can be evaluated without the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.graph import aten, is_call, is_constant, only_user, shape_of, value_of

bgnn = torch.ops.bgnn

PLAIN = ops.having("elementwise", "one", "-rounds")
WITH_CONSTANT = [aten.add, aten.sub, aten.mul, aten.div]


def _is_channel_constant(value: Any, channels: int) -> bool:
    if isinstance(value, (int, float)):
        return True
    return is_constant(value) and shape_of(value) in ((), (1,), (channels,))


def is_channel_op(node: Any) -> bool:
    """Whether `node` acts per value with constants per channel; its data operand is `data_of(node)`."""
    if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), Tensor) or not shape_of(node):
        return False
    if not isinstance(shape_of(node)[-1], int):
        return False  # a number for each node or edge: an open axis holds no channels
    if is_call(node, *PLAIN):
        return sum(isinstance(a, fx.Node) for a in [*node.args, *node.kwargs.values()]) == 1  # bounds are numbers
    if is_call(node, bgnn.prelu, bgnn.batch_norm):
        return True
    if not is_call(node, *WITH_CONSTANT) or node.kwargs:
        return False
    channels = shape_of(node)[-1]
    constants = [a for a in node.args if _is_channel_constant(a, channels)]
    return len(constants) == 1 and shape_of(data_of(node)) == shape_of(node)


def data_of(node: fx.Node) -> fx.Node:
    """The operand of a channel op that is not a constant."""
    return next(a for a in node.args if isinstance(a, fx.Node) and not is_constant(a))


def evaluate(node: fx.Node, column: Tensor) -> Tensor:
    """A channel op on values `[V, C]`, in the arithmetic PyTorch uses for the tensor itself."""
    data = data_of(node)

    def value(n: fx.Node) -> Tensor:
        return column if n is data else value_of(n)

    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value)
    with torch.no_grad():
        return cast(Callable[..., Tensor], node.target)(*args, **kwargs)


def norm_affine(node: fx.Node) -> tuple[Tensor, Tensor]:
    """(scale, shift) f32 `[C]` of a `bgnn::batch_norm`: `x * scale + shift`, computed in f64 and rounded once."""
    weight, bias, mean, var, eps = node.args[1:6]
    mean_value, var_value = value_of(cast(fx.Node, mean)).double(), value_of(cast(fx.Node, var)).double()
    scale = (var_value + cast(float, eps)).rsqrt()
    if weight is not None:
        scale = scale * value_of(cast(fx.Node, weight)).double()
    shift = -mean_value * scale
    if bias is not None:
        shift = shift + value_of(cast(fx.Node, bias)).double()
    return scale.float(), shift.float()


def affine_of(node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """(scale, shift) `[C]` f32 if the channel op is `x * scale + shift`, else None."""
    if not is_channel_op(node):
        return None
    channels = shape_of(node)[-1]
    if is_call(node, bgnn.batch_norm):
        return norm_affine(node)
    if is_call(node, aten.neg):
        return -torch.ones(channels), torch.zeros(channels)
    if not is_call(node, *WITH_CONSTANT):
        return None
    left, right = node.args[:2]
    data = data_of(node)
    other = right if left is data else left
    number = value_of(other) if isinstance(other, fx.Node) else torch.tensor(float(cast(float, other)))
    full = number.float().expand(channels).clone()
    one, zero = torch.ones(channels), torch.zeros(channels)
    if is_call(node, aten.add):
        return one, full
    if is_call(node, aten.sub):
        return (one, -full) if left is data else (-one, full)
    if is_call(node, aten.mul):
        return full, zero
    return (1 / full, zero) if left is data else None


def rescaled(
    node: fx.Node, sizes: Mapping[str, tuple[int, ...]], factors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], fx.Node]:
    """(`factors`, each times the constants of its shape in `sizes` that a tensor is multiplied by; what they multiply).

    One number goes to "alpha". Stops at a product that is another, or that something else reads as well.
    """
    found = dict(factors)
    while is_call(node, aten.mul) and only_user(node) is not None:
        data, factor = node.args[:2]
        if is_constant(data):
            data, factor = factor, data
        if isinstance(factor, fx.Node) and not is_constant(factor):
            break
        value = value_of(factor) if isinstance(factor, fx.Node) else torch.tensor(float(cast(float, factor)))
        rank = len(next(iter(sizes.values())))
        full = (1,) * (rank - value.dim()) + tuple(value.shape)
        name = next((n for n, size in sizes.items() if full == size), "alpha" if value.numel() == 1 else None)
        if name not in found or not isinstance(data, fx.Node) or shape_of(data) != shape_of(node):
            break
        found[name] = found[name] * value.flatten()
        node = data
    return found, node
