"""What is done to codes one by one, up to the next quantiser, becomes a table: its codes are computed here.

    quantize(f(dequantize(q)))        q_table(q, table of f over all 256 codes)

`f` is a chain of operators on each element alone, with constants that differ by channel at most: a bias behind an
aggregation, a norm, an activation. The table is PyTorch's own result for every code, so nothing is rounded another
way. Where only stock operators may run (`any_table` false), tables are taken that a depthwise layer computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.passes.depthwise import LANES, depthwise
from bgnn.passes.graph import (
    PassResult,
    aten,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    only_user,
    remove_dead_code,
    replace,
    shape_of,
    value_of,
)  # fmt: skip

bgnn = torch.ops.bgnn

EACH_ELEMENT = [
    aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.neg, aten.abs, aten.exp, aten.relu, aten.leaky_relu,
    aten.elu, aten.gelu, aten.silu, aten.softplus, aten.tanh, aten.sigmoid, aten.clamp, aten.hardtanh, aten.relu6,
    bgnn.batch_norm, bgnn.prelu,
]  # fmt: skip


def run(gm: fx.GraphModule, any_table: bool = False) -> PassResult:
    """Finds the chains between codes and quantisers."""
    result = PassResult()
    for node in calls(gm.graph, bgnn.quantize):
        chain = _chain(node)
        if chain is None:
            continue
        codes, table = chain[0], _table(chain)
        if table is None:
            continue
        if not any_table and (table.shape[0] % LANES or depthwise(table.numpy()) is None):
            result.refuse(node, "what comes before it on codes is no depthwise layer: it stays float")
            continue
        replace(node, call(node, bgnn.q_table.default, codes, constant(node, table, f"{node.name}_table")))
        result.rewrites += 1
    remove_dead_code(gm)
    return result


def _chain(last: fx.Node) -> list[fx.Node] | None:
    """[codes, dequantize, ..., quantize], each read by the next alone from the dequantiser's result on."""
    chain = [last]
    while True:
        node = chain[0]
        inputs = [a for a in node.all_input_nodes if not is_constant(a)]
        if len(inputs) != 1 or len(chain) > 16:
            return None
        source = inputs[0]
        chain.insert(0, source)
        if is_call(node, bgnn.dequantize):
            return chain if len(chain) > 3 and len(shape_of(source)) > 1 and type(shape_of(source)[-1]) is int else None
        if not is_call(source, bgnn.dequantize) and not (is_call(source, *EACH_ELEMENT) and only_user(source) is node):
            return None


def _table(chain: list[fx.Node]) -> Tensor | None:
    """u8 `[C, 256]`: the chain's result for each code and channel; None where it mixes elements otherwise."""
    codes, *rest = chain
    rank, channels = len(shape_of(codes)), int(shape_of(codes)[-1])
    shape = [256, *[1] * (rank - 2), channels]
    before: fx.Node = codes
    value = torch.arange(256, dtype=torch.uint8).reshape(-1, *[1] * (rank - 1)).expand(shape).contiguous()
    with torch.no_grad():
        for node in rest:
            values = {before: value}

            def given(a: fx.Node, values: dict[fx.Node, Tensor] = values) -> Any:
                return values[a] if a in values else value_of(a)

            args, kwargs = fx.map_arg((node.args, node.kwargs), given)
            value = cast(Callable[..., Tensor], node.target)(*args, **kwargs)
            if list(value.shape) != shape:
                return None
            before = node
    return value.reshape(256, channels).t().contiguous()
