"""`convert`: a model in, a verified file and its report out. The command line calls this and nothing else."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from bgnn.converter import stages
from bgnn.converter.ahead import refuse_ahead
from bgnn.converter.axes import told_most, trace_sized
from bgnn.converter.calibrate import Calibration, CalibrationReport, check_float, compare_file, quantise
from bgnn.converter.comparison import check_file, check_flushed, check_stage, check_zeros, summary
from bgnn.converter.dump import dump_stage
from bgnn.converter.eager import EagerModel, kinds
from bgnn.converter.emitted_file import io_names
from bgnn.converter.errors import BgnnError, ConversionError, UsageError
from bgnn.converter.example_inputs import check_example, input_names, refuse_nan
from bgnn.converter.examples import examples_of
from bgnn.converter.file_inputs import index_rows
from bgnn.converter.onnx.emit import emit as emit_onnx
from bgnn.converter.onnx.emit import run_file as run_onnx
from bgnn.converter.onnx.emit import saturated_shares
from bgnn.converter.padding import check_rows as check_padded
from bgnn.converter.padding import largest, with_room
from bgnn.converter.report import KINDS, Report, build_report
from bgnn.converter.split_layers import split as cut
from bgnn.converter.split_layers_files import check as check_layers
from bgnn.converter.split_layers_files import write as write_layers
from bgnn.converter.targets import KERNELS, STAGES, TARGETS, names_with
from bgnn.converter.tflite.emit import emit as emit_tflite
from bgnn.converter.tflite.walk import SHIFT
from bgnn.converter.trace import refuse_numbers, uncached
from bgnn.converter.verify import Check, Reference, check_sums
from bgnn.converter.verify_layers import prove_on_runtime
from bgnn.passes import accumulators, user_code
from bgnn.passes.graph import PassResult, aten, calls, shape_of, snapshot
from bgnn.passes.index_limits import edge_inputs
from bgnn.passes.join_edges import most_copies
from bgnn.runtime_bench.runtime.graph_inputs import check_rows
from bgnn.runtime_bench.runtime.outputs import write_files
from bgnn.runtime_bench.runtime.tflite_runner import run_file

bgnn = torch.ops.bgnn
ROUNDINGS = [bgnn.fake_quant, aten.round, aten.floor, aten.ceil, aten.trunc, aten.sign, aten.sgn]


@dataclasses.dataclass
class Conversion:
    """What `convert` gives: the file's bytes (None if stopped before emission), the report, where it was written."""

    model_bytes: bytes | None
    report: Report
    path: Path | None
    graph: fx.GraphModule
    layers: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """With `split_layers`, the chain's files and its manifest, by name."""


