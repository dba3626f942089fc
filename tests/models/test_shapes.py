"""Procedural clouds: seeded, labelled, on the surfaces they claim, uniform."""

from __future__ import annotations

import numpy as np
import pytest

from bgnn.models import shapes
from bgnn.models.shapes import SHAPES, make_clouds


def test_the_same_seed_gives_the_same_clouds():
    points, labels = make_clouds(64, 50, seed=3)
    again, labels_again = make_clouds(64, 50, seed=3)
    other, _ = make_clouds(64, 50, seed=4)
    assert np.array_equal(points, again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(points, other)


def test_clouds_fill_the_unit_sphere_and_classes_are_balanced():
    points, labels = make_clouds(320, 100, seed=0)
    assert points.shape == (320, 100, 3)
    assert (points.dtype, labels.dtype) == (np.float32, np.int64)
    assert np.bincount(labels).tolist() == [20] * len(SHAPES)
    assert not np.array_equal(labels, np.sort(labels))
    radius = np.linalg.norm(points, axis=2)
    np.testing.assert_allclose(radius.max(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(points.mean(axis=1), 0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "stairs"])
def test_every_solid_is_closed_or_a_known_exception(name):
    """In a closed surface every edge belongs to an even number of faces; the helix's two ends are open.

    The stairs' side walls meet in T-junctions, where this count means nothing; their area is tested below.
    """
    rng = np.random.default_rng(0)
    vertices, faces = shapes._MAKERS[name](rng, 3)
    assert vertices.shape[0] == 3
    assert faces.max() < vertices.shape[1]
    solid = np.round(vertices[0], 9) + 0.0  # seams of revolved shapes are doubled vertices
    _, merged = np.unique(solid, axis=0, return_inverse=True)
    faces = merged.reshape(-1)[faces]
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    _, uses = np.unique(edges, axis=0, return_counts=True)
    open_edges = int((uses % 2).sum())
    assert open_edges == (24 if name == "helix" else 0)


def test_points_are_uniform_over_the_area():
    """A 2 x 1 x 0.5 box: each pair of faces gets its share of the points, halves of a face equal ones."""
    half = np.array([[[1.0, 0.5, 0.25]]])
    points = shapes.sample_surface(shapes._boxes(-half, half), 40_000, np.random.default_rng(0))[0]
    on = np.isclose(np.abs(points), half[0, 0], atol=1e-12)
    assert on.any(axis=1).all()
    areas = np.array([1 * 0.5, 2 * 0.5, 2 * 1.0])
    np.testing.assert_allclose(on.mean(axis=0), areas / areas.sum(), atol=0.01)
    top = points[on[:, 2] & (points[:, 2] > 0)]
    np.testing.assert_allclose((top[:, :2] > 0).mean(axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose((np.abs(top[:, 0]) > 0.5).mean(), 0.5, atol=0.02)


def test_the_solids_have_the_areas_of_their_formulas():
    """Unit sphere 4 pi; L-shape and cross: outline length times depth plus two caps (shoelace formula)."""

    def area(mesh):
        vertices, faces = mesh
        a, b, c = (vertices[:, faces[:, i]] for i in range(3))
        return np.linalg.norm(np.cross(b - a, c - a), axis=2).sum(1) / 2

    rng = np.random.default_rng(1)
    np.testing.assert_allclose(area(shapes._sphere(rng, 1)), 4 * np.pi, rtol=0.01)
    for maker in (shapes._l_shape, shapes._cross, shapes._stairs, shapes._prism):
        vertices, faces = maker(rng, 4)
        front = vertices[:, : vertices.shape[1] // 2][:, :, [0, 2]]
        depth = 2 * vertices[:, 0, 1]
        following = np.roll(front, -1, axis=1)
        outline = np.linalg.norm(following - front, axis=2).sum(1)
        cap = np.abs((front[:, :, 0] * following[:, :, 1] - front[:, :, 1] * following[:, :, 0]).sum(1)) / 2
        np.testing.assert_allclose(area((vertices, faces)), outline * depth + 2 * cap, rtol=1e-9)


@pytest.mark.parametrize(("count", "points", "classes"), [(0, 10, 16), (1, 0, 16), (1, 10, 17), (1, 10, 0)])
def test_bad_sizes_are_refused(count, points, classes):
    with pytest.raises(ValueError, match=r"at least 1|there are 16 shapes"):
        make_clouds(count, points, 0, classes)
