"""Graphs with the degrees of a network of products bought together (OGB products): a few hubs, many nodes of few."""

from __future__ import annotations

import numpy as np

SPREAD = 1.3  # of the logarithm of a degree: about that of ogbn-products
LARGEST = 17_481  # its largest degree


def products_like(nodes: int, edges: int, seed: int = 0) -> np.ndarray:
    """Edges int64 [2, edges] in no order: both ends are drawn by log-normal degrees, which are alike for both."""
    random = np.random.default_rng(seed)
    wanted = np.minimum(random.lognormal(0, SPREAD, nodes), LARGEST * nodes / max(edges, 1))
    bounds = np.cumsum(wanted)
    found = np.empty((2, edges), np.int64)
    for row in found:
        row[:] = np.searchsorted(bounds, random.random(edges) * bounds[-1])
    return np.minimum(found, nodes - 1, out=found)
