"""`bgnn-bench profile`: where one file's time goes, operator by operator, on LiteRT and ONNX Runtime.

LiteRT has no profiler that Python reaches; our delegate times every operator of the graph, the runtime's own, XNNPACK's
and ours (kernels/delegate/profile.h). ONNX Runtime writes a trace of its own, which is read here. Operators go by the
names that the converter's report gives their layers, where there is one, else by the tensor that they write.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench import conditions
from bgnn.runtime_bench.bench.candidates import DELEGATE, DELEGATE_PLAIN, ONNX, ONNX_OURS, Candidate, versions
from bgnn.runtime_bench.bench.inputs import Inputs
from bgnn.runtime_bench.bench.measure import Schedule, Spread, describe_machine
from bgnn.runtime_bench.bench.records import WALL, Record
from bgnn.runtime_bench.bench.running import new_run, report_of
from bgnn.runtime_bench.runtime import limits
from bgnn.runtime_bench.runtime.delegate import library_path, load_interpreter
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.onnx_ops import register_ops
from bgnn.runtime_bench.runtime.onnx_ops import runtime as onnx_runtime
from bgnn.runtime_bench.runtime.onnx_runner import has_own_operators
from bgnn.runtime_bench.runtime.padded import padding_of
from bgnn.runtime_bench.runtime.tflite_model import resize

# The candidates that tell where time goes.
PROFILED = (DELEGATE, DELEGATE_PLAIN, ONNX, ONNX_OURS)
XNNPACK = "TfLiteXNNPackDelegate"


@dataclass
class Operator:
    """One operator in the order that they run in, and its runs."""

    kind: str
    """Node type: the runtime's word for it."""
    tensor: str
    """What it writes first, by the file's name for it."""
    layer: str = ""
    """Of the user's model; "" where nothing says."""
    parts: list[str] = field(default_factory=list)
    """The kinds of the file's operators that it stands for, where a delegate took several."""
    ms: list[float] = field(default_factory=list)
    start_ms: float = 0.0
    """In the last run, from the first operator's start."""

    @property
    def name(self) -> str:
        """What a person knows it by."""
        return self.layer or self.tensor or self.kind


@dataclass
class Profile:
    """A file's operators, and the milliseconds of each whole run."""

    operators: list[Operator]
    total_ms: list[float]


def profile_tflite(
    content: bytes, threads: int, arrays: Sequence[np.ndarray], xnnpack: bool, schedule: Schedule
) -> Profile:
    """The file on LiteRT with our delegate, which times. Raises BgnnError where the runtime refuses or fails."""
    interpreter = load_interpreter(content, threads, float_kernels="xnnpack" if xnnpack else "builtin")
    padding = padding_of(content)
    if padding is not None and padding.resizes:
        resize(interpreter, dict(zip(padding.input_names, arrays, strict=True)))
    library = ctypes.CDLL(str(library_path()))
    try:
        (delegate,) = interpreter._delegates
        handle = delegate._get_native_delegate_pointer()
        details = {one["index"]: one for one in interpreter._get_ops_details()}
    except (AttributeError, ValueError) as error:
        raise BgnnError(f"this TFLite runtime does not show its operators ({error}): ai-edge-litert does") from error
    start, stop, describe, read = _functions(library)
    count = start(handle)
    if count < 0:
        raise BgnnError("the runtime does not let its operators be timed, or another file's are")
    try:
        operators = [_tflite_operator(describe, handle, place, details, interpreter) for place in range(count)]
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        starts, took = np.zeros(count, np.int64), np.zeros(count, np.int64)
        total: list[float] = []

        def run() -> None:
            interpreter.invoke()
            read(handle, starts.ctypes.data, took.ctypes.data)

        schedule.warm_up(run)
        while schedule.goes_on(len(total), sum(total) / 1e3):
            run()
            for one, ms in zip(operators, took / 1e6, strict=True):
                one.ms.append(float(ms))
            total.append(float((starts + took).max() - starts[took > 0].min()) / 1e6 if took.any() else 0.0)
    except (RuntimeError, ValueError) as error:
        raise BgnnError(f"LiteRT failed while running the file: {str(error).strip()}") from error
    finally:
        stop(handle)
    for one, at in zip(operators, starts, strict=True):
        one.start_ms = max(0.0, float(at - starts[starts > 0].min()) / 1e6)
    return Profile(operators, total)


def _functions(library: ctypes.CDLL) -> list[Any]:
    """profile.h's start, stop, operator and read. Raises BgnnError where the library is too old for them."""
    try:
        found = [getattr(library, f"bgnn_profile_{name}") for name in ("start", "stop", "operator", "read")]
    except AttributeError as error:
        raise BgnnError(f"{library_path()} is of an earlier build, which times nothing: make kernels") from error
    pointer = ctypes.c_void_p
    more: list[list[Any]] = [[], [], [ctypes.c_int, pointer, pointer, pointer], [pointer, pointer]]
    for function, arguments in zip(found, more, strict=True):
        function.argtypes = [pointer, *arguments]
    return found


def _tflite_operator(
    describe: Callable[..., int], handle: int, place: int, details: Mapping[int, Any], interpreter: Any
) -> Operator:
    number, name, replaced = ctypes.c_int(), ctypes.c_char_p(), ctypes.POINTER(ctypes.c_int)()
    parts = describe(handle, place, *(ctypes.addressof(one) for one in (number, name, replaced)))
    inside = [details[replaced[i]] for i in range(parts)] or [details[number.value]]
    custom = (name.value or b"").decode(errors="replace")
    kinds = [str(one["op_name"]) for one in inside]
    kind = custom if (parts and len(kinds) > 1) or custom == XNNPACK else kinds[0]
    outputs = details[number.value]["outputs"] if parts else inside[0]["outputs"]
    tensor = interpreter._get_tensor_details(int(outputs[0]), 0)["name"] if len(outputs) else ""
    return Operator(
        kind.removeprefix("TfLite"), str(tensor), parts=kinds if kind == custom and kinds != [custom] else []
    )


