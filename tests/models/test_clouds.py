"""Point clouds from every form of data, and what is said of damaged ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bgnn.models.clouds import CloudData, Clouds, load_clouds, read_off, surface_points
from bgnn.models.shapes import make_clouds

SHARED = Path(os.environ.get("BGNN_SHARED", Path(__file__).parents[2] / ".." / "shared")) / "data"
CUBE = "8 6 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 0 1\n1 0 1\n1 1 1\n0 1 1\n"
CUBE += "4 0 1 2 3\n4 4 5 6 7\n4 0 1 5 4\n4 1 2 6 5\n4 2 3 7 6\n4 3 0 4 7\n"


@pytest.mark.parametrize("start", ["OFF\n", "OFF", "OFF # by hand\n"])  # some of ModelNet's have "OFF8 6 0"
def test_off_meshes(start, tmp_path):
    (tmp_path / "a.off").write_text(start + CUBE)
    vertices, faces = read_off(tmp_path / "a.off")
    assert vertices.shape == (8, 3)
    assert faces.shape == (12, 3)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2 == pytest.approx(6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PLY\n" + CUBE, "does not begin with OFF"),
        ("OFF\n" + CUBE[:60], "8 vertices and 6 faces are announced, and"),
        ("OFF\n" + CUBE.replace("4 0 1 2 3", "4 0 1 2 8"), r"face \[0, 1, 2, 8\] of 8 vertices"),
        ("OFF\n" + CUBE.replace("1 1 1\n", "1 1 nan\n"), "a coordinate is no number"),
        ("OFF\n99999999999 5 0\n", "99999999999 vertices"),
        ("OFF\n" + CUBE.replace("1 1 1\n", "1 1 x\n"), "could not convert"),
        ("", "does not begin with OFF"),
    ],
)
def test_damaged_meshes(text, message, tmp_path):
    (tmp_path / "a.off").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.off: not a mesh in OFF form \(.*{message}"):
        read_off(tmp_path / "a.off")


def test_meshes_in_folders_of_classes(tmp_path):
    """A box with one large face: points by area, in the unit sphere, the same for the same seed."""
    for part in ("train", "test"):
        for name, scale in (("box", "1"), ("tall", "9")):
            (tmp_path / name / part).mkdir(parents=True)
            for i in range(2):
                (tmp_path / name / part / f"{i}.off").write_text("OFF\n" + CUBE.replace(" 1\n", f" {scale}\n"))
    data = load_clouds(tmp_path, 500)
    assert data.names == ("box", "tall")
    assert data.train[0].shape == (4, 500, 3)
    assert data.train[1].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(np.linalg.norm(data.train[0], axis=2).max(1), 1, rtol=1e-5)
    tall = data.train[0][2] / np.ptp(data.train[0][2], axis=0)
    at_the_ends = (np.abs(tall[:, 2]) > 0.49).mean()
    assert at_the_ends == pytest.approx(2 / 38, abs=0.04)  # 2 of an area of 38
    assert not np.array_equal(data.train[0][0], data.train[0][1])
    assert np.array_equal(load_clouds(tmp_path, 500).train[0], data.train[0])
    (tmp_path / "box/train/0.off").write_text("OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n")
    with pytest.raises(ValueError, match="a mesh without a surface"):
        load_clouds(tmp_path, 500)
    for file in (tmp_path / "box/test").iterdir():
        file.unlink()
    (tmp_path / "box/train/0.off").unlink()
    with pytest.raises(ValueError, match="no cloud of class 'box' in the test part"):
        load_clouds(tmp_path, 500)


def test_points_of_voxels_lie_at_the_surface():
    grid = np.zeros((9, 9, 9), bool)
    grid[2:7, 2:7, 2:7] = True
    points = surface_points(grid, 4000, np.random.default_rng(0))
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)
    inside = np.abs(points).max(axis=1) < 0.9 * np.abs(points).max() * 1.5 / 2.5
    assert not inside.any()  # the inner 3 x 3 x 3 have no empty voxel beside them
    with pytest.raises(ValueError, match="is empty"):
        surface_points(np.zeros((3, 3, 3), bool), 5, np.random.default_rng(0))


def test_voxels_in_an_npz(tmp_path):
    rng = np.random.default_rng(0)
    grids = (rng.random((6, 5, 5, 5)) < 0.5).astype(np.int32)
    arrays = {"X_train": grids, "y_train": np.arange(6) % 2, "X_test": grids[:2], "y_test": np.arange(2)}
    np.savez(tmp_path / "v.npz", **arrays)
    data = load_clouds(tmp_path, 32)
    assert data.train[0].shape == (6, 32, 3)
    assert data.names == ("0", "1")
    np.savez(tmp_path / "v.npz", **arrays | {"X_test": np.zeros_like(grids[:2])})
    with pytest.raises(ValueError, match=r"v\.npz: 2 of 2 grids of the test part are empty"):
        load_clouds(tmp_path / "v.npz", 32)
    many = {part: np.concatenate([grids] * 50) for part in ("X_train", "X_test")}
    many |= {part: np.arange(300) % 2 for part in ("y_train", "y_test")}
    many["X_train"][[0, 7]] = 0  # in two hundred, one may be empty
    np.savez(tmp_path / "v.npz", **many)
    data = load_clouds(tmp_path / "v.npz", 32)
    assert (len(data.train[0]), len(data.test[0])) == (298, 300)
    assert data.train[1].tolist() == np.delete(many["y_train"], [0, 7]).tolist()
    assert data.about.startswith(f"{tmp_path}/v.npz without its 2 empty grids, 2 classes, 32 points")
    np.savez(tmp_path / "v.npz", **arrays | {"y_test": np.arange(3)})
    with pytest.raises(ValueError, match=r"grids \(2, 5, 5, 5\) and labels \(3,\)"):
        load_clouds(tmp_path / "v.npz", 32)
    whole = (tmp_path / "v.npz").read_bytes()
    (tmp_path / "v.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"v\.npz: not an \.npz file with X_train"):
        load_clouds(tmp_path / "v.npz", 32)


def write_h5(folder, part, points, labels):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / f"ply_data_{part}0.h5", "w") as file:
        file["data"], file["label"] = points, labels


def test_h5_files_as_modelnet40s(tmp_path):
    points, labels = make_clouds(12, 20, 0, classes=3)
    write_h5(tmp_path, "train", points, labels[:, None])
    with pytest.raises(FileNotFoundError, match=r"no \*test\*\.h5"):
        load_clouds(tmp_path, 16)
    write_h5(tmp_path, "test", points, labels)
    (tmp_path / "shape_names.txt").write_text("sphere\nellipsoid\nbox\n")
    data = load_clouds(tmp_path, 16)
    assert data.names == ("sphere", "ellipsoid", "box")
    assert data.train[0].shape == (12, 16, 3)
    write_h5(tmp_path, "train", points, np.where(labels == 1, 7, labels))
    with pytest.raises(ValueError, match="label 7 in the train part; there are 3 classes"):
        load_clouds(tmp_path, 16)
    write_h5(tmp_path, "train", points, np.where(labels == 1, 2, labels))
    with pytest.raises(ValueError, match=r"no cloud of class 'ellipsoid' in the train part \(1 of 3 .*mislabelled"):
        load_clouds(tmp_path, 16)
    write_h5(tmp_path, "train", np.where(points == points[5, 3, 0], np.nan, points), labels)
    with pytest.raises(ValueError, match="cloud 5 of the train part has coordinates that are no numbers"):
        load_clouds(tmp_path, 16)
    write_h5(tmp_path, "train", points, labels + 0.5)
    with pytest.raises(ValueError, match="labels of type float64; expected whole numbers"):
        load_clouds(tmp_path, 16)
    file = tmp_path / "ply_data_train0.h5"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"ply_data_train0\.h5: not an HDF5 file"):
        load_clouds(tmp_path, 16)


def test_folders_without_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither \.h5 files, nor one \.npz, nor folders"):
        load_clouds(tmp_path, 16)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_clouds(tmp_path / "none", 16)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not on this machine")
def test_the_shared_sets_load():
    data = load_clouds(SHARED / "bimnet10", 64)
    assert (len(data.train[0]), len(data.test[0]), len(data.names)) == (165, 51, 10)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not on this machine")
def test_the_shared_voxels_load(monkeypatch):
    """All grids but one in forty: the whole takes seconds."""
    real = np.load

    class Some(dict):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    def some(path, **options):
        with real(path, **options) as arrays:
            return Some({name: arrays[name][::40] for name in arrays.files})

    monkeypatch.setattr(np, "load", some)
    data = load_clouds(SHARED / "modelnet10-voxels", 64)
    assert (len(data.train[0]), len(data.test[0]), len(data.names)) == (100, 23, 10)
    assert data.what.endswith("modelnet10.npz")
    assert data.train[0].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(data.train[0], axis=2).max(1), 1, rtol=1e-5)


def test_augmentation_scales_and_shifts_whole_clouds():
    points, labels = make_clouds(16, 20, 0, classes=2)
    seen = [next(iter(Clouds((points, labels), 0).epoch(0, epoch, 16))) for epoch in (0, 0, 1)]
    assert np.array_equal(seen[0][0], seen[1][0])
    assert not np.array_equal(seen[0][0], seen[2][0])
    order = np.random.default_rng([0, 0, 0])
    order.uniform(size=(16, 1, 3)), order.uniform(size=(16, 1, 3))
    was = points[order.permutation(16)]
    now = seen[0][0].numpy()
    scale = (now[:, 1] - now[:, 0]) / (was[:, 1] - was[:, 0])
    np.testing.assert_allclose((now[:, 5] - now[:, 2]) / (was[:, 5] - was[:, 2]), scale, rtol=1e-2)
    assert scale.min() > 0.66
    assert scale.max() < 1.51
    plain = next(iter(Clouds((points, labels), 0, augment=False).epoch(0, 0, 16)))[0].numpy()
    assert sorted(map(tuple, plain[:, 0])) == sorted(map(tuple, points[:, 0]))


def test_a_part_without_clouds():
    with pytest.raises(ValueError, match="x: no clouds in the test part"):
        CloudData("x", None, (np.zeros((0, 4, 3)), np.zeros(0, np.int64)), ("a",))
