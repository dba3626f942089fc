"""The user's module is run, not only its trace; its own rounding may turn decisions; it is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_models import random_graph
from graphs import Wrapped, bgnn, randn
from torch import Tensor, fx, nn

from bgnn.converter import stages
from bgnn.converter.api import convert
from bgnn.converter.eager import EagerModel
from bgnn.converter.errors import ConversionError
from bgnn.passes.graph import PassResult


class Pretender(nn.Module):
    """Another model while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = -self.layer.weight if torch.compiler.is_exporting() else self.layer.weight
        return F.linear(x, weight, self.layer.bias)


@pytest.mark.parametrize("target", ["tflite-arm64", "onnx-x86"])
def test_a_model_that_is_another_one_while_it_is_exported(target: str) -> None:
    x = randn(2, 6, 3)
    with pytest.raises(ConversionError, match=r"^stage traced: output 0 differs by"):
        convert(Pretender(), (x,), target=target)
    program = torch.export.export(Pretender().eval(), (x,))  # this is the model that was exported
    assert convert(program, (x,), target=target).model_bytes


class Busy(nn.Module):
    """A forward that changes whatever a module holds."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(3, 3))
        self.tied = self.weight
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.log = 0, [0]
        if not copies:
            self.kept = self.weight * 2  # deepcopy refuses it

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = self.weight.data.clamp(-0.5, 0.5)
        self.seen += 1
        self.calls += 1
        self.log.append(1)
        self.last = x
        torch.rand(1)
        return x @ self.tied


@pytest.mark.parametrize("copies", [True, False])
def test_the_callers_module_and_random_numbers_stay_as_they_were(copies: bool) -> None:
    model, x = Busy(copies), randn(2, 3)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    (found,) = EagerModel(model, [0]).outputs([x])
    assert torch.equal(found, x @ model.weight.clamp(-0.5, 0.5))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.calls, model.log, hasattr(model, "last")) == (0, [0], False)
    assert model.tied is model.weight
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("search", [False, True])
def test_a_decision_that_tracing_turns_is_counted(search: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounds otherwise once it is traced may turn a sign near 0 or near ties, as in every later stage."""
    whole = stages.passes_to

    def rounds_otherwise(gm: fx.GraphModule) -> PassResult:
        node = next(n for n in gm.graph.nodes if n.op == "get_attr" and n.target.startswith("level"))
        setattr(gm, node.target, getattr(gm, node.target) * torch.linspace(1 + 1e-6, 1 - 1e-6, 8))
        return PassResult()

    more = [("rounds otherwise", rounds_otherwise)]
    monkeypatch.setattr(stages, "passes_to", lambda s, p: [*(more if s == "traced" else []), *whole(s, p)])

    def signs_of(m: Any, x: Tensor) -> Tensor:
        return F.linear(torch.where(x - m.level >= 0, 1.0, -1.0), m.w)

    def search_of(m: Any, x: Tensor) -> Tensor:
        near = (x - m.level)[:, None, :].topk(3)[1].expand(4, 8, 3)  # all distances of row 0 tie
        return x[:, None, :].expand(4, 8, 8).gather(2, near).amax(2) + x

    x = randn(4, 8, seed=3).abs() + 1
    model = Wrapped(search_of if search else signs_of, {"w": randn(5, 8), "level": x[0].clone()})
    check = convert(model, (x,), target="tflite-arm64", stop_after="traced").report.checks[0]
    assert check.what == "stage traced"
    assert (check.turned_rows if search else check.turned_signs) > 0


def test_a_traced_stage_that_turns_signs_far_from_zero_is_refused() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return bgnn.binarize(x + (0.5 if torch.compiler.is_exporting() else 0.0)) * 2

    with pytest.raises(ConversionError, match=r"^stage traced: .* signs of 'binarize' differ, one where the number is"):
        convert(Other(), (randn(4, 6),), target="tflite-arm64")


@pytest.mark.parametrize("kind", ["dropout", "rand"])
def test_random_numbers_are_named(kind: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, True) if kind == "dropout" else x + torch.rand_like(x)

    with pytest.raises(ConversionError, match=rf"{kind}.* \(at .*test_eager.py.* (draws random numbers|is a dropout)"):
        convert(Wrapped(forward, {}), (randn(2, 3),), target="tflite-arm64")


def test_a_model_that_fails_when_it_is_run() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_exporting():
                raise RuntimeError("no such file")
            return x * 2

    with pytest.raises(ConversionError, match=r"PyTorch runs it: RuntimeError: no such file \(at .*test_eager"):
        convert(Fails(), (randn(2, 3),), target="tflite-arm64")


class Swapped(nn.Module):
    """While it is exported, messages go the other way; an undirected example cannot tell."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        to = 0 if torch.compiler.is_exporting() else 1
        return torch.zeros_like(x).index_add(0, edge_index[to], x[edge_index[1 - to]])


def test_the_second_graph_is_directed() -> None:
    x, edges = random_graph(20, 60)
    with pytest.raises(ConversionError, match=r"second graph: output 0 differs.*a graph that is not the example"):
        convert(Swapped(), (x, torch.cat([edges, edges.flip(0)], 1)), target="onnx-x86")
