"""What is checked of a PyTorch file before and after `torch.load(weights_only=True)`, which runs no code of the file.

That function takes records as they are, repeats of one number as large tensors, and keys whose hash takes for ever.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from bgnn.converter.errors import UsageError
from bgnn.runtime_bench.runtime import limits

_MOST_VALUES = 10**7
_FILLS = {
    "APPEND",
    "APPENDS",
    "SETITEM",
    "SETITEMS",
    "ADDITEMS",
    "BUILD",
}  # the first operand goes on, with the others in it
_LEGACY_PICKLES = 5  # a magic number, the protocol, the system, the object, the storages' keys


def read_torch(file: Path | IO[bytes], classes: Sequence[type] = ()) -> Any:
    """What torch.save wrote: tensors and plain containers (and `classes`); none of the file's code runs.

    Raises UsageError for what is hostile or too large, and whatever torch raises for damaged files.
    """
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return read_torch(stream, classes)
    _check_pickles(file)
    file.seek(0)
    with torch.serialization.safe_globals(list(classes)):
        content = torch.load(file, map_location="cpu", weights_only=True)
    _check_tensors(content)
    return content


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Raises UsageError where a record of this archive of `size` bytes is compressed, overlaps another, has another's
    name or does not have its checksum."""
    infos = archive.infolist()
    if any(i.compress_type != zipfile.ZIP_STORED for i in infos) or sum(i.file_size for i in infos) > size:
        raise UsageError("its records are compressed or overlap, which torch.save never writes")
    if len({i.filename.lower() for i in infos}) < len(infos):  # readers differ in which of them they take
        raise UsageError("damaged or hostile: two of its records have the same name")
    if all(i.CRC == 0 for i in infos):
        return  # saved after torch.serialization.set_crc32_options(False): there are no checksums
    damaged = archive.testzip()
    if damaged is not None:
        raise UsageError(f"damaged: the checksum of its record {damaged[:100]!r} is wrong")


def _check_pickles(file: IO[bytes]) -> None:
    """Raises UsageError for containers that hold one another so often that they stand for more values than any file
    has: hashing or printing such a one would take for ever."""
    if zipfile.is_zipfile(file):
        file.seek(0)
        reader: Any = torch._C.PyTorchFileReader(file)  # the reader that torch.load has: it sees the same records
        if reader.has_record("data.pkl"):
            _check_pickle(io.BytesIO(reader.get_record("data.pkl")))
        return
    file.seek(0)
    for _ in range(_LEGACY_PICKLES):
        _check_pickle(file)


def _check_pickle(stream: IO[bytes]) -> None:
    """Follows the pickle's instructions with numbers in place of objects; it stops where it is malformed, as the
    reader will. Number 0 is whatever holds nothing."""
    holds: list[list[int]] = [[]]
    stack: list[int | None] = []  # None is a mark
    memo: dict[int, int] = {}

    def popped(kinds: Sequence[str]) -> list[int]:
        taken: list[int] = []
        for kind in reversed(kinds):
            if kind == "stackslice":
                while (top := stack.pop()) is not None:
                    taken.append(top)
            elif kind != "mark":  # gone with its slice
                taken.append(stack.pop() or 0)
        return taken[::-1]

    def made(children: list[int]) -> int:
        holds.append(children)
        return len(holds) - 1

    try:
        for code, argument, _ in pickletools.genops(stream):
            before = [str(kind) for kind in code.stack_before]
            after = len(code.stack_after)
            if code.name == "MARK":
                stack.append(None)
            elif code.name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[int(str(argument))] = stack[-1] or 0
            elif code.name == "MEMOIZE":
                memo[len(memo)] = stack[-1] or 0
            elif code.name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[int(str(argument))])
            elif code.name == "DUP":
                stack.append(stack[-1])
            elif code.name in _FILLS:
                target, *values = popped(before)
                holds[target].extend(values) if target else None
                stack.append(target)
            else:
                values = popped(before)
                if after:
                    stack.append(made(values) if values or code.name.startswith("EMPTY_") or "mark" in before else 0)
    except (IndexError, KeyError, ValueError, TypeError):
        pass
    if _values_in(holds) > _MOST_VALUES:
        raise UsageError(f"damaged or hostile: its lists hold one another more than {_MOST_VALUES:,} times over")


def _values_in(holds: Sequence[Sequence[int]]) -> float:
    """The most values that one of the containers stands for, each as often as it is held; infinite in a circle."""
    sizes: dict[int, float] = {}
    for root in range(len(holds)):
        todo = [(root, False)]
        while todo:
            one, entered = todo.pop()
            if entered:
                sizes[one] = 1 + sum(sizes[child] for child in holds[one])
            elif one not in sizes:
                sizes[one] = math.inf  # what is met again before it is done holds itself
                todo.append((one, True))
                todo.extend((child, False) for child in holds[one])
    return max(sizes.values())


def _parts(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The indices and values of a sparse matrix; raises UsageError unless each value has a place in it."""
    indices, values = matrix._indices(), matrix._values()
    size = torch.tensor(matrix.shape)[:, None]
    if matrix.device.type == "cpu" and (values.dim() != 1 or ((indices < 0) | (indices >= size)).any()):
        raise UsageError(f"{name!r} is a sparse matrix with values that have no place in it")
    return indices, values


def _check_tensors(content: Any) -> None:
    """Raises UsageError unless all tensors in `content` are plain ones of real numbers, within the budget together."""
    total, seen = 0, set()
    todo: list[tuple[str, Any]] = [("", content)]
    while todo:
        name, value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            todo.extend((str(key)[:100] if isinstance(key, (str, int)) else name, one) for key, one in value.items())
        elif isinstance(value, (list, tuple)):
            todo.extend((name, one) for one in value)
        elif isinstance(value, Tensor) and value.layout is torch.sparse_coo and value.dim() == 2:
            todo.extend((name, one) for one in _parts(name, value))
        elif isinstance(value, Tensor):
            if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
                raise UsageError(f"{name!r} is no plain tensor (it is sparse, quantised or of a class of its own)")
            if value.device.type != "cpu":
                raise UsageError(f"{name!r} has no values: it was saved on the device {value.device.type!r}")
            if value.is_complex():
                raise UsageError(f"{name!r} is {value.dtype}: networks of complex numbers are not converted")
            total += value.numel() * value.element_size()
    limits.check_bytes("it", total)
