"""What a conversion made: size, operators, multiply-accumulates by kind, each layer and why, the checks."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx

from bgnn.converter.calibrate import CalibrationReport, FileGap
from bgnn.converter.onnx import inspect as onnx_file
from bgnn.converter.stages import Plan
from bgnn.converter.tflite import inspect as tflite_file
from bgnn.converter.verify import OUTPUT_TOLERANCE, Check, Reference
from bgnn.converter.verify_codes import CodeCheck
from bgnn.passes import domains as dm
from bgnn.passes.graph import PassResult, aten, is_call, shape_of

bgnn = torch.ops.bgnn

BINARY = [bgnn.bconv, bgnn.bconv_bits, bgnn.xor_edge_conv, bgnn.bin_edge_conv, bgnn.dense_pool]
SEARCH = [bgnn.hamming_knn, bgnn.real_knn]
FLOAT = [aten.linear, aten.matmul, aten.bmm, aten.mm]


@dataclasses.dataclass
class Layer:
    """One dot product of the model: what it was, what it became, and why. MACs are multiply-accumulates."""

    name: str
    was: str
    became: str
    binary_macs: int
    float_macs: int
    why: str
    integer_macs: int = 0


@dataclasses.dataclass
class Report:
    """Everything the terminal table and report.json say."""

    name: str
    target: str
    optimize: int
    kernels: str
    bytes: int | None
    operators: dict[str, int]
    macs: dict[str, int]
    peak_activation_bytes: int
    layers: list[Layer]
    rewrites: list[tuple[str, str, int]]
    refusals: list[tuple[str, str, str]]
    checks: Sequence[Check]
    sign_zeros: int
    calibration: CalibrationReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for report.json."""
        return {**dataclasses.asdict(self), "checks": [c.to_json() for c in self.checks]}

    def print(self, console: Console) -> None:
        """The terminal tables."""
        title = f"{self.name}: {self.target} -O{self.optimize}, {self.kernels} kernels"
        table = Table(title=title, title_justify="left", show_header=False)
        if self.bytes is not None:
            table.add_row("file", f"{self.bytes:,} bytes")
        if self.operators:
            table.add_row("operators", ", ".join(f"{n} {c}" for n, c in self.operators.items()))
        total = sum(self.macs.values()) or 1
        macs = [f"{kind} {count / 1e6:,.1f} M ({100 * count / total:.1f}%)" for kind, count in self.macs.items()]
        table.add_row("multiply-accumulates", ", ".join(macs))
        table.add_row("peak activations", f"{self.peak_activation_bytes / 1e6:,.1f} MB")
        if self.sign_zeros:
            table.add_row(
                "sign(0)", f"torch.sign met {self.sign_zeros} exact zeros in samples and weights; the file gives +1"
            )
        for check in self.checks:
            table.add_row(check.what, _check_line(check))
        if self.calibration is not None and self.calibration.file is not None:
            table.add_row("beside the float model", _file_line(self.calibration.file))
        if not self.checks:
            table.add_row("verification", "not verified (--no-verify)")
        console.print(table)
        layers = Table(title="what each dot product became, and why", title_justify="left")
        for heading in ("layer", "was", "became", "M MACs", "why"):
            layers.add_column(heading, overflow="fold", justify="right" if heading == "M MACs" else "left")
        for layer in self.layers:
            count = (layer.binary_macs + layer.integer_macs + layer.float_macs) / 1e6
            layers.add_row(layer.name, layer.was, layer.became, f"{count:,.2f}", layer.why)
        console.print(layers)
        if self.calibration is not None:
            _print_calibration(self.calibration, console)


def _file_line(file: FileGap) -> str:
    rows = f", another class in {file.changed_rows:,} of {file.rows:,} rows" if file.rows else ""
    return f"relative error of the file's output on the samples {file.error:.2%}{rows}"


def _print_calibration(found: CalibrationReport, console: Console) -> None:
    table = Table(title="post-training quantisation: what each activation's 8 bits hold", title_justify="left")
    for heading in (
        "layer",
        "activation",
        "least",
        "largest",
        "beyond\nthe range",
        "error",
        "by it alone,\nat the output",
    ):
        table.add_column(heading, justify="left" if heading in ("layer", "activation") else "right")
    for row in found.activations:
        table.add_row(
            row.layer or "forward", row.what, f"{row.low:.4g}", f"{row.high:.4g}", f"{row.clipped:.2%}",
            f"{row.error:.2%}", f"{row.alone:.2%}",
        )  # fmt: skip
    console.print(table)
    table = Table(title="relative error of each layer, beside the float model", title_justify="left")
    for heading in ("layer", "", "error"):
        table.add_column(heading, justify="right" if heading == "error" else "left")
    for gap in found.layers:
        table.add_row(gap.layer or "forward", gap.what, f"{gap.error:.2%}")
    table.add_row("the output", "", f"{found.output_error:.2%}")
    console.print(table)
    if warning := found.warning():
        console.print(f"[bold]warning:[/bold] {warning}")
    if found.float_accuracy is not None and found.quantised_accuracy is not None:
        console.print(
            f"accuracy on the samples: float {found.float_accuracy:.4f}, quantised {found.quantised_accuracy:.4f}"
        )


