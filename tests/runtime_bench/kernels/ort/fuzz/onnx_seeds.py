"""The valid files that fuzz_onnx.py changes: converted networks that use all of our operators for ONNX Runtime.

    python onnx_seeds.py FOLDER     writes them, and the arrays to feed them, as FOLDER/*.npz

Converting needs PyTorch, and fuzzing under a sanitizer is better off without it: hence two steps.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NODES, FEATURES, CLASSES, K = 20, 6, 3, 4
SMALL = {"channels": (32, 32, 40, 64), "embedding": 64, "mlp": (32, 32)}


@dataclass
class Seed:
    """A file that runs, with the arrays that it runs on, by name."""

    name: str
    data: bytes
    arrays: dict[str, np.ndarray]


def networks() -> list[Seed]:
    """Degree-Quant networks in 8 bits and float, PyG's layers, the paper's clouds; random weights."""
    import torch
    from torch import nn
    from torch_geometric.nn import GATConv, SAGEConv

    from bgnn.converter.api import convert
    from bgnn.models.checkpoint import build_model

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = GATConv(FEATURES, 4, heads=2), SAGEConv(8, CLASSES, aggr="max")

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x, edge_index).relu(), edge_index)

    torch.manual_seed(0)
    x, edges = torch.randn(NODES, FEATURES), torch.randint(0, NODES, (2, 60))
    graph, batch = {"x": x, "edge_index": edges}, {"batch": torch.arange(NODES) // 7}
    made: list[tuple[str, nn.Module, str, str, dict[str, torch.Tensor]]] = []
    for bits in (8, 32):
        for conv in ("gcn", "gat", "gin", "sage"):
            form = "benchmark" if conv == "gin" else "citation"
            settings = {"features": FEATURES, "classes": CLASSES, "hidden": 4, "heads": 2, "signed_input": True}
            model = build_model("dq", form=form, conv=conv, bits=bits, **settings)
            given = graph | (batch if form == "benchmark" else {})
            model.train()(*given.values())  # ranges and BatchNorms that have seen a graph
            made.append((f"{conv}-{bits}", model, "onnx-int8-x86" if bits == 8 else "onnx-x86", "bgnn", given))
    made.append(("attention", Attention(), "onnx-x86", "bgnn", graph))
    made.append(("attention-tables", Attention(), "onnx-x86", "stock", graph))
    clouds = {"points": torch.randn(2, 24, 3)}
    for architecture in ("bf1", "bf2", "rf"):
        cloud_settings = {} if architecture == "rf" else {"knn": "hamming"}
        model = build_model(architecture, classes=CLASSES, num_points=24, k=K, **cloud_settings, **SMALL)
        model.train()(*clouds.values())
        made.append((architecture, model, "onnx-x86", "bgnn", clouds))
    seeds = []
    for name, model, target, kernels, given in made:
        done = convert(model.eval(), tuple(given.values()), target=target, kernels=kernels, name=name, verify=False)
        assert done.model_bytes is not None
        seeds.append(Seed(name, done.model_bytes, {key: value.numpy() for key, value in given.items()}))
    return seeds


def save(seed: Seed, folder: Path) -> None:
    arrays = {f"fed:{name}": array for name, array in seed.arrays.items()}
    np.savez(folder / f"{seed.name}.npz", model=np.frombuffer(seed.data, np.uint8), **arrays)


def load(folder: Path) -> list[Seed]:
    """The folder's seeds, in the order of their names."""
    seeds = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as stored:
            arrays = {key[4:]: stored[key] for key in stored.files if key.startswith("fed:")}
            seeds.append(Seed(path.stem, stored["model"].tobytes(), arrays))
    return seeds


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for seed in networks():
        save(seed, folder)
