"""A graph network's file that takes smaller graphs when its inputs are resized, and then does no more than these cost.

A file is written for one size: shapes stand in RESHAPE's and FILL's constants, the number of nodes in a segment sum's.
Which constants these are, and how they follow from the sizes, is measured, not guessed: the network is written at
several sizes, in primes that none of its own numbers is, and what differs must be the same whole combination of the
sizes in all of them, one of them for a check. Such constants then become outputs of BgnnSizes, which computes them of
the inputs' shapes when the graph is prepared. Exact: the same operators, on fewer rows that nothing reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
from torch import Tensor, fx

from bgnn.converter.errors import ConversionError
from bgnn.converter.tflite.builder import FileBuilder, Value


@dataclass(frozen=True)
class Written:
    """A graph that was written: the file's ends, and for each axis of each output how many rows are there."""

    builder: FileBuilder
    inputs: list[tuple[str, Value]]
    outputs: list[tuple[str, Value]]
    rows: list[list[Any]] | None


def resized(
    build: Callable[[Mapping[str, int]], Written], gm: fx.GraphModule, most: Mapping[str, int],
    described: Sequence[Mapping[str, Any]],
) -> Written:  # fmt: skip
    """What `build` writes, with inputs that may be resized up to `most`. `described`: file_inputs.describe of these.

    Raises ConversionError where the file depends on sizes in another way."""
    axes = {word: (i, axis) for i, one in enumerate(described) for axis, word in enumerate(one["shape"])}
    words = [word for word in most if word in axes]
    own = [int(n) for node in gm.graph.nodes for n in _shape(node) if type(n) is int]
    primes = [int(sympy.nextprime(max([*own, *most.values(), 7])))]
    while len(primes) < 3 * len(words):
        primes.append(int(sympy.nextprime(primes[-1] * 5 // 4)))
    first, other, last = (dict(zip(words, primes[i::3], strict=True)) for i in range(3))
    trials = [first, *({**first, word: other[word]} for word in words), last]
    built = [build({**most, **trial}) for trial in trials]
    numbers = [one.builder.numbers() for one in built]
    forms = [(one.builder.form(), found.size) for one, found in zip(built, numbers, strict=True)]
    if any(form != forms[0] for form in forms):
        raise ConversionError("its operators are others for other sizes")
    steps = np.array([other[word] - first[word] for word in words], np.int64)
    factors = np.stack([found - numbers[0] for found in numbers[1:-1]], 1) // steps
    rest = numbers[0] - factors @ _vector(first, words)
    for trial, found in zip(trials, numbers, strict=True):
        if not np.array_equal(rest + factors @ _vector(trial, words), found):
            raise ConversionError("a number in it is no sum of sizes")
    places = [(built[0].inputs[axes[word][0]][1].index, axes[word][1]) for word in words]
    built[0].builder.follow(rest, factors, [most[word] for word in words], places)
    return built[0]


def _vector(sizes: Mapping[str, int], words: Sequence[str]) -> np.ndarray:
    return np.array([sizes[word] for word in words], np.int64)


def _shape(node: fx.Node) -> Sequence[int]:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else ()
