"""`convert`: a model in, a verified file and its report out. The command line calls this and nothing else."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from bgnn.converter import stages
from bgnn.converter.calibrate import Calibration
from bgnn.converter.dump import dump_stage
from bgnn.converter.eager import EagerModel, kinds
from bgnn.converter.emitted_file import io_names, run_with_probes
from bgnn.converter.errors import BgnnError, ConversionError, UsageError
from bgnn.converter.example_inputs import check_tensors, refuse_nan
from bgnn.converter.graph_api import check_graph, convert_graph
from bgnn.converter.onnx.emit import emit as emit_onnx
from bgnn.converter.onnx.emit import run_file as run_onnx
from bgnn.converter.report import Report, build_report
from bgnn.converter.targets import KERNELS
from bgnn.converter.tflite.emit import emit as emit_tflite
from bgnn.converter.trace import refuse_numbers, trace
from bgnn.converter.verify import Check, Reference, check_sums, exact_decisions, run_with_taps
from bgnn.converter.verify_layers import prove_layers, prove_on_runtime
from bgnn.passes import user_code
from bgnn.passes.graph import PassResult, all_taps, is_constant, snapshot, value_of
from bgnn.runtime_bench.interpreters import run_file
from bgnn.runtime_bench.outputs import write_files

TARGETS = stages.TARGETS
STAGES = stages.STAGES


@dataclasses.dataclass
class Conversion:
    """What `convert` gives: the file's bytes (None if stopped before emission), the report, where it was written."""

    model_bytes: bytes | None
    report: Report
    path: Path | None
    graph: fx.GraphModule


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
    calibration: Calibration | None = None,
    progress: Callable[[str], None] | None = None,
) -> Conversion:
    """Converts a trained PyTorch model into a file that a stock runtime runs.

    `example_inputs`: the model's arguments, with the shapes and dtypes of the file; verification runs on them, so real
    samples are best. `target`: "lce-arm64" (TFLite with Larq Compute Engine ops) or "tflite-arm64" (builtins only).
    `optimize`: 1 runs all passes, 0 only makes the graph legal. `kernels`: "stock" for files that any LCE runtime
    runs, "bgnn" for this project's fused operators, which its delegate brings to LiteRT. `keep_outputs`: which of
    the model's outputs the file has. `sign_zero`: "plus" takes sign(0) as +1, "error" refuses models whose samples
    reach a `torch.sign(0)`. `calibration`: sample graphs for the post-training quantisation of a float graph network,
    with "onnx-int8-x86".
    `stop_after`: a stage's name, to stop there without a file; `dump`: a folder for each stage as Python.

    Raises UsageError for wrong arguments and ConversionError where the model cannot be converted or the file
    does not compute what the model computes; then nothing is written.
    """
    plan = _check_arguments(target, optimize, kernels, knn, sign_zero, stop_after)
    if calibration is not None and target != "onnx-int8-x86":
        raise UsageError(f"--calibrate goes with --target onnx-int8-x86, not {target}")
    check_tensors(model, example_inputs)
    say = progress or (lambda line: None)
    inputs = tuple(t.detach().contiguous() for t in example_inputs)
    _check_weights(model)
    if target.startswith("onnx-") and check_graph(model, inputs):
        data, graph_report, gm = convert_graph(
            model, inputs, target=target, optimize=optimize, kernels=kernels, name=name,
            metadata={"bgnn-convert": _version(), "target": target, "optimize": str(optimize), "kernels": kernels},
            verify=verify, stop_after=stop_after, dump=None if dump is None else Path(dump),
            keep_outputs=keep_outputs, calibration=calibration, say=say,
        )  # fmt: skip
        path = None
        if output is not None and data is not None:
            path = Path(output)
            write_files({path: data})
        return Conversion(data, graph_report, path, gm)
    if calibration is not None:
        raise UsageError("--calibrate quantises graph networks, forward(x, edge_index, ...): this model has no edges")
    say("tracing the model")
    gm = trace(model, inputs, keep_outputs)
    refuse_numbers(gm)
    if dump is not None:
        dump_stage(gm, Path(dump), "exported")
    ops = kinds(gm)
    eager = EagerModel(model, keep_outputs) if verify else None
    plain = [] if eager is None else eager.outputs(inputs)
    refuse_nan(plain)
    if verify:
        check_sums(gm, inputs)
    reference: Reference | None = None
    checks: list[Check] = []
    log: list[tuple[str, list[tuple[str, PassResult]]]] = []
    semantic: fx.GraphModule | None = None
    for stage, results in stages.walk(gm, plan):
        log.append((stage, results))
        say(f"stage {stage}: {sum(r.rewrites for _, r in results)} rewrites")
        if dump is not None:
            dump_stage(gm, Path(dump), stage)
        if stage == "traced" and eager is not None:
            reference = Reference(gm, inputs)
            _check_zeros(reference, sign_zero)
            if not plan.target.startswith("onnx-"):
                _check_flushed(reference)
            checks.append(_check_traced(reference, eager, inputs, plain, ops))
        elif reference is not None:
            taps, outputs = run_with_taps(gm, inputs, reference.shapes)
            checks.append(reference.compare(f"stage {stage}", taps, outputs, exact_decisions(gm)))
            checks[-1].proof = prove_layers(reference.gm, gm, f"stage {stage}")
        if stage == "semantic":
            semantic = snapshot(gm)
        if stage == stop_after:
            return Conversion(None, build_report(gm, semantic, log, checks, reference, plan, name, None), None, gm)
    assert semantic is not None
    say("writing the file")
    metadata = {"bgnn-convert": _version(), "target": target, "optimize": str(optimize), "kernels": kernels}
    emit, run = _writer_and_runtime(gm, plan, name, metadata)
    if verify:
        assert reference is not None
        say("running the file and comparing it with the model")
        checks.append(_check_file(gm, emit, run, reference, inputs))
        checks[-1].proof = prove_on_runtime(gm, lambda alone: _writer_and_runtime(alone, plan, name, {})[0](), run)
        metadata["verification"] = _summary(checks[-1])
    else:
        metadata["verification"] = "not verified (--no-verify)"
    data = emit()
    report = build_report(gm, semantic, log, checks, reference, plan, name, data)
    path = None
    if output is not None:
        path = Path(output)
        write_files({path: data})
    return Conversion(data, report, path, gm)


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
    if kernels == "bgnn" and (target == "tflite-arm64" or optimize != 1):
        raise UsageError(
            "--kernels bgnn goes with -O1, which fuses to its operators, and with the targets lce-arm64 and onnx-*"
        )
    if knn is not None and (knn == "popcount") != (kernels == "bgnn"):
        raise UsageError(
            "--knn popcount is an operator of --kernels bgnn, and --knn matmul is how --kernels stock does it"
        )
    return stages.Plan(target, optimize, kernels)


