"""The piece of a data set that a checkpoint carries."""

from __future__ import annotations

import torch
from torch_geometric.data import Data

from bgnn.models.dq.example import first_graphs, part_of_graph


def path(nodes, width=3):
    """Nodes in a line, edges both ways."""
    forward = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])
    return Data(
        x=torch.arange(nodes * width).reshape(nodes, width).float(), edge_index=torch.cat([forward, forward.flip(0)], 1)
    )


def test_the_nearest_of_the_hub_with_their_edges():
    graph = path(20)
    graph.edge_index = torch.cat([graph.edge_index, torch.tensor([[12, 12], [12, 18]])], 1)  # 12 is the hub
    part = part_of_graph(graph, nodes=6)
    assert part["x"][:, 0].div(3).tolist() == [10, 11, 12, 13, 14, 18]
    edges = {(int(a), int(b)) for a, b in part["edge_index"].T}
    assert edges == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2), (3, 4), (4, 3), (2, 2), (2, 5)}


def test_a_small_graph_is_taken_whole_and_unreached_nodes_come_last():
    graph = path(5)
    assert torch.equal(part_of_graph(graph)["x"], graph.x)
    assert torch.equal(part_of_graph(graph)["edge_index"], graph.edge_index)
    lonely = Data(x=torch.arange(4.0)[:, None], edge_index=torch.tensor([[3, 2], [2, 3]]))
    assert part_of_graph(lonely, nodes=3)["x"].flatten().tolist() == [0, 2, 3]


def test_graphs_are_joined_until_there_are_enough_nodes():
    inputs = first_graphs([path(5) for _ in range(9)], nodes=12)
    assert inputs["batch"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert inputs["edge_index"].max() == 14
    assert len(first_graphs([path(30)] * 3, nodes=12)["batch"].unique()) == 2  # read-outs need more than one
