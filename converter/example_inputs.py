"""The tensors a model is traced and verified with: from `--input`, an .npz file, or a known shape."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bgnn.converter.errors import UsageError
from bgnn.runtime_bench import limits

MAX_ELEMENTS = 2**31  # a TFLite tensor's byte offsets and shapes are 32-bit
SEED = 0
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool")


def random_points(batch: int, points: int, coordinates: int = 3) -> Tensor:
    """Seeded points, uniform in the unit ball (ModelNet40's scale): f32 `[batch, points, coordinates]`."""
    check_shape("points", (batch, points, coordinates))
    generator = torch.Generator().manual_seed(SEED)
    direction = torch.randn((batch, points, coordinates), generator=generator)
    radius = torch.rand((batch, points, 1), generator=generator) ** (1 / coordinates)
    return direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12) * radius


def random_like(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A seeded input of a known shape: points in the unit ball for `[B, N, 3]`, else normal values.

    Whole numbers are often indices, which nobody can guess: they are refused, and must come from an .npz
    file.
    """
    check_shape(name, shape, max(4, dtype.itemsize))
    if not dtype.is_floating_point:
        kind = str(dtype).removeprefix("torch.")
        raise UsageError(
            f"input {name!r} is {kind}: random whole numbers may be out of range "
            "for the model; give real values with --input FILE.npz"
        )
    if len(shape) == 3 and shape[2] == 3:
        return random_points(*shape).to(dtype)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(tuple(shape), generator=generator).to(dtype)


def check_shape(name: str, shape: Sequence[int], item_bytes: int = 4) -> None:
    """Raises UsageError for a shape with an empty axis, more than 2^31 elements or more bytes than the budget."""
    if any(size < 1 for size in shape):
        raise UsageError(f"input {name!r} has shape {_text(shape)}: every size must be at least 1")
    if math.prod(shape) > MAX_ELEMENTS:
        raise UsageError(f"input {name!r} has shape {_text(shape)}: more than 2^31 elements")
    limits.check_bytes(f"input {name!r} of shape {_text(shape)}", math.prod(shape) * item_bytes)


def named_inputs(arguments: Sequence[str]) -> dict[str, Tensor]:
    """The tensors that `--input` arguments describe, in their order.

    Each is `NAME=SHAPE[:DTYPE]` (`points=8x1024x3:float32`; random values, seeded) or the path of an .npz
    file whose arrays are the inputs. Raises UsageError.
    """
    inputs: dict[str, Tensor] = {}
    for argument in arguments:
        found = read_npz(Path(argument)) if argument.endswith(".npz") else _described(argument)
        for name, value in found.items():
            if name in inputs:
                raise UsageError(f"--input: {name!r} is given twice")
            inputs[name] = value
    return inputs


def order_inputs(inputs: dict[str, Tensor], names: Sequence[str]) -> tuple[Tensor, ...]:
    """`inputs` in the order of the model's input `names`. A single input may have any name."""
    if len(inputs) == 1 == len(names):
        return tuple(inputs.values())
    if set(inputs) != set(names):
        raise UsageError(f"--input names {_list(inputs)}, but the model's inputs are {_list(names)}")
    return tuple(inputs[name] for name in names)


def forward_names(model: nn.Module, given: Sequence[str]) -> list[str]:
    """The names of forward's arguments: those without a default, and those with one that are `given`."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return list(given)
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [p.name for p in plain if p.default is p.empty or p.name in given]


def _described(argument: str) -> dict[str, Tensor]:
    match = re.fullmatch(r"([^=:]+)=([0-9]+(?:x[0-9]+)*)(?::(\w+))?", argument)
    if not match:
        raise UsageError(
            f"--input {argument!r} is neither NAME=SHAPE[:DTYPE], as in points=8x1024x3:float32, nor an .npz file"
        )
    name, shape_text, dtype_text = match[1].strip(), match[2], match[3] or "float32"
    if dtype_text not in _DTYPES:
        raise UsageError(f"--input {argument!r}: unknown type {dtype_text!r}; known are {', '.join(_DTYPES)}")
    shape = tuple(int(size) for size in shape_text.split("x"))
    return {name: random_like(name, shape, getattr(torch, dtype_text))}


def read_npz(path: Path, option: str = "--input") -> dict[str, Tensor]:
    """The arrays of an .npz file, none of them empty, within the budget (`limits`).

    Raises UsageError, which names the `option` that the path was given with.
    """
    where = f"{option} {path}"
    arrays = limits.read_npz(path, where)
    for name, array in arrays.items():
        check_shape(name, array.shape, array.itemsize)
    try:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    except (TypeError, ValueError) as error:  # text, dates, records
        raise UsageError(f"{where}: not a readable .npz of plain arrays ({error})") from error
    for name, value in tensors.items():
        if value.is_complex():
            raise UsageError(f"{where}: {name!r} is of complex numbers, of which no file has an input")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UsageError(f"{where}: {name!r} holds NaN or infinity, with which nothing can be verified")
    if not tensors:
        raise UsageError(f"{where}: the file holds no array")
    return tensors


def _list(names: Sequence[str] | dict[str, Tensor]) -> str:
    return ", ".join(repr(n) for n in names) or "none"


def _text(shape: Sequence[int]) -> str:
    return "x".join(str(s) for s in shape)
