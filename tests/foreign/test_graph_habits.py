"""What people write by hand around graphs, in one network each: it converts, and agrees on graphs of other sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import FastRGCNConv, GPSConv, RGCNConv, TAGConv, aggr
from torch_geometric.utils import dense_to_sparse, to_dense_adj, to_dense_batch, to_undirected

from bgnn import convert
from bgnn.converter import stages
from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.sizes import graph_axes
from bgnn.converter.trace import trace
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel


class ByHand(nn.Module):
    """Degrees counted, rows gathered by repeated indices, a dense adjacency, odd names of common operations."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        n = x.size(0)
        h = F.selu(self.lin(x))
        source = edge_index[0].view(-1, 1).repeat(1, h.shape[1])
        target = edge_index[1].unsqueeze(-1).expand(-1, 8)
        no_loop = ~(edge_index[0] == edge_index[1]) & torch.logical_or(edge_index[0] > 2, edge_index[1] != 1)
        messages = torch.gather(h, 0, source) * no_loop.float()[:, None]
        summed = torch.zeros_like(h).scatter_add_(0, target, messages)
        degree = torch.bincount(edge_index[1], minlength=n)
        mean = torch.true_divide(summed, degree.clamp(min=1).unsqueeze(1))
        adjacency = torch.zeros(n, n)
        adjacency[edge_index[0], edge_index[1]] = 1
        adjacency = adjacency + torch.eye(n)
        scale = adjacency.sum(1).pow(-0.5)
        dense = torch.multiply(scale[:, None], adjacency) * scale @ h
        return F.logsigmoid(self.out(torch.subtract(mean, dense)))


class ByPointer(nn.Module):
    """Graphs of a batch told by where each begins, read out by attention; a node's largest features beside."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.read = aggr.AttentionalAggregation(gate_nn=nn.Linear(6, 1))

    def forward(self, x: Tensor, edge_index: Tensor, ptr: Tensor) -> Tensor:
        h = F.group_norm(self.lin(x).index_add(0, edge_index[1], x[edge_index[0]]), 2)
        largest = torch.segment_reduce(h, "max", offsets=ptr)
        return self.read(h, ptr=ptr) + largest.nan_to_num(neginf=0.0)


class LastGraph(nn.Module):
    """The number of graphs is one more than the last node's."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h = self.lin(x).index_add(0, edge_index[1], self.lin(x[edge_index[0]]))
        return torch.zeros(int(batch[-1]) + 1, 3).index_add(0, batch, h)


def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(nodes)
    return torch.randn(nodes, 6, generator=generator), torch.randint(nodes, (2, edges), generator=generator)


def agrees(model: nn.Module, *others: tuple[Tensor, ...]) -> OnnxModel:
    torch.manual_seed(0)
    done = convert(model.eval(), others[0], target="onnx-x86")
    file = OnnxModel(done.model_bytes or b"")
    for given in others:
        (found,) = file.run(**dict(zip(file.input_names, (t.numpy() for t in given), strict=True))).values()
        assert torch.allclose(torch.from_numpy(found), model(*given), atol=2e-6)
    return file


def test_written_by_hand() -> None:
    file = agrees(ByHand(), graph(20, 70), graph(33, 91), graph(5, 4))
    x, edge_index = graph(9, 20)
    edge_index[1, 3] = 9  # no node of that number: adjacency[i, 9] would be another node's row
    with pytest.raises(UsageError, match="edge_index"):
        file.run(x=x.numpy(), edge_index=edge_index.numpy())


def test_graphs_by_pointer() -> None:
    pointers = (torch.tensor([0, 7, 12, 20]), torch.tensor([0, 5, 10, 11, 33]))
    agrees(ByPointer(), (*graph(20, 70), pointers[0]), (*graph(33, 91), pointers[1]))


