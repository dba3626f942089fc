"""The valid files that files.py changes: each operator alone, and small networks of clouds and graphs.

    python seeds.py FOLDER [--operators]      writes them, and the arrays to feed them, as FOLDER/*.npz

Converting the networks needs PyTorch, and fuzzing under a sanitizer is better off without it: hence two steps.
With --operators there are no networks.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import all_cases

NODES, K, CLASSES = 24, 4, 5
SMALL = {"channels": (32, 32, 40, 64), "embedding": 64, "mlp": (32, 32)}
NETWORKS = {
    "BF2-bgnn": ("bf2", {"knn": "hamming"}, "bgnn"),
    "BF1-bgnn": ("bf1", {"knn": "hamming"}, "bgnn"),
    "RF-bgnn": ("rf", {}, "bgnn"),
    "BF2-lce": ("bf2", {"knn": "hamming"}, "stock"),
    "RF-lce": ("rf", {}, "stock"),
}


@dataclass
class Seed:
    """A file that runs, with the arrays that it runs on."""

    name: str
    data: bytes
    arrays: list[np.ndarray]


def networks() -> list[Seed]:
    """The paper's networks in small, converted, with random weights and BatchNorms that have seen a cloud."""
    import torch

    from bgnn.converter.api import convert
    from bgnn.models.checkpoint import build_model

    seeds = []
    for name, (architecture, settings, kernels) in NETWORKS.items():
        torch.manual_seed(0)
        model = build_model(architecture, classes=CLASSES, num_points=NODES, k=K, **settings, **SMALL)
        clouds = torch.randn(2, NODES, 3)
        with torch.no_grad():
            model.train()(clouds)
        done = convert(model.eval(), (clouds,), target="lce-arm64", optimize=1, kernels=kernels, name=name)
        seeds.append(Seed(name, done.model_bytes, [clouds.numpy()]))
    return [*seeds, *graph_networks()]


def graph_networks() -> list[Seed]:
    """Networks on a graph of open edges, at the sizes that the file has room for: 8 bits, float and binary."""
    import torch
    from networks import FEATURES, Attention, Binary, degree_quant
    from torch import nn

    from bgnn.converter.api import convert
    from bgnn.runtime_bench.runtime.padded import padding_of

    torch.manual_seed(0)
    graph = {"x": torch.randn(NODES - 4, FEATURES), "edge_index": torch.randint(0, NODES - 4, (2, 50))}
    given = list(graph.values())
    made: list[tuple[str, nn.Module, str]] = [
        ("attention", Attention(CLASSES), "tflite-arm64"),
        ("binary", Binary(CLASSES), "lce-arm64"),
        *(
            (f"{conv}-8", degree_quant(conv, 8, "citation", CLASSES, given), "tflite-int8-arm64")
            for conv in ("gcn", "gat", "gin", "sage")
        ),
    ]
    seeds = []
    for name, model, target in made:
        most = [f"nodes={NODES}", "edges=64"]
        done = convert(
            model.eval(), tuple(given), target=target, kernels="bgnn", name=name, fixed_sizes=most, verify=False
        )
        assert done.model_bytes is not None
        padding = padding_of(done.model_bytes)
        assert padding is not None
        arrays = padding.check({key: value.numpy() for key, value in graph.items()})
        seeds.append(Seed(name, done.model_bytes, list(padding.fill(arrays))))
    return seeds


def operators() -> list[Seed]:
    return [Seed(name, case.file(), case.arrays()) for name, case in all_cases().items()]


def save(seed: Seed, folder: Path) -> None:
    arrays = {f"array{i}": array for i, array in enumerate(seed.arrays)}
    np.savez(folder / f"{seed.name}.npz", model=np.frombuffer(seed.data, np.uint8), **arrays)


def load(folder: Path) -> list[Seed]:
    """The folder's seeds, in the order of their names."""
    seeds = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as stored:
            arrays = [stored[f"array{i}"] for i in range(len(stored.files) - 1)]
            seeds.append(Seed(path.stem, stored["model"].tobytes(), arrays))
    return seeds


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for seed in operators() + ([] if "--operators" in sys.argv else networks()):
        save(seed, folder)
