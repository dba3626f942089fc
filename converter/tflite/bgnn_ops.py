"""The project's own operators as TFLite custom operators, which its delegate runs (`--kernels bgnn`).

Inputs in the order of the dialect op's tensors; options are flexbuffer maps of integers, as LCE's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from bgnn.converter.tflite.builder import Value
from bgnn.converter.tflite.lce_ops import flexbuffer
from bgnn.converter.tflite.walk import FLOAT, INT, Walk


def _custom(
    walk: Walk, node: fx.Node, name: str, inputs: list[fx.Node], options: Mapping[str, int], dtype: Any
) -> Value:
    out = walk.result(walk.shape(node), dtype)
    walk.builder.custom(name, [walk.value(x) for x in inputs], [out], flexbuffer(options) if options else b"")
    return out


def hamming_knn(walk: Walk, node: fx.Node, x: fx.Node, channels: int, k: int) -> Value:
    """BgnnHammingKnn: packed [B, N, W] to int32 [B, N, k]."""
    return _custom(walk, node, "BgnnHammingKnn", [x], {"channels": channels, "k": k}, INT)


def real_knn(walk: Walk, node: fx.Node, x: fx.Node, k: int) -> Value:
    """BgnnKnn: float [B, N, C] to int32 [B, N, k]."""
    return _custom(walk, node, "BgnnKnn", [x], {"k": k}, INT)


def gather_max(walk: Walk, node: fx.Node, x: fx.Node, index: fx.Node) -> Value:
    """BgnnGatherMax: float [B, N, C] and int32 [B, M, k] to float [B, M, C]."""
    return _custom(walk, node, "BgnnGatherMax", [x, index], {}, FLOAT)


def xor_edge_conv(
    walk: Walk, node: fx.Node, x: fx.Node, index: fx.Node, weight: fx.Node, thresholds: fx.Node, channels: int
) -> Value:
    """BgnnXorEdgeConv: packed [B, N, W] and a neighbour table to packed [B, N, ceil(O/32)]."""
    return _custom(walk, node, "BgnnXorEdgeConv", [x, index, weight, thresholds], {"channels": channels}, INT)


def bin_edge_conv(walk: Walk, node: fx.Node, bits: fx.Node, *tensors_and_channels: Any) -> Value:
    """BgnnBinEdgeConv: node bits, float features, neighbours, edge scale and shift, weights, the factors, slopes."""
    *tensors, channels = tensors_and_channels
    return _custom(walk, node, "BgnnBinEdgeConv", [bits, *tensors], {"channels": channels}, FLOAT)


def edge_max(walk: Walk, node: fx.Node, *tensors: fx.Node) -> Value:
    """BgnnEdgeMax: float [B, N, C] of neighbours and of nodes, the table, the factors, to float [B, N, C]."""
    return _custom(walk, node, "BgnnEdgeMax", list(tensors), {}, FLOAT)


def dense_pool(
    walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, scale: fx.Node | None, channels: int
) -> Value:  # fmt: skip
    """BgnnDensePool: packed [B, N, W] to float [B, 4, O]; with a factor per point BgnnScaledPool."""
    if scale is None:
        return _custom(walk, node, "BgnnDensePool", [x, weight], {"channels": channels}, FLOAT)
    return _custom(walk, node, "BgnnScaledPool", [x, weight, scale], {"channels": channels}, FLOAT)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "bgnn.hamming_knn.default": hamming_knn,
    "bgnn.real_knn.default": real_knn,
    "bgnn.gather_max.default": gather_max,
    "bgnn.edge_max.default": edge_max,
    "bgnn.xor_edge_conv.default": xor_edge_conv,
    "bgnn.bin_edge_conv.default": bin_edge_conv,
    "bgnn.dense_pool.default": dense_pool,
}
