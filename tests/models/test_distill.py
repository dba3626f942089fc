"""Distillation losses: by hand, their gradients by differences, and the memory they need."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from bgnn.models import distill
from bgnn.models.distill import SIMILARITIES, cloud_lsp, knn_edges, lsp_loss, union
from bgnn.models.layers import knn


def test_distillation_loss_is_nothing_on_equal_logits():
    logits = torch.randn(4, 7)
    assert distill.distillation_loss(logits, logits).item() == pytest.approx(0, abs=1e-6)
    softened = torch.softmax(logits / 3, 1)
    other = torch.randn(4, 7)
    by_hand = 9 * (softened * (softened.log() - torch.log_softmax(other / 3, 1))).sum(1).mean()
    torch.testing.assert_close(distill.distillation_loss(other, logits), by_hand)


def by_hand(x: Tensor, i: int, js: list[int], name: str) -> Tensor:
    """LS_ij of Eq. 6 over `js`, written as the paper writes it."""
    similar = []
    for j in js:
        if name.startswith("hamming"):
            differing = 0.5 * (1 - x[i] * x[j]).sum()  # below Eq. 22
            similar.append(torch.exp(-differing / (x.shape[1] if name == "hamming_share" else 1)))
        else:
            distance = (x[i] - x[j]).pow(2).sum()
            similar.append(torch.exp(-distance) if name == "rbf" else distance)
    return torch.softmax(torch.stack(similar), 0)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_lsp_is_the_papers_sum_over_the_union_of_neighbourhoods(name, chunk, monkeypatch):
    monkeypatch.setattr(distill, "CHUNK", chunk)  # an edge at a time, and all at once
    torch.manual_seed(0)
    nodes = 7
    student, teacher = (
        0.5 * torch.randn(nodes, 3, dtype=torch.float64),
        0.5 * torch.randn(nodes, 5, dtype=torch.float64),
    )
    if name.startswith("hamming"):
        student, teacher = student.sign(), teacher.sign()
    graphs = [torch.stack([torch.arange(nodes).repeat_interleave(3), torch.randint(nodes, (21,))]) for _ in range(2)]
    edges = union(*graphs, nodes)
    total = 0.0
    for i in range(nodes):
        js = sorted({int(j) for graph in graphs for j in graph[1][graph[0] == i]})
        assert edges[1][edges[0] == i].tolist() == js
        s, t = by_hand(student, i, js, name), by_hand(teacher, i, js, name)
        total += float((s * (s / t).log()).sum())
    loss = lsp_loss(student, teacher, edges, SIMILARITIES[name], SIMILARITIES[name])
    assert loss.item() == pytest.approx(total / nodes, abs=1e-12)
    same = lsp_loss(student, student.clone(), edges, SIMILARITIES[name], SIMILARITIES[name])
    assert same.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("chunk", [7, 2**22])
def test_gradient_of_lsp_by_differences(name, chunk, monkeypatch):
    monkeypatch.setattr(distill, "CHUNK", chunk)
    torch.manual_seed(1)
    student = (0.5 * torch.randn(6, 3, dtype=torch.float64)).requires_grad_()
    teacher = 0.5 * torch.randn(6, 4, dtype=torch.float64)
    edges = union(torch.randint(6, (2, 14)), torch.randint(6, (2, 14)), 6)
    loss = partial(lsp_loss, of_student=SIMILARITIES[name], of_teacher=SIMILARITIES["rbf"])
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, edges), (student,))


def test_lsp_of_a_large_graph_stays_small(monkeypatch):
    """5,000 nodes, 100,000 edges, 64 features: neither way is there a tensor of even |E| x D numbers."""
    largest = 0
    real = torch.Tensor.__getitem__

    def watched(x: Tensor, index: object) -> Tensor:
        nonlocal largest
        out = real(x, index)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(distill, "CHUNK", 2**18)
    monkeypatch.setattr(torch.Tensor, "__getitem__", watched)
    torch.manual_seed(0)
    nodes, width, count = 5_000, 64, 100_000
    edges = union(torch.randint(nodes, (2, count)), torch.randint(nodes, (2, 10)), nodes)
    student = torch.randn(nodes, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: _small(x, nodes * width), lambda x: x):
        lsp_loss(student, torch.randn(nodes, width), edges).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert largest <= 2**18


def _small(saved: Tensor, most: int) -> Tensor:
    assert saved.numel() <= most
    return saved


def test_clouds_are_compared_after_each_layer_but_the_first():
    torch.manual_seed(0)
    batch, points, k = 2, 9, 3

    def layer(channels: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, channels, points)
        return x, knn(x.transpose(1, 2), k, "l2")

    student, teacher = [layer(4) for _ in range(4)], [layer(5) for _ in range(4)]
    loss = cloud_lsp(student, teacher, SIMILARITIES["rbf"], SIMILARITIES["rbf"])
    each = []
    for (xs, ns), (xt, nt) in zip(student[1:], teacher[1:], strict=True):
        edges = [union(knn_edges(ns[b : b + 1]), knn_edges(nt[b : b + 1]), points) for b in range(batch)]
        each.append(sum(lsp_loss(xs[b].T, xt[b].T, edges[b]) for b in range(batch)) / batch)
    torch.testing.assert_close(loss, torch.stack(each).mean())
