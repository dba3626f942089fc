"""Nodes: made, replaced, tapped, copied."""

from __future__ import annotations

import pytest
import torch
from graphs import Wrapped, aten, bgnn, count, exported, graph, only, outputs, randn, signs
from torch import fx

from bgnn.converter import dialect
from bgnn.converter.sizes import graph_axes
from bgnn.converter.trace import trace
from bgnn.passes import user_code
from bgnn.passes.graph import (
    PassResult,
    Tap,
    above,
    call,
    calls,
    compute_meta,
    constant,
    is_call,
    only_user,
    remove_dead_code,
    replace,
    rewrite,
    shape_of,
    snapshot,
)


def test_tap_decodes_bits_flips_axes_and_shape() -> None:
    traced = signs(2, 40, 3)  # channel-first in the user's model
    flip = signs(40, seed=1)
    stored = dialect.pack((traced.permute(0, 2, 1) * flip).reshape(6, 40)).reshape(2, 3, 2)
    tap = Tap("t", perm=(0, 2, 1), channels=40, flip=flip)
    assert torch.equal(tap.decode(stored, (2, 40, 3)), traced)
    assert torch.equal(Tap("t").decode(traced, (6, 40)), traced.reshape(6, 40))


def test_call_infers_its_type_and_keeps_the_source_line() -> None:
    gm = graph(lambda m, x: torch.relu(x), randn(2, 3))
    relu = only(gm, aten.relu)
    node = call(relu, aten.sum.dim_IntList, relu.args[0], [1], True)
    assert shape_of(node) == (2, 1)
    assert node.meta["val"].device.type == "meta"
    assert node.meta["stack_trace"] == relu.meta["stack_trace"]
    pair = call(relu, bgnn.topk_lowest.default, relu.args[0], 2, 1, True)
    assert [tuple(v.shape) for v in pair.meta["val"]] == [(2, 2), (2, 2)]
    assert [v.dtype for v in pair.meta["val"]] == [torch.float32, torch.int64]


def test_a_call_that_cannot_run_is_refused_when_it_is_made() -> None:
    gm = graph(lambda m, x: torch.relu(x), randn(2, 3))
    relu = only(gm, aten.relu)
    with pytest.raises(RuntimeError):
        call(relu, aten.reshape.default, relu.args[0], [7])


def test_constants_get_legal_unique_names() -> None:
    gm = graph(lambda m, x: torch.relu(x), randn(2, 3))
    relu = only(gm, aten.relu)
    names = [str(constant(relu, torch.ones(2), name).target) for name in ("a.b", "a.b", "a_b", "", "%")]
    assert len(set(names)) == 5
    assert all(name.isidentifier() for name in names)


def test_constant_owns_its_memory() -> None:
    gm = graph(lambda m, x: torch.relu(x), randn(2, 3))
    value = torch.ones(3, 4)
    node = constant(only(gm, aten.relu), value.t(), "c")
    value.zero_()
    assert torch.equal(getattr(gm, str(node.target)), torch.ones(4, 3))


def test_replace_hands_on_tap_and_name() -> None:
    x = randn(2, 3)
    gm = graph(lambda m, x: bgnn.binarize(x) * 2, x)
    old = only(gm, bgnn.binarize)
    name, tap = old.name, old.meta["tap"]
    new = call(old, aten.relu.default, old.args[0])
    replace(old, new)
    assert (new.name, new.meta["tap"]) == (name, tap)
    assert torch.equal(outputs(gm, x)[0], x.relu() * 2)


def test_replace_by_a_node_made_from_the_old_one() -> None:
    x = randn(2, 3)
    gm = graph(lambda m, x: torch.relu(x) + 1, x)
    old = only(gm, aten.relu)
    with gm.graph.inserting_after(old):
        new = gm.graph.call_function(aten.neg.default, (old,))
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    assert torch.equal(outputs(gm, x)[0], -x.relu() + 1)


def test_dead_code_goes_and_inputs_stay() -> None:
    x, y = randn(2, 3), randn(2)
    gm = exported(lambda m, x, y: (x * m.used, y * m.unused), x, y, used=randn(3), unused=randn(2))
    assert count(gm, aten.mul) == 1  # the second output was not asked for
    assert [n.name for n in gm.graph.nodes if n.op == "placeholder"] == ["inputs_0", "inputs_1"]
    assert [name for name, _ in gm.named_buffers()] == ["used"]
    assert remove_dead_code(gm) == 0


