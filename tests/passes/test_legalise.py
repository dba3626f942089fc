"""What the emitter has no op for, in ops it has."""

from __future__ import annotations

import pytest
import torch
from graphs import apply, aten, bgnn, count, graph, randn

from bgnn.passes import legalise
from bgnn.passes.graph import PassResult


def legal(function, *inputs, tolerance: float = 0.0, **constants) -> tuple[object, PassResult]:  # type: ignore[no-untyped-def]
    gm = graph(function, *inputs, **constants)
    return gm, apply(legalise.run, gm, *inputs, tolerance=tolerance)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_a_product_and_a_sum(affine: bool) -> None:
    g, h = torch.tensor([-2.0, 0.0, 1.5]), randn(3)
    gm, result = legal(
        lambda m, x: bgnn.batch_norm(x, m.g if affine else None, m.h if affine else None, m.mu, m.va, 1e-3),
        randn(2, 4, 3),
        tolerance=1e-5,
        g=g,
        h=h,
        mu=randn(3, seed=1),
        va=randn(3, seed=2).abs() + 0.01,
    )
    assert result.rewrites == 1
    assert (count(gm, aten.mul), count(gm, aten.add), count(gm, bgnn.batch_norm)) == (1, 1, 0)


def test_a_sign_is_a_comparison_and_zero_is_plus() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-40, -1e-40, 3.0, -3.0, float("inf"), float("-inf")]])
    gm, result = legal(lambda m, x: bgnn.binarize(x), x)
    assert result.rewrites == 1
    assert (count(gm, aten.ge), count(gm, aten.where)) == (1, 1)


@pytest.mark.parametrize(
    "shapes", [((2, 5, 3), (2, 5, 3)), ((2, 5, 3), (2, 4, 3)), ((5, 3), (4, 3)), ((2, 2, 5, 3), (2, 2, 4, 3))]
)
def test_cdist_is_its_formula(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, y = (randn(*shape, seed=i) for i, shape in enumerate(shapes))
    gm, result = legal(lambda m, x, y: torch.cdist(x, y), x, y, tolerance=1e-5)
    assert result.rewrites == 1
    assert count(gm, aten.cdist) == 0


def test_the_distance_to_itself_is_not_nan() -> None:
    """`|x|^2 + |x|^2 - 2 x x` can round below zero: the root is taken of its positive part."""
    from graphs import outputs

    x = randn(1, 30, 3) * 1e3 + 1e5
    gm = graph(lambda m, x: torch.cdist(x, x), x)
    legalise.run(gm)
    assert bool(torch.isfinite(outputs(gm, x)[0]).all())


def test_other_ops_stay() -> None:
    _, result = legal(lambda m, x: (x.relu() + 1) @ x.transpose(1, 2), randn(2, 4, 3))
    assert result.rewrites == 0


@pytest.mark.parametrize(
    ("shape", "mode", "differences"),
    [
        ((2, 25, 3), "use_mm_for_euclid_dist_if_necessary", True),
        ((2, 26, 3), "use_mm_for_euclid_dist_if_necessary", False),
        ((40, 2), "donot_use_mm_for_euclid_dist", True),
        ((1, 9, 3), "use_mm_for_euclid_dist", False),
    ],
)
def test_equal_rows_are_0_apart_where_they_are_for_pytorch(
    shape: tuple[int, ...], mode: str, differences: bool
) -> None:
    """`d > 0` leaves out a point itself: then the formula's rounding must not make a distance of it."""
    x = randn(*shape) + 7
    gm, _ = legal(lambda m, x: torch.cdist(x, x, compute_mode=mode), x, tolerance=2e-3)
    assert count(gm, aten.matmul) == (not differences)
    from graphs import outputs

    if differences:
        assert not outputs(gm, x)[0].diagonal(dim1=-2, dim2=-1).any()
