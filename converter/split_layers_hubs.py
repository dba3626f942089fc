"""Hubs: a stage whose sums can be taken in pieces, for nodes whose in-edges do not fit into memory at once.

Two more graphs stand beside such a stage. *Pieces* gives, for some of a node's edges, the exact totals of its sums and
means, their numbers of edges, or maxima; the host joins the pieces' totals. *Finish* is given these and computes the
rest, as the stage does from its own totals:

    q_segment_sum(m, s, z, ...)        quantize(total * (s / y_scale), 1, y_zero, low, high)
    q_segment_mean(m, s, z, ...)       the same by s / (y_scale * count)
    q_segment_sum_float(m, s, z)       total * s
    segment_mean(m)                    total / count

A piece's total is a whole number that float32 holds, as long as the piece has at most 2^16 edges. The
sum of the pieces is the sum: integers are exact. A piece has its node's self-loop too, as the file adds it; the host
takes those back that are too many. A softmax over a node's edges, or a value of edges made of sums over them, has no
such form: then the stage has no pieces.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from bgnn.converter.split_layers import Builder, EdgeSet, Given, Stage
from bgnn.passes import ops
from bgnn.passes.graph import aten, is_call
from bgnn.passes.neighbour_tables import operands

bgnn = torch.ops.bgnn

SUMS = (bgnn.segment_sum, bgnn.segment_mean)
CODE_SUMS = (bgnn.q_segment_sum, bgnn.q_segment_sum_float, bgnn.q_segment_mean)
MEANS = (bgnn.segment_mean, bgnn.q_segment_mean)
ON_CPU: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
LARGEST = (bgnn.segment_max, bgnn.q_segment_max)


@dataclasses.dataclass(frozen=True)
class Total:
    """What pieces give: its name, how the host joins it ("whole" numbers, "real" sums, "most") and of which edges."""

    name: str
    how: str
    edges: EdgeSet


@dataclasses.dataclass
class Hubs:
    """The two graphs. `totals`: the outputs of `pieces`; `finish` is given them by their names."""

    pieces: Stage
    finish: Stage
    totals: list[Total]


class _NoPieces(Exception):
    pass


def hubs_of(stage: Stage) -> Hubs | None:
    """The two graphs of a stage, None where it has none."""
    if stage.builder is None or not all(is_call(node, *SUMS, *CODE_SUMS, *LARGEST) for node in stage.reduced):
        return None
    try:
        pieces, finish = stage.builder(_Pieces), stage.builder(_Finish)
        assert isinstance(pieces, _Pieces)
        made = pieces.totals_of(stage.reduced)
        return Hubs(made, finish.build(stage.results), pieces.totals) if stage.reduced else None
    except _NoPieces:
        return None


class _Pieces(Builder):
    """Makes the totals of reductions."""

    def totals_of(self, reduced: list[fx.Node]) -> Stage:
        """The stage whose outputs are `totals`."""
        self.totals: list[Total] = []
        made: list[fx.Node] = []
        for node in reduced:
            edges = cast(EdgeSet, self.cut.set_of(node))
            values, index, size = operands(node)
            target = self.operand(index, edges)
            rows = self.operand(size, edges) if isinstance(size, fx.Node) else size
            message = self.operand(values, edges)
            if is_call(node, *CODE_SUMS):
                zero = node.args[2]
                made.append(self.call(node, bgnn.q_segment_sum_float.default, message, 1.0, zero, target, rows))
            elif is_call(node, *SUMS):
                made.append(self.call(node, bgnn.segment_sum.default, message, target, rows))
            else:
                known = {values: message, index: target, size: rows}
                args = fx.node.map_arg(node.args, known.__getitem__)
                made.append(self.call(node, node.target, *args))
            whole = "whole" if is_call(node, *CODE_SUMS) else "real"
            self.totals.append(Total(f"{node.name}_total", "most" if is_call(node, *LARGEST) else whole, edges))
            if is_call(node, *MEANS):
                length = self.call(node, aten.sym_size.int, target, 0)
                ones = self.call(node, aten.full.default, [length], 1.0, **ON_CPU)
                made.append(self.call(node, bgnn.segment_sum.default, ones, target, rows))
                self.totals.append(Total(f"{node.name}_count", "whole", edges))
        return self.finished(made, reduced)

    def copy(self, node: fx.Node, edges: EdgeSet | None, form: str) -> fx.Node:
        if is_call(node, *ops.having("segment"), bgnn.loop_rows):
            raise _NoPieces  # a total of all edges, in what a piece sums
        return super().copy(node, edges, form)


class _Finish(Builder):
    """Copies the stage, with totals that are given."""

    def copy(self, node: fx.Node, edges: EdgeSet | None, form: str) -> fx.Node:
        if form == "edges":
            raise _NoPieces
        if self.cut.set_of(node) is None:
            return super().copy(node, edges, form)
        key = (node, form)
        if key not in self.made:
            self.made[key] = self._from_total(node)
        return self.made[key]

    def _from_total(self, node: fx.Node) -> fx.Node:
        value = node.meta["val"]
        total = self._given(node, "total", value.shape, value.dtype if is_call(node, *LARGEST) else torch.float32)
        if is_call(node, *LARGEST, bgnn.segment_sum):
            return total
        count: Any = None
        if is_call(node, *MEANS):
            count = self._given(node, "count", value.shape[:1], torch.float32)
            count = self.call(node, aten.clamp.default, count, 1.0)
            if value.dim() > 1:
                count = self.call(node, aten.reshape.default, count, [-1, *[1] * (value.dim() - 1)])
        if is_call(node, bgnn.segment_mean):
            return self.call(node, aten.div.Tensor, total, count)
        scale = np.float32(cast(float, node.args[1]))
        if is_call(node, bgnn.q_segment_sum_float):
            return self.call(node, aten.mul.Tensor, total, self._number(scale, node))
        y_scale, y_zero, low, high = cast(tuple[float, int, int, int], node.args[5:9])
        if count is None:
            factor = self._number(scale / np.float32(y_scale), node)
        else:
            divisor = self.call(node, aten.mul.Tensor, count, self._number(np.float32(y_scale), node))
            factor = self.call(node, aten.div.Tensor, self._number(scale, node), divisor)
        real = self.call(node, aten.mul.Tensor, total, factor)
        return self.call(node, bgnn.quantize.default, real, 1.0, y_zero, low, high)

    def _number(self, number: np.float32, node: fx.Node) -> fx.Node:
        name = f"number_{len(self.made)}"
        self.module.register_buffer(name, torch.tensor(float(number), dtype=torch.float32))
        self.made[name] = self.graph.get_attr(name)
        self.made[name].meta["val"] = torch.empty((), device="meta")
        return self.made[name]

    def _given(self, node: fx.Node, what: str, shape: Any, dtype: torch.dtype) -> fx.Node:
        name = f"{node.name}_{what}"
        placeholder = self.placeholder(name)
        placeholder.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
        self.given[name] = Given(placeholder, None, "total", total=name)
        return placeholder
