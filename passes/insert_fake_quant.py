"""Post-training quantisation puts fake-quantisers into a float graph network, where Degree-Quant's layers have them.

Dense layers and what passes along edges are worth 8 bits. So quantised are: the inputs and weights of dense layers
(weights per output channel, symmetric), the operands of products and sums of features, what is aggregated over edges,
and the aggregates (Degree-Quant, B.2). Gathers, reshapes and factors that are one number change no code, so the
quantiser stands before them. What only the model's output reads stays real, and so does a read-out over a batch of
graphs (A.5), and whatever is asked to stay float; binary layers stay binary. The ranges come from
`converter.calibrate`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, fx

from bgnn.passes import domains, ops
from bgnn.passes.binary_rows import binary_rows
from bgnn.passes.graph import (
    aten,
    call,
    constant,
    is_call,
    is_constant,
    number_of,
    remove_dead_code,
    shape_of,
    value_of,
)
from bgnn.passes.neighbour_sums import NeighbourSum, neighbour_sums

bgnn = torch.ops.bgnn

MOVES = [*ops.having("move", "one"), *ops.having("extremum")]
SEGMENTS = [bgnn.segment_sum, bgnn.segment_mean]
AGGREGATES = {bgnn.segment_sum: "sum", bgnn.segment_mean: "mean", bgnn.segment_max: "maximum"}
CODES = 255  # of an activation: 0..255
WEIGHT_CODES = 127  # of a weight: -127..127


def layer_names(gm: fx.GraphModule) -> list[str]:
    """The names that `keep_float` may hold: one for each dense layer and each aggregation."""
    return list(dict.fromkeys(str(n.meta["layer"]) for n in gm.graph.nodes if "layer" in n.meta))


def binary_layers(gm: fx.GraphModule) -> list[str]:
    """The names of layers whose inputs and weights are signs, but for scales: they have one bit, and need no eight."""
    kinds = domains.analyse(gm)
    return [
        str(node.meta["layer"])
        for node in gm.graph.nodes
        if is_layer(node)
        and kinds[_origin(cast(fx.Node, node.args[0]))].kind == "binary"
        and binary_rows(value_of(cast(fx.Node, node.args[1]))) is not None
    ]


def is_kept(node: fx.Node, keep_float: Collection[str]) -> bool:
    """Whether a node is to stay float: its layer's name, or a module that it stands in, is in `keep_float`."""
    names = str(node.meta.get("layer", "")), module_of(node)
    return any(own == name or own.startswith((f"{name}.", f"{name} ")) for own in names for name in keep_float)


def sites(gm: fx.GraphModule, keep_float: Collection[str] = (), results: bool = False) -> list[fx.Node]:
    """The activations to quantise, in the graph's order.

    `results`: those of dense layers as well, unless only the model's output reads them.
    """
    wanted: set[fx.Node] = set()
    sums = neighbour_sums(gm.graph)
    for node in gm.graph.nodes:
        if node.op != "call_function" or is_kept(node, keep_float):
            continue
        if is_layer(node):
            wanted.add(_origin(cast(fx.Node, node.args[0])))
        elif is_call(node, *AGGREGATES) and _is_features(node):
            values = cast(fx.Node, node.args[0])
            if is_edge_tensor(values):
                wanted.add(_origin(values))
                if is_call(node, *SEGMENTS) and not _stays_a_sum(node, sums):
                    wanted.add(node)
        elif node in sums and _is_features(node):
            wanted.add(_origin(sums[node].values))
            if not _stays_a_sum(node, sums):
                wanted.add(node)
    # Products and sums of features are computed on codes where their result is asked for as codes.
    for node in reversed(list(gm.graph.nodes)):
        if node not in wanted:
            continue
        made = node
        if is_call(node, aten.relu) and any(_is_gathered(a) for a in cast(fx.Node, node.args[0]).all_input_nodes):
            made = cast(fx.Node, node.args[0])  # neighbours' codes are gathered: a quarter of the bytes
        if is_call(made, aten.mul, aten.add) and _is_features(made) and not is_kept(made, keep_float):
            operands = {_origin(a) for a in made.args if isinstance(a, fx.Node) and not is_constant(a)}
            if not any(_stays_a_sum(operand, sums) for operand in operands):
                wanted |= operands
    for node in gm.graph.nodes if results else ():
        if is_layer(node) and not is_kept(node, keep_float) and (end := _result(node, wanted)) is not None:
            wanted.add(end)
    return [n for n in gm.graph.nodes if n in wanted and _is_real(n) and not is_constant(n)]


