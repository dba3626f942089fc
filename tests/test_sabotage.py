"""The converter is broken in many places, one at a time; each time a conversion on an ordinary example is refused.

A function is compiled anew with one expression exchanged, everywhere it is used, and put back afterwards. Nothing here
is told where the fault is: `convert` runs as for any user, on samples as users have them: a cloud, a classifier's one
row, an undirected graph without loops, isolated nodes or hubs.

What a conversion cannot catch, because it is not on its way, and the test that does:

- the fused edge operators' thresholds on the runtime (only the graph's are proven for all values; samples run them):
  tests/runtime_bench/kernels/test_kernels.py, with every kernel against its reference on each instruction set;
- the aarch64 kernels, which no conversion on x86 runs: tests/runtime_bench/toolchain/aarch64;
- tables of more than 65,536 nodes: tests/runtime_bench/kernels/ort/test_large_graphs.py and, of the
  runtime, test_graphs.py;
- a tolerance or a comparison that is itself wrong: tests/converter/test_verify.py, test_rounding.py, test_eager.py.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_models import GCN
from graphs import bgnn, randn
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv

from bgnn.converter.api import convert
from bgnn.converter.errors import ConversionError
from bgnn.converter.onnx import int8_ops, sign_ops
from bgnn.converter.tflite import lce_ops
from bgnn.models.checkpoint import build_model
from bgnn.passes import (
    fold_batch_norm,
    fold_threshold,
    lower_int8,
    lower_knn,
    pack_bits,
    recognise_aggregation,
    split_edge_linear,
    tabulate,
)
from bgnn.runtime_bench.runtime import graphs

pytestmark = pytest.mark.slow


class Classifier(nn.Module):
    """Two binary layers on one row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Parameter(torch.randn(64, 512)), nn.Parameter(torch.randn(40, 64))
        self.norm, self.act, self.last = nn.BatchNorm1d(64), nn.PReLU(), nn.Linear(40, 3)
        self.norm.running_mean.normal_(0, 20)
        self.norm.weight.data.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.act(F.linear(bgnn.binarize(x), bgnn.binarize(self.first)) * 0.37))
        return self.last(bgnn.binarize(F.linear(bgnn.binarize(x), bgnn.binarize(self.second)) - 0.5))


