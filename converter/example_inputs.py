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
from torch.export import ExportedProgram

from bgnn.converter.errors import ConversionError, UsageError
from bgnn.runtime_bench.runtime import limits

MAX_ELEMENTS = 2**31  # a TFLite tensor's byte offsets and shapes are 32-bit
SEED = 0
_TAKEN = (torch.float32, torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool)
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


def check_example(model: nn.Module | ExportedProgram, inputs: Sequence[object]) -> None:
    """Raises UsageError for example inputs that no file takes: other things than plain tensors of the file's types.

    And ConversionError for a model of another precision: files compute in float32 where not in bits or codes.
    """
    for name, value in zip(input_names(model, len(inputs)), inputs, strict=True):
        name = f"input {name!r}"
        if not isinstance(value, Tensor):
            raise UsageError(f"{name} is {_kind(value)}, and a file takes tensors: {_instead(value)}")
        if value.layout is not torch.strided:
            raise UsageError(
                f"{name} is a sparse tensor ({str(value.layout).removeprefix('torch.')}), which files do not take: "
                "give edge_index int64 [2, E] (and the values as edge_weight) in its place"
            )
        if value.dtype not in _TAKEN:
            kind = str(value.dtype).removeprefix("torch.")
            cast = ".float()" if value.dtype.is_floating_point else ".long()"
            wanted = "float32" if value.dtype.is_floating_point else "int64, int32, uint8, int8 or bool"
            raise UsageError(
                f"{name} is {kind}, and files take {wanted}: cast the input with {cast}"
                + (", and the model with model.float()" if value.dtype.is_floating_point else "")
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UsageError(f"{name} holds NaN or infinity, with which nothing can be verified")
    weights = [value for _, value in model.named_parameters() if value.is_floating_point()]
    if weights and all(value.dtype != torch.float32 for value in weights):
        kind = str(weights[0].dtype).removeprefix("torch.")
        raise ConversionError(f"the model is {kind}, and files compute in float32: convert model.float()")


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _instead(value: object) -> str:
    """The way out for an input that is no tensor."""
    if value is None:
        return "leave it out (an argument of forward with a default needs no input)"
    if type(value) is int:
        return (
            f"give torch.tensor({value}), and it stays an input (a size, as in x[:n]), or fix it in a wrapper, "
            f"def forward(self, x, ...): return self.net(x, ..., {value})"
        )
    if isinstance(value, (bool, float, str)):
        return f"fix it in a wrapper, def forward(self, x, ...): return self.net(x, ..., {value!r})"
    if isinstance(value, dict):
        return "wrap the model in one whose forward takes each of the dictionary's tensors and builds it"
    if hasattr(value, "edge_index"):
        return (
            "wrap the model, def forward(self, x, edge_index, batch): return "
            "self.net(Data(x=x, edge_index=edge_index, batch=batch)), and give the tensors"
        )
    return "wrap the model in one whose forward takes its tensors"


def refuse_nan(outputs: Sequence[Tensor]) -> None:
    """Raises ConversionError where the model's own outputs hold NaN, with which nothing can be compared."""
    for i, output in enumerate(outputs):
        if output.is_floating_point() and torch.isnan(output).any():
            count = int(torch.isnan(output).sum())
            raise ConversionError(
                f"the model itself gives {count} NaN in output {i} on the example inputs, in PyTorch: give real "
                "samples with --input FILE.npz (roots and logarithms of negative numbers make them, and 0/0)"
            )


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
        object_ = (
            f": where {names[0]} is an object of several tensors (PyG's Data), give a module whose forward takes them, "
            f"as in forward({', '.join(inputs)}), and makes it"
        )
        way_out = object_ if len(names) == 1 and len(inputs) > 1 else ""
        raise UsageError(f"--input names {_list(inputs)}, but the model's inputs are {_list(names)}{way_out}")
    return tuple(inputs[name] for name in names)


def input_names(model: nn.Module | ExportedProgram, count: int) -> list[str]:
    """The names of `count` inputs: those of forward's arguments, or of a program's inputs."""
    if isinstance(model, ExportedProgram):
        names = [str(name) for name in model.graph_signature.user_inputs]
    else:
        names = [
            f"{p.name}_{i}" if p.kind is p.VAR_POSITIONAL else p.name
            for p in inspect.signature(model.forward).parameters.values()
            for i in range(count if p.kind is p.VAR_POSITIONAL else 1)
        ]
    return [*names, *(f"input_{i}" for i in range(len(names), count))][:count]


def forward_names(model: nn.Module, given: Sequence[str]) -> list[str]:
    """The names of forward's arguments: those without a default, and those with one that are `given`."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return list(given)
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [p.name for p in plain if p.default is p.empty or p.name in given]


def _described(argument: str) -> dict[str, Tensor]:
    match = re.fullmatch(r"([^=:]+)=([0-9]{1,18}(?:x[0-9]{1,18}){0,63})(?::(\w+))?", argument)
    if not match:
        raise UsageError(
            f"--input {argument[:80]!r} is neither NAME=SHAPE[:DTYPE], as in points=8x1024x3:float32, nor an .npz file"
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
