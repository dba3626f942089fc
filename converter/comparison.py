"""What is compared of a conversion: each stage's graph, and the file on its runtime, with the traced graph.

The reference is `verify.Reference`, of one example; `api.convert` asks for the checks and the report shows them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx

from bgnn.converter import stages
from bgnn.converter.decisions import completed, exact_decisions, holds_codes, run_with_taps, told
from bgnn.converter.emitted_file import run_with_probes
from bgnn.converter.errors import ConversionError
from bgnn.converter.examples import Example
from bgnn.converter.targets import TARGETS
from bgnn.converter.verify import Check, Reference
from bgnn.converter.verify_layers import prove_layers, prove_tables
from bgnn.passes import user_code
from bgnn.passes.graph import Tap, all_taps, is_constant, value_of
from bgnn.passes.insert_fake_quant import is_edge_tensor


def check_stage(example: Example, what: str, gm: fx.GraphModule, before: fx.GraphModule) -> Check:
    """A stage's graph, run by PyTorch, against the reference; `before`: a graph that makes every code."""
    reference = example.reference
    assert reference is not None
    taps, outputs = run_with_taps(gm, example.inputs, reference.shapes)
    every = completed(before, example.inputs, reference.shapes, taps)
    check = reference.compare(example.named(what), every, outputs, exact_decisions(gm))
    check.inside = reference.codes(set(every) - set(taps))
    if not example.second:
        check.proof = prove_layers(reference.gm, gm, what)
        if before is not gm:
            check.proof += prove_tables(reference.gm, gm, before, what)
    return check


def check_file(
    gm: fx.GraphModule, before: fx.GraphModule, emit: Callable[..., bytes],
    run: Callable[[bytes, Sequence[np.ndarray]], list[np.ndarray]], plan: stages.Plan, example: Example,
) -> Check:  # fmt: skip
    """Runs the file, with its decisions as extra outputs, and once more as it is; both on the real runtime."""
    reference = example.reference
    assert reference is not None
    tapped = list({tap.name: (node, tap) for node, tap in all_taps(gm)}.values())
    on_edges: list[tuple[fx.Node, Tap]] = []
    if TARGETS[plan.target].open and plan.optimize == 1 and plan.kernels == "stock":
        # On neighbour tables there are no tensors of edges in the file: their codes follow from the others.
        on_edges = [(node, tap) for node, tap in tapped if is_edge_tensor(node)]
        tapped = [pair for pair in tapped if pair not in on_edges]

    def read(file: Callable[..., bytes], pairs: Sequence[tuple[fx.Node, Tap]]) -> tuple[list[Tensor], dict[str, Any]]:
        sources = dict.fromkeys(source for node, tap in pairs for source in tap.sources(node))
        probes = [node for node in sources if node.op == "call_function"]
        outputs, known = run_with_probes(file, run, probes, example.inputs)
        known |= {node: value_of(node) for node in sources if is_constant(node)}
        known |= dict(zip((n for n in gm.graph.nodes if n.op == "placeholder"), example.inputs, strict=True))
        return outputs, {
            tap.name: told(tap, node, [known[source] for source in tap.sources(node)], reference.shapes)
            for node, tap in pairs
        }

    def compare(taps: Mapping[str, Any]) -> Check:
        every = completed(before, example.inputs, reference.shapes, taps)
        check = reference.compare(example.named("emitted file"), every, outputs, exact_decisions(gm))
        check.inside = reference.codes(set(every) - set(taps))
        return check

    outputs, taps = read(emit, tapped)
    try:
        if not on_edges or any(holds_codes(node) for node, _ in tapped):
            return compare(taps)
    except ConversionError:
        if not on_edges:
            raise
    # All codes are of edges, or a decision on an edge lies at a tie, which the runtime rounds the other way: the same
    # operators tell them where edges are tensors.
    check = compare({**read(functools.partial(emit, optimize=0), on_edges)[1], **taps})
    check.note = (
        "this file has no tensors of edges: their signs and codes are those that the same operators make with -O0"
    )
    return check


def check_zeros(
    example: Example, first: Example, gm: fx.GraphModule, sign_zero: str, warn: Callable[[str], None]
) -> None:
    """Refuses exact zeros that torch.sign meets, or warns of those that only the second graph has."""
    met = _zeros_met(example, gm)
    if met and sign_zero == "error":
        raise ConversionError(
            f"{met}, where it gives 0 and the file +1: accept that with --sign-zero plus, or write the model's sign as "
            "where(x >= 0, 1, -1)"
        )
    if met and not _zeros_met(first, gm):
        warn(f"{met}, where it gives 0 and the file +1: for such graphs the file is not the model")


def _zeros_met(example: Example, gm: fx.GraphModule) -> str:
    """How many exact zeros torch.sign meets, where first, and on which graph, in words; empty if none.

    `gm`: the graph that the example's reference was made of.
    """
    assert example.reference is not None
    count = sum(example.reference.zeros.values())
    if not count:
        return ""
    first = next(name for name, zeros in example.reference.zeros.items() if zeros)
    place = next((user_code.place(node) for node in gm.graph.nodes if node.name == first), "") or first
    graph = f" on a graph that is not the example ({example.second})" if example.second else ""
    return f"torch.sign meets {count} exact zeros (first at {place}){graph}"


def check_flushed(reference: Reference) -> None:
    count = sum(reference.flushed.values())
    if count:
        name = next(n for n, signs in reference.flushed.items() if signs)
        raise ConversionError(
            f"{count} signs (first at {name!r}) are of numbers nearer to 0 than 1.2e-38, which LiteRT takes for 0: "
            "compare with a small number instead, as in x > 1e-30, or convert to onnx-x86"
        )


def summary(check: Check, than: str) -> str:
    """One line for the file's properties; `than`: whose outputs the file's are compared with."""
    parts = [
        f"outputs compared with {than}, largest difference {check.output_error:.3g}, {check.column_error:.2g} of its "
        "column"
    ]
    if check.signs or check.neighbours:
        parts.append(
            f"{check.signs} signs and {check.neighbours} neighbours compared, {check.exact} of them exact; turned by "
            f"rounding: {check.turned_signs} signs, {check.turned_rows} rows of neighbours"
        )
    if check.codes:
        parts.append(f"{check.codes} codes compared, {check.stepped} of them one beside the model's at a tie")
    if check.rows:
        parts.append(f"another class than {than} in {check.changed_rows} of {check.rows} rows")
    return "; ".join(parts)
