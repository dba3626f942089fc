"""One wrong threshold, weight or table entry is refused, however seldom the samples meet it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_models import GCN, random_graph
from graphs import Wrapped, bgnn, randn, signs
from torch import Tensor, nn
from torch_geometric.utils import softmax

from bgnn.converter import api, stages
from bgnn.converter.calibrate import Calibration
from bgnn.converter.errors import ConversionError
from bgnn.converter.onnx import int8_ops
from bgnn.converter.trace import trace
from bgnn.converter.verify_layers import prove_layers
from bgnn.passes import fold_threshold, fuse_xor_edge_conv, tabulate
from bgnn.passes.graph import constant, snapshot

TARGETS = [("lce-arm64", "stock"), ("onnx-int8-x86", "stock"), ("onnx-int8-x86", "bgnn"), ("lce-arm64", "bgnn")]


class Classifier(nn.Module):
    """Two binary layers on one row: each channel meets one integer of 513."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Parameter(torch.randn(64, 512)), nn.Parameter(torch.randn(40, 64))
        self.norm, self.act, self.last = nn.BatchNorm1d(64), nn.PReLU(), nn.Linear(40, 3)
        self.norm.running_mean.normal_(0, 20)
        self.norm.weight.data.normal_()
        self.norm.bias.data.normal_(0, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.act(F.linear(bgnn.binarize(x), bgnn.binarize(self.first)) * 0.37))
        return self.last(bgnn.binarize(F.linear(bgnn.binarize(x), bgnn.binarize(self.second)) - 0.5))


X = randn(1, 512)


def one_channel_off(change: int, channel: int = 5) -> Callable[..., Any]:
    whole = fold_threshold._thresholds

    def thresholds(table: Tensor, *rest: Any) -> Any:
        flips, found = whole(table, *rest)
        row = int((found[:, channel] < fold_threshold.NEVER).nonzero()[0])
        found = found.clone()
        found[row, channel] += change
        return flips, found

    return thresholds


