"""The targets, one row each: what a file is, and what its runtime can hold. Light to import: `--help` reads it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """`format`: "tflite" or "onnx". `bits`: signs become bits. `codes`: quantisers become 8-bit integers.

    `graphs`: sums over edges, and open numbers of nodes and edges. `own`: --kernels bgnn. `sums`: an 8-bit layer gives
    its 32-bit sums as fast as its codes.
    """

    name: str
    format: str
    bits: bool = False
    codes: bool = False
    graphs: bool = False
    own: bool = True
    sums: bool = True

    @property
    def suffix(self) -> str:
        """The file's ending."""
        return f".{self.format}"


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("lce-arm64", "tflite", bits=True),
        Target("tflite-arm64", "tflite", own=False),
        Target("tflite-int8-arm64", "tflite", codes=True, own=False, sums=False),
        Target("onnx-x86", "onnx", graphs=True),
        Target("onnx-int8-x86", "onnx", bits=True, codes=True, graphs=True),
        Target("onnx-int8-arm64", "onnx", bits=True, codes=True, graphs=True),
    )
}
STAGES = ("traced", "semantic", "integer", "target")
KERNELS = ("stock", "bgnn")