def _check_line(check: Check) -> str:
    if not check.compared:
        return check.note
    parts = [
        f"largest output difference {check.output_error:.2g} (of {check.output_scale:.3g}), "
        f"{check.column_error:.1g} of its column (tolerance {OUTPUT_TOLERANCE:g})"
    ]
    if isinstance(check, CodeCheck):
        parts.append(f"{check.codes:,} codes compared, {check.stepped:,} of them one beside the model's at a tie")
        parts.append(f"another class in {check.changed_rows:,} of {check.rows:,} rows")
    if check.signs or check.neighbours:
        parts.append(
            f"{check.signs:,} signs and {check.neighbours:,} neighbours equal"
            if not (check.turned_signs or check.turned_rows)
            else f"{check.signs:,} signs ({check.turned_signs} turned by rounding), {check.neighbours:,} neighbours "
            f"({check.turned_rows} rows nearly tied)"
        )
        parts.append(f"{check.exact:,} of them exact")
    if check.proof.layers:
        parts.append(
            f"{check.proof.layers} folded layers and tables right for all {check.proof.values:,} values there can be"
        )
    if check.proof.sampled:
        parts.append(f"on the samples alone: {', '.join(check.proof.sampled)}")
    if check.note:
        parts.append(check.note)
    return "; ".join(parts)


def build_report(
    gm: fx.GraphModule, semantic: fx.GraphModule | None, log: list[tuple[str, list[tuple[str, PassResult]]]],
    checks: list[Check], reference: Reference | None, plan: Plan, name: str, data: bytes | None,
) -> Report:  # fmt: skip
    """The report of a conversion, complete or stopped early (`data` None)."""
    refusals = [(n, label, why) for _, results in log for n, result in results for label, why in result.refusals]
    layers = _layers(gm, semantic, refusals) if semantic is not None else []
    macs = {"binary": 0, "INT8": 0, "float": 0}
    for node in gm.graph.nodes:
        if is_call(node, *BINARY, bgnn.hamming_knn):
            macs["binary"] += _macs(node)
        elif is_call(node, *FLOAT, bgnn.real_knn):
            macs["float"] += _macs(node)
    return Report(
        name=name,
        target=plan.target,
        optimize=plan.optimize,
        kernels=plan.kernels,
        bytes=None if data is None else len(data),
        operators={} if data is None else _operators(plan.target, data),
        macs=macs,
        peak_activation_bytes=peak_activations(gm),
        layers=layers,
        rewrites=[(stage, n, r.rewrites) for stage, results in log for n, r in results],
        refusals=refusals,
        checks=checks,
        sign_zeros=0 if reference is None else sum(reference.zeros.values()),
    )


def _operators(target: str, data: bytes) -> dict[str, int]:
    return (onnx_file if target.startswith("onnx-") else tflite_file).operators(data)


def _macs(node: fx.Node) -> int:
    """Multiply-accumulates of one dot-product node."""
    x = cast(fx.Node, node.args[0])
    rows, channels = math.prod(shape_of(node)[:-1]), shape_of(node)[-1]
    if is_call(node, bgnn.xor_edge_conv):  # once per node, and once per edge
        fan_in, neighbours = cast(int, node.args[4]), shape_of(cast(fx.Node, node.args[1]))[2]
        return rows * shape_of(cast(fx.Node, node.args[2]))[0] * fan_in * (1 + neighbours)
    if is_call(node, bgnn.bin_edge_conv):
        return rows * channels * shape_of(cast(fx.Node, node.args[2]))[2] * 2 * cast(int, node.args[10])
    if is_call(node, bgnn.dense_pool):
        return math.prod(shape_of(x)[:-1]) * channels * cast(int, node.args[3])
    if is_call(node, *SEARCH):
        size = cast(int, node.args[1]) if is_call(node, bgnn.hamming_knn) else shape_of(x)[-1]
        return rows * shape_of(x)[1] * size
    if is_call(node, *BINARY):
        return rows * shape_of(cast(fx.Node, node.args[1]))[0] * cast(int, node.args[2])
    return rows * channels * shape_of(x)[-1]


