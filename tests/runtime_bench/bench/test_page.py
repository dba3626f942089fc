"""Pages hold what records and reports say, escaped, with nothing from elsewhere; a browser draws them at any width."""

from __future__ import annotations

import copy
import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bench_records import record
from browser import look, needs_browser

from bgnn.runtime_bench.bench import cli, page, profile, records
from bgnn.runtime_bench.bench.profile import Operator, Profile
from bgnn.runtime_bench.bench.records import Record
from bgnn.runtime_bench.bench.report import Bar, Sheet, markdown

NASTY = "\"><script>window.hacked=1</script>&'conv" + "_with_a_very_long_name" * 8
CHECK = {
    "what": "emitted file", "compared": True, "turned_signs": 2, "turned_rows": 0, "stepped": 0, "changed_rows": 0,
    "signs": 1234, "neighbours": 10, "codes": 0, "exact": 9, "rows": 4, "column_error": 1e-6, "output_error": 2e-7,
    "output_scale": 3.5, "note": "a note", "proof": {"layers": 3, "values": 9, "sampled": []},
}  # fmt: skip
LAYERS = [
    {"name": NASTY, "was": "binary x binary", "became": "bits", "binary_macs": 90, "integer_macs": 0, "float_macs": 0,
     "why": "<b>signs</b>"},
    {"name": "head", "was": "real", "became": "float", "binary_macs": 0, "integer_macs": 0, "float_macs": 10,
     "why": "its inputs are real"},
]  # fmt: skip
REPORT = {
    "name": "net", "target": "lce-arm64", "optimize": 1, "kernels": "bgnn", "bytes": 4321, "inputs": "x float32 [2, 3]",
    "operators": {"LceBconv2d": 3, "RESHAPE": 1}, "macs": {"binary": 90, "INT8": 0, "float": 10}, "layers": LAYERS,
    "checks": [CHECK], "warnings": ["beware"], "peak_activation_bytes": 2_000_000,
}  # fmt: skip


