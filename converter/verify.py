"""Proof that a stage, or the emitted file, computes what the PyTorch model computes.

The reference is the traced graph, run by PyTorch. Its decisions (signs, neighbours, codes: converter.decisions) are
compared one by one; outputs are real numbers, each column compared within the stated tolerance of its own size
(converter.rounding).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.converter import rounding
from bgnn.converter.decisions import Decision, Decisions, Forced, Seen, finite_scale, same
from bgnn.converter.errors import ConversionError
from bgnn.passes.cancel_opposites import remainders
from bgnn.passes.graph import snapshot

# Relative to an output's column (converter.rounding). float32 sums of a few thousand terms in another order differ by
# about 1e-6 of it; a wrong rewrite by far more.
OUTPUT_TOLERANCE = 1e-4


@dataclasses.dataclass
class Proof:
    """How many layers and tables were compared for every integer there can be, `values` in all; which could not be."""

    layers: int = 0
    values: int = 0
    sampled: tuple[str, ...] = ()

    def __add__(self, other: Proof) -> Proof:
        return Proof(self.layers + other.layers, self.values + other.values, (*self.sampled, *other.sampled))


@dataclasses.dataclass
class Check:
    """What one comparison found: counts; of the outputs the largest absolute difference (`output_error`), the largest
    value (`output_scale`) and the largest difference relative to its column (`column_error`).

    `rows` are the first output's, `changed_rows` those in which another class is the largest. `note`: what else is to
    be said, or why nothing was `compared`. `proof`: what was proven beside it. `inside`: how many of the `codes` no
    tensor tells (a fused operator keeps them to itself, a neighbour table has no edges): they follow from the others.
    """

    what: str
    signs: int = 0
    neighbours: int = 0
    exact: int = 0
    turned_signs: int = 0
    turned_rows: int = 0
    codes: int = 0
    inside: int = 0
    stepped: int = 0
    rows: int = 0
    changed_rows: int = 0
    output_error: float = 0.0
    output_scale: float = 0.0
    column_error: float = 0.0
    compared: bool = True
    note: str = ""
    proof: Proof = dataclasses.field(default_factory=Proof)

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return dataclasses.asdict(self)


class Reference:
    """The traced graph and one run of it on the sample inputs."""

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self.gm = snapshot(gm)  # the passes go on with the original
        self.inputs = list(inputs)
        run = Decisions(self.gm, {}, (), Check("reference"))
        self.outputs = run.outputs(self.inputs)
        self.decisions, self.zeros, self.flushed = run.seen, run.zeros, run.flushed
        for node in self.gm.graph.nodes:  # weights' signs were taken when constants were folded
            if node.meta.get("sign_zeros"):
                self.zeros[str(node.meta.get("source", node.name))] = node.meta["sign_zeros"]
        self.shapes = {name: tuple(_tensor(value).shape) for name, value in self.decisions.items()}

    def compare(
        self, what: str, taps: Mapping[str, Forced], outputs: Sequence[Tensor], exact: Collection[str] = ()
    ) -> Check:
        """Compares decisions (by the traced name) and outputs with the reference; raises at the first difference.

        A tap may also be a list: tensors one of which is it. `exact`: the decisions that rounding cannot turn. The
        reference runs again only if a decision differs, since all after it depends on it.
        """
        check = Check(what)
        compared = {name: mine for name, mine in self.decisions.items() if name in taps}
        expected = self.outputs
        if not all(same(taps[name], mine) for name, mine in compared.items()):
            expected = Decisions(self.gm, taps, exact, check).outputs(self.inputs)
        for name, mine in compared.items():
            count = _tensor(mine).numel()
            if isinstance(mine, Seen):
                check.codes += count
            elif mine.dtype == torch.bool:
                check.signs += count
            else:
                check.neighbours += count
            check.exact += count if name in exact else 0
        compare_outputs(check, expected, outputs, lambda: self._magnitudes(taps, exact))
        first, given = self.outputs[0], outputs[0]
        if first.dim() == 2 and first.shape[1] > 1 and first.is_floating_point():
            check.rows = first.shape[0]
            check.changed_rows = int((first.argmax(1) != given.argmax(1)).sum())
        return check

    def codes(self, names: Collection[str]) -> int:
        """How many codes the tensors of these traced names have."""
        found = (mine for name, mine in self.decisions.items() if name in names)
        return sum(mine.codes.numel() for mine in found if isinstance(mine, Seen))

    def _magnitudes(self, taps: Mapping[str, Forced], exact: Collection[str]) -> list[Tensor]:
        run = Decisions(self.gm, taps, exact, Check(""), rounding.needed(self.gm))
        run.outputs(self.inputs)
        return rounding.magnitudes(self.gm, run.kept)


def _tensor(decision: Decision) -> Tensor:
    return decision.codes if isinstance(decision, Seen) else decision


def compare_outputs(
    check: Check, expected: Sequence[Tensor], got: Sequence[Tensor], magnitudes: Callable[[], Sequence[Tensor]]
) -> None:
    """Raises ConversionError unless all outputs are within tolerance; notes the largest differences.

    `magnitudes()`: what each output's terms amount to, asked for only where a column fails by its own values.
    """
    for position, (mine, theirs) in enumerate(zip(expected, got, strict=True)):
        if tuple(mine.shape) != tuple(theirs.shape):
            raise ConversionError(
                f"{check.what}: output {position} has shape {tuple(theirs.shape)} instead of {tuple(mine.shape)}"
            )
        if mine.is_floating_point():
            _compare_real(check, position, mine, theirs, partial(_at, magnitudes, position))
        elif not torch.equal(mine, theirs.to(mine.dtype)):
            count = int((mine != theirs).sum())
            raise ConversionError(f"{check.what}: output {position} differs in {count} of {mine.numel()} integers")


def _at(values: Callable[[], Sequence[Tensor]], position: int) -> Tensor:
    return values()[position]


def _compare_real(
    check: Check, position: int, expected: Tensor, got: Tensor, magnitude: Callable[[], Tensor]
) -> None:  # fmt: skip
    if expected.numel() == 0:
        return
    apart = torch.where(expected == got, 0.0, (expected.double() - got.double()).abs())  # equal infinities too
    scales = rounding.column_scales(expected)
    if not bool((apart <= OUTPUT_TOLERANCE * scales).all()) and bool(torch.isfinite(apart).all()):
        scales = rounding.column_scales(magnitude())
    check.output_error = max(check.output_error, float(apart.max()))
    check.output_scale = max(check.output_scale, finite_scale(expected))
    relative = apart / scales
    check.column_error = max(check.column_error, float(relative.max()))
    if not bool((relative <= OUTPUT_TOLERANCE).all()):
        worst = int(relative.nan_to_num(float("inf")).argmax())
        error, scale = float(apart.flatten()[worst]), float(scales.expand_as(apart).flatten()[worst])
        at = "[" + ", ".join(str(int(i)) for i in torch.unravel_index(torch.tensor(worst), expected.shape)) + "]"
        raise ConversionError(
            f"{check.what}: output {position} differs by {error:.3g} (at {at}, in a column of size {scale:.3g}; "
            f"tolerance {OUTPUT_TOLERANCE:g} of it)"
        )


def check_sums(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Checks the sums with opposite terms, if an exported graph has any; raises ConversionError."""
    run = Settled(gm)
    if run.remainders:
        with torch.no_grad():
            run.run(*inputs)


