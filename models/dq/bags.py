"""Features that are bags of words, by their entries: what training computes the first layer on.

Of Cora's features 1.3 % are not zero, and GIN sends whole rows of them along its edges. Zero is a code of every
quantiser, so it stays zero through dropout, quantisation and sums; only observers have to know how many there are.
Networks take `Bags` in place of `x` in training only: a network that is evaluated or converted gets a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Bags:
    """A matrix `shape` that is zero but at `rows`, `columns` (int64 `[M]`, each place once): `values` float32 `[M]`.

    messages: how its rows are sent along the graph's edges; of features.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    shape: tuple[int, int]
    messages: Messages | None = None

    @staticmethod
    def of(x: Tensor, edge_index: Tensor) -> Bags:
        """The entries of features `x` `[N, F]` that are not zero; `edge_index` int64 `[2, E]` is the graph."""
        rows, columns = x.nonzero(as_tuple=True)
        bags = Bags(rows, columns, x[rows, columns], (x.shape[0], x.shape[1]))
        return replace(bags, messages=Messages(bags, edge_index))

    def holding(self, values: Tensor) -> Bags:
        """Other values `[M]` at the same places."""
        return replace(self, values=values)

    def dense(self) -> Tensor:
        """`[N, F]`."""
        return self.values.new_zeros(self.shape).index_put_((self.rows, self.columns), self.values)

    def __matmul__(self, weight: Tensor) -> Tensor:
        """`[N, F] @ [F, outputs]`, with a gradient of `weight`."""
        places = torch.stack((self.rows, self.columns))
        sparse = torch.sparse_coo_tensor(places, self.values, self.shape, is_coalesced=True, check_invariants=False)
        return torch.sparse.mm(sparse, weight)


class Messages:
    """Where the entries of rows go that are sent along edges, and where sums of them and of the nodes' own lie.

    bags: the nodes' features; edge_index: int64 `[2, E]`, sources and targets.
    """

    def __init__(self, bags: Bags, edge_index: Tensor) -> None:
        nodes, width = bags.shape
        source, target = edge_index
        sizes = torch.bincount(bags.rows, minlength=nodes)
        sent = sizes[source]
        #: Per entry of a message: its edge, and which of the source's entries it is.
        self.edge = torch.arange(len(source)).repeat_interleave(sent)
        within = torch.arange(len(self.edge)) - (sent.cumsum(0) - sent)[self.edge]
        self.entry = (sizes.cumsum(0) - sizes)[source][self.edge] + within  # entries of a row lie together
        self._columns = bags.columns[self.entry]
        places = torch.cat((target[self.edge] * width + self._columns, bags.rows * width + bags.columns))
        places, self._place = places.unique(return_inverse=True)
        self._sums = Bags(places // width, places % width, bags.values.new_zeros(len(places)), bags.shape)
        self._shape = len(source), width

    def of(self, x: Bags) -> Bags:
        """Row j of `x` for each edge j -> i: `[E, F]`."""
        return Bags(self.edge, self._columns, x.values[self.entry], self._shape)

    def sums(self, messages: Bags) -> Bags:
        """The messages' sums per target, `[N, F]`."""
        values = torch.zeros_like(self._sums.values)
        return self._sums.holding(values.index_add_(0, self._place[: len(self.edge)], messages.values))

    def spread(self, x: Bags) -> Bags:
        """`x` on the places of the sums."""
        values = torch.zeros_like(self._sums.values)
        return self._sums.holding(values.index_copy_(0, self._place[len(self.edge) :], x.values))
