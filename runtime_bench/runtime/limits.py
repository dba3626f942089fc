"""What files and arrays may ask for: one budget for the memory that sizes in a file stand for, checked before anything
is allocated, and no NaN.

A small file can state large sizes: an array's header, a tensor that repeats one number, a network's widths. Whatever
reads files calls `check_bytes` with the sum of what they ask for. The budget is 2 GiB, the most that a TFLite or ONNX
file can hold; the environment's BGNN_MEMORY (8G, 500M, or bytes) sets another.
"""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from bgnn.runtime_bench.runtime.errors import UsageError

VARIABLE = "BGNN_MEMORY"
DEFAULT = 2 << 30
MOST_THREADS = 1024
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_HEADER = 1 << 16  # bytes; numpy itself refuses headers of more than 10,000


def budget() -> int:
    """The budget in bytes. Raises UsageError where BGNN_MEMORY is no size."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return DEFAULT
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)(?:i?B)?", text, re.ASCII | re.IGNORECASE)
    if not match:
        raise UsageError(f"{VARIABLE}={text[:40]} is no size: write 8G, 500M or a number of bytes")
    return int(match[1]) * _UNITS[match[2].upper()]


def check_bytes(what: str, size: int) -> None:
    """Raises UsageError if `what` asks for more bytes than the budget."""
    if size > budget():
        raise UsageError(
            f"{what} asks for {readable(size)} of memory, more than the budget of {readable(budget())}: "
            f"if that is meant, raise it with {VARIABLE} in the environment, as in {VARIABLE}=8G"
        )


def check_numbers(name: str, array: np.ndarray) -> None:
    """Raises UsageError for an input with NaN: every comparison with one is false, and bits hide it."""
    if array.dtype.kind == "f" and (count := int(np.isnan(array).sum())):
        raise UsageError(f"input {name} holds {count} NaN: replace missing values before running the model")


def check_threads(name: str, threads: int) -> None:
    """Raises UsageError unless a runtime can be asked for so many: each costs memory before it has work."""
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"{name} = {threads}: at least one thread is needed, and {MOST_THREADS} are the most")


def readable(size: int) -> str:
    """Bytes in words."""
    number, unit = float(min(size, 10**300)), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.3g} {unit}"


def read_npz(path: Path, where: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name; headers are read first, so that nothing is inflated beyond the budget.

    Raises UsageError, which begins with `where`, for a file that is missing, damaged, of another kind, too large, or
    holds pickled objects.
    """
    if not path.is_file():
        raise UsageError(f"{where}: " + ("not a file" if path.exists() else "no such file"))
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise UsageError(f"{where} is a single array: save it with np.savez(path, name=array)")
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            total = 0
            for info in members:
                with archive.open(info) as stream:
                    start = io.BytesIO(stream.read(_HEADER))
                    shape, _, dtype = _header(f"{where}: {info.filename!r}", start)
                    total += math.prod(shape) * dtype.itemsize
                check_bytes(where, total)
            return {info.filename.removesuffix(".npy"): _array(archive, info) for info in members}
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{where}: cannot read it ({error.strerror or error})") from error
    except Exception as error:  # zipfile, zlib and numpy each have their own for a malformed file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{where}: not a readable .npz of plain arrays ({reason})") from error


def read_npy(stream: IO[bytes], where: str, which: str) -> np.ndarray:
    """The next array of a stream that need not be seekable, such as a pipe, in the form of an .npy file.

    Reads its bytes and no more. Raises UsageError, which begins with `where` and names the array by `which`, where the
    stream ends, is no array, states a size beyond the budget, or holds pickled objects.
    """
    again = _Again(stream)
    try:
        if again.peek(4) == b"PK\x03\x04":
            raise UsageError(
                f"{where}: an .npz archive cannot be read from a pipe: write .npy arrays, one after the other"
            )
        shape, columns_first, dtype = _header(f"{where}: {which}", again)
        size = math.prod(shape) * dtype.itemsize
        check_bytes(f"{where}: {which}", size)
        data = again.read(size)
        if not again.ended:
            return np.ndarray(shape, dtype, data, order="F" if columns_first else "C")
        reason = ""
    except (ValueError, TypeError) as error:  # numpy's, for a header that is none or ends early
        reason = " ".join(str(error).split())[:200]
    except OSError as error:
        raise UsageError(f"{where}: cannot read {which} ({error.strerror or error})") from error
    if again.ended:
        raise UsageError(f"{where}: the stream ends before {which} does")
    raise UsageError(f"{where}: {which} is no .npy array ({reason})")


class _Again:
    """A stream that can be looked ahead in, and knows whether it gave less than it was asked for."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._ahead, self.ended = stream, b"", False

    def peek(self, size: int) -> bytes:
        self._ahead = self._stream.read(size)
        return self._ahead

    def read(self, size: int) -> bytes:
        found, self._ahead = self._ahead[:size], self._ahead[size:]
        found += self._stream.read(size - len(found))
        self.ended |= len(found) < size
        return found


def _header(where: str, stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and dtype of an array whose .npy form a stream goes on with."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    if dtype.hasobject:
        raise UsageError(f"{where} holds pickled Python objects, which are not read")
    if any(size < 0 for size in shape):
        raise UsageError(f"{where} has a negative size")
    return shape, columns_first, dtype


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):  # also what has the checksum looked at
            raise ValueError(f"{info.filename!r} holds more than its header says")
    return array