def _refuse_in_words(function: Callable[..., Conversion]) -> Callable[..., Conversion]:
    """`function`, with a ConversionError in place of any raw exception: what PyTorch runs is refused in words."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Conversion:
        try:
            return function(*args, **kwargs)
        except (BgnnError, OSError, MemoryError):
            raise
        except Exception as error:
            at = user_code.raised_at(error, others=False)
            raise ConversionError(
                f"bgnn-convert cannot take this model{f' (at {at})' if at else ''}, which is a fault of its own: "
                f"{user_code.reason(error)}: report it with the lines of --debug, or leave that part out of the model"
            ) from error

    return wrapped


@_refuse_in_words
def convert(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Tensor, ...],
    *,
    target: str,
    output: Path | str | None = None,
    optimize: int = 1,
    verify: bool = True,
    kernels: str = "stock",
    knn: str | None = None,
    sign_zero: str = "plus",
    stop_after: str | None = None,
    dump: Path | str | None = None,
    name: str = "model",
    keep_outputs: Sequence[int] = (0,),
    open_axes: Sequence[str] = (),
    fixed_sizes: Sequence[str] = (),
    calibration: Calibration | None = None,
    split_layers: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Conversion:
    """Converts a trained PyTorch model into a file that a stock runtime runs.

    `example_inputs`: the model's arguments, with the shapes and dtypes of the file; verification runs on them, so real
    samples are best. `target`: a row of `targets.TARGETS`, as "lce-arm64" (TFLite with Larq Compute Engine ops).
    `optimize`: 1 runs all passes, 0 only makes the graph legal. `kernels`: "stock" for files that any LCE runtime
    runs, "bgnn" for this project's fused operators, which its delegate brings to LiteRT. `keep_outputs`: which of
    the model's outputs the file has. `sign_zero`: "plus" takes sign(0) as +1, "error" refuses models whose samples
    reach a `torch.sign(0)`. `open_axes` ("NAME" or "NAME=AXIS") and `fixed_sizes` ("NAME=SIZE"): what the user says of
    the inputs' sizes (axes.py). `calibration`: samples for the post-training quantisation of a float network, for
    targets with codes. `split_layers`: also cut the network at its aggregations (ONNX targets; split_layers.py).
    `stop_after`: a stage's name, to stop there without a file; `dump`: a folder for each stage as Python.

    Raises UsageError for wrong arguments and ConversionError where the model cannot be converted or the file
    does not compute what the model computes; then nothing is written.
    """
    start = time.perf_counter()
    plan = _check_arguments(target, optimize, kernels, knn, sign_zero, stop_after)
    if calibration is not None and not TARGETS[target].codes:
        with_codes = ", ".join(names_with("codes"))
        raise UsageError(f"--calibrate makes 8-bit layers, which {target} does not have: --target {with_codes} does")
    if split_layers and TARGETS[target].format != "onnx":
        with_layers = ", ".join(names_with("open"))
        raise UsageError(f"--split-layers cuts into ONNX files, for graphs of any size: --target {with_layers}")
    check_example(model, example_inputs)
    say = progress or (lambda line: None)
    inputs = tuple(t.detach().contiguous() for t in example_inputs)
    if open_axes and not TARGETS[target].open:
        with_open = ", ".join(names_with("open"))
        raise UsageError(f"--open {open_axes[0]}: {target} has fixed sizes; open ones go with --target {with_open}")
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        say(f"warning: {text}")

    eager = EagerModel(model, keep_outputs, functools.partial(uncached, model))
    refuse_ahead(eager, inputs, plan)
    say("tracing the model")
    fixed, told = told_most(fixed_sizes, input_names(model, len(inputs)))
    if told and TARGETS[target].open:
        raise UsageError(
            f"--fixed {next(iter(told))}: {target} takes graphs of any size; --fixed NAME=SIZE fixes an input's axis"
        )
    with uncached(model):
        gm = trace_sized(model, inputs, keep_outputs, opened=open_axes, fixed=fixed, may_be_open=TARGETS[target].open)
    refuse_numbers(gm)
    most = {} if TARGETS[target].open else largest(gm, inputs, told)
    if dump is not None:
        dump_stage(gm, Path(dump), "exported")
    samples: list[tuple[Tensor, ...]] = []
    if calibration is not None:
        check_float(gm)
        given = [n for n in gm.graph.nodes if n.op == "placeholder"]
        names = [n.name for n in given]
        calibration = calibration.fitted(given)
        samples = calibration.inputs(names)
        if unused := calibration.unused(names):
            warn(f"the samples hold {', '.join(unused)}, which forward does not take: not used")
    _check_indices(gm, inputs)
    is_graph = bool(edge_inputs(gm.graph))
    ops = kinds(gm)
    examples = examples_of(gm, inputs, eager) if verify else []
    if verify:
        refuse_nan(examples[0].plain)
        check_sums(gm, inputs)
    checks: list[Check] = []
    log: list[tuple[str, list[tuple[str, PassResult]]]] = []
    calibrated: CalibrationReport | None = None
    semantic, before = gm, gm
    not_understood: list[str] = []

    def calibrate(gm: fx.GraphModule) -> None:
        """Puts quantisers into a float network; from here on that is the reference, so the float one is compared."""
        nonlocal calibrated
        if calibration is not None:
            for example in examples:
                with example.timed():
                    checks.append(example.compare_traced("float network", gm, ops))
            say("choosing ranges on the samples")
            calibrated = quantise(gm, calibration, results=not TARGETS[target].sums, bits=TARGETS[target].bits)
            if note := calibrated.note():
                say(note)

    def report(data: bytes | None) -> Report:
        made = build_report(gm, semantic, inputs, log, checks, plan, name, data)
        zeros = sum(examples[0].reference.zeros.values()) if examples and examples[0].reference else 0
        seconds = {"conversion": time.perf_counter() - start}
        for example in examples[1:]:
            seconds["second graph"] = example.seconds
        return dataclasses.replace(
            made, calibration=calibrated, sign_zeros=zeros, not_understood=not_understood, warnings=warnings,
            seconds=seconds,
        )  # fmt: skip

    for stage, results in stages.walk(gm, plan, calibrate if calibration is not None else None):
        log.append((stage, results))
        say(f"stage {stage}: {sum(r.rewrites for _, r in results)} rewrites")
        if dump is not None:
            dump_stage(gm, Path(dump), stage)
        for example in examples:
            with example.timed():
                if example.reference is None:
                    example.reference = Reference(gm, example.inputs)
                    check_zeros(example, examples[0], gm, sign_zero, warn)
                    if TARGETS[target].format == "tflite":
                        check_flushed(example.reference)
                    if calibration is None:
                        checks.append(example.compare_traced(f"stage {stage}", gm, ops))
                elif example is examples[0] or stage == "target":
                    checks.append(check_stage(example, f"stage {stage}", gm, before if stage == "target" else gm))
        if stage == "traced":
            quantised = any(calls(gm.graph, bgnn.binarize, bgnn.fake_quant, bgnn.fake_quant_channel))
        if stage == "semantic":
            semantic = snapshot(gm)
        if stage == "integer" and TARGETS[target].codes:
            stay = [n for n in calls(gm.graph, *ROUNDINGS) if shape_of(n) and not n.meta.get("own_ties")]
            not_understood = [f"{user_code.called(n)}{user_code.where(n)}" for n in stay]
        if stage == "integer":
            before = snapshot(gm)  # the last graph that makes every code
        if stage == "target" and not TARGETS[target].open:
            check_padded(gm)
        if stage == stop_after:
            return Conversion(None, report(None), None, gm)
    if TARGETS[target].codes and not any(calls(gm.graph, *KINDS["binary"], *KINDS["INT8"])):
        warn(
            "nothing became 8-bit or binary, although the model has signs or quantisers: the table of layers says why"
            if quantised
            else f"nothing became 8-bit or binary: {target} is for networks with quantisers or signs; --calibrate FILE "
            "quantises a float one, and onnx-x86 is the float target"
        )
    say("writing the file")
    metadata = {"bgnn-convert": _version(), "target": target, "optimize": str(optimize), "kernels": kernels}
    if is_graph:
        metadata["bgnn.max_degree"] = str(accumulators.MAX_DEGREE // most_copies(gm.graph))
    emit, run = _writer_and_runtime(gm, plan, name, metadata, most)
    if examples:
        say("running the file and comparing it with the model")
        found = []
        for example in examples:
            room = with_room(gm, example.inputs) if example.second and most else {}
            # The second graph has a file of its own, as it may be too large for this one, with rows to spare.
            write = functools.partial(emit, most=room) if room else emit
            with example.timed():
                found.append(check_file(gm, before, write, _run_in_two_ways if room else run, plan, example))
            if room:
                said = ", ".join(f"{number} {word}" for word, number in room.items())
                found[-1].note = f"in a file of {said}"
        if examples[0].alone:
            note = f"none, so other graphs are not verified: {examples[0].alone}"
            checks.append(Check("second graph", compared=False, note=note))
        found[0].proof = prove_on_runtime(gm, lambda alone: _writer_and_runtime(alone, plan, name, {}, {})[0](), run)
        checks += found[::-1]
        than = "the quantised network's" if calibration is not None else "the model's"
        metadata["verification"] = "; on a second graph: ".join(summary(check, than) for check in found)
    else:
        metadata["verification"] = "not verified (--no-verify)"
    counts = is_graph and examples and TARGETS[target].open
    seen = {"seen": saturated_shares(emit(), inputs)} if counts else {}
    data = emit(**seen)
    if calibrated is not None and verify:
        expected = [eager.outputs(sample)[0] for sample in samples]
        gap = compare_file(functools.partial(run, data), samples, expected)
        calibrated = dataclasses.replace(calibrated, file=gap)
        metadata["verification"] += (
            f"; beside the float model, on the samples: outputs {gap.error:.2%} off (relative rms), another class than "
            f"the float model's in {gap.changed_rows} of {gap.rows} rows"
        )
        data = emit(**seen)
        if warning := calibrated.warning():
            say(f"warning: {warning}")  # the report prints it with the calibration's tables
        elif not any(all(map(torch.equal, sample, inputs)) for sample in samples):
            there = compare_file(functools.partial(run, data), [inputs], examples[0].plain[:1])
            if there.is_large:
                warn(f"on the example, which is none of the samples, 8 bits change {there}: samples should be like it")
    layers: dict[str, bytes] = {}
    if split_layers:
        say("cutting it at its aggregations")
        chain = cut(before)
        made = write_layers(chain, plan, name, metadata, **seen)
        if examples:
            say("running the chain and comparing it with the whole file")
            graphs = [(example.second, example.inputs) for example in examples]
            checks += check_layers(made, before, chain, plan, graphs)
        layers = made.written()
    path = None
    if output is not None:
        path = Path(output)
        write_files({path: data})
    return Conversion(data, report(data), path, gm, layers)


def _check_arguments(
    target: str, optimize: int, kernels: str, knn: str | None, sign_zero: str, stop_after: str | None
) -> stages.Plan:
    for what, value, allowed in (
        ("target", target, TARGETS),
        ("optimisation level", optimize, (0, 1)),
        ("set of kernels", kernels, KERNELS),
        ("k-NN lowering", knn, (None, "matmul", "popcount")),
        ("sign-zero policy", sign_zero, ("plus", "error")),
        ("stage", stop_after, (None, *STAGES)),
    ):
        if value not in allowed:
            choices = ", ".join(str(a) for a in allowed if a is not None)
            raise UsageError(f"there is no {what} {value!r}: choose from {choices}")
    if kernels == "bgnn" and optimize != 1:
        raise UsageError("--kernels bgnn goes with -O1, which fuses to its operators")
    if knn is not None and (knn == "popcount") != (kernels == "bgnn"):
        raise UsageError(
            "--knn popcount is an operator of --kernels bgnn, and --knn matmul is how --kernels stock does it"
        )
    return stages.Plan(target, optimize, kernels)


def _check_indices(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Raises UsageError where an example's index names a row that is not there."""
    names = {node: node.name for node in gm.graph.nodes if node.op == "placeholder"}
    arrays = {name: value.numpy() for name, value in zip(names.values(), inputs, strict=True)}
    for one in index_rows(gm, names):
        check_rows(arrays, **one)


