"""Proof of what is folded into integers: every value there can be, not only those that the samples meet.

A binary layer's result is an integer, K + 1 values for K inputs, and a layer of a classifier at batch 1 meets one of
them. So each layer that became thresholds is evaluated for all of them, per channel, by the traced graph's own ops
(scales, norms, activations, signs) in PyTorch's arithmetic, and by the stage's thresholds; the signs must be the same.
Its weights must be the traced ones, up to a sign for each channel and for each input (which the passes put elsewhere).
A table of codes is evaluated likewise, for all 256 of them. Last, each such layer is written as a file of its own and
run on the real runtime: on both sides of every threshold, and for every code.

What is not proven this way: what several integers become together (a maximum over neighbours, a sum over edges); there
the samples speak.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from bgnn.converter.decisions import CODE_TOLERANCE, as_codes, from_codes
from bgnn.converter.errors import ConversionError
from bgnn.converter.verify import Proof
from bgnn.passes import ops
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.graph import (
    Tap,
    all_taps,
    arg,
    aten,
    compute_meta,
    is_call,
    is_constant,
    reduced_axes,
    shape_of,
    value_of,
)
from bgnn.passes.lower_int8 import MAKERS
from bgnn.passes.recognise_fake_quant import as_written

bgnn = torch.ops.bgnn

DENSE = [aten.linear, aten.conv1d, aten.conv2d]
EACH = ops.having("elementwise")
REDUCED = [aten.amax, aten.amin]
MOVES = ops.having("move", "one")
STAYS = [aten.reshape, aten.expand, aten.permute, bgnn.gather_nodes, bgnn.packed_max, bgnn.unpack, *REDUCED]
TABLE = 16  # q_aggregate's table
NEARLY = 0.9  # of the signs of two weight matrices equal: they are meant to be the same


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A traced binary layer up to its sign: weights +-1 `[C, K]`, signs f32 +-1 `[K + 1, C]` for p = 0..K differing."""

    weight: Tensor
    signs: Tensor


def prove_layers(traced: fx.GraphModule, gm: fx.GraphModule, what: str) -> Proof:
    """Compares the layers that became thresholds in a stage's graph; raises ConversionError where one is wrong."""
    proof = Proof()
    known = {node.name: node for node in traced.graph.nodes}
    sampled = []
    for node, tap in all_taps(gm):
        sign = known.get(tap.name)
        if sign is None or not is_call(sign, bgnn.binarize):
            continue
        layer = _traced_layer(sign)
        found = None if layer is None else _stage_signs(node, tap, layer, what)
        if layer is not None and found is not None:
            wrong = min((f != layer.signs for f in found), key=lambda w: int(w.sum()))
            if bool(wrong.any()):
                p, channel = (int(i) for i in torch.nonzero(wrong)[0])
                fan_in = layer.weight.shape[1]
                raise ConversionError(
                    f"{what}: the thresholds of {tap.name!r} are wrong: channel {channel} has the other sign where "
                    f"its dot product is {fan_in - 2 * p} ({int(wrong.sum())} of {wrong.numel()} values)"
                )
            proof.layers, proof.values = proof.layers + 1, proof.values + layer.signs.numel()
        elif tap.exact:
            sampled.append(tap.name)
    return dataclasses.replace(proof, sampled=tuple(dict.fromkeys(sampled)))


def _traced_layer(sign: fx.Node) -> _Layer | None:
    """The layer before a sign, if nothing but channel ops, moves and maxima stand between."""
    chain: list[fx.Node] = []
    node = cast(fx.Node, sign.args[0])
    while not is_call(node, *DENSE):
        data = [n for n in node.all_input_nodes if not is_constant(n)]
        if len(data) != 1 or not isinstance(node.meta.get("val"), Tensor):
            return None
        chain.append(node)
        node = data[0]
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or not is_constant(weight) or any(s != 1 for s in shape_of(weight)[2:]):
        return None
    if not is_call(node, aten.linear) and arg(node, 6, "groups", 1) != 1:
        return None
    rows = binary_rows(value_of(weight).flatten(1))
    if rows is None:
        return None
    signs, scale = rows
    fan_in = signs.shape[1]
    column = torch.arange(fan_in, -fan_in - 1, -2, dtype=torch.float32)[:, None] * scale
    bias = arg(node, 2, "bias")
    if bias is not None:
        if not is_constant(bias):
            return None
        column = column + value_of(bias)
    axis = len(shape_of(node)) - 1 if is_call(node, aten.linear) else 1
    for op in reversed(chain):
        step = _step(op, column, axis)
        if step is None:
            return None
        column, axis = step
    return _Layer(signs, torch.where(column >= 0, 1.0, -1.0))


