"""Tables are queries over records: each cell has one; aims are met at their limits. No test depends on speed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from bench_records import record
from lce import needs_lce

from bgnn.runtime_bench.bench import cases, cli, paper, records, tables
from bgnn.runtime_bench.bench.cases import OWN, PAPERS_ROUTE, STOCK, Sizes
from bgnn.runtime_bench.bench.records import Record

FLAGS = ["avx2", "avx512_vpopcntdq"]
BASE = ["DGCNN -O0, stock", "LiteRT"]


def row(case: str, ms: float, **samples: list) -> Record:
    made = record("LiteRT" if case == BASE[0] else "LCE", {"base": BASE}, cpu_ms=[ms, 2 * ms], **samples)
    return dataclasses.replace(made, case=case, device={**made.device, "flags": FLAGS})


def found(beyond: float = 0.0) -> list[Record]:
    """The records of a run at the aims, or a little beyond them."""
    worse = 1 + beyond
    return [
        row(f"DGCNN {PAPERS_ROUTE}", 360.0, peak_bytes=[1000], file_bytes=[7e6], empty_bytes=[100]),
        row(f"BF-H {PAPERS_ROUTE}", 180.0),
        row(f"BF-H {STOCK}", 360 / 1.4 * worse, file_bytes=[360_000 * worse], peak_bytes=[250 * worse]),
        row(f"RF {OWN}", 45.0 * worse),
        row(
            f"BF-H {OWN}",
            8.0 * worse,
            file_bytes=[290_000 * worse],
            peak_bytes=[60e6 + 12e6 * worse],
            empty_bytes=[60e6],
        ),
    ]


@pytest.mark.parametrize(("beyond", "met"), [(0.0, True), (0.001, False)])
def test_aims_are_met_at_their_limits_and_not_beyond(beyond: float, met: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BGNN_ISA", raising=False)
    aims = tables.aims(found(beyond))
    assert [aim.met for aim in aims] == [met] * 7
    assert any("with avx512" in aim.what and aim.aim == f"45 x DGCNN {PAPERS_ROUTE}" for aim in aims)


def test_what_was_not_measured_has_no_aim() -> None:
    assert tables.aims(found()[:2]) == []


def test_the_speed_aimed_at_is_the_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BGNN_ISA", raising=False)
    assert paper.instruction_set(FLAGS) == "avx512"
    assert paper.instruction_set(["avx2", "avx512f"]) == "avx2"
    assert paper.instruction_set(["sse4_2"]) == "portable"
    assert paper.instruction_set(["fp", "asimd"]) == "neon"
    monkeypatch.setenv("BGNN_ISA", "portable")
    assert paper.instruction_set(FLAGS) == "portable"


def cells(printed: str, first: str) -> list[str]:
    (line,) = (line for line in printed.splitlines() if line.startswith(f"│ {first} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_run_times_stand_beside_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(["bgnn-fig4"], found(), Sizes())
    printed = capsys.readouterr().out
    assert cells(printed, "BF-H") == [
        "BF-H", "0.5", "0.500 (0.500-0.500)", "0.714 (0.714-0.714)", "0.0222 (0.0222-0.0222)",
    ]  # fmt: skip
    assert cells(printed, "RF")[1:4] == ["a bar, no number", "", ""]


def test_sizes_stand_beside_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(["bgnn-size-memory"], found(), Sizes())
    printed = capsys.readouterr().out
    assert cells(printed, "BF-H, file")[1:] == ["0.341", "", "0.36", "0.29"]
    assert cells(printed, "BF-H, peak over empty")[1:] == ["", "", "", "12.00"]


def test_node_types_stand_beside_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    operators = [("TOPK_V2", 3.0), ("TOPK_V2", 5.0), ("RESHAPE", 2.0)]
    made = [
        record(settings={"of": f"BF-H {STOCK}", "type": kind}, wall_ms=[ms, ms]) for kind, ms in operators
    ]  # fmt: skip
    tables.show(["bgnn-table6"], made, Sizes())
    printed = capsys.readouterr().out
    assert cells(printed, "TOPK_V2")[1:] == ["488 ms, 22.2%, 4", "", "8.00 ms, 80.0%, 2", ""]
    assert cells(printed, "SOFTMAX")[2:] == ["", "", ""]
    assert cells(printed, "all")[1:] == ["2200 ms", "", "10.0 ms", ""]


def test_parameters_are_the_papers() -> None:
    """Of binary ones to the last; of float ones for the authors' own models, whose baseline has biases in its norms."""
    counted = {}
    for name, arch in (("DGCNN", "dgcnn"), ("BF1", "bf1"), ("BF2", "bf2"), ("RF", "rf")):
        model = cases.build(cases.Case(name, arch, {}, None), Sizes())
        sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
        bits = sum(size for key, size in sizes.items() if key.endswith("weights_real"))
        counted[name] = sum(sizes.values()) - bits, bits
    wanted = dict(paper.BGNN_PARAMETERS)
    assert counted.pop("DGCNN") == (1_809_576, wanted.pop("DGCNN")[1])
    assert counted == wanted


def test_tables_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tables"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(tables.TABLES)
    assert cli.main(["table", "bgnn-fig9"]) == 2
    assert "no table 'bgnn-fig9': there are bgnn-fig4" in capsys.readouterr().err
    assert cli.main(["table", "bgnn-fig4", "--rounds", "0"]) == 2
    assert cli.main(["table", "bgnn-table5"]) == 0
    assert cells(capsys.readouterr().out, "RF")[1:] == ["15,243", "15,243", "1,804,672", "1,804,672", "99.16%"]


@pytest.mark.slow
@needs_lce
def test_the_command_converts_runs_and_writes_every_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"channels": (32, 32, 32, 32), "embedding": 64, "mlp": (32, 32)}
    chosen = [case for case in cases.CASES if case.name.startswith("BF-H ") or case.name == BASE[0]]
    shrunk = [dataclasses.replace(case, settings={**case.settings, **small}) for case in chosen]
    monkeypatch.setattr(tables, "CASES", shrunk)
    sizes = {"--batch": 2, "--points": 32, "--k": 4, "--classes": 5, "--rounds": 2}
    folders = {"--files": tmp_path / "files", "--json": tmp_path / "r.jsonl"}
    options = [str(word) for option in (sizes | folders).items() for word in option]
    assert cli.main(["table", "bgnn-fig4", "bgnn-size-memory", "bgnn-table6", "bgnn-all", *options]) == 0
    every = records.read(tmp_path / "r.jsonl")
    profiles = [r for r in every if "of" in r.settings]
    assert {r.settings["of"] for r in profiles} == {f"BF-H {route}" for route in cases.ROUTES}
    assert {"TOPK_V2", "BgnnHammingKnn"} <= {r.settings["type"] for r in profiles}
    rows = [r for r in every if "of" not in r.settings]
    assert [r.case for r in rows if r.candidate != "LiteRT + ours" or OWN in r.case] == [c.name for c in chosen]
    assert len({r.run for r in rows}) == 1
    assert all(len(r.samples["wall_ms"]) == 2 for r in rows)
    assert all(r.samples["peak_bytes"][0] > r.samples["empty_bytes"][0] for r in rows if r.candidate == "PyTorch")
    assert all(r.settings["verification"]["what"] for r in rows if r.settings["target"])
    printed = capsys.readouterr().out
    assert [case.name for case in chosen if case.name not in printed] == []
    assert "aims are for the paper's sizes" in printed
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])["case"] == BASE[0]
