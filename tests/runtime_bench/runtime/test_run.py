"""`bgnn-run`: a file, an .npz in, an .npz out, and one-line errors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tflite_files
from bgnn_files import hamming_knn, xor_edge_conv

from bgnn.runtime_bench.runtime import delegate, onnx_ops
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.run import main


@pytest.fixture
def case(tmp_path: Path):
    tflite_files.build()
    case = xor_edge_conv(np.random.default_rng(0))
    (tmp_path / "model.tflite").write_bytes(case.file())
    return case


def run(folder: Path, *more: str) -> int:
    return main([str(folder / "model.tflite"), "--input", str(folder / "in.npz"), *more])


@pytest.mark.parametrize("names", [("t0", "t1"), ("arr_0", "arr_1")])
def test_outputs_are_written(names: tuple[str, str], case, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "in.npz", **dict(zip(names, case.arrays(), strict=True)))
    assert run(tmp_path, "--output", str(tmp_path / "out.npz"), "--threads", "2") == 0
    with np.load(tmp_path / "out.npz") as out:
        assert out.files == ["t4"]
        assert np.array_equal(out["t4"], case.expected)
    assert capsys.readouterr().out == "t4: int32 [2, 30, 2]\n"


@pytest.mark.parametrize("nodes", [10, 90])
def test_another_shape_is_refused(nodes: int, tmp_path: Path, capsys) -> None:
    """The same number of values in another shape too: what is constant in the file is of the file's shape."""
    tflite_files.build()
    small, other = (hamming_knn(np.random.default_rng(0), nodes=n) for n in (20, nodes))
    (tmp_path / "model.tflite").write_bytes(small.file())
    np.savez(tmp_path / "in.npz", other.arrays()[0])
    assert run(tmp_path, "--output", str(tmp_path / "out.npz")) == 2
    wanted, given = list(small.arrays()[0].shape), list(other.arrays()[0].shape)
    error = capsys.readouterr().err
    assert f"input t0 must be int32 {wanted}, got int32 {given}: the file is for this shape" in error
    assert not (tmp_path / "out.npz").exists()


def test_errors_are_one_line(case, tmp_path: Path, capsys) -> None:
    def fails(code: int, reason: str, *more: str) -> None:
        assert run(tmp_path, *more) == code
        error = capsys.readouterr().err
        assert error.startswith("bgnn-run: ")
        assert reason in error

    fails(2, "in.npz: no such file")
    (tmp_path / "in.npz").write_bytes(b"no archive")
    fails(2, "not a readable .npz of plain arrays")
    (tmp_path / "in.npz").write_bytes(b"")
    fails(2, "not a readable .npz of plain arrays")
    with open(tmp_path / "in.npz", "wb") as file:
        np.save(file, case.arrays()[0])
    fails(2, "is a single array: save it with np.savez")
    np.savez(tmp_path / "in.npz", t0=np.array([None], object), t1=case.arrays()[1])
    fails(2, "holds pickled Python objects")
    np.savez(tmp_path / "in.npz", t0=case.arrays()[0])
    fails(2, "the file's inputs are t0, t1; in the arrays given: missing t1")
    np.savez(tmp_path / "in.npz", t0=case.arrays()[0], t2=case.arrays()[1])
    fails(2, "in the arrays given: missing t1; unknown t2")
    np.savez(tmp_path / "in.npz", t0=case.arrays()[0].astype(np.float32), t1=case.arrays()[1])
    fails(2, "input t0 must be int32 [2, 30, 3], got float32 [2, 30, 3]: cast it with .astype('int32')")
    np.savez(tmp_path / "in.npz", t0=case.arrays()[0], t1=case.arrays()[1] + 30)
    fails(1, "a neighbour's index is not one of the graph's nodes")
    np.savez(tmp_path / "in.npz", t0=case.arrays()[0][:, :, :1], t1=case.arrays()[1])
    fails(2, "input t0 must be int32 [2, 30, 3], got int32 [2, 30, 1]")
    np.savez(tmp_path / "in.npz", *case.arrays())
    fails(2, "cannot write", "--output", str(tmp_path / "nowhere" / "out.npz"))
    (tmp_path / "model.tflite").write_bytes(b"....TFL3....")
    fails(1, "the runtime refuses the file")


class Missing:
    """An importer in front of all others: as if these packages were not installed."""

    def __init__(self, packages: list[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("file", "modules", "said"),
    [
        (
            "model.onnx",
            ["onnxruntime"],
            "onnxruntime is not installed, and ONNX files run on it: pip install onnxruntime",
        ),
        (
            "model.tflite",
            ["ai_edge_litert", "tflite_runtime", "tensorflow"],
            "no TFLite runtime is installed, and TFLite files run on one: pip install ai-edge-litert",
        ),
    ],
)
def test_a_missing_runtime_is_one_line(
    file: str, modules: list[str], said: str, case, tmp_path: Path, capsys, monkeypatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in modules]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(modules), *sys.meta_path])
    (tmp_path / file).write_bytes((tmp_path / "model.tflite").read_bytes())
    np.savez(tmp_path / "in.npz", *case.arrays())
    assert main([str(tmp_path / file), "--input", str(tmp_path / "in.npz")]) == 1
    assert capsys.readouterr().err == f"bgnn-run: {said}\n"


def test_a_runtime_that_does_not_load_is_named(tmp_path: Path, monkeypatch) -> None:
    """As one built for another NumPy: the reason is said, not that it is not installed."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert" / "__init__.py").write_text("")
    (tmp_path / "ai_edge_litert" / "interpreter.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("onnxruntime", "ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(BgnnError, match=r"^onnxruntime cannot be imported \(numpy.core.multiarray failed"):
        onnx_ops.runtime()
    with pytest.raises(BgnnError, match=r"can be imported \(ai_edge_litert: No module named 'no_such_module'\)"):
        delegate.runtime()
