"""The targets, one row each: what a file is, and what its runtime can hold. Light to import: `--help` reads it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """`format`: "tflite" or "onnx". `about`: in a few words, for --help. `bits`: signs become bits. `codes`: quantisers
    become 8-bit integers. `open`: sizes that are not known when the file is made; without, a file takes graphs up to a
    size. `sums`: an 8-bit layer gives its 32-bit sums as fast as its codes.
    """

    name: str
    format: str
    about: str
    bits: bool = False
    codes: bool = False
    open: bool = False
    sums: bool = True

    @property
    def suffix(self) -> str:
        """The file's ending."""
        return f".{self.format}"


INTEGER_ONNX = "integer ONNX, for models with quantisers (or --calibrate) and for binary ones"
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "lce-arm64",
            "tflite",
            "TFLite with Larq Compute Engine's ops, for binary models",
            bits=True,
            codes=True,
            sums=False,
        ),
        Target("tflite-arm64", "tflite", "TFLite's own ops, for float models"),
        Target(
            "tflite-int8-arm64",
            "tflite",
            "TFLite's own 8-bit ops, for models with quantisers or --calibrate",
            codes=True,
            sums=False,
        ),
        Target("onnx-x86", "onnx", "float ONNX for ONNX Runtime", open=True),
        Target("onnx-int8-x86", "onnx", INTEGER_ONNX, bits=True, codes=True, open=True),
        Target("onnx-int8-arm64", "onnx", "the same, checked on arm64", bits=True, codes=True, open=True),
    )
}


def names_with(what: str) -> list[str]:
    """The targets that have `what`, a field of their rows: "codes", "open"."""
    return [name for name, row in TARGETS.items() if getattr(row, what)]


STAGES = ("traced", "semantic", "integer", "target")
KERNELS = ("stock", "bgnn")
