"""The fuzzer of whole files (fuzz/files.py): hundreds of changed files, those that are kept, and the fuzzer itself."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tflite_files

FUZZ = Path(__file__).parent / "fuzz"
sys.path.append(str(FUZZ))

import driver  # noqa: E402
import files  # noqa: E402
import mutations  # noqa: E402
from seeds import Seed, operators  # noqa: E402

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="builds with the host's compiler")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tensors in blocks of their own (fuzz/exact.cc), no sanitizers."""
    tflite_files.build()
    library = tmp_path_factory.mktemp("exact") / "libexact.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["g++", *flags, "-o", str(library), str(FUZZ / "exact.cc"), "-ldl"], check=True)
    fuzzed = tflite_files.delegate.library_path()
    return os.environ | {"BGNN_DELEGATE": str(library), "BGNN_FUZZED": str(fuzzed)}


def run(environment: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, str(FUZZ / "files.py"), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_changed_operators(environment: dict[str, str], tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(FUZZ / "seeds.py"), str(tmp_path / "seeds"), "--operators"], check=True)
    sizes = ["--count", 400, "--seed", 7, "--workers", 2]
    printed = run(environment, tmp_path / "seeds", *sizes, "--failures", tmp_path)
    (total,) = re.findall(r"│ all +│ +400 (.*)", printed)
    ran, ours, *_, crashed, hung = (int(number) for number in re.findall(r"\d+", total))
    # Both ends are reached: what must run, and what we refuse.
    assert min(ran, ours) > 100
    assert (crashed, hung) == (0, 0)


def test_kept_files(environment: dict[str, str]) -> None:
    kept = sorted((FUZZ / "corpus").glob("*.npz"))
    lines = run(environment, "--again", *kept).splitlines()
    assert len(lines) == len(kept) > 0
    assert all(re.search(rf": ({'|'.join(files.OUTCOMES)})\b", line) for line in lines), lines


def test_a_trial_is_the_same_every_time_and_survives_storing(tmp_path: Path) -> None:
    seeds = operators()
    for number in range(20):
        base, trial = files.make_trial(seeds, 1, number)
        assert files.make_trial(seeds, 1, number)[0] == base
        again = files.make_trial(seeds, 1, number)[1]
        again.save(tmp_path / "trial.npz")
        stored = files.Trial.read(tmp_path / "trial.npz")
        assert stored.data == again.data == trial.data
        settings = stored.threads, stored.float_kernels, stored.isa
        assert settings == (trial.threads, trial.float_kernels, trial.isa)
        assert [[a is None or a.tobytes() for a in fed] for fed in stored.rounds] == [
            [a is None or a.tobytes() for a in fed] for fed in trial.rounds
        ]


def test_every_kind_of_change_changes_the_file() -> None:
    bare = {"option", "option_bytes", "shape", "channels", "type", "quantization", "indices", "values", "buffer"}
    changed = set()
    seed = next(seed for seed in operators() if seed.name == "BgnnXorEdgeConv")
    for number in range(40):
        for change in mutations.Mutator(mutations.read(seed.data), files.random.Random(number)).changes:
            model = mutations.read(seed.data)
            mutator = mutations.Mutator(model, files.random.Random(number))
            getattr(mutator, change.__name__)()
            if mutations.write(model) != mutations.write(mutations.read(seed.data)):
                changed.add(change.__name__)
    assert changed >= bare | {"constness", "name", "order"}


def test_options_of_graph_operators_change() -> None:
    """They hold texts and the bits of floats beside whole numbers, and an operator may become any of ours."""
    before = {"reduce": "sum", "x_scale": 1024388222, "low": 0}
    tensors = [tflite_files.Tensor((4, 4)), tflite_files.Tensor((4, 4))]
    node = tflite_files.Node("BgnnQAggregate", [0], [1], mutations.map_of(before))
    data, seen = tflite_files.file(tensors, [node], [0], [1]), set()
    for number in range(200):
        model = mutations.read(data)
        change = mutations.Mutator(model, files.random.Random(number))
        assert change.options_of(change.ops[0]) == before
        change.option()
        after = change.options_of(change.ops[0])
        seen |= {key for key in before if key in after and after[key] != before[key]}
    assert seen == set(before)
    assert {"BgnnCooToCsr", "BgnnQLinear", "BgnnSegmentSoftmax"} <= set(mutations.NAMES)


def test_the_operands_of_litert_itself_stay_as_they_are() -> None:
    """Shapes and axes of operators that are not ours, even where one of ours comes to read them."""
    seed = next(seed for seed in operators() if seed.name == "BgnnXorEdgeConv")
    shape = np.array([1, -1], np.int32)
    for number in range(1500):
        model = mutations.read(seed.data)
        place = reshaped(model, shape)
        change = mutations.Mutator(model, files.random.Random(number))
        types = [tensor.type for tensor in model.subgraphs[0].tensors]
        for _ in range(6):
            change()
        graph, tensor = model.subgraphs[0], model.subgraphs[0].tensors[place]
        ours = [op for op in graph.operators if op in change.ops]
        assert all(graph.tensors[i].type == types[i] for i in change.theirs)
        assert (list(tensor.shape), tensor.type) == ([2], mutations.schema.TensorType.INT32)
        assert bytes(model.buffers[tensor.buffer].data) == shape.tobytes()
        assert not tensor.isVariable
        assert all(graph.tensors[i].quantization is None for i in change.theirs)
        assert place not in graph.inputs
        assert not any(place in op.outputs for op in ours)


