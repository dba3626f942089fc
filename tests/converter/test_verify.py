"""Verification catches planted errors and names stage and tensor; what rounding explains it lets through and counts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import Wrapped, aten, bgnn, randn, signs, up_to
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from bgnn.converter import api, stages
from bgnn.converter.decisions import DECISION_TOLERANCE, exact_decisions, run_with_taps
from bgnn.converter.eager import EagerModel
from bgnn.converter.errors import ConversionError
from bgnn.converter.trace import trace
from bgnn.converter.verify import Reference
from bgnn.passes.graph import PassResult, all_taps, is_call

X = randn(2, 6, 3)
WEIGHTS = {
    "first": randn(32, 3),
    "w": signs(7, 64),
    "last": randn(4, 7),
    "g": randn(7, seed=1),
    "mu": randn(7, seed=2) * 4,
}


def network(m: Any, x: Tensor) -> Tensor:
    """Real features, signs, Hamming neighbours, an XOR edge layer, a norm, signs, a dense layer."""
    s = bgnn.binarize(F.linear(x, m.first))
    index = (s @ s.transpose(1, 2)).topk(3)[1]
    near = s[torch.arange(2)[:, None, None], index]
    here = s[:, :, None].expand(near.shape)
    h = F.linear(torch.cat([here, -near * here], -1), m.w).amax(2)
    return F.linear(bgnn.binarize((h - m.mu) * m.g), m.last)


def stage_graph(stage: str) -> fx.GraphModule:
    return up_to(stage, network, X, **WEIGHTS)


def reference() -> Reference:
    return Reference(stage_graph("traced"), [X])


def check(gm: fx.GraphModule, what: str = "stage x") -> Any:
    ref = reference()
    taps, outputs = run_with_taps(gm, [X], ref.shapes)
    return ref.compare(what, taps, outputs, exact_decisions(gm))


@pytest.mark.parametrize("stage", stages.STAGES)
def test_untouched_stages_pass(stage: str) -> None:
    found = check(stage_graph(stage))
    assert found.signs == 2 * 6 * 32 + 2 * 6 * 7
    assert found.neighbours == 2 * 6 * 3
    assert (found.turned_signs, found.turned_rows) == (0, 0)
    assert found.output_error <= 1e-5 * found.output_scale
    assert found.exact == (0 if stage == "traced" else 36 if stage == "semantic" else 36 + 84)


PLANTED: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "a flipped weight bit": ("_part_", lambda v: v ^ 1, "signs of"),
    "a bias off by two": ("part_bias", lambda v: v + 2.0, "signs of"),
    "a channel flipped": ("flip_mask", lambda v: v ^ 4, "output 0 differs by"),
    "another last layer": ("last", lambda v: v * 1.001, "output 0 differs by"),
    "another first layer": ("first", lambda v: v.roll(1, 0), "signs of"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_errors_in_constants_name_stage_and_tensor(name: str) -> None:
    part, change, said = PLANTED[name]
    gm = stage_graph("target")
    touched = 0
    for node in gm.graph.nodes:
        if node.op == "get_attr" and part in str(node.target):
            value = getattr(gm, node.target)
            if value.dtype == torch.int32 or part in ("part_bias", "last", "first"):
                setattr(gm, node.target, change(value))
                touched += 1
    assert touched
    with pytest.raises(ConversionError) as error:
        check(gm, "stage target")
    assert str(error.value).startswith("stage target: ")
    assert said in str(error.value)
    if said == "signs of":
        assert any(f"{tap!r}" in str(error.value) for tap in ("binarize", "binarize_1"))


def test_convert_itself_names_the_stage_that_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that negates one binary layer's weights, in each stage in turn."""
    whole = stages.passes_to

    def breaking(at: str) -> Callable[..., Any]:
        def broken(gm: fx.GraphModule) -> PassResult:
            node = next(n for n in gm.graph.nodes if n.op == "get_attr" and n.target.startswith("last"))
            setattr(gm, node.target, getattr(gm, node.target) * -1)
            return PassResult()

        return lambda stage, plan: [*whole(stage, plan), *([("broken", broken)] if stage == at else [])]

    for stage in ("semantic", "integer", "target"):
        monkeypatch.setattr(stages, "passes_to", breaking(stage))
        with pytest.raises(ConversionError, match=rf"^stage {stage}: output 0 differs by"):
            api.convert(Wrapped(network, WEIGHTS), (X,), target="lce-arm64")


