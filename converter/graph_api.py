"""Converts a graph network, `forward(x, edge_index, ...)`, to ONNX: traced, lowered, written, run and compared.

`converter.api.convert` calls this for the targets `onnx-x86` and `onnx-int8-x86` when an input is a graph's edges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import FakeQuantizeBase
from torch.export import ExportedProgram

from bgnn.converter import calibrate, stages
from bgnn.converter.calibrate import Calibration
from bgnn.converter.dump import dump_stage
from bgnn.converter.eager import EagerModel, kinds
from bgnn.converter.emitted_file import io_names, run_with_probes
from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.graph_report import build_graph_report
from bgnn.converter.onnx.emit import emit, index_rows, run_file, saturated_shares
from bgnn.converter.report import Report
from bgnn.converter.second_graph import second_graphs
from bgnn.converter.sizes import check_open, features_of, graph_axes, is_edges
from bgnn.converter.trace import refuse_numbers, trace
from bgnn.converter.verify import check_sums
from bgnn.converter.verify_codes import CodeCheck, CodeReference, Seen, as_codes, run_with_codes, tapped_codes
from bgnn.converter.verify_layers import prove_on_runtime, prove_tables
from bgnn.passes import accumulators
from bgnn.passes.graph import PassResult, snapshot
from bgnn.passes.insert_fake_quant import is_edge_tensor
from bgnn.runtime_bench.onnx_runner import check_rows


def check_graph(model: nn.Module | ExportedProgram, inputs: Sequence[Tensor]) -> bool:
    """Whether these are the inputs of a graph network; raises UsageError if they are, and are wrong."""
    names = [f"input {i}" for i in range(len(inputs))]
    if isinstance(model, nn.Module):
        names = [*list(inspect.signature(model.forward).parameters)[: len(inputs)], *names][: len(inputs)]
    for name, value in zip(names, inputs, strict=True):
        if "edge_index" in name and not is_edges(value):
            raise UsageError(
                f"{name} is {list(value.shape)} {value.dtype}: edges are int64 [2, E], sources and targets"
            )
    edges = [(name, value) for name, value in zip(names, inputs, strict=True) if is_edges(value)]
    features = features_of(inputs)
    if not edges:
        return False
    if features is None:
        raise UsageError("a graph network takes the features of nodes, [N, ...], beside its edges")
    nodes = features.shape[0]
    for name, value in edges:
        if value.dtype != torch.int64:
            raise UsageError(f"{name} is {value.dtype}: indices are int64; cast them with .long()")
        if value.shape[1] < 2 or nodes < 2:
            raise UsageError(f"the example graph has {nodes} nodes and {value.shape[1]} edges: give one with 2 or more")
    for name, value in zip(names, inputs, strict=True):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UsageError(f"{name} holds NaN or infinity, with which nothing can be verified")
    return True


def convert_graph(
    model: nn.Module | ExportedProgram,
    inputs: tuple[Tensor, ...],
    *,
    target: str,
    optimize: int,
    kernels: str,
    name: str,
    metadata: Mapping[str, str],
    verify: bool,
    stop_after: str | None,
    dump: Path | None,
    keep_outputs: Sequence[int],
    calibration: Calibration | None,
    say: Callable[[str], None],
) -> tuple[bytes | None, Report, fx.GraphModule]:
    """(the file or None if stopped before, the report, the last stage's graph); arguments as of `convert`."""
    say("tracing the model")
    with _uncached(model):
        gm = trace(model, inputs, keep_outputs, graph_axes(inputs))
    refuse_numbers(gm)
    if dump is not None:
        dump_stage(gm, dump, "exported")
    samples: list[tuple[Tensor, ...]] = []
    if calibration is not None:
        calibrate.check_float(gm)
        samples = calibration.inputs([n.name for n in gm.graph.nodes if n.op == "placeholder"])
    _check_indices(gm, inputs)
    ops = kinds(gm)
    eager = EagerModel(model, keep_outputs, partial(_uncached, model))
    examples = _examples(gm, inputs, eager) if verify else []
    if verify:
        check_sums(gm, inputs)
    checks: list[CodeCheck] = []
    log: list[tuple[str, list[tuple[str, PassResult]]]] = []
    before = gm
    calibrated: calibrate.CalibrationReport | None = None
    for stage in stages.STAGES:
        if stage == "target":
            before = snapshot(gm)  # the last graph that makes every code
        results = [(step, run(gm)) for step, run in stages.passes_to(stage, stages.Plan(target, optimize, kernels))]
        if stage == "traced":
            if calibration is not None:
                results += [(step, run(gm)) for step, run in stages.BEFORE_CALIBRATION]
                # From here on, the quantised network is the reference: the float one is compared now.
                checks += [example.compare_traced("float network", gm, ops) for example in examples]
                say("choosing ranges on the samples")
                stages.name_layers(gm)
                calibrated = calibrate.quantise(gm, calibration)
            stages.mark_codes(gm)
        elif stage == "semantic":
            stages.name_layers(gm)
        stages.check_ops(gm, stages.SPECS[stage], target)
        _check_open(gm, target)
        log.append((stage, results))
        say(f"stage {stage}: {sum(r.rewrites for _, r in results)} rewrites")
        if dump is not None:
            dump_stage(gm, dump, stage)
        for example in examples:
            if example.reference is None:
                example.reference = CodeReference(gm, example.inputs)
                if calibration is None:
                    checks.append(example.compare_traced(f"stage {stage}", gm, ops))
            elif example is examples[0] or stage == "target":
                codes, outputs = run_with_codes(gm, example.inputs)
                codes = dict(_completed(before, example.inputs, codes))
                checks.append(example.reference.compare(example.named(f"stage {stage}"), codes, outputs))
                if stage == "target" and example is examples[0]:
                    checks[-1].proof = prove_tables(example.reference.gm, gm, before, f"stage {stage}")
        if stage == stop_after:
            report = build_graph_report(gm, inputs, log, checks, target, optimize, kernels, name, None)
            return None, dataclasses.replace(report, calibration=calibrated), gm
    say("writing the file")
    properties = {**metadata, "bgnn.max_degree": str(accumulators.MAX_DEGREE)}
    names = io_names(gm)
    written = partial(
        emit, gm, name=name, input_names=names[0], output_names=names[1], metadata=properties, optimize=optimize,
        kernels=kernels,
    )  # fmt: skip
    if examples:
        say("running the file and comparing it with the model")
        tables = optimize == 1 and kernels == "stock"
        found = _check_file(gm, before, written, tables, examples)
        if examples[0].alone:
            note = f"none, so other graphs are not verified: {examples[0].alone}"
            checks.append(CodeCheck("second graph", compared=False, note=note))
        alone = partial(
            emit, name=name, input_names=["x"], output_names=["output"], metadata={}, optimize=optimize, kernels=kernels
        )
        found[0].proof = prove_on_runtime(gm, alone, run_file)
        checks += found[::-1]
        properties["verification"] = "; on a second graph: ".join(summary(check) for check in found)
        written = partial(written, seen=saturated_shares(written(), inputs))
    else:
        properties["verification"] = "not verified (--no-verify)"
    data = written()
    if calibrated is not None and verify:
        expected = [eager.outputs(sample)[0] for sample in samples]
        calibrated = dataclasses.replace(calibrated, file=calibrate.compare_file(data, samples, expected))
        if warning := calibrated.warning():
            say(f"warning: {warning}")
    report = build_graph_report(gm, inputs, log, checks, target, optimize, kernels, name, data)
    return data, dataclasses.replace(report, calibration=calibrated), gm


@contextlib.contextmanager
def _uncached(model: nn.Module | ExportedProgram) -> Iterator[None]:
    """Within the block no forward leaves a trace in the model, of which a file could know nothing.

    PyG's layers with `cached=True` do not keep the first graph they meet: a file takes any. torch.ao's observers, which
    `eval()` leaves on, do not move their ranges: a file has those that are stored.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [
        (
            module,
            {name: value for name, value in vars(module).items() if name == "cached" or name.startswith("_cached_")},
        )
        for module in modules
        if getattr(module, "cached", None) is True
    ]
    for module, values in before:
        vars(module).update({name: False if name == "cached" else None for name in values})
    observing = [m for m in modules if isinstance(m, FakeQuantizeBase) and bool(m.observer_enabled.any())]
    for observer in observing:
        observer.disable_observer()
    try:
        yield
    finally:
        for observer in observing:
            observer.enable_observer()
        for module, values in before:
            vars(module).update(values)


def _check_open(gm: fx.GraphModule, target: str) -> None:
    """`check_open`; an op that is not supported is the likelier reason, and is named first."""
    try:
        check_open(gm)
    except ConversionError:
        stages.check_ops(gm, [*(stages.SPECS["semantic"] or []), torch.ops.aten.batch_norm], target)
        raise


def _check_indices(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Raises UsageError where an example's index names a row that is not there."""
    names = {node: node.name for node in gm.graph.nodes if node.op == "placeholder"}
    arrays = {name: value.numpy() for name, value in zip(names.values(), inputs, strict=True)}
    for one in index_rows(gm, names):
        check_rows(arrays, **one)


@dataclasses.dataclass
class _Example:
    """A graph to verify on: what the model itself gives for it, and the reference once there is one."""

    eager: EagerModel
    inputs: tuple[Tensor, ...]
    plain: list[Tensor]
    second: str = ""  # the second graph, in words
    alone: str = ""  # why there is none
    reference: CodeReference | None = None

    def named(self, what: str) -> str:
        """What is compared, for the report."""
        return f"{what}, second graph" if self.second else what

    def compare_traced(self, what: str, gm: fx.GraphModule, ops: Mapping[str, str]) -> CodeCheck:
        """The traced graph against the model itself."""
        reference = self.reference or CodeReference(gm, self.inputs)
        ops = {name: ops[name] for name in reference.codes if name in ops}
        try:
            check = self.eager.compare(partial(reference.compare, self.named(what)), self.inputs, self.plain, ops)
        except ConversionError as error:
            if not self.second:
                raise
            raise ConversionError(
                f"{error}: on a graph that is not the example ({self.second}) the model's trace gives something else "
                "than the model: it holds something of the example, or the model does otherwise while it is exported"
            ) from error
        check.note = self.second
        return check


def _examples(gm: fx.GraphModule, inputs: tuple[Tensor, ...], eager: EagerModel) -> list[_Example]:
    """The user's graph, and the second one if the sizes are open and the model can take it."""
    first = _Example(eager, inputs, eager.outputs(inputs))
    for second in second_graphs(gm, inputs):
        try:
            plain = eager.outputs(second.inputs)
        except ConversionError as error:
            first.alone = first.alone or f"{error} (on a graph of {second.said})"
            continue
        if all(bool(torch.isfinite(t).all()) for t in plain if t.is_floating_point()):
            return [dataclasses.replace(first, alone=""), _Example(eager, second.inputs, plain, second.said)]
        first.alone = first.alone or f"the model gives infinities or NaN on a graph of {second.said}"
    return [first]


def _completed(before: fx.GraphModule, inputs: Sequence[Tensor], codes: Mapping[str, Seen]) -> Mapping[str, Seen]:
    """All codes, with those that fused operators keep to themselves as they follow from the others."""
    missing = set(tapped_codes(before)) - set(codes)
    return run_with_codes(before, inputs, codes)[0] if missing and codes else codes


def _check_file(
    gm: fx.GraphModule, before: fx.GraphModule, emit: Callable[..., bytes], tables: bool, examples: list[_Example]
) -> list[CodeCheck]:
    """Runs the file on ONNX Runtime, with its codes as extra outputs, and once more as it is; on each graph."""
    tapped = tapped_codes(gm)
    if tables:  # there are no tensors of edges in the file: they follow from the others
        tapped = {key: (node, tap) for key, (node, tap) in tapped.items() if not is_edge_tensor(node)}
    probes = list(dict.fromkeys(node for node, _ in tapped.values()))
    checks = []
    for example in examples:
        assert example.reference is not None
        outputs, known = run_with_probes(emit, run_file, probes, example.inputs)
        codes = {key: Seen(as_codes(node, known[node]), tap.floor) for key, (node, tap) in tapped.items()}
        codes = dict(_completed(before, example.inputs, codes))
        checks.append(example.reference.compare(example.named("emitted file"), codes, outputs))
    return checks


def summary(check: CodeCheck) -> str:
    """One line for the file's properties."""
    return (
        f"{check.codes} codes compared, {check.stepped} of them one beside the model's at a tie; "
        f"largest output difference {check.output_error:.3g}, {check.column_error:.2g} of its column; "
        f"another class in {check.changed_rows} of {check.rows} rows"
    )