@pytest.mark.parametrize("change", [1, -1])
@pytest.mark.parametrize(("target", "kernels"), TARGETS)
def test_a_threshold_off_by_one(target: str, kernels: str, change: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done = api.convert(Classifier().eval(), (X,), target=target, kernels=kernels)
    assert done.report.checks[-2].proof.layers == 2
    assert done.report.checks[-2].proof.values == 513 * 64 + 65 * 40
    monkeypatch.setattr(fold_threshold, "_thresholds", one_channel_off(change))
    with pytest.raises(ConversionError, match=r"^stage integer: the thresholds of .* channel 5 has the other sign"):
        api.convert(Classifier().eval(), (X,), target=target, kernels=kernels)


def test_a_weight_of_another_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fold_threshold.binary_rows

    def wrong(weight: Tensor) -> Any:
        found = whole(weight)
        if found is not None and weight.shape == (64, 512):
            found[0][7, 300] *= -1
        return found

    monkeypatch.setattr(fold_threshold, "binary_rows", wrong)
    with pytest.raises(ConversionError, match=r"1 of 32768 weights of the layer before .* are wrong"):
        api.convert(Classifier().eval(), (X,), target="lce-arm64")


@pytest.mark.parametrize(("target", "kernels"), TARGETS)
def test_an_emitter_that_writes_another_threshold(target: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is right, the file is not: each layer is run on the runtime on both sides of its thresholds."""
    name = "emit_tflite" if target == "lce-arm64" else "emit_onnx"
    whole = getattr(api, name)

    def wrong(gm: Any, **options: Any) -> bytes:
        nodes = [n for n in gm.graph.nodes if "bconv_bits" in str(n.target)]
        kept = {node.args[3].target: getattr(gm, node.args[3].target) for node in nodes}
        for key, value in kept.items():
            setattr(gm, key, value + (torch.arange(len(value)) == 3).int())
        try:
            return whole(gm, **options)
        finally:
            for key, value in kept.items():
                setattr(gm, key, value)

    monkeypatch.setattr(api, name, wrong)
    with pytest.raises(ConversionError, match=r"^emitted file: .*(thresholds of .*channel 3|signs of)"):
        api.convert(Classifier().eval(), (X,), target=target, kernels=kernels)


def edges(m: Any, x: Tensor) -> Tensor:
    """An XOR edge layer (paper, Eq. 17), its neighbours by Hamming distance."""
    s = bgnn.binarize(x)
    near = s[torch.arange(1)[:, None, None], (s @ s.transpose(1, 2)).topk(3)[1]]
    here = s[:, :, None].expand(near.shape)
    h = F.linear(torch.cat([-near * here, here], -1), m.w)
    return bgnn.binarize(((h - m.mu) * m.g).amax(2)) * m.g


EDGES = {"w": signs(16, 64), "mu": randn(16, seed=1) * 9, "g": randn(16, seed=2)}


@pytest.mark.parametrize("kernels", ["stock", "bgnn"])
def test_edge_layers_split_and_fused(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(1, 8, 32)
    done = api.convert(Wrapped(edges, EDGES), (x,), target="lce-arm64", kernels=kernels)
    assert (done.report.checks[-2].proof.layers, done.report.checks[-2].proof.sampled) == (1, ())
    monkeypatch.setattr(fold_threshold, "_thresholds", one_channel_off(1))
    with pytest.raises(ConversionError, match=r"thresholds of .* channel 5|signs of"):
        api.convert(Wrapped(edges, EDGES), (x,), target="lce-arm64", kernels=kernels)


def test_halves_in_the_other_order_are_the_same_layer() -> None:
    """The fused operator wants the node's half first; what it is not is another weight."""
    gm = trace(Wrapped(edges, EDGES), (randn(1, 8, 32),))
    for stage, _ in stages.walk(gm, stages.Plan("lce-arm64", kernels="bgnn")):
        if stage == "traced":
            traced = snapshot(gm)
    assert prove_layers(traced, gm, "x").layers == 1
    assert fuse_xor_edge_conv.run(gm).rewrites == 0
    node = next(n for n in gm.graph.nodes if "xor_edge_conv" in str(n.target))
    words = getattr(gm, node.args[2].target).clone()
    words[2, 1] ^= 16
    node.args = (*node.args[:2], constant(node, words, "wrong"), *node.args[3:])
    with pytest.raises(ConversionError, match="x: 1 of 1024 weights"):
        prove_layers(traced, gm, "x")


@pytest.mark.parametrize("kernels", ["stock", "bgnn"])
def test_a_table_with_one_wrong_entry(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(20, 70)
    done: Any = api.convert(GCN().eval(), graph, target="onnx-int8-x86", kernels=kernels)
    assert sum(check.proof.layers for check in done.report.checks if check.what == "stage target") >= 1
    whole = tabulate._table

    def wrong(chain: Any) -> Any:
        table = whole(chain)
        if table is not None:
            table[2, 250] -= 2
        return table

    monkeypatch.setattr(tabulate, "_table", wrong)
    monkeypatch.setattr(tabulate, "depthwise", lambda table, channels: True)
    with pytest.raises(ConversionError, match=r"^stage target: the table of codes .* in channel 2 for input 250"):
        api.convert(GCN().eval(), graph, target="onnx-int8-x86", kernels=kernels)


def test_a_depthwise_layer_with_another_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = int8_ops.depthwise

    def wrong(tables: np.ndarray, channels: int) -> Any:
        found = whole(tables, channels)
        if found is not None:
            found.bias[-1] += 200
        return found

    monkeypatch.setattr(int8_ops, "depthwise", wrong)
    with pytest.raises(ConversionError, match=r"^emitted file: (the table of codes of|.* codes of)"):
        api.convert(GCN().eval(), random_graph(20, 70), target="onnx-int8-x86")


class Softened(nn.Module):
    """Sums as GENConv has them, of relu(h[j]) + 1e-7: calibrated, two quantisers behind gathered codes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.lin(x)
        message = h[edge_index[0]].relu() + 1e-7
        share = softmax(message, edge_index[1], num_nodes=x.size(0))
        return self.last(h + torch.zeros_like(h).index_add(0, edge_index[1], message * share))


def test_a_table_of_several_quantisers_behind_gathered_rows() -> None:
    """It stands for all of them, from the codes that are gathered: none of its entries is wrong."""
    x, edges = random_graph(20, 70)
    samples = Calibration([{"x": x, "edge_index": edges}])
    found = api.convert(Softened().eval(), (x, edges), target="onnx-int8-x86", calibration=samples)
    proof = next(check.proof for check in found.report.checks if check.what == "stage target")
    assert proof.layers >= 1
    assert proof.sampled == ()
