"""Labelled point clouds to train on: one folder or file, in any of the forms that these data sets come in.

    folder with *train*.h5 and *test*.h5      ModelNet40 as published for DGCNN, BIMNet10, anything of that layout
    folder with CLASS/train/*.off, test/*.off ModelNet10 and 40 as meshes: points drawn by surface area (appendix A)
    .npz with X_train, y_train, X_test, ...   occupancy grids: points drawn in the voxels at the surface
    nothing                                   the procedural solids of `shapes.py`, new ones for each epoch

All clouds lie in the unit sphere. What is wrong with a file is said in one line with its name.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bgnn.models.modelnet import load_h5
from bgnn.models.shapes import HELD_OUT_SEED, SHAPES, make_clouds, normalise, sample_surface

#: Points float32 `[M, N, 3]` and labels int64 `[M]`.
Part = tuple[np.ndarray, np.ndarray]
MOST_EMPTY = 0.01  # share of empty grids that is left out; the voxels of ModelNet10 have 8 of 4899. More is damage.
MOST_VALUES = 2**28  # numbers of one mesh; a damaged header must not ask for all memory


@dataclass
class CloudData:
    """Both parts of a data set; `train` is None for the procedural solids. `names`: of the classes, or numbers."""

    what: str
    train: Part | None
    test: Part
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises ValueError where labels and classes do not agree."""
        for title, part in (("train", self.train), ("test", self.test)):
            if part is None:
                continue
            points, labels = part
            if not len(points):
                raise ValueError(f"{self.what}: no clouds in the {title} part")
            if not np.isfinite(points).all():
                first = int(np.flatnonzero(~np.isfinite(points).all((1, 2)))[0])
                raise ValueError(f"{self.what}: cloud {first} of the {title} part has coordinates that are no numbers")
            if labels.min() < 0 or labels.max() >= len(self.names):
                bad = int(labels.min() if labels.min() < 0 else labels.max())
                raise ValueError(f"{self.what}: label {bad} in the {title} part; there are {len(self.names)} classes")
            missing = np.flatnonzero(np.bincount(labels, minlength=len(self.names)) == 0)
            if len(missing):
                raise ValueError(
                    f"{self.what}: no cloud of class {self.names[missing[0]]!r} in the {title} part "
                    f"({len(missing)} of {len(self.names)} classes are missing): a file is missing or mislabelled"
                )

    @property
    def about(self) -> str:
        """What was measured on what, for model cards."""
        sizes = f"{len(self.names)} classes, {self.test[0].shape[1]} points"
        return f"{self.what}, {sizes}; accuracies in percent on its {len(self.test[0])} test clouds"


def load_clouds(path: Path | None, points: int, seed: int = 0) -> CloudData:
    """The data set at `path`, `points` points in a cloud. `seed`: of the points drawn on meshes and voxels.

    Raises FileNotFoundError, ImportError (h5py), or ValueError in one line.
    """
    if path is None:
        return CloudData("procedural solids", None, make_clouds(1000, points, HELD_OUT_SEED), SHAPES)
    if path.is_file() and path.suffix == ".npz":
        return _voxels(path, points, seed)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder, nor an .npz file of voxels")
    if any(path.glob("*.h5")):
        parts = []
        for part in ("train", "test"):
            files = sorted(path.glob(f"*{part}*.h5"))
            if not files:
                raise FileNotFoundError(f"{path}: no *{part}*.h5 among its .h5 files")
            loaded = [load_h5(file, points) for file in files]
            parts.append((np.concatenate([one[0] for one in loaded]), np.concatenate([one[1] for one in loaded])))
        listed = path / "shape_names.txt"  # beside ModelNet40's files
        highest = max(0, *(int(labels.max(initial=0)) for _, labels in parts))
        names = listed.read_text().split() if listed.is_file() else [str(i) for i in range(min(highest, 9999) + 1)]
        return CloudData(str(path), parts[0], parts[1], tuple(names))
    grids = sorted(path.glob("*.npz"))
    if len(grids) == 1:
        return _voxels(grids[0], points, seed)
    classes = sorted(folder.name for folder in path.iterdir() if (folder / "train").is_dir())
    if not classes:
        raise FileNotFoundError(f"{path}: neither .h5 files, nor one .npz, nor folders CLASS/train with .off meshes")
    meshes = [_meshes(path, classes, part, points, seed) for part in ("train", "test")]
    return CloudData(str(path), meshes[0], meshes[1], tuple(classes))


def _meshes(path: Path, classes: list[str], part: str, points: int, seed: int) -> Part:
    clouds: list[np.ndarray] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for file in sorted((path / name / part).glob("*.off")):
            rng = np.random.default_rng([seed, part == "test", len(labels)])
            vertices, faces = read_off(file)
            if not _area(vertices, faces) > 0:
                raise ValueError(f"{file}: a mesh without a surface")
            clouds.append(normalise(sample_surface((vertices[None], faces), points, rng))[0].astype(np.float32))
            labels.append(label)
    return np.stack(clouds) if clouds else np.zeros((0, points, 3), np.float32), np.array(labels, np.int64)


