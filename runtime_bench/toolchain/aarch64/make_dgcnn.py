"""make_dgcnn.py FOLDER: converts small DGCNNs, and stores the files, an input and x86's outputs by our delegate.

`tests/runtime_bench/toolchain/aarch64` runs the same files on aarch64: the outputs must have the same bits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgnn.converter.api import convert
from bgnn.models.checkpoint import build_model
from bgnn.runtime_bench.runtime.delegate import load_interpreter
from bgnn.runtime_bench.runtime.tflite_model import run

POINTS, K, BATCH, CLASSES = 100, 8, 2, 10
MODELS = {"bf2": {"knn": "hamming"}, "bf1": {"knn": "hamming"}, "rf": {}}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for arch, settings in MODELS.items():
        torch.manual_seed(0)
        model = build_model(arch, classes=CLASSES, num_points=POINTS, k=K, **settings)
        clouds = torch.rand(4, BATCH, POINTS, 3) * 2 - 1
        with torch.no_grad():
            for cloud in clouds:  # BatchNorm statistics, without which nearly all signs agree
                model.train()(cloud)
            for kernels in ("stock", "bgnn"):
                found = convert(model.eval(), (clouds[0],), target="lce-arm64", kernels=kernels, verify=False)
                assert found.model_bytes is not None
                store(folder / f"dgcnn_{arch}_{kernels}.npz", found.model_bytes, clouds[1].numpy())


def store(path: Path, file: bytes, points: np.ndarray) -> None:
    """Write the file, its input, and x86's outputs with two kinds of float kernels."""
    outputs: dict[str, Any] = {}
    for float_kernels in ("reference", "xnnpack"):
        interpreter = load_interpreter(file, float_kernels=float_kernels)
        outputs[float_kernels] = next(iter(run(interpreter, {"arr_0": points}).values()))
    np.savez(path, model=np.frombuffer(file, np.uint8), input=points, **outputs)
    print(f"{path.stem}: {len(file)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
