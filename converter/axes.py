"""Which axes of a model's inputs stay open in its file, and which are fixed.

The program says which (the symbols of a .pt2), the user says which (`--open NAME[=AXIS]`, `--fixed NAME=SIZE`), and
each family has a default: of a network on a graph's edges, or of one with a batch vector (that rows are summed by, or
compared by, or that says how many graphs there are), the numbers of nodes, edges and graphs are open; any other has the
sizes of its example. Where a target has no open sizes, they are those of the largest graph (`--fixed nodes=4096`; else
the example's), and of `[batch, nodes, features]` the batch is the example's. Nothing follows from a shape or a name
alone. That a network works on edges shows in its traced graph, where rows are gathered and summed by them; which axes
have one size shows in PyTorch's symbols.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.example_inputs import input_names
from bgnn.converter.sizes import graph_axes
from bgnn.converter.trace import refuse_open, trace
from bgnn.passes.graph import aten, is_call, is_list, is_static
from bgnn.passes.index_limits import edge_inputs, group_inputs, numbers_of_nodes

Axis = tuple[int, int]
"""(which input, which axis of it)."""

MOST = ("nodes", "edges", "graphs")  # of the largest graph, for targets of fixed sizes
WORDS = {"batch": 0, "nodes": -2, "points": -2}  # of tensors [batch, nodes, features] and [nodes, features]


def trace_sized(
    model: nn.Module | ExportedProgram, inputs: tuple[Tensor, ...], keep_outputs: Sequence[int], *,
    opened: Sequence[str], fixed: Sequence[str], may_be_open: bool,
) -> fx.GraphModule:  # fmt: skip
    """`trace`, with the axes open that the module's docstring says. `may_be_open`: whether the target has open sizes;
    without them those of graphs stay open in the traced graph, and the file has a largest graph (converter.padding).

    `opened` and `fixed`: "NAME", "NAME=AXIS" and "NAME=SIZE". Raises UsageError for one that does not fit the model,
    and ConversionError where the model's forward fixes the size of an axis that is to be open.
    """
    gm = _trace_open(model, inputs, keep_outputs, opened, fixed, True)
    if may_be_open or all(is_static(node) for node in gm.graph.nodes if node.op == "placeholder"):
        return gm
    if edge_inputs(gm.graph) or _depends_on_data(gm):
        frames = _frames(gm)
        return _trace_open(model, inputs, keep_outputs, opened, fixed, True, frames) if frames else gm
    return _trace_open(model, inputs, keep_outputs, opened, fixed, False)


def _frames(gm: fx.GraphModule) -> set[Axis]:
    """Open axes beside those of nodes and edges, as of `[batch, nodes, features]`: a largest graph is none of them."""
    symbols, edges = _symbols(gm), edge_inputs(gm.graph)
    counted = {str(size) for size in numbers_of_nodes(gm.graph)} | {str(node.meta["val"].shape[-1]) for node in edges}
    counted |= {str(node.meta["val"].shape[0]) for node in group_inputs(gm.graph)}
    ranks = [node.meta["val"].dim() for node in gm.graph.nodes if node.op == "placeholder"]
    return {axis for axis, symbol in symbols.items() if ranks[axis[0]] > 2 and symbol not in counted}


def _trace_open(
    model: nn.Module | ExportedProgram, inputs: tuple[Tensor, ...], keep_outputs: Sequence[int], opened: Sequence[str],
    fixed: Sequence[str], may_be_open: bool, frames: Collection[Axis] = (),
) -> fx.GraphModule:  # fmt: skip
    """`frames`: axes that are fixed unasked."""
    names = input_names(model, len(inputs))
    to_open, to_fix = _told_open(opened, names, inputs), _told_fixed(fixed, names, inputs) | set(frames)
    if isinstance(model, ExportedProgram):
        own = _of_program(model)
        for i, axis in to_open - own.keys():
            raise UsageError(
                f"--open {names[i]}: the program was exported for {list(inputs[i].shape)}, axis {axis} fixed: export "
                "it with a torch.export.Dim there"
            )
        wanted = _without(set(own), own, to_fix) if may_be_open else set()
        if wanted == own.keys():
            gm = trace(model, inputs, keep_outputs, [])
            return gm if may_be_open and (wanted or edge_inputs(gm.graph)) else refuse_open(gm)
        return trace(model.module(check_guards=False), inputs, keep_outputs, _spec(wanted, inputs, names))
    if not may_be_open or not (to_open or to_fix or _may_be_edges(inputs)):
        return trace(model, inputs, keep_outputs)
    default, failed = _default(inputs), None
    if not to_open and not to_fix and all(inputs[i].shape[axis] > 1 for i, axis in default):
        try:  # what most graph networks are; one trace tells
            gm = trace(model, inputs, keep_outputs, _spec(default, inputs, names))
        except ConversionError as error:
            failed = error
        else:
            if not edge_inputs(gm.graph):
                return gm if _is_batch_of_graphs(gm) else trace(model, inputs, keep_outputs)
            if not any(isinstance(size, int) for size in numbers_of_nodes(gm.graph)):
                return gm
    try:
        return _trace_auto(model, inputs, keep_outputs, to_open, to_fix, default, failed, names)
    except ConversionError as error:
        raise failed or error from error


def _trace_auto(
    model: nn.Module, inputs: tuple[Tensor, ...], keep_outputs: Sequence[int], to_open: set[Axis], to_fix: set[Axis],
    default: set[Axis], failed: ConversionError | None, names: Sequence[str],
) -> fx.GraphModule:  # fmt: skip
    """With the axes open that PyTorch leaves so, of those wanted; `failed`: why not all of the `default` ones."""
    every = {(i, axis) for i, value in enumerate(inputs) for axis in range(value.dim())}
    gm = trace(model, inputs, keep_outputs, _spec(every, inputs, names, Dim.AUTO))
    rows = {(i, 0) for i, value in enumerate(inputs) if is_list(value)} - to_open
    if rows and not edge_inputs(gm.graph):  # of a list that forward takes rows of one by one, any number may be there
        two = trace(model, inputs, keep_outputs, _spec(every - rows, inputs, names, Dim.AUTO))
        gm = two if edge_inputs(two.graph) else gm
    symbols, edges, wanted = _symbols(gm), edge_inputs(gm.graph), set(to_open)
    grouped = {str(node.meta["val"].shape[0]) for node in group_inputs(gm.graph)}
    wanted |= {axis for axis, symbol in symbols.items() if symbol in grouped}
    if edges:
        nodes = {str(size) for size in numbers_of_nodes(gm.graph)}
        given = [node for node in gm.graph.nodes if node.op == "placeholder"]
        default = {(i, axis if given[i] in edges else 0) for i, axis in default}
        wanted |= {axis for axis, symbol in symbols.items() if axis in default or symbol in nodes}
        if not to_fix and any(size.isdigit() for size in nodes):
            if failed is not None:
                raise failed
            wanted |= default
    same = {symbols[axis] for axis in wanted & symbols.keys()}
    wanted = _without(wanted | {axis for axis, symbol in symbols.items() if symbol in same}, symbols, to_fix)
    for i, axis in to_open - wanted:
        raise UsageError(f"--open and --fixed contradict each other: {names[i]}, axis {axis}, is to be both")
    gm = trace(model, inputs, keep_outputs, _spec(wanted, inputs, names) if wanted or edges else None)
    if failed is not None and not wanted and not to_fix and edge_inputs(gm.graph):
        raise failed  # for graphs of one size alone, which nobody asked for
    return gm


def _told_open(opened: Sequence[str], names: Sequence[str], inputs: Sequence[Tensor]) -> set[Axis]:
    """The axes of `--open`. Without AXIS the first, of indices `[2, E]` the second."""
    found = set()
    for told in opened:
        name, equals, text = told.partition("=")
        which = _which(f"--open {told}", name, names)
        value, rank = inputs[which], inputs[which].dim()
        if not equals:
            axis = next((axis for i, axis in _default(inputs) if i == which), 0)
        elif text in WORDS:
            axis = max(0, WORDS[text] + rank) if WORDS[text] < 0 else WORDS[text]
        elif text == "edges":
            axis = 1 if is_list(value) else 0
        elif re.fullmatch(r"-?\d+", text):
            axis = int(text)
        else:
            words = ", ".join([*WORDS, "edges"])
            raise UsageError(f"--open {told}: an axis is a number, as in {name}=0, or one of {words}")
        if not -rank <= axis < rank:
            raise UsageError(f"--open {told}: {name} is {list(value.shape)}, and has no axis {axis}")
        found.add((which, axis % rank))
    return found


def told_most(fixed: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """(what `--fixed` says of inputs, and of the largest graph: `nodes=4096`, `edges=...`, `graphs=...`)."""
    of_inputs, most = [], {}
    for told in fixed:
        name, _, text = told.partition("=")
        if name in names or name not in MOST:
            of_inputs.append(told)
        elif not re.fullmatch(r"\d+", text) or int(text) < 1:
            raise UsageError(f"--fixed {told}: give the largest number of {name}, as in --fixed {name}=4096")
        else:
            most[name] = int(text)
    return of_inputs, most


def _told_fixed(fixed: Sequence[str], names: Sequence[str], inputs: Sequence[Tensor]) -> set[Axis]:
    """The axes of `--fixed`: those of the input that have the size."""
    found = set()
    for told in fixed:
        name, _, text = told.partition("=")
        which = _which(f"--fixed {told}", name, names)
        if not re.fullmatch(r"\d+", text):
            raise UsageError(f"--fixed {told}: give the size, as in --fixed {name}=1024")
        shape = list(inputs[which].shape)
        axes = {(which, axis) for axis, size in enumerate(shape) if size == int(text)}
        if not axes:
            raise UsageError(f"--fixed {told}: the example's {name} is {shape}: give an example of the size {text}")
        found |= axes
    return found


def _which(option: str, name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise UsageError(f"{option}: the model has no input {name!r}; its inputs are {', '.join(names)}")
    return list(names).index(name)


def _may_be_edges(inputs: Sequence[Tensor]) -> bool:
    """Whether inputs have the form of edges, `[2, E]` or several `[E]`, or of a batch vector, an index for each row.

    Use decides (`edge_inputs`).
    """
    lengths = [value.shape[0] for value in inputs if value.dim() == 1 and value.dtype in (torch.int64, torch.int32)]
    rows = {value.shape[0] for value in inputs if value.dim() > 1}
    return any(is_list(value) for value in inputs) or len(set(lengths)) < len(lengths) or bool(rows & set(lengths))


def _is_batch_of_graphs(gm: fx.GraphModule) -> bool:
    """Whether a batch vector says which graph each row is of, or how many graphs there are."""
    return _depends_on_data(gm) or bool(group_inputs(gm.graph))


def _depends_on_data(gm: fx.GraphModule) -> bool:
    """Whether a number of a tensor's values becomes a size."""
    return any(is_call(node, aten._local_scalar_dense) for node in gm.graph.nodes)