class Network(nn.Module):
    """One of PyG's layers and a ReLU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.layer(x, edge_index).relu()


def cloud(architecture: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(1)
    model = build_model(
        architecture, classes=4, num_points=32, k=5, embedding=32, channels=[32, 32, 32, 32], mlp=[32, 32]
    )
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
            module.bias.data.normal_()
    return model, (randn(2, 32, 3),)


def graph() -> tuple[Tensor, Tensor]:
    """Twenty nodes in a ring with chords, every edge in both directions."""
    around = torch.arange(20)
    one_way = torch.cat([torch.stack([around, around.roll(-1)]), torch.stack([around, around.roll(-3)])], 1)
    return randn(20, 6), torch.cat([one_way, one_way.flip(0)], 1)


def network(layer: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Network(layer()), graph()


Made = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
CASES: dict[str, tuple[Made, dict[str, Any]]] = {
    "classifier": (lambda: (Classifier(), (randn(1, 512),)), {"target": "lce-arm64"}),
    "classifier on x86": (lambda: (Classifier(), (randn(1, 512),)), {"target": "onnx-int8-x86"}),
    "bf2": (lambda: cloud("bf2"), {"target": "lce-arm64"}),
    "bf1": (lambda: cloud("bf1"), {"target": "lce-arm64"}),
    "rf": (lambda: cloud("rf"), {"target": "lce-arm64"}),
    "codes": (lambda: (GCN(), graph()), {"target": "onnx-int8-x86"}),
    "codes, our kernels": (lambda: (GCN(), graph()), {"target": "onnx-int8-x86", "kernels": "bgnn"}),
    "gcn": (lambda: network(lambda: GCNConv(6, 4)), {"target": "onnx-x86"}),
    "sage": (lambda: network(lambda: SAGEConv(6, 4)), {"target": "onnx-x86"}),
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """In `function`, `right` is exchanged for `wrong`; the conversion that is tried."""

    function: Any
    right: str
    wrong: str
    case: str


FAULTS = {
    "one threshold off by one": Fault(
        fold_threshold._thresholds,
        "thresholds[row, channel] = turn",
        "thresholds[row, channel] = turn + (channel == 1)",
        "classifier",
    ),
    "one threshold off by one on x86": Fault(
        sign_ops.bconv_bits,
        "ones.sum(1) - limits",
        "ones.sum(1) - limits + (np.arange(len(limits)) == 1)",
        "classifier on x86",
    ),
    "one threshold of LCE's off by one": Fault(
        lce_ops.bconv_bits,
        "walk.value(threshold)",
        "walk.constant(walk.array(threshold) + (walk.array(threshold) == walk.array(threshold).max()).astype('i4'))",
        "classifier",
    ),
    "inverted channels forgotten": Fault(
        fold_threshold.run, "torch.where(lower, -1.0, 1.0)", "torch.where(lower, 1.0, 1.0)", "bf1"
    ),
    "flips of a layer's input forgotten": Fault(
        pack_bits._dense, "signs = signs * bits.flip", "signs = signs * 1", "bf2"
    ),
    "a minimum taken for a maximum": Fault(fold_threshold._table, "lower = ~rising", "lower = rising", "bf1"),
    "an edge's two halves exchanged": Fault(split_edge_linear._terms, "sign = -1.0 if", "sign = 1.0 if", "rf"),
    "the node's bias twice": Fault(split_edge_linear._split, "bias = None\n        if", "pass\n        if", "rf"),
    "a norm without its shift": Fault(fold_batch_norm._into_next, "weight @ shift", "weight @ (shift * 0)", "rf"),
    "distances without their squares": Fault(lower_knn._score, '-1.0), "minus_one"', '-0.9), "minus_one"', "rf"),
    "a maximum taken for a minimum": Fault(
        pack_bits._maximum, "lowest = is_call(node, aten.amin)", "lowest = is_call(node, aten.amax)", "bf2"
    ),
    "self-loops kept": Fault(
        graphs.with_self_loops, 'edge_index if loops == "more" else', "edge_index if True else", "gcn"
    ),
    "edges the other way": Fault(
        graphs.tables, "segments(edge_index[target]", "segments(edge_index[1 - target]", "sage"
    ),
    "degrees that overflow": Fault(
        graphs.segments, "counts.astype(np.int32)", "counts.astype(np.uint8).astype(np.int32)", "sage"
    ),
    "nodes without edges read a neighbour's row": Fault(
        graphs.segments, "np.full(size, row_start[-1], dtype=np.int32)", "np.zeros(size, dtype=np.int32)", "sage"
    ),
    "a mean taken for a sum": Fault(
        recognise_aggregation._mean, "bgnn.segment_mean.default", "bgnn.segment_sum.default", "sage"
    ),
    "weights' codes rounded down": Fault(
        lower_int8.weight_codes,
        "torch.round(_faked_weight(weight) / columns)",
        "torch.floor(_faked_weight(weight) / columns)",
        "codes",
    ),
    "a quantiser's range one short": Fault(lower_int8._introduce, "0, high - low)", "0, high - low - 1)", "codes"),
    "one entry of a table": Fault(
        tabulate._table,
        "return value.reshape(256, channels).t().contiguous()",
        "value[200, ..., 2] += 1\n    return value.reshape(256, channels).t().contiguous()",
        "codes, our kernels",
    ),
    "a bias of codes off by a unit": Fault(
        int8_ops._depthwise, "layer.bias", "(layer.bias + np.int32(90) * (layer.bias == layer.bias.max()))", "codes"
    ),
}


@contextmanager
def broken(fault: Fault) -> Iterator[None]:
    """Within the block the function computes something else, for all who call it."""
    function = fault.function
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(fault.right) == 1, f"{function.__name__} is written otherwise now: adapt the fault"
    scope = dict(function.__globals__)
    exec("from __future__ import annotations\n" + source.replace(fault.right, fault.wrong), scope)
    kept = function.__code__
    function.__code__ = scope[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = kept


@pytest.mark.parametrize("case", CASES)
def test_the_examples_convert(case: str) -> None:
    made, options = CASES[case]
    model, inputs = made()
    assert convert(model.eval(), inputs, **options).model_bytes


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_converter_is_found_out(name: str) -> None:
    fault = FAULTS[name]
    made, options = CASES[fault.case]
    model, inputs = made()
    with broken(fault), pytest.raises(ConversionError, match=r"^(stage \w+|emitted file)"):
        convert(model.eval(), inputs, **options)
