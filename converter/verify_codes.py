"""Proof that a quantised network's integers are the model's: every code of every quantiser is compared.

The reference is the traced graph with its fake-quantisers, run by PyTorch. A code of a stage, or of the emitted file,
may differ from the model's by one, and only where rounding explains it: where the real number lies within
`CODE_TOLERANCE` of a step from the tie between the two codes. What can move a number that far, and no farther, is the
model's own float32 arithmetic, the bias of a layer rounded to the accumulator's unit (lower_int8.BIAS_SLACK), and ties
with an odd zero point, which Degree-Quant adds before rounding and ONNX Runtime after. Such codes are counted and
reported, and the reference goes on with the other side's code, so that all after it is compared on equal terms.

Outputs are compared as real numbers within the tolerance of `converter.verify`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from bgnn.converter import rounding
from bgnn.converter.errors import ConversionError
from bgnn.converter.verify import Check, compare_outputs
from bgnn.passes.graph import Tap, all_taps, is_call, snapshot
from bgnn.passes.recognise_fake_quant import as_written

bgnn = torch.ops.bgnn

CODE_TOLERANCE = 1 / 32  # of a step


@dataclasses.dataclass
class CodeCheck(Check):
    """What one comparison of codes found. `rows` of the first output, and in how many another class is the largest."""

    codes: int = 0
    stepped: int = 0
    rows: int = 0
    changed_rows: int = 0


@dataclasses.dataclass(frozen=True)
class Seen:
    """The codes of one tensor: u8 as stored, int64 as a fake-quantiser that stays tells them.

    From `floor` up: below, a ReLU follows, and they are not told apart.
    """

    codes: Tensor
    floor: int = 0


class CodeReference:
    """The traced graph and one run of it on the sample inputs."""

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self.gm = snapshot(gm)  # the passes go on with the original
        self.inputs = list(inputs)
        run = _Forced(self.gm, {}, CodeCheck("reference"))
        self.outputs = run.outputs(self.inputs)
        self.codes = run.seen

    def compare(self, what: str, taps: Mapping[str, Seen | Sequence[Tensor]], outputs: Sequence[Tensor]) -> CodeCheck:
        """Compares codes (by the traced name) and outputs with the reference; raises at the first that is wrong.

        A tap may also be a list: values of a quantiser, one of which is it.
        """
        check = CodeCheck(what)
        expected = _Forced(self.gm, taps, check).outputs(self.inputs)
        compare_outputs(check, expected, outputs, lambda: self._magnitudes(taps))
        first, given = self.outputs[0], outputs[0]
        if first.dim() == 2 and first.shape[1] > 1 and first.is_floating_point():
            check.rows = first.shape[0]
            check.changed_rows = int((first.argmax(1) != given.argmax(1)).sum())
        return check

    def _magnitudes(self, taps: Mapping[str, Seen | Sequence[Tensor]]) -> list[Tensor]:
        run = _Forced(self.gm, taps, CodeCheck(""), rounding.needed(self.gm))
        run.outputs(self.inputs)
        return rounding.magnitudes(self.gm, run.kept)


class _Forced(fx.Interpreter):
    """Runs the traced graph; at each quantiser it checks and takes over the other side's codes, if there are any."""

    def __init__(
        self,
        gm: fx.GraphModule,
        theirs: Mapping[str, Seen | Sequence[Tensor]],
        check: CodeCheck,
        keep: Collection[fx.Node] = (),
    ) -> None:
        super().__init__(gm)
        self.theirs, self.check, self.keep = theirs, check, keep
        self.kept: dict[fx.Node, Any] = {}
        self.seen: dict[str, Tensor] = {}

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
        tap = cast("Tap | None", n.meta.get("tap"))
        if tap is None or not is_call(n, bgnn.fake_quant):
            return value
        scale, zero, low, high = cast(tuple[float, int, int, int], n.args[1:])
        x = cast(Tensor, self.env[cast(fx.Node, n.args[0])])
        real = x.double() / scale + zero
        value = as_written(x, n)
        mine = (torch.round(value.double() / scale) + zero).clamp(low, high)
        self.seen[tap.name] = (mine - low).to(torch.int64)
        theirs = self._seen(n, tap.name, mine - low)
        if theirs is None:
            return value
        self.check.codes += mine.numel()
        given = theirs.codes.reshape(mine.shape).double() + low
        floor = theirs.floor + low
        apart = given - mine.clamp(min=floor)
        differs = apart != 0
        if not bool(differs.any()):
            return value
        count, worst = int(differs.sum()), int(apart.abs().max())
        name = f"{count} of {mine.numel()} codes of {tap.name!r}"
        if worst > 1:
            raise ConversionError(f"{self.check.what}: {name} differ, one by {worst}")
        tie = torch.maximum(given, mine.clamp(min=floor)).double() - 0.5
        distance = float((real - tie)[differs].abs().max())
        if not distance <= CODE_TOLERANCE:
            raise ConversionError(
                f"{self.check.what}: {name} differ by one, one of them {distance:.3g} of a step away from the tie "
                f"(rounding explains up to {CODE_TOLERANCE:.3g})"
            )
        self.check.stepped += count
        taken = torch.where(differs, given, mine)
        return ((taken - zero) * scale).to(value.dtype)

    def _seen(self, n: fx.Node, name: str, mine: Tensor) -> Seen | None:
        """The other side's codes; of several candidates, values as the quantiser gives them, the nearest."""
        theirs = self.theirs.get(name)
        if theirs is None or isinstance(theirs, Seen):
            return theirs
        codes = [as_codes(n, value) for value in theirs if value.shape == mine.shape]
        return Seen(min(codes, key=lambda c: int((c != mine).sum()))) if codes else None


def run_with_codes(
    gm: fx.GraphModule, inputs: Sequence[Tensor], given: Mapping[str, Seen] | None = None
) -> tuple[dict[str, Seen], list[Tensor]]:
    """Executes a stage's graph; returns all codes by their traced names, and the outputs.

    `given`: codes of another run, taken over where the graph makes them: so a graph tells what that run's other codes
    must have been (those that a fused operator keeps to itself).
    """
    found: dict[str, Seen] = {}

    class Collect(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if "tap" in n.meta and holds_codes(n):
                for tap in n.meta["tap"].everyone():
                    if given is not None and tap.name in given:
                        value = from_codes(n, given[tap.name].codes.reshape(value.shape))
                    found[tap.name] = Seen(as_codes(n, value).clone(), tap.floor)
            return value

    with torch.no_grad():
        outputs = [t.clone() for t in Collect(gm).run(*inputs)]
    return found, outputs


def tapped_codes(gm: fx.GraphModule) -> dict[str, tuple[fx.Node, Tap]]:
    """The nodes that hold codes, by their traced names."""
    return {tap.name: (node, tap) for node, tap in all_taps(gm) if holds_codes(node)}


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
