"""Sampled neighbourhoods of a large graph, to train on, and the whole graph a layer at a time, to infer on.

PyG's NeighborLoader needs pyg-lib or torch-sparse; this sampler needs numpy. A sample holds each node once, the wanted
nodes first; a node's neighbours are drawn without replacement when it is first reached, as NeighborLoader does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bgnn.models.sage import GCN, NodeNet, Sample


class Neighbours:
    """The edges int64 `[2, E]` of a graph of `nodes` nodes, by target."""

    def __init__(self, edge_index: Tensor, nodes: int) -> None:
        source, target = edge_index.numpy()
        order = np.argsort(target, kind="stable")
        self.source = source[order]
        self.ends = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=nodes))])
        self.nodes = nodes
        #: Edges into each node, float32 `[N]`.
        self.degree = torch.from_numpy(np.diff(self.ends)).float()

    def edges_of(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All edges into `targets [M]`: sources `[E]`, and the place in `targets` of each edge's target `[E]`."""
        start, count = self.ends[targets], self.ends[targets + 1] - self.ends[targets]
        owner = np.repeat(np.arange(len(targets)), count)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        return self.source[start[owner] + within], owner

    def sample(self, wanted: np.ndarray, sizes: tuple[int, ...], rng: np.random.Generator) -> Sample:
        """What is around the `wanted` nodes.

        `sizes`: the most neighbours drawn of a node that is wanted, of one of its neighbours, and so on.
        """
        nodes = wanted
        place = np.full(self.nodes, -1)
        place[wanted] = np.arange(len(wanted))
        frontier, edges, ends = wanted, [], [len(wanted)]
        for size in sizes:
            source, owner = self.edges_of(frontier)
            order = np.lexsort((rng.random(len(owner)), owner))  # shuffled within each target
            first = np.searchsorted(owner, np.arange(len(frontier)))
            drawn = order[np.arange(len(order)) - first[owner] < size]
            source, target = source[drawn], frontier[owner[drawn]]
            new = np.unique(source[place[source] < 0])
            place[new] = len(nodes) + np.arange(len(new))
            nodes = np.concatenate([nodes, new])
            edges.append(np.stack([place[source], place[target]]))
            frontier = new
            ends.append(len(nodes))
        whole = np.concatenate(edges, axis=1) if edges else np.zeros((2, 0), np.int64)
        counts = np.cumsum([part.shape[1] for part in edges]).tolist()
        return Sample(torch.from_numpy(nodes), torch.from_numpy(whole), ends, counts)


def graph_of(model: NodeNet, edge_index: Tensor, nodes: int) -> Neighbours:
    """The graph as `infer` takes it for a network: a GCN has self-loops of its own."""
    kept = edge_index[:, edge_index[0] != edge_index[1]] if isinstance(model, GCN) else edge_index
    return Neighbours(kept, nodes)


def most_nodes(batch: int, sizes: tuple[int, ...]) -> tuple[int, int]:
    """The most nodes and edges that a sample of `batch` wanted nodes can have."""
    frontier, nodes, edges = batch, batch, 0
    for size in sizes:
        frontier *= size
        nodes, edges = nodes + frontier, edges + frontier
    return nodes, edges


@torch.no_grad()
def infer(model: NodeNet, x: Tensor, graph: Neighbours, chunk: int = 2**22) -> Tensor:
    """The network's logits `[N, classes]` on a whole graph (`graph_of`), in eval mode, some nodes of a layer at a time.

    `chunk`: the most numbers gathered at once, or one node's neighbours.
    """
    model.eval()
    for i in range(len(model.convs)):
        per_node = max(1, len(graph.source) // max(1, graph.nodes)) * x.shape[1]
        parts = []
        for targets in np.array_split(np.arange(graph.nodes), max(1, per_node * graph.nodes // chunk)):
            source, owner = (torch.from_numpy(part) for part in graph.edges_of(targets))
            parts.append(model.part_of_layer(i, x, graph.degree, torch.from_numpy(targets), source, owner))
        x = torch.cat(parts)
    return x
