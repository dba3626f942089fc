"""Accuracy of a trained network and of its converted file on the same data, prediction by prediction.

    python -m bgnn.models.compare out/train/NAME/seed0/model.pt --target lce-arm64 --data DIR            (point clouds)
    python -m bgnn.models.compare out/train/NAME/seed0/model.pt --target onnx-int8-x86 --data ROOT --nodes cora

Prints a line of a Markdown table: the accuracy in PyTorch, that of the file on its runtime, and how many predictions
differ. Point clouds are taken one at a time, as the file does; a graph whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgnn.converter.api import convert
from bgnn.converter.errors import BgnnError
from bgnn.converter.targets import TARGETS
from bgnn.models.checkpoint import load_checkpoint, load_example
from bgnn.models.clouds import load_clouds
from bgnn.models.node_data import NODE_DATASETS, load_nodes
from bgnn.models.nodes import score
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_runner import open_file


def runner(file: bytes, names: list[str]) -> Callable[..., np.ndarray]:
    """Runs a TFLite or ONNX file on inputs in the order of `names`."""
    if file[4:8] == b"TFL3":
        opened = open_file(file, 1)
        return lambda *inputs: opened.run(*inputs)[0]
    model = OnnxModel(file, 1)
    return lambda *inputs: next(iter(model.run(**dict(zip(names, inputs, strict=True))).values()))


def compare_clouds(model: Any, points: np.ndarray, labels: np.ndarray, target: str) -> tuple[float, float, int]:
    """Accuracy of the model, of its file, and how many predictions differ, on clouds `[M, N, 3]`."""
    done = convert(model, (torch.from_numpy(points[:1]),), target=target)
    assert done.model_bytes is not None
    run = runner(done.model_bytes, ["points"])
    with torch.no_grad():
        own = np.array([int(model(torch.from_numpy(cloud[None])).argmax()) for cloud in points])
    file = np.array([int(run(cloud[None]).argmax()) for cloud in points])
    return float((own == labels).mean()), float((file == labels).mean()), int((own != file).sum())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bgnn.models.compare", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--target", choices=tuple(TARGETS), required=True)
    parser.add_argument("--data", type=Path, help="as of bgnn.models.train")
    parser.add_argument("--nodes", choices=NODE_DATASETS, help="of a node network: the data set")
    options = parser.parse_args(arguments)
    try:
        model: Any = load_checkpoint(options.model)
        if ("num_points" in model.config) is (options.nodes is not None):
            given = "without --nodes" if options.nodes is None else "with --nodes, which is of node networks"
            raise ValueError(f"{options.model} is a {model.architecture} network {given}")
        if options.nodes is None:
            data = load_clouds(options.data, model.config["num_points"])
            result = compare_clouds(model, *data.test, options.target)
            count = len(data.test[0])
        else:
            graph = load_nodes(options.nodes, options.data or Path("data"))
            done = convert(model, tuple(load_example(options.model).values()), target=options.target)
            assert done.model_bytes is not None
            run = runner(done.model_bytes, ["x", "edge_index"])
            with torch.no_grad():
                own = model(graph.x, graph.edge_index)
            file = torch.from_numpy(np.array(run(graph.x.numpy(), graph.edge_index.numpy())))
            differ = int((own.argmax(1) != file.argmax(1))[graph.test].sum())
            result = score(own, graph, graph.test), score(file, graph, graph.test), differ
            count = len(graph.test)
    except (ValueError, OSError, ImportError, BgnnError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    pytorch, converted, differing = result
    print(
        f"| {options.model} | {options.target} | {100 * pytorch:.2f} | {100 * converted:.2f} | {differing} of {count} |"
    )


if __name__ == "__main__":
    main()