def profile_onnx(content: bytes, threads: int, feeds: Mapping[str, np.ndarray], schedule: Schedule) -> Profile:
    """The file on ONNX Runtime, by its own profiler. Raises BgnnError where the runtime refuses or fails."""
    limits.check_threads("threads", threads)
    onnxruntime = onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    if has_own_operators(content):
        register_ops(options)
    with tempfile.TemporaryDirectory(prefix="bgnn-bench-") as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "ort")
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            warm = len(schedule.warm_up(lambda: session.run(None, dict(feeds))))
            count, spent = 0, 0.0
            while schedule.goes_on(count, spent):
                spent += Schedule(warmup=1, warmup_seconds=0).warm_up(lambda: session.run(None, dict(feeds)))[0] / 1e3
                count += 1
            events = json.loads(Path(session.end_profiling()).read_text())
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise BgnnError(f"ONNX Runtime fails: {' '.join(str(error).split())}") from error
    return _onnx_profile(events, warm, count)


def _onnx_profile(events: Sequence[Mapping[str, Any]], warm: int, count: int) -> Profile:
    """The last `count` runs of a trace. An operator that a run leaves out (a branch) took 0 in it."""
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")[warm:]
    if len(runs) != count:
        raise BgnnError("ONNX Runtime's profile has not every run: its trace is limited; measure fewer rounds")
    operators: dict[str, Operator] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        at = next((i for i, (start, end) in enumerate(runs) if start <= event["ts"] <= end), None)
        if at is None:
            continue
        tensor = event["name"].removesuffix("_kernel_time")
        one = operators.setdefault(tensor, Operator(event["args"]["op_name"], tensor, ms=[0.0] * count))
        one.ms[at] += event["dur"] / 1e3
        if at == count - 1:
            one.start_ms = (event["ts"] - runs[-1][0]) / 1e3
    return Profile(list(operators.values()), [(end - start) / 1e3 for start, end in runs])


def name_layers(profile: Profile, report: Mapping[str, Any]) -> None:
    """Gives operators the layers' names that a conversion's report has for what they write."""
    layer_of = {name: layer for layer, names in report.get("nodes", {}).items() for name in names}
    for one in profile.operators:
        # Tensors are called after the converter's nodes: itself, or with a part or a step behind it.
        words = one.tensor.partition("/")[0]
        one.layer = layer_of.get(words) or layer_of.get(words.removesuffix("_real"), "")


def chrome_trace(profile: Profile, case: str) -> dict[str, Any]:
    """The last run as Chrome's and Perfetto's trace format: one bar for each operator."""
    process = {"name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": case}}
    events: list[dict[str, Any]] = [process]
    for number, one in enumerate(profile.operators):
        events.append(
            {
                "name": one.name, "cat": one.kind, "ph": "X", "pid": 1, "tid": 1, "ts": 1e3 * one.start_ms,
                "dur": 1e3 * one.ms[-1],
                "args": {"operator": number, "type": one.kind, "tensor": one.tensor, "parts": one.parts},
            }
        )  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def overlay(profile: Profile) -> dict[str, Any]:
    """Model Explorer's node data, by the tensor that each operator writes: milliseconds, on a gradient of colours."""
    results = {one.tensor: {"value": Spread.of(one.ms).median} for one in profile.operators if one.tensor}
    colours = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#e5383b"}]
    return {"results": results, "gradient": colours}


def profile_file(
    candidate: Candidate, content: bytes, inputs: Mapping[str, np.ndarray], threads: int, schedule: Schedule
) -> Profile:
    """The file on a candidate that can tell where its time goes."""
    if candidate.kind == "onnx":
        candidate.check(content)
        return profile_onnx(content, threads, inputs, schedule)
    return profile_tflite(content, threads, list(inputs.values()), candidate.name == DELEGATE, schedule)


def profiled(
    path: Path, content: bytes, inputs: Inputs, candidate: Candidate, threads: int, schedule: Schedule
) -> tuple[Profile, dict[str, Any], list[Record]]:
    """`profile_file`, pinned, with the layers' names; what the run's settings are, and a record for each operator."""
    before = conditions.now()
    with conditions.pinned(threads) as cores:
        profile = profile_file(candidate, content, inputs.arrays, threads, schedule)
    name_layers(profile, report_of(path))
    after = conditions.now()
    settings = {
        "run": new_run(), "base": [path.name, candidate.name], "threads": threads, "cores": cores,
        "inputs": inputs.what, "rounds": len(profile.total_ms), "before": before, "after": after,
        "throttled": conditions.throttling(before, after),
    }  # fmt: skip
    return profile, settings, operator_records(profile, path.name, candidate.name, settings)


def operator_records(profile: Profile, case: str, candidate: str, settings: Mapping[str, Any]) -> list[Record]:
    """A record for each operator: its samples, and under settings what it is."""
    machine = {key: value for key, value in describe_machine().items() if key != "packages"}
    found, whole = [], str(Spread.of(profile.total_ms))
    for number, one in enumerate(profile.operators):
        what = {"operator": number, "type": one.kind, "tensor": one.tensor, "layer": one.layer, "parts": one.parts}
        how = {**settings, "whole": whole, **what}
        found.append(Record(f"{case}: {number} {one.name}", candidate, machine, False, {WALL: one.ms}, versions(), how))
    return found
