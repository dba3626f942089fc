"""The work folder beside the output: what is finished stays there, and the same command goes on from it.

`done` holds a line for each finished step, written after its data; a run locks it, so that no other one works there.
The arrays are .npy files, memory-mapped; their disk space is taken when they are made, so that a full disk is an error
there and then.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bgnn.runtime_bench.runtime.errors import BgnnError

TAG = "bgnn-graph "  # how the log of a work folder begins


class Work:
    """What an earlier run has done stays if its `key`, what the result depends on, is the same.

    Raises BgnnError where the folder is something else, or another run is at work in it.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key
        log = folder / "done"
        with self.named():
            others = folder.exists() and (not folder.is_dir() or any(one != log for one in folder.iterdir()))
            if others and not (log.is_file() and log.read_bytes().startswith(TAG.encode())):
                raise BgnnError(f"{folder} is there already, and is no work folder of bgnn-graph: move it away")
            folder.mkdir(exist_ok=True)
            self._log = log.open("a+")
            self._lock()
            self._log.seek(0)
            text = self._log.read()
            whole = text[: text.rfind("\n") + 1]
            self._log.truncate(len(whole.encode()))  # a torn last line was never written
            if not whole:
                self._log.write(TAG)
                self._log.flush()
        self._done = set(whole.splitlines()[1:])
        if whole.splitlines()[:1] != [f"{TAG}{key}"]:
            self.begin()

    def _lock(self) -> None:
        """Until the log is closed, or the process ends."""
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(self._log.fileno()), (self.folder / "done").stat())
        except (BlockingIOError, FileNotFoundError):  # it is at work, or ended just now
            same = False
        if not same:
            self._log.close()
            raise BgnnError(f"another bgnn-graph is at work in {self.folder}: wait for it, or give another -o")

    @property
    def resumed(self) -> bool:
        """Whether anything is done."""
        return bool(self._done)

    def begin(self) -> None:
        """Nothing is done, and nothing else is there."""
        self._clear()
        with self.named():
            self._log.write(f"{self._key}\n")
            self._log.flush()

    def _clear(self) -> None:
        """The log goes first: killed half-way, the next run begins anew."""
        self._done = set()
        with self.named():
            self._log.truncate(len(TAG))
            for one in self.folder.iterdir():
                if one.name != "done":
                    one.unlink()

    def is_done(self, step: str) -> bool:
        """Whether a step was finished, by this run or an earlier one."""
        return step in self._done

    def finish(self, step: str) -> None:
        """Notes that a step's data is there."""
        with self.named():
            self._log.write(f"{step}\n")
            self._log.flush()
            os.fsync(self._log.fileno())
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

    def close(self) -> None:
        """Another run may go on from here. A folder without a finished step is of no use, and goes."""
        with contextlib.suppress(BgnnError, OSError):  # what went wrong was said
            if not self._done and not self._log.closed:
                self.remove()
            self._log.close()

    def remove(self) -> None:
        """Nothing is kept."""
        self._clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log.close()

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
