"""`bgnn-run`: a file, an .npz in, an .npz out, and one-line errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tflite_files
from bgnn_files import hamming_knn, xor_edge_conv

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