def _step(node: fx.Node, column: Tensor, axis: int) -> tuple[Tensor, int] | None:
    """One traced op on values `[V, C]`, channels on `axis` of its operand: (the result, its channels' axis)."""
    data = _data(node)[0]
    before, after = shape_of(data), shape_of(node)
    if is_call(node, aten.index_select):
        return None if cast(int, node.args[1]) % len(before) == axis else (column, axis)
    if is_call(node, *REDUCED):
        axes = reduced_axes(node)
        if axis in axes:
            return None
        return column, axis if arg(node, 2, "keepdim", False) else axis - sum(a < axis for a in axes)
    if is_call(node, aten.permute):
        return column, [d % len(before) for d in cast(list[int], node.args[1])].index(axis)
    if is_call(node, aten.reshape):
        behind = math.prod(before[axis + 1 :])
        fits = [i for i, n in enumerate(after) if n == before[axis] and math.prod(after[i + 1 :]) == behind]
        return (column, fits[0]) if fits else None
    if is_call(node, aten.batch_norm) and axis == 1:
        _, weight, bias, mean, var = (
            value_of(a) if isinstance(a, fx.Node) and a is not data else a for a in node.args[:5]
        )
        return bgnn.batch_norm(column, weight, bias, mean, var, node.args[7]), axis
    if is_call(node, aten.prelu) and axis == 1:
        return aten.prelu(column, value_of(cast(fx.Node, node.args[1]))), axis
    last = axis == len(before) - 1
    if not (is_call(node, *EACH) or (last and is_call(node, bgnn.prelu, bgnn.batch_norm))) or before != after:
        return None
    channels = column.shape[1]

    def operand(n: fx.Node) -> Any:
        if n is data:
            return column
        value = value_of(n)
        if value.numel() == 1:
            return value.reshape(())
        behind = len(before) - axis
        right = value.dim() >= behind and value.shape[-behind] == channels == value.numel()
        return value.reshape(channels) if right else None

    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), operand)
    if any(a is None for a, n in zip(args, node.args, strict=True) if isinstance(n, fx.Node)):
        return None
    with torch.no_grad():
        return cast(Callable[..., Tensor], node.target)(*args, **kwargs), axis


class _NotIntegers(Exception):
    """The stage computes this sign from real numbers, or in a way that is not known here."""


def _stage_signs(node: fx.Node, tap: Tap, layer: _Layer, what: str) -> list[Tensor] | None:
    """The signs `[K + 1, C]` that a stage's node gives the layer's channels; None where they are no sign of integers.

    Two answers: whether all of a layer's inputs are stored negated is not seen from its weights, which fit both ways.
    """
    if tap.inside is not None:
        return None
    try:
        found = [_Stage(layer, tap.name, what, side).value(node) for side in (1.0, -1.0)]
    except _NotIntegers:
        return None
    return [value if tap.flip is None else value * tap.flip for value in found]