class Settled(fx.Interpreter):
    """Runs a graph as PyTorch would, but with sums that have opposite terms settled (passes/cancel_opposites.py).

    Each such sum is compared with what is left of it where it stands, and the run goes on with that: `(f - g) + g`
    misses f by its rounding, on which no sign or code after it may hang. Raises ConversionError where they differ by
    more than rounding.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.remainders = remainders(gm)
        read = {n for r in self.remainders.values() for n in [*(term.node for term in r.terms), *r.gone]}
        self.user_to_last_uses = {  # what is read once more stays
            user: [n for n in nodes if n not in read] for user, nodes in self.user_to_last_uses.items()
        }

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node; of such a sum, its remainder's."""
        value = super().run_node(n)
        remainder = self.remainders.get(n)
        if remainder is None:
            return value

        def of(term: Any) -> Tensor:
            return cast(Tensor, self.env[term]) if isinstance(term, fx.Node) else torch.tensor(term)

        first, *others = [of(term.node) * term.sign for term in remainder.terms]
        rest = sum(others, start=first).to(value.dtype)
        known = torch.isfinite(value)  # infinity minus infinity stays what it is: no number
        rest = torch.where(known, rest, value)
        parts = [value, *(of(term.node) for term in remainder.terms), *(of(node) for node in remainder.gone)]
        largest = max(finite_scale(part.double()) for part in parts)
        eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        if bool(((value - rest)[known].abs() > 16 * len(parts) * eps * largest).any()):
            raise ConversionError(f"stage traced: {n.name} differs from what is left of its sum by more than rounding")
        return rest
