"""`python -m bgnn.runtime_bench.bench.scale FOLDER`: all nodes of a large graph, our chains beside PyG layer by layer.

Each runs in a process of its own: wall time, processor time, peak memory (resident, with the pages of mapped files).
PyG is its `GraphSAGE.inference()` with its NeighborLoader, whose sampler is ours (`AllInEdges`) where neither pyg-lib
nor torch-sparse is installed, which PyG's own needs. The figures are in docs/scale.md.
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
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.sampler import BaseSampler, NodeSamplerInput, SamplerOutput
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

from bgnn.runtime_bench.graph.synthetic import products_like

FEATURES, HIDDEN, CLASSES = 100, 128, 47  # those of ogbn-products, and what its examples take
BLOCK = 16_384  # nodes that PyG computes at a time


class GCN(nn.Module):
    """Three of Degree-Quant's GCN layers."""

    def __init__(self) -> None:
        super().__init__()
        from bgnn.models.dq.layers import QuantizedGCN
        from bgnn.models.dq.quantizer import Scheme

        widths = itertools.pairwise([FEATURES, HIDDEN, HIDDEN, CLASSES])
        self.convs = nn.ModuleList([QuantizedGCN(a, b, Scheme(), signed=not n) for n, (a, b) in enumerate(widths)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs[:-1]:
            x = conv(x, edge_index).relu()
        return self.convs[-1](x, edge_index)


def sage() -> GraphSAGE:
    """PyG's GraphSAGE."""
    torch.manual_seed(0)
    return GraphSAGE(FEATURES, HIDDEN, num_layers=3, out_channels=CLASSES).eval()


def networks() -> dict[str, tuple[nn.Module, bool]]:
    """By name: a network, and whether it is calibrated."""
    from bgnn.models.sage import BinSAGE

    torch.manual_seed(0)
    gcn = GCN()
    with torch.no_grad():
        gcn.train()(*_example())
    binary = BinSAGE(features=FEATURES, classes=CLASSES, hidden=HIDDEN, layers=3)
    return {
        "sage-int8": (sage(), True),
        "sage-float": (sage(), False),
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


class AllInEdges(BaseSampler):
    """What `num_neighbors=[-1]` samples: the seeds first, then the other sources of all their in-edges."""

    num_neighbors = (-1,)

    def __init__(self, edges: Tensor, nodes: int) -> None:
        self.sources = edges[0][edges[1].argsort(stable=True)]
        counts = torch.bincount(edges[1], minlength=nodes)
        self.bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.place = torch.full([nodes], -1)

    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: Any) -> SamplerOutput:
        """The seeds' in-edges, numbered anew."""
        seeds = index.node
        first, counts = self.bounds[seeds], self.bounds[seeds + 1] - self.bounds[seeds]
        at = torch.repeat_interleave(first - counts.cumsum(0) + counts, counts)
        source = self.sources[at.add_(torch.arange(len(at)))]
        self.place[seeds] = torch.arange(len(seeds))
        others = source[self.place[source] < 0].unique()
        self.place[others] = torch.arange(len(others)) + len(seeds)
        row, node = self.place[source], torch.cat([seeds, others])
        self.place[node] = -1
        col = torch.repeat_interleave(torch.arange(len(seeds)), counts)
        return SamplerOutput(node, row, col, None, metadata=(index.input_id, index.time))

    def sample_from_edges(self, *args: Any, **kwargs: Any) -> Any:
        """Not what inference asks for."""
        raise NotImplementedError


def layer_by_layer(folder: Path) -> None:
    """The float network by PyG's own `inference()`."""
    edges, own = torch.from_numpy(np.load(folder / "edges.npy")), WITH_PYG_LIB or WITH_TORCH_SPARSE
    print("PyG's own sampler" if own else "our sampler for PyG's loader", flush=True)
    data = Data(x=torch.from_numpy(np.load(folder / "x.npy")), edge_index=edges if own else edges[:, :0])
    sampler = None if own else AllInEdges(edges, len(data.x))
    del edges
    loader = NeighborLoader(data, [-1], neighbor_sampler=sampler, batch_size=BLOCK)
    np.save(folder / "PyG.npy", sage().inference(loader).numpy())


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
    ours, theirs = (np.load(folder / f"{name}.npy") for name in ("sage-float", "PyG"))
    print(
        f"sage-float and PyG differ by at most {np.abs(ours - theirs).max() / np.abs(theirs).max():.1e} of the largest"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