def test_a_wrong_traced_stage_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the traced graph: it is compared with the exported one."""
    whole = stages.passes_to

    def broken(gm: fx.GraphModule) -> PassResult:
        node = next(n for n in gm.graph.nodes if n.op == "get_attr" and n.target.startswith("last"))
        setattr(gm, node.target, getattr(gm, node.target) * 1.01)
        return PassResult()

    monkeypatch.setattr(stages, "passes_to", lambda s, p: [*whole(s, p), *([("b", broken)] if s == "traced" else [])])
    with pytest.raises(ConversionError, match=r"^stage traced: output 0 differs by"):
        api.convert(Wrapped(network, WEIGHTS), (X,), target="lce-arm64")


def test_an_emitter_that_writes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = api.emit_tflite

    def wrong(gm: fx.GraphModule, **options: Any) -> bytes:
        node = next(n for n in gm.graph.nodes if n.op == "get_attr" and n.target.startswith("last"))
        kept = getattr(gm, node.target)
        setattr(gm, node.target, kept * 1.01)
        try:
            return whole(gm, **options)
        finally:
            setattr(gm, node.target, kept)

    monkeypatch.setattr(api, "emit_tflite", wrong)
    with pytest.raises(ConversionError, match=r"^emitted file: output 0 differs by"):
        api.convert(Wrapped(network, WEIGHTS), (X,), target="lce-arm64")


# One sign and one search, so that each decision can be planted by hand.
def decide(function: Callable[..., Any], x: Tensor, **constants: Tensor) -> tuple[Reference, str, Tensor]:
    ref = Reference(up_to("traced", function, x, **constants), [x])
    ((name, value),) = ref.decisions.items()
    return ref, name, value


def as_signs(value: Tensor) -> Tensor:
    return torch.where(value, 1.0, -1.0)


def test_a_sign_turned_near_zero_is_counted_and_taken_over() -> None:
    x = randn(4, 3)
    x[1, 2] = 0.5 * DECISION_TOLERANCE * float(x.abs().max())
    ref, name, value = decide(lambda m, x: F.linear(bgnn.binarize(x), m.w), x, w=randn(2, 3))
    other = value.clone()
    other[1, 2] = ~other[1, 2]
    outputs = [F.linear(as_signs(other), randn(2, 3))]
    found = ref.compare("file", {name: other}, outputs, set())
    assert found.turned_signs == 1
    with pytest.raises(ConversionError, match=r"^file: output 0 differs"):
        ref.compare("file", {name: other}, ref.outputs, set())  # its own decision, another's output
    with pytest.raises(ConversionError, match=r"^file: 1 of 12 signs of 'binarize' differ, signs of exact integers"):
        ref.compare("file", {name: other}, outputs, {name})


def test_a_sign_turned_far_from_zero_is_an_error() -> None:
    x = randn(4, 3)
    x[1, 2] = 5 * DECISION_TOLERANCE * float(x.abs().max())
    ref, name, value = decide(lambda m, x: bgnn.binarize(x) * 1.5, x)
    other = value.clone()
    other[1, 2] = ~other[1, 2]
    with pytest.raises(ConversionError, match="file: 1 of 12 signs of 'binarize' differ, one where the number is"):
        ref.compare("file", {name: other}, [as_signs(other) * 1.5], set())


def test_every_sign_turned_is_an_error() -> None:
    ref, name, value = decide(lambda m, x: bgnn.binarize(x) * 1.5, randn(4, 3))
    with pytest.raises(ConversionError, match="12 of 12 signs"):
        ref.compare("file", {name: ~value}, [as_signs(~value) * 1.5], set())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_infinities_and_nan_excuse_nothing(bad: float) -> None:
    """A NaN's sign is -1 by definition, and an infinite neighbour makes no tolerance infinite."""
    x = torch.tensor([[0.5, -0.5, bad]])
    ref, name, value = decide(lambda m, x: bgnn.binarize(x) * 1.5, x)
    for place in range(3):
        other = value.clone()
        other[0, place] = ~other[0, place]
        with pytest.raises(ConversionError, match="1 of 3 signs"):
            ref.compare("file", {name: other}, [as_signs(other) * 1.5], set())


