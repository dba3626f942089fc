"""Which axes stay open: by use, by symbols and by what the user says, never by a shape or a name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from graph_models import random_graph
from torch import Tensor, nn
from torch.export import Dim, export
from torch_geometric.nn import GCNConv, HeteroConv, SAGEConv, global_mean_pool, knn_interpolate

from bgnn.converter.api import Conversion, convert
from bgnn.converter.axes import trace_sized
from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.pyg_knn import provide
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_runner import run_file

Inputs = tuple[Tensor, ...]


class Plain(nn.Module):
    """`forward` of the tests' own, over layers that are given."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


class Labelled(Plain):
    """A cloud network with a whole number for every point."""

    def forward(self, points: Tensor, label: Tensor) -> Tensor:
        return (self.dense(points) + self.table(label)).relu().amax(1)


class LabelledNodes(Labelled):
    def forward(self, points: Tensor, label: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(super().forward(points, label), edge_index)


class Conv(Plain):
    def forward(self, feat: Tensor, adj: Tensor) -> Tensor:
        return self.conv(feat, adj)


class ChannelsFirst(Plain):
    """Rows of the edges one by one, and the nodes' axis the last."""

    def forward(self, feat: Tensor, adj: Tensor) -> Tensor:
        h = self.dense(feat.transpose(1, 2))
        targets = adj[1].expand(h.size(0), h.size(1), -1)
        return h.new_zeros(h.shape).scatter_add(2, targets, h.index_select(2, adj[0]))


class EdgesFirst(Plain):
    def forward(self, adj: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        return self.conv(x, adj, weight)


class Ids(Plain):
    def forward(self, node_ids: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(self.table(node_ids), edge_index)


class OwnNodes(Plain):
    """The nodes are a table of the model: only the number of edges is open."""

    def forward(self, edge_index: Tensor) -> Tensor:
        return self.conv(self.table.weight, edge_index)


class TwoLists(Plain):
    """A graph network in the words of DeepMind's: senders, receivers, globals."""

    def forward(
        self, nodes: Tensor, edges: Tensor, globals_: Tensor, senders: Tensor, receivers: Tensor, of: Tensor
    ) -> Tensor:
        messages = self.dense(torch.cat([nodes[senders], edges, globals_[of[senders]]], 1)).relu()
        return torch.zeros(nodes.shape[0], messages.shape[1]).index_add(0, receivers, messages)


class Hetero(Plain):
    def __init__(self) -> None:
        super().__init__(
            conv=HeteroConv({("a", "to", "b"): SAGEConv((6, 5), 4), ("b", "to", "a"): SAGEConv((5, 6), 4)})
        )

    def forward(self, x_a: Tensor, x_b: Tensor, ab: Tensor, ba: Tensor) -> Tensor:
        return self.conv({"a": x_a, "b": x_b}, {("a", "to", "b"): ab, ("b", "to", "a"): ba})["a"]


def floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(below: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def two_lists(n: int, e: int) -> Inputs:
    return floats(n, 6), floats(e, 3), floats(2, 2), whole(n, e), whole(n, e, seed=1), torch.arange(n) * 2 // n


def hetero(n: int, e: int) -> Inputs:
    a, b = n, n // 2 + 3
    return floats(a, 6), floats(b, 5), torch.stack([whole(a, e), whole(b, e)]), torch.stack([whole(b, e), whole(a, e)])


def ran(done: Conversion, *inputs: Tensor) -> np.ndarray:
    assert done.model_bytes is not None
    file = OnnxModel(done.model_bytes)
    (found,) = file.run(**dict(zip(file.input_names, (t.numpy() for t in inputs), strict=True))).values()
    return found


def shapes(done: Conversion) -> list[list[int | str]]:
    assert done.model_bytes is not None
    return [one["shape"] for one in OnnxModel(done.model_bytes).inputs]


N, E = "nodes", "edges"
GRAPHS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Inputs], list[list[int | str]]]] = {
    "two features a node": (
        lambda: Conv(conv=GCNConv(2, 3)), lambda n, e: (floats(n, 2), whole(n, 2, e)), [[N, 2], [2, E]],
    ),
    "edges first": (
        lambda: EdgesFirst(conv=GCNConv(6, 3)),
        lambda n, e: (whole(n, 2, e), torch.rand(e), floats(n, 6)), [[2, E], [E], [N, 6]],
    ),
    "an embedding of ids": (
        lambda: Ids(table=nn.Embedding(50, 6), conv=GCNConv(6, 3)),
        lambda n, e: (whole(50, n), whole(n, 2, e)), [[N], [2, E]],
    ),
    "the model's own nodes": (
        lambda: OwnNodes(table=nn.Embedding(20, 6), conv=GCNConv(6, 3)), lambda n, e: (whole(20, 2, e),), [[2, E]],
    ),
    "senders and receivers": (
        lambda: TwoLists(dense=nn.Linear(11, 4)), two_lists, [[N, 6], [E, 3], ["globals__0", 2], [E], [E], ["of_0"]],
    ),
    "frames of one graph": (
        lambda: Conv(conv=SAGEConv(4, 3)), lambda n, e: (floats(n // 5, n, 4), whole(n, 2, e)),
        [["feat_0", N, 4], [2, E]],
    ),
    "frames, channels first": (
        lambda: ChannelsFirst(dense=nn.Conv1d(4, 3, 1)), lambda n, e: (floats(n // 5, n, 4), whole(n, 2, e)),
        [["feat_0", N, 4], [2, E]],
    ),
    "frames, a maximum": (
        lambda: Conv(conv=SAGEConv(4, 3, aggr="max")), lambda n, e: (floats(n // 5, n, 4), whole(n, 2, e)),
        [["feat_0", N, 4], [2, E]],
    ),
    "points of nodes": (
        lambda: LabelledNodes(dense=nn.Linear(3, 5), table=nn.Embedding(9, 5), conv=GCNConv(5, 2)),
        lambda n, e: (floats(n, 24, 3), whole(9, n, 24), whole(n, 2, e)), [[N, 24, 3], [N, 24], [2, E]],
    ),
    "two types": (Hetero, hetero, [[N, 6], ["x_b_0", 5], [2, "ab_1"], [2, E]]),
}  # fmt: skip


@pytest.mark.parametrize("form", GRAPHS)
def test_graph_networks_are_open_and_agree_at_other_sizes(form: str) -> None:
    make, inputs, expected = GRAPHS[form]
    torch.manual_seed(0)
    model = make().eval()
    done = convert(model, inputs(20, 70), target="onnx-x86")
    assert shapes(done) == expected
    assert [c.what for c in done.report.checks][-2:] == ["emitted file, second graph", "emitted file"]
    for sizes in ((20, 70), (33, 41)):
        given = inputs(*sizes)
        np.testing.assert_allclose(ran(done, *given), model(*given).detach().numpy(), atol=1e-5)


def test_frames_of_a_largest_graph_are_as_many_as_the_examples() -> None:
    make, inputs, _ = GRAPHS["frames, channels first"]
    model = make().eval()
    done = convert(model, inputs(20, 70), target="tflite-arm64")
    assert done.report.inputs.startswith("feat float32 [4, nodes, 4], adj int64 [2, edges]; at most 20 nodes, 70 edges")
    assert done.model_bytes is not None
    given = floats(4, 13, 4), whole(13, 2, 51)
    (found,) = run_file(done.model_bytes, [given[0].numpy(), given[1].numpy().astype(np.int32)])
    np.testing.assert_allclose(found, model(*given).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("clouds", [1, 2, 3])
def test_whole_numbers_of_points_are_no_edges(clouds: int) -> None:
    model = Labelled(dense=nn.Linear(3, 5), table=nn.Embedding(9, 5)).eval()
    inputs = floats(clouds, 24, 3), whole(9, clouds, 24)
    done = convert(model, inputs, target="onnx-x86")
    assert shapes(done) == [[clouds, 24, 3], [clouds, 24]]
    np.testing.assert_allclose(ran(done, *inputs), model(*inputs).detach().numpy(), atol=1e-5)


class Masked(Plain):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.dense(x) * edge_index


@pytest.mark.parametrize("other", [torch.rand(20, 3), torch.rand(20, 1) > 0.5])
def test_a_name_decides_nothing(other: Tensor) -> None:
    done = convert(Masked(dense=nn.Linear(6, 3)), (floats(20, 6), other), target="onnx-x86")
    assert shapes(done) == [[20, 6], list(other.shape)]


class Shifted(Plain):
    def forward(self, points: Tensor, weight: Tensor) -> Tensor:
        return self.dense(points).relu() * weight.unsqueeze(-1)


CLOUD = (floats(2, 24, 3), torch.rand(2, 24))


def traced(
    model: nn.Module, inputs: Inputs, opened: tuple[str, ...] = (), fixed: tuple[str, ...] = ()
) -> list[list[str]]:
    gm = trace_sized(model.eval(), inputs, (0,), opened=opened, fixed=fixed, may_be_open=True)
    return [
        ["open" if type(size) is not int else str(size) for size in node.meta["val"].shape]
        for node in gm.graph.nodes
        if node.op == "placeholder"
    ]


@pytest.mark.parametrize(
    ("opened", "expected"),
    [
        ((), [["2", "24", "3"], ["2", "24"]]),
        (("points",), [["open", "24", "3"], ["open", "24"]]),
        (("points=-2",), [["2", "open", "3"], ["2", "open"]]),
        (("weight=1",), [["2", "open", "3"], ["2", "open"]]),
        (("points=points", "points=batch"), [["open", "open", "3"], ["open", "open"]]),
    ],
)
def test_an_opened_axis_takes_along_what_the_model_ties_to_it(opened: tuple[str, ...], expected: object) -> None:
    assert traced(Shifted(dense=nn.Linear(3, 4)), CLOUD, opened) == expected


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        (("feat=20",), [["20", "6"], ["2", "open"]]),
        (("adj=70",), [["open", "6"], ["2", "70"]]),
        (("feat=20", "adj=70"), [["20", "6"], ["2", "70"]]),
    ],
)
def test_an_axis_is_fixed(fixed: tuple[str, ...], expected: object) -> None:
    assert traced(Conv(conv=GCNConv(6, 3)), random_graph(20, 70), fixed=fixed) == expected


def test_a_graph_of_fixed_sizes_converts() -> None:
    model, graph = Conv(conv=GCNConv(6, 3)).eval(), random_graph(20, 70)
    done = convert(model, graph, target="onnx-x86", fixed_sizes=("feat=20", "adj=70"))
    assert shapes(done) == [[20, 6], [2, 70]]
    again = random_graph(20, 70, 5)
    np.testing.assert_allclose(ran(done, *again), model(*again).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"open_axes": ("cloud",)}, "the model has no input 'cloud'; its inputs are points, weight"),
        ({"open_axes": ("points=3",)}, r"points is \[2, 24, 3\], and has no axis 3"),
        ({"open_axes": ("points=rows",)}, "an axis is a number, as in points=0, or one of batch, nodes, points, edges"),
        ({"fixed_sizes": ("points",)}, "give the size, as in --fixed points=1024"),
        ({"fixed_sizes": ("points=7",)}, "give an example of the size 7"),
        ({"open_axes": ("points=1",), "fixed_sizes": ("points=24",)}, "contradict each other"),
    ],
)
def test_what_does_not_fit_is_a_wrong_command(told: dict[str, tuple[str, ...]], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        convert(Shifted(dense=nn.Linear(3, 4)), CLOUD, target="onnx-x86", **told)


def test_targets_of_fixed_sizes_name_those_of_open_ones() -> None:
    with pytest.raises(
        UsageError, match="tflite-arm64 has fixed sizes; open ones go with --target onnx-x86, onnx-int8-x86"
    ):
        convert(Shifted(dense=nn.Linear(3, 4)), CLOUD, target="tflite-arm64", open_axes=("points",))


def test_a_size_that_forward_fixes_cannot_be_opened() -> None:
    with pytest.raises(ConversionError, match="axis 2 of points, which is to stay open"):
        convert(Shifted(dense=nn.Linear(3, 4)), CLOUD, target="onnx-x86", open_axes=("points=2",))


def test_a_program_says_itself_what_is_open() -> None:
    model = Conv(conv=SAGEConv(6, 3)).eval()
    graph = random_graph(20, 70)
    closed = export(model, graph)
    opened = export(model, graph, dynamic_shapes=({0: Dim.DYNAMIC}, {1: Dim.DYNAMIC}))
    assert shapes(convert(closed, graph, target="onnx-x86")) == [[20, 6], [2, 70]]
    done = convert(opened, graph, target="onnx-x86")
    assert shapes(done) == [[N, 6], [2, E]]
    other = random_graph(31, 90, 1)
    np.testing.assert_allclose(ran(done, *other), model(*other).detach().numpy(), atol=1e-5)
    fixed = convert(opened, graph, target="onnx-x86", fixed_sizes=("feat=20",))
    assert shapes(fixed) == [[20, 6], [2, E]]
    with pytest.raises(UsageError, match=r"fixed: export it with a torch\.export\.Dim there"):
        convert(closed, graph, target="onnx-x86", open_axes=("feat",))


def test_a_program_of_open_sizes_becomes_a_file_of_the_examples_sizes() -> None:
    program = export(Shifted(dense=nn.Linear(3, 4)).eval(), CLOUD, dynamic_shapes=({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}))
    given = CLOUD[0][:1], CLOUD[1][:1]
    done = convert(program, given, target="tflite-arm64")
    assert done.model_bytes is not None
    (found,) = run_file(done.model_bytes, [t.numpy() for t in given])
    np.testing.assert_allclose(found, program.module(check_guards=False)(*given).detach().numpy(), atol=1e-5)


def test_a_batch_vector_alone_leaves_the_numbers_of_nodes_and_graphs_open() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(6, 4)

        def forward(self, x: Tensor, batch: Tensor) -> Tensor:
            return global_mean_pool(self.dense(x).relu(), batch)

    torch.manual_seed(0)
    model = Pooled().eval()
    done = convert(model, (torch.randn(11, 6), torch.arange(11) * 2 // 11), target="onnx-x86")
    for nodes, graphs in ((30, 5), (4, 1)):
        x, batch = torch.randn(nodes, 6), torch.arange(nodes) * graphs // nodes
        np.testing.assert_allclose(ran(done, x, batch), model(x, batch).detach().numpy(), atol=1e-5)


class OwnSearch(nn.Module):
    """k nearest of the same graph, by hand: other graphs are far away, no node is its own neighbour."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.dense, self.how = nn.Linear(6, 4), how

    def forward(self, pos: Tensor, batch: Tensor) -> Tensor:
        if self.how == "sorted":
            far = torch.cdist(pos, pos) + (batch[:, None] != batch[None]) * 1e6
            near = far.argsort(1)[:, 1:4]
        else:
            far = (pos[:, None] - pos[None]).square().sum(-1)
            far = far.masked_fill(batch.unsqueeze(0) != batch.unsqueeze(1), 1e9)
            far.fill_diagonal_(1e9)
            near = (-far).topk(3)[1]
        own = pos[:, None].expand(-1, 3, -1)
        return self.dense(torch.cat([own, pos[near] - own], -1)).relu().amax(1)


def clouds(*sizes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(sum(sizes), 3), torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


@pytest.mark.parametrize("how", ["sorted", "masked"])
def test_a_search_of_ones_own_within_each_graph_takes_any_batch(how: str) -> None:
    torch.manual_seed(0)
    model = OwnSearch(how).eval()
    done = convert(model, clouds(9, 6, 8), target="onnx-x86")
    for sizes in ((12, 5), (7,), (4, 30, 6, 5)):
        pos, batch = clouds(*sizes)
        np.testing.assert_allclose(ran(done, pos, batch), model(pos, batch).detach().numpy(), atol=1e-5)
    fixed = convert(model, clouds(9, 6, 8), target="onnx-x86", fixed_sizes=["pos=23"])
    assert "pos float32 [23, 3], batch int64 [23]; sizes that are numbers are fixed: --open pos=" in fixed.report.inputs
    with pytest.raises(UsageError, match=r"has 23 along axis 0; .*--open pos=0"):
        ran(fixed, *clouds(12, 5))


def test_features_brought_to_other_points() -> None:
    """PyG's knn_interpolate: two numbers of nodes, two batch vectors."""

    class Brought(nn.Module):
        def forward(self, x: Tensor, pos: Tensor, batch: Tensor, to: Tensor, to_batch: Tensor) -> Tensor:
            return knn_interpolate(x, pos, to, batch, to_batch, k=3)

    def given(some: tuple[int, ...], others: tuple[int, ...]) -> tuple[Tensor, ...]:
        return (torch.randn(sum(some), 4), *clouds(*some), *clouds(*others))

    provide()
    torch.manual_seed(0)
    done = convert(Brought().eval(), given((8, 9), (14, 5)), target="onnx-x86")
    other = given((12, 6, 7), (7, 3, 30))
    np.testing.assert_allclose(ran(done, *other), Brought()(*other).numpy(), atol=1e-5)
