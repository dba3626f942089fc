"""Distillation losses of the binary GNN paper: logits (section 3) and local structure, LSP (Eq. 6, 7, 22).

A graph is its edges int64 `[2, E]`: row 0 the node whose neighbourhood it is, row 1 the neighbour. For each node, LSP
compares two distributions over the union of its neighbours in the student's and in the teacher's graph. The paper gave
it up on large graphs, as its gradient was a tensor of |E| x |V| x D numbers; here neither direction holds more than
`CHUNK` numbers beside the features themselves (|V| x D) and one number an edge.

Where the authors' code and the paper's text differ: Eq. 7 weighs by the student's distribution, and so does this file;
their code by the teacher's. The three transfer points count as their mean, as in their code; the Gaussian is
exp(-|x - y|^2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 3.0  # of the logits (section 5.2)
ALPHA = 0.1  # the teacher's share of the loss (section 5.2)
CHUNK = 2**22  # numbers gathered at once


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Logit matching (section 3): T^2 KL(teacher || student) of softened logits, both `[B, classes]`."""
    log_s, log_t = F.log_softmax(student / TEMPERATURE, dim=1), F.log_softmax(teacher / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")


class _PerEdge(torch.autograd.Function):
    """|x_i - x_j|^2 or x_i . x_j of each edge (i, j): `[V, D]`, `[2, E]` -> `[E]`, some edges at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edges: Tensor, product: bool) -> Tensor:
        ctx.save_for_backward(x, edges)
        ctx.product = product
        values = [
            (x[i] * x[j]).sum(1) if product else (x[i] - x[j]).square_().sum(1)
            for i, j in edges.split(_edges_at_once(x), dim=1)
        ]
        return torch.cat(values) if values else x.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        x, edges = ctx.saved_tensors
        size, out = _edges_at_once(x), torch.zeros_like(x)
        for (i, j), g in zip(edges.split(size, dim=1), grads[0].split(size), strict=True):
            if ctx.product:
                out.index_add_(0, i, x[j] * g[:, None])
                out.index_add_(0, j, x[i] * g[:, None])
            else:
                step = (x[i] - x[j]).mul_(2 * g[:, None])
                out.index_add_(0, i, step)
                out.index_add_(0, j, step, alpha=-1)
        return out, None, None


def _edges_at_once(x: Tensor) -> int:
    return max(1, CHUNK // max(1, x.shape[1]))


def squared(x: Tensor, edges: Tensor) -> Tensor:
    """|x_i - x_j|^2, as section 2 writes it below Eq. 6: of `x [V, D]` and `edges [2, E]`, `[E]`."""
    return _PerEdge.apply(x, edges, False)


def rbf(x: Tensor, edges: Tensor) -> Tensor:
    """The Gaussian exp(-|x_i - x_j|^2); shapes as of `squared`."""
    return torch.exp(-squared(x, edges))


def hamming(x: Tensor, edges: Tensor) -> Tensor:
    """Eq. 22: exp(-d), d = (D - x_i . x_j) / 2, the Hamming distance of +-1 vectors. Shapes as of `squared`."""
    return torch.exp((_PerEdge.apply(x, edges, True) - x.shape[1]) / 2)


def hamming_share(x: Tensor, edges: Tensor) -> Tensor:
    """exp(-d / D): Eq. 22 of the share of differing bits. Its gradient is not 0 a few bits away, as Eq. 22's is."""
    return torch.exp((_PerEdge.apply(x, edges, True) / x.shape[1] - 1) / 2)


Similarity = Callable[[Tensor, Tensor], Tensor]
SIMILARITIES: dict[str, Similarity] = {
    "squared": squared,
    "rbf": rbf,
    "hamming": hamming,
    "hamming_share": hamming_share,
}


def union(student: Tensor, teacher: Tensor, nodes: int) -> Tensor:
    """The edges `[2, E]` that are in either graph (`[2, E1]`, `[2, E2]`), each once, sorted by their first node."""
    numbers = torch.cat([student[0] * nodes + student[1], teacher[0] * nodes + teacher[1]]).unique()
    return torch.stack([numbers // nodes, numbers % nodes])


def log_structure(similarity: Tensor, edges: Tensor, nodes: int) -> Tensor:
    """log LS_ij of Eq. 6, `[E]`: the similarities `[E]` through a log-softmax over each node's edges."""
    at = edges[0]
    highest = similarity.new_full((nodes,), -torch.inf)
    highest = highest.scatter_reduce(0, at, similarity.detach(), "amax")
    shifted = similarity - highest[at]
    total = similarity.new_zeros(nodes).index_add(0, at, shifted.exp())
    return shifted - total.log()[at]


def lsp_loss(
    student: Tensor, teacher: Tensor, edges: Tensor, of_student: Similarity = rbf, of_teacher: Similarity = rbf
) -> Tensor:
    """L_LSP of Eq. 7, a scalar: 1/|V| sum_i sum_j LS^s_ij log(LS^s_ij / LS^t_ij).

    Features `student [V, D]` and `teacher [V, D']`, and the edges `[2, E]` of both graphs (`union`). No gradient
    reaches the teacher.
    """
    nodes = len(student)
    log_s = log_structure(of_student(student, edges), edges, nodes)
    with torch.no_grad():
        log_t = log_structure(of_teacher(teacher, edges), edges, nodes)
    return (log_s.exp() * (log_s - log_t)).sum() / nodes


#: Node features `[B, C, N]` and the neighbours `[B, N, k]` that they came from, of one EdgeConv.
Graph = tuple[Tensor, Tensor]


def knn_edges(neighbours: Tensor) -> Tensor:
    """`[B, N, k]` neighbours within each cloud as the edges `[2, B * N * k]` of one graph of B * N nodes."""
    batch, count, k = neighbours.shape
    first = torch.arange(batch, device=neighbours.device).view(-1, 1, 1) * count
    at = torch.arange(batch * count, device=neighbours.device).view(-1, 1).expand(-1, k)
    return torch.stack([at.reshape(-1), (neighbours + first).reshape(-1)])


def cloud_lsp(
    student: Sequence[Graph], teacher: Sequence[Graph], of_student: Similarity, of_teacher: Similarity
) -> Tensor:
    """The mean of `lsp_loss` over the transfer points: after each EdgeConv but the first (its graph is the cloud's)."""
    losses = []
    for (x_s, n_s), (x_t, n_t) in zip(student[1:], teacher[1:], strict=True):
        nodes = [x.transpose(1, 2).reshape(-1, x.shape[1]) for x in (x_s, x_t)]
        edges = union(knn_edges(n_s), knn_edges(n_t), len(nodes[0]))
        losses.append(lsp_loss(nodes[0], nodes[1], edges, of_student, of_teacher))
    return torch.stack(losses).mean()
