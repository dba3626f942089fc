"""`make bench-binary-graphs`: binary GraphSAGE and GCN on a citation graph, beside the float networks' files.

GraphSAGE is the binary GNN paper's (Eq. 14-15: a norm, signs, a binary layer, one factor for each channel), with and
without L2 normalisation and PReLU; the GCN has the same layers before its sums. Weights are random, norms have the
statistics of the data; the float twin has the same weights and no signs. Files are of open sizes: converted on a part
of the graph, where every sign is compared, and timed on all of it, interleaved in one run. The graph is Cora from its
raw files (`--planetoid`), else a random one of its size; its words are drawn at random, as many as Cora has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bgnn.runtime_bench.bench.bench_int8 import Graph, graphs, runner
from bgnn.runtime_bench.bench.measure import measure, print_table

if TYPE_CHECKING:
    from torch import Tensor, nn

FEATURES, HIDDEN, CLASSES, PART = 1433, 256, 7, 500
NETWORKS = ("GraphSAGE", "GraphSAGE, l2 and PReLU", "GCN")


def network(name: str, binary: bool) -> nn.Module:
    """Two layers; `binary`: of signs."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            sizes, both = [(FEATURES, HIDDEN), (HIDDEN, CLASSES)], 1 if name == "GCN" else 2
            self.norms = nn.ModuleList(nn.BatchNorm1d(both * a) for a, _ in sizes)
            self.weights = nn.ParameterList(torch.randn(b, both * a) for a, b in sizes)
            self.factors = nn.ParameterList(torch.rand(b) / a**0.5 for a, b in sizes)
            self.slopes = nn.ParameterList(torch.full((b,), 0.25) for _, b in sizes)

        def dense(self, i: int, h: Tensor) -> Tensor:
            h, weight = self.norms[i](h), self.weights[i]
            if binary:
                h, weight = torch.sign(h), torch.sign(weight)
            return F.linear(h, weight) * self.factors[i]

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            """Scores f32 `[N, 7]` of x f32 `[N, 1433]` and edges int64 `[2, E]`."""
            source, target = edge_index
            if name == "GCN":
                (source, target), each = gcn_norm(edge_index, None, x.size(0))
                for i in range(2):
                    h = self.dense(i, x)
                    x = torch.zeros_like(h).index_add_(0, target, h[source] * each[:, None])
                return x
            degree = torch.zeros(x.size(0)).index_add_(0, target, torch.ones(target.size(0))).clamp(min=1)
            for i in range(2):
                mean = torch.zeros_like(x).index_add_(0, target, x[source]) / degree[:, None]
                x = self.dense(i, torch.cat([x, mean], 1))
                if name != "GraphSAGE":
                    x = F.normalize(F.prelu(x, self.slopes[i]), dim=1)
            return x

    return Net()


def settled(name: str, binary: bool, x: Tensor, edges: Tensor) -> nn.Module:
    """In eval mode, its norms with the statistics of the data."""
    import torch

    model = network(name, binary).train()
    with torch.no_grad():
        for _ in range(30):
            model(x, edges)
    return model.eval()


def bench(name: str, graph: Graph, threads: int, rounds: int) -> None:
    """Converts, times, prints the table."""
    import torch

    from bgnn.converter.api import convert

    rng = np.random.default_rng(0)
    words = (rng.random((graph.nodes, FEATURES)) < 0.0127).astype(np.float32)  # as many words as a paper of Cora has
    x = words / words.sum(1, keepdims=True).clip(1)
    edges = graph.edges[:, (graph.edges < PART).all(0)]
    part = torch.from_numpy(x[:PART]), torch.from_numpy(np.ascontiguousarray(edges))
    calls: dict[str, Callable[[], object]] = {}
    columns: dict[str, dict[str, str]] = {"bytes": {}, "signs compared": {}, "layers": {}}
    for kind, target in (("fp32", "onnx-x86"), ("binary", "onnx-int8-x86")):
        model = settled(name, kind == "binary", torch.from_numpy(x), torch.from_numpy(graph.edges))
        for kernels in ("stock", "bgnn"):
            done = convert(model, part, target=target, kernels=kernels)
            assert done.model_bytes is not None
            what = f"{kind}, {kernels} kernels"
            checks = [check for check in done.report.checks if check.what.startswith("emitted file")]
            columns["bytes"][what] = f"{len(done.model_bytes):,}"
            signs, turned = sum(c.signs for c in checks), sum(c.turned_signs for c in checks)
            columns["signs compared"][what] = f"{signs:,}, {turned} turned" if signs else ""
            dense = [layer.became for layer in done.report.layers if "aggregation" not in layer.name]
            columns["layers"][what] = ", ".join(dict.fromkeys(dense))
            calls[what], _ = runner(done.model_bytes, graph, x, threads)
    result = measure(calls, base="fp32, stock kernels", rounds=rounds, threads=threads)
    print_table(result, columns, f"{name}, {FEATURES}-{HIDDEN}-{CLASSES}, {graph.what}: {graph.nodes:,} nodes")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    add: Any = (parser := argparse.ArgumentParser(description="binary graph networks beside float ones")).add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--planetoid", type=Path, help="the folder of ind.cora.graph")
    add("--threads", type=int, default=1)
    add("--rounds", type=int, default=25)
    options = parser.parse_args(arguments)
    (graph,) = graphs(["cora"], options.planetoid, 0)
    for name in options.networks:
        bench(name, graph, options.threads, options.rounds)


if __name__ == "__main__":
    main()
