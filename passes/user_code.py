"""What the user wrote behind a node, an export that fails, or a forward that fails: the call, and its file and line.

`recorded()` is put around `torch.export`. Each call of PyTorch that a forward makes, in a helper function too, marks
the nodes that come of it: `meta["custom"]` holds CALL, the call as the user knows it ("torch.cdist", "Tensor.unique"),
and PLACE, "file:line: code" of the user's innermost line. A line inside PyTorch or PyTorch Geometric is named only
where there is no other; where a layer or a function of theirs made the call, CALL says so ("Tensor.scatter_add_ in
SAGEConv").
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import fx, nn
from torch.fx import traceback as fx_traceback
from torch.overrides import TorchFunctionMode, resolve_name

CALL, PLACE = "bgnn_call", "bgnn_place"
_OWN = tuple(str(Path(__file__).parent.parent / part) for part in ("converter", "passes", "runtime_bench"))
_STDLIB = (sysconfig.get_path("stdlib"), str(Path(torch.__file__).parent))
_OPERATORS = {"__getitem__": "indexing x[...]", "__setitem__": "the assignment x[...] = y"}
# Where PyTorch's own parts make an operation, as for an index that is a number of a tensor's values.
_UNNAMED = {"slice": "the slice x[a:b]", "select": "indexing x[i]", "_local_scalar_dense": "int(x) or x.item()"}
_MADE = {"T", "mT", "H", "mH", "real", "imag", "data"}  # attributes that are operations
_TRACING = re.compile(r"-packages/torch/(_|overrides\.py)")  # what PyTorch runs a call through while it is exported
_SHOWN = 160  # characters of a line of code


@functools.cache  # asked for each frame of each call
def is_library(file: str) -> bool:
    """Whether a line is nobody's model: PyTorch's or one of its companions', Python's, or this project's compiler's."""
    if _is_own(file) or Path(file).name.startswith("torch_geometric."):  # PyG writes files of its own, too
        return True
    if "site-packages/" in file or "dist-packages/" in file:
        return re.search(r"-packages/(torch|functorch)", file) is not None
    return file.startswith(("<", *_STDLIB))


def _is_own(file: str) -> bool:
    return file.startswith(_OWN)


def _line(file: str, line: int | None) -> str:
    code = " ".join(linecache.getline(file, line or 0).split())[:_SHOWN]
    return f"{file}:{line}{': ' + code if code else ''}"


class _Calls(TorchFunctionMode):
    """Marks what each call of PyTorch makes. Within a call the mode is off: the outermost call is the user's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__" and func.__self__.__name__ not in _MADE:  # x.shape makes nothing
            return func(*args, **(kwargs or {}))
        if CALL in fx_traceback.current_meta.get("custom", ()):  # within `said_to_be`
            return func(*args, **(kwargs or {}))
        with said_to_be(*describe(func)):
            return func(*args, **(kwargs or {}))


def said_to_be(call: str, place: str) -> contextlib.AbstractContextManager[None]:
    """Within the block, all nodes of a graph that is exported are marked with this call at this place."""
    return fx_traceback.annotate({CALL: call, PLACE: place})


def describe(func: Any) -> tuple[str, str]:
    """(the call, "file:line: code") of the user's line that is running."""
    frame: FrameType | None = _frame_of_caller()
    while frame is not None and frame.f_back is not None and _TRACING.search(frame.f_code.co_filename):
        frame = frame.f_back
    inner, layer, function = frame, "", ""  # the outermost of theirs: what the user's line calls
    while frame is not None and is_library(frame.f_code.co_filename):
        if _is_own(frame.f_code.co_filename):
            frame = None  # forward is all a library's: what calls the conversion is no part of the model
            break
        module = frame.f_locals.get("mod", frame.f_locals.get("self"))
        tracing = type(module).__module__.startswith(("torch.export", "torch._"))  # what it wraps models in
        if isinstance(module, nn.Module) and not tracing and not isinstance(module, (nn.Sequential, nn.ModuleList)):
            layer = type(module).__name__
        elif "/torch_" in frame.f_code.co_filename and not _is_inner(frame):
            function = frame.f_code.co_name
        frame = frame.f_back
    made_by = layer or function
    shown = frame or inner
    place = _line(shown.f_code.co_filename, shown.f_lineno) if shown is not None else ""
    return _name(func) + (f" in {made_by}" if made_by else ""), place


def _is_inner(frame: FrameType) -> bool:
    """Whether a function was made in another one, as what a decorator puts in a function's place."""
    return "<locals>" in getattr(frame.f_code, "co_qualname", "")