@dataclasses.dataclass
class _Stage:
    """Evaluates a stage's nodes for every value of one layer's dot product; all tensors are f32 `[K + 1, C]`."""

    layer: _Layer
    name: str
    what: str
    side: float
    summed: bool = False  # a part of the inputs was met; the layer's other parts add nothing then

    def value(self, node: Any) -> Tensor:
        """The node's value; packed signs as +-1."""
        channels = self.layer.weight.shape[0]
        if isinstance(node, (int, float)):
            return torch.full((1, channels), float(node))
        if is_constant(node):
            return _per_channel(value_of(node), channels)
        if is_call(node, *STAYS):
            return self.value(node.args[0])
        if is_call(node, bgnn.pack, bgnn.binarize):
            return torch.where(self.value(node.args[0]) >= 0, 1.0, -1.0)
        if is_call(node, aten.bitwise_xor):
            return self.value(node.args[0]) * self.value(node.args[1])
        if is_call(node, aten.add, aten.sub) and not node.kwargs:
            left, right = self.value(node.args[0]), self.value(node.args[1])
            return left + right if is_call(node, aten.add) else left - right
        if is_call(node, bgnn.bconv_bits, bgnn.xor_edge_conv):
            fan_in = self.layer.weight.shape[1]
            differing = (fan_in - self._dot(node, whole=True)) / 2
            signs = torch.ones_like(differing)
            for row in torch.atleast_2d(value_of(node.args[3])):
                signs = torch.where(differing > row, -signs, signs)
            return signs
        if is_call(node, bgnn.bconv):
            multiplier, bias = value_of(node.args[3]), value_of(node.args[4])
            if bool((multiplier == 1).all()):
                return self._dot(node) + _whole(bias)
        if is_call(node, aten.linear):
            bias = arg(node, 2, "bias")
            return self._dot(node) + (0.0 if bias is None else _whole(value_of(bias)))
        raise _NotIntegers

    def _dot(self, node: fx.Node, whole: bool = False) -> Tensor:
        """A dense node's result; of parts of a layer, whose results are added up, the first is all of it."""
        weight, fan_in = _weights(node), self.layer.weight.shape[1]
        part = weight.shape[1] < fan_in
        if whole and part:
            raise _NotIntegers
        acc = torch.arange(fan_in, -fan_in - 1, -2, dtype=torch.float32)[:, None]
        turned = acc * self._turned(weight) * self.side
        if part and self.summed:
            return turned * 0
        self.summed = part
        return turned

    def _turned(self, weight: Tensor) -> Tensor:
        """f32 `[C]`: which rows of the traced weights the stage negated; all else must be the same but for columns."""
        wanted, size = self.layer.weight, weight.shape[1]
        if weight.shape[0] != len(wanted) or wanted.shape[1] % size:
            raise _NotIntegers
        blocks = [wanted[:, at : at + size] for at in range(0, wanted.shape[1], size)]
        if size == wanted.shape[1] and size % 2 == 0:  # the halves of an edge may come in the other order
            blocks.append(wanted.roll(size // 2, 1))
        wrong = []
        for block in blocks:
            product = weight * block  # a sign of each row times a sign of each column
            rows = product * product[_likely(product)]
            signs = torch.where(rows.sum(1) >= 0, 1.0, -1.0)
            columns = torch.where((product * signs[:, None]).sum(0) >= 0, 1.0, -1.0)
            differs = int((product != signs[:, None] * columns).sum())
            if differs == 0:
                return signs
            wrong.append(differs)
        if min(wrong) < (1 - NEARLY) * weight.numel():
            raise ConversionError(
                f"{self.what}: {min(wrong)} of {weight.numel()} weights of the layer before {self.name!r} are wrong"
            )
        raise _NotIntegers


def _likely(product: Tensor) -> int:
    """A row that agrees with most others, or is against them: not one that is wrong itself."""
    return int((product[:16] @ product.t()).abs().sum(1).argmax())


def _whole(values: Tensor) -> Tensor:
    if not bool((values == values.round()).all()):
        raise _NotIntegers
    return values.float()


def _per_channel(value: Tensor, channels: int) -> Tensor:
    """A constant beside packed signs (a mask), or beside whole numbers."""
    if value.dtype == torch.int32:
        value = bgnn.unpack(value.reshape(-1), channels) if value.numel() * 32 >= channels else value
    if value.numel() not in (1, channels):
        raise _NotIntegers
    return _whole(value.reshape(1, -1))


def _weights(node: fx.Node) -> Tensor:
    """The signs of a dense node's weights, f32 +-1 `[C, K]`."""
    weight = node.args[2] if is_call(node, bgnn.xor_edge_conv) else node.args[1]
    if not is_constant(weight):
        raise _NotIntegers
    value = value_of(cast(fx.Node, weight))
    if is_call(node, bgnn.xor_edge_conv):  # each half is padded by itself
        return torch.cat([bgnn.unpack(half, node.args[4]) for half in torch.tensor_split(value, 2, 1)], 1)
    if is_call(node, bgnn.bconv, bgnn.bconv_bits):
        return cast(Tensor, bgnn.unpack(value, node.args[2]))
    if value.dim() != 2 or not bool((value.abs() == 1).all()):
        raise _NotIntegers
    return value


def prove_tables(traced: fx.GraphModule, gm: fx.GraphModule, before: fx.GraphModule, what: str) -> Proof:
    """Compares tables with what the traced graph makes of every code, and codes' ranges; raises ConversionError.

    `before`: the last graph in which every code has a node. Codes may be one beside the model's at a tie.
    """
    proof, sampled = Proof(), []
    known = {node.name: node for node in traced.graph.nodes}
    floors = {tap.name: tap.floor for graph in (before, gm) for _, tap in all_taps(graph)}
    for node, tap in all_taps(gm):
        last, table = known.get(tap.name), _table_of(node)
        if last is None or not is_call(last, bgnn.fake_quant):
            continue
        _check_range(node, tap, last, what)
        if table is None:
            continue
        source: Any = node.args[0]
        while is_call(source, *MOVES) and "tap" not in source.meta:
            source = source.args[0]
        starts: set[str] | None = None
        if is_call(node, bgnn.q_table) and "tap" in source.meta:
            starts = {one.name for one in source.meta["tap"].everyone()}
        options = [_codes_of_every(chain, floors) for chain in _chains(last, starts)]
        found = [_wrong_entries(last, table, tap.floor, *option) for option in options if option]
        wrong = min(found, key=lambda w: int(w.sum()), default=None)
        if wrong is None or (bool(wrong.any()) and None in options):  # the chain it stands for is not one to evaluate
            sampled.append(tap.name)
            continue
        if bool(wrong.any()):
            code, channel = (int(i) for i in torch.nonzero(wrong)[0])
            raise ConversionError(
                f"{what}: the table of codes {tap.name!r} is wrong in {int(wrong.sum())} of {wrong.numel()} entries, "
                f"the first in channel {channel} for input {code} of those there are"
            )
        proof.layers, proof.values = proof.layers + 1, proof.values + wrong.numel()
    return dataclasses.replace(proof, sampled=tuple(sampled))


def _check_range(node: fx.Node, tap: Tap, last: fx.Node, what: str) -> None:
    """What makes codes must make all that the traced quantiser can, and no other; samples may not meet the ends."""
    if not is_call(node, *MAKERS) or node.name != tap.name:  # codes of another quantiser may be the same
        return
    low, high = cast(tuple[int, int], last.args[3:5])
    made = cast(tuple[int, int], tuple(node.args[-2:]))
    if made != (min(tap.floor, high - low), high - low):
        raise ConversionError(f"{what}: {tap.name!r} has codes from {made[0]} to {made[1]}, not up to {high - low}")


def _table_of(node: fx.Node) -> Tensor | None:
    """The table that makes a node's codes, u8 `[C, 256]` or `[1, 256]`."""
    at = 1 if is_call(node, bgnn.q_table) else TABLE if is_call(node, bgnn.q_aggregate) else None
    table: Any = None if at is None else arg(node, at, "table")
    return value_of(table) if is_constant(table) else None


def _chains(last: fx.Node, starts: set[str] | None) -> list[list[fx.Node]]:
    """The traced nodes from a quantiser to `last`, first to last; `starts`: which quantiser, if that is known."""
    chain, found = [last], cast(list[list[fx.Node]], [])
    while True:
        data = _data(chain[0])
        if len(data) != 1:
            return found
        chain = [data[0], *chain]
        if is_call(data[0], bgnn.fake_quant) and (starts is None or data[0].name in starts):
            found.append(chain)


def _data(node: fx.Node) -> list[fx.Node]:
    """The operands that are no constants; of rows that are looked up, where they are from."""
    if is_call(node, aten.index_select):
        return [cast(fx.Node, node.args[0])]
    return [n for n in node.all_input_nodes if not is_constant(n)]


def _codes_of_every(chain: list[fx.Node], floors: Mapping[str, int]) -> tuple[Tensor, Tensor] | None:
    """(codes `[V]` that there are of the first quantiser, what the last one is given for each, f32 `[V, C]`)."""
    first, *between, _ = chain
    shape = shape_of(first)
    if len(shape) < 2 or not isinstance(shape[-1], int):
        return None
    low, high = cast(tuple[int, int], first.args[3:5])
    codes = torch.arange(floors.get(first.name, 0), high - low + 1)
    column = from_codes(first, codes)[:, None].repeat(1, shape[-1])
    axis = len(shape) - 1
    for op in between:
        if is_call(op, bgnn.fake_quant):
            column = as_written(column, op)
            continue
        step = _step(op, column, axis)
        if step is None:
            return None
        column, axis = step
    return codes, column


def _wrong_entries(last: fx.Node, table: Tensor, floor: int, codes: Tensor, column: Tensor) -> Tensor:
    """Which entries are wrong: bool `[V, C]`. `table` u8 `[C, 256]` or `[1, 256]`."""
    scale, zero, low, _ = cast(tuple[float, int, int, int], last.args[1:])
    mine = as_codes(last, as_written(column, last)).int().clamp(min=floor)
    given = table.t()[codes].int().expand_as(mine)
    tie = torch.maximum(given, mine).double() - 0.5
    away = (column.double() / scale + zero - low - tie).abs()
    return (given != mine) & (((given - mine).abs() > 1) | (away > CODE_TOLERANCE))


def prove_on_runtime(
    gm: fx.GraphModule, write: Callable[[fx.GraphModule], bytes], run: Callable[..., list[np.ndarray]]
) -> Proof:
    """Runs each layer of thresholds, and each table of codes, as a file of its own.

    A layer gets, for every channel, inputs of which as many differ from its weights as the threshold says, and one
    more; a table gets every code. Raises ConversionError where the runtime gives anything else than they say.
    """
    nodes = [n for n in gm.graph.nodes if is_call(n, bgnn.bconv_bits, bgnn.q_table)]
    values = 0
    for node in nodes:
        graph, x = (_layer_alone if is_call(node, bgnn.bconv_bits) else _table_alone)(node)
        (found,) = run(write(graph), [x.numpy()])
        with torch.no_grad():
            expected = fx.Interpreter(graph).run(x)[0]
        wrong = expected != torch.from_numpy(np.array(found)).to(expected.dtype)
        if bool(wrong.any()):
            label = node.meta.get("layer") or node.name
            channel = int(torch.nonzero(wrong)[0][-1])
            kind = "thresholds" if is_call(node, bgnn.bconv_bits) else "table of codes"
            raise ConversionError(
                f"emitted file: the {kind} of {label!r} are not the graph's on the runtime (channel {channel}, "
                f"{int(wrong.sum())} of {wrong.numel()} values)"
            )
        values += wrong.numel()
    return Proof(len(nodes), values)


def _alone(
    node: fx.Node, example: Tensor, body: Callable[[fx.Graph, fx.Node, list[fx.Node]], fx.Node]
) -> fx.GraphModule:
    """A graph of one input and what `body` makes of it and of the node's constants."""
    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    graph = module.graph
    constants: list[fx.Node] = []
    for operand in node.args:
        if is_constant(operand):
            name = f"constant_{len(constants)}"
            module.register_buffer(name, value_of(cast(fx.Node, operand)))
            constants.append(graph.get_attr(name))
            constants[-1].meta["val"] = cast(fx.Node, operand).meta["val"]
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty_like(example, device="meta")
    graph.output((body(graph, x, constants),))
    for call in graph.nodes:
        if call.op == "call_function":
            compute_meta(call)
    module.recompile()
    return module


def _layer_alone(node: fx.Node) -> tuple[fx.GraphModule, Tensor]:
    """`unpack(bconv_bits(pack(x)))` and rows `[R, K]` on both sides of every channel's threshold."""
    weight, thresholds = _weights(node), value_of(cast(fx.Node, node.args[3]))
    channels, fan_in = weight.shape
    rows = []
    for beyond in (0, 1):
        count = (thresholds.long() + beyond).clamp(0, fan_in)
        rows.append(torch.where(torch.arange(fan_in) < count[:, None], -weight, weight))
    x = torch.cat(rows)

    def body(graph: fx.Graph, given: fx.Node, constants: list[fx.Node]) -> fx.Node:
        words = graph.call_function(bgnn.pack.default, (given,))
        bits = graph.call_function(node.target, (words, constants[0], node.args[2], constants[1]))  # type: ignore[arg-type]
        return graph.call_function(bgnn.unpack.default, (bits, channels))

    return _alone(node, x, body), x


def _table_alone(node: fx.Node) -> tuple[fx.GraphModule, Tensor]:
    """`q_table(quantize(x))` and every code in every channel, f32 `[256, C]`: no file has codes as an input."""
    channels = shape_of(node)[-1]
    x = torch.arange(256, dtype=torch.float32)[:, None].repeat(1, channels)

    def body(graph: fx.Graph, given: fx.Node, constants: list[fx.Node]) -> fx.Node:
        codes = graph.call_function(bgnn.quantize.default, (given, 1.0, 0, 0, 255))
        return graph.call_function(node.target, (codes, constants[0]))  # type: ignore[arg-type]

    return _alone(node, x, body), x
