"""Which codes are sums', and which of their ends saturation leads to."""

from __future__ import annotations

import torch
from onnx_graphs import open_graph

from bgnn.passes.code_ranges import of_sums

bgnn = torch.ops.bgnn


def test_sums_and_what_is_computed_of_them_up_to_a_dense_layer():
    def layer(m, x, edges):
        codes = bgnn.quantize(x, 0.1, 128, 0, 255)  # no sum
        gathered = codes.index_select(0, edges[0])
        total = bgnn.q_segment_sum(gathered, 0.1, 128, edges[1], x.shape[0], 0.3, 120, 0, 255)
        added = bgnn.q_add(total, 0.3, 120, codes, 0.1, 128, 0.3, 120, 120, 255)  # a ReLU's: its lowest code is 0
        dense = bgnn.q_linear_float(added, 0.3, 120, m.weight, m.scale, 0, None)
        return bgnn.quantize(dense, 0.1, 100, 0, 255)

    gm = open_graph(
        layer, torch.randn(12, 8), torch.zeros(2, 30, dtype=torch.int64), weight=torch.ones(8, 8, dtype=torch.int8),
        scale=torch.ones(8),
    )  # fmt: skip
    assert [(str(node.target), ends) for node, _, ends in of_sums(gm.graph)] == [
        ("bgnn.q_segment_sum.default", [255, 0]),
        ("bgnn.q_add.default", [255]),
    ]


def test_a_fused_table_that_does_not_tell_an_end_apart():
    def layer(m, x, edges):
        args = (x, 0.1, 0, edges, None, 1.0, 0, 0.0, 0, 0, 255, 0.3, 9, 0, 255, x.shape[0])
        return bgnn.q_aggregate(*args, m.relu), bgnn.q_aggregate(*args, m.flat)

    relu = torch.arange(256).clamp(min=9).to(torch.uint8)[None]
    flat = torch.arange(256).clamp(9, 250).to(torch.uint8)[None]
    inputs = torch.zeros(12, 8, dtype=torch.uint8), torch.zeros(2, 30, dtype=torch.int64)
    gm = open_graph(layer, *inputs, outputs=2, relu=relu, flat=flat)
    assert [ends for _, _, ends in of_sums(gm.graph)] == [[255]]