class Tags(HTMLParser):
    """Whether every element is closed, and what there is."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def everything() -> list[Record]:
    """A run of two candidates, with a conversion, and a profile."""
    how = {"conversion": {**copy.deepcopy(REPORT)}, "after": {"governor": "powersave"}}
    run = [record(settings=how, file_bytes=[4321]), record("<fast>", how, cpu_ms=[0.5, 1])]
    operators = [Operator(f"KIND{i}", f"t{i}", layer=NASTY if i == 1 else "", ms=[1.0 + i, 1.0 + i]) for i in range(12)]
    settings = {"run": "p", "base": ["a.tflite", "LiteRT"], "threads": 1, "rounds": 2, "inputs": "random, seed 0"}
    return run + profile.operator_records(Profile(operators, [9.0, 9.0]), "a.tflite", "LiteRT", settings)


def checked(text: str) -> Tags:
    found = Tags(text)
    assert found.open == []
    assert "script" not in {tag for tag, _ in found.seen}, "what is a name stays a name"
    for tag, attributes in found.seen:
        assert tag not in ("link", "img", "iframe", "object"), tag
        assert not {"src", "href", "onload", "onclick"} & attributes.keys()
    assert "url(" not in text
    assert "@import" not in text
    return found


def test_a_page_of_records() -> None:
    found = checked(page.of_records(everything(), f"bgnn-bench: {NASTY}"))
    said = "\n".join(found.words)
    for text in (
        NASTY, "<fast>", "2.00 (2.00-2.00)", "KIND11", "<b>signs</b>", "1,234 (2 turned)", "a note", "4,321 bytes",
        "governor powersave", "by node type", "Where time goes", "Conversions", "others",
    ):  # fmt: skip
        assert text in said, text
    charts = [attributes for tag, attributes in found.seen if tag == "svg"]
    assert len(charts) == 4, "the run, the profile, the layers, the operators"


def test_a_page_of_one_conversion() -> None:
    shares = {"clipped": 0.01, "error": 0.02, "alone": 0.03}
    calibration = {"activations": [{"layer": "", "what": "input", "low": 0.0, "high": 1.5, **shares}]}
    found = checked(page.of_conversion({**REPORT, "calibration": calibration}, {"cpu": "a CPU", "cores": 2}))
    said = "\n".join(found.words)
    for text in ("net: lce-arm64", "x float32 [2, 3]", "beware", "3.00%", "a CPU, 2 cores", "2e-07"):
        assert text in said, text
    kinds = [a["class"] for tag, a in found.seen if tag == "span"]
    assert kinds == ["kind binary", "kind float"]
    unverified = page.of_conversion({**REPORT, "checks": []}, {})
    assert "not verified (--no-verify)" in unverified


def test_bars_are_shares_of_the_longest() -> None:
    drawn = page.chart([Bar("a", [("x", 1.0), ("y", 3.0)]), Bar("b", [("x", 2.0)]), Bar("none", [])], "ms")
    bars = [a for tag, a in Tags(drawn).seen if "bar" in (a.get("class") or "")]
    assert [(b["x"], b["width"]) for b in bars] == [
        ("0.000%", "25.000%"),
        ("25.000%", "75.000%"),
        ("0.000%", "50.000%"),
    ]
    assert bars[0]["class"] == bars[2]["class"] != bars[1]["class"], "a part has one colour"
    assert Tags(page.chart([], "ms")).open == []
    picture = page.picture([Bar("a", [("", 1.0)])], "ms")
    assert picture.startswith('<svg class="chart" xmlns="http://www.w3.org/2000/svg" width="760"')
    assert "prefers-color-scheme:dark" in picture


def test_markdown_and_its_pictures(tmp_path: Path) -> None:
    sheets = [
        Sheet("first", ["name", "x\ny"], [["a|b", "1"]], "so", ["noisy"], [Bar("a", [("", 1.0)])], "ms"),
        Sheet("second", ["name"], [["c"]]),
        Sheet("first", ["name"], [["d"]], bars=[Bar("d", [("", 2.0)])]),
    ]
    files = page.markdown_files(sheets, tmp_path / "t.md")
    assert sorted(path.name for path in files) == ["t-0.svg", "t-1.svg", "t.md"]
    text = files[tmp_path / "t.md"].decode()
    assert text.index("![first](t-0.svg)") < text.index("![first](t-1.svg)"), "a title may come twice"
    assert "| name | x y |\n|---|---:|\n| a\\|b | 1 |\n\nso  \nnoisy  " in text
    assert "### second\n\n| name |" in text
    assert markdown(sheets, {}).count("![") == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.jsonl").write_bytes(records.write(everything()))
    output = tmp_path / "report.html"
    assert cli.main(["report", str(tmp_path / "r.jsonl"), "-o", str(output)]) == 0
    checked(output.read_text())
    before = output.read_bytes()
    assert cli.main(["report", str(tmp_path / "r.jsonl"), "-o", str(tmp_path / "r.jsonl")]) == 2
    assert "it is the records" in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text("{")
    assert cli.main(["report", str(tmp_path / "bad.jsonl"), "-o", str(output)]) == 1
    assert output.read_bytes() == before


@pytest.mark.slow
@needs_browser
def test_a_browser_draws_it(tmp_path: Path) -> None:
    pages: dict[str, Any] = {
        "records": page.of_records(everything(), f"bgnn-bench: {NASTY}"),
        "conversion": page.of_conversion(REPORT, {"cpu": "a CPU", "cores": 2}),
    }
    for name, text in pages.items():
        grounds = set()
        for width, dark in ((390, False), (1280, False), (800, True)):
            told = look(text, tmp_path, width, dark)
            where = f"{name}, {width} wide"
            assert told["needed"] <= told["width"] == width, where
            assert told["outside"] == [], where
            assert told["scripts"] == 0, where
            drawn = [size for size in told["bars"] if size[0] > 5 and size[1] == 12]
            assert len(drawn) >= 4, where
            assert max(size[0] for size in told["bars"]) > 0.85 * width or width > 1200, where
            assert told["text"] == told["ink"] != told["ground"], where
            grounds.add((dark, told["ground"]))
        assert len({ground for _, ground in grounds}) == 2, "dark is another ground"


def test_the_records_of_tables_make_the_tables() -> None:
    row = dataclasses.replace(record(settings={"source": "times"}), case="BF-H -O0, stock")
    sizes = {"batch": 8, "points": 1024, "k": 20, "classes": 40}
    row.settings["sizes"] = sizes
    said = "\n".join(checked(page.of_records([row], "r")).words)
    assert "Sizes and memory (section 5.1 of the binary GNN paper): batch 8" in said
    assert "Figure 4" not in said, "profiles are missing"
    assert json.loads(records.write([row]))["settings"]["sizes"] == sizes