def _stays_a_sum(node: fx.Node, sums: Mapping[fx.Node, NeighbourSum]) -> bool:
    """Whether a sum over edges is left an exact integer: of nodes' own codes, and added to what nodes have (GIN's).

    Its range is that of the node with most edges, and what is added to it has none of that: 8 bits would only round.
    """
    if is_call(node, bgnn.segment_sum):
        own = not is_edge_tensor(_origin(cast(fx.Node, node.args[0])))
    else:
        own = node in sums and sums[node].how == "sum" and not sums[node].on_edges
    return own and any(
        is_call(user, aten.add, aten.sub)
        and all(isinstance(a, fx.Node) and not is_constant(a) and _is_features(a) for a in user.args[:2])
        for user in _readers(node)
    )


def _is_gathered(node: fx.Node) -> bool:
    """Whether a tensor is rows of neighbours, or their maxima."""
    while is_call(node, *MOVES):
        if is_call(node, bgnn.gather_nodes):
            return True
        node = cast(fx.Node, node.args[0])
    return False


def _result(layer: fx.Node, wanted: Collection[fx.Node]) -> fx.Node | None:
    """Where the codes of a layer's result are to be made: behind its ReLU. None where they are, or no layer reads them.

    What is only moved or reduced to a maximum on the way to a quantiser is quantised before.
    """
    end = node = layer
    while node not in wanted:
        if len(node.users) != 1:
            return end if _reaches_a_layer(node) else None
        user = next(iter(node.users))
        if is_call(user, aten.relu):
            end = user
        elif not is_call(user, *MOVES):
            return end if _reaches_a_layer(node) else None
        node = user
    return None


def _reaches_a_layer(node: fx.Node) -> bool:
    after = {node}
    for other in node.graph.nodes:
        if not after.isdisjoint(other.all_input_nodes) and not is_call(other, bgnn.binarize):
            if is_layer(other):
                return True
            after.add(other)
    return False


def place(site: fx.Node) -> tuple[str, str]:
    """(module of the user's model, what it is there) of an activation that is quantised."""
    sums = neighbour_sums(site.graph)
    if is_call(site, *AGGREGATES) or site in sums:
        how = sums[site].how if site in sums else AGGREGATES[site.target.overloadpacket]  # type: ignore[union-attr]
        return module_of(site), f"{how} over edges"
    if is_layer(site):
        return module_of(site), "output before the sum over edges" if "before_sum" in site.meta else "output"
    users = _readers(site)
    for user in users:
        if is_layer(user):
            return module_of(user), "input"
    for user in users:
        if is_call(user, *AGGREGATES) or any(_origin(one.values) is site for one in sums.values()):
            return module_of(user), "messages"
    return module_of(site), "factor" if users and all(is_call(user, aten.mul) for user in users) else "term"


def module_of(node: fx.Node) -> str:
    """The path of the module that a node belongs to; of PyG's layers, not their aggregation's own; "" for forward."""
    if is_layer(node) and "layer" in node.meta:
        return str(node.meta["layer"]).removesuffix(".weight")
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, kind in stack.values() if not str(kind).startswith("torch_geometric.nn.aggr.")]
    return str(paths[-1]).removeprefix("L['self']").removeprefix(".") if paths else ""


def _readers(node: fx.Node) -> list[fx.Node]:
    """What reads a tensor's codes: its users, those of its moves, those of its products with one number."""
    found: list[fx.Node] = []
    for user in node.users:
        found += _readers(user) if _origin(user) is not user else [user]
    return found


