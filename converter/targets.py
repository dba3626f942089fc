"""The targets, one row each: what a file is, and what its runtime can hold. Light to import: `--help` reads it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """`format`: "tflite" or "onnx". `bits`: signs become bits. `codes`: quantisers become 8-bit integers.

    `graphs`: sums over edges, and open numbers of nodes and edges.
    """

    name: str
    format: str
    bits: bool = False
    codes: bool = False
    graphs: bool = False

    @property
    def suffix(self) -> str:
        """The file's ending."""
        return f".{self.format}"


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("lce-arm64", "tflite", bits=True),
        Target("tflite-arm64", "tflite"),
        Target("onnx-x86", "onnx", graphs=True),
        Target("onnx-int8-x86", "onnx", bits=True, codes=True, graphs=True),
    )
}
STAGES = ("traced", "semantic", "integer", "target")
KERNELS = ("stock", "bgnn")
