"""A dumped stage is Python that runs and gives the same output."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import Wrapped, bgnn, exported, outputs, randn, signs, up_to
from torch import Tensor, fx, nn

from bgnn.converter import api, stages
from bgnn.converter.dump import dump_stage, type_of
from bgnn.converter.errors import UsageError
from bgnn.converter.trace import trace

X = randn(2, 6, 3)
WEIGHTS = {"first": randn(33, 3), "w": signs(7, 66), "last": randn(4, 7)}


def network(m: Any, x: Tensor) -> Tensor:
    s = bgnn.binarize(F.linear(x, m.first))
    index = torch.cdist(s, s).topk(3, largest=False)[1]
    near = s[torch.arange(2)[:, None, None], index]
    here = s[:, :, None].expand(near.shape)
    return F.linear(bgnn.binarize(F.linear(torch.cat([here, -near * here], -1), m.w).amax(2) - 1.0), m.last)


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return bgnn.binarize(x)


def run_dump(folder: Path, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
    spec = importlib.util.spec_from_file_location(f"dumped_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.forward(torch.load(folder / f"{name}.pt", weights_only=True), *inputs)


@pytest.mark.parametrize("target", stages.TARGETS)
@pytest.mark.parametrize("optimize", [0, 1])
def test_every_stage_runs_to_the_last_bit(optimize: int, target: str, tmp_path: Path) -> None:
    gm = exported(network, X, **WEIGHTS)
    for stage, _ in stages.walk(gm, stages.Plan(target, optimize)):
        dump_stage(gm, tmp_path / "deep" / "folder", stage)
        (found,) = run_dump(tmp_path / "deep" / "folder", stage, X)
        assert torch.equal(found, outputs(gm, X)[0])


def test_convert_dumps_all_stages_and_the_exported_graph(tmp_path: Path) -> None:
    conversion = api.convert(Wrapped(network, WEIGHTS), (X,), target="lce-arm64", dump=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{stage}.{kind}" for stage in ("exported", *stages.STAGES) for kind in ("py", "pt")
    }
    with torch.no_grad():
        expected = Wrapped(network, WEIGHTS)(X)
    for stage in ("exported", *stages.STAGES):
        torch.testing.assert_close(run_dump(tmp_path, stage, X)[0], expected, rtol=1e-4, atol=1e-4)
    assert conversion.model_bytes


def test_it_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    dump_stage(up_to("target", network, X, **WEIGHTS), tmp_path, "target")
    torch.save(X, tmp_path / "x.pt")
    code = "import torch, target; print(target.forward(torch.load('target.pt'), torch.load('x.pt'))[0].shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "torch.Size([2, 6, 4])", done.stderr


def test_it_tells_types_domains_and_lines(tmp_path: Path) -> None:
    dump_stage(up_to("semantic", network, X, **WEIGHTS), tmp_path, "semantic")
    text = (tmp_path / "semantic.py").read_text()
    assert "# f32[2,6,33] binary" in text
    assert "# f32[2,6,3,7] integer in [-66, 66]" in text
    assert "# i64[2,6,3]" in text
    assert "'hamming'" in text
    dump_stage(trace(Net(), (X,)), tmp_path, "exported")
    text = (tmp_path / "exported.py").read_text()
    assert "test_dump.py:" in text
    assert "return bgnn.binarize(x)" in text


def named(*names: str) -> fx.GraphModule:
    """A model whose inputs have these names."""
    namespace: dict[str, Any] = {"torch": torch}
    source = f"def forward(self, {', '.join(names)}): return {' + 2 * '.join(names)}"
    exec(source, namespace)
    model = type("Net", (nn.Module,), {"forward": namespace["forward"]})()
    return trace(model, tuple(X + i for i in range(len(names))))


NAMES = [("w",), ("aten", "torch"), ("bgnn", "bgnn_ops"), ("forward",), ("float", "x"), ("w", "w_"), ("w_", "w__", "w")]


@pytest.mark.parametrize("names", NAMES)
def test_any_name_of_an_input(names: tuple[str, ...], tmp_path: Path) -> None:
    gm = named(*names)
    inputs = [X + i for i in range(len(names))]
    dump_stage(gm, tmp_path, "s")
    assert torch.equal(run_dump(tmp_path, "s", *inputs)[0], outputs(gm, *inputs)[0])


ARGUMENTS = {
    "infinities": lambda m, x: torch.clamp(x, min=float("-inf"), max=1.0),
    "filled": lambda m, x: x.masked_fill(x > 0, float("inf")),
    "nan": lambda m, x: torch.nan_to_num(x, nan=float("nan"), posinf=float("inf")),
    "types": lambda m, x: x.double().to(torch.float16).float(),
    "none": lambda m, x: x[torch.arange(2)[:, None], :, :][:, 0],
    "lists": lambda m, x: torch.cat([x, x], 2).permute(2, 0, 1).amax((0, 2)),
    "several results": lambda m, x: x.sort(dim=1)[1] + x.topk(6, 1)[1],
    "keywords": lambda m, x: torch.add(x, x, alpha=0.1),
    "text": lambda m, x: torch.div(x, 0.3, rounding_mode="floor"),
    "made on the spot": lambda m, x: x + torch.arange(3, dtype=torch.float32) + torch.full((3,), 2.5),
    "an input as the output": lambda m, x: x,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_any_argument(name: str, tmp_path: Path) -> None:
    gm = exported(ARGUMENTS[name], X)
    dump_stage(gm, tmp_path, "s")
    found, expected = run_dump(tmp_path, "s", X)[0], outputs(gm, X)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_several_outputs(tmp_path: Path) -> None:
    gm = exported(lambda m, x: (x + 1, x * m.c), X, outputs=2, c=randn(3))
    dump_stage(gm, tmp_path, "s")
    found = run_dump(tmp_path, "s", X)
    assert len(found) == 2
    assert torch.equal(found[1], X * randn(3))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the dump to"):
        dump_stage(exported(lambda m, x: x * 2, X), tmp_path / "file", "s")


def test_types_in_short() -> None:
    assert type_of(torch.empty(8, 1024, 64)) == "f32[8,1024,64]"
    assert type_of(torch.empty((), dtype=torch.bool)) == "bool[]"
    assert type_of((torch.empty(1), torch.empty(2, dtype=torch.int64))) == "(f32[1], i64[2])"
    assert type_of(torch.empty(1, dtype=torch.complex64)) == "torch.complex64[1]"
    assert type_of(3) == "int"
