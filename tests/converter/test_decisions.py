"""Codes are compared one by one: what rounding explains is counted, all else is an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graph_models import GCN, random_graph, run, staged
from graphs import bgnn, only
from torch import Tensor, fx

from bgnn.converter.decisions import Seen, completed, holds_codes, run_with_taps
from bgnn.converter.errors import ConversionError
from bgnn.converter.stages import mark_decisions
from bgnn.converter.verify import Reference
from bgnn.passes import lower_int8
from bgnn.passes.graph import all_taps


@pytest.fixture(scope="module")
def pair() -> tuple[Reference, fx.GraphModule, tuple[Tensor, Tensor]]:
    graph = random_graph(40, 160)
    reference = Reference(staged(GCN(), graph, "traced"), graph)
    return reference, staged(GCN(), graph, "integer"), graph


Pair = tuple[Reference, fx.GraphModule, tuple[Tensor, Tensor]]


def test_a_stage_agrees(pair: Pair) -> None:
    reference, gm, graph = pair
    codes, outputs = run_with_taps(gm, graph, reference.shapes)
    check = reference.compare("integer", codes, outputs)
    assert set(codes) == set(reference.decisions)
    assert check.codes == sum(c.codes.numel() for c in reference.decisions.values())
    assert check.output_error == 0


@pytest.mark.parametrize(("step", "message"), [(1, "away from the tie"), (2, "differ, one by 2")])
def test_a_wrong_code_is_found(pair: Pair, step: int, message: str) -> None:
    reference, gm, graph = pair
    codes, outputs = run_with_taps(gm, graph, reference.shapes)
    name = list(codes)[3]
    wrong = codes[name].codes.clone()
    inner = (wrong > 3) & (wrong < 250)
    position = tuple(int(i) for i in inner.nonzero()[0])
    wrong[position] += step
    with pytest.raises(ConversionError, match=message) as caught:
        reference.compare("planted", {**codes, name: Seen(wrong, codes[name].floor)}, outputs)
    assert repr(name) in str(caught.value)


def test_a_wrong_output_is_found(pair: Pair) -> None:
    reference, gm, graph = pair
    codes, outputs = run_with_taps(gm, graph, reference.shapes)
    with pytest.raises(ConversionError, match="output 0 differs"):
        reference.compare("planted", codes, [outputs[0] + 0.01])


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> fx.GraphModule:
    from graphs import graph

    gm = graph(lambda m, x: function(x), x)
    for node in gm.graph.nodes:
        node.meta.pop("tap", None)
    mark_decisions(gm)
    return gm


def test_a_tie_with_an_odd_zero_point_is_counted_and_followed() -> None:
    """0.5 steps: the model rounds 0.5 + 3 to 4, ONNX Runtime 0.5 to 0. What follows is compared on equal terms."""
    x = torch.tensor([[0.5, 1.0, 1.5, 2.5, -0.5]])
    gm = traced(lambda x: bgnn.fake_quant(x, 1.0, 3, 0, 255) * 7.0, x)
    reference = Reference(gm, (x,))
    lower_int8.run(gm)
    codes, outputs = run_with_taps(gm, (x,), reference.shapes)
    assert not torch.equal(outputs[0], reference.outputs[0])
    check = reference.compare("integer", codes, outputs)
    assert (check.codes, check.stepped, check.output_error) == (5, 4, 0.0)


def test_below_a_floor_codes_are_not_told_apart() -> None:
    x = torch.linspace(-3, 3, 25)[:, None]
    gm = traced(lambda x: bgnn.fake_quant(x, 0.1, 4, -128, 127).relu(), x)
    reference = Reference(gm, (x,))
    lower_int8.run(gm)
    codes, outputs = run_with_taps(gm, (x,), reference.shapes)
    (seen,) = codes.values()
    assert seen.floor == 132
    assert int(seen.codes.min()) == 132
    assert reference.compare("integer", codes, outputs).stepped == 0


def test_codes_inside_fused_operators_follow_from_the_others(pair: Pair) -> None:
    reference, gm, graph = pair
    fused = staged(GCN(), graph, kernels="bgnn")
    codes, outputs = run_with_taps(fused, graph, reference.shapes)
    made = {tap.name for node, tap in all_taps(gm) if holds_codes(node)}
    assert len(codes) == len(made) - 6  # two layers' messages and sums, the edges' own numbers, a table before a table
    every = completed(gm, graph, reference.shapes, codes)
    assert reference.compare("target", every, outputs).stepped <= 3
    assert torch.equal(outputs[0], run(gm, *graph))


def test_a_fake_quantiser_that_stays_tells_its_codes() -> None:
    graph = random_graph(40, 160)
    gm = staged(GCN(), graph, target="onnx-x86")
    reference = Reference(staged(GCN(), graph, "traced"), graph)
    codes, outputs = run_with_taps(gm, graph, reference.shapes)
    assert all(torch.equal(codes[name].codes, reference.decisions[name].codes) for name in codes)
    assert reference.compare("target", codes, outputs).stepped == 0
    assert only(gm, bgnn.with_self_loops)
