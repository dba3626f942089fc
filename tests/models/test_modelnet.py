"""The HDF5 loader on real files of ModelNet40's layout, and on others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bgnn.models.modelnet import load_h5

h5py = pytest.importorskip("h5py")
SHARED = Path(os.environ.get("BGNN_SHARED", Path(__file__).parents[2] / ".." / "shared"))


@pytest.mark.skipif(not (SHARED / "data/bimnet10").is_dir(), reason="the shared data are not on this machine")
def test_reads_bimnet():
    points, labels = load_h5(SHARED / "data/bimnet10/bimnet10_test.h5")
    assert (points.shape, points.dtype) == ((51, 2048, 3), np.float32)
    assert (labels.shape, labels.dtype) == ((51,), np.int64)
    assert set(labels) <= set(range(10))
    both, _ = load_h5(SHARED / "data/bimnet10", num_points=100)
    assert both.shape == (216, 100, 3)
    assert np.array_equal(both[:51], points[:, :100])  # files in the order of their names


def write(path, data, label):
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = data, label


def test_labels_of_shape_m_1(tmp_path):
    write(tmp_path / "a.h5", np.zeros((4, 9, 3)), np.array([[3], [1], [2], [0]], np.uint8))
    points, labels = load_h5(tmp_path / "a.h5")
    assert points.shape == (4, 9, 3)
    assert labels.tolist() == [3, 1, 2, 0]


def test_says_how_to_get_h5py(tmp_path, monkeypatch):
    write(tmp_path / "a.h5", np.zeros((4, 9, 3)), np.zeros(4))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"needs h5py: pip install 'bgnn-convert\[models\]'"):
        load_h5(tmp_path / "a.h5")


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such \.h5 file"):
        load_h5(tmp_path)
    write(tmp_path / "flat.h5", np.zeros((4, 9)), np.zeros(4))
    with pytest.raises(ValueError, match=r"flat.h5: data \(4, 9\).*expected \[M, P, 3\]"):
        load_h5(tmp_path / "flat.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(ValueError, match=r"text.h5: not an HDF5 file"):
        load_h5(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"other.h5: not an HDF5 file with 'data' and 'label'"):
        load_h5(tmp_path / "other.h5")
    write(tmp_path / "few.h5", np.zeros((4, 9, 3)), np.zeros(4))
    with pytest.raises(ValueError, match="9 points in a cloud, 10 wanted"):
        load_h5(tmp_path / "few.h5", num_points=10)
