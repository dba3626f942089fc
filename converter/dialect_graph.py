"""The `bgnn::` ops of message passing: segment reductions over edges, self-loops, fake quantisation.

Like those of `converter.dialect` they run in plain PyTorch. Sizes of graphs are dynamic: `[N, ...]` tensors have a row
per node, `[E, ...]` tensors one per edge, and both numbers may be symbols while a graph is traced. A graph's edges
are `edge_index`, int64 `[2, E]`: sources in row 0 and targets in row 1 (PyG's default flow).

Each op has a reference and a *fake* implementation, which gives shapes without values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import bgnn.converter.dialect  # noqa: F401  (it defines the library that this extends)

_library = torch.library.Library("bgnn", "FRAGMENT")


def define(schema: str, reference: Any, fake: Any) -> None:
    """Adds one op to `torch.ops.bgnn`."""
    _library.define(schema)
    name = schema.split("(")[0]
    _library.impl(name, reference, "CompositeExplicitAutograd")
    _library._register_fake(name, fake)


def rows(index: Tensor, values: Tensor) -> Tensor:
    """`index` `[E]` repeated over the trailing axes of `values` `[E, ...]`, as scatter wants it."""
    return index.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)


def segment_sum(values: Tensor, index: Tensor, n: int) -> Tensor:
    """The sum of each segment: `values` f32 `[E, ...]`, `index` int64 `[E]` in 0..n-1 -> f32 `[n, ...]`.

    An empty segment gives 0. It adds in the order of the edges, as `scatter_add_` does (which this was when traced).
    """
    return values.new_zeros(n, *values.shape[1:]).scatter_add(0, rows(index, values), values)


def segment_mean(values: Tensor, index: Tensor, n: int) -> Tensor:
    """The mean of each segment, shapes as `segment_sum`: its sum by its length, an empty one's by 1."""
    count = values.new_zeros(n).scatter_add(0, index, values.new_ones(index.shape[0])).clamp(min=1)
    return segment_sum(values, index, n) / count.reshape(-1, *[1] * (values.dim() - 1))


def segment_max(values: Tensor, index: Tensor, n: int) -> Tensor:
    """The largest value of each segment, shapes as `segment_sum`; an empty segment gives 0."""
    zeros = values.new_zeros(n, *values.shape[1:])
    return zeros.scatter_reduce(0, rows(index, values), values, "amax", include_self=False)


def segment_softmax(values: Tensor, index: Tensor, n: int) -> Tensor:
    """The softmax over each segment (GAT, Velickovic et al. 2018, Eq. 2): f32 `[E, H]` -> f32 `[E, H]`.

    As PyG computes it: `e = exp(v - max)`, divided by the segment's sum of e plus 1e-16.
    """
    largest = segment_max(values, index, n)
    powers = (values - largest.index_select(0, index)).exp()
    total = segment_sum(powers, index, n) + 1e-16
    return powers / total.index_select(0, index)


def with_self_loops(edge_index: Tensor, n: int, loops: str = "one") -> Tensor:
    """The edges with other self-loops: int64 `[2, E]` -> int64 `[2, E']`.

    `loops`: "one" (those that are there go, and those of nodes 0..n-1 follow: PyG's `add_remaining_self_loops`, or
    `remove_self_loops` and `add_self_loops`), "more" (they stay, and those of nodes 0..n-1 follow: `add_self_loops`),
    "none" (they go: `remove_self_loops`; n means nothing). The other edges keep their order.
    """
    kept = edge_index if loops == "more" else edge_index[:, edge_index[0] != edge_index[1]]
    every = torch.arange(0 if loops == "none" else n, dtype=edge_index.dtype, device=edge_index.device)
    return torch.cat([kept, every.expand(2, -1)], 1)


def join_edges(edge_index: Tensor, rows: list[int]) -> Tensor:
    """Edges several times over, some the other way round: int64 `[2, E]`, rows `[2k]` -> int64 `[2, kE]`.

    Copy i has row `rows[2i]` of the edges as sources and row `rows[2i + 1]` as targets: `[0, 1, 1, 0]` makes a list
    of directed edges an undirected one.
    """
    return torch.cat([edge_index[list(pair)] for pair in zip(rows[::2], rows[1::2], strict=True)], 1)


def drop_loops(values: Tensor, edge_index: Tensor) -> Tensor:
    """The rows of the edges that are no self-loops, in their order: `[E, ...]`, edges int64 `[2, E]` -> `[E', ...]`."""
    return values[edge_index[0] != edge_index[1]]


