"""Codes at the ends of their range: sums over more or larger neighbours than the ranges were chosen for.

A sum's codes have a range, from training or calibration. On a denser or larger graph sums leave it and saturate, and
nothing in the file's outputs shows it. So a file names its sums in the property "bgnn.sums", and the share of their
codes that was at an end of the range on the example graph; `OnnxModel.run` reads these tensors and counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_UINT8 = 2  # TensorProto.DataType


class SaturationWarning(UserWarning):
    """More of a sum's codes are at the ends of their range than on the example graph."""


@dataclass(frozen=True)
class Saturation:
    """One sum's codes: how many stand at an end of their range, of how many; `seen`: the example graph's share."""

    name: str
    at_ends: int
    codes: int
    seen: float | None

    @property
    def share(self) -> float:
        """Of the codes, those at an end."""
        return self.at_ends / self.codes if self.codes else 0.0

    @property
    def is_more(self) -> bool:
        """Whether it is more than chance makes of what the example graph showed."""
        return self.share > 2 * (self.seen or 0.0) + 0.002


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """The file with more uint8 tensors as outputs: a second `graph` message, which protobuf merges into the first."""
    kind = _field(2, _field(1, b"\x08" + bytes([_UINT8])))  # ValueInfoProto.type.tensor_type.elem_type
    outputs = b"".join(_field(12, _field(1, name.encode()) + kind) for name in names)  # GraphProto.output
    return model + _field(7, outputs) if names else model  # ModelProto.graph


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def count(sums: Sequence[Mapping[str, Any]], values: Sequence[np.ndarray]) -> list[Saturation]:
    """`sums`: entries of "bgnn.sums"; `values`: their codes, uint8."""
    found = []
    for one, codes in zip(sums, values, strict=True):
        at_ends = sum(int(np.count_nonzero(codes == end)) for end in one["ends"])
        found.append(Saturation(str(one["name"]), at_ends, codes.size, one["seen"]))
    return found


def joined(found: Iterable[Saturation]) -> list[Saturation]:
    """Counts of parts of a graph, of each sum as one."""
    made: dict[str, Saturation] = {}
    for one in found:
        before = made.get(one.name, Saturation(one.name, 0, 0, one.seen))
        made[one.name] = Saturation(one.name, before.at_ends + one.at_ends, before.codes + one.codes, one.seen)
    return list(made.values())


def warn(found: Sequence[Saturation]) -> None:
    """Says so where more codes than on the example graph are at an end."""
    text = in_words(found)
    if text is not None:
        warnings.warn(text, SaturationWarning, stacklevel=3)


def in_words(found: Sequence[Saturation]) -> str | None:
    """What there is to say, where more codes than on the example graph are at an end."""
    worst = max((one for one in found if one.is_more), key=lambda one: one.share, default=None)
    if worst is None:
        return None
    more = sum(one.is_more for one in found)
    return (
        f"{worst.name}: {worst.at_ends} of {worst.codes} codes ({worst.share:.1%}) are at an end of their 8-bit "
        "range"
        + (f", {worst.seen:.1%} on the example graph" if worst.seen is not None else "")
        + (f"; so are those of {more - 1} more sums" if more > 1 else "")
        + ": this graph's sums are larger than those the ranges were chosen for, and the outputs may be far off; "
        "calibrate with graphs like this one"
    )