def _layers(gm: fx.GraphModule, semantic: fx.GraphModule, refusals: list[tuple[str, str, str]]) -> list[Layer]:
    domains = dm.analyse(semantic)
    layers = []
    for node in semantic.graph.nodes:
        if "layer" not in node.meta or not is_call(node, *FLOAT, bgnn.knn):
            continue
        label = cast(str, node.meta["layer"])
        parts = [n for n in gm.graph.nodes if n.meta.get("layer") == label and is_call(n, *BINARY, *SEARCH, *FLOAT)]
        binary = sum(_macs(n) for n in parts if is_call(n, *BINARY, bgnn.hamming_knn))
        real = sum(_macs(n) for n in parts if is_call(n, *FLOAT, bgnn.real_knn))
        of_bits = binary > 0 and real == 0  # it needs no codes
        why = "; ".join(
            dict.fromkeys(f"{p}: {r}" for p, at, r in refusals if at == label and not (of_bits and p == "lower_int8"))
        )
        reason = why or _reason(node, domains, scaled=of_bits)
        layers.append(Layer(label, _was(node, domains), _became(node, parts), binary, real, reason))
    return layers


def _was(node: fx.Node, domains: dict[fx.Node, dm.Domain]) -> str:
    x = cast(fx.Node, node.args[0])
    shape = "x".join(str(s) for s in shape_of(x))
    if is_call(node, bgnn.knn):
        return f"k-NN ({node.args[2]}), k={node.args[1]}, of {shape}"
    other = cast(fx.Node, node.args[1])
    return f"{domains[x].kind} {shape} x {domains[other].kind} {'x'.join(str(s) for s in shape_of(other))}"


def _became(node: fx.Node, parts: list[fx.Node]) -> str:
    fused = {
        bgnn.hamming_knn: "popcount and selection, fused", bgnn.real_knn: "distances and selection, fused",
        bgnn.xor_edge_conv: "binary, fused from features to bits", bgnn.dense_pool: "binary, fused with the pooling",
        bgnn.bin_edge_conv: "binary, fused from features to features",
    }  # fmt: skip
    for node_of_one, word in fused.items():
        if any(is_call(n, node_of_one) for n in parts):
            return word
    bits = sum(is_call(n, bgnn.bconv_bits) for n in parts)
    dense = sum(is_call(n, bgnn.bconv) for n in parts)
    real = len(parts) - bits - dense
    words = []
    if bits:
        words.append("binary, bits out" if bits == 1 else f"binary, bits out ({bits} thresholds)")
    if dense:
        words.append("binary, float out" if dense == 1 else f"binary, per node and per edge ({dense} products)")
    if real:
        words.append(
            "matrix product + top-k" if is_call(node, bgnn.knn) else f"float ({real} products)" if real > 1 else "float"
        )
    return ", ".join(words) or "removed"


def _reason(node: fx.Node, domains: dict[fx.Node, dm.Domain], scaled: bool) -> str:
    """Why a layer became what it is; `scaled`: it is binary, though what it reads are not signs alone."""
    if is_call(node, bgnn.knn):
        return "features are signs: Hamming distance" if node.args[2] == "hamming" else "features are real"
    x, weight = (domains[cast(fx.Node, a)] for a in node.args[:2])
    if x.kind == weight.kind == "binary":
        return "inputs and weights are signs"
    if scaled:
        return "inputs and weights are signs, with scales"
    if x.kind != "binary":
        return f"its inputs are real{f' since {x.lost}' if x.lost else ''}"
    return "its weights are real"


def peak_activations(gm: fx.GraphModule) -> int:
    """Bytes of live tensors at the worst moment, when each lives from its making to its last use.

    A lower bound of what a runtime's memory planner reaches; views are counted as copies.
    """
    last_use: dict[fx.Node, int] = {}
    order = [n for n in gm.graph.nodes if n.op != "get_attr"]
    for i, node in enumerate(order):
        for source in node.all_input_nodes:
            last_use[source] = i
    live = peak = 0
    sizes: Counter[fx.Node] = Counter()
    for i, node in enumerate(order):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and node.op != "output":
            sizes[node] = value.numel() * (4 if value.dtype == torch.int64 else value.element_size())
            live += sizes[node]
        peak = max(peak, live)
        for source in set(node.all_input_nodes):
            if last_use.get(source) == i:
                live -= sizes[source]
    return peak