def loop_rows(values: Tensor, edge_index: Tensor, base: Tensor) -> Tensor:
    """What the self-loops carry, node by node: `[E, ...]`, edges int64 `[2, E]`, base `[n, ...]` -> `[n, ...]`.

    The row of a node's last self-loop; of `base` at nodes without one (PyG's `add_remaining_self_loops`: the fill).
    """
    loops = edge_index[0] == edge_index[1]
    return base.index_put([edge_index[0][loops]], values[loops])


def neighbour_table(index: Tensor, n: int, buckets: int, powers_of_two: bool) -> Tensor:
    """The index of segments, int64 `[E]` in 0..n-1, as the host lays it out (the runtime's graphs.py): itself.

    Where it is a row of a graph's edges, the table holds the other row as well. Nodes stand in `buckets` by their
    number of edges, whose widths are 2^k and, unless `powers_of_two`, 3 * 2^k.
    """
    return index.clone()


def degrees(table: Tensor, n: int) -> Tensor:
    """The number of elements of each segment: int64 `[E]` in 0..n-1 -> f32 `[n]`."""
    return segment_sum(torch.ones(table.shape[0]), table, n)


def edge_order(table: Tensor) -> Tensor:
    """The edges segment by segment, each one's in their order: int64 `[E]` -> positions in the list, int64 `[E]`.

    Which segment comes first is the host's to say: what is in this order is read through `edge_places`.
    """
    return torch.argsort(table, stable=True)


def edge_places(table: Tensor) -> Tensor:
    """Where each edge stands in `edge_order`: int64 `[E]` -> int64 `[E]`."""
    return torch.argsort(edge_order(table))


def edge_csr(edge_index: Tensor, n: int) -> Tensor:
    """A list of edges as operators sort it by target: itself, int64 `[2, E]`.

    What is made of it: the bounds of each node's entries, their sources, and each entry's place in the list.
    """
    return edge_index.clone()


def edge_product(a: Tensor, edges: Tensor, b: Tensor) -> Tensor:
    """`a[source] * b[target]` in `edge_order`: f32 `[N]`, int64 `[2, E]`, f32 `[n]` -> f32 `[E]`."""
    source, target = edge_list(edges[1], edges)
    return a.index_select(0, source) * b.index_select(0, target)


def edge_list(table: Tensor, edge_index: Tensor) -> Tensor:
    """The edges in `edge_order`: int64 `[2, E]` -> int64 `[2, E]`."""
    return edge_index.index_select(1, edge_order(table))