def _default(inputs: Sequence[Tensor]) -> set[Axis]:
    return {(i, axis) for i, axes in enumerate(graph_axes(inputs)) for axis in axes}


def _spec(axes: set[Axis], inputs: Sequence[Tensor], names: Sequence[str], how: Any = Dim.DYNAMIC) -> list[Any]:
    """Axes, as torch.export's `dynamic_shapes` wants them. PyTorch takes sizes of 0 and 1 for fixed ones."""
    for i, axis in sorted(axes):
        if how is Dim.DYNAMIC and inputs[i].shape[axis] < 2:
            raise UsageError(
                f"{names[i]} is {list(inputs[i].shape)}, and axis {axis} stays open: give an example with 2 or more "
                f"there, or fix it with --fixed {names[i]}={inputs[i].shape[axis]}"
            )
    return [{axis: how for j, axis in sorted(axes) if j == i} for i in range(len(inputs))]


def _symbols(gm: fx.GraphModule) -> dict[Axis, str]:
    """The symbol of each open axis of a traced graph's inputs."""
    shapes = [node.meta["val"].shape for node in gm.graph.nodes if node.op == "placeholder"]
    return {(i, j): str(size) for i, dims in enumerate(shapes) for j, size in enumerate(dims) if type(size) is not int}


def _of_program(program: ExportedProgram) -> dict[Axis, str]:
    """The symbols of an exported program's inputs."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [values[name].shape for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return {(i, j): str(size) for i, dims in enumerate(shapes) for j, size in enumerate(dims) if type(size) is not int}


def _without(axes: set[Axis], symbols: dict[Axis, str], fixed: set[Axis]) -> set[Axis]:
    """The axes but those that are fixed, or as long as such."""
    held = {symbols[axis] for axis in fixed & symbols.keys()}
    return {axis for axis in axes - fixed if symbols.get(axis) not in held}
