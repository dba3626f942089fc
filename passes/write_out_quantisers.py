"""PyTorch's own quantising operators, written with arithmetic: passes then know one kind of quantiser, not ten.

    fake_quantize_per_tensor_affine(x, s, z, low, high)   (clamp(round(x * (1 / s)) + z, low, high) - z) * s
    fake_quantize_per_channel_affine                      the same with s and z for each index of an axis
    _fused_moving_avg_obs_fq_helper                       one of these, its observer off (torch.ao's default in QAT)
    quantized_decomposed.quantize_*, dequantize_*         the two halves, with integers between (PT2E)

Each step is in float32 as the operators compute it: `1 / s` is rounded, and the zero point is added after rounding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from bgnn.passes.graph import (
    PassResult,
    arg,
    aten,
    call,
    getitem,
    is_call,
    is_constant,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)

PER_TENSOR = [
    aten.fake_quantize_per_tensor_affine, aten.fake_quantize_per_tensor_affine_cachemask,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams,
]  # fmt: skip
PER_CHANNEL = [aten.fake_quantize_per_channel_affine, aten.fake_quantize_per_channel_affine_cachemask]
FUSED = [aten._fused_moving_avg_obs_fq_helper, aten._fused_moving_avg_obs_fq_helper_functional]
OBSERVER = (
    "its observer is on, so that each forward moves its range: switch it off with "
    "model.apply(torch.ao.quantization.disable_observer)"
)


def run(gm: fx.GraphModule) -> PassResult:
    """Writes out every operator whose scales are known; the others stay."""
    result = PassResult()
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node._erased:
            continue
        new = _written(node, result)
        if new is None:
            continue
        for old in [node] if isinstance(node.meta["val"], torch.Tensor) else list(node.users):
            which = 0 if old is node else cast(tuple[fx.Node, int], getitem(old))[1]
            if which == 0:
                replace(old, new)
            elif which > 1 and is_call(node, *FUSED):  # a range or a scale, as it was: the observer is off
                old.replace_all_uses_with(cast(fx.Node, node.args[which + 1]))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _written(node: fx.Node, result: PassResult) -> fx.Node | None:
    x = cast(fx.Node, node.args[0]) if node.args else None
    if is_call(node, *PER_TENSOR):
        scale, zero, *rest = node.args[1:]
        if len(rest) == 3:  # whether it is on
            switch, *rest = rest
            if not is_constant(switch):
                return None
            if not bool(value_of(cast(fx.Node, switch)).any()):
                return x
        return _faked(node, x, scale, zero, None, *rest)
    if is_call(node, *PER_CHANNEL):
        return _faked(node, x, *node.args[1:])
    if is_call(node, *FUSED):
        observing, quantising, _, _, scale, zero, _, low, high, axis = node.args[1:11]
        if not is_constant(observing) or not is_constant(quantising):
            return None
        if bool(value_of(cast(fx.Node, observing)).any()):
            result.refuse(node, OBSERVER)
            return None
        if not bool(value_of(cast(fx.Node, quantising)).any()):
            return x
        return _faked(node, x, scale, zero, axis if arg(node, 11, "per_row_fake_quant", False) else None, low, high)
    if getattr(node.target, "namespace", None) == "quantized_decomposed":
        name = cast(Any, node.target)._schema.name.split("::")[1]
        scale, zero, *rest = node.args[1:]
        axis = rest.pop(0) if name.endswith("_per_channel") else None
        if name in ("quantize_per_tensor", "quantize_per_channel"):
            low, high, dtype = rest
            codes = _codes(node, x, scale, zero, axis, low, high)
            return call(node, aten._to_copy.default, codes, dtype=dtype)
        if name in ("dequantize_per_tensor", "dequantize_per_channel"):
            real = call(node, aten._to_copy.default, x, dtype=node.meta["val"].dtype)
            return _real(node, real, scale, zero, axis)
    return None


def _faked(node: fx.Node, x: Any, scale: Any, zero: Any, axis: Any, low: Any, high: Any) -> fx.Node:
    return _real(node, _codes(node, x, scale, zero, axis, low, high), scale, zero, axis)


def _codes(node: fx.Node, x: Any, scale: Any, zero: Any, axis: Any, low: Any, high: Any) -> fx.Node:
    scale, zero = _column(node, scale, axis), _column(node, zero, axis)
    if isinstance(scale, fx.Node):
        inverse: Any = call(node, aten.reciprocal.default, scale)
    else:
        inverse = float(1 / torch.tensor(scale, dtype=torch.float32))
    codes = call(node, aten.round.default, call(node, aten.mul.Tensor, x, inverse))
    target = aten.clamp.Tensor if isinstance(low, fx.Node) else aten.clamp.default
    return call(node, target, _shifted(node, aten.add.Tensor, codes, zero), low, high)


def _real(node: fx.Node, codes: Any, scale: Any, zero: Any, axis: Any) -> fx.Node:
    shifted = _shifted(node, aten.sub.Tensor, codes, _column(node, zero, axis))
    return call(node, aten.mul.Tensor, shifted, _column(node, scale, axis))


def _shifted(node: fx.Node, target: Any, codes: fx.Node, zero: Any) -> fx.Node:
    return codes if zero is None or zero == 0 else call(node, target, codes, zero)


def _column(node: fx.Node, value: Any, axis: Any) -> Any:
    """A constant as the tensor is laid out: one number, or one for each index of `axis`; float32."""
    if not isinstance(value, fx.Node):
        return value
    if value.meta["val"].dtype != torch.float32:
        value = call(node, aten._to_copy.default, value, dtype=torch.float32)
    rank = len(shape_of(cast(fx.Node, node.args[0])))
    shape = [] if axis is None else [-1 if i == axis % rank else 1 for i in range(rank)]
    return call(node, aten.reshape.default, value, shape)
