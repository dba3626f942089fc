"""A library is found in the package or where the environment says, and nowhere else."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from bgnn.runtime_bench.runtime import libraries
from bgnn.runtime_bench.runtime.errors import BgnnError


def find() -> Path:
    return libraries.find("libnone.so", "BGNN_LIBRARY", "such files run")


def test_where_libraries_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BGNN_LIBRARY", raising=False)
    with pytest.raises(
        BgnnError, match=r"^no libnone\.so for .*, and such files run with it: .*, or name one in BGNN_LIBRARY$"
    ):
        find()
    folder = tmp_path / "lib" / platform.machine()
    folder.mkdir(parents=True)
    (folder / "libnone.so").touch()
    monkeypatch.setattr(libraries, "__file__", str(tmp_path / "libraries.py"))
    assert find() == (folder / "libnone.so").resolve()
    monkeypatch.setenv("BGNN_LIBRARY", str(tmp_path / "other.so"))
    with pytest.raises(BgnnError, match=r"^BGNN_LIBRARY=.*other\.so is not a file: unset it, or name a libnone\.so$"):
        find()
    (tmp_path / "other.so").touch()
    assert find() == tmp_path / "other.so"