def fake_quant(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """What a tensor's codes stand for (Degree-Quant, section 2.2): f32 `[...]` -> f32 `[...]`.

    `(clamp(round(x / scale + zero_point), low, high) - zero_point) * scale`, each step in float32; ties round to the
    even code, and the zero point is added *before* rounding. `fake_quant_codes` are the codes.
    """
    return (fake_quant_codes(x, scale, zero_point, low, high) - zero_point) * scale


def fake_quant_codes(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """`clamp(round(x / scale + zero_point), low, high)`: whole numbers, f32 `[...]`. A plain function, no op."""
    return torch.clamp(torch.round(x / scale + zero_point), low, high)


def fake_quant_channel(x: Tensor, scales: Tensor, zero_points: Tensor, axis: int, low: int, high: int) -> Tensor:
    """`fake_quant` with a scale f32 `[C]` and a zero point (whole, f32 `[C]`) for each index of `axis`: f32 `[...]`."""
    shape = [1] * x.dim()
    shape[axis] = -1
    scale, zero_point = scales.reshape(shape), zero_points.reshape(shape)
    codes = torch.clamp(torch.round(x / scale + zero_point), low, high)
    return (codes - zero_point) * scale


def aggregate(x: Tensor, edge_index: Tensor, weight: Tensor | None, n: int, reduce: str) -> Tensor:
    """Message passing in one op (`--kernels bgnn`): f32 `[N, F]`, edges int64 `[2, E]` -> f32 `[n, F]`.

    A target's messages are its sources' rows, times `weight` f32 `[E]` if given; `reduce`: "sum", "mean" or "max".
    """
    messages = x.index_select(0, edge_index[0])
    if weight is not None:
        messages = messages * weight.unsqueeze(1)
    return _REDUCTIONS[reduce](messages, edge_index[1], n)


def gat_aggregate(
    x: Tensor, source_score: Tensor, target_score: Tensor, edge_index: Tensor, n: int, negative_slope: float
) -> Tensor:
    """GAT's attention and sum in one op (`--kernels bgnn`): f32 `[N, H, C]`, scores f32 `[N, H]` -> f32 `[n, H, C]`.

    a = segment_softmax(leaky_relu(source_score[j] + target_score[i])); a target i gets the sum over j of a * x_j.
    """
    source, target = edge_index[0], edge_index[1]
    score = source_score.index_select(0, source) + target_score.index_select(0, target)
    attention = segment_softmax(torch.nn.functional.leaky_relu(score, negative_slope), target, n)
    return segment_sum(attention.unsqueeze(-1) * x.index_select(0, source), target, n)


_REDUCTIONS = {"sum": segment_sum, "mean": segment_mean, "max": segment_max}


def _like_nodes(values: Tensor, index: Tensor, n: int) -> Tensor:
    return values.new_empty([n, *values.shape[1:]])


def _other_edges(edge_index: Tensor, n: int, loops: str = "one") -> Tensor:
    return edge_index.new_empty([2, torch.library.get_ctx().new_dynamic_size()])


def _fewer_rows(values: Tensor, edge_index: Tensor) -> Tensor:
    return values.new_empty([torch.library.get_ctx().new_dynamic_size(), *values.shape[1:]])


def _like_first(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _schema, _reference, _fake in (
    ("segment_sum(Tensor values, Tensor index, SymInt n) -> Tensor", segment_sum, _like_nodes),
    ("segment_mean(Tensor values, Tensor index, SymInt n) -> Tensor", segment_mean, _like_nodes),
    ("segment_max(Tensor values, Tensor index, SymInt n) -> Tensor", segment_max, _like_nodes),
    ("segment_softmax(Tensor values, Tensor index, SymInt n) -> Tensor", segment_softmax, _like_first),
    ("with_self_loops(Tensor edge_index, SymInt n, str loops='one') -> Tensor", with_self_loops, _other_edges),
    ("join_edges(Tensor edge_index, int[] rows) -> Tensor", join_edges, join_edges),
    ("drop_loops(Tensor values, Tensor edge_index) -> Tensor", drop_loops, _fewer_rows),
    (
        "loop_rows(Tensor values, Tensor edge_index, Tensor base) -> Tensor",
        loop_rows,
        lambda values, edge_index, base: torch.empty_like(base),
    ),
    (
        "neighbour_table(Tensor index, SymInt n, int buckets, bool powers_of_two) -> Tensor",
        neighbour_table,
        _like_first,
    ),
    ("degrees(Tensor table, SymInt n) -> Tensor", degrees, lambda table, n: table.new_empty([n], dtype=torch.float32)),
    ("edge_csr(Tensor edge_index, SymInt n) -> Tensor", edge_csr, _like_first),
    (
        "edge_product(Tensor a, Tensor edges, Tensor b) -> Tensor",
        edge_product,
        lambda a, edges, b: a.new_empty([edges.shape[1]]),
    ),
    ("edge_order(Tensor table) -> Tensor", edge_order, _like_first),
    ("edge_places(Tensor table) -> Tensor", edge_places, _like_first),
    ("edge_list(Tensor table, Tensor edge_index) -> Tensor", edge_list, lambda table, edges: torch.empty_like(edges)),
    ("fake_quant(Tensor x, float scale, int zero_point, int low, int high) -> Tensor", fake_quant, _like_first),
    (
        "fake_quant_channel(Tensor x, Tensor scales, Tensor zero_points, int axis, int low, int high) -> Tensor",
        fake_quant_channel,
        _like_first,
    ),
    (
        "aggregate(Tensor x, Tensor edge_index, Tensor? weight, SymInt n, str reduce) -> Tensor",
        aggregate,
        lambda x, edge_index, weight, n, reduce: x.new_empty([n, *x.shape[1:]]),
    ),
    (
        "gat_aggregate(Tensor x, Tensor source_score, Tensor target_score, Tensor edge_index, SymInt n, "
        "float negative_slope) -> Tensor",
        gat_aggregate,
        lambda x, source_score, target_score, edge_index, n, negative_slope: x.new_empty([n, *x.shape[1:]]),
    ),
):
    define(_schema, _reference, _fake)


def _with_mask(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


# torch.ao's fake-quantisers have no fake implementation of their own, so that torch.export stops at them.
_torch_ao = torch.library.Library("aten", "IMPL")
for _name in (
    "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
):
    _torch_ao.impl(_name, _with_mask, "Meta")
