"""Labelled point clouds without a download: sixteen procedural solids, sampled uniformly on their surfaces.

A shape is a triangle mesh whose proportions are drawn anew for every cloud; all clouds of a shape share the
faces, so that many are made at once. Points are drawn by triangle area, as ModelNet40's are (appendix A of
the binary GNN paper), the cloud is turned and stretched a little, noise is added, and the result fills the
unit sphere. The same seed gives the same clouds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
#: (vertices [M, V, 3] float64, faces [F, 3] int64): M solids of one kind.
Mesh = tuple[Array, Array]
_CHUNK = 256  # clouds made at once: bounds the memory


def _grid(coordinates: Array, rows: int, columns: int) -> Mesh:
    """A mesh over a `rows` x `columns` grid of vertices `[M, rows * columns, 3]`."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1)
    below, right, across = corner + columns, corner + 1, corner + columns + 1
    faces = np.concatenate([np.stack([corner, below, right], 1), np.stack([right, below, across], 1)])
    return coordinates, faces


def _revolve(radius: Array, height: Array, columns: int = 32) -> Mesh:
    """The profile (radius, height), both `[M, P]`, turned about z. A radius of 0 at the ends closes it."""
    angle = np.linspace(0, 2 * np.pi, columns + 1)
    x, y = radius[:, :, None] * np.cos(angle), radius[:, :, None] * np.sin(angle)
    z = np.broadcast_to(height[:, :, None], x.shape)
    return _grid(np.stack([x, y, z], -1).reshape(len(radius), -1, 3), radius.shape[1], columns + 1)


def _tube(path: Array, thickness: Array, up: Array, columns: int = 12) -> Mesh:
    """A round tube of radius `thickness [M]` along `path [M, P, 3]`; `up [M, P, 3]` is not along it."""
    tangent = np.gradient(path, axis=1)
    tangent /= np.linalg.norm(tangent, axis=2, keepdims=True)
    side = np.cross(tangent, up)
    side /= np.linalg.norm(side, axis=2, keepdims=True)
    normal = np.cross(side, tangent)
    angle = np.linspace(0, 2 * np.pi, columns + 1)[:, None]
    ring = np.cos(angle) * side[:, :, None, :] + np.sin(angle) * normal[:, :, None, :]
    points = path[:, :, None, :] + thickness[:, None, None, None] * ring
    return _grid(points.reshape(len(path), -1, 3), path.shape[1], columns + 1)


def _extrude(outline: Array, caps: list[tuple[int, int, int]], depth: Array) -> Mesh:
    """The polygon `outline [M, P, 2]`, cut into the triangles `caps`, made `depth [M]` thick along y."""
    solids, corners = outline.shape[:2]
    half = np.broadcast_to(depth[:, None] / 2, (solids, corners))
    front = np.stack([outline[:, :, 0], half, outline[:, :, 1]], -1)
    back = np.stack([outline[:, :, 0], -half, outline[:, :, 1]], -1)
    here, there = np.arange(corners), (np.arange(corners) + 1) % corners
    sides = [
        np.stack([here, there, here + corners], 1),
        np.stack([there, here + corners, there + corners], 1),
    ]
    cap = np.array(caps)
    return np.concatenate([front, back], 1), np.concatenate([cap, cap + corners, *sides])


def _boxes(low: Array, high: Array) -> Mesh:
    """Boxes `[M, parts, 3]` from their low and high corners; faces where parts touch are kept."""
    solids, parts = low.shape[:2]
    bits = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    vertices = np.where(bits, high[:, :, None, :], low[:, :, None, :]).reshape(solids, parts * 8, 3)
    quads = np.array([[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]])
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return vertices, (faces + 8 * np.arange(parts)[:, None, None]).reshape(-1, 3)


def _quads(*corners: tuple[int, int, int, int]) -> list[tuple[int, int, int]]:
    return [triangle for a, b, c, d in corners for triangle in ((a, b, c), (a, c, d))]


def _sphere(rng: np.random.Generator, m: int) -> Mesh:
    angle = np.broadcast_to(np.linspace(0, np.pi, 25), (m, 25))
    return _revolve(np.sin(angle), np.cos(angle))


