"""PyG's k-NN search without pyg-lib: `torch.ops.pyg.knn`, which `DynamicEdgeConv`, `knn_graph` and `knn` call.

Where pyg-lib is not installed, this defines the op with a reference of the same meaning, so that such models can be
built, run and exported. Where it is, only what export lacks is added: the shape of the result. A file follows the rule
of this reference: nearest first, equal distances to the lowest index.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import bgnn.converter.dialect  # noqa: F401  (defines bgnn::topk_lowest)

HAS_PYG_LIB = importlib.util.find_spec("pyg_lib") is not None

_bgnn = torch.library.Library("bgnn", "FRAGMENT")
_pyg = torch.library.Library("pyg", "FRAGMENT")


def neighbours(
    x: Tensor, y: Tensor, ptr_x: Tensor | None, ptr_y: Tensor | None, k: int, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    """(which rows of `x` are the k nearest to each of `y`, int64 `[M, k]`; which of these are of the same graph, bool).

    `x` f32 `[N, F]`, `y` f32 `[M, F]`; `ptr_x`, `ptr_y` int64 `[B + 1]`: where each graph's rows begin. Nearest first,
    equal distances to the lowest index; a graph of fewer than k rows has no more neighbours to give.
    """
    if cosine:
        distance = 1 - torch.nn.functional.normalize(y, dim=1) @ torch.nn.functional.normalize(x, dim=1).T
    else:
        distance = torch.cdist(y, x, compute_mode="donot_use_mm_for_euclid_dist")
    apart = _graphs(y, ptr_y)[:, None] != _graphs(x, ptr_x)[None, :]
    distance = distance.masked_fill(apart, float("inf"))
    missing = k - x.shape[0]
    if missing > 0:
        distance = torch.nn.functional.pad(distance, (0, missing), value=float("inf"))
    values, table = torch.ops.bgnn.topk_lowest(distance, k, 1, False)
    return table, values < float("inf")


def _graphs(rows: Tensor, ptr: Tensor | None) -> Tensor:
    """The graph that each row belongs to."""
    if ptr is None:
        return torch.zeros(rows.shape[0], dtype=torch.int64)
    return torch.repeat_interleave(torch.arange(ptr.shape[0] - 1), ptr.diff())


def knn(
    x: Tensor, y: Tensor, ptr_x: Tensor | None, ptr_y: Tensor | None, k: int, cosine: bool = False, num_workers: int = 1
) -> Tensor:
    """The k nearest rows as edges, int64 `[2, E]`: rows of `y`, and the rows of `x` found for each."""
    table, found = neighbours(x, y, ptr_x, ptr_y, k, cosine)
    targets = torch.arange(y.shape[0])[:, None].expand(table.shape)
    return torch.stack([targets[found], table[found]])


def table_of(edges: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The table `[M, k]` that a search's edges tell, given its arguments; the rest is as `neighbours` has it."""
    table, found = neighbours(*args[:6], **{k: v for k, v in kwargs.items() if k != "num_workers"})
    if int(found.sum()) == edges.shape[1]:
        order = torch.argsort(edges[0], stable=True)
        table[found] = edges[1][order]
    return table


def _shape(x: Tensor, *_: Any, **__: Any) -> Tensor:
    edges = torch.library.get_ctx().new_dynamic_size(min=1)
    return x.new_empty(2, edges, dtype=torch.int64)


def group_starts(batch: Tensor) -> Tensor:
    """Where each graph's rows begin: int64 `[N]`, sorted -> int64 `[B + 1]`. A file asks the batch itself."""
    counts = torch.bincount(batch)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _starts_shape(batch: Tensor) -> Tensor:
    return batch.new_empty(torch.library.get_ctx().new_dynamic_size(min=1), dtype=torch.int64)


_bgnn.define("group_starts(Tensor batch) -> Tensor", tags=(torch.Tag.dynamic_output_shape,))
_bgnn.impl("group_starts", group_starts, "CompositeExplicitAutograd")
_bgnn._register_fake("group_starts", _starts_shape)
if not HAS_PYG_LIB:
    _pyg.define(
        "knn(Tensor x, Tensor y, Tensor? ptr_x, Tensor? ptr_y, int k, bool cosine=False, int num_workers=1) -> Tensor",
        tags=(torch.Tag.dynamic_output_shape,),
    )
    _pyg.impl("knn", knn, "CompositeExplicitAutograd")
    _pyg._register_fake("knn", _shape)


def provide() -> None:
    """Tells PyG, if it is loaded, that there is a k-NN search; and torch.export what pyg-lib's gives."""
    typing: Any = sys.modules.get("torch_geometric.typing")
    if not HAS_PYG_LIB and typing is not None:
        typing.WITH_KNN = True
    elif typing is not None and hasattr(torch.ops.pyg, "knn"):
        with suppress(RuntimeError):  # it is there already
            _pyg._register_fake("knn", _shape)


@contextmanager
def traceable() -> Iterator[None]:
    """Within the block torch.export goes through PyG's searches and what is done with their edges.

    PyG hands a search the batch itself: where a graph begins, it would ask for as Python numbers.
    """
    provide()
    with ExitStack() as stack:
        for module in [m for name, m in sys.modules.items() if name.startswith("torch_geometric.nn.")]:
            for name in ("index2ptr", "_batch_to_ptr"):
                if _is_pygs(vars(module).get(name)):
                    stack.enter_context(mock.patch.object(module, name, _starts))
        yield


def _is_pygs(function: Any) -> bool:
    return getattr(function, "__module__", "") in ("torch_geometric.index", "torch_geometric.nn.pool")


def _starts(batch: Tensor | None, size: int | None = None) -> Tensor | None:
    return None if batch is None else torch.ops.bgnn.group_starts(batch)
