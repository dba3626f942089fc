"""Each stage is a spec; leaving it with another op is an error that names the op and its place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graphs import aten, bgnn, check_meta, count, exported, graph, outputs, randn
from torch import Tensor, nn

from bgnn.converter import stages
from bgnn.converter.errors import ConversionError
from bgnn.converter.trace import trace
from bgnn.passes import ops
from bgnn.passes.graph import all_taps, is_call
from bgnn.passes.user_code import where

X = randn(2, 6, 3)


class Edge(nn.Module):
    """A binary edge layer with its own k-NN, small."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 32)
        self.weight = nn.Parameter(randn(33, 64))
        self.norm = nn.BatchNorm1d(33)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.sign(self.first(x))
        index = torch.cdist(s, s).topk(3, largest=False)[1]
        near = s[torch.arange(2)[:, None, None], index]
        here = s[:, :, None].expand(near.shape)
        h = F.linear(torch.cat([here, -near * here], -1), torch.sign(self.weight))
        return torch.sign(self.norm(h.amax(2).transpose(1, 2))).mean(2)


@pytest.mark.parametrize("optimize", [0, 1])
@pytest.mark.parametrize("target", stages.TARGETS)
def test_every_stage_holds_only_its_ops_and_computes_the_same(target: str, optimize: int) -> None:
    torch.manual_seed(0)
    gm = trace(Edge(), (X,))
    expected = None
    seen = []
    for stage, results in stages.walk(gm, stages.Plan(target, optimize)):
        seen.append(stage)
        check_meta(gm, X)
        allowed = stages.spec(stage, stages.Plan(target, optimize))
        assert allowed is None or {ops.name_of(n.target) for n in gm.graph.nodes if n.op == "call_function"} <= allowed
        assert all(result.rewrites >= 0 for _, result in results)
        found = outputs(gm, X)[0]
        expected = found if expected is None else expected
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert len({tap.name for _, tap in all_taps(gm)}) == 3, "two signs and one choice of neighbours"
    assert tuple(seen) == stages.STAGES


def test_what_the_levels_are_for() -> None:
    torch.manual_seed(0)
    found = {}
    for optimize in (0, 1):
        gm = trace(Edge(), (X,))
        list(stages.walk(gm, stages.Plan("lce-arm64", optimize)))
        found[optimize] = (count(gm, bgnn.bconv, bgnn.bconv_bits), count(gm, aten.bitwise_xor))
    assert found[0][0] == 1, "the layer is binary without optimisation too"
    assert found[1][0] >= 1
    assert found[0][1] == 0 < found[1][1], "with it, edges are products of bits"
    gm = trace(Edge(), (X,))
    list(stages.walk(gm, stages.Plan("tflite-arm64")))
    assert count(gm, bgnn.bconv, bgnn.pack) == 0, "builtins only"


def test_an_unknown_op_is_named_with_its_line_and_the_way_out() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erfinv(x.clamp(-0.5, 0.5))

    with pytest.raises(ConversionError) as error:
        list(stages.walk(trace(Net(), (X,)), stages.Plan("lce-arm64")))
    line = str(error.value)
    assert line.startswith("torch.erfinv is not supported by lce-arm64 (at ")
    assert "test_stages.py:" in line
    assert "torch.erfinv(x.clamp(-0.5, 0.5))" in line
    assert line.endswith("rewrite this line with the operations of docs/ops.md, or do it before the model")
    assert "\n" not in line


def test_the_users_line_and_not_torchs() -> None:
    """Inside torch.nn the line is torch's own; the user's is where the module was called."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.CELU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)  # here

    gm = trace(Net(), (X,))
    places = [where(n) for n in gm.graph.nodes if n.op == "call_function"]
    assert all("test_stages.py" in p and "self.act(x)" in p for p in places), places


def test_a_node_without_a_trace_has_no_place() -> None:
    gm = graph(lambda m, x: x.relu(), X)
    node = next(n for n in gm.graph.nodes if is_call(n, aten.relu))
    node.meta.pop("stack_trace", None)
    assert where(node) == ""
    assert stages.unsupported(node).startswith("torch.relu is not supported: rewrite")


def test_distances_of_another_order_are_refused_by_name() -> None:
    with pytest.raises(ConversionError, match="cdist"):
        list(stages.walk(exported(lambda m, x: torch.cdist(x, x, p=1.0), X), stages.Plan("tflite-arm64")))


def test_decisions_are_marked_once_each() -> None:
    gm = graph(
        lambda m, x: bgnn.binarize(x) + bgnn.topk_lowest(x, 3, 2, True)[1] + bgnn.topk_lowest(x, 3, 1, True)[0][:, :1],
        X,
    )
    taps = {tap.name: node for node, tap in all_taps(gm)}
    assert len(taps) == 2, "a sign and the indices; values alone decide nothing"


def test_layers_are_named_by_their_weights() -> None:
    torch.manual_seed(0)
    gm = trace(Edge(), (X,))
    for stage, _ in stages.walk(gm, stages.Plan("lce-arm64")):
        if stage == "semantic":
            names = [n.meta["layer"] for n in gm.graph.nodes if "layer" in n.meta]
            assert [n for n in names if "." in n or n == "weight"] == ["first.weight", "weight"]
            assert len(names) == 3
            break