def _ellipsoid(rng: np.random.Generator, m: int) -> Mesh:
    vertices, faces = _sphere(rng, m)
    return vertices * np.stack([rng.uniform(0.5, 0.7, m), rng.uniform(0.5, 0.7, m), np.ones(m)], 1)[:, None], faces


def _box(rng: np.random.Generator, m: int) -> Mesh:
    half = rng.uniform(0.5, 1.0, (m, 1, 3))
    return _boxes(-half, half)


def _cylinder(rng: np.random.Generator, m: int) -> Mesh:
    height = rng.uniform(0.7, 1.6, (m, 1))
    return _revolve(np.tile([0.0, 1.0, 1.0, 0.0], (m, 1)), height * [-1, -1, 1, 1])


def _cone(rng: np.random.Generator, m: int) -> Mesh:
    height = rng.uniform(1.2, 2.4, (m, 1))
    return _revolve(np.tile([0.0, 1.0, 0.0], (m, 1)), height * [0, 0, 1])


def _torus(rng: np.random.Generator, m: int) -> Mesh:
    thickness = rng.uniform(0.2, 0.4, (m, 1))
    angle = np.linspace(0, 2 * np.pi, 17)
    return _revolve(1 + thickness * np.cos(angle), thickness * np.sin(angle))


def _pyramid(rng: np.random.Generator, m: int) -> Mesh:
    """Square base, apex above its middle."""
    base = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0], [0, 0, 1.0]])
    scale = np.stack([np.ones(m), np.ones(m), rng.uniform(1.2, 2.4, m)], 1)
    faces = [*_quads((0, 1, 2, 3)), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)]
    return base * scale[:, None], np.array(faces)


def _tetrahedron(rng: np.random.Generator, m: int) -> Mesh:
    turn = 2 * np.pi / 3 * np.arange(3)
    base = np.concatenate([np.stack([np.cos(turn), np.sin(turn), np.zeros(3)], 1), [[0, 0, 1]]])
    scale = np.stack([np.ones(m), np.ones(m), rng.uniform(1.2, 1.8, m)], 1)
    return base * scale[:, None], np.array([(0, 1, 2), (0, 1, 3), (1, 2, 3), (2, 0, 3)])


def _prism(rng: np.random.Generator, m: int) -> Mesh:
    """A triangle, lying like a roof."""
    height = rng.uniform(0.8, 1.7, m)
    outline = np.zeros((m, 3, 2))
    outline[:, 0, 0], outline[:, 1, 0], outline[:, 2, 1] = -1, 1, height
    return _extrude(outline, [(0, 1, 2)], rng.uniform(1.8, 3.0, m))


def _capsule(rng: np.random.Generator, m: int) -> Mesh:
    """A cylinder with half spheres for ends."""
    half = rng.uniform(0.6, 1.4, (m, 1))
    angle = np.linspace(0, np.pi / 2, 9)
    bottom, top = -half - np.cos(angle), half + np.cos(angle[::-1])
    radius = np.concatenate([np.sin(angle), np.sin(angle[::-1])])
    return _revolve(np.broadcast_to(radius, (m, 18)), np.concatenate([bottom, top], 1))


def _pipe(rng: np.random.Generator, m: int) -> Mesh:
    """A hollow cylinder, open at both ends."""
    height, inner = rng.uniform(0.7, 1.6, (m, 1)), rng.uniform(0.55, 0.75, (m, 1))
    ones = np.ones((m, 1))
    return _revolve(np.concatenate([ones, ones, inner, inner, ones], 1), height * [-1, 1, 1, -1, -1])


def _helix(rng: np.random.Generator, m: int) -> Mesh:
    """A round tube along two to three turns of a screw line."""
    angle = np.linspace(0, 1, 72) * (2 * np.pi * rng.uniform(2.0, 3.0, (m, 1)))
    rise = angle * rng.uniform(0.1, 0.16, (m, 1))
    path = np.stack([np.cos(angle), np.sin(angle), rise], -1)
    return _tube(path, rng.uniform(0.12, 0.2, m), np.broadcast_to([0.0, 0.0, 1.0], path.shape))


