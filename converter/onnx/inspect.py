"""What stands in an ONNX file."""

from __future__ import annotations

from collections import Counter

import onnx

from bgnn.converter.onnx.builder import CONTRIB


def operators(data: bytes) -> dict[str, int]:
    """How many of each operator a file has, the bodies of Scans included, most first; others' with their domain."""
    found: Counter[str] = Counter()

    def count(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            found[node.op_type if node.domain in ("", CONTRIB) else f"{node.domain}.{node.op_type}"] += 1
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    count(attribute.g)

    count(onnx.load_from_string(data).graph)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
