"""The networks on graphs that both fuzzers of files start from; random weights. Importing this imports PyTorch."""

from __future__ import annotations

import torch
from torch import nn
from torch_geometric.nn import GATConv, SAGEConv

from bgnn.models.checkpoint import build_model

FEATURES = 6


class Attention(nn.Module):
    """Float: attention, then a maximum over neighbours."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second = GATConv(FEATURES, 4, heads=2), SAGEConv(8, classes, aggr="max")

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Binary(nn.Module):
    """Binary dense layers on nodes and on what their neighbours send."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 40))
        self.second = nn.Parameter(torch.randn(40, classes))

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        x = x.sign() @ self.weight.sign()
        near = torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])
        return (x + near + 0.5).sign() @ self.second.sign()


def degree_quant(conv: str, bits: int, form: str, classes: int, graph: list[torch.Tensor]) -> nn.Module:
    """A Degree-Quant network whose ranges and BatchNorms have seen the graph."""
    settings = {"features": FEATURES, "classes": classes, "hidden": 4, "heads": 2, "signed_input": True}
    model = build_model("dq", form=form, conv=conv, bits=bits, **settings)
    model.train()(*graph)
    return model.eval()
