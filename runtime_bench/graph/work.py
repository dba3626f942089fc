"""The work folder beside the output: what is finished stays there, and the same command goes on from it.

`done` holds a line for each finished step, written after its data. The arrays are .npy files, memory-mapped; their disk
space is taken when they are made, so that a full disk is an error there and then.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bgnn.runtime_bench.runtime.errors import BgnnError


class Work:
    """`key`: what the result depends on. `resumed`: whether steps of an earlier run with the same key are there."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._log = folder, folder / "done"
        if folder.exists() and (not self._log.exists() or self._lines()[:1] != [key]):
            if not self._log.exists():
                raise BgnnError(f"{folder} is there already, and is no work folder of bgnn-graph: move it away")
            shutil.rmtree(folder)
        with self.named():
            folder.mkdir(exist_ok=True)
            if not self._log.exists():
                self._log.write_text(f"{key}\n")
        self._done = set(self._lines()[1:])
        self.resumed = bool(self._done)

    def _lines(self) -> list[str]:
        text = self._log.read_text()
        return text[: text.rfind("\n") + 1].splitlines()  # a torn last line was never written

    def is_done(self, step: str) -> bool:
        """Whether a step was finished, by this run or an earlier one."""
        return step in self._done

    def finish(self, step: str) -> None:
        """Notes that a step's data is there."""
        with self.named(), self._log.open("a") as file:
            file.write(f"{step}\n")
            file.flush()
            os.fsync(file.fileno())
        self._done.add(step)

    def allocate(self, name: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """A new array on disk. Raises BgnnError where the disk is too full."""
        path = self.folder / f"{name}.npy"
        with self.named():
            array = np.lib.format.open_memmap(path, "w+", dtype, tuple(shape))
            size = path.stat().st_size
            if size:
                with path.open("rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
        return array

    def open(self, name: str, write: bool = False) -> np.ndarray:
        """An array that was made before."""
        with self.named():
            return np.load(self.folder / f"{name}.npy", mmap_mode="r+" if write else "r", allow_pickle=False)

    def path(self, name: str) -> Path:
        """Where an array lies."""
        return self.folder / f"{name}.npy"

    def remove(self) -> None:
        """The result is written: nothing is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def named(self) -> _Named:
        """Within the block, errors of the file system are one line."""
        return _Named(self.folder)


def forget(arrays: Iterable[np.ndarray]) -> None:
    """Lets go of the pages of mapped files, so that they do not count as this process's memory: what is read again
    comes from the system's cache, or from the disk where that was needed for something else."""
    for array in arrays:
        pages = getattr(array, "_mmap", None)
        if pages is not None:
            pages.madvise(mmap.MADV_DONTNEED)


class _Named:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise BgnnError(
                f"cannot write in {self.folder}: {error.strerror or error}; what is finished stays there, and the same "
                "command goes on from it"
            ) from error


def key_of(parts: Sequence[object], files: Sequence[Path]) -> str:
    """One word for what a result depends on: some words, and files as they are now."""
    digest = hashlib.sha256(repr(parts).encode())
    for file in files:
        for one in sorted(file.glob("*")) if file.is_dir() else [file]:
            about = one.stat()
            digest.update(repr((str(one.resolve()), about.st_size, about.st_mtime_ns)).encode())
    return digest.hexdigest()
