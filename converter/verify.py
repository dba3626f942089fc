"""Proof that a stage, or the emitted file, computes what the PyTorch model computes.

The reference is the traced graph, run by PyTorch. Three kinds of tensor are compared:

- a *sign* of integers and the choice of Hamming neighbours are exact: one differing bit or index is an error;
- a sign of real numbers, or a choice of neighbours by real distances, is a *decision* that rounding can turn where the
  number is (nearly) 0 or the distances (nearly) tie. A decision may differ only within the stated tolerance; it is
  counted and reported, and the reference goes on with the file's decision, so that all after it is
  compared on equal terms;
- outputs are real numbers, each column compared within the stated tolerance of its own size (converter.rounding).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.converter import rounding
from bgnn.converter.errors import ConversionError
from bgnn.passes.cancel_opposites import remainders
from bgnn.passes.graph import Tap, all_taps, getitem, is_call, snapshot

bgnn = torch.ops.bgnn

# Relative to an output's column (converter.rounding), and to the largest magnitude of what a decision is made of.
# float32 sums of a few thousand terms in another order differ by about 1e-6 of it; a wrong rewrite by far more.
OUTPUT_TOLERANCE = 1e-4
DECISION_TOLERANCE = 1e-4

Forced = Tensor | Sequence[Tensor]  # the other side's decision, or candidates for it


@dataclasses.dataclass
class Proof:
    """How many layers and tables were compared for every integer there can be, `values` in all; which could not be."""

    layers: int = 0
    values: int = 0
    sampled: tuple[str, ...] = ()


@dataclasses.dataclass
class Check:
    """What one comparison found. Counts, and of the outputs the largest absolute difference (`output_error`), the
    largest value (`output_scale`) and the largest difference relative to its column (`column_error`). `note`: what else
    is to be said, or why nothing was `compared`. `proof`: what was proven beside it.
    """

    what: str
    signs: int = 0
    neighbours: int = 0
    exact: int = 0
    turned_signs: int = 0
    turned_rows: int = 0
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
        run = _Decisions(self.gm, {}, set())
        self.outputs = run.outputs(self.inputs)
        self.decisions, self.zeros, self.flushed = run.seen, run.zeros, run.flushed
        for node in self.gm.graph.nodes:  # weights' signs were taken when constants were folded
            if node.meta.get("sign_zeros"):
                self.zeros[str(node.meta.get("source", node.name))] = node.meta["sign_zeros"]
        self.shapes = {name: tuple(value.shape) for name, value in self.decisions.items()}

    def compare(self, what: str, taps: Mapping[str, Forced], outputs: Sequence[Tensor], exact: set[str]) -> Check:
        """Compares decoded taps (by name) and outputs with the reference; raises at the first difference.

        A tap may also be a list: tensors one of which is it. `exact`: the decisions that rounding cannot turn. The
        reference runs again only if a decision differs, since all after it depends on it.
        """
        check = Check(what)
        same = all(_same(taps[name], self.decisions[name]) for name in self.decisions if name in taps)
        expected = self.outputs
        if not same:
            run = _Decisions(self.gm, taps, exact, check)
            expected = run.outputs(self.inputs)
        for name, value in self.decisions.items():
            if name in taps:
                counted = "neighbours" if value.dtype != torch.bool else "signs"
                setattr(check, counted, getattr(check, counted) + value.numel())
                check.exact += value.numel() if name in exact else 0
        compare_outputs(check, expected, outputs, lambda: self._magnitudes(taps, exact))
        return check

    def _magnitudes(self, taps: Mapping[str, Forced], exact: set[str]) -> list[Tensor]:
        run = _Decisions(self.gm, taps, exact, Check(""), rounding.needed(self.gm))
        run.outputs(self.inputs)
        return rounding.magnitudes(self.gm, run.kept)


def _finite_scale(values: Tensor) -> float:
    """The largest magnitude among the finite values: what tolerances are relative to."""
    finite = values[torch.isfinite(values)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _same(mine: Forced, reference: Tensor) -> bool:
    return isinstance(mine, Tensor) and torch.equal(_as_decision(mine, reference), reference)


def _nearest(forced: Forced, like: Tensor) -> Tensor:
    """The other side's decision; of several candidates the one with the fewest differences, or `like` if none fits."""
    candidates = [forced] if isinstance(forced, Tensor) else [c for c in forced if c.shape == like.shape]
    decisions = [_as_decision(candidate, like) for candidate in candidates]
    return min(decisions, key=lambda d: int((d != like).sum()), default=like)


def _as_decision(value: Tensor, like: Tensor) -> Tensor:
    """Signs as booleans (+1 is True), neighbours as int64."""
    return value >= 0 if like.dtype == torch.bool and value.dtype != torch.bool else value.to(like.dtype)


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
    check.output_scale = max(check.output_scale, _finite_scale(expected))
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