def search(m: Any, x: Tensor) -> Tensor:
    return bgnn.topk_lowest(x, 3, 2, True)[1].float()


SCORES = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]])


def test_equal_neighbours_pass() -> None:
    ref, name, value = decide(search, SCORES)
    assert value.tolist() == [[[0, 1, 2]]]
    assert ref.compare("file", {name: value.int()}, ref.outputs, {name}).neighbours == 3


WRONG = {
    "a farther neighbour": ([0, 1, 5], "differ in 1 rows, by a distance of 3"),
    "all wrong": ([3, 4, 5], "differ in 1 rows, by a distance of 3"),
    "a neighbour twice": ([0, 0, 1], "holds a neighbour twice"),
    "out of range": ([0, 1, 6], "holds an index out of range"),
    "negative": ([0, 1, -1], "holds an index out of range"),
    "far out of range": ([0, 1, 2**31 - 1], "holds an index out of range"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_neighbours(name: str) -> None:
    indices, said = WRONG[name]
    ref, tap, _ = decide(search, SCORES)
    other = torch.tensor([[indices]])
    with pytest.raises(ConversionError, match=f"^file: .*{said}"):
        ref.compare("file", {tap: other}, [other.float()], set())


def test_nearly_tied_neighbours_are_counted_and_taken_over() -> None:
    scores = SCORES.clone()
    scores[0, 0, 3] = 3.0 - 0.5 * DECISION_TOLERANCE
    ref, tap, _ = decide(search, scores)
    for indices in ([0, 1, 3], [1, 0, 2], [2, 1, 0]):
        other = torch.tensor([[indices]])
        found = ref.compare("file", {tap: other}, [other.float()], set())
        assert found.turned_rows == 1
        with pytest.raises(ConversionError, match="their distances are integers"):
            ref.compare("file", {tap: other}, [other.float()], {tap})


def test_infinite_distances_excuse_nothing() -> None:
    """Points kept from being their own neighbours by an infinite distance."""
    scores = SCORES.clone()
    scores[0, 0, 0] = float("-inf")
    ref, tap, value = decide(search, scores)
    assert value.tolist() == [[[1, 2, 3]]]
    for indices in ([1, 2, 5], [0, 1, 2]):
        other = torch.tensor([[indices]])
        with pytest.raises(ConversionError, match="differ in 1 rows"):
            ref.compare("file", {tap: other}, [other.float()], set())


TIED = torch.tensor([[[1.0, 3.0, 3.0, 2.0, 2.0, 2.0]]])


@functools.cache
def tied_search() -> tuple[Reference, str, Tensor]:
    return decide(search, TIED)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_any_choice_is_accepted_only_if_its_scores_are_the_best(indices: list[int]) -> None:
    ref, tap, _ = tied_search()
    other = torch.tensor([[indices]])
    good = len(set(indices)) == 3 and sorted(TIED[0, 0, i].item() for i in indices) == [2, 3, 3]
    if good:
        ref.compare("file", {tap: other}, [other.float()], set())
    else:
        with pytest.raises(ConversionError):
            ref.compare("file", {tap: other}, [other.float()], set())


def outputs_of(function: Callable[..., Any]) -> Reference:
    return Reference(up_to("traced", function, X), [X])


def test_outputs() -> None:
    ref = outputs_of(lambda m, x: x * 2)
    (good,) = ref.outputs
    assert ref.compare("file", {}, [good + 1e-6], set()).output_error <= 2e-6
    for bad, said in (
        (good + 0.01, "output 0 differs by 0.01"),
        (good[:1], r"output 0 has shape \(1, 6, 3\) instead of \(2, 6, 3\)"),
        (good * float("nan"), "output 0 differs by nan"),
        (good.clone().index_fill(0, torch.tensor([0]), float("inf")), "output 0 differs by inf"),
    ):
        with pytest.raises(ConversionError, match=f"^file: {said}"):
            ref.compare("file", {}, [bad], set())


def test_integer_and_infinite_outputs() -> None:
    ref = outputs_of(lambda m, x: torch.cdist(x, x).topk(2)[1])
    wrong = ref.outputs[0].clone()
    wrong[0, 0, 0] += 1
    with pytest.raises(ConversionError, match="differs in 1 of 24 integers"):
        ref.compare("file", {}, [wrong], set())
    ref.compare("file", {}, [ref.outputs[0].int()], set())
    ref = outputs_of(lambda m, x: torch.where(x > 0, float("-inf"), x))
    ref.compare("file", {}, ref.outputs, set())
    with pytest.raises(ConversionError, match="output 0 differs by inf"):
        ref.compare("file", {}, [-ref.outputs[0]], set())


def test_merged_signs_are_both_taken_over() -> None:
    """Two equal signs, one node in the file: its turned sign stands for both."""
    x = randn(4, 3)
    x[0, 0] = 1e-9
    function = lambda m, x: torch.cat([bgnn.binarize(x * 1.5), bgnn.binarize(x * 1.5)], -1) @ m.w  # noqa: E731
    w = signs(6, 2)
    ref = Reference(up_to("traced", function, x, w=w), [x])
    gm = up_to("semantic", function, x, w=w)
    names = [tap.name for _, tap in all_taps(gm)]
    turned = torch.where(x >= 0, 1.0, -1.0)
    turned[0, 0] = -1
    found = ref.compare("file", dict.fromkeys(names, turned >= 0), [torch.cat([turned, turned], -1) @ w], set())
    assert found.turned_signs == len(ref.decisions)


def test_the_rule_for_ties_and_zeros() -> None:
    """The model's own run settles what torch leaves open, and changes nothing else."""
    x = torch.tensor([[2.0, 1, 1, 2, 0, -0.0]])
    for function, expected in (
        (lambda m, x: torch.sign(x), [[1, 1, 1, 1, 1, 1]]),
        (lambda m, x: torch.sgn(x), [[1, 1, 1, 1, 1, 1]]),
        (lambda m, x: x.topk(4)[1], [[0, 3, 1, 2]]),
        (lambda m, x: x.topk(4, -1, False)[1], [[4, 5, 1, 2]]),
        (lambda m, x: x.topk(k=2, dim=1, largest=True, sorted=True)[0], [[2, 2]]),
        (lambda m, x: torch.sort(x, descending=True)[1], [[0, 3, 1, 2, 4, 5]]),
        (lambda m, x: torch.argsort(x), [[4, 5, 1, 2, 0, 3]]),
        (lambda m, x: x + 1, [[3, 2, 2, 3, 1, 1]]),
    ):
        (found,) = EagerModel(Wrapped(function, {}), [0]).outputs([x])
        assert found.tolist() == expected


@pytest.mark.parametrize("spelling", ["sort", "argsort", "topk"])
def test_searches_with_ties_verify_whatever_they_are_called(spelling: str) -> None:
    x = (randn(2, 40, 2) * 1.5).round()  # most distances tie

    def function(m: Any, x: Tensor) -> Tensor:
        d = torch.cdist(x, x)
        index = {
            "sort": lambda: d.sort()[1],
            "argsort": lambda: d.argsort(-1),
            "topk": lambda: d.topk(40, -1, False)[1],
        }
        return x[torch.arange(2)[:, None, None], index[spelling]()[:, :, :5]].amax(2)

    conversion = api.convert(Wrapped(function, {}), (x,), target="tflite-arm64")
    assert conversion.report.checks[-1].neighbours == 2 * 40 * 5


@pytest.mark.parametrize("where", ["data", "weights"])
def test_zeros_of_torch_sign(where: str) -> None:
    x, w = randn(4, 3), randn(2, 3)
    (x if where == "data" else w)[0, :2] = 0.0
    model = Wrapped(lambda m, x: F.linear(torch.sign(x), torch.sign(m.w)), {"w": w})
    conversion = api.convert(model, (x,), target="lce-arm64")
    assert conversion.report.sign_zeros == 2
    with pytest.raises(ConversionError, match=r"torch.sign meets 2 exact zeros .*--sign-zero plus"):
        api.convert(model, (x,), target="lce-arm64", sign_zero="error")


def test_signs_that_settle_zero_themselves_are_no_question() -> None:
    x = torch.zeros(4, 3)
    model = Wrapped(lambda m, x: torch.where(x >= 0, 1.0, -1.0) * 2, {})
    assert api.convert(model, (x,), target="lce-arm64", sign_zero="error").report.sign_zeros == 0
    model = Wrapped(lambda m, x: torch.where(x > 0, 1.0, -1.0) * 2, {})
    conversion = api.convert(model, (x,), target="lce-arm64", sign_zero="error")
    assert conversion.report.sign_zeros == 0
    from bgnn.runtime_bench.runtime.tflite_runner import run_file

    assert conversion.model_bytes is not None
    assert run_file(conversion.model_bytes, [x.numpy()])[0].tolist() == [[-2.0] * 3] * 4


def test_a_tap_that_was_lost_is_not_compared_and_not_counted() -> None:
    gm = stage_graph("target")
    for node in gm.graph.nodes:
        if "tap" in node.meta and node.meta["tap"].name == "binarize":
            del node.meta["tap"]
    assert check(gm).signs == 2 * 6 * 7


def test_a_tap_that_decodes_wrongly_is_found() -> None:
    gm = stage_graph("target")
    node = next(n for n in gm.graph.nodes if "tap" in n.meta and n.meta["tap"].channels == 32)
    node.meta["tap"] = dataclasses.replace(node.meta["tap"], flip=-torch.ones(32))
    with pytest.raises(ConversionError, match="signs of 'binarize' differ"):
        check(gm)


def test_nothing_is_left_unverified_by_accident() -> None:
    """Every decision of the traced graph is compared at the end, in a network with all kinds of them."""
    gm = trace(Wrapped(network, WEIGHTS), (X,))
    names: set[str] = set()
    for stage, _ in stages.walk(gm, stages.Plan("lce-arm64")):
        found = {tap.name for _, tap in all_taps(gm)}
        names = found if stage == "traced" else names
        assert found == names, stage
    assert any(is_call(n, aten.linear, bgnn.bconv) for n in gm.graph.nodes)


def test_signs_of_denormal_numbers_are_refused_on_litert() -> None:
    """LiteRT takes them for 0: `-exp(-9 x) >= 0` is no comparison that it decides as PyTorch does."""
    x = torch.linspace(0, 20, 320).reshape(10, 32)
    model = Wrapped(lambda m, v: F.linear(torch.where(-torch.exp(-9 * v) >= 0, 1.0, -1.0), m.w), {"w": signs(8, 32)})
    with pytest.raises(ConversionError, match=r"signs \(first at .*\) are of numbers nearer to 0 than 1.2e-38"):
        api.convert(model, (x,), target="lce-arm64")
    assert api.convert(model, (x,), target="onnx-int8-x86").model_bytes