def _l_shape(rng: np.random.Generator, m: int) -> Mesh:
    arm, foot = rng.uniform(1.4, 2.2, m), rng.uniform(1.0, 1.6, m)
    a, b = rng.uniform(0.35, 0.6, (2, m))
    zero = np.zeros(m)
    outline = np.stack([[zero, zero], [foot, zero], [foot, a], [b, a], [b, arm], [zero, arm]]).transpose(2, 0, 1)
    # The cuts all start from corner 3, the inner one, or end there.
    return _extrude(outline, [(0, 1, 3), (1, 2, 3), (0, 3, 5), (3, 4, 5)], rng.uniform(0.5, 1.2, m))


def _cross(rng: np.random.Generator, m: int) -> Mesh:
    """A plus sign with some thickness."""
    w, up, wide = rng.uniform(0.2, 0.35, m), rng.uniform(0.8, 1.2, m), rng.uniform(0.8, 1.2, m)
    outline = np.stack(
        [
            *([-w, -up], [w, -up], [w, -w], [wide, -w], [wide, w], [w, w]),
            *([w, up], [-w, up], [-w, w], [-wide, w], [-wide, -w], [-w, -w]),
        ]
    ).transpose(2, 0, 1)
    caps = _quads((0, 1, 2, 11), (2, 3, 4, 5), (5, 6, 7, 8), (8, 9, 10, 11), (11, 2, 5, 8))
    return _extrude(outline, caps, rng.uniform(0.3, 0.7, m))


def _table(rng: np.random.Generator, m: int) -> Mesh:
    """A plate on four legs."""
    half = np.stack([rng.uniform(0.8, 1.3, m), rng.uniform(0.6, 1.0, m)], 1)
    height, plate, leg = rng.uniform(0.8, 1.3, m), rng.uniform(0.08, 0.15, m), rng.uniform(0.1, 0.16, m)
    low, high = np.zeros((m, 5, 3)), np.zeros((m, 5, 3))
    low[:, 0, :2], high[:, 0, :2] = -half, half
    low[:, 0, 2], high[:, 0, 2] = height, height + plate
    for part, corner in enumerate([(-1, -1), (-1, 1), (1, -1), (1, 1)], start=1):
        middle = half * corner - leg[:, None] * corner
        low[:, part, :2], high[:, part, :2] = middle - leg[:, None], middle + leg[:, None]
        high[:, part, 2] = height
    return _boxes(low, high)


def _stairs(rng: np.random.Generator, m: int) -> Mesh:
    """Three or four steps up; solid below. With three, the fourth has no depth."""
    steps = 4
    depth = np.ones((m, steps)) * rng.uniform(0.4, 0.6, (m, 1))
    depth[:, -1] *= rng.random(m) < 0.5
    rise = rng.uniform(0.35, 0.55, m)
    x = np.concatenate([np.zeros((m, 1)), np.cumsum(depth, 1)], 1)
    z = rise[:, None] * np.arange(steps + 1)
    z[:, -1] = np.where(depth[:, -1] > 0, z[:, -1], z[:, -2])
    corners = [(x[:, 0], z[:, 0])]
    for step in range(steps):
        corners += [(x[:, step], z[:, step + 1]), (x[:, step + 1], z[:, step + 1])]
    corners += [(x[:, step], z[:, 0]) for step in range(steps, 0, -1)]
    outline = np.array(corners).transpose(2, 0, 1)
    # Corners: 0 the start; 2s+1, 2s+2 the front and back edge of step s; then the floor from right to left.
    floor = [0, *range(len(corners) - 1, 2 * steps, -1)]
    caps = _quads(*((floor[s], 2 * s + 1, 2 * s + 2, floor[s + 1]) for s in range(steps)))
    return _extrude(outline, caps, rng.uniform(0.8, 1.6, m))


_MAKERS: dict[str, Callable[[np.random.Generator, int], Mesh]] = {
    "sphere": _sphere,
    "ellipsoid": _ellipsoid,
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "pyramid": _pyramid,
    "tetrahedron": _tetrahedron,
    "prism": _prism,
    "capsule": _capsule,
    "pipe": _pipe,
    "helix": _helix,
    "l_shape": _l_shape,
    "cross": _cross,
    "table": _table,
    "stairs": _stairs,
}
#: The names of the classes; a label is an index into it.
SHAPES = tuple(_MAKERS)
#: The seed of the clouds that accuracies are measured on; training never uses it.
HELD_OUT_SEED = 2**31 + 1


