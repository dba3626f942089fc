"""The budget: what it is, what raises it, and that a small .npz cannot ask for more."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bgnn.runtime_bench.runtime import limits
from bgnn.runtime_bench.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"), [("", 2 << 30), ("8G", 8 << 30), ("500M", 500 << 20), ("1gib", 1 << 30), ("4096", 4096)]
)
def test_the_environment_sets_it(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv(limits.VARIABLE, text)
    assert limits.budget() == size
    limits.check_bytes("it", size)
    with pytest.raises(UsageError, match=r"it asks for .*more than the budget of .*BGNN_MEMORY=8G"):
        limits.check_bytes("it", size + 1)


@pytest.mark.parametrize("text", ["much", "-1", "1.5G", "8X", "G", "9" * 30])
def test_what_is_no_size(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(limits.VARIABLE, text)
    with pytest.raises(UsageError, match="is no size: write 8G"):
        limits.budget()


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def test_arrays_come_as_they_are(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "file": np.zeros((2, 0), np.int64), "b": np.array(3, np.int8)}
    with open(tmp_path / "in.npz", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", npy(array))
    found = limits.read_npz(tmp_path / "in.npz", "in")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_zeros_that_inflate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arrays, each within the budget."""
    path = npz(tmp_path / "in.npz", a=npy(np.zeros(300_000, np.int8)), b=npy(np.zeros(300_000, np.int8)))
    assert path.stat().st_size < 3000
    limits.read_npz(path, "in")
    monkeypatch.setenv(limits.VARIABLE, "500K")
    with pytest.raises(UsageError, match="in asks for 586 KiB of memory, more than the budget of 500 KiB"):
        limits.read_npz(path, "in")


def test_damaged_files(tmp_path: Path) -> None:
    good = npy(np.arange(4.0))
    header = b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 100_000  # its header is 2 GiB long
    for data in (b"", b"\x93NUMPY", good[:20], good[:-1], good + b"x", header, good.replace(b"(4,)", b"(-4,)")):
        with pytest.raises(UsageError, match=r"^in"):
            limits.read_npz(npz(tmp_path / "in.npz", a=data), "in")
    whole = npz(tmp_path / "in.npz", a=good).read_bytes()
    for cut in (0, 1, 30, len(whole) - 3):
        (tmp_path / "in.npz").write_bytes(whole[:cut])
        with pytest.raises(UsageError, match=r"^in: not a readable"):
            limits.read_npz(tmp_path / "in.npz", "in")
    with pytest.raises(UsageError, match=r"^in: no such file"):
        limits.read_npz(tmp_path / "gone.npz", "in")
    with pytest.raises(UsageError, match=r"^in: not a file"):
        limits.read_npz(tmp_path, "in")


def test_nan_is_counted() -> None:
    limits.check_numbers("x", np.array([1, 2]))
    limits.check_numbers("x", np.array([1.0, np.inf], np.float32))
    with pytest.raises(UsageError, match="input x holds 2 NaN: replace missing values"):
        limits.check_numbers("x", np.array([np.nan, 1.0, np.nan], np.float16))


def test_threads() -> None:
    limits.check_threads("threads", limits.MOST_THREADS)
    for threads in (0, -1, limits.MOST_THREADS + 1, 10**9):
        with pytest.raises(UsageError, match=f"threads = {threads}: at least one thread"):
            limits.check_threads("threads", threads)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1023, "1.02e+03 bytes"), (1024, "1 KiB"), (5 << 20, "5 MiB"), (40_000_000_000, "37.3 GiB"),
     (5 << 40, "5 TiB"), (10**400, "9.09e+287 TiB")],
)  # fmt: skip
def test_bytes_in_words(size: int, words: str) -> None:
    assert limits.readable(size) == words
