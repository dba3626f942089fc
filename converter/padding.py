"""Graphs in files of fixed sizes: the largest numbers of nodes, edges and graphs stand for the open ones.

A TFLite file takes a graph of so many nodes and edges, and a smaller one behind which there is nothing: rows of zeros,
and indices -1, which name no row. Sums over edges leave those out, and what is gathered by them is never summed. So no
bit of what real nodes, edges and graphs get depends on how many rows are behind them, as long as every operation takes
each row by itself: `check_rows` refuses a network with one that does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import sympy
import torch
from torch import Tensor, fx

from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.file_inputs import symbols_of
from bgnn.converter.sizes import host_size
from bgnn.passes import ops, user_code
from bgnn.passes.graph import arg, aten, is_call
from bgnn.runtime_bench.runtime.graph_inputs import size_of

bgnn = torch.ops.bgnn

GRAPHS = "graphs"


class Sizes:
    """What number stands for each open size of a graph network: `most`, by the words of `file_inputs.symbols_of`."""

    def __init__(self, gm: fx.GraphModule, most: Mapping[str, int]) -> None:
        self.most = dict(most)
        self._values: dict[Any, int] = {}
        names = {node: node.name for node in gm.graph.nodes if node.op == "placeholder"}
        words = symbols_of(names)
        for node in names:
            for size in node.meta["val"].shape:
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    self._values[size.node.expr] = self.most[words[str(size)]]
        self._of_graphs = _graph_sizes(gm)
        for size in self._of_graphs:
            self.bind(size, self.most[GRAPHS])

    def number(self, size: Any) -> int:
        """A size, as the file has it."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        return int(cast(Any, size.node.expr.subs(self._values)))

    def bind(self, size: Any, number: int) -> None:
        """Gives a size that depends on the data, and is not yet known, a number: the most it can be."""
        if isinstance(size, torch.SymInt):
            self._bind(size.node.expr, number)

    def counts_graphs(self, size: Any) -> bool:
        """Whether a size is the number of graphs of a batch."""
        return any(str(size) == str(one) for one in self._of_graphs)

    def _bind(self, expression: sympy.Expr, number: int) -> None:
        rest = expression.subs(self._values)
        for symbol in rest.free_symbols:  # one, with the factor 1: a count of rows and what is known
            self._values[symbol] = number - int(rest.subs({symbol: 0}))


def largest(gm: fx.GraphModule, inputs: Sequence[Tensor], told: Mapping[str, int]) -> dict[str, int]:
    """The most nodes, edges and graphs that the file takes: as told, else as many as the example has.

    `told`: by word, as `--fixed nodes=4096` says. Raises UsageError for a word that the network has no size of, and
    where the example is larger.
    """
    names = {node: node.name for node in gm.graph.nodes if node.op == "placeholder"}
    words = symbols_of(names)
    most: dict[str, int] = {}
    for node, value in zip(names, inputs, strict=True):
        for size, length in zip(node.meta["val"].shape, value.shape, strict=True):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                most[words[str(size)]] = int(length)
    arrays = {node.name: value.numpy() for node, value in zip(names, inputs, strict=True)}
    for size in _graph_sizes(gm):
        terms = host_size(size, names)
        if terms is not None:
            most[GRAPHS] = max(most.get(GRAPHS, 1), size_of(terms, arrays))
    for word, number in told.items():
        if word not in most:
            raise UsageError(f"--fixed {word}={number}: the network has no open number of {word}; it has {_list(most)}")
        if number < most[word]:
            raise UsageError(f"--fixed {word}={number}: the example has {most[word]} {word}; give a smaller example")
        most[word] = number
    return {word: max(1, number) for word, number in most.items()}


SPARE = {"nodes": 7, "edges": 23, GRAPHS: 2}


def with_room(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Sizes for a graph with some rows to spare."""
    return {word: number + SPARE.get(word, 0) for word, number in largest(gm, inputs, {}).items()}


def _list(most: Mapping[str, int]) -> str:
    return ", ".join(most) or "none"


def _graph_sizes(gm: fx.GraphModule) -> list[Any]:
    """The numbers of rows that follow from a tensor's values: how many graphs a batch vector tells apart."""
    items = {
        node.meta["val"].node.expr
        for node in gm.graph.nodes
        if is_call(node, aten.item, aten._local_scalar_dense) and isinstance(node.meta["val"], torch.SymInt)
    }
    found: dict[str, Any] = {}
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, torch.SymInt) and size.node.expr.free_symbols & items:
                found.setdefault(str(size), size)
    return list(found.values())


