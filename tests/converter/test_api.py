"""`convert` as a caller uses it: right arguments, one-line errors, whole files or none."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import Wrapped, bgnn, randn, signs
from torch import Tensor

from bgnn.converter import api
from bgnn.converter.api import convert
from bgnn.converter.errors import BgnnError, ConversionError, UsageError
from bgnn.converter.onnx.emit import run_file as run_onnx
from bgnn.runtime_bench.runtime.tflite_runner import run_file

X = randn(2, 6, 3)


def model() -> Wrapped:
    return Wrapped(lambda m, x: F.linear(bgnn.binarize(x * m.c), m.w) * 0.3, {"w": signs(4, 3), "c": randn(3)})


def expected(x: Tensor = X) -> np.ndarray:
    with torch.no_grad():
        return model()(x).numpy()


@pytest.mark.parametrize("optimize", [0, 1])
@pytest.mark.parametrize("target", api.TARGETS)
def test_bytes_that_run(target: str, optimize: int) -> None:
    conversion = convert(model(), (X,), target=target, optimize=optimize)
    assert conversion.model_bytes is not None
    assert conversion.path is None
    run = run_onnx if target.startswith("onnx-") else run_file
    np.testing.assert_allclose(run(conversion.model_bytes, [X.numpy()])[0], expected(), rtol=1e-5, atol=1e-6)
    other = randn(2, 6, 3, seed=5)
    np.testing.assert_allclose(run(conversion.model_bytes, [other.numpy()])[0], expected(other), rtol=1e-5, atol=1e-6)


def test_the_same_twice_is_the_same_file() -> None:
    files = {convert(model(), (X,), target="lce-arm64", name="m").model_bytes for _ in range(2)}
    assert len(files) == 1


def test_it_writes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    conversion = convert(model(), (X,), target="lce-arm64", output=str(path))
    assert conversion.path == path
    assert path.read_bytes() == conversion.model_bytes
    assert os.listdir(tmp_path) == ["model.tflite"], "no temporary file is left"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_metadata_and_signature() -> None:
    from ai_edge_litert.interpreter import Interpreter

    conversion = convert(Wrapped(lambda m, points: points * 2, {}), (X,), target="tflite-arm64", name="doubler")
    data = conversion.model_bytes
    assert data is not None
    for text in (b"doubler", b"serving_default", b"bgnn-convert", b"verification", b"compared"):
        assert text in data
    runner = Interpreter(model_content=data).get_signature_runner("serving_default")
    assert list(runner.get_output_details()) == ["output"]
    unverified = convert(model(), (X,), target="lce-arm64", verify=False).model_bytes
    assert unverified is not None
    assert b"not verified (--no-verify)" in unverified


def test_several_outputs_by_number() -> None:
    net = Wrapped(lambda m, x: (x + 1, x * 2, torch.cdist(x, x).topk(2)[1]), {})
    conversion = convert(net, (X,), target="tflite-arm64", keep_outputs=(2, 0))
    assert conversion.model_bytes is not None
    index, plus = run_file(conversion.model_bytes, [X.numpy()])
    assert index.dtype == np.int32
    np.testing.assert_array_equal(plus, X.numpy() + 1)
    with pytest.raises(UsageError, match="no tensor output 3"):
        convert(net, (X,), target="tflite-arm64", keep_outputs=(3,))


def test_two_inputs_and_an_integer_one() -> None:
    net = Wrapped(lambda m, x, i: bgnn.gather_nodes(x, i).amax(2), {})
    index = torch.randint(0, 6, (2, 4, 3), dtype=torch.int32)
    conversion = convert(net, (X, index), target="tflite-arm64")
    assert conversion.model_bytes is not None
    found = run_file(conversion.model_bytes, [X.numpy(), index.numpy()])[0]
    np.testing.assert_array_equal(found, net(X, index).numpy())


@pytest.mark.parametrize("stage", api.STAGES)
def test_stopping_after_a_stage(stage: str, tmp_path: Path) -> None:
    conversion = convert(model(), (X,), target="lce-arm64", stop_after=stage, output=tmp_path / "m.tflite")
    assert conversion.model_bytes is None
    assert conversion.path is None
    assert not list(tmp_path.iterdir())
    assert conversion.report.checks[-1].what == f"stage {stage}"
    with torch.no_grad():
        np.testing.assert_allclose(conversion.graph(X)[0].numpy(), expected(), rtol=1e-5, atol=1e-6)


def test_progress_is_told() -> None:
    said: list[str] = []
    convert(model(), (X,), target="lce-arm64", progress=said.append)
    assert said[0] == "tracing the model"
    assert [s for s in said if s.startswith("stage")][-1].startswith("stage target")
    assert said[-1] == "running the file and comparing it with the model"


BAD: dict[str, dict[str, Any]] = {
    "target 'x86'": {"target": "x86"},
    "optimisation level 2": {"optimize": 2},
    "sign-zero policy 'minus'": {"sign_zero": "minus"},
    "stage 'end'": {"stop_after": "end"},
    "k-NN lowering 'tree'": {"knn": "tree"},
    "kernels 'mine'": {"kernels": "mine"},
}


@pytest.mark.parametrize("said", BAD)
def test_wrong_arguments(said: str) -> None:
    options = {"target": "lce-arm64", **BAD[said]}
    with pytest.raises(UsageError) as error:
        convert(model(), (X,), **options)
    assert str(BAD[said][next(iter(BAD[said]))]) in str(error.value)
    assert "choose from" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["missing/model.tflite", "file/model.tflite"])
def test_a_place_that_cannot_be_written(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        convert(model(), (X,), target="lce-arm64", output=tmp_path / where)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_folder_as_the_output_keeps_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "model.tflite"
    folder.mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        convert(model(), (X,), target="lce-arm64", output=folder)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]


def test_a_failed_conversion_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    net = Wrapped(lambda m, x: torch.erfinv(x.clamp(-0.5, 0.5)), {})
    with pytest.raises(ConversionError, match=r"torch\.erfinv is not supported by "):
        convert(net, (X,), target="lce-arm64", output=path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_model_is_left_as_it_was() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(6))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    convert(net, (X,), target="tflite-arm64")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


HARD: dict[str, Any] = {
    "rank one": (lambda m, x: x[0, 0].relu() + 1, (X,)),
    "no axes": (lambda m, x: x.sum() * 2, (X,)),
    "the input itself": (lambda m, x: x, (X,)),
    "a constant": (lambda m, x: torch.ones(2, 3), (X,)),
    "an output twice": (lambda m, x: x * 2, (X,)),
    "one point": (lambda m, x: torch.cdist(x, x).topk(1, largest=False)[1].float(), (X[:, :1],)),
    "all points": (lambda m, x: torch.cdist(x, x).topk(6, largest=False)[1].float(), (X,)),
    "one channel": (lambda m, x: F.linear(bgnn.binarize(x[:, :, :1]), m.one), (X,)),
    "five axes": (lambda m, x: x[:, None, :, None].relu().amax(-1), (X,)),
    "batch of one": (lambda m, x: F.linear(bgnn.binarize(x), m.w), (X[:1],)),
    "sign of a vector": (lambda m, x: bgnn.binarize(x[0, 0]) * 2, (X,)),
    "sign of a number": (lambda m, x: bgnn.binarize(x.sum()) * 2, (X,)),
    "signs as the output": (lambda m, x: bgnn.binarize(x), (X,)),
    "booleans as the output": (lambda m, x: x > 0, (X,)),
    "softmax over points": (lambda m, x: torch.softmax(x.transpose(1, 2), 2), (X,)),
    "softmax over channels first": (lambda m, x: torch.softmax(x.transpose(1, 2), 1), (X,)),
}


REFUSABLE = ("a constant", "booleans as the output", "no axes", "sign of a number")


@pytest.mark.parametrize("target", api.TARGETS)
@pytest.mark.parametrize("name", HARD)
def test_corners(name: str, target: str) -> None:
    """Each converts and runs right, or is refused in one line."""
    function, inputs = HARD[name]
    net = Wrapped(function, {"one": signs(4, 1), "w": signs(4, 3)})
    if name in REFUSABLE:
        try:
            conversion = convert(net, inputs, target=target)
        except BgnnError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return
    else:
        conversion = convert(net, inputs, target=target)
    assert conversion.model_bytes is not None
    run = run_onnx if target.startswith("onnx-") else run_file
    found = run(conversion.model_bytes, [t.numpy() for t in inputs])[0]
    np.testing.assert_allclose(found, net(*inputs).numpy(), rtol=1e-5, atol=1e-6)


def test_exit_codes() -> None:
    assert issubclass(UsageError, BgnnError)
    assert (UsageError.exit_code, ConversionError.exit_code) == (2, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_refused_by_name(dtype: torch.dtype) -> None:
    for name in ("tflite-arm64", "onnx-x86"):
        with pytest.raises(BgnnError, match=f"is {str(dtype)[6:]}, and files take float32"):
            convert(model(), (X.to(dtype),), target=name)
    with pytest.raises(ConversionError, match=r"the model is .*model\.float\(\)"):
        convert(torch.nn.Linear(3, 4).to(dtype), (X,), target="tflite-arm64")