def insert(gm: fx.GraphModule, ranges: Mapping[fx.Node, tuple[float, float]], keep_float: Collection[str] = ()) -> int:
    """Puts a quantiser behind every node of `ranges` (least and largest value) and on every layer's weight.

    Returns how many. The codes of an activation are 0..255 over the range widened to hold 0, so that 0 is a code.
    """
    count = 0
    for node in [n for n in gm.graph.nodes if n in ranges]:
        after = node.next
        new = call(after, bgnn.fake_quant.default, node, *scale_and_zero(*ranges[node]), 0, CODES, like=node)
        given = node.op == "placeholder"  # neighbours are searched among the points as they are given
        node.replace_all_uses_with(
            new, delete_user_cb=lambda user, new=new, given=given: user is not new and not (given and _searches(user))
        )
        new._rename(f"{node.name}_codes")  # told to the graph, so that a copy gets another
        count += 1
    for node in ranges:
        if is_call(node, aten.mul):  # the norms of edges that the model holds
            for factor in [a for a in node.all_input_nodes if is_constant(a) and any(s != 1 for s in shape_of(a)[:-1])]:
                value = value_of(factor)
                codes = scale_and_zero(float(value.min()), float(value.max()))
                node.replace_input_with(factor, call(node, bgnn.fake_quant.default, factor, *codes, 0, CODES))
                count += 1
    for node in list(gm.graph.nodes):
        if not is_layer(node) or is_kept(node, keep_float):
            continue
        weight = cast(fx.Node, node.args[1])
        largest = value_of(weight).abs().amax(1).clamp_min(1e-12)
        scales = constant(node, largest / WEIGHT_CODES, f"{weight.target}_scales")
        zeros = constant(node, torch.zeros(len(largest)), f"{weight.target}_zeros")
        new = call(
            node, bgnn.fake_quant_channel.default, weight, scales, zeros, 0, -WEIGHT_CODES, WEIGHT_CODES
        )  # fmt: skip
        node.replace_input_with(weight, new)
        count += 1
    remove_dead_code(gm)
    return count


def _searches(node: fx.Node) -> bool:
    return is_call(node, bgnn.knn) or (is_call(node, *MOVES) and all(_searches(user) for user in node.users))


def scale_and_zero(low: float, high: float) -> tuple[float, int]:
    """Step and zero point of the codes 0..255 over a range, widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / CODES, 1e-12)
    return scale, round(-low / scale)


def is_edge_tensor(node: fx.Node) -> bool:
    """Whether a tensor has a row for each edge: of the edges given, or of those with self-loops."""
    sizes = [
        shape_of(n)[1]
        for n in node.graph.nodes
        if isinstance(n.meta.get("val"), Tensor)
        and (n.op == "placeholder" or is_call(n, bgnn.with_self_loops, bgnn.join_edges, bgnn.edge_csr))
        and n.meta["val"].dtype == torch.int64
        and len(shape_of(n)) == 2
    ]
    shape = shape_of(node)
    return bool(shape) and any(bool(shape[0] == size) for size in sizes)


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() > 0


def _is_features(node: fx.Node) -> bool:
    return _is_real(node) and len(shape_of(node)) > 1


def is_layer(node: fx.Node) -> bool:
    """Whether a node is a dense layer with constant weights, on features."""
    return is_call(node, aten.linear) and is_constant(node.args[1]) and len(shape_of(node)) > 1


def _origin(node: fx.Node) -> fx.Node:
    """Where the codes of a tensor are made: before it is moved, or multiplied by one positive number."""
    while True:
        if is_call(node, *MOVES):
            node = cast(fx.Node, node.args[0])
        elif is_call(node, aten.mul) and (data := _scaled(node)) is not None:
            node = data
        else:
            return node


def _scaled(node: fx.Node) -> fx.Node | None:
    for data, factor in (node.args[:2], tuple(reversed(node.args[:2]))):
        number = number_of(factor)
        if number is not None and number > 0 and isinstance(data, fx.Node):
            return data
    return None
