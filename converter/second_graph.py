"""A second graph, made from the example, on which every network with open sizes is verified as well.

An example tells little of other graphs: edges that come in pairs hide a swapped direction, no node may have a loop, or
none be without edges, and a size that was taken for a number shows only where it is another. So a small graph is made
that has all of it: directed edges, self-loops, duplicates, a hub of 300 edges, isolated nodes, other numbers
of nodes and edges. What stands at nodes and edges is drawn from the example's rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from bgnn.passes.index_limits import edge_inputs, group_inputs, numbers_of_nodes

NODES = 61
HUB = 300  # edges into one node, and a fifth as many out of it
KINDS = (
    "directed edges, self-loops, duplicates, a hub, isolated nodes",
    "directed edges, self-loops, duplicates, a hub",
)


@dataclasses.dataclass(frozen=True)
class SecondGraph:
    """Inputs of the network, and words for them."""

    inputs: tuple[Tensor, ...]
    said: str


def second_graphs(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> Iterator[SecondGraph]:
    """Such graphs, the most awkward first; none if all sizes of the traced graph's inputs are numbers.

    A network that cannot take the first, since a node without edges gives it infinities, may take the next. Where there
    are no edges, only the sizes are others.
    """
    nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
    shapes = [tuple(n.meta["val"].shape) for n in nodes]
    if all(isinstance(size, int) for shape in shapes for size in shape):
        return
    edges = [nodes.index(node) for node in edge_inputs(gm.graph)]
    counts = numbers_of_nodes(gm.graph)
    grouped = {int(inputs[nodes.index(node)].shape[0]) for node in group_inputs(gm.graph)}
    for kind in KINDS if edges else ("",):
        yield _made(shapes, inputs, edges, counts, grouped, kind)


def _made(
    shapes: list[tuple[Any, ...]], inputs: Sequence[Tensor], edges: list[int], counts: list[Any], grouped: set[int],
    kind: str,
) -> SecondGraph:  # fmt: skip
    """`edges`: which inputs hold edges. `counts`: the numbers of nodes that they tell apart. `grouped`: how long inputs
    are that tell which graph each row is of."""
    generator = torch.Generator().manual_seed(0)
    sizes = _Sizes(shapes, inputs, edges, counts, grouped, generator)
    made: list[Tensor] = []
    ends: dict[str, Tensor] = {}  # of lists [E], by their length: a graph whose two rows such lists are in turn
    for position, (shape, value) in enumerate(zip(shapes, inputs, strict=True)):
        if position in edges:
            length = str(shape[-1])
            drawn = ends.get(length) if value.dim() == 1 else None
            if drawn is None:
                count = sizes.of(shape[-1], value.shape[-1])
                drawn = ends[length] = _edges(sizes.least, count, "isolated" in kind, generator).to(value.dtype)
            made.append(drawn if value.dim() == 2 else drawn[0])
            ends[length] = drawn.flip(0)
        elif sizes.is_batch(value):
            rows, graphs = sizes.of(shape[0], value.shape[0]), int(value.max()) + 1
            made.append((torch.arange(rows) * graphs // rows).to(value.dtype))
        else:
            for axis, size in enumerate(shape):
                if not isinstance(size, int):
                    value = value.index_select(axis, sizes.rows(size, value.shape[axis]))
            if not edges and value.is_floating_point():  # points drawn twice are no equals
                value = value + 0.1 * value.std() * torch.randn(value.shape, generator=generator)
            if value.dim() == 1 and not value.is_floating_point() and bool((inputs[position].diff() >= 0).all()):
                value = value.sort()[0]  # rows in their order, as those that are kept of a batch of graphs
            made.append(value.contiguous())
    for position, value in enumerate(inputs):
        if sizes.is_pointer(value):  # where each graph of the batch begins
            batch = next((m for m, old in zip(made, inputs, strict=True) if sizes.is_batch(old)), None)
            graphs = value.shape[0] - 1
            rows = sizes.nodes if batch is None else batch.shape[0]
            owner = torch.arange(rows) * graphs // rows if batch is None else batch
            counted = torch.bincount(owner.long(), minlength=graphs)
            made[position] = torch.cat([counted.new_zeros(1), counted.cumsum(0)]).to(value.dtype)
    if not edges:
        return SecondGraph(tuple(made), "inputs of " + ", ".join(str(list(value.shape)) for value in made))
    lengths = ", ".join(str(made[i].shape[-1]) for i in edges)
    return SecondGraph(tuple(made), f"{sizes.nodes} nodes and {lengths} edges: {kind}")


class _Sizes:
    """The second graph's sizes: of every open axis, by its symbol."""

    def __init__(
        self, shapes: list[tuple[Any, ...]], inputs: Sequence[Tensor], of_edges: list[int], counts: list[Any],
        grouped: set[int], generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.generator, self.grouped = generator, grouped
        self.values: dict[Any, int] = {}  # of symbols
        self.taken: dict[Any, Tensor] = {}  # which of the example's rows, by the size's expression
        open_axes = [
            (size.node.expr, int(length), position in of_edges)
            for position, (shape, value) in enumerate(zip(shapes, inputs, strict=True))
            for size, length in zip(shape, value.shape, strict=True)
            if not isinstance(size, int)
        ]
        lengths = {str(expression): length for expression, length, _ in open_axes}
        known = [(size, lengths[str(size)]) for size in counts if str(size) in lengths]
        first = next((i for i, v in enumerate(inputs) if v.dim() and i not in of_edges), 0)
        size, self.example_nodes = known[0] if known else (shapes[first][0], int(inputs[first].shape[0]))
        graphs = max((int(v.max()) + 1 for v in inputs if self.is_batch(v)), default=0)
        edges: dict[int, int] = {}
        # In the order of their lengths: targets may be the first few sources (`x[: len(targets)]`).
        for expression, length, is_edges in sorted(open_axes, key=lambda axis: (not axis[2], axis[1])):
            if expression in self.values or not expression.is_Symbol:
                continue
            if is_edges:
                self.values[expression] = edges[length] = 3 * NODES + HUB + HUB // 5 + 97 + 5 * len(edges)
            elif length in edges and length != self.example_nodes:
                self.values[expression] = edges[length]
            elif length in (graphs, graphs + 1) and length != self.example_nodes:
                self.values[expression] = length
            elif not of_edges:
                self.values[expression] = length + max(1, length // 3)
            else:
                nodes = max(NODES, 2 * graphs + 7) + 6 * len(self.values)
                self.values[expression] = nodes + (nodes == length)
        self.nodes = self.of(size, self.example_nodes)
        self.least = min([self.of(*one) for one in known], default=self.nodes)

    def of(self, size: Any, example: int) -> int:
        """The new size of an axis; a fixed one stays."""
        return example if isinstance(size, int) else int(size.node.expr.subs(self.values))

    def rows(self, size: Any, example: int) -> Tensor:
        """Which of the example's rows stand along an axis: the same for all axes of one size."""
        if size.node.expr not in self.taken:
            self.taken[size.node.expr] = torch.randint(example, (self.of(size, example),), generator=self.generator)
        return self.taken[size.node.expr]

    def is_batch(self, value: Tensor) -> bool:
        """Whether an input says which graph of a batch each node belongs to."""
        return (
            value.dim() == 1
            and not value.is_floating_point()
            and value.shape[0] in (self.example_nodes, *self.grouped)
            and int(value[0]) == 0
            and bool(((value.diff() == 0) | (value.diff() == 1)).all())
        )

    def is_pointer(self, value: Tensor) -> bool:
        """Whether an input says where each graph of a batch begins, and the last ends."""
        return (
            value.dim() == 1
            and not value.is_floating_point()
            and value.shape[0] > 1
            and int(value[0]) == 0
            and int(value[-1]) == self.example_nodes
            and bool((value.diff() >= 0).all())
        )


def _edges(nodes: int, count: int, isolated: bool, generator: torch.Generator) -> Tensor:
    """int64 `[2, count]`: `HUB` into one node (fewer if there is no room), the rest as the kinds say."""

    def draw(number: int) -> Tensor:
        return live[torch.randint(len(live), (number,), generator=generator)]

    live = torch.arange(nodes)
    if isolated and nodes > 8:
        live = live[(live != 1) & (live < nodes - 2)]
    hub = live[len(live) // 3].expand(HUB)
    some = draw(nodes // 4)
    parts = [torch.stack([draw(HUB), hub]), torch.stack([hub[: HUB // 5], draw(HUB // 5)]), some.expand(2, -1)]
    rest = max(0, count - sum(part.shape[1] for part in parts))
    once = torch.stack([draw(rest - rest // 4), draw(rest - rest // 4)])
    parts += [once, once[:, : rest // 4]]
    if not isolated:
        parts.insert(0, torch.stack([torch.arange(nodes), torch.arange(nodes).roll(1)]))  # each has one in and one out
    return torch.cat(parts, 1)[:, :count].contiguous()
