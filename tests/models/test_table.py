"""Tables of trained networks: shared beginnings, going on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cloud_files import write_h5

from bgnn.models import table
from bgnn.models.checkpoint import load_checkpoint

FOLDER = Path(table.__file__).parent / "tables"
TINY = ["points=12", "k=3", "channels=[4,4,4,4]", "embedding=8", "mlp=[8,8]", "batch=8", "epochs=[1,1,1,1]"]
ROWS = {"BF1, scratch": "binary-table1-01", "BF1, cascade": "binary-table1-03 init=random"}


@pytest.fixture
def clouds(tmp_path):
    write_h5(tmp_path, 16, 12, 2)
    return tmp_path


def written(path, **changes):
    content = {"version": 1, "start": "binary-table1-36", "seeds": [0, 1], "set": TINY, "rows": ROWS} | changes
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_tables_that_ship_can_be_read(path):
    read = table.read_table(path)
    assert len(read.seeds) >= 3
    assert next(iter(read.rows)) == "start"
    last = read.rows["start"].recipe.stages[-1]
    for config in list(read.rows.values())[1:]:
        assert config.recipe.distillation == "none" or last in config.recipe.stages[:-1]


def test_all_rows_share_the_start_of_their_seed(clouds, capsys):
    path = written(clouds / "t.json")
    arguments = [str(path), "--data", str(clouds), "--folder", str(clouds / "run")]
    table.main(arguments)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| start", "| BF1, scratch", "| BF1, cascade"]
    start, scratch, cascade = ([cell.strip() for cell in row.split("|")] for row in rows[1:])
    assert (scratch[6:8], cascade[6:8]) == (["2", "61.26"], ["2", "81.04"])
    assert scratch[2:5] == ["-", "-", "-"]
    assert cascade[2] == start[2]  # the same networks
    assert not (clouds / "run/bf1-cascade/seed0/stage0.pt").exists()
    assert (clouds / "run/table.md").read_text().strip() in printed
    assert "- Settings other than the defaults: `{" in (clouds / "run/bf1-cascade/card.md").read_text()
    assert "- Seeds: 0, 1" in (clouds / "run/bf1-cascade/card.md").read_text()
    table.main([*arguments, "--print"])
    assert capsys.readouterr().out == (clouds / "run/table.md").read_text()
    table.main(arguments)
    assert "bf1 stage 3 is trained already" in capsys.readouterr().out


def test_the_start_may_be_a_later_stage(clouds):
    path = written(clouds / "t.json", start="binary-table1-03 stage=2", rows={"a": "binary-table1-03"}, seeds=[4])
    table.main([str(path), "--data", str(clouds), "--folder", str(clouds / "run")])
    assert load_checkpoint(clouds / "run/start/seed4/model.pt").config["stage"] == 2
    assert list((clouds / "run/a/seed4").glob("stage*.pt")) == [clouds / "run/a/seed4/stage3.pt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2; this command reads version 1"),
        ({"seeds": [1, 1]}, "seeds: whole numbers, each once"),
        ({"seeds": []}, "seeds: whole numbers, each once"),
        ({"rows": 5}, "not a table"),
        ({"rows": {"a": ""}}, "a row names no configuration"),
        ({"rows": {"a": "binary-table1-99"}}, "no such configuration"),
        ({"rows": {"a": "binary-table1-03 epoch=1"}}, "unknown key 'epoch'"),
        ({"rows": {"a": "binary-table3-01-products"}}, "unknown key 'points'"),
        ({"set": [], "rows": {"a": "dq-table3-fp32"}}, "of kind 'dq'; a table is of point clouds"),
        ({"rows": {"a b": "binary-table1-03", "a, b": "binary-table1-01"}}, "differ in signs alone"),
        ({"rows": {"a": "binary-table1-03 points=13"}}, "different numbers of points"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(changes, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        table.main([str(written(tmp_path / "t.json", **changes)), "--folder", str(tmp_path / "run")])
    assert error.value.code == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