def running() -> str:
    """ "file:line: code" of the user's line that is running; empty where none is."""
    frame = _frame_of_caller()
    while frame is not None and is_library(frame.f_code.co_filename):
        frame = None if _is_own(frame.f_code.co_filename) else frame.f_back
    return _line(frame.f_code.co_filename, frame.f_lineno) if frame is not None else ""


def running_function() -> str:
    """The innermost function of PyTorch Geometric that runs below the user's line; empty where PyTorch alone does."""
    frame = _frame_of_caller()
    while frame is not None and is_library(frame.f_code.co_filename):
        if "/torch_" in frame.f_code.co_filename:
            return frame.f_code.co_name
        frame = frame.f_back
    return ""


def _frame_of_caller() -> FrameType | None:
    """The innermost frame outside of this project: below it are those that ask."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_own(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _name(func: Any) -> str:
    name = resolve_name(func) or getattr(func, "__name__", str(func))
    last = name.rpartition(".")[2]
    if last in _OPERATORS:
        return _OPERATORS[last]
    if last.startswith("_sparse_"):  # what torch.sparse.mm and its kin are
        return last.replace("_sparse_", "torch.sparse.", 1)
    return name.replace("torch.functional.", "torch.").replace("torch.Tensor.", "Tensor.")


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Within the block, nodes of a graph that is exported are marked with the user's calls."""
    with fx_traceback.preserve_node_meta(), _Calls():
        yield


def called(node: fx.Node) -> str:
    """The operation behind a node as the user wrote it; of a node without a mark, as PyTorch's Python names it."""
    mark = (node.meta.get("custom") or {}).get(CALL)
    target = str(node.target)
    name = target.split(".")[1] if target.startswith("aten.") else ""
    if name in _UNNAMED and mark in (None, f"aten.{name}"):
        return _UNNAMED[name]
    if mark:
        return str(mark)
    plain = name.strip("_").rstrip("0123456789") if name.startswith("_") else name
    if name and hasattr(torch, plain):
        return f"torch.{plain}"
    return f"Tensor.{plain}" if name and hasattr(torch.Tensor, plain) else target.removesuffix(".default")


def place(node: fx.Node) -> str:
    """ "file:line: code" of the user's line that made the node; empty where it is not known."""
    mark = (node.meta.get("custom") or {}).get(PLACE)
    if mark:
        return str(mark)
    found = re.findall(r'File "([^"]+)", line (\d+)[^\n]*(?:\n([^\n]*))?', str(node.meta.get("stack_trace") or ""))
    own = [frame for frame in found if not is_library(frame[0])] or found
    if not own:
        return ""
    file, line, code = own[-1]
    code = " ".join(code.split())
    return f"{file}:{line}{': ' + code if code and not code.startswith('File ') else ''}"


def short(node: fx.Node, module: str = "") -> str:
    """What a table calls a node: `module: torch.matmul (file.py:12)`."""
    file, _, line = place(node).partition(": ")[0].rpartition(":")
    return (f"{module}: " if module else "") + called(node) + (f" ({Path(file).name}:{line})" if file else "")


def where(node: fx.Node) -> str:
    """` (at file:line: code)` of the user's model, if it is known."""
    found = place(node)
    return f" (at {found})" if found else ""


def functions_of(error: BaseException) -> list[str]:
    """The names of the functions that an exception passed through, the outermost first."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__, limit=None)]


def raised_at(error: BaseException, others: bool = True) -> str:
    """ "file:line: code" of the user's innermost line that an exception passed through, or whose message names it.

    Where there is none: with `others` that of a library, else nothing.
    """
    frames = []
    passed: TracebackType | None = error.__traceback__
    while passed is not None:
        frames.append((passed.tb_frame.f_code.co_filename, passed.tb_lineno))
        passed = passed.tb_next
    inside = next((i for i, (file, _) in enumerate(frames) if _is_own(file)), -1)
    frames = frames[inside + 1 :]
    said = re.findall(
        r'File "([^"]+)", line (\d+)', str(error)
    )  # Dynamo runs no code of the user's: it writes the lines
    frames += [(file, int(line)) for file, line in said]
    own = [frame for frame in frames if not is_library(frame[0])]
    outer = [frame for frame in frames if not _is_own(frame[0])]
    chosen = own[-1:] or (outer[-1:] if others else [])
    return _line(*chosen[0]) if chosen else ""


def reason(error: BaseException) -> str:
    """The first line of an exception, after its kind."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