def _check_weights(model: nn.Module | ExportedProgram) -> None:
    """Files compute in float32 where they do not in bits or codes."""
    weights = [value for _, value in model.named_parameters() if value.is_floating_point()]
    if weights and all(value.dtype != torch.float32 for value in weights):
        kind = str(weights[0].dtype).removeprefix("torch.")
        raise ConversionError(f"the model is {kind}, and files compute in float32: convert model.float()")


def _check_traced(
    reference: Reference, eager: EagerModel, inputs: Sequence[Tensor], plain: list[Tensor], ops: Mapping[str, str]
) -> Check:
    """The reference, which is the traced graph, against the model itself."""
    ops = {name: ops[name] for name in reference.decisions if name in ops}
    return eager.compare(
        lambda taps, outputs: reference.compare("stage traced", taps, outputs, set()), inputs, plain, ops
    )


def _check_zeros(reference: Reference, sign_zero: str) -> None:
    count = sum(reference.zeros.values())
    if count and sign_zero == "error":
        name = next(n for n, zeros in reference.zeros.items() if zeros)
        raise ConversionError(
            f"torch.sign meets {count} exact zeros (first at {name!r}), where it gives 0 and the file +1: "
            "accept that with --sign-zero plus, or write the model's sign as where(x >= 0, 1, -1)"
        )


def _check_flushed(reference: Reference) -> None:
    count = sum(reference.flushed.values())
    if count:
        name = next(n for n, signs in reference.flushed.items() if signs)
        raise ConversionError(
            f"{count} signs (first at {name!r}) are of numbers nearer to 0 than 1.2e-38, which LiteRT takes for 0: "
            "compare with a small number instead, as in x > 1e-30, or convert to onnx-x86"
        )


def _writer_and_runtime(
    gm: fx.GraphModule, plan: stages.Plan, name: str, metadata: Mapping[str, str]
) -> tuple[Callable[..., bytes], Callable[[bytes, Sequence[np.ndarray]], list[np.ndarray]]]:
    """(writes the target's file, given probes if any; runs such a file)."""
    inputs, outputs = io_names(gm)
    options: dict[str, Any] = {"name": name, "input_names": inputs, "output_names": outputs, "metadata": metadata}
    if plan.target.startswith("onnx-"):
        options |= {"optimize": plan.optimize, "kernels": plan.kernels}
        return lambda **probes: emit_onnx(gm, **options, **probes), run_onnx
    return lambda **probes: emit_tflite(gm, **options, **probes), run_file


def _check_file(
    gm: fx.GraphModule, emit: Callable[..., bytes], run: Callable[..., list[np.ndarray]], reference: Reference,
    inputs: Sequence[Tensor],
) -> Check:  # fmt: skip
    """Runs the file, with its decisions as extra outputs, and once more as it is; both on the real runtime."""
    tapped = list({tap.name: (node, tap) for node, tap in all_taps(gm)}.values())
    sources = dict.fromkeys(source for node, tap in tapped for source in tap.sources(node))
    outputs, known = run_with_probes(emit, run, [node for node in sources if node.op == "call_function"], inputs)
    known |= {node: value_of(node) for node in sources if is_constant(node)}
    known |= dict(zip((n for n in gm.graph.nodes if n.op == "placeholder"), inputs, strict=True))
    taps = {
        tap.name: tap.read(node, [known[source] for source in tap.sources(node)], reference.shapes[tap.name])
        for node, tap in tapped
    }
    return reference.compare("emitted file", taps, outputs, exact_decisions(gm))


def _summary(check: Check) -> str:
    return (
        f"{check.signs} signs and {check.neighbours} neighbours compared, {check.exact} of them exact; "
        f"turned by rounding: {check.turned_signs} signs, {check.turned_rows} rows of neighbours; "
        f"largest output difference {check.output_error:.3g}, {check.column_error:.2g} of its column"
    )


def _version() -> str:
    try:
        return version("bgnn-convert")
    except PackageNotFoundError:
        return "unknown"