def _writer_and_runtime(
    gm: fx.GraphModule, plan: stages.Plan, name: str, metadata: Mapping[str, str], most: Mapping[str, int]
) -> tuple[Callable[..., bytes], Callable[[bytes, Sequence[np.ndarray]], list[np.ndarray]]]:
    """(writes the target's file, given probes if any; runs such a file)."""
    inputs, outputs = io_names(gm)
    options: dict[str, Any] = {"name": name, "input_names": inputs, "output_names": outputs, "metadata": metadata}
    if TARGETS[plan.target].format == "onnx":
        options |= {"optimize": plan.optimize, "kernels": plan.kernels}
        return lambda **more: emit_onnx(gm, **{**options, **more}), run_onnx
    options |= {"most": most, "kernels": plan.kernels}
    return lambda **more: emit_tflite(gm, **{**options, **more}), _run_tflite


def _run_tflite(data: bytes, arrays: Sequence[np.ndarray], resized: bool = True) -> list[np.ndarray]:
    """Runs a TFLite file, whose indices are int32; its codes, which are int8 there, as the graph has them."""
    found = run_file(data, [a.astype(np.int32) if a.dtype == np.int64 else a for a in arrays], resized=resized)
    return [(a.astype(np.int32) + SHIFT).astype(np.uint8) if a.dtype == np.int8 else a for a in found]


def _run_in_two_ways(data: bytes, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs a graph network's TFLite file with inputs resized to the graph, if it allows that, and filled up."""
    found, filled = (_run_tflite(data, arrays, resized) for resized in (True, False))
    if any(one.tobytes() != other.tobytes() for one, other in zip(found, filled, strict=True)):
        raise ConversionError("with resized inputs the file gives other bits than filled up: please report this model")
    return found


def _version() -> str:
    try:
        return version("bgnn-convert")
    except PackageNotFoundError:
        return "unknown"
