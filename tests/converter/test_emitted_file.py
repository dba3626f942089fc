"""Names of an emitted file's ends, and runs with probes, on files that are made up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from graphs import exported, randn
from torch import fx

from bgnn.converter.emitted_file import io_names, named_ends, run_with_probes
from bgnn.converter.errors import ConversionError, UsageError

X = randn(3)


def two_outputs() -> fx.GraphModule:
    return exported(lambda m, x: (x.exp(), x.split(1)[0]), X, outputs=2)


def test_names() -> None:
    assert io_names(two_outputs())[1] == ["output_0", "output_1"]
    inputs, outputs = io_names(exported(lambda m, x: x.exp(), X))
    assert len(inputs) == 1
    assert outputs == ["output"]


def test_ends_by_name() -> None:
    gm = two_outputs()
    exp = next(node for node in gm.graph.nodes if "exp" in node.name)
    inputs, outputs = named_ends(gm, ["a"], ["b", "c"], {"tap/exp": exp})
    assert [name for name, _ in inputs] == ["a"]
    assert inputs[0][1].op == "placeholder"
    assert [name for name, _ in outputs] == ["b", "c", "tap/exp"]
    assert outputs[0][1] is exp
    assert outputs[2][1] is exp


def test_names_that_do_not_fit() -> None:
    gm = two_outputs()
    with pytest.raises(UsageError, match="1 inputs and 2 outputs, but 1 and 1 names"):
        named_ends(gm, ["a"], ["b"], {})
    split = next(node for node in gm.graph.nodes if node.op == "call_function" and "split" in str(node.target))
    with pytest.raises(UsageError, match=r"probe p: split.* is a (tuple|list), and a file returns tensors"):
        named_ends(gm, ["a"], ["b", "c"], {"p": split})


def test_a_run_with_probes_and_one_without() -> None:
    gm = exported(lambda m, x: x.exp() + 1, X)
    exp = next(node for node in gm.graph.nodes if "exp" in node.name)
    seen = []

    def emit(probes: Mapping[str, fx.Node] | None = None) -> bytes:
        seen.append(dict(probes or {}))
        return b"probed" if probes else b"alone"

    def run(file: bytes, arrays: list[np.ndarray]) -> list[np.ndarray]:
        outputs = [np.exp(arrays[0]) + 1]
        return [*outputs, np.exp(arrays[0])] if file == b"probed" else outputs

    outputs, known = run_with_probes(emit, run, [exp], [X])
    assert {"tap/" + exp.name: exp} in seen
    assert {} in seen
    assert torch.allclose(outputs[0], X.exp() + 1)
    assert torch.allclose(known[exp], X.exp())

    def other(file: bytes, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [*run(file, arrays)[:1], *run(file, arrays)[1:]] if file == b"probed" else [np.exp(arrays[0]) + 2]

    with pytest.raises(ConversionError, match="output 0 changes when intermediate tensors are read"):
        run_with_probes(emit, other, [exp], [X])
