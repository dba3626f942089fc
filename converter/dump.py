"""A stage as Python that a person reads and Python runs: `--dump DIR`.

`DIR/NAME.py` holds `forward(w, *inputs)`, one line an op with the result's type, its value domain and the line of the
user's model; `DIR/NAME.pt` holds the constants `w` (a plain dict of tensors, loads with `weights_only=True`).
"""

from __future__ import annotations

import keyword
import math
import operator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.converter.errors import UsageError
from bgnn.passes import domains as dm
from bgnn.passes.graph import value_of
from bgnn.passes.user_code import where

_SHORT = {
    torch.float32: "f32", torch.float64: "f64", torch.int64: "i64", torch.int32: "i32", torch.bool: "bool",
    torch.float16: "f16", torch.int8: "i8", torch.uint8: "u8",
}  # fmt: skip

_RESERVED = {"w", "torch", "aten", "bgnn", "bgnn_ops", "forward", "float"}  # names the written module uses itself


def dump_stage(gm: fx.GraphModule, folder: Path, name: str) -> None:
    """Writes the graph and its constants into `folder`, which is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(as_python(gm, name))
        constants = {str(n.target): value_of(n) for n in gm.graph.nodes if n.op == "get_attr"}
        torch.save(constants, folder / f"{name}.pt")
    except OSError as error:
        raise UsageError(f"cannot write the dump to {folder}: {error.strerror}") from error


def type_of(value: Any) -> str:
    """`f32[8,1024,64]`."""
    if isinstance(value, Tensor):
        return f"{_SHORT.get(value.dtype, str(value.dtype))}[{','.join(str(s) for s in value.shape)}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(type_of(v) for v in value)})"
    return type(value).__name__


def as_python(gm: fx.GraphModule, name: str) -> str:
    """The source of the stage's module."""
    domains = dm.analyse(gm)
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    names = _renamed([n.name for n in gm.graph.nodes])
    parameters = ", ".join(["w", *(f"{_text(n, names)}: 'torch.Tensor'" for n in inputs)])
    lines = [
        f'"""Stage "{name}" of a bgnn-convert conversion. Run it: forward(torch.load("{name}.pt"), *inputs)."""',
        "",
        "import torch",
        "",
        "import bgnn.converter.dialect  # the bgnn:: ops",
        "",
        "aten, bgnn_ops = torch.ops.aten, torch.ops.bgnn",
        "",
        "",
        f"def forward({parameters}) -> tuple:",
    ]
    last_place = ""
    for node in gm.graph.nodes:
        if node.op == "call_function":
            place = where(node).removeprefix(" (at ").removesuffix(")")
            if place and place != last_place:
                lines += ["", f"    # {place}"]
                last_place = place
            domain = domains[node]
            note = f"{type_of(node.meta.get('val'))} {_describe(domain)}".strip()
            lines.append(f"    {_text(node, names)} = {_call(node, names)}  # {note}")
        elif node.op == "output":
            lines += ["", f"    return ({', '.join(_text(a, names) for a in cast(tuple[Any, ...], node.args[0]))},)"]
    return "\n".join(lines) + "\n"


def _renamed(names: list[str]) -> dict[str, str]:
    """Other names for nodes that are called as the module's own things or as Python's words."""
    taken, renamed = set(names), {}
    for name in names:
        if name in _RESERVED or keyword.iskeyword(name):
            free = f"{name}_"
            while free in taken:
                free += "_"
            taken.add(free)
            renamed[name] = free
    return renamed


def _describe(domain: dm.Domain) -> str:
    if domain.kind == "integer":
        return f"integer in [{domain.lo:g}, {domain.hi:g}]"
    return "binary" if domain.kind == "binary" else ""


def _call(node: fx.Node, names: dict[str, str]) -> str:
    if node.target is operator.getitem:
        return f"{_text(node.args[0], names)}[{node.args[1]}]"
    namespace, op, overload = str(node.target).split(".") if str(node.target).count(".") == 2 else ("", "", "")
    function = f"{'bgnn_ops' if namespace == 'bgnn' else namespace}.{op}.{overload}" if op else str(node.target)
    parts = [_text(a, names) for a in node.args] + [f"{k}={_text(v, names)}" for k, v in node.kwargs.items()]
    return f"{function}({', '.join(parts)})"


def _text(value: Any, names: dict[str, str]) -> str:
    if isinstance(value, fx.Node):
        if value.op == "get_attr":
            return f"w[{str(value.target)!r}]"
        return names.get(value.name, value.name)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(v, names) for v in value)}]"
    if isinstance(value, (torch.dtype, torch.device, torch.memory_format)):
        return repr(value) if not isinstance(value, torch.device) else f"torch.{value!r}"
    return repr(value)
