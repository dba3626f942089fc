"""The project's own operators, as both formats' emitters write them (`--kernels bgnn`; runtime_bench/kernels/ops).

An operator has one name, one order of inputs and one set of attributes in both formats; attributes are called what the
dialect op's schema calls them. A format says how an operator is added, and what a list of edges sorted by target (CSR)
is in its files: every aggregation over the same edges shares it. A tensor of edges is made only where no fused operator
does without.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx

from bgnn.converter.code_operands import requantised
from bgnn.converter.tflite.walk import named
from bgnn.passes.graph import is_call

aten, bgnn = torch.ops.aten, torch.ops.bgnn

MOST_AXES = 4  # of what QTable and its kin take
NO_WEIGHT = {"w_scale": 1.0, "w_zero": 0}
NO_MESSAGE = {"msg_scale": 0.0, "msg_zero": 0, "msg_low": 0, "msg_high": 255}

Lowering = Callable[..., Any]


class OwnOperators(abc.ABC):
    """The lowerings that both formats share. `stock`: the format's own of the ops on codes."""

    stock: Any

    @abc.abstractmethod
    def add(
        self, walk: Any, node: fx.Node, op: str, inputs: Sequence[Any], codes: tuple[float, int] | None = None,
        **attributes: int | float | str,
    ) -> Any:  # fmt: skip
        """Adds the operator that gives `node`'s tensor; None stands for an input that is not given.

        `codes`: the scale and the zero point of a tensor of codes, where the operator knows them.
        """

    @abc.abstractmethod
    def csr(self, walk: Any, edges: fx.Node) -> tuple[Any, Any, Any]:
        """Edges sorted by target: the rows' bounds, the sources, and each entry's place in the list."""

    @abc.abstractmethod
    def grouped(self, walk: Any, index: fx.Node, size: Any) -> tuple[Any, Any]:
        """The elements sorted by segment: the segments' bounds, and each entry's place among the elements."""

    def neighbours(self, walk: Any, index: fx.Node) -> Any:
        """A neighbour table as operators take it: int32."""
        return walk.value(index)

    def plain(self, op: str) -> Lowering:
        """Of an op whose tensors and numbers are the operator's inputs and attributes."""

        def lower(walk: Any, node: fx.Node, *given: Any) -> Any:
            tensors = [
                self.neighbours(walk, one) if name == "index" else walk.value(one)
                for name, one in named(node, given).items()
                if isinstance(one, fx.Node)
            ]
            return self.add(walk, node, op, tensors, **_numbers(node, given))

        return lower

    def dense_pool(self, walk: Any, node: fx.Node, *given: Any) -> Any:
        """DensePool; with a factor for each point ScaledPool."""
        scaled = named(node, given)["scale"] is not None
        return self.plain("ScaledPool" if scaled else "DensePool")(walk, node, *given)

    def degrees(self, walk: Any, node: fx.Node, index: fx.Node, size: Any) -> Any:
        """Degree."""
        return self.add(walk, node, "Degree", self.grouped(walk, index, size)[:1])

    def segment(self, reduce: str) -> Lowering:
        """Aggregate, of rows of edges."""

        def lower(walk: Any, node: fx.Node, values: fx.Node, index: fx.Node, size: Any) -> Any:
            return self.add(walk, node, "Aggregate", self.rows_and_graph(walk, values, index, size), reduce=reduce)

        return lower

    def q_segment(self, reduce: str) -> Lowering:
        """QAggregate, of rows of edges."""

        def lower(
            walk: Any, node: fx.Node, m: fx.Node, m_scale: float, m_zero: int, index: fx.Node, size: Any,
            y_scale: float, y_zero: int, low: int, high: int,
        ) -> Any:  # fmt: skip
            return self.add(
                walk, node, "QAggregate", self.rows_and_graph(walk, m, index, size), (y_scale, y_zero), reduce=reduce,
                x_scale=float(m_scale), x_zero=m_zero, y_scale=float(y_scale), y_zero=y_zero, low=low, high=high,
                **NO_WEIGHT, **NO_MESSAGE,
            )  # fmt: skip

        return lower

    def q_segment_max(self, walk: Any, node: fx.Node, m: fx.Node, m_zero: int, index: fx.Node, size: Any) -> Any:
        """QAggregate by maximum, which leaves codes as they are."""
        return self.q_segment("max")(walk, node, m, 1.0, m_zero, index, size, 1.0, m_zero, 0, 255)

    def segment_softmax(self, walk: Any, node: fx.Node, values: fx.Node, index: fx.Node, size: Any) -> Any:
        """SegmentSoftmax, over edges in their order."""
        return self.add(walk, node, "SegmentSoftmax", [walk.value(values), *self.grouped(walk, index, size)])

    def aggregate(self, walk: Any, node: fx.Node, *given: Any) -> Any:
        """Aggregate and, on codes, QAggregate: rows of nodes, a weight for each edge, a table of the results' codes."""
        by, numbers = named(node, given), _numbers(node, given)
        bounds, sources, _ = self.csr(walk, by["edge_index"])
        inputs = [walk.value(by["x"]), bounds, sources, *self._weight(walk, by["weight"], by["edge_index"])]
        if is_call(node, bgnn.aggregate):
            return self.add(walk, node, "Aggregate", inputs, **numbers)
        table = by["table"]
        codes = (numbers["y_scale"], numbers["y_zero"]) if table is None else None
        inputs.append(None if table is None else walk.value(table))
        return self.add(walk, node, "QAggregate", inputs, codes, reduce="sum", **numbers)

    def gat_aggregate(self, walk: Any, node: fx.Node, *given: Any) -> Any:
        """GatAggregate and, on codes, QGatAggregate."""
        by, numbers = named(node, given), _numbers(node, given)
        bounds, sources, _ = self.csr(walk, by["edge_index"])
        inputs = [walk.value(by["x"]), bounds, sources, walk.value(by["source_score"]), walk.value(by["target_score"])]
        if is_call(node, bgnn.gat_aggregate):
            return self.add(walk, node, "GatAggregate", inputs, **numbers)
        return self.add(walk, node, "QGatAggregate", inputs, (numbers["y_scale"], numbers["y_zero"]), **numbers)

    def q_table(self, walk: Any, node: fx.Node, x: fx.Node, table: fx.Node) -> Any:
        """QTable; what has more axes than it takes goes by the format's own operators."""
        if not fits(node):
            return self.stock.q_table(walk, node, x, table)
        return self.add(walk, node, "QTable", [walk.value(x), walk.value(table)])

    def requantize(self, walk: Any, node: fx.Node, x: fx.Node, *quantisers: Any) -> Any:
        """QTable of one code."""
        if not fits(node):
            return self.stock.requantize(walk, node, x, *quantisers)
        by = named(node, (x, *quantisers))
        inputs = [walk.value(x), walk.constant(requantised(*quantisers))]
        return self.add(walk, node, "QTable", inputs, (by["y_scale"], by["y_zero"]))

    def rows_and_graph(self, walk: Any, values: fx.Node, index: fx.Node, size: Any) -> list[Any]:
        """What an aggregation reads: rows of nodes through the sources where edges only repeat them, else of edges."""
        if is_call(values, aten.index_select) and is_call(index, aten.select):
            ends, csr = cast(fx.Node, values.args[2]), cast(fx.Node, index.args[0])
            if is_call(csr, bgnn.edge_csr) and is_call(ends, aten.select) and ends.args[:3] == (csr, 0, 0):
                bounds, sources, _ = self.csr(walk, csr)
                return [walk.value(cast(fx.Node, values.args[0])), bounds, sources]
        return [walk.value(values), *self.grouped(walk, index, size)]

    def _weight(self, walk: Any, weight: fx.Node | None, edges: fx.Node) -> list[Any]:
        """The edges' weights as an aggregation reads them: in the order of its entries, or with their places."""
        if weight is None:
            return [None, None]
        if is_call(weight, aten.index_select) and is_call(weight.args[2], bgnn.edge_places):
            return [walk.value(cast(fx.Node, weight.args[0])), None]
        return [walk.value(weight), self.csr(walk, edges)[2]]

    def lowerings(self) -> dict[str, Lowering]:
        """By op."""
        return {
            "bgnn.hamming_knn.default": self.plain("HammingKnn"),
            "bgnn.real_knn.default": self.plain("Knn"),
            "bgnn.gather_max.default": self.plain("GatherMax"),
            "bgnn.edge_max.default": self.plain("EdgeMax"),
            "bgnn.xor_edge_conv.default": self.plain("XorEdgeConv"),
            "bgnn.bin_edge_conv.default": self.plain("BinEdgeConv"),
            "bgnn.dense_pool.default": self.dense_pool,
            "bgnn.degrees.default": self.degrees,
            "bgnn.segment_sum.default": self.segment("sum"),
            "bgnn.segment_mean.default": self.segment("mean"),
            "bgnn.segment_max.default": self.segment("max"),
            "bgnn.segment_softmax.default": self.segment_softmax,
            "bgnn.q_segment_sum.default": self.q_segment("sum"),
            "bgnn.q_segment_mean.default": self.q_segment("mean"),
            "bgnn.q_segment_max.default": self.q_segment_max,
            "bgnn.aggregate.default": self.aggregate,
            "bgnn.q_aggregate.default": self.aggregate,
            "bgnn.q_table.default": self.q_table,
            "bgnn.requantize.default": self.requantize,
            "bgnn.gat_aggregate.default": self.gat_aggregate,
            "bgnn.q_gat_aggregate.default": self.gat_aggregate,
        }


def fits(x: fx.Node) -> bool:
    """Whether a tensor has as many axes as the operators on codes take."""
    return 1 <= len(x.meta["val"].shape) <= MOST_AXES


def _numbers(node: fx.Node, given: Sequence[Any]) -> dict[str, Any]:
    """An op's arguments that are attributes: all numbers and texts, but how many segments there are."""
    return {name: one for name, one in named(node, given).items() if isinstance(one, (int, float, str)) and name != "n"}
