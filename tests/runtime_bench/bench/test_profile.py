"""Every operator is timed and named, by the runtime's word and by the user's layer. Times decide nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from bgnn.runtime_bench.bench import cli, profile, records, report, running
from bgnn.runtime_bench.bench.candidates import EMPTY
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.profile import Operator, Profile, profile_onnx, profile_tflite
from bgnn.runtime_bench.runtime.errors import BgnnError

THREE = Schedule(rounds=3, seconds=0, warmup=1, warmup_seconds=0)
INPUTS = [np.ones((2, 3), np.float32), np.ones(4, np.float32)]


def test_the_runtimes_own_operators(float_file: bytes) -> None:
    found = profile_tflite(float_file, 1, INPUTS, False, THREE)
    assert [(one.kind, one.tensor, one.parts) for one in found.operators] == [
        ("ABS", "magnitude", []),
        ("NEG", "negated", []),
    ]
    assert [len(one.ms) for one in found.operators] == [3, 3]
    assert all(ms > 0 for one in found.operators for ms in one.ms)
    assert len(found.total_ms) == 3
    assert found.operators[0].start_ms == 0 < found.operators[1].start_ms
    assert all(sum(one.ms[i] for one in found.operators) <= found.total_ms[i] + 1e-9 for i in range(3))


def test_xnnpacks_say_what_they_took(float_file: bytes) -> None:
    found = profile_tflite(float_file, 1, INPUTS, True, THREE)
    assert sorted(kind for one in found.operators for kind in one.parts) == ["ABS", "NEG"]
    assert {one.kind for one in found.operators} == {"XNNPackDelegate"}


def test_our_operators_and_one_file_after_the_other(lce_file: bytes, float_file: bytes) -> None:
    for _ in range(2):
        found = profile_tflite(lce_file, 1, [np.ones((2, 40), np.float32)], True, THREE)
        assert [(one.kind, one.tensor, one.parts) for one in found.operators] == [("LceQuantize", "bits", [])]
        profile_tflite(float_file, 1, INPUTS, False, THREE)


def test_two_at_a_time_are_refused_and_a_timed_file_computes_the_same(
    float_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    real = profile.load_interpreter
    monkeypatch.setattr(profile, "load_interpreter", lambda *a, **k: kept.append(real(*a, **k)) or kept[-1])

    class Inside(Schedule):
        def warm_up(self, run: Callable[[], object]) -> list[float]:
            with pytest.raises(BgnnError, match="or another file's are"):
                profile_tflite(float_file, 1, INPUTS, False, THREE)
            run()
            found.append([kept[0].get_tensor(one["index"]).min() for one in kept[0].get_output_details()])
            return []

    found: list[list[float]] = []
    profile_tflite(float_file, 1, INPUTS, False, Inside(rounds=1, seconds=0))
    kept[0].set_tensor(kept[0].get_input_details()[0]["index"], -2 * INPUTS[0])
    kept[0].invoke()
    found.append([kept[0].get_tensor(one["index"]).min() for one in kept[0].get_output_details()])
    assert found == [[-1, 1], [-1, 2]], "while it is timed, and after"
    profile_tflite(float_file, 1, INPUTS, False, THREE)


def test_onnx_runtimes_profiler(tmp_path: Path) -> None:
    nodes = [helper.make_node("Abs", ["x"], ["a/b"], name="a/b"), helper.make_node("Neg", ["a/b"], ["y"], name="last")]
    one = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [9]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", one[:1], one[1:]), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    found = profile_onnx(model.SerializeToString(), 1, {"x": np.ones(9, np.float32)}, THREE)
    assert [(one.kind, one.tensor, len(one.ms)) for one in found.operators] == [("Abs", "a/b", 3), ("Neg", "last", 3)]
    assert len(found.total_ms) == 3
    assert found.operators[0].start_ms < found.operators[1].start_ms
    with pytest.raises(BgnnError, match="ONNX Runtime fails: "):
        profile_onnx(b"no file", 1, {}, THREE)
    with pytest.raises(BgnnError, match="has not every run"):
        profile._onnx_profile([], 1, 3)


def example() -> Profile:
    operators = [
        Operator("LceBconv2d", "bconv/part", ms=[1.0, 3.0], start_ms=0.0),
        Operator("ADD", "sum", ms=[0.5, 0.5], start_ms=3.5),
        Operator("LceBconv2d", "other_real", ms=[4.0, 4.0], start_ms=4.0),
    ]
    return Profile(operators, [6.0, 8.0])


def test_node_types_are_sums() -> None:
    settings = {"run": "r", "base": ["a", "b"], "threads": 1, "rounds": 2, "inputs": "random"}
    rows = profile.operator_records(example(), "a", "b", settings)
    kinds, operators = report.profile_sheets(rows, "a")
    assert list(kinds.rows) == [["LceBconv2d", "6.00", "92.31%", "2"], ["ADD", "0.500", "7.69%", "1"]]
    assert kinds.bars[0].parts == [("LceBconv2d", 6.0), ("ADD", 0.5)]
    assert [row[0] for row in operators.rows] == ["bconv/part", "sum", "other_real"]
    assert operators.caption == "2 runs of 7.00 (6.50-7.50) ms; the sum of the operators' medians is 6.50 ms"


def test_layers_have_the_users_names(tmp_path: Path) -> None:
    found = example()
    profile.name_layers(found, {"nodes": {"conv1": ["bconv"], "conv2.0": ["other", "more"]}})
    assert [one.name for one in found.operators] == ["conv1", "sum", "conv2.0"]
    nodes = {"conv1": ["bconv"]}
    (tmp_path / "report.json").write_text(json.dumps({"output": "a.tflite", "nodes": nodes}))
    assert running.report_of(tmp_path / "a.tflite")["nodes"] == nodes
    assert running.report_of(tmp_path / "b.tflite") == {}, "a report of another file says nothing of this one"
    (tmp_path / "b.tflite.report.json").write_text("no JSON")
    assert running.report_of(tmp_path / "b.tflite") == {}


def test_traces_and_overlays() -> None:
    found = example()
    trace = profile.chrome_trace(found, "a.tflite")["traceEvents"]
    assert trace[0]["args"] == {"name": "a.tflite"}
    assert [(e["name"], e["cat"], e["ph"], e["ts"], e["dur"]) for e in trace[1:]] == [
        ("bconv/part", "LceBconv2d", "X", 0.0, 3000.0),
        ("sum", "ADD", "X", 3500.0, 500.0),
        ("other_real", "LceBconv2d", "X", 4000.0, 4000.0),
    ]
    data = profile.overlay(found)
    assert data["results"] == {"bconv/part": {"value": 2.0}, "sum": {"value": 0.5}, "other_real": {"value": 4.0}}
    assert [one["stop"] for one in data["gradient"]] == [0, 1]


def test_the_command(tmp_path: Path, lce_file: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tflite"
    path.write_bytes(lce_file)
    (tmp_path / "report.json").write_text(json.dumps({"output": "a.tflite", "nodes": {"sign of x": ["bits"]}}))
    written = {name: tmp_path / f"{name}.json" for name in ("json", "trace", "overlay")}
    options = [word for name, place in written.items() for word in (f"--{name}", str(place))]
    assert cli.main(["profile", str(path), "--rounds", "2", *options]) == 0
    printed = capsys.readouterr().out
    for text in ("by node type", "by operator", "LceQuantize", "sign of x", "100.00%", "2 runs of"):
        assert text in printed
    (found,) = records.read(written["json"])
    assert (found.case, found.settings["layer"], len(found.samples["wall_ms"])) == (
        "a.tflite: 0 sign of x",
        "sign of x",
        2,
    )
    assert json.loads(written["trace"].read_text())["traceEvents"][1]["name"] == "sign of x"
    assert list(json.loads(written["overlay"].read_text())["results"]) == ["bits"]


def test_what_does_not_tell(tmp_path: Path, float_file: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("a.tflite", float_file), ("a.onnx", EMPTY["onnx"])):
        (tmp_path / name).write_bytes(content)
    for file, candidate, code, message in (
        ("a.tflite", "LiteRT", 2, "LiteRT does not tell where time goes: LiteRT + ours"),
        ("a.onnx", "ONNX Runtime + ours", 1, "none of this project's operators"),
        ("none.onnx", "", 2, "No such file"),
    ):
        arguments = ["profile", str(tmp_path / file), "--rounds", "1", "--trace", str(tmp_path / "t")]
        assert cli.main(arguments + (["--candidate", candidate] if candidate else [])) == code
        assert message in capsys.readouterr().err
        assert not (tmp_path / "t").exists()
    same = ["--json", str(tmp_path / "t"), "--trace", str(tmp_path / "t")]
    assert cli.main(["profile", str(tmp_path / "a.tflite"), *same]) == 2
    assert "another output" in capsys.readouterr().err
