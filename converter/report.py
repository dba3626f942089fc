"""What a conversion made: size, operators, multiply-accumulates by kind, each layer and why, the checks."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, fx

from bgnn.converter.calibrate import CalibrationReport, FileGap
from bgnn.converter.file_inputs import dims_of, symbols_of
from bgnn.converter.onnx import inspect as onnx_file
from bgnn.converter.stages import Plan
from bgnn.converter.targets import TARGETS
from bgnn.converter.tflite import inspect as tflite_file
from bgnn.converter.verify import OUTPUT_TOLERANCE, Check
from bgnn.passes import domains as dm
from bgnn.passes import user_code
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.graph import PassResult, aten, is_call, is_constant, is_static, module_of, shape_of, value_of
from bgnn.runtime_bench.runtime.padded import padding_of

bgnn = torch.ops.bgnn

BINARY = [bgnn.bconv, bgnn.bconv_bits, bgnn.xor_edge_conv, bgnn.bin_edge_conv, bgnn.dense_pool]
SEARCH = [bgnn.hamming_knn, bgnn.real_knn]
FLOAT = [aten.linear, aten.matmul, aten.bmm, aten.mm]
INTEGER = [bgnn.q_linear, bgnn.q_linear_float]
SUMS = [bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max]
INTEGER_SUMS = [bgnn.q_segment_sum, bgnn.q_segment_sum_float, bgnn.q_segment_mean, bgnn.q_segment_max]
FUSED_SUMS = [bgnn.aggregate, bgnn.gat_aggregate]
FUSED_INTEGER_SUMS = [bgnn.q_aggregate, bgnn.q_gat_aggregate]
ON_EDGES = [*SUMS, *INTEGER_SUMS, *FUSED_SUMS, *FUSED_INTEGER_SUMS]
# Everything that multiplies and accumulates, by what it is counted as.
KINDS: dict[str, list[Any]] = {
    "binary": [*BINARY, bgnn.hamming_knn],
    "INT8": [*INTEGER, *INTEGER_SUMS, *FUSED_INTEGER_SUMS],
    "float": [*FLOAT, *SUMS, *FUSED_SUMS, bgnn.real_knn],
}
# Sums over edges that the model holds; others along an axis are none of an aggregation.
HELD: dict[str, list[Any]] = {
    "binary": [],
    "INT8": [bgnn.q_sum, bgnn.q_sum_float],
    "float": [aten.sum, aten.mean],
}
Shapes = dict[fx.Node, tuple[int, ...]]


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
    inputs: str = ""
    """Each input's name, type and sizes, those that are open by a word; how others may be opened."""
    calibration: CalibrationReport | None = None
    not_understood: list[str] = dataclasses.field(default_factory=list)
    """Quantisers, roundings and signs of the model that became neither codes nor bits: call and line."""
    warnings: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the whole conversion, and within it of what was done on the second graph."""
    nodes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Layers and modules of the user's model, and what each became: the names that the file's tensors begin with."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for report.json."""
        return {**dataclasses.asdict(self), "checks": [c.to_json() for c in self.checks]}

    def print(self, console: Console) -> None:
        """The terminal tables."""
        title = f"{self.name}: {self.target} -O{self.optimize}, {self.kernels} kernels"
        table = Table(title=title, title_justify="left", show_header=False)
        if self.bytes is not None:
            table.add_row("file", f"{self.bytes:,} bytes")
        if self.inputs:
            table.add_row("inputs", escape(self.inputs))
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
            quantised = self.calibration is not None and not check.what.startswith("float network")
            table.add_row(check.what, _check_line(check, " than the quantised network's" if quantised else ""))
        if self.calibration is not None and self.calibration.file is not None:
            table.add_row("beside the float model", _file_line(self.calibration.file))
        if not self.checks:
            table.add_row("verification", "not verified (--no-verify)")
        if self.not_understood:
            found = f"{len(self.not_understood)} quantisers, roundings or signs: {'; '.join(self.not_understood)}"
            table.add_row("stays float", escape(found))
        if self.seconds:
            second = self.seconds.get("second graph")
            more = f", {second:.1f} s of it on the second graph" if second is not None else ""
            table.add_row("time", f"{self.seconds['conversion']:.1f} s{more}")
        for warning in self.warnings:
            table.add_row("warning", escape(warning))
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
    if note := found.note():
        console.print(f"[bold]not quantised:[/bold] {escape(note)}")
    if warning := found.warning():
        console.print(f"[bold]warning:[/bold] {warning}")
    if found.float_accuracy is not None and found.quantised_accuracy is not None:
        console.print(
            f"accuracy on the samples: float {found.float_accuracy:.4f}, quantised {found.quantised_accuracy:.4f}"
        )


