"""`--kernels bgnn` on whole models: fused, verified, and equal to the stock file on inputs it has not seen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bgnn.converter.api import Conversion, convert
from bgnn.converter.errors import BgnnError, UsageError
from bgnn.models.checkpoint import build_model
from bgnn.models.layers import Rescale
from bgnn.runtime_bench.runtime import delegate
from bgnn.runtime_bench.runtime.tflite_runner import run_file

try:
    delegate.library_path()
    MISSING = ""
except BgnnError as error:
    MISSING = str(error)
needs_delegate = pytest.mark.skipif(bool(MISSING), reason=MISSING)

FOREIGN = [
    "paper_code",
    "channel_first_gather",
    "functional_bf1",
    "react_ste",
    "rank1_rf",
    "binary_sage",
    "pyg_edge_conv",
]


def network(architecture: str, **config: Any) -> nn.Module:
    """A small one of our models; its norms and slopes are what training gives: both signs, nothing at 0 or 1."""
    torch.manual_seed(0)
    model = build_model(
        architecture, classes=10, num_points=64, k=5, channels=(33, 40, 64, 32), embedding=70, mlp=(50, 37), **config
    )
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for value in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(value)
            nn.init.uniform_(module.running_var, 0.5, 20)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.3, 0.6)
    for module in model.modules():
        if isinstance(module, Rescale):
            for factor in module.parameters():  # factors of 1 would be left out
                nn.init.uniform_(factor, 0.5, 1.5)
    return model.eval()


def clouds(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 64, 3, generator=torch.Generator().manual_seed(seed))


def both(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Conversion, Conversion]:
    """(bgnn, stock) files of a model, both verified."""
    own = convert(model, inputs, target="lce-arm64", kernels="bgnn")
    stock = convert(model, inputs, target="lce-arm64")
    for conversion in (own, stock):
        assert conversion.report.checks[-1].what == "emitted file"
    return own, stock


def same_outputs(own: Conversion, stock: Conversion, inputs: tuple[Tensor, ...]) -> None:
    """Within 1e-5 of the largest value on another input."""
    arrays = [x.numpy() for x in inputs]
    assert own.model_bytes is not None
    assert stock.model_bytes is not None
    for found, expected in zip(run_file(own.model_bytes, arrays), run_file(stock.model_bytes, arrays), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


FUSED = {
    "bf1": {"BgnnHammingKnn": 3, "BgnnKnn": 1, "BgnnXorEdgeConv": 3, "BgnnDensePool": 1, "BgnnGatherMax": 1},
    "bf2": {"BgnnHammingKnn": 3, "BgnnKnn": 1, "BgnnXorEdgeConv": 3, "BgnnDensePool": 1, "BgnnGatherMax": 1},
    "rf": {"BgnnKnn": 4, "BgnnBinEdgeConv": 3, "BgnnEdgeMax": 1, "BgnnScaledPool": 1},
}


@needs_delegate
@pytest.mark.parametrize("architecture", FUSED)
def test_our_models(architecture: str) -> None:
    config = {} if architecture == "rf" else {"knn": "hamming"}
    own, stock = both(network(architecture, **config), (clouds(0),))
    operators = own.report.operators
    for name, times in FUSED[architecture].items():
        assert operators.get(name, 0) >= times, operators
    assert not [name for name in stock.report.operators if name.startswith("Bgnn")]
    became = [layer.became for layer in own.report.layers]
    assert sum("fused" in text for text in became) >= 3, became
    assert own.report.kernels == "bgnn"
    assert "bgnn" in own.report.to_json()["kernels"]
    same_outputs(own, stock, (clouds(1),))


@needs_delegate
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "activation"), [("bf1", "relu"), ("bf2", "none"), ("rf", "relu")])
def test_other_activations(architecture: str, activation: str) -> None:
    own, stock = both(network(architecture, activation=activation), (clouds(0),))
    same_outputs(own, stock, (clouds(1),))


def foreign(name: str) -> ModuleType:
    """A model of tests/foreign, by its path: the tests are no package."""
    if name.startswith("pyg"):
        pytest.importorskip("torch_geometric")
    key = f"foreign_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).parents[1] / "foreign" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


@needs_delegate
@pytest.mark.parametrize("name", FOREIGN)
def test_models_of_others(name: str) -> None:
    model, inputs = foreign(name).make(0)
    own, stock = both(model, inputs)
    fused = [operator for operator in own.report.operators if operator.startswith("Bgnn")]
    assert fused or name == "binary_sage", own.report.operators
    _, others = foreign(name).make(1)
    same_outputs(own, stock, others)


@needs_delegate
def test_equal_models_give_equal_files() -> None:
    files = {
        convert(network("bf2"), (clouds(0),), target="lce-arm64", kernels="bgnn", verify=False).model_bytes
        for _ in range(2)
    }
    assert len(files) == 1


TINY = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "lce-arm64", "kernels": "bgnn", "optimize": 0}, "-O1, which fuses"),
        ({"target": "lce-arm64", "knn": "popcount"}, "--knn popcount"),
        ({"target": "tflite-arm64", "knn": "popcount"}, "--knn popcount"),
        ({"target": "lce-arm64", "kernels": "bgnn", "knn": "matmul"}, "--knn matmul"),
        ({"target": "lce-arm64", "kernels": "fast"}, "choose from stock, bgnn"),
        ({"target": "lce-arm64", "knn": "tree"}, "choose from matmul, popcount"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert(TINY, (torch.randn(1, 3),), **arguments)


def test_arguments_that_do() -> None:
    for arguments in ({"kernels": "bgnn", "knn": "popcount"}, {"kernels": "stock", "knn": "matmul"}):
        convert(TINY, (torch.randn(1, 3),), target="lce-arm64", stop_after="target", **arguments)
