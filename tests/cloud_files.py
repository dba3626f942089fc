"""Clouds in files as ModelNet40's, for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgnn.models.shapes import make_clouds


def write_h5(folder: Path, clouds: int, points: int, classes: int) -> None:
    """The same clouds of procedural solids as train.h5 and test.h5; skips the test without h5py."""
    h5py = pytest.importorskip("h5py")
    made, labels = make_clouds(clouds, points, seed=0, classes=classes)
    for part in ("train", "test"):
        with h5py.File(folder / f"{part}.h5", "w") as file:
            file["data"], file["label"] = made, labels
