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
takes those back that are too many. A value of edges made of sums over them has no such form: then the stage has no
pieces.

A softmax over a node's edges takes three rounds over the pieces: the largest score, which is exact; the sum of
exp(score - largest); the totals above, whose messages read both. The second is a sum of floats in another order, so a
code of a result may differ by one from the stage's own. Packed signs of such a sum have no pieces.
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
class Round:
    """A graph that computes `totals` of some of a node's edges, from those of earlier rounds by their names."""

    pieces: Stage
    totals: list[Total]


@dataclasses.dataclass
class Hubs:
    """`finish` is given the totals of the last round by their names."""

    rounds: list[Round]
    finish: Stage


class _NoPieces(Exception):
    pass


def hubs_of(stage: Stage) -> Hubs | None:
    """The graphs of a stage, None where it has none."""
    known = all(is_call(node, *SUMS, *CODE_SUMS, *LARGEST) for node in stage.reduced)
    if stage.builder is None or not stage.reduced or not known:
        return None
    try:
        last, finish = stage.builder(_Pieces), stage.builder(_Finish)
        assert isinstance(last, _Pieces)
        rounds = [Round(last.totals_of(stage.reduced), last.totals)]
        if last.softmaxes and any(node.meta["val"].dtype == torch.int32 for node in stage.results):
            return None
        for what in ("sum", "most") if last.softmaxes else ():
            one = stage.builder(_Pieces)
            assert isinstance(one, _Pieces)
            rounds.insert(0, Round(one.totals_of_softmaxes(last.softmaxes, what), one.totals))
        return Hubs(rounds, finish.build(stage.results))
    except _NoPieces:
        return None


class _GivenTotals(Builder):
    """A builder whose graph may be given totals."""

    def total(self, node: fx.Node, what: str, dtype: torch.dtype, one: bool = False) -> fx.Node:
        """Such an input, of a row for each destination (`one`: a number)."""
        name = f"{node.name}_{what}"
        if name not in self.given:
            shape = [self.cut.node_inputs[0].meta["val"].shape[0], *([] if one else node.meta["val"].shape[1:])]
            placeholder = self.placeholder(name)
            placeholder.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
            self.given[name] = Given(placeholder, None, "total", total=name)
        return self.given[name].node


class _Pieces(_GivenTotals):
    """Makes the totals of reductions."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.totals: list[Total] = []
        self.softmaxes: dict[fx.Node, EdgeSet] = {}

    def totals_of(self, reduced: list[fx.Node]) -> Stage:
        """The stage whose outputs are `totals`."""
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

    def totals_of_softmaxes(self, softmaxes: dict[fx.Node, EdgeSet], what: str) -> Stage:
        """The stage whose outputs are the largest scores of softmaxes ("most"), or their sums of powers ("sum")."""
        made: list[fx.Node] = []
        for node, edges in softmaxes.items():
            values, index, size = operands(node)
            target = self.operand(index, edges)
            rows = self.operand(size, edges) if isinstance(size, fx.Node) else size
            if what == "most":
                made.append(self.call(node, bgnn.segment_max.default, self.operand(values, edges), target, rows))
            else:
                made.append(self.call(node, bgnn.segment_sum.default, self._powers(node, edges), target, rows))
            self.totals.append(Total(f"{node.name}_{what}", "most" if what == "most" else "real", edges))
        if self.softmaxes:
            raise _NoPieces  # softmaxes of softmaxes
        return self.finished(made, list(softmaxes))

    def copy(self, node: fx.Node, edges: EdgeSet | None, form: str) -> fx.Node:
        if is_call(node, bgnn.segment_softmax) and edges is not None:
            if (node, edges) not in self.made:
                self.softmaxes[node] = edges
                total = self.call(node, aten.add.Tensor, self.total(node, "sum", torch.float32), 1e-16)
                self.made[node, edges] = self.call(
                    node, aten.div.Tensor, self._powers(node, edges), self._by_edge(node, total, edges)
                )
            return self.made[node, edges]
        if is_call(node, *ops.having("segment"), bgnn.loop_rows):
            raise _NoPieces  # a total of all edges, in what a piece sums
        return super().copy(node, edges, form)

    def _powers(self, node: fx.Node, edges: EdgeSet) -> fx.Node:
        largest = self._by_edge(node, self.total(node, "most", torch.float32), edges)
        scores = self.operand(operands(node)[0], edges)
        return self.call(node, aten.exp.default, self.call(node, aten.sub.Tensor, scores, largest))

    def _by_edge(self, node: fx.Node, total: fx.Node, edges: EdgeSet) -> fx.Node:
        return self.call(node, aten.index_select.default, total, 0, self.operand(operands(node)[1], edges))


class _Finish(_GivenTotals):
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
        total = self.total(node, "total", value.dtype if is_call(node, *LARGEST) else torch.float32)
        total.meta["of_sum"] = not is_call(node, *LARGEST)
        if is_call(node, *LARGEST, bgnn.segment_sum):
            return total
        count: Any = None
        if is_call(node, *MEANS):
            count = self.total(node, "count", torch.float32, one=True)
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
        codes = self.call(node, bgnn.quantize.default, real, 1.0, y_zero, low, high)
        codes.meta["layer"] = node.meta.get("layer") or node.name  # they are counted with those of the other nodes
        return codes

    def _number(self, number: np.float32, node: fx.Node) -> fx.Node:
        name = f"number_{len(self.made)}"
        self.module.register_buffer(name, torch.tensor(float(number), dtype=torch.float32))
        self.made[name] = self.graph.get_attr(name)
        self.made[name].meta["val"] = torch.empty((), device="meta")
        return self.made[name]