_ROWS_OF_THEIR_OWN = (
    *ops.having("elementwise"), *ops.having("channel"), *ops.having("filling"),
    *ops.having("codes", "-segment", "-summed"), *ops.having("fake"), *ops.having("bits", "-fused"), bgnn.drop_loops,
    aten.arange,
)  # fmt: skip
_BY_INDEX = (*ops.having("segment"), *ops.having("loops"), *ops.having("table"))


def check_rows(gm: fx.GraphModule) -> None:
    """Raises ConversionError for the first operation of a graph that does not take each row of an open axis by itself.

    `gm`: a graph at its target stage. What a size is the number of (`x / x.size(0)`) is refused likewise: only the
    file's is known.
    """
    for node in gm.graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        tensors = [one for one in node.all_input_nodes if isinstance(one.meta.get("val"), Tensor)]
        opened = [one for one in tensors if _open(one)]
        numbers = {aten.full: node.args[1:], aten.new_full: node.args[2:]}
        given = next((args for op, args in numbers.items() if is_call(node, op)), node.args)
        by_number = any(isinstance(one, fx.Node) and isinstance(one.meta["val"], torch.SymInt) for one in given)
        if by_number and is_call(node, *ops.having("elementwise"), *numbers):
            raise ConversionError(_refusal(node, "computes with a number of nodes or edges"))
        if opened and not _apart(node, opened) and not _only_a_size(node):
            raise ConversionError(_refusal(node, "takes nodes or edges together"))


def _refusal(node: fx.Node, what: str) -> str:
    return (
        f"{user_code.called(node)}{user_code.where(node)} {what}, and a file of fixed sizes has rows behind a smaller "
        "graph's: reduce by a batch vector (global_mean_pool(x, batch)), fix their number "
        "(--fixed NAME=SIZE), or use --target onnx-x86 or onnx-int8-x86"
    )


def _open(node: fx.Node) -> list[int]:
    """The axes of open size."""
    return [axis for axis, size in enumerate(node.meta["val"].shape) if isinstance(size, torch.SymInt)]


def _only_a_size(node: fx.Node) -> bool:
    """Whether a number of graphs is made of it, and nothing else."""
    return bool(node.users) and all(is_call(user, aten.item, aten._local_scalar_dense) for user in node.users)


def _apart(node: fx.Node, opened: Sequence[fx.Node]) -> bool:
    """Whether each row of the result comes of the same row of what has rows, or of the row that an index names."""
    made = _open(node)
    if is_call(node, *_BY_INDEX):
        return True
    if len(made) > 1 or any(len(_open(one)) > 1 for one in opened):
        return False  # a matrix of nodes by nodes
    if is_call(node, *_ROWS_OF_THEIR_OWN):
        return True
    x = opened[0]
    rank, axis = len(x.meta["val"].shape), _open(x)[0]
    if is_call(node, aten.matmul, aten.bmm) and len(opened) == 2:  # a product of matrices for each row
        return all(_open(one) == made and made[0] < len(one.meta["val"].shape) - 2 for one in opened)
    if is_call(node, aten.linear, aten.matmul, aten.mm, aten.bmm):
        return opened == [x] and x is node.args[0] and axis != rank - 1
    if is_call(node, *ops.having("reduction"), *ops.having("softmax"), *ops.having("running")):
        dims = arg(node, 1, "dim", None)
        dims = [dims] if isinstance(dims, int) else dims
        return bool(dims) and axis not in [dim % rank for dim in dims]
    if is_call(node, *ops.having("summed")):
        return axis != node.args[3]
    if is_call(node, aten.index_select) and is_call(node.args[2], bgnn.edge_places):
        return True
    if is_call(node, aten.index_select, aten.select, aten.slice):
        along = cast(int, node.args[1]) % rank
        if is_call(node, aten.index_select) and isinstance(node.args[2], fx.Node) and _open(node.args[2]):
            return x is not node.args[0] or (along == axis and _plain(x, axis))
        return along != axis
    if is_call(node, aten.cat):
        return True  # one part with what is behind it after the other: what reads it by an index is refused
    if is_call(node, aten.reshape, aten.expand, aten.permute):
        return is_call(node, aten.permute) or _before(x, axis) == _before(node, made[0] if made else 0)
    return False


def _before(node: fx.Node, axis: int) -> int:
    return int(np.prod([int(size) for size in node.meta["val"].shape[:axis]], dtype=np.int64))


def _plain(node: fx.Node, axis: int) -> bool:
    """Whether an axis has one kind of rows: an index names the same ones whatever is behind them."""
    return bool(node.meta["val"].shape[axis].node.expr.is_Symbol)
