"""What a conversion is verified on: the user's example, and for a graph network of open sizes a second graph."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, fx

from bgnn.converter.eager import EagerModel
from bgnn.converter.errors import ConversionError
from bgnn.converter.second_graph import second_graphs
from bgnn.converter.trace import NUMBERS
from bgnn.converter.verify import Check, Reference


@dataclasses.dataclass
class Example:
    """Inputs to verify on: what the model itself gives for them, and the reference once there is one."""

    eager: EagerModel
    inputs: tuple[Tensor, ...]
    plain: list[Tensor]
    second: str = ""  # the second graph, in words
    alone: str = ""  # why there is none
    reference: Reference | None = None
    seconds: float = 0.0  # what verifying on it took

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the block among what verifying on this example takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def named(self, what: str) -> str:
        """What is compared, for the report."""
        return f"{what}, second graph" if self.second else what

    def compare_traced(self, what: str, gm: fx.GraphModule, ops: Mapping[str, str]) -> Check:
        """The traced graph against the model itself; `ops` as `EagerModel.compare` has them."""
        reference = self.reference or Reference(gm, self.inputs)
        ops = {name: ops[name] for name in reference.decisions if name in ops}
        try:
            check = self.eager.compare(partial(reference.compare, self.named(what)), self.inputs, self.plain, ops)
        except ConversionError as error:
            if not self.second:
                raise
            numbers = gm.meta.get(NUMBERS) or [""]
            made = (
                f" (a number or a condition is made of an open size at {numbers[0]}: whole numbers stay open, as "
                "x.size(0) // 2 does, and a condition holds as it does on the example)"
            )
            raise ConversionError(
                f"{error}: on a graph that is not the example ({self.second}) the model's trace gives something else "
                "than the model: it holds something of the example, or the model does otherwise while it is exported"
                f"{made if numbers[0] else ''}"
            ) from error
        check.note = self.second
        return check


def examples_of(gm: fx.GraphModule, inputs: tuple[Tensor, ...], eager: EagerModel) -> list[Example]:
    """The user's inputs, and a second graph if the sizes are open and the model can take it."""
    first = Example(eager, inputs, eager.outputs(inputs))
    start = time.perf_counter()
    for second in second_graphs(gm, inputs):
        try:
            plain = eager.outputs(second.inputs)
        except ConversionError as error:
            first.alone = first.alone or f"{error} (on a graph of {second.said})"
            continue
        if all(bool(torch.isfinite(t).all()) for t in plain if t.is_floating_point()):
            spent = time.perf_counter() - start
            other = Example(eager, second.inputs, plain, second.said, seconds=spent)
            return [dataclasses.replace(first, alone=""), other]
        first.alone = first.alone or f"the model gives infinities or NaN on a graph of {second.said}"
    return [first]