def _check_line(check: Check, than: str = "") -> str:
    if not check.compared:
        return check.note
    parts = [
        f"largest output difference {check.output_error:.2g} (of {check.output_scale:.3g}), "
        f"{check.column_error:.1g} of its column (tolerance {OUTPUT_TOLERANCE:g})"
    ]
    if check.codes:
        inside = f" ({check.inside:,} of them in no tensor of it: they follow from the others)" if check.inside else ""
        parts.append(f"{check.codes:,} codes compared{inside}, {check.stepped:,} one beside the model's at a tie")
    if check.rows:
        parts.append(f"another class{than} in {check.changed_rows:,} of {check.rows:,} rows")
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
    gm: fx.GraphModule, semantic: fx.GraphModule, inputs: Sequence[Tensor],
    log: list[tuple[str, list[tuple[str, PassResult]]]], checks: list[Check], plan: Plan, name: str, data: bytes | None,
) -> Report:  # fmt: skip
    """The report of a conversion, complete or stopped early (`data` None).

    `semantic`: the graph in which layers have their names. Where sizes are open, shapes, multiply-accumulates and
    memory are those of the sample `inputs`.
    """
    refusals = [(n, label, why) for _, results in log for n, result in results for label, why in result.refusals]
    shapes = _shapes(gm, inputs)
    return Report(
        name=name,
        target=plan.target,
        optimize=plan.optimize,
        kernels=plan.kernels,
        bytes=None if data is None else len(data),
        operators={} if data is None else _operators(plan.target, data),
        macs={kind: sum(_macs(n, shapes) for n in gm.graph.nodes if _is_of(n, kind)) for kind in KINDS},
        peak_activation_bytes=peak_activations(gm, shapes),
        layers=_layers(gm, semantic, shapes, _shapes(semantic, inputs), refusals),
        rewrites=[(stage, n, r.rewrites) for stage, results in log for n, r in results],
        refusals=refusals,
        checks=checks,
        sign_zeros=0,
        nodes=_nodes(gm),
        inputs=_inputs(gm, plan) + _largest(data),
    )


def _is_held_sum(node: fx.Node) -> bool:
    return any(is_call(node, *made) for made in HELD.values()) and bool(
        re.fullmatch(r"aggregation \d+", str(node.meta.get("layer")))
    )


def _is_of(node: fx.Node, kind: str) -> bool:
    """Whether a node's multiply-accumulates are counted as of this kind."""
    return is_call(node, *KINDS[kind]) or (is_call(node, *HELD[kind]) and _is_held_sum(node))


def _nodes(gm: fx.GraphModule) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in gm.graph.nodes:
        label = node.meta.get("layer") or module_of(node)
        if node.op == "call_function" and label:
            found.setdefault(label, []).append(node.name)
    return found


def _inputs(gm: fx.GraphModule, plan: Plan) -> str:
    """Which sizes of the inputs are open, and how those of an input that has none are opened."""
    nodes = {node: node.name for node in gm.graph.nodes if node.op == "placeholder"}
    words = symbols_of(nodes)
    said = ", ".join(
        f"{name} {str(node.meta['val'].dtype).removeprefix('torch.')} [{', '.join(map(str, dims_of(node, words)))}]"
        for node, name in nodes.items()
    )
    fixed = [name for node, name in nodes.items() if is_static(node) and node.meta["val"].dim()]
    if not fixed or not TARGETS[plan.target].open:
        return said
    return f"{said}; sizes that are numbers are fixed: --open {fixed[0]}=AXIS (0 for the first) opens one"


