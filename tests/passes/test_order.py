"""The order of the list of passes, held against what each pass says it needs and makes.

`NEEDS` and `MAKES` of a pass name ops of the dialect, or a form in words ("sign(x - t)"). A pass that stands before the
one that makes what it looks for finds nothing and says nothing: its layers are lost in silence.
"""

from __future__ import annotations

import importlib
from collections import Counter

import pytest
import torch
from graph_models import GCN, TorchQuantizer, random_graph
from graphs import randn
from torch import fx, nn

from bgnn.converter import stages
from bgnn.converter.sizes import graph_axes
from bgnn.converter.targets import KERNELS, STAGES, TARGETS
from bgnn.converter.trace import trace, uncached
from bgnn.models.checkpoint import build_model
from bgnn.passes import ops

PLANS = [
    stages.Plan(target, optimize, kernels)
    for target in TARGETS
    for optimize in (0, 1)
    for kernels in KERNELS
    if optimize or kernels == "stock"
]
# What a pass writes with other ops, or a form that only a later pass reads: made in vain where none comes after.
PASSING = {ops.name_of(op).removeprefix("bgnn.") for op in ops.having("owed")} | {"rows of edges"}


def declared(name: str, what: str) -> tuple[str, ...]:
    found = getattr(importlib.import_module(f"bgnn.passes.{name}"), what, ())
    assert isinstance(found, tuple)
    return found


def wrong(steps: list[str]) -> list[str]:
    """What is out of order in a list of passes."""
    found = []
    makers: dict[str, list[int]] = {}
    needers: dict[str, list[int]] = {}
    for place, name in enumerate(steps):
        for what in declared(name, "MAKES"):
            makers.setdefault(what, []).append(place)
        for what in declared(name, "NEEDS"):
            needers.setdefault(what, []).append(place)
    for what, places in needers.items():
        for name in dict.fromkeys(steps[place] for place in places):
            others = [place for place in makers.get(what, []) if steps[place] != name]
            if others and steps.index(name) < min(others):
                found.append(f"{name} needs {what}, which {steps[min(others)]} makes after it")
    for what in PASSING & makers.keys():
        last = max(makers[what])
        if max(needers.get(what, [-1])) <= last:
            found.append(f"{steps[last]} makes {what}, which no pass after it needs")
    return found


def whole(plan: stages.Plan) -> list[str]:
    return [name for stage in STAGES for name, _ in stages.passes_to(stage, plan)]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.target}-{plan.optimize}-{plan.kernels}")
def test_every_list_is_in_order(plan: stages.Plan) -> None:
    assert wrong(whole(plan)) == []


@pytest.mark.parametrize(
    ("kernels", "name", "before"),
    [
        ("stock", "split_xor_edge", "fold_threshold"),
        ("bgnn", "fuse_bin_edge_conv", "fold_sign"),
        ("bgnn", "fuse_xor_edge_conv", "fold_threshold"),
        ("stock", "recognise_aggregation", "unpack_edges"),
        ("stock", "fold_batch_norm", "channels_last"),
        ("bgnn", "fuse_aggregation", "tabulate"),
    ],
)
def test_a_pass_moved_too_far_up_is_seen(kernels: str, name: str, before: str) -> None:
    steps = whole(stages.Plan("onnx-int8-x86", 1, kernels))
    steps.remove(name)
    steps.insert(steps.index(before), name)
    assert any(line.startswith(f"{name} needs") for line in wrong(steps)), wrong(steps)


def test_a_pass_moved_too_far_down_is_seen() -> None:
    steps = whole(stages.Plan("lce-arm64"))
    steps = [*[name for name in steps if name != "fold_threshold"], "fold_threshold"]
    assert "fold_threshold makes dot_threshold, which no pass after it needs" in wrong(steps)


def counted(gm: fx.GraphModule) -> Counter[str]:
    return Counter(ops.name_of(node.target) for node in gm.graph.nodes if node.op == "call_function")


def network(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], bool]:
    torch.manual_seed(0)
    if name == "gcn":
        return GCN(TorchQuantizer).eval(), random_graph(20, 70), True
    settings = {} if name == "dgcnn" else {"stage": 3, "knn": "hamming" if name == "bf2" else "l2"}
    model = build_model(name, k=4, channels=[32] * 4, embedding=64, classes=5, num_points=16, **settings)
    return model.eval(), (randn(1, 16, 3),), False


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["gcn", "dgcnn", "rf", "bf2"])
def test_what_passes_say_they_make_is_what_they_make(name: str, kernels: str) -> None:
    model, inputs, is_open = network(name)
    with uncached(model):
        gm = trace(model, inputs, (0,), graph_axes(inputs) if is_open else None)
    plan = stages.Plan("onnx-int8-x86", 1, kernels)
    for stage in STAGES:
        for step, run in stages.passes_to(stage, plan):
            before = counted(gm)
            run(gm)
            made = {op.removeprefix("bgnn.") for op, count in counted(gm).items() if count > before[op]}
            known = {
                op.removeprefix("bgnn.") for _, rows in ops.TRAITS for op in map(ops.name_of, rows) if "bgnn." in op
            }
            assert made & known <= set(declared(step, "MAKES")), step
        if stage == "traced":
            stages.mark_decisions(gm)
