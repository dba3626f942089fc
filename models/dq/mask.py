"""The protective mask of Degree-Quant (section 3.2, listing B.1): nodes of high in-degree stay at full precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform


def protection(edge_index: Tensor, num_nodes: int, p_min: float, p_max: float) -> Tensor:
    """The probability, float32 `[num_nodes]`, that each node is protected in a training step.

    Interpolated between `p_min` and `p_max` by the rank of the in-degree: nodes of equal degree have equal
    probability, and the highest degree has p_max. `edge_index`: int64 `[2, E]`, row 1 the targets.
    """
    if not 0 <= p_min <= p_max <= 1:
        raise ValueError(f"p_min = {p_min} and p_max = {p_max}; they must be 0 <= p_min <= p_max <= 1")
    degree = torch.bincount(edge_index[1], minlength=num_nodes)
    rank = torch.bincount(degree).cumsum(0)[degree]  # how many nodes have this degree or a lower one
    return p_min + (p_max - p_min) * rank / max(1, num_nodes)


class Protect(BaseTransform):
    """Gives a graph its `protect` `[N]`: apply it to single graphs, so that ranks count within a graph."""

    def __init__(self, p_min: float, p_max: float) -> None:
        self.p_min, self.p_max = p_min, p_max

    def forward(self, data: Data) -> Data:
        data.protect = protection(data.edge_index, int(data.num_nodes or 0), self.p_min, self.p_max)
        return data


def sample(protect: Tensor | None) -> Tensor | None:
    """A mask, bool `[N]`, drawn from the probabilities `[N]`; None (nobody is protected) from None."""
    return None if protect is None else torch.bernoulli(protect).bool()
