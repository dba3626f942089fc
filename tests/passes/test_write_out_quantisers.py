"""PyTorch's quantising operators, written out: the same numbers bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.ao.quantization as tq
from graphs import aten, check_meta, exported, outputs, randn
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (it defines the operators of PT2E)

from bgnn.converter.trace import trace
from bgnn.passes import write_out_quantisers
from bgnn.passes.graph import PassResult

decomposed = torch.ops.quantized_decomposed
S, ZERO = 0.037, 11
SCALES, ZEROS = torch.tensor([0.1, 0.02, 0.31]), torch.tensor([0, 3, -2])
X = torch.cat([randn(3, 200) * 3, (torch.arange(-100, 100) + 0.5) * S * torch.ones(3, 1)], 1)

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "per tensor": lambda m, x: torch.fake_quantize_per_tensor_affine(x, S, ZERO, -128, 127),
    "of tensors": lambda m, x: torch.fake_quantize_per_tensor_affine(x, m.s, m.z, -128, 127),
    "per channel": lambda m, x: torch.fake_quantize_per_channel_affine(x, m.scales, m.zeros, 0, -128, 127),
    "another axis": lambda m, x: torch.fake_quantize_per_channel_affine(x.t(), m.scales, m.zeros, 1, -8, 7),
    "in two": lambda m, x: decomposed.dequantize_per_tensor(
        decomposed.quantize_per_tensor(x, S, ZERO, 0, 255, torch.uint8), S, ZERO, 0, 255, torch.uint8
    ),
    "in two, per channel": lambda m, x: decomposed.dequantize_per_channel(
        decomposed.quantize_per_channel(x, m.scales, m.zeros, 0, -128, 127, torch.int8),
        m.scales, m.zeros, 0, -128, 127, torch.int8,
    ),
}  # fmt: skip


def written(gm: fx.GraphModule) -> tuple[fx.GraphModule, PassResult]:
    expected = outputs(gm, X)[0]
    result = write_out_quantisers.run(gm)
    check_meta(gm, X)
    assert torch.equal(outputs(gm, X)[0], expected)
    return gm, result


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    numbers = {"s": torch.tensor(S), "z": torch.tensor(ZERO, dtype=torch.int32)}
    gm, result = written(exported(OPERATORS[name], X, **numbers, scales=SCALES, zeros=ZEROS.int()))
    assert result.rewrites == (2 if "two" in name else 1)
    assert not any("quantize" in str(n.target) for n in gm.graph.nodes if n.op == "call_function")


def fused(observing: bool, quantising: bool, weight: bool = False) -> torch.nn.Module:
    """torch.ao's module of its default configuration, after it saw data."""
    config = tq.get_default_qat_qconfig("fbgemm")
    module = (config.weight if weight else config.activation)()
    module(X)
    module.eval()
    module.observer_enabled[0] = int(observing)
    module.fake_quant_enabled[0] = int(quantising)
    return module


@pytest.mark.parametrize("weight", [False, True])
def test_the_fused_one_with_its_observer_off(weight: bool) -> None:
    gm, result = written(trace(fused(False, True, weight), (X,)))
    assert result.rewrites == 1
    assert any(n.target is aten.round.default for n in gm.graph.nodes)


def test_the_fused_one_called_twice() -> None:
    """torch.ao's fused layers quantise their result once more: the second call reads what the first leaves."""
    module = fused(False, True)
    gm, result = written(trace(torch.nn.Sequential(module, torch.nn.ReLU(), module), (X,)))
    assert result.rewrites == 2
    assert not any("fused" in str(n.target) for n in gm.graph.nodes)


def test_a_switched_off_quantiser_is_nothing() -> None:
    gm, _ = written(trace(fused(False, False), (X,)))
    assert not any(n.op == "call_function" for n in gm.graph.nodes)


def test_one_that_still_observes_stays_and_says_so() -> None:
    gm = trace(fused(True, True), (X,))
    result = write_out_quantisers.run(gm)
    assert result.rewrites == 0
    assert "disable_observer" in result.refusals[0][1]
