"""What is done to codes one by one, up to the next quantiser, becomes a table: its codes are computed here.

    quantize(f(dequantize(q)))        q_table(q, table of f over all 256 codes)
    requantize(q_table(q))            one q_table

`f` is a chain of operators on each element alone, with constants that differ by channel at most: a bias behind an
aggregation, a norm, an activation. The table is PyTorch's own result for every code, so nothing is rounded another
way. Where only stock operators may run (`any_table` false), tables are taken that a depthwise layer computes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes import ops
from bgnn.passes.chains import evaluate
from bgnn.passes.depthwise import depthwise
from bgnn.passes.graph import (
    PassResult,
    call,
    calls,
    constant,
    is_call,
    is_constant,
    only_user,
    remove_dead_code,
    replace,
    shape_of,
)

NEEDS = ("quantize", "dequantize", "requantize")
MAKES = ("q_table",)

bgnn = torch.ops.bgnn

EACH_ELEMENT = [*ops.having("elementwise"), bgnn.batch_norm, bgnn.prelu]


def run(gm: fx.GraphModule, any_table: bool = False) -> PassResult:
    """Finds the chains between codes and quantisers, and joins tables of tables."""
    result = PassResult()
    for node in calls(gm.graph, bgnn.quantize, bgnn.requantize):
        chain = _chain(node)
        if chain is None:
            continue
        whole = _with_tables_before(chain)
        worth = [whole] if len(whole) > len(chain) else []
        if is_call(node, bgnn.quantize):
            worth.append(chain)
        for one in worth:
            table = _table(one)
            if table is not None and (any_table or depthwise(table.numpy(), len(table)) is not None):
                operand = constant(node, table, f"{node.name}_table")
                replace(node, call(node, bgnn.q_table.default, one[0], operand))
                result.rewrites += 1
                break
        else:
            if is_call(node, bgnn.quantize):
                result.refuse(node, "what comes before it on codes is no depthwise layer: it stays float")
    remove_dead_code(gm)
    return result


def _chain(last: fx.Node) -> list[fx.Node] | None:
    """[codes, dequantize, ..., quantize], each read by the next alone after the dequantiser; or [codes, requantize]."""
    if is_call(last, bgnn.requantize):
        return [cast(fx.Node, last.args[0]), last]
    chain = [last]
    while not is_call(chain[0], bgnn.dequantize):
        inputs = [a for a in chain[0].all_input_nodes if not is_constant(a)]
        if len(inputs) != 1 or not all(_is_per_channel(a) for a in chain[0].all_input_nodes if is_constant(a)):
            return None
        source = inputs[0]
        alone = is_call(source, *EACH_ELEMENT) and only_user(source) is chain[0]
        if not alone and not is_call(source, bgnn.dequantize):
            return None
        chain.insert(0, source)
    return [cast(fx.Node, chain[0].args[0]), *chain] if len(chain) > 2 else None


def _is_per_channel(constant: fx.Node) -> bool:
    return all(size == 1 for size in shape_of(constant)[:-1])


def _with_tables_before(chain: list[fx.Node]) -> list[fx.Node]:
    """The chain from the codes that tables before it start from, if nothing else reads what lies between."""
    while is_call(chain[0], bgnn.requantize, bgnn.q_table) and only_user(chain[0]) is chain[1]:
        chain = [cast(fx.Node, chain[0].args[0]), *chain]
    return chain


def _table(chain: list[fx.Node]) -> Tensor | None:
    """u8 `[C, 256]`: the chain's result for each code and channel; None where it mixes elements otherwise."""
    codes, *rest = chain
    rank = len(shape_of(codes))
    if rank < 2 or type(shape_of(codes)[-1]) is not int:
        return None
    channels = int(shape_of(codes)[-1])
    shape = [256, *[1] * (rank - 2), channels]
    value = torch.arange(256, dtype=torch.uint8).reshape(-1, *[1] * (rank - 1)).expand(shape).contiguous()
    for node in rest:
        value = evaluate(node, value)
        if list(value.shape) != shape:
            return None
    return value.reshape(256, channels).t().contiguous()
