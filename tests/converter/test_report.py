"""The report says what is in the file, what each layer became and why, and what verification found."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from graphs import Wrapped, bgnn, exported, randn, signs
from rich.console import Console
from torch import Tensor, nn

from bgnn.converter import api
from bgnn.converter.report import Report, peak_activations

B, N, K, C, OUT, CLASSES = 2, 6, 3, 32, 7, 4
X = randn(B, N, 3)


class Net(nn.Module):
    """A real layer, Hamming neighbours, a binary edge layer, a real layer on bits, a real head."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, C)
        self.edge = nn.Parameter(randn(OUT, 2 * C))
        self.mixed = nn.Linear(OUT, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.sign(self.first(x))
        index = torch.cdist(s, s).topk(K, largest=False)[1]
        near = s[torch.arange(B)[:, None, None], index]
        here = s[:, :, None].expand(near.shape)
        h = torch.sign(F.linear(torch.cat([here, -near * here], -1), torch.sign(self.edge)).amax(2) - 0.5)
        return self.head(self.mixed(h).relu().amax(1))


def report(optimize: int = 1, target: str = "lce-arm64", **options: Any) -> Report:
    return api.convert(Net(), (X,), target=target, optimize=optimize, name="net", **options).report


def test_multiply_accumulates_are_counted_by_kind() -> None:
    naive = report(0)
    edge, first, mixed, head = B * N * K * 2 * C * OUT, B * N * 3 * C, B * N * OUT * 5, B * 5 * CLASSES
    search = B * N * N * C
    assert naive.macs == {"binary": edge, "INT8": 0, "float": first + mixed + head + search}
    split = report(1)
    assert split.macs["binary"] == B * N * C * OUT + B * N * K * C * OUT, "the node's half once per node"
    assert split.macs["float"] == first + mixed + head + search
    plain = report(0, "tflite-arm64")
    assert plain.macs == {"binary": 0, "INT8": 0, "float": edge + first + mixed + head + search}


def test_each_layer_what_it_was_what_it_became_and_why() -> None:
    layers = {layer.name: layer for layer in report(1).layers}
    assert set(layers) >= {"first.weight", "edge", "mixed.weight", "head.weight"}
    assert len(layers) == 5
    edge = layers["edge"]
    assert edge.was == f"binary {B}x{N}x{K}x{2 * C} x binary {OUT}x{2 * C}"
    assert edge.became.startswith("binary")
    assert (edge.binary_macs > 0, edge.float_macs) == (True, 0)
    assert layers["first.weight"].became == "float"
    assert layers["first.weight"].why == "its inputs are real"
    assert layers["mixed.weight"].why.endswith("binary input, but real weights")
    (search,) = (layer for layer in layers.values() if layer.was.startswith("k-NN"))
    assert search.was == f"k-NN (hamming), k={K}, of {B}x{N}x{C}"
    assert search.why == "features are signs: Hamming distance"
    assert search.became == "matrix product + top-k"


def test_where_a_tensor_stopped_being_binary_is_said() -> None:
    model = Wrapped(lambda m, x: F.linear((bgnn.binarize(x) * x).tanh(), m.w), {"w": signs(4, 3)})
    (layer,) = api.convert(model, (X,), target="lce-arm64").report.layers
    assert layer.why.startswith("its inputs are real since Tensor.mul (at ")
    assert "test_report.py" in layer.why


def test_a_float_network_for_an_8_bit_target_is_told_so() -> None:
    model = Wrapped(lambda m, x: F.linear(x, m.w), {"w": randn(4, 3)})
    said: list[str] = []
    found = api.convert(model, (X,), target="onnx-int8-x86", progress=said.append).report
    assert len(found.warnings) == 1
    assert "nothing became 8-bit or binary" in found.warnings[0]
    assert any(line.startswith("warning: nothing became") for line in said)
    binary = Wrapped(lambda m, x: F.linear(bgnn.binarize(x), m.w), {"w": signs(4, 3)})
    assert api.convert(binary, (X,), target="onnx-int8-x86").report.warnings == []


def test_quantisers_that_stay_float_are_counted_with_their_lines() -> None:
    def coded(m: Any, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, 0.001, 0, -2048, 2047)  # 12 bits
        return F.linear(torch.fake_quantize_per_tensor_affine(F.linear(x, m.w), 0.05, 0, -128, 127), m.v)

    found = api.convert(Wrapped(coded, {"w": randn(4, 3), "v": randn(3, 4)}), (X,), target="onnx-int8-x86").report
    assert len(found.not_understood) == 1
    assert "fake_quantize_per_tensor_affine" in found.not_understood[0]
    assert "test_report.py" in found.not_understood[0]
    assert found.layers[0].was.startswith("12-bit")


def test_refusals_reach_the_layer() -> None:
    """A sign whose number is read elsewhere stays float, and the report says so."""
    model = Wrapped(lambda m, x: (lambda h: torch.sign(h) + h)(F.linear(bgnn.binarize(x), m.w)), {"w": signs(4, 3)})
    found = api.convert(model, (X,), target="lce-arm64").report
    assert any("is read as a number elsewhere" in why for _, _, why in found.refusals)


def test_sizes_operators_and_checks() -> None:
    conversion = api.convert(Net(), (X,), target="lce-arm64", name="net")
    found = conversion.report
    assert conversion.model_bytes is not None
    assert found.bytes == len(conversion.model_bytes)
    assert found.operators["LceQuantize"] >= 1
    assert found.operators["LceBconv2d"] >= 1
    assert sum(found.operators.values()) > 10
    assert [c.what for c in found.checks] == [
        "stage traced", "stage semantic", "stage integer", "stage target", "emitted file",
    ]  # fmt: skip
    assert found.checks[-1].signs == B * N * (C + OUT)
    assert found.checks[-1].neighbours == B * N * K
    assert found.checks[-1].exact == B * N * (OUT + K)
    names = {name for _, name, _ in found.rewrites}
    assert {"recognise_knn", "recognise_gather", "fold_threshold", "pack_bits"} <= names
    by_name = {(stage, name): count for stage, name, count in found.rewrites if count}
    assert by_name["semantic", "recognise_knn"] == 1
    assert by_name["traced", "recognise_binarize"] >= 3


def test_json() -> None:
    found = report()
    data = json.loads(json.dumps(found.to_json()))
    assert data["name"] == "net"
    assert (data["target"], data["optimize"]) == ("lce-arm64", 1)
    assert data["bytes"] == found.bytes
    assert data["macs"] == found.macs
    assert data["checks"][-1]["what"] == "emitted file"
    assert data["layers"][0].keys() == {"name", "was", "became", "binary_macs", "float_macs", "integer_macs", "why"}
    assert data["sign_zeros"] == 0


def printed(found: Report) -> str:
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    found.print(console)
    return console.export_text()


def test_the_terminal_table() -> None:
    found = report()
    text = printed(found)
    parts = ["net: lce-arm64 -O1", f"{found.bytes:,} bytes", "LceBconv2d", "multiply-accumulates", "peak activations"]
    parts += [
        found.inputs,
        "emitted file",
        "largest output difference",
        "edge",
        "k-NN (hamming)",
        "its inputs are real",
    ]
    for part in parts:
        assert part in text, part
    assert "not verified" not in text


def test_without_verification_the_report_says_so() -> None:
    found = report(verify=False)
    assert found.checks == []
    assert "not verified" in printed(found)


def test_zeros_of_torch_sign_are_a_line() -> None:
    model = Wrapped(lambda m, x: F.linear(torch.sign(x), m.w), {"w": randn(4, 3)})
    found = api.convert(model, (torch.zeros(2, 3),), target="lce-arm64").report
    assert found.sign_zeros == 6
    assert "torch.sign met 6 exact zeros" in printed(found)


def test_stopped_early() -> None:
    found = report(stop_after="traced")
    assert (found.bytes, found.operators, found.layers) == (None, {}, [])
    printed(found)
    assert len(report(stop_after="semantic").layers) == 5


def test_peak_memory_by_hand() -> None:
    gm = exported(lambda m, x: (x * 2).sum(1) + m.c, torch.ones(10, 100), c=torch.ones(10))
    # x and x*2 together: 8000 bytes; the sum beside x*2: 4040.
    assert peak_activations(gm) == 8000
    gm = exported(lambda m, x: (x.relu(), x.argmax(1)), torch.ones(10, 100), outputs=2)
    # x, its relu, and the indices, which are int32 in the file
    assert peak_activations(gm) == 8000 + 40


def test_signs_that_no_layer_is_made_of() -> None:
    model = Wrapped(lambda m, x: F.linear(torch.where(x >= 0, 1.0, -1.0), m.w), {"w": randn(4, 3)})
    found = api.convert(model, (randn(2, 6, 3),), target="onnx-int8-x86").report
    assert found.warnings == [
        "nothing became 8-bit or binary, although the model has signs or quantisers: the table of layers says why"
    ]


def test_what_each_layer_became_has_the_tensors_names() -> None:
    found = report(1)
    assert set(found.nodes) >= {layer.name for layer in found.layers if layer.became != "removed"}
    names = [name for names in found.nodes.values() for name in names]
    assert len(names) == len(set(names))


def test_sums_over_edges_say_what_they_sum() -> None:
    def forward(m: Any, x: Tensor, edge_index: Tensor) -> Tensor:
        row, col = edge_index
        least = x.new_zeros(x.shape).scatter_reduce(0, col[:, None].expand(-1, 8), x[row], "amin", include_self=False)
        signs = torch.where(x > 0, 1.0, -1.0)[row]
        most = x.new_zeros(x.shape).scatter_reduce(0, col[:, None].expand(-1, 8), signs, "amax", include_self=False)
        votes = torch.zeros_like(x).index_add(0, col, signs)
        return least + 2 * most + votes

    edges = torch.randint(0, 20, (2, 60), generator=torch.Generator().manual_seed(0))
    layers = api.convert(Wrapped(forward, {}), (randn(20, 8), edges), target="onnx-int8-x86").report.layers
    assert sorted((layer.was.split(",")[0], layer.why) for layer in layers) == [
        ("maximum over edges", "its messages are signs, and their maxima float"),
        ("minimum over edges", "its messages are real"),
        ("sum over edges", "its messages are signs, and their sums float"),
    ]


def test_8_bit_inputs_and_weights_of_signs() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        codes = (x / 0.03).round().clamp(-128, 127) * 0.03
        return F.linear(codes.amax(1), torch.sign(m.w) * m.w.abs().mean())

    found = api.convert(Wrapped(forward, {"w": randn(5, 12)}), (randn(7, 3, 12),), target="onnx-int8-x86").report
    assert [(layer.became, layer.why) for layer in found.layers] == [
        ("INT8, float out", "inputs are quantised and weights are signs")
    ]
    assert found.layers[0].was.startswith("8-bit 7x12 x ")
    assert found.macs["float"] == 0


def test_a_depthwise_convolution_of_window_1_is_listed() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        signs = torch.where(x @ m.first > 0, 1.0, -1.0).transpose(1, 2)
        return F.conv1d(signs, torch.sign(m.w), groups=16).amax(2)

    found = api.convert(
        Wrapped(forward, {"first": randn(3, 16), "w": randn(16, 1, 1)}), (X,), target="lce-arm64"
    ).report
    layer = found.layers[-1]
    assert (layer.was, layer.became) == (f"depthwise binary {B}x{N}x16 x binary 16", "float product")
    assert "no dot product" in layer.why
