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

from bgnn.converter.sizes import features_of, is_edges

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

    A network that cannot take the first, since a node without edges gives it infinities, may take the next.
    """
    shapes = [tuple(n.meta["val"].shape) for n in gm.graph.nodes if n.op == "placeholder"]
    if any(not isinstance(size, int) for shape in shapes for size in shape):
        for kind in KINDS:
            yield _made(shapes, inputs, kind)


def _made(shapes: list[tuple[Any, ...]], inputs: Sequence[Tensor], kind: str) -> SecondGraph:
    generator = torch.Generator().manual_seed(0)
    sizes = _Sizes(shapes, inputs, generator)
    made = []
    for shape, value in zip(shapes, inputs, strict=True):
        if is_edges(value):
            count = sizes.of(shape[1], value.shape[1])
            made.append(_edges(sizes.least, count, "isolated" in kind, generator).to(value.dtype))
        elif sizes.is_batch(value):
            rows, graphs = sizes.of(shape[0], value.shape[0]), int(value.max()) + 1
            made.append((torch.arange(rows) * graphs // rows).to(value.dtype))
        else:
            for axis, size in enumerate(shape):
                if not isinstance(size, int):
                    value = value.index_select(axis, sizes.rows(size, value.shape[axis]))
            made.append(value.contiguous())
    for position, value in enumerate(inputs):
        if sizes.is_pointer(value):  # where each graph of the batch begins
            batch = next((m for m, old in zip(made, inputs, strict=True) if sizes.is_batch(old)), None)
            graphs = value.shape[0] - 1
            rows = sizes.nodes if batch is None else batch.shape[0]
            owner = torch.arange(rows) * graphs // rows if batch is None else batch
            counts = torch.bincount(owner.long(), minlength=graphs)
            made[position] = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(value.dtype)
    edges = ", ".join(str(value.shape[1]) for value in made if is_edges(value))
    return SecondGraph(tuple(made), f"{sizes.nodes} nodes and {edges} edges: {kind}")


class _Sizes:
    """The second graph's sizes: of every open axis, by its symbol."""

    def __init__(self, shapes: list[tuple[Any, ...]], inputs: Sequence[Tensor], generator: torch.Generator) -> None:
        self.generator = generator
        self.values: dict[Any, int] = {}  # of symbols
        self.taken: dict[Any, Tensor] = {}  # which of the example's rows, by the size's expression
        open_axes = [
            (size.node.expr, int(length), is_edges(value) and axis == 1)
            for shape, value in zip(shapes, inputs, strict=True)
            for axis, (size, length) in enumerate(zip(shape, value.shape, strict=True))
            if not isinstance(size, int)
        ]
        features = features_of(inputs)
        assert features is not None, "a graph network's inputs"
        self.example_nodes = features.shape[0]
        graphs = max((int(v.max()) + 1 for v in inputs if self.is_batch(v)), default=0)
        edges: dict[int, int] = {}
        for expression, length, of_edges in sorted(open_axes, key=lambda axis: not axis[2]):
            if expression in self.values or not expression.is_Symbol:
                continue
            if of_edges:
                self.values[expression] = edges[length] = 3 * NODES + HUB + HUB // 5 + 97 + 5 * len(edges)
            elif length in edges and length != self.example_nodes:
                self.values[expression] = edges[length]
            elif length in (graphs, graphs + 1) and length != self.example_nodes:
                self.values[expression] = length
            else:
                nodes = max(NODES, 2 * graphs + 7) + 6 * len(self.values)
                self.values[expression] = nodes + (nodes == length)
        lengths = [
            self.of(shape[0], value.shape[0])
            for shape, value in zip(shapes, inputs, strict=True)
            if not is_edges(value) and value.dim() and value.is_floating_point()
            and value.shape[0] not in edges and value.shape[0] not in (graphs, graphs + 1)
        ]  # fmt: skip
        first = next(shape for shape, v in zip(shapes, inputs, strict=True) if v is features)
        self.nodes = self.of(first[0], self.example_nodes)
        self.least = min([self.nodes, *lengths])

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
            and value.shape[0] == self.example_nodes
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
