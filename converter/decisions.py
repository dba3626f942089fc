"""Decisions: what a network settles between two numbers, and how another run of it may settle them.

Three kinds of tensor are decisions, each with one handler here:

- a *sign*: of integers it is exact; of real numbers rounding can turn it where the number is (nearly) 0;
- the *neighbours* of a point: by Hamming distance they are exact; by real distances those that nearly tie may swap;
- the *codes* of a quantiser: one may lie beside the model's, and only within `CODE_TOLERANCE` of a step from the tie
  between the two. What moves a number that far, and no farther, is the model's own float32 arithmetic, the bias of a
  layer rounded to the accumulator's unit (lower_int8.BIAS_SLACK), and ties with an odd zero point, which Degree-Quant
  adds before rounding and ONNX Runtime after.

A decision that is within its tolerance is counted, and the run goes on with the other side's, so that all after it is
compared on equal terms; any other is an error that names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx

from bgnn.converter.dialect import knn_scores
from bgnn.converter.errors import ConversionError
from bgnn.passes.graph import Tap, all_taps, arg, getitem, is_call
from bgnn.passes.recognise_fake_quant import as_written

if TYPE_CHECKING:
    from bgnn.converter.verify import Check

bgnn = torch.ops.bgnn

DECISION_TOLERANCE = 1e-4  # relative to the largest magnitude of what a decision is made of
CODE_TOLERANCE = 1 / 32  # of a step


@dataclasses.dataclass(frozen=True)
class Seen:
    """The codes of one tensor: u8 as stored, int64 as a fake-quantiser that stays tells them.

    From `floor` up: below, a ReLU follows, and they are not told apart.
    """

    codes: Tensor
    floor: int = 0


Decision = Tensor | Seen  # signs as booleans (+1 is True), neighbours int64, codes
Forced = Decision | Sequence[Tensor]  # the other side's decision, or tensors one of which is it


class Decisions(fx.Interpreter):
    """Runs the traced graph; at each decision it checks and takes over the other side's, if there is one.

    `exact`: the decisions that rounding cannot turn. `check` counts; `keep`: nodes whose values are kept.
    """

    def __init__(
        self, gm: fx.GraphModule, forced: Mapping[str, Forced], exact: Collection[str], check: Check,
        keep: Collection[fx.Node] = (),
    ) -> None:  # fmt: skip
        super().__init__(gm)
        self.forced, self.exact, self.check, self.keep = forced, exact, check, keep
        self.kept: dict[fx.Node, Any] = {}
        self.seen: dict[str, Decision] = {}
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
        if "tap" not in n.meta:
            return value
        name = cast(Tap, n.meta["tap"]).name
        if is_call(n, bgnn.binarize):
            return self._sign(n, name, self.env[cast(fx.Node, n.args[0])], value)
        if is_call(n, bgnn.fake_quant):
            return self._codes(n, name, self.env[cast(fx.Node, n.args[0])])
        return self._neighbours(n, name, value)

    def _sign(self, n: fx.Node, name: str, before: Tensor, value: Tensor) -> Tensor:
        self.seen[name] = value >= 0
        self.flushed[name] = int(((before < 0) & (before > -torch.finfo(torch.float32).tiny)).sum())
        if n.meta.get("zero_was_zero"):
            width = float(n.meta.get("zero_width", 0.0))  # of numbers that become 0 before their sign is taken
            self.zeros[name] = int(((before >= 0) & (before <= width)).sum())
        if name not in self.forced:
            return value
        theirs = torch.where(_nearest(self.forced[name], value >= 0), 1.0, -1.0).to(value.dtype)
        differs = theirs != value
        count = int(differs.sum())
        if count == 0:
            return value
        if name in self.exact:
            raise ConversionError(
                f"{self.check.what}: {count} of {value.numel()} signs of {name!r} differ, signs of exact integers"
            )
        allowed = DECISION_TOLERANCE * finite_scale(before)
        worst = float(before[differs].abs().max())
        if not worst <= allowed:
            raise ConversionError(
                f"{self.check.what}: {count} of {value.numel()} signs of {name!r} differ, one where the number is "
                f"{worst:.3g} (rounding explains up to {allowed:.3g})"
            )
        self.check.turned_signs += count
        return theirs

    def _neighbours(self, n: fx.Node, name: str, value: Tensor) -> Tensor:
        self.seen[name] = value
        picked = getitem(n)
        dim = -1 if picked is None else cast(int, picked[0].args[2])
        scores = self._distances(n) if picked is None else self.scores.pop(picked[0])
        if name not in self.forced:
            return value
        theirs = _nearest(self.forced[name], value)
        if torch.equal(theirs, value):
            return value
        what = self.check.what
        rows = int((theirs != value).any(-1).sum())
        if name in self.exact:
            raise ConversionError(f"{what}: {rows} rows of neighbours {name!r} differ; their distances are integers")
        dim = dim % scores.dim()
        if bool(((theirs < 0) | (theirs >= scores.shape[dim])).any()):
            raise ConversionError(f"{what}: {name!r} holds an index out of range")
        ordered = theirs.sort(dim)[0]
        if bool((ordered.diff(dim=dim) == 0).any()):
            raise ConversionError(f"{what}: {name!r} holds a neighbour twice")
        mine = torch.gather(scores, dim, value).sort(dim)[0]
        other = torch.gather(scores, dim, theirs).sort(dim)[0]
        worst = float(torch.where(mine == other, 0.0, (mine - other).abs()).max())  # equal infinities are equal
        allowed = DECISION_TOLERANCE * finite_scale(scores)
        if not worst <= allowed:
            raise ConversionError(
                f"{what}: neighbours {name!r} differ in {rows} rows, by a distance of {worst:.3g} "
                f"(rounding explains up to {allowed:.3g})"
            )
        self.check.turned_rows += rows
        return theirs

    def _distances(self, n: fx.Node) -> Tensor:
        x, _, metric = cast(tuple[fx.Node, int, str], n.args[:3])
        group = cast("fx.Node | None", arg(n, 3, "group"))
        return knn_scores(self.env[x], metric, None if group is None else self.env[group])

    def _codes(self, n: fx.Node, name: str, x: Tensor) -> Tensor:
        scale, zero, low, high = cast(tuple[float, int, int, int], n.args[1:])
        real = x.double() / scale + zero
        value = as_written(x, n)
        mine = (torch.round(value.double() / scale) + zero).clamp(low, high)
        self.seen[name] = Seen((mine - low).to(torch.int64))
        theirs = _nearest_codes(n, self.forced.get(name), mine - low)
        if theirs is None:
            return value
        given = theirs.codes.reshape(mine.shape).double() + low
        floor = theirs.floor + low
        apart = given - mine.clamp(min=floor)
        differs = apart != 0
        if not bool(differs.any()):
            return value
        count, worst = int(differs.sum()), int(apart.abs().max())
        some = f"{self.check.what}: {count} of {mine.numel()} codes of {name!r}"
        if worst > 1:
            raise ConversionError(f"{some} differ, one by {worst}")
        tie = torch.maximum(given, mine.clamp(min=floor)).double() - 0.5
        distance = float((real - tie)[differs].abs().max())
        if not distance <= CODE_TOLERANCE:
            raise ConversionError(
                f"{some} differ by one, one of them {distance:.3g} of a step away from the tie "
                f"(rounding explains up to {CODE_TOLERANCE:.3g})"
            )
        self.check.stepped += count
        taken = torch.where(differs, given, mine)
        return ((taken - zero) * scale).to(value.dtype)


def _nearest(forced: Forced, like: Tensor) -> Tensor:
    """The other side's decision; of several candidates the one with the fewest differences, or `like` if none fits."""
    assert not isinstance(forced, Seen)
    candidates = [forced] if isinstance(forced, Tensor) else [c for c in forced if c.shape == like.shape]
    decisions = [_as_decision(candidate, like) for candidate in candidates]
    return min(decisions, key=lambda d: int((d != like).sum()), default=like)