class _Decisions(fx.Interpreter):
    """Runs the traced graph; at each decision it checks and takes over the other side's, if there is one."""

    def __init__(
        self,
        gm: fx.GraphModule,
        forced: Mapping[str, Forced],
        exact: set[str],
        check: Check | None = None,
        keep: Collection[fx.Node] = (),
    ) -> None:
        super().__init__(gm)
        self.forced, self.exact, self.check, self.keep = forced, exact, check, keep
        self.kept: dict[fx.Node, Any] = {}
        self.seen: dict[str, Tensor] = {}
        self.zeros: dict[str, int] = {}
        self.flushed: dict[str, int] = {}  # signs that a runtime turns which takes denormal numbers for 0
        self.scores: dict[fx.Node, Tensor] = {}  # what each topk chose from, until its indices are seen

    def outputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The graph's outputs."""
        with torch.no_grad():
            return [t.clone() for t in self.run(*inputs)]

    def run_node(self, n: fx.Node) -> Any:
        value = self._decided(n, super().run_node(n))
        if n in self.keep:
            self.kept[n] = value
        return value

    def _decided(self, n: fx.Node, value: Any) -> Any:
        if is_call(n, bgnn.topk_lowest):
            self.scores[n] = self.env[cast(fx.Node, n.args[0])]
        tap = cast("Tap | None", n.meta.get("tap"))
        if tap is None:
            return value
        if is_call(n, bgnn.binarize):
            before = cast(Tensor, self.env[cast(fx.Node, n.args[0])])
            self.seen[tap.name] = value >= 0
            self.flushed[tap.name] = int(((before < 0) & (before > -torch.finfo(torch.float32).tiny)).sum())
            if n.meta.get("zero_was_zero"):
                width = float(n.meta.get("zero_width", 0.0))  # of numbers that become 0 before their sign is taken
                self.zeros[tap.name] = int(((before >= 0) & (before <= width)).sum())
            if tap.name in self.forced:
                return self._sign(tap.name, before, value)
        else:
            self.seen[tap.name] = value
            picked = getitem(n)
            assert picked is not None
            scores = self.scores.pop(picked[0])
            if tap.name in self.forced:
                return self._neighbours(tap.name, scores, picked[0], value)
        return value

    def _sign(self, name: str, before: Tensor, value: Tensor) -> Tensor:
        theirs = torch.where(_nearest(self.forced[name], self.seen[name]), 1.0, -1.0).to(value.dtype)
        differs = theirs != value
        count = int(differs.sum())
        if count == 0:
            return value
        assert self.check is not None
        if name in self.exact:
            raise ConversionError(
                f"{self.check.what}: {count} of {value.numel()} signs of {name!r} differ, signs of exact integers"
            )
        allowed = DECISION_TOLERANCE * _finite_scale(before)
        worst = float(before[differs].abs().max())
        if not worst <= allowed:
            raise ConversionError(
                f"{self.check.what}: {count} of {value.numel()} signs of {name!r} differ, one where the number is "
                f"{worst:.3g} (rounding explains up to {allowed:.3g})"
            )
        self.check.turned_signs += count
        return theirs

    def _neighbours(self, name: str, scores: Tensor, topk: fx.Node, value: Tensor) -> Tensor:
        theirs = _nearest(self.forced[name], value)
        if torch.equal(theirs, value):
            return value
        assert self.check is not None
        what = self.check.what
        rows = int((theirs != value).any(-1).sum())
        if name in self.exact:
            raise ConversionError(f"{what}: {rows} rows of neighbours {name!r} differ; their distances are integers")
        dim = cast(int, topk.args[2]) % scores.dim()
        if bool(((theirs < 0) | (theirs >= scores.shape[dim])).any()):
            raise ConversionError(f"{what}: {name!r} holds an index out of range")
        ordered = theirs.sort(dim)[0]
        if bool((ordered.diff(dim=dim) == 0).any()):
            raise ConversionError(f"{what}: {name!r} holds a neighbour twice")
        mine = torch.gather(scores, dim, value).sort(dim)[0]
        other = torch.gather(scores, dim, theirs).sort(dim)[0]
        worst = float(torch.where(mine == other, 0.0, (mine - other).abs()).max())  # equal infinities are equal
        allowed = DECISION_TOLERANCE * _finite_scale(scores)
        if not worst <= allowed:
            raise ConversionError(
                f"{what}: neighbours {name!r} differ in {rows} rows, by a distance of {worst:.3g} "
                f"(rounding explains up to {allowed:.3g})"
            )
        self.check.turned_rows += rows
        return theirs


def run_with_taps(
    gm: fx.GraphModule, inputs: Sequence[Tensor], shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Executes a stage's graph; returns the decoded taps (signs as booleans) and the outputs."""
    taps: dict[str, Tensor] = {}

    class Collect(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            self.env[n] = value = super().run_node(n)
            for tap in n.meta["tap"].everyone() if "tap" in n.meta else ():
                if tap.name in shapes:
                    values = [self.env[source] for source in tap.sources(n)]
                    taps[tap.name] = tap.read(n, values, shapes[tap.name]).clone()
            return value

    with torch.no_grad():
        outputs = [t.clone() for t in Collect(gm).run(*inputs)]
    return taps, outputs


def exact_decisions(gm: fx.GraphModule) -> set[str]:
    """Names of the taps that are functions of integers alone, as the passes marked them."""
    return {tap.name for _, tap in all_taps(gm) if tap.exact}


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
        largest = max(_finite_scale(part.double()) for part in parts)
        eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        if bool(((value - rest)[known].abs() > 16 * len(parts) * eps * largest).any()):
            raise ConversionError(f"stage traced: {n.name} differs from what is left of its sum by more than rounding")
        return rest
