"""The work folder: what is finished stays, and nobody else's files or runs are touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench.graph.work import Work
from bgnn.runtime_bench.runtime.errors import BgnnError


def started(folder: Path, key: str = "key") -> Work:
    work = Work(folder, key)
    work.allocate("x", [3], np.dtype(np.float32))[:] = 1
    work.finish("first step")
    return work


def test_what_is_finished_stays_for_the_same_key(tmp_path: Path) -> None:
    started(tmp_path / "w").close()
    again = Work(tmp_path / "w", "key")
    assert again.resumed
    assert again.is_done("first step")
    assert again.open("x").tolist() == [1, 1, 1]
    again.close()
    other = Work(tmp_path / "w", "another")
    assert not other.resumed
    assert not other.path("x").exists()


def test_a_run_at_work_is_left_alone(tmp_path: Path) -> None:
    """With the same inputs or others: neither waits, mixes, or removes anything."""
    work = started(tmp_path / "w")
    for key in ("key", "another"):
        with pytest.raises(BgnnError, match="another bgnn-graph is at work in"):
            Work(tmp_path / "w", key)
    work.finish("second step")
    assert work.open("x").tolist() == [1, 1, 1]
    work.remove()
    assert not (tmp_path / "w").exists()


def test_a_torn_line_never_becomes_a_step(tmp_path: Path) -> None:
    """Not in the run after the next either, when something stands behind it."""
    started(tmp_path / "w").close()
    with (tmp_path / "w" / "done").open("a") as log:
        log.write("second")  # of "second step of 9"
    again = Work(tmp_path / "w", "key")
    again.finish("third")
    again.close()
    last = Work(tmp_path / "w", "key")
    assert [step for step in ("first step", "second", "third") if last.is_done(step)] == ["first step", "third"]


def test_a_folder_without_a_finished_step_goes(tmp_path: Path) -> None:
    work = Work(tmp_path / "w", "key")
    work.allocate("x", [3], np.dtype(np.float32))
    work.close()
    assert not (tmp_path / "w").exists()


def test_a_removal_that_was_cut_short_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = started(tmp_path / "w")
    monkeypatch.setattr(Path, "unlink", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        work.remove()
    monkeypatch.undo()
    work.close()
    assert not Work(tmp_path / "w", "key").resumed


@pytest.mark.parametrize("name", ["mine", "done"])
def test_a_folder_of_somebody_else_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / name).write_text("a list\n")
    (tmp_path / "w" / "more").write_text("x")
    with pytest.raises(BgnnError, match="is no work folder of bgnn-graph"):
        Work(tmp_path / "w", "key")
    assert (tmp_path / "w" / name).read_text() == "a list\n"
    (tmp_path / "v").write_text("x")
    with pytest.raises(BgnnError, match="is no work folder of bgnn-graph"):
        Work(tmp_path / "v", "key")
