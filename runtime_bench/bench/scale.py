"""`python -m bgnn.runtime_bench.bench.scale FOLDER`: all nodes of a large graph, our chains beside PyG layer by layer.

Each runs in a process of its own: wall time, processor time, peak memory (resident, with the pages of mapped files).
PyG goes over blocks of nodes with all their in-edges, as its `inference()` does with a NeighborLoader; here the edges
are sorted once and cut by hand, since that loader needs pyg-lib. The figures are in docs/scale.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bgnn.runtime_bench.graph.synthetic import products_like

FEATURES, HIDDEN, CLASSES = 100, 128, 47  # those of ogbn-products, and what its examples take
BLOCK = 16_384  # nodes that PyG computes at a time


class SAGE(nn.Module):
    """GraphSAGE of PyG's layers."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import SAGEConv

        widths = [FEATURES, HIDDEN, HIDDEN, CLASSES]
        self.convs = nn.ModuleList([SAGEConv(a, b) for a, b in itertools.pairwise(widths)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for number, conv in enumerate(self.convs):
            x = conv(x, edge_index)
            x = x.relu() if number + 1 < len(self.convs) else x
        return x


def networks() -> dict[str, tuple[nn.Module, bool]]:
    """By name: a network, and whether it is calibrated."""
    from bgnn.models.dq.networks import build
    from bgnn.models.sage import BinSAGE

    torch.manual_seed(0)
    gcn = build({"conv": "gcn", "features": FEATURES, "hidden": HIDDEN, "classes": CLASSES, "signed_input": True})
    with torch.no_grad():
        gcn.train()(*_example())
    binary = BinSAGE(features=FEATURES, classes=CLASSES, hidden=HIDDEN, layers=3)
    return {
        "sage-int8": (SAGE(), True),
        "sage-float": (SAGE(), False),
        "binsage": (binary, False),
        "gcn-dq": (gcn, False),
    }


def _example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2000, FEATURES, generator=generator), torch.from_numpy(products_like(2000, 50_000, 3))


def convert_all(folder: Path) -> None:
    """The chains, each in a folder of its name."""
    from bgnn.converter.api import convert
    from bgnn.converter.calibrate import Calibration

    x, edges = _example()
    for name, (model, calibrated) in networks().items():
        target = "onnx-x86" if name == "sage-float" else "onnx-int8-x86"
        calibration = Calibration(({"x": x, "edge_index": edges},)) if calibrated else None
        done = convert(
            model.eval(), (x, edges), target=target, kernels="bgnn", calibration=calibration, split_layers=True
        )
        (folder / name).mkdir(exist_ok=True)
        for file, data in done.layers.items():
            (folder / name / file).write_bytes(data)


def layer_by_layer(folder: Path) -> None:
    """The float network by PyG's layers."""
    torch.manual_seed(0)
    model, x = SAGE().eval(), torch.from_numpy(np.load(folder / "x.npy"))
    edges = torch.from_numpy(np.load(folder / "edges.npy"))
    sources = edges[0][edges[1].argsort(stable=True)]
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(edges[1], minlength=len(x)).cumsum(0)])
    del edges
    with torch.no_grad():
        for number, conv in enumerate(model.convs):
            made = []
            for start in range(0, len(x), BLOCK):
                stop = min(len(x), start + BLOCK)
                source = sources[bounds[start] : bounds[stop]]
                target = torch.repeat_interleave(torch.arange(stop - start), bounds[start : stop + 1].diff())
                nodes, places = torch.unique(source, return_inverse=True)
                y = conv((x[nodes], x[start:stop]), torch.stack([places, target]))
                made.append(y.relu() if number + 1 < len(model.convs) else y)
            x = torch.cat(made)


def measured(command: Sequence[str]) -> tuple[float, float, float]:
    """(wall seconds, processor seconds, peak MB) of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    peak, about = 0.0, Path(f"/proc/{process.pid}/status")
    # Not what wait4 says of the peak: that counts this process's memory, before the new one has its own.
    while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        high = re.search(r"VmHWM:\s+(\d+) kB", about.read_text())
        peak = int(high[1]) / 1024 if high else peak
        time.sleep(0.05)
    _, status, used = found
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime, peak


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="scale", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=25_000_000)
    parser.add_argument("--memory", default="600M")
    parser.add_argument("--pyg", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    if options.pyg:
        layer_by_layer(folder)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "edges.npy", products_like(options.nodes, options.edges))
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((options.nodes, FEATURES), np.float32))
    convert_all(folder)
    commands: dict[str, list[Any]] = {}
    for name in networks():
        graph = ["--edges", folder / "edges.npy", "--features", folder / "x.npy", "-o", folder / f"{name}.npy"]
        commands[name] = ["bgnn.runtime_bench.graph.cli", "run", folder / name, *graph, "--memory", options.memory]
    commands["PyG"] = ["bgnn.runtime_bench.bench.scale", folder, "--pyg"]
    for name, command in commands.items():
        wall, processor, peak = measured([sys.executable, "-W", "ignore", "-m", *map(str, command)])
        print(f"{name}: {wall:.1f} s, {processor:.1f} s of a processor, peak {peak:,.0f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
