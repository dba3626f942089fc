"""`bgnn-run`: a file, an .npz in, an .npz out, and one-line errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tflite_files
from bgnn_files import hamming_knn, xor_edge_conv

from bgnn.runtime_bench.run import main


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


def test_another_number_of_points(tmp_path: Path, capsys) -> None:
    tflite_files.build()
    small, large = (hamming_knn(np.random.default_rng(0), nodes=nodes) for nodes in (20, 90))
    (tmp_path / "model.tflite").write_bytes(small.file())
    np.savez(tmp_path / "in.npz", large.arrays()[0])
    assert run(tmp_path, "--output", str(tmp_path / "out.npz")) == 0
    with np.load(tmp_path / "out.npz") as out:
        assert np.array_equal(out["t1"], large.expected)


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
    fails(2, "the file's inputs are t0, t1; the arrays are t0")
    np.savez(tmp_path / "in.npz", t0=case.arrays()[0].astype(np.float32), t1=case.arrays()[1])
    fails(2, "input t0 must be int32 [2, 30, 3], got float32")
    np.savez(tmp_path / "in.npz", t0=case.arrays()[0], t1=case.arrays()[1] + 30)
    fails(1, "a neighbour's index is not one of the graph's nodes")
    np.savez(tmp_path / "in.npz", t0=case.arrays()[0][:, :, :1], t1=case.arrays()[1])
    fails(1, "dimension 2 of x is 1")
    np.savez(tmp_path / "in.npz", *case.arrays())
    fails(2, "cannot write", "--output", str(tmp_path / "nowhere" / "out.npz"))
    (tmp_path / "model.tflite").write_bytes(b"....TFL3....")
    fails(1, "the runtime refuses the file")
