"""Building, replacing and reading nodes of the IR (an FX graph with constants as attributes).

Each node's `meta` holds: `val`, a tensor on the "meta" device that tells shape and dtype (a tuple for several
results); `tap`, where the node stands for a tensor of the traced program (see `Tap`); `stack_trace`, the
line of the user's model.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher

import bgnn.converter.dialect_int8  # noqa: F401
from bgnn.converter.dialect import bin_edge_signs  # (the import defines the bgnn:: ops that every pass names)
from bgnn.converter.errors import ConversionError
from bgnn.passes import user_code

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Tap:
    """This node holds the value of the traced program's tensor `name`, perhaps stored otherwise.

    The traced value is `decode(node)`: unpack to `channels` signs if packed, multiply by `flip` (+-1 per
    channel), reshape to `shape` and permute by `perm`, then reshape to the traced shape.
    With `inside`, the node is a fused edge layer (`bgnn::bin_edge_layer` or `_conv`) that makes the tensor in
    registers: its operands tell what it makes (see `sources`). `inside` is the halves' order in the traced tensor, 0
    for the node's.
    """

    name: str
    perm: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    channels: int | None = None
    flip: Tensor | None = None
    exact: bool = False
    floor: int = 0  # of codes: those below are not told apart, a ReLU follows
    inside: tuple[int, int] | None = None
    twins: tuple[Tap, ...] = ()  # other traced tensors that turned out to be computed by the same node

    def everyone(self) -> tuple[Tap, ...]:
        """This tap and its twins."""
        return (self, *self.twins)

    def changed(self, **fields: Any) -> Tap:
        """The tap with other fields, and its twins likewise."""
        twins = tuple(dataclasses.replace(t, **fields) for t in self.twins)
        return dataclasses.replace(self, twins=twins, **fields)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values `decode` needs: the tapped one, or the operands of the layer it is inside of."""
        return [node] if self.inside is None else cast(list[fx.Node], list(node.args[:5]))

    def read(self, node: fx.Node, values: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """The traced tensor, from the values of `sources(node)`; signs as booleans."""
        value = values[0]
        if self.inside is not None:
            packed = is_call(node, torch.ops.bgnn.bin_edge_conv)
            nodes = torch.ops.bgnn.unpack(value.to(torch.int32), cast(int, node.args[-1])) if packed else value
            halves = torch.tensor_split(bin_edge_signs(nodes, *values[1:]), 2, dim=-1)
            value = torch.cat([halves[i] for i in self.inside], -1)
        decoded = self.decode(value, shape)
        return decoded >= 0 if decoded.is_floating_point() else decoded

    def decode(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """The traced tensor that a stored value stands for."""
        if self.channels is not None:
            value = torch.ops.bgnn.unpack(value.to(torch.int32), self.channels)
        if self.flip is not None:
            value = value * self.flip
        if self.perm is not None:
            value = value.reshape(self.shape or value.shape).permute(self.perm)
        return value.reshape(tuple(shape))


@dataclasses.dataclass
class PassResult:
    """What a pass did: how many rewrites, and why it left candidates alone (printed in the report)."""

    rewrites: int = 0
    refusals: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def refuse(self, node: fx.Node, reason: str) -> None:
        """Records that `node` was a candidate and why it stays as it is."""
        entry = (str(node.meta.get("layer") or user_code.short(node, module_of(node))), reason)
        if entry not in self.refusals:
            self.refusals.append(entry)


def module_of(node: fx.Node) -> str:
    """The path of the node's module in the user's model; "" where it is of none, or of the model itself."""
    stack = node.meta.get("nn_module_stack")
    path = list(stack.values())[-1][0].removeprefix("L['self'].") if stack else ""
    # The second is PyTorch's, for what it has itself put into the graph.
    return "" if path in ("L['self']", "_empty_nn_module_stack_from_metadata_hook") else path


def is_call(node: Any, *targets: Any) -> bool:
    """Whether `node` is a call of one of these ops; an overload packet stands for all of its overloads."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    packet = getattr(node.target, "overloadpacket", None)
    return node.target in targets or (packet is not None and packet in targets)


def value_of(node: fx.Node) -> Tensor:
    """The constant tensor behind a get_attr node."""
    assert node.op == "get_attr"
    return cast(Tensor, getattr(node.graph.owning_module, cast(str, node.target)))


def is_constant(node: Any) -> bool:
    """Whether `node` is a tensor known at conversion time."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The static shape of a node with one tensor result."""
    return tuple(node.meta["val"].shape)


def size_of(size: Any) -> Any:
    """A size, which is a number, or a node that gives an open one."""
    return size.meta["val"] if isinstance(size, fx.Node) else size


def is_real(node: fx.Node) -> bool:
    """Whether a node's value is a tensor of real numbers."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def is_list(value: Tensor) -> bool:
    """Whether a tensor has the form of a list of edges: whole numbers `[2, E]`. Use says whether it is one."""
    return value.dim() == 2 and bool(value.shape[0] == 2) and value.dtype in (torch.int64, torch.int32)


def number_of(value: Any) -> float | None:
    """The number that an argument is, as a literal or as a constant of one element."""
    if isinstance(value, (int, float)):
        return float(value)
    return float(value_of(value)) if is_constant(value) and value_of(value).numel() == 1 else None


def as_meta(value: Any) -> Any:
    """Shapes and dtypes of a value, without its data."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return tuple(as_meta(v) for v in value)
    return value


def compute_meta(node: fx.Node) -> None:
    """Fills `meta["val"]` of a call from its arguments', by running the op on meta tensors.

    How long a slice with an open bound is, the run would decide by the example's sizes: it is as long as it, or the
    one with these bounds that it takes the place of, was when traced.
    """
    if is_call(node, aten.slice) and any(isinstance(bound, fx.Node) for bound in slice_bounds(node)):
        x = cast(fx.Node, node.args[0]).meta["val"]
        dim = cast(int, arg(node, 1, "dim", 0)) % x.dim()
        length = next(
            one.meta["val"].shape[cast(int, arg(one, 1, "dim", 0))]
            for one in (node, *node.graph.nodes)
            if is_call(one, aten.slice)
            and "val" in one.meta
            and slice_bounds(one) == slice_bounds(node)
            and str(_sliced(one)) == str(_sliced(node))
        )
        node.meta["val"] = torch.empty([*x.shape[:dim], length, *x.shape[dim + 1 :]], dtype=x.dtype, device="meta")
        return
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
    if kwargs.get("device") is not None:  # a tensor made of sizes
        kwargs = {**kwargs, "device": "meta"}
    with nullcontext() if all(is_static(n) for n in node.all_input_nodes) else enable_python_dispatcher():
        node.meta["val"] = as_meta(cast(Callable[..., Any], node.target)(*args, **kwargs))
    _refuse_fixed_sizes(node)


def _refuse_fixed_sizes(node: fx.Node) -> None:
    """Raises ConversionError if a size that must stay open has become a number in working out this call's shape."""
    value = node.meta["val"]
    for size in value.shape if isinstance(value, Tensor) else ():
        if isinstance(size, torch.SymInt) and size.node.shape_env.replacements:
            raise ConversionError(
                f"{user_code.called(node)}{user_code.where(node)} needs a number where a graph's number of nodes or "
                "edges stays open: rewrite this line so that it takes any graph"
            )


def slice_bounds(node: fx.Node) -> list[Any]:
    """Start, end and step of a slice; numbers, or nodes."""
    return [arg(node, 2, "start") or 0, arg(node, 3, "end"), arg(node, 4, "step", 1)]


def _sliced(node: fx.Node) -> Any:
    """The size of the axis that a slice is taken of."""
    x = cast(fx.Node, node.args[0]).meta["val"]
    return x.shape[cast(int, arg(node, 1, "dim", 0))]


def is_static(node: fx.Node) -> bool:
    """Whether all sizes of a node's value are numbers: no number of nodes or edges is open (`converter.sizes`)."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return all(isinstance(size, int) for size in value.shape)
    return not isinstance(value, torch.SymInt)


def literal(shape: Sequence[Any]) -> list[int] | None:
    """A shape as an argument of reshape, with -1 for its one open size; None if there are more."""
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    return sizes if sizes.count(-1) <= 1 else None


OF_WEIGHTS = ("source", "stays_float")  # what a weight's constant says: its name in the model, why it has no codes


def call(before: fx.Node, target: Any, *args: Any, like: fx.Node | None = None, **kwargs: Any) -> fx.Node:
    """Inserts a call of `target` before a node; shape from the op itself, source line from `like`."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    origin = like if like is not None else before
    for key in ("stack_trace", "nn_module_stack", "layer", "custom", "own_ties", "depthwise"):
        if key in origin.meta:
            node.meta[key] = origin.meta[key]
    compute_meta(node)
    node.meta["new"] = True
    return node


def constant(before: fx.Node, value: Tensor, name: str | fx.Node) -> fx.Node:
    """Inserts a constant tensor before a node; `name` is made unique and legal.

    In place of a name, the constant that it is another layout of: what is known of that one is known of this.
    """
    known = {} if isinstance(name, str) else {key: name.meta[key] for key in OF_WEIGHTS if key in name.meta}
    name = name if isinstance(name, str) else str(name.target)
    module = cast(fx.GraphModule, before.graph.owning_module)
    stem = "".join(c if c.isalnum() else "_" for c in name).strip("_") or "constant"
    unique, count = stem, 0
    while hasattr(module, unique):
        count += 1
        unique = f"{stem}_{count}"
    module.register_buffer(unique, value.detach().clone().contiguous())
    with before.graph.inserting_before(before):
        node = before.graph.get_attr(unique)
    node.meta.update({**known, "val": as_meta(value)})
    return node


def set_tap(node: fx.Node, tap: Tap) -> None:
    """Taps a node; of a reshape its source, which holds the same values and is not removed when reshapes merge."""
    while is_call(node, aten.reshape):
        source = cast(fx.Node, node.args[0])
        known = source.meta.get("tap")
        if known is not None and known.name == tap.name:
            return  # it stands there already
        if source.op != "call_function" or known is not None:
            break
        node = source
    node.meta["tap"] = tap


def replace(old: fx.Node, new: fx.Node, tap: Tap | None = None) -> None:
    """Makes every user of `old` use `new`, hands on its tap and its layer's name, and removes it."""
    if tap is None and "tap" not in new.meta:
        tap = old.meta.get("tap")
    if tap is not None:
        set_tap(new, tap)
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    if "layer" in old.meta and new.op == "call_function":
        new.meta.setdefault("layer", old.meta["layer"])
    name = old.name
    old.graph.erase_node(old)
    if new.meta.pop("new", False):  # names stay those of the traced program where the node is a new one
        new.name = name


def only_user(node: fx.Node) -> fx.Node | None:
    """The one user of a node, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def calls(graph: fx.Graph, *targets: Any) -> Iterator[fx.Node]:
    """The calls of these ops, in order; safe while nodes are replaced."""
    for node in list(graph.nodes):
        if is_call(node, *targets) and not node._erased:
            yield node


Rule = Callable[[fx.Node], "fx.Node | None"]


def rewrite(
    gm: fx.GraphModule, rules: Sequence[tuple[Sequence[Any], Rule]], result: PassResult | None = None,
    again: bool = False,
) -> PassResult:  # fmt: skip
    """Puts in the place of each call of these ops what the first rule gives that gives anything.

    `again`: goes on until nothing changes. `result`: counts there.
    """
    result = result or PassResult()
    while True:
        before = result.rewrites
        for node in list(gm.graph.nodes):
            if node.op != "call_function" or node._erased:
                continue
            for targets, rule in rules:
                new = rule(node) if is_call(node, *targets) else None
                if new is not None:
                    replace(node, new)
                    result.rewrites += 1
                    break
        remove_dead_code(gm)
        if not again or result.rewrites == before:
            return result


def above(*nodes: fx.Node, through: Callable[[fx.Node], bool] = lambda node: True) -> Iterator[fx.Node]:
    """These nodes and what they are computed from, each once; past a node only where `through` says so."""
    seen: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += node.all_input_nodes if through(node) else []


def remove_dead_code(gm: fx.GraphModule) -> int:
    """Drops what no output needs, and constants that nothing reads. Inputs stay. Returns the count of nodes."""
    before = len(gm.graph.nodes)
    for node in reversed(list(gm.graph.nodes)):
        if not node.users and node.op in ("call_function", "get_attr"):
            gm.graph.erase_node(node)
    used = {n.target for n in gm.graph.nodes if n.op == "get_attr"}
    for name, _ in list(gm.named_buffers(recurse=False)):
        if name not in used:
            delattr(gm, name)
    return before - len(gm.graph.nodes)


def run(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Executes the IR and returns its outputs."""
    with torch.no_grad():
        out = fx.Interpreter(gm).run(*inputs)
    return list(out) if isinstance(out, (tuple, list)) else [out]


def all_taps(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, Tap]]:
    """Every tap in the graph, twins as well, with its node."""
    for node in gm.graph.nodes:
        if "tap" in node.meta:
            for tap in node.meta["tap"].everyone():
                yield node, tap


def snapshot(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph that later passes do not touch; names and notes are kept, constants are shared."""
    graph = fx.Graph()
    remap: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        remap[node] = graph.node_copy(node, lambda n: remap[n])
        remap[node].meta = dict(node.meta)
        remap[node].name = node.name
    constants = torch.nn.Module()
    for name, value in gm.named_buffers(recurse=False):
        constants.register_buffer(name, value)
    return fx.GraphModule(constants, graph)


def parameters(node: fx.Node) -> Sequence[Any]:
    """What the schema of a call's op says it takes; nothing of other calls."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverloadPacket):
        target = target.default
    return target._schema.arguments if hasattr(target, "_schema") else ()


def by_name(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by the names of its op's schema, in their order, defaults filled in; none of other calls."""
    known = parameters(node)
    given = dict(zip((one.name for one in known), node.args, strict=False))
    return {one.name: one.default_value for one in known} | given | (dict(node.kwargs) if known else {})


def getitem(node: fx.Node) -> tuple[fx.Node, int] | None:
    """(source, index) if `node` picks one result of a several-result op."""
    if is_call(node, operator.getitem):
        return cast(fx.Node, node.args[0]), cast(int, node.args[1])
    return None


def reduced_axes(node: fx.Node) -> list[int]:
    """The axes that amax, amin, mean or sum reduces, counted from the first."""
    rank = len(shape_of(cast(fx.Node, node.args[0])))
    dims = arg(node, 1, "dim")
    if isinstance(dims, int):
        dims = [dims]
    return sorted(d % rank for d in dims) if dims else list(range(rank))


def leaves_channels(node: fx.Node) -> bool:
    """Whether a reduction keeps the last axis, so that it acts on each channel alone."""
    return len(shape_of(cast(fx.Node, node.args[0]))) - 1 not in reduced_axes(node)


def arg(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An op's argument given by position or by keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)