def test_as_many_graphs_as_the_last_node_says() -> None:
    agrees(LastGraph(), (*graph(20, 70), torch.arange(20) // 7), (*graph(33, 91), torch.arange(33) // 10))


class Padded(nn.Module):
    """Each graph's nodes as rows of one tensor, as many as the largest graph may have."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.last = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h = self.lin(x).index_add(0, edge_index[1], self.lin(x[edge_index[0]]))
        rows, mask = to_dense_batch(h, batch, max_num_nodes=15, batch_size=4)
        scores = (rows @ rows.transpose(1, 2)).masked_fill(~mask[:, None], -torch.inf)
        return (scores.softmax(-1) @ rows * mask[..., None]).amax(1)


def test_graphs_as_rows_of_a_stated_number() -> None:
    agrees(Padded(), (*graph(20, 70), torch.arange(20) // 5), (*graph(33, 91), torch.arange(33) // 10))


class Transformer(nn.Module):
    """Attention among each graph's nodes, as many as the largest graph has; a norm that counts the graphs first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([GPSConv(6, None, heads=2, norm="layer_norm")])

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        for layer in self.layers: x = layer(x + layer.norm1(x, batch), edge_index, batch)  # fmt: skip  # noqa: E701
        return x


class Rows(Padded):
    """The same rows, of as many columns as they come to."""

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h, mask = to_dense_batch(self.lin(x), batch)
        shares = (h @ h.transpose(1, 2)).masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        return self.last((shares @ h).flatten(0, 1).view_as(h) * 2 + h).sum(1)


@pytest.mark.parametrize("model", [Transformer, Rows])
def test_rows_of_an_unknown_number_are_told_the_way_out(model: type[nn.Module]) -> None:
    """The loop in the user's line is over layers, and not the reason."""
    with pytest.raises(ConversionError, match="as many columns as the largest graph of a batch has nodes") as error:
        convert(model().eval(), (*graph(20, 70), torch.arange(20) // 7), target="onnx-x86")
    assert "the loop at" not in str(error.value)


class Relations(nn.Module):
    """Edges of several kinds, each with weights of its own; one-hot by hand, and the number that stands there."""

    def __init__(self, layer: type[RGCNConv]) -> None:
        super().__init__()
        self.layer, self.lin = layer(6, 4, 3), nn.Linear(7, 2)

    def forward(self, x: Tensor, edge_index: Tensor, kind: Tensor) -> Tensor:
        h = self.layer(x, edge_index, kind)
        which = torch.zeros(kind.size(0), 3).scatter_(1, kind.unsqueeze(1), 1)
        return self.lin(h.new_zeros(x.size(0), 7).index_add(0, edge_index[1], torch.cat([h[edge_index[0]], which], 1)))


def test_edges_of_several_kinds() -> None:
    """PyG's layer that picks each kind's edges is told of the one that does not, which converts."""
    kinds = [torch.arange(count) % 3 for count in (70, 91)]
    agrees(Relations(FastRGCNConv), (*graph(20, 70), kinds[0]), (*graph(33, 91), kinds[1]))
    with pytest.raises(ConversionError, match="FastRGCNConv in place of RGCNConv"):
        convert(Relations(RGCNConv).eval(), (*graph(20, 70), kinds[0]), target="onnx-x86")


class Loop(ByHand):
    """A loop over the nodes."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 8).index_add(0, edge_index[1], self.lin(x)[edge_index[0]])
        return torch.stack([h[i].relu() for i in range(x.size(0))])


class Sorted(ByHand):
    """All nodes in order."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 8).index_add(0, edge_index[1], self.lin(x)[edge_index[0]])
        return torch.sort(h, 0)[0]


class Picked(ByHand):
    """Some of the nodes."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 8).index_add(0, edge_index[1], self.lin(x)[edge_index[0]])
        return h[h[:, 0] > 0]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            Picked,
            r"indexing x\[\.\.\.\] is not .*: how many rows it gives depends on the values: keep all rows and mask",
        ),
        (Loop, r"test_graph_habits\.py:\d+: return torch\.stack\(\[h\[i\].*makes a number of axis 0 of x"),
        (
            Sorted,
            r"torch\.sort is not .* onnx-x86 \(at .*habits\.py:\d+: return torch\.sort.*: it puts any number of rows",
        ),
    ],
)
def test_what_needs_the_number_of_nodes_is_refused_at_its_line(model: type[nn.Module], words: str) -> None:
    example = graph(20, 70)

    def walked() -> None:
        gm = trace(model(), example, open_axes=graph_axes(example))
        for _ in stages.walk(gm, stages.Plan("onnx-x86")):
            pass

    with pytest.raises(ConversionError, match=words):
        walked()


class Skeleton(nn.Module):
    """A graph that the model holds: forward itself makes of it what its layer takes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = TAGConv(4, 5), how
        self.register_buffer("bones", torch.randint(0, 9, (2, 20), generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        edges, weights = self.bones, None
        if self.how == "undirected":
            edges = to_undirected(edges)
        elif self.how == "matrix":
            adjacency = torch.zeros(9, 9)
            adjacency[edges[0], edges[1]] = 1
            edges = (adjacency + torch.eye(9)).nonzero().t()
        elif self.how == "weights":
            edges, weights = dense_to_sparse(to_dense_adj(edges, max_num_nodes=9)[0])
        elif self.how == "chain":
            edges = torch.stack(torch.where((torch.arange(9)[:, None] - torch.arange(9)).abs() == 1))
        return self.layer(x, edges, weights)


@pytest.mark.parametrize("how", ["undirected", "matrix", "weights", "chain"])
def test_what_forward_makes_of_a_graph_in_a_buffer_is_constant(how: str) -> None:
    torch.manual_seed(0)
    model, x = Skeleton(how).eval(), torch.randn(9, 4)
    done = convert(model, (x,), target="onnx-x86")
    (found,) = OnnxModel(done.model_bytes).run(x=x.numpy()).values()
    assert abs(found - model(x).detach().numpy()).max() < 1e-5


def test_a_graph_that_the_inputs_make_is_none_of_constants() -> None:
    """Zeros that forward fills from its inputs keep no value."""

    class Near(Skeleton):
        def forward(self, x: Tensor) -> Tensor:
            adjacency = torch.zeros(9, 9)
            adjacency[self.bones[0], self.bones[1]] = x[self.bones[0], 0]
            return self.layer(x, adjacency.nonzero().t())

    with pytest.raises(ConversionError, match=r"nonzero \(at .*test_graph_habits.py"):
        convert(Near("").eval(), (torch.randn(9, 4),), target="onnx-x86")
