"""The tensors of a file of torch.save, without PyTorch: a PyG dataset's processed file, or a dictionary of tensors.

Nothing of the file is run: of its pickle only tensors, containers and PyG's own classes are taken, these as plain
records of their attributes. Tensors are mapped into memory, and not read.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.runtime.errors import UsageError

_STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "LongStorage": np.int64,
    "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
_LOCAL_HEADER = 30


class _Record:
    """An object of a class that is not imported."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Record:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def read(path: Path) -> dict[str, np.ndarray]:
    """The graph's tensors by name. Raises UsageError where the file is none, or holds several graphs."""
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            found = _Unpickler(path, archive, member.removesuffix("data.pkl")).load()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile, struct, pickle and whatever a damaged pickle calls
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{path} is no processed file of a PyG dataset ({reason})") from error
    slices: Any = None
    if isinstance(found, tuple) and len(found) >= 2:
        found, slices = found[:2]
    if isinstance(slices, dict) and any(len(bounds) > 2 for bounds in slices.values()):
        raise UsageError(f"{path} holds several graphs: bgnn-graph runs one")
    if isinstance(found, _Record):
        store = found.__dict__.get("_store", found)
        found = store.__dict__.get("_mapping", store.__dict__)
    arrays = {str(k): v for k, v in found.items() if isinstance(v, np.ndarray)} if isinstance(found, dict) else {}
    if not arrays:
        raise UsageError(f"{path} holds no tensors by name: bgnn-graph reads a PyG dataset's processed file")
    return arrays


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}data.pkl"))
        self._path, self._archive, self._prefix = path, archive, prefix

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module.partition(".")[0] == "torch_geometric":
            return _Record
        raise pickle.UnpicklingError(f"it holds {module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, count = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it holds {kind}")
        info = self._archive.getinfo(f"{self._prefix}data/{key}")
        size = int(count) * np.dtype(dtype).itemsize
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < size:
            raise pickle.UnpicklingError(f"its tensor {key} is damaged")
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            lengths = struct.unpack("<HH", file.read(_LOCAL_HEADER)[26:30])
        if not size:
            return np.empty(0, dtype)
        offset = info.header_offset + _LOCAL_HEADER + sum(lengths)
        return np.memmap(self._path, dtype, "r", offset, (int(count),))


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> np.ndarray:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else offset
    if offset < 0 or any(step < 0 for step in stride) or last >= max(len(storage), 1):
        raise pickle.UnpicklingError("a tensor is beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)
