"""Products by sparse matrices are traced as sums over their entries, on graphs of other sizes too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import Wrapped, outputs
from torch import Tensor, nn
from torch_geometric.nn import SimpleConv

from bgnn.converter.api import convert
from bgnn.converter.errors import ConversionError
from bgnn.converter.trace import trace
from bgnn.converter.untrusted import read_torch

Given = tuple[Tensor, Tensor, Tensor]


def given(nodes: int, edges: int, seed: int) -> Given:
    """x [N, 4], edge_index [2, E] with an edge that is there twice, weights [E]."""
    made = torch.Generator().manual_seed(seed)
    index = torch.randint(0, nodes, (2, edges), generator=made)
    index[:, 1] = index[:, 0]
    return torch.randn(nodes, 4, generator=made), index, torch.rand(edges, generator=made)


class EdgesOnly(torch.autograd.Function):
    """As graph attention networks multiply by their coefficients."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, values: Tensor, size: Any, dense: Tensor) -> Tensor:
        ctx.matrix = torch.sparse_coo_tensor(index, values, size)
        ctx.save_for_backward(ctx.matrix, dense)
        return torch.matmul(ctx.matrix, dense)


def square(x: Tensor, index: Tensor, w: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(index, w, (x.size(0), x.size(0)))


FORWARDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mm": lambda x, i, w: torch.sparse.mm(square(x, i, w), x),
    "operator, coalesced": lambda x, i, w: square(x, i, w).coalesce() @ x,
    "a vector": lambda x, i, w: torch.mv(square(x, i, w), x[:, 0]),
    "transposed": lambda x, i, w: torch.spmm(square(x, i, w).t(), x),
    "from the right": lambda x, i, w: x.t() @ square(x, i, w),
    "added": lambda x, i, w: torch.sparse.addmm(x, square(x, i, w), x, beta=0.5, alpha=2),
    "scaled": lambda x, i, w: (-(2 * square(x, i, w)) / 3).matmul(x),
    "degrees": lambda x, i, w: x / (torch.sparse.sum(square(x, i, w), dim=1).to_dense()[:, None] + 1),
    "degrees of columns": lambda x, i, w: torch.sparse.sum(square(x, i, w), [0]).to_dense() + x[:, 0],
    "its parts": lambda x, i, w: square(x, i, w)._values() + square(x, i, w)._indices()[0],
    "sizes of its own": lambda x, i, w: square(x, i, w).to(torch.float32) @ x.new_ones(square(x, i, w).size(1), 2),
    "by values, in a function": lambda x, i, w: EdgesOnly.apply(i, w, torch.Size([x.size(0)] * 2), x),
    "PyG": lambda x, i, w: SimpleConv()(x, square(x, i, w).t()),
}


def test_products_on_other_sizes() -> None:
    def function(m: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(forward(*inputs) for forward in FORWARDS.values())

    model = Wrapped(function, {})
    more = {0: torch.export.Dim.DYNAMIC}, {1: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC}
    gm = trace(model, given(9, 20, 0), range(len(FORWARDS)), more)
    assert not [node for node in gm.graph.nodes if "sparse" in str(node.target)]
    for inputs in (given(9, 20, 0), given(13, 31, 1)):
        for name, found, expected in zip(FORWARDS, outputs(gm, *inputs), model(*inputs), strict=True):
            torch.testing.assert_close(found, expected, msg=name)


REFUSED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    r"Tensor.values of a sparse matrix after coalesce\(\)": lambda x, i, w: square(x, i, w).coalesce().values(),
    "torch.sparse.softmax of a sparse matrix": lambda x, i, w: torch.sparse.softmax(square(x, i, w), 1) @ x,
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused(words: str) -> None:
    def forward(m: Any, *inputs: Tensor) -> Tensor:
        return REFUSED[words](*inputs)

    with pytest.raises(ConversionError, match=words) as error:
        trace(Wrapped(forward, {}), given(9, 20, 0))
    assert "test_sparse_matrices.py" in str(error.value)
    assert "sum over edges instead" in str(error.value)


class Holds(nn.Module):
    """The same adjacency as a buffer, a parameter, an attribute and in a list."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adj", adjacency)
        self.rows = adjacency.to_sparse_csr()
        self.several = [adjacency, 0.5 * adjacency]
        self.learnt = nn.Parameter(adjacency, requires_grad=False)
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.adj = self.adj.to(x.device)
        h = torch.sparse.mm(self.adj, self.lin(x)) + self.rows @ x
        for one in self.several:
            h = torch.sparse.mm(one, h)
        return h + torch.sparse.mm(self.learnt.coalesce(), x)


def test_matrices_that_the_model_holds(tmp_path: Path) -> None:
    x, index, w = given(9, 20, 0)
    model = Holds(square(x, index, w).coalesce())
    held, kind = dict(model.state_dict()), type(model)
    torch.save({"adj": model.adj}, tmp_path / "weights.pt")
    assert torch.equal(read_torch(tmp_path / "weights.pt")["adj"].to_dense(), model.adj.to_dense())
    convert(model, (x,), target="onnx-x86")
    assert model.state_dict().keys() == held.keys()
    assert type(model) is kind
    assert model.adj.layout is torch.sparse_coo
    assert "_of_forward" not in str(vars(model).keys())