def test_what_litert_counts_with_stays_small() -> None:
    """It writes to memory that it could not allocate, where a shape that BgnnSizes reads is of gigabytes."""
    terms, axes = tflite_files.const(np.array([[0, 1], [0, 0]], np.int32)), tflite_files.const(np.zeros(1, np.int32))
    tensors = [tflite_files.Tensor((24, 6)), terms, axes, tflite_files.Tensor((2,), np.int32)]
    model = mutations.read(tflite_files.file(tensors, [tflite_files.Node("BgnnSizes", [1, 2, 0], [3])], [0], [3]))
    reshaped(model, np.array([1, -1], np.int32))
    model.subgraphs[0].operators[-1].inputs = [0, 3]
    data, sizes = mutations.write(model), set()
    for number in range(1500):
        changed = mutations.read(data)
        change = mutations.Mutator(changed, files.random.Random(number))
        for _ in range(6):
            change()
        counted = changed.subgraphs[0].tensors[0]
        sizes.add(mutations.byte_size(counted))
        assert counted.type == mutations.schema.TensorType.FLOAT32
    assert len(sizes) > 9
    assert max(size or 0 for size in sizes) < mutations.REFUSED_BLOCK


def reshaped(model: mutations.schema.ModelT, shape: np.ndarray) -> int:
    """Puts a RESHAPE behind the file's first output; returns the number of the tensor that holds its shape."""
    graph = model.subgraphs[0]
    code, operator, constant, result = (
        mutations.schema.OperatorCodeT(), mutations.schema.OperatorT(), mutations.schema.TensorT(),
        mutations.schema.TensorT(),
    )  # fmt: skip
    code.builtinCode = code.deprecatedBuiltinCode = mutations.schema.BuiltinOperator.RESHAPE
    model.operatorCodes.append(code)
    buffer = mutations.schema.BufferT()
    buffer.data = shape.view(np.uint8)
    model.buffers.append(buffer)
    constant.shape, constant.type, constant.buffer = (
        [len(shape)],
        mutations.schema.TensorType.INT32,
        len(model.buffers) - 1,
    )
    result.shape, result.buffer = [1, 1], 0
    place = len(graph.tensors)
    graph.tensors += [constant, result]
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = [int(graph.outputs[0]), place], [place + 1]
    graph.operators.append(operator)
    graph.outputs = [place + 1]
    return place


def trials(tmp_path: Path, misbehave) -> driver.Tally:
    def run_trial(trial: files.Trial) -> driver.Outcome:
        misbehave(int(trial.data))
        return driver.Outcome(driver.RAN, runs=1)

    def make_trial(seeds: list[Seed], seed: int, number: int) -> tuple[str, files.Trial]:
        return "seed", files.Trial(str(number).encode(), [])

    kind = replace(files.KIND, run_trial=run_trial, make_trial=make_trial)
    return driver.fuzz(kind, [], 3, 12, 2, tmp_path, lambda tally: None)


def test_a_worker_that_dies_is_told_and_replaced(tmp_path: Path) -> None:
    def misbehave(number: int) -> None:
        if number in (4, 6, 11):  # in a row, and the last of all
            os.write(2, b"SUMMARY: something was overrun\n")
            os.kill(os.getpid(), signal.SIGKILL)

    tally = trials(tmp_path, misbehave)
    assert tally.outcomes == {"seed": {driver.RAN: 9, driver.CRASHED: 3}}
    assert sorted(failure.number for failure in tally.failures) == [4, 6, 11]
    assert files.Trial.read(tmp_path / "seed-3-6.npz").data == b"6"
    assert "SUMMARY: something was overrun" in str(tally.failures[0])


def test_a_worker_that_hangs_is_told_and_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "PATIENCE_S", 0.5)
    tally = trials(tmp_path, lambda number: time.sleep(60 * (number == 3)))
    assert tally.outcomes == {"seed": {driver.RAN: 11, driver.HUNG: 1}}
    assert [failure.number for failure in tally.failures] == [3]


@pytest.mark.slow  # the sanitized build takes minutes
def test_under_sanitizers() -> None:
    make = ["make", "-s", "-C", str(FUZZ), "files", "COUNT=3000", "SEED=11", f"VENV={sys.prefix}"]
    done = subprocess.run(make, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"all +│ +3000 ", done.stdout), done.stdout


@pytest.fixture(autouse=True)
def leave_the_instruction_set_alone() -> Iterator[None]:
    """files.run_trial sets it."""
    before = os.environ.get("BGNN_ISA")
    yield
    os.environ.pop("BGNN_ISA", None)
    if before is not None:
        os.environ["BGNN_ISA"] = before