def _nearest_codes(n: fx.Node, forced: Forced | None, mine: Tensor) -> Seen | None:
    """The other side's codes; of several candidates, values as the quantiser gives them, the nearest."""
    if forced is None or isinstance(forced, Seen):
        return forced
    codes = [as_codes(n, value) for value in forced if value.shape == mine.shape]
    return Seen(min(codes, key=lambda c: int((c != mine).sum()))) if codes else None


def _as_decision(value: Tensor, like: Tensor) -> Tensor:
    return value >= 0 if like.dtype == torch.bool and value.dtype != torch.bool else value.to(like.dtype)


def same(theirs: Forced, mine: Decision) -> bool:
    """Whether the other side decided as the reference did."""
    if isinstance(mine, Seen):
        if not isinstance(theirs, Seen):
            return False
        return torch.equal(theirs.codes.reshape(mine.codes.shape).long(), mine.codes.clamp(min=theirs.floor))
    return isinstance(theirs, Tensor) and torch.equal(_as_decision(theirs, mine), mine)


def finite_scale(values: Tensor) -> float:
    """The largest magnitude among the finite values: what tolerances are relative to."""
    finite = values[torch.isfinite(values)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def told(tap: Tap, node: fx.Node, values: Sequence[Tensor], shapes: Mapping[str, Sequence[int]]) -> Decision:
    """The decision that a tapped node tells, from the values of `tap.sources(node)`; `shapes`: the traced tensors'."""
    if holds_codes(node):
        return Seen(as_codes(node, values[0]).clone(), tap.floor)
    return tap.read(node, values, shapes[tap.name]).clone()


def run_with_taps(
    gm: fx.GraphModule, inputs: Sequence[Tensor], shapes: Mapping[str, Sequence[int]],
    given: Mapping[str, Decision] | None = None,
) -> tuple[dict[str, Decision], list[Tensor]]:  # fmt: skip
    """Executes a stage's graph; returns its decisions by their traced names, and the outputs.

    `given`: codes of another run, taken over where the graph makes them: so a graph tells what that run's other codes
    must have been (those that a fused operator keeps to itself).
    """
    taps: dict[str, Decision] = {}

    class Collect(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            self.env[n] = value = super().run_node(n)
            for tap in n.meta["tap"].everyone() if "tap" in n.meta else ():
                if tap.name not in shapes:
                    continue
                forced = (given or {}).get(tap.name)
                if isinstance(forced, Seen) and holds_codes(n):
                    self.env[n] = value = from_codes(n, forced.codes.reshape(value.shape))
                taps[tap.name] = told(tap, n, [self.env[source] for source in tap.sources(n)], shapes)
            return value

    with torch.no_grad():
        outputs = [t.clone() for t in Collect(gm).run(*inputs)]
    return taps, outputs


def completed(
    before: fx.GraphModule, inputs: Sequence[Tensor], shapes: Mapping[str, Sequence[int]],
    taps: Mapping[str, Decision],
) -> Mapping[str, Decision]:  # fmt: skip
    """All decisions, with the codes that fused operators keep to themselves as they follow from the others.

    `before`: a graph that makes every code.
    """
    missing = {tap.name for node, tap in all_taps(before) if holds_codes(node)} - set(taps)
    if not missing or not taps:
        return taps
    found = run_with_taps(before, inputs, shapes, taps)[0]
    return {**taps, **{name: found[name] for name in missing if name in found}}


def exact_decisions(gm: fx.GraphModule) -> set[str]:
    """Names of the taps that are functions of integers alone, as the passes marked them."""
    return {tap.name for _, tap in all_taps(gm) if tap.exact}


def holds_codes(node: fx.Node) -> bool:
    """Whether a tapped node tells codes: as bytes, or as what they stand for (a fake-quantiser that stays)."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.dtype == torch.uint8 or is_call(node, bgnn.fake_quant))


def as_codes(node: fx.Node, value: Tensor) -> Tensor:
    """The codes that a tapped node's value tells, from 0: u8, or int64 of a fake-quantiser that stays."""
    if value.dtype == torch.uint8:
        return value
    scale, zero, low, high = cast(tuple[float, int, int, int], node.args[1:])
    return (torch.round(value.double() / scale) + zero - low).clamp(0, high - low).to(torch.int64)


def from_codes(node: fx.Node, codes: Tensor) -> Tensor:
    """The value of a tapped node that tells these codes."""
    if not is_call(node, bgnn.fake_quant):
        return codes.to(torch.uint8)
    scale, zero, low, _ = cast(tuple[float, int, int, int], node.args[1:])
    return ((codes.double() + low - zero) * scale).to(torch.float32)
