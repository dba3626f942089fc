"""Models as other people write them take the same road as ours: traced, recognised, converted, verified.

`convert` itself compares every sign and neighbour with PyTorch under one tie rule. Models without ties (real
features) are compared here once more, by running the file beside the untouched model.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from bgnn.converter.api import Conversion, convert
from bgnn.converter.load import load
from bgnn.runtime_bench.runtime.tflite_runner import run_file


@dataclasses.dataclass(frozen=True)
class Foreign:
    """What must become of a model. `odd`: other sizes, with channels that are not multiples of 32."""

    name: str
    binary: int  # dot products of signs with signs
    bits: int  # of those, how many must give bits at -O1, without floats in between
    knn: int
    odd: dict[str, Any]
    ties: bool = True  # k-NN on binary features, where torch.topk's choice is open
    target: str = "lce-arm64"


MODELS = [
    Foreign("paper_code", 5, 3, 4, {"batch": 1, "points": 50, "k": 7, "channels": (20, 33, 64, 10)}),
    Foreign("channel_first_gather", 4, 2, 3, {"batch": 3, "points": 17, "k": 17, "channels": (64, 9)}),
    Foreign("functional_bf1", 4, 0, 3, {"batch": 1, "points": 41, "k": 3, "channels": (70, 16, 1)}),
    Foreign("react_ste", 5, 0, 3, {"batch": 1, "points": 37, "k": 6, "channels": (40, 7)}, ties=False),
    Foreign("rank1_rf", 4, 0, 3, {"batch": 3, "points": 33, "k": 9, "channels": (13, 65)}, ties=False),
    Foreign("binary_sage", 2, 0, 0, {"nodes": 100, "samples": 3, "sizes": (50, 100, 31)}, ties=False),
    Foreign("pyg_edge_conv", 0, 0, 2, {"batch": 1, "points": 19, "k": 5}, ties=False, target="tflite-arm64"),
]
IDS = [foreign.name for foreign in MODELS]


def module(foreign: Foreign) -> ModuleType:
    """The model's file, imported by its path: the tests are no package."""
    if foreign.name.startswith("pyg"):
        pytest.importorskip("torch_geometric")
    name = f"foreign_{foreign.name}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{foreign.name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def first_output(model: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(model(*inputs))[0]


def converted(foreign: Foreign, seed: int, optimize: int, **sizes: Any) -> Conversion:
    model, inputs = module(foreign).make(seed, **sizes)
    conversion = convert(model, inputs, target=foreign.target, optimize=optimize)
    check_layers(foreign, conversion, optimize, len(sizes.get("channels", ())))
    assert conversion.model_bytes is not None
    if not foreign.ties:
        (found,) = run_file(conversion.model_bytes, [t.numpy() for t in inputs])
        expected = first_output(model, inputs)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    return conversion


def check_layers(foreign: Foreign, conversion: Conversion, optimize: int, layers: int) -> None:
    if layers:
        return  # other depths have other counts
    became = [layer.became for layer in conversion.report.layers]
    assert sum(text.startswith("binary") for text in became) == foreign.binary, became
    assert sum(layer.was.startswith("k-NN") for layer in conversion.report.layers) == foreign.knn, became
    if optimize:
        assert sum("bits out" in text for text in became) >= foreign.bits, became
    if foreign.binary:
        assert conversion.report.macs["binary"] > conversion.report.macs["float"]


@pytest.mark.parametrize("foreign", MODELS, ids=IDS)
def test_models_have_what_real_ones_have(foreign: Foreign) -> None:
    """Negative BatchNorm weights and slopes flip thresholds: a test model without them would prove little."""
    model, inputs = module(foreign).make(0)
    assert not model.training
    assert all(t.is_contiguous() for t in inputs)
    again = module(foreign).make(0)
    torch.testing.assert_close(first_output(model, inputs), first_output(*again), rtol=0, atol=0)
    assert not torch.equal(inputs[0], module(foreign).make(1)[1][0])
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    norms = [v for n, v in tensors.items() if n.endswith(("weight", ".w")) and v.dim() == 1 and v.numel() > 1]
    assert norms
    assert any((v < 0).any() for v in norms)


@pytest.mark.parametrize("foreign", MODELS, ids=IDS)
def test_default_sizes(foreign: Foreign) -> None:
    converted(foreign, 0, 1)


@pytest.mark.parametrize("foreign", MODELS, ids=IDS)
def test_files_do_not_grow_with_the_points(foreign: Foreign) -> None:
    """Weights do not depend on the number of points or clouds; a folded `[B, N, k, C]` constant would."""
    if "points" not in foreign.odd or foreign.name == "rank1_rf":
        pytest.skip("its own tensors grow with the number of nodes")
    sizes = []
    for points in (24, 48):
        model, inputs = module(foreign).make(0, points=points)
        conversion = convert(model, inputs, target=foreign.target, verify=False)
        assert conversion.model_bytes is not None
        sizes.append(len(conversion.model_bytes))
    assert sizes[1] - sizes[0] < 2000  # room for row indices of the gathers


@pytest.mark.slow
@pytest.mark.parametrize("foreign", MODELS, ids=IDS)
def test_other_weights(foreign: Foreign) -> None:
    for optimize in (0, 1):
        converted(foreign, 1, optimize)


@pytest.mark.slow
@pytest.mark.parametrize("foreign", MODELS, ids=IDS)
def test_odd_sizes(foreign: Foreign) -> None:
    for optimize in (0, 1):
        converted(foreign, 3, optimize, **foreign.odd)


@pytest.mark.slow
def test_sage_with_normalised_rows() -> None:
    foreign = next(f for f in MODELS if f.name == "binary_sage")
    for optimize in (0, 1):
        converted(foreign, 0, optimize, normalise=True)


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [f for f in MODELS if f.name != "paper_code"], ids=IDS[1:])
def test_as_pt2(foreign: Foreign, tmp_path: Path) -> None:
    """The same through a file. (torch.export.save cannot write paper_code's weight updates.)"""
    model, inputs = module(foreign).make(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, inputs), tmp_path / "model.pt2")
    program = load(tmp_path / "model.pt2").model
    direct = convert(model, inputs, target=foreign.target)
    by_file = convert(program, inputs, target=foreign.target)
    assert by_file.report.operators == direct.report.operators
    assert by_file.model_bytes is not None
    assert direct.model_bytes is not None
    arrays = [t.numpy() for t in inputs]
    for a, b in zip(run_file(by_file.model_bytes, arrays), run_file(direct.model_bytes, arrays), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), torch.from_numpy(b), rtol=0, atol=0)


@pytest.mark.slow
def test_extra_outputs_on_request() -> None:
    """paper_code returns logits, four features, four edge lists; functional_bf1 a binary code."""
    foreign = next(f for f in MODELS if f.name == "functional_bf1")
    model, inputs = module(foreign).make(0)
    conversion = convert(model, inputs, target="lce-arm64", keep_outputs=(1, 0))
    assert conversion.model_bytes is not None
    code, logits = run_file(conversion.model_bytes, [t.numpy() for t in inputs])
    assert set(code.ravel().tolist()) == {-1.0, 1.0}
    assert logits.shape == (2, 6)