def test_snapshot_is_left_alone_by_later_passes() -> None:
    x = randn(2, 3)
    gm = graph(lambda m, x: bgnn.binarize(x) * m.c, x, c=randn(3))
    copy = snapshot(gm)
    assert [n.name for n in copy.graph.nodes] == [n.name for n in gm.graph.nodes]
    node = only(gm, bgnn.binarize)
    node.meta["tap"] = Tap("other")
    replace(only(gm, aten.mul), node)
    remove_dead_code(gm)
    assert not hasattr(gm, "c")
    assert only(copy, bgnn.binarize).meta["tap"].name == node.name
    assert torch.equal(outputs(copy, x)[0], torch.where(x >= 0, 1.0, -1.0) * copy.c)


def test_a_rewrite_takes_the_first_rule_that_gives_anything_until_nothing_changes() -> None:
    def halved(node: fx.Node) -> fx.Node | None:
        number = node.args[1]
        return call(node, aten.add.Tensor, node.args[0], number // 2, like=node) if number > 1 else None

    def never(node: fx.Node) -> fx.Node | None:
        return None

    gm = graph(lambda m, x: aten.add.Tensor(x, 8), randn(3))
    before = snapshot(gm)
    assert rewrite(before, [([aten.add], never), ([aten.mul], halved)], again=True).rewrites == 0
    assert rewrite(before, [([aten.add], never), ([aten.add], halved)]).rewrites == 1
    assert only(before, aten.add).args[1] == 4
    assert rewrite(gm, [([aten.add], halved)], again=True).rewrites == 3
    assert only(gm, aten.add).args[1] == 1


def test_what_a_node_is_computed_from_is_met_once_and_as_far_as_asked() -> None:
    def forward(m, x):
        y = aten.neg.default(x)
        return aten.add.Tensor(aten.relu.default(y), aten.exp.default(y))

    gm = graph(forward, randn(3))
    end = only(gm, aten.add)
    assert sorted(str(n.target) for n in above(end) if n.op == "call_function") == [
        "aten.add.Tensor", "aten.exp.default", "aten.neg.default", "aten.relu.default",
    ]  # fmt: skip
    assert len(list(above(end))) == 5
    assert set(above(end, through=lambda n: n is end)) == {end, *end.all_input_nodes}


def test_is_call_knows_packets_and_overloads() -> None:
    gm = graph(lambda m, x: x + 1, randn(2))
    node = only(gm, aten.add)
    assert is_call(node, aten.add)
    assert is_call(node, aten.add.Tensor)
    assert not is_call(node, aten.add.Scalar, aten.sub)
    assert not is_call(None, aten.add)
    assert not is_call(3.0, aten.add)


def test_only_user() -> None:
    gm = graph(lambda m, x: (x.relu() + x.relu().sum()) * x, randn(2))
    placeholder = next(n for n in gm.graph.nodes if n.op == "placeholder")
    assert only_user(placeholder) is None
    assert is_call(only_user(only(gm, aten.sum)), aten.add)


def test_refusals_are_listed_once_by_the_name_a_person_knows() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Sequential(torch.nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x)

    from bgnn.converter.trace import trace

    node = only(trace(Net(), (randn(2),)), aten.relu)
    line = user_code.place(node).partition(": ")[0].rpartition(":")[2]
    name = f"first.0: torch.nn.functional.relu in ReLU (test_graph.py:{line})"
    result = PassResult()
    result.refuse(node, "why")
    result.refuse(node, "why")
    result.refuse(node, "another")
    assert result.refusals == [(name, "why"), (name, "another")]
    node.meta["layer"] = "the layer"
    result.refuse(node, "why")
    assert result.refusals[-1] == ("the layer", "why")


def test_a_new_slice_with_an_open_bound_is_as_long_as_the_traced_one():
    """The run would take the example's numbers, in which the bound may be past the end."""
    inputs = torch.ones(12, 4), torch.tensor(5)
    axes = graph_axes(inputs)
    program = torch.export.export(
        Wrapped(lambda m, x, first: x.relu()[:first], {}), inputs, dynamic_shapes=(tuple(axes),), strict=False
    )
    gm = trace(program, inputs, (0,), axes)
    old = next(calls(gm.graph, aten.slice))
    for node in (old, call(old, aten.slice.Tensor, *old.args)):
        compute_meta(node)
        assert str(node.meta["val"].shape) == str(old.meta["val"].shape)
        assert str(node.meta["val"].shape[0]) != str(old.args[0].meta["val"].shape[0])
