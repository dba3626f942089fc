"""Finds where a model rounds values, as quantisers do, however they are written and whether or not they are understood.

A rounding is `round`, `floor`, an integer division or what else drops a fraction, a cast of real numbers to whole ones,
or an operator of a quantisation library. What is rounded counts if it goes on as real numbers, directly or by way of
whole ones; whole numbers that only serve as indices or are compared are no codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from bgnn.passes.graph import aten, is_call, is_real

ROUNDINGS = [
    aten.round, aten.floor, aten.ceil, aten.trunc, aten.fix, aten.frac, aten.floor_divide, aten.remainder, aten.fmod,
]  # fmt: skip
LIBRARIES = ("fake_quant", "quantize", "obs_fq")  # in the names of torch.ao's, torchao's and PT2E's operators
# Between whole numbers and real ones: what takes a code, and not an index.
ARITHMETIC = [
    aten.to, aten._to_copy, aten.type_as, aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.neg, aten.clamp,
    aten.clamp_min, aten.clamp_max, aten.minimum, aten.maximum, aten.where, aten.cat, aten.bitwise_and,
]  # fmt: skip


def first(gm: fx.GraphModule) -> fx.Node | None:
    """The first rounding of values in a traced graph, if there is one."""
    return next((node for node in gm.graph.nodes if _rounds(node) and _is_value(node)), None)


def _rounds(node: fx.Node) -> bool:
    if node.op != "call_function" or not any(is_real(source) for source in node.all_input_nodes):
        return False
    if any(word in str(node.target) for word in LIBRARIES):
        return True
    to_whole = _is_whole(node) and is_call(node, aten.to, aten._to_copy, aten.type_as)
    return to_whole or is_call(node, *ROUNDINGS) or node.kwargs.get("rounding_mode") is not None


def _is_value(node: fx.Node) -> bool:
    if not isinstance(node.meta.get("val"), Tensor):
        return True  # one of torch.ao's, with the mask of its gradient
    for user in node.users:
        if user.op == "output" or (is_real(user) and (is_real(node) or is_call(user, *ARITHMETIC))):
            return True
        follows = _is_whole(user) and (is_call(user, *ARITHMETIC) or user.args[0] is node)
        if follows and _is_value(user):
            return True
    return False


def _is_whole(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
