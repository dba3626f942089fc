"""The valid files that fuzz_onnx.py changes: converted networks, and those of our operators that none of them uses.

    python onnx_seeds.py FOLDER     writes them, and the arrays to feed them, as FOLDER/*.npz

Converting needs PyTorch, and fuzzing under a sanitizer is better off without it: hence two steps.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "delegate" / "fuzz")]

import onnx_files  # noqa: E402
from operands import CASES  # noqa: E402

NODES, CLASSES, K = 20, 3, 4
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
    from networks import FEATURES, Attention, degree_quant
    from torch import nn

    from bgnn.converter.api import convert
    from bgnn.models.checkpoint import build_model

    torch.manual_seed(0)
    x, edges = torch.randn(NODES, FEATURES), torch.randint(0, NODES, (2, 60))
    graph, batch = {"x": x, "edge_index": edges}, {"batch": torch.arange(NODES) // 7}
    made: list[tuple[str, nn.Module, str, str, dict[str, torch.Tensor]]] = []
    for bits in (8, 32):
        for conv in ("gcn", "gat", "gin", "sage"):
            form = "benchmark" if conv == "gin" else "citation"
            given = graph | (batch if form == "benchmark" else {})
            model = degree_quant(conv, bits, form, CLASSES, list(given.values()))
            made.append((f"{conv}-{bits}", model, "onnx-int8-x86" if bits == 8 else "onnx-x86", "bgnn", given))
    attention = Attention(CLASSES)
    made.append(("attention", attention, "onnx-x86", "bgnn", graph))
    made.append(("attention-tables", attention, "onnx-x86", "stock", graph))
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


def operators(besides: list[Seed]) -> list[Seed]:
    """Each of our operators that no file of `besides` has, alone in one; its operands are inputs of any size."""
    there = {node.op_type for seed in besides for node in onnx.load_from_string(seed.data).graph.node}
    seeds = {}
    for op, attributes, operands in CASES:
        if op in there:
            continue
        arrays = operands(np.random.default_rng(0))
        model = onnx.load_from_string(onnx_files.model(op, attributes, set(arrays)))
        inputs = [
            {"name": key, "dtype": str(array.dtype), "shape": [f"{key}{axis}" for axis in range(array.ndim)],
             "indices": []}
            for key, array in arrays.items()
        ]  # fmt: skip
        model.metadata_props.add(key="bgnn.inputs", value=json.dumps(inputs))
        seeds[op] = Seed(op, model.SerializeToString(), arrays)
    return list(seeds.values())


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
    converted = networks()
    for seed in converted + operators(converted):
        save(seed, folder)
