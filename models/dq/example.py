"""A piece of a data set that is small enough to travel in a checkpoint: what a converter runs the network on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.utils import subgraph

NODES = 256


def part_of_graph(graph: Data, nodes: int = NODES) -> dict[str, Tensor]:
    """The `nodes` nodes nearest to the one of most edges, and all edges among them: `forward`'s inputs by name.

    -> `x` f32 `[n, F]`, `edge_index` int64 `[2, E]`; n is the graph's own number of nodes if that is smaller.
    """
    assert graph.x is not None
    assert graph.edge_index is not None
    count, (source, target) = len(graph.x), graph.edge_index
    steps = torch.full([count], count)  # from the first node; `count` where none lead there
    steps[torch.bincount(source, minlength=count).argmax()] = 0
    for step in range(1, count):
        reached = target[steps[source] < step]
        new = reached[steps[reached] == count]
        if not len(new):
            break
        steps[new] = step
    kept = steps.argsort(stable=True)[:nodes].sort().values
    edges, _ = subgraph(kept, graph.edge_index, relabel_nodes=True, num_nodes=count)
    return {"x": graph.x[kept], "edge_index": edges}


def first_graphs(graphs: Sequence[Data], nodes: int = NODES) -> dict[str, Tensor]:
    """At least two graphs, as many as it takes to have `nodes` nodes: `x`, `edge_index`, and `batch` int64 `[n]`."""
    taken: list[Data] = []
    for graph in graphs:
        if len(taken) >= 2 and sum(int(one.num_nodes or 0) for one in taken) >= nodes:
            break
        taken.append(Data(x=graph.x, edge_index=graph.edge_index))
    batch = Batch.from_data_list(taken)
    return {"x": batch.x, "edge_index": batch.edge_index, "batch": batch.batch}
