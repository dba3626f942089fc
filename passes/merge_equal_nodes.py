"""Nodes that compute the same thing from the same inputs become one (common subexpression elimination). Exact."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

from bgnn.passes.graph import PassResult, remove_dead_code, value_of


def run(gm: fx.GraphModule) -> PassResult:
    """Keeps the first of each set of equal calls and equal constants."""
    result = PassResult()
    seen: dict[Any, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if node.op == "get_attr":
            value = value_of(node)
            key: Any = ("constant", tuple(value.shape), value.dtype, value.numpy().tobytes())
        elif node.op == "call_function":
            key = (node.target, frozen(node.args), frozen(node.kwargs))
        else:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            tap, known = node.meta.get("tap"), first.meta.get("tap")
            if tap is not None:
                first.meta["tap"] = (
                    tap if known is None else dataclasses.replace(known, twins=(*known.twins, *tap.everyone()))
                )
            node.replace_all_uses_with(first)
            node.graph.erase_node(node)
            result.rewrites += 1
    remove_dead_code(gm)
    return result


def frozen(value: Any) -> Any:
    """An op's arguments as a key: equal where they are."""
    if isinstance(value, (list, tuple)):
        return ("sequence", *(frozen(v) for v in value))
    if isinstance(value, dict):
        return tuple(sorted((k, frozen(v)) for k, v in value.items()))
    if isinstance(value, torch.SymInt):  # an open size, which has no hash
        return ("size", str(value))
    return (type(value).__name__, value)