def _largest(data: bytes | None) -> str:
    """Which graphs a TFLite file takes, and what smaller ones cost."""
    padding = padding_of(data) if data is not None and data[4:8] == b"TFL3" else None
    if padding is None or not padding.most:
        return ""
    most = ", ".join(f"{number:,} {word}" for word, number in padding.most.items())
    if padding.resizes:
        return f"; at most {most}: the file is resized to smaller graphs, and costs what these do"
    why = "; files of --kernels bgnn are resized"
    if padding.why_not:
        why = f": it cannot be resized, as {padding.why_not}"
    return f"; at most {most}: smaller graphs are filled up and cost as much{why}"


def _operators(target: str, data: bytes) -> dict[str, int]:
    return (onnx_file if TARGETS[target].format == "onnx" else tflite_file).operators(data)


def _shapes(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> Shapes:
    """Every tensor's shape; where sizes are open, that on the samples."""
    tensors = [n for n in gm.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    if all(is_static(n) for n in tensors):
        return {n: shape_of(n) for n in tensors}
    shapes: Shapes = {}

    class Sizes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = tuple(value.shape)
            return value

    with torch.no_grad():
        Sizes(gm).run(*inputs)
    return shapes


def _macs(node: fx.Node, shapes: Shapes) -> int:
    """Multiply-accumulates of one dot product, search or sum over edges."""
    x = cast(fx.Node, node.args[0])
    if _is_held_sum(node):
        return math.prod(shapes[x])
    if is_call(node, *ON_EDGES):
        return _edges(node, shapes) * math.prod(shapes[node][1:]) if len(shapes[node]) > 1 else 0
    rows, channels = math.prod(shapes[node][:-1]), shapes[node][-1]
    if is_call(node, bgnn.xor_edge_conv):  # once per node, and once per edge
        fan_in, neighbours = cast(int, node.args[4]), shapes[cast(fx.Node, node.args[1])][2]
        return rows * shapes[cast(fx.Node, node.args[2])][0] * fan_in * (1 + neighbours)
    if is_call(node, bgnn.bin_edge_conv):
        return rows * channels * shapes[cast(fx.Node, node.args[2])][2] * 2 * cast(int, node.args[10])
    if is_call(node, bgnn.dense_pool):
        return math.prod(shapes[x][:-1]) * channels * cast(int, node.args[3])
    if is_call(node, *SEARCH):
        size = cast(int, node.args[1]) if is_call(node, bgnn.hamming_knn) else shapes[x][-1]
        return rows * shapes[x][1] * size
    if is_call(node, *BINARY):
        return rows * shapes[cast(fx.Node, node.args[1])][0] * cast(int, node.args[2])
    return rows * channels * shapes[x][-1]


def _edges(node: fx.Node, shapes: Shapes) -> int:
    """The number of edges that a sum runs over."""
    if not is_call(node, *FUSED_SUMS, *FUSED_INTEGER_SUMS):
        return shapes[cast(fx.Node, node.args[0])][0]
    lists = (a for a in node.args if isinstance(a, fx.Node) and shapes.get(a, ())[:1] == (2,))
    return next((shapes[a][1] for a in lists if a.meta["val"].dtype == torch.int64 and len(shapes[a]) == 2), 0)


def _layers(
    gm: fx.GraphModule, semantic: fx.GraphModule, shapes: Shapes, before: Shapes, refusals: list[tuple[str, str, str]]
) -> list[Layer]:
    domains = dm.analyse(semantic)
    named = {node.name: node for node in semantic.graph.nodes}
    layers: list[Layer] = []
    for node in semantic.graph.nodes:
        if is_call(node, aten.mul) and "depthwise" in node.meta:
            layers += _depthwise(node, before, domains)
        if "layer" not in node.meta or not (is_call(node, *FLOAT, *SUMS, bgnn.knn) or _is_held_sum(node)):
            continue
        label = cast(str, node.meta["layer"])
        if _is_held_sum(node) and any(layer.name == label for layer in layers):
            continue  # of nodes of another degree
        of_layer = [n for n in gm.graph.nodes if n.meta.get("layer") == label]
        parts = [n for n in of_layer if any(_is_of(n, kind) for kind in KINDS)]
        macs = {kind: sum(_macs(n, shapes) for n in parts if _is_of(n, kind)) for kind in KINDS}
        of_bits = macs["binary"] > 0 and macs["float"] == 0  # it needs no codes
        why = "; ".join(
            dict.fromkeys(f"{p}: {r}" for p, at, r in refusals if at == label and not (of_bits and p == "lower_int8"))
        )
        reason = why or _reason(node, parts, domains, scaled=of_bits, named=named)
        was, became = _was(node, before, domains), _became(node, parts)
        layers.append(Layer(label, was, became, macs["binary"], macs["float"], reason, macs["INT8"]))
    return layers


def _depthwise(node: fx.Node, shapes: Shapes, domains: dict[fx.Node, dm.Domain]) -> list[Layer]:
    """The row of a convolution with a channel a group and window 1, which is a product of two tensors."""
    operands = sorted((n for n in node.all_input_nodes), key=is_constant)
    if len(operands) != 2 or not is_constant(operands[1]):
        return []
    x, weight = operands
    shape = "x".join(str(size) for size in shapes[x])
    label = cast(str, weight.meta.get("source", node.meta["depthwise"]))
    why = "groups of one channel and window 1: one factor for each channel, and no dot product"
    was = f"depthwise {_kind(x, domains)} {shape} x {_kind(weight, domains)} {value_of(weight).numel()}"
    return [Layer(label, was, "float product", 0, 0, why)]


def _was(node: fx.Node, shapes: Shapes, domains: dict[fx.Node, dm.Domain]) -> str:
    x = cast(fx.Node, node.args[0])
    shape = "x".join(str(s) for s in shapes[x])
    if is_call(node, bgnn.knn):
        return f"k-NN ({node.args[2]}), k={node.args[1]}, of {shape}"
    if _is_held_sum(node):
        how = "mean" if is_call(node, aten.mean) else "sum"
        return f"{how} over edges that the model holds, of {_kind(x, domains)} {shape}"
    if is_call(node, *SUMS):
        word = {bgnn.segment_sum: "sum", bgnn.segment_mean: "mean", bgnn.segment_max: "maximum"}
        named = next(w for op, w in word.items() if is_call(node, op))
        named = "minimum" if _is_turned(node) else named
        return f"{named} over edges, of {_kind(x, domains)} {shape}"
    other = cast(fx.Node, node.args[1])
    return f"{_kind(x, domains)} {shape} x {_kind(other, domains)} {'x'.join(str(s) for s in shapes[other])}"


def _is_turned(node: fx.Node) -> bool:
    """Whether a maximum over edges is one of negated numbers, and negated again: a minimum."""
    source = cast(fx.Node, node.args[0])
    while is_call(source, *dm.MOVES, bgnn.fake_quant) and isinstance(source.args[0], fx.Node):
        source = source.args[0]
    after = list(node.users)
    while len(after) == 1 and is_call(after[0], *dm.MOVES, bgnn.fake_quant):
        after = list(after[0].users)
    ends = bool(after) and all(is_call(user, aten.neg) for user in after)
    return is_call(node, bgnn.segment_max) and is_call(source, aten.neg) and ends


EXTREMA = (bgnn.segment_max, aten.amax, aten.amin)  # numbers of their operand, so codes of codes


def _kind(node: fx.Node, domains: dict[fx.Node, dm.Domain]) -> str:
    source = node
    while is_call(source, *dm.MOVES, aten.relu, *EXTREMA) and isinstance(source.args[0], fx.Node):
        source = source.args[0]
    if not is_call(source, bgnn.fake_quant, bgnn.fake_quant_channel):
        return domains[node].kind
    low, high = cast(tuple[int, int], source.args[-2:])
    bits = max(8, (high - low).bit_length())
    return f"{bits}-bit" if bits <= 16 else "rounded"


def _became(node: fx.Node, parts: list[fx.Node]) -> str:
    fused = {
        bgnn.hamming_knn: "popcount and selection, fused", bgnn.real_knn: "distances and selection, fused",
        bgnn.xor_edge_conv: "binary, fused from features to bits", bgnn.dense_pool: "binary, fused with the pooling",
        bgnn.bin_edge_conv: "binary, fused from features to features",
    }  # fmt: skip
    for node_of_one, word in fused.items():
        if any(is_call(n, node_of_one) for n in parts):
            return word
    if is_call(node, *SUMS) or _is_held_sum(node):
        kind = "INT8" if any(_is_of(n, "INT8") for n in parts) else "float"
        if any(is_call(n, bgnn.q_segment_sum_float, bgnn.q_sum_float) for n in parts):
            kind = "INT8, float out"
        alone = any(is_call(n, *FUSED_SUMS, *FUSED_INTEGER_SUMS) for n in parts)
        return f"{kind}, fused: no tensor of edges" if alone else kind if parts else "removed"
    bits = sum(is_call(n, bgnn.bconv_bits) for n in parts)
    dense = sum(is_call(n, bgnn.bconv) for n in parts)
    codes = [n for n in parts if is_call(n, *INTEGER)]
    real = len(parts) - bits - dense - len(codes)
    words = []
    if bits:
        words.append("binary, bits out" if bits == 1 else f"binary, bits out ({bits} thresholds)")
    if dense:
        words.append("binary, float out" if dense == 1 else f"binary, per node and per edge ({dense} products)")
    if codes:
        words.append("INT8" if any(is_call(n, bgnn.q_linear) for n in codes) else "INT8, float out")
    if real:
        words.append(
            "matrix product + top-k" if is_call(node, bgnn.knn) else f"float ({real} products)" if real > 1 else "float"
        )
    return ", ".join(words) or "removed"


def _reason(
    node: fx.Node, parts: list[fx.Node], domains: dict[fx.Node, dm.Domain], scaled: bool, named: dict[str, fx.Node]
) -> str:
    """Why a layer became what it is; `scaled`: it is binary, though what it reads are not signs alone."""
    if is_call(node, bgnn.knn):
        return "features are signs: Hamming distance" if node.args[2] == "hamming" else "features are real"
    integer = any(_is_of(n, "INT8") for n in parts)
    if is_call(node, *SUMS) or _is_held_sum(node):
        kind = domains[cast(fx.Node, node.args[0])].kind
        of = {"binary": "signs", "integer": "whole numbers"}.get(kind, "real")
        made = "maxima" if is_call(node, *EXTREMA) else "sums"
        also = f", and their {made} float" if of != "real" else ""
        return "its messages are quantised" if integer else f"its messages are {of}{also}"
    x, weight = (domains[cast(fx.Node, a)] for a in node.args[:2])
    if x.kind == weight.kind == "binary":
        return "inputs and weights are signs"
    if integer:
        other = cast(fx.Node, node.args[1])
        if is_constant(other) and binary_rows(value_of(other)) is not None:
            return "inputs are quantised and weights are signs"
        return "inputs and weights are quantised"
    if scaled:
        return "inputs and weights are signs, with scales"
    if x.kind != "binary":
        lost = named.get(x.lost)
        if x.kind == "integer":
            return "its inputs are whole numbers, but no signs"
        return f"its inputs are real{f' since {user_code.called(lost)}{user_code.where(lost)}' if lost else ''}"
    return "its weights are real"


def peak_activations(gm: fx.GraphModule, shapes: Shapes | None = None) -> int:
    """Bytes of live tensors at the worst moment, when each lives from its making to its last use.

    A lower bound of what a runtime's memory planner reaches; views are counted as copies. `shapes`: those of open
    sizes.
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
            count = math.prod(shape_of(node) if shapes is None else shapes[node])
            sizes[node] = count * (4 if value.dtype == torch.int64 else value.element_size())
            live += sizes[node]
        peak = max(peak, live)
        for source in set(node.all_input_nodes):
            if last_use.get(source) == i:
                live -= sizes[source]
    return peak