def sample_surface(mesh: Mesh, points: int, rng: np.random.Generator) -> Array:
    """`[M, points, 3]`, uniform over the area of each of the M surfaces."""
    vertices, faces = mesh
    a, b, c = (vertices[:, faces[:, i]] for i in range(3))
    area = np.cumsum(np.linalg.norm(np.cross(b - a, c - a), axis=2), axis=1)
    solids = np.arange(len(vertices))[:, None]
    # One search for all: the i-th solid's running areas are shifted into [i, i + 1].
    running = (area / area[:, -1:] + solids).reshape(-1)
    drawn = rng.random((len(vertices), points)) + solids
    face = np.searchsorted(running, drawn.reshape(-1), side="right").reshape(drawn.shape) - solids * len(faces)
    face = np.minimum(face, len(faces) - 1)
    root, along = np.sqrt(rng.random((*face.shape, 1))), rng.random((*face.shape, 1))
    a, b, c = a[solids, face], b[solids, face], c[solids, face]
    return (1 - root) * a + root * ((1 - along) * b + along * c)


def _turns(rng: np.random.Generator, m: int) -> Array:
    """Rotations `[M, 3, 3]`: any angle about z, then a tilt of some 10 degrees about a level axis."""
    yaw, tilt, axis = (
        rng.uniform(0, 2 * np.pi, m),
        rng.normal(0, np.deg2rad(10), m),
        rng.uniform(0, 2 * np.pi, m),
    )

    def about_z(angle: Array) -> Array:
        c, s, o, i = np.cos(angle), np.sin(angle), np.zeros(m), np.ones(m)
        return np.stack([c, -s, o, s, c, o, o, o, i], 1).reshape(m, 3, 3)

    c, s, o, i = np.cos(tilt), np.sin(tilt), np.zeros(m), np.ones(m)
    about_x = np.stack([i, o, o, o, c, -s, o, s, c], 1).reshape(m, 3, 3)
    return about_z(axis) @ about_x @ about_z(yaw - axis)


def normalise(points: Array) -> Array:
    """Clouds `[M, N, 3]` moved to their mean and scaled to a largest distance of 1 (appendix A)."""
    points = points - points.mean(axis=1, keepdims=True)
    largest = np.linalg.norm(points, axis=2).max(axis=1)
    return points / np.maximum(largest, 1e-12)[:, None, None]


def make_clouds(count: int, num_points: int, seed: int, classes: int = len(SHAPES)) -> tuple[Array, Array]:
    """`count` clouds of `num_points` points of the first `classes` of SHAPES, as many of each, shuffled.

    Scale: +-10 % per axis; rotation: about z at will and a tilt of some 10 degrees; noise: Gaussian, its
    standard deviation uniform in [0, 0.02] of the cloud's radius.
    Returns (points float32 [count, num_points, 3] in the unit sphere, labels int64 [count]).
    Raises ValueError on a size below 1 or more classes than there are shapes.
    """
    if count < 1 or num_points < 1:
        raise ValueError(f"cannot make {count} clouds of {num_points} points; both must be at least 1")
    if not 1 <= classes <= len(SHAPES):
        raise ValueError(f"classes is {classes}; there are {len(SHAPES)} shapes")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes).astype(np.int64)
    clouds = np.empty((count, num_points, 3), np.float32)
    for label, name in enumerate(SHAPES[:classes]):
        of_class = np.flatnonzero(labels == label)
        for start in range(0, len(of_class), _CHUNK):
            where = of_class[start : start + _CHUNK]
            m = len(where)
            points = sample_surface(_MAKERS[name](rng, m), num_points, rng)
            points = points * rng.uniform(0.9, 1.1, (m, 1, 3)) @ _turns(rng, m).transpose(0, 2, 1)
            points = normalise(points)
            points = points + rng.normal(size=points.shape) * rng.uniform(0, 0.02, (m, 1, 1))
            clouds[where] = normalise(points)
    return clouds, labels