def _area(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A mesh in the object file format: vertices float64 `[V, 3]` and triangles int64 `[F, 3]` (polygons as fans).

    Also the form that some of ModelNet's files have, with the counts right behind the word OFF.
    Raises ValueError, one line, on any other content.
    """
    try:
        lines = (line.partition("#")[0] for line in path.read_text(encoding="ascii").splitlines())
        words = " ".join(lines).split()
        if not words or not words[0].startswith("OFF"):
            raise ValueError("it does not begin with OFF")
        words = [words[0][3:], *words[1:]] if len(words[0]) > 3 else words[1:]
        count, polygons = int(words[0]), int(words[1])
        if min(count, polygons) < 0 or 3 * count + 4 * polygons > min(MOST_VALUES, len(words)):
            raise ValueError(f"{count} vertices and {polygons} faces are announced, and {len(words)} words follow")
        vertices = np.array(words[3 : 3 + 3 * count], np.float64).reshape(count, 3)
        if not np.isfinite(vertices).all():
            raise ValueError("a coordinate is no number")
        triangles, place = [], 3 + 3 * count
        for _ in range(polygons):
            size = int(words[place])
            corners = [int(word) for word in words[place + 1 : place + 1 + size]]
            if size < 3 or len(corners) < size or min(corners) < 0 or max(corners) >= count:
                raise ValueError(f"face {corners} of {count} vertices")
            triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, size - 1)]
            # A colour may follow the corners, up to the end of a line: these files have none.
            place += 1 + size
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a mesh in OFF form ({error})") from error
    return vertices, np.array(triangles, np.int64).reshape(-1, 3)


def _voxels(path: Path, points: int, seed: int) -> CloudData:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            parts = [(arrays[f"X_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not an .npz file with X_train, y_train, X_test and y_test ({error})") from error
    made, left_out = [], 0
    for number, (grids, labels) in enumerate(parts):
        if grids.ndim != 4 or labels.shape != grids.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: grids {grids.shape} and labels {labels.shape} {labels.dtype}; expected [M, a, b, c]"
            )
        rng = np.random.default_rng([seed, number])
        full = grids.any((1, 2, 3))
        if full.mean() < 1 - MOST_EMPTY:
            title = ("train", "test")[number]
            raise ValueError(f"{path}: {int((~full).sum())} of {len(grids)} grids of the {title} part are empty")
        left_out += int((~full).sum())
        clouds = [surface_points(grid != 0, points, rng).astype(np.float32) for grid in grids[full]]
        made.append((np.stack(clouds), labels[full].astype(np.int64)))
    highest = max(int(labels.max(initial=0)) for _, labels in made)
    what = str(path) + (f" without its {left_out} empty grids" if left_out else "")
    return CloudData(what, made[0], made[1], tuple(str(i) for i in range(min(highest, 9999) + 1)))


def surface_points(grid: np.ndarray, points: int, rng: np.random.Generator) -> np.ndarray:
    """`[points, 3]` in the unit sphere: each at random in a voxel that has an empty one beside it. `grid` bool, 3-D.

    Raises ValueError on an empty grid.
    """
    around = np.pad(grid, 1)
    covered = grid.copy()
    for axis in range(3):
        for step in (-1, 1):
            covered &= np.roll(around, step, axis)[1:-1, 1:-1, 1:-1]
    places = np.argwhere(grid & ~covered)
    if not len(places):
        raise ValueError("is empty")
    chosen = places[rng.integers(len(places), size=points)] + rng.random((points, 3))
    return normalise(chosen[None])[0]


class Clouds:
    """The training clouds: shuffled and augmented anew for each epoch, the same for the same seed, stage and epoch.

    `fixed`: the clouds, or None for procedural solids, `count` new ones of `num_points` points in each epoch.
    """

    def __init__(
        self, fixed: Part | None, seed: int, *, count: int = 6000, num_points: int = 1024, augment: bool = True
    ) -> None:
        self.fixed, self.seed, self.num_points, self.augment = fixed, seed, num_points, augment
        self.count = count if fixed is None else len(fixed[0])

    def epoch(self, stage: int, epoch: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (points `[batch, N, 3]`, labels `[batch]`) shuffled; a smaller last one is dropped."""
        rng = np.random.default_rng([self.seed, stage, epoch])
        if self.fixed is None:
            points, labels = make_clouds(self.count, self.num_points, int(rng.integers(2**31)))
        else:
            points, labels = self.fixed
            if self.augment:  # scale in [2/3, 3/2] and shift by up to 0.2 per axis, as the DGCNN authors' code
                scale = rng.uniform(2 / 3, 3 / 2, (len(points), 1, 3))
                points = points * scale + rng.uniform(-0.2, 0.2, scale.shape)
        order = rng.permutation(len(points))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            yield torch.from_numpy(points[chosen].astype(np.float32)), torch.from_numpy(labels[chosen])
