"""ModelNet40 as published for DGCNN: HDF5 files with `data` [M, P, 3] and `label` [M] or [M, 1]."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def load_h5(path: str | os.PathLike[str], num_points: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One HDF5 file, or all `*.h5` files of a folder in the order of their names.

    Returns (points float32 [M, P, 3], labels int64 [M]); `num_points` keeps the first so many of each cloud.
    Raises FileNotFoundError, ImportError where h5py is not installed, and ValueError on another layout.
    """
    path = Path(path)
    files = sorted(path.glob("*.h5")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path}: no such .h5 file, nor a folder with .h5 files")
    try:
        import h5py
    except ImportError as error:
        raise ImportError("reading .h5 files needs h5py: pip install 'bgnn-convert[models]'") from error
    clouds, labels = [], []
    for file in files:
        try:
            with h5py.File(file, "r") as h5:
                data, label = h5["data"][()], h5["label"][()]
        except (OSError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not an HDF5 file with 'data' and 'label' ({error})") from error
        if data.ndim != 3 or data.shape[2] != 3 or label.size != len(data):
            raise ValueError(f"{file}: data {data.shape} and label {label.shape}; expected [M, P, 3] and [M] or [M, 1]")
        if num_points is not None and data.shape[1] < num_points:
            raise ValueError(f"{file}: {data.shape[1]} points in a cloud, {num_points} wanted")
        if label.dtype.kind not in "iu" and not (label.dtype.kind == "f" and np.array_equal(label, np.floor(label))):
            raise ValueError(f"{file}: labels of type {label.dtype}; expected whole numbers")
        clouds.append(data[:, :num_points].astype(np.float32))
        labels.append(label.reshape(-1).astype(np.int64))
    return np.concatenate(clouds), np.concatenate(labels)
