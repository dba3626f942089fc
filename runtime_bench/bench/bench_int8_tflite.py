"""`make bench-int8-tflite`: whole graph networks as TFLite files, INT8 and binary against float, on LiteRT.

Degree-Quant's two-layer GCN, GAT and GIN, each beside its float twin, and the binary GraphSAGE of the binary GNN paper
beside the same network without signs. Float files run on LiteRT with XNNPACK, as any user's would; all candidates of a
network run in interleaved rounds, one file's run after another's, and a ratio is taken within a round.

Graphs: Cora's size (2,708 nodes; bags of words, 1.3 % of the numbers not 0; its own edges with `--planetoid`), the
same with dense features, where the dense layer has no zero points to skip, and a power-law graph of 10,000 nodes with
128 dense features and hidden channels. Each file is made for exactly these sizes, so nothing is padded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bgnn.runtime_bench.bench import bench_binary_graphs
from bgnn.runtime_bench.bench.bench_aggregate import power_law_graph
from bgnn.runtime_bench.bench.bench_int8 import Graph, graphs, ratio
from bgnn.runtime_bench.bench.measure import Measurement, measure, print_table, write_json
from bgnn.runtime_bench.runtime.delegate import load_interpreter
from bgnn.runtime_bench.runtime.errors import BgnnError

if TYPE_CHECKING:
    from torch import Tensor, nn

NETWORKS = ("gcn", "gat", "gin", "binsage")
GRAPHS = ("cora", "cora-dense", "power-law")
WORDS, SHARE, CLASSES, PART = 1433, 0.0127, 7, 600  # of Cora; nodes that files are converted and verified on
FLOAT, OWN_FLOAT, STOCK, OWN = "fp32, stock kernels", "fp32, bgnn kernels", "INT8, stock kernels", "INT8, bgnn kernels"


def features(graph: Graph, width: int, rng: np.random.Generator) -> np.ndarray:
    """f32 `[nodes, width]`: bags of words for Cora, else normal numbers."""
    if graph.name != "cora":
        return rng.standard_normal((graph.nodes, width), np.float32)
    words = (rng.random((graph.nodes, width)) < SHARE).astype(np.float32)
    return words / words.sum(1, keepdims=True).clip(1)


def network(name: str, bits: int, x: Tensor, edges: Tensor, wide: bool) -> nn.Module:
    """In eval mode; the ranges of its quantisers, or the statistics of its norms, are the data's. 32 bits: float."""
    import torch

    if name == "binsage":
        return bench_binary_graphs.settled("GraphSAGE", bits < 32, x, edges)
    from bgnn.models.dq.networks import CitationNet, Settings

    torch.manual_seed(0)
    hidden = 128 if wide else 16
    model = CitationNet(
        Settings(
            conv=name, bits=bits, features=x.shape[1], classes=CLASSES, dropout=0.0, signed_input=bool((x < 0).any()),
            hidden=hidden // 8 if name == "gat" and wide else 8 if name == "gat" else hidden,
        )
    ).train()  # fmt: skip
    with torch.no_grad():
        for _ in range(3):
            model(x, edges)
    return model.eval()


def runner(file: bytes, x: np.ndarray, edges: np.ndarray, threads: int) -> Callable[[], object]:
    """A call that runs the file on a graph that it was made for."""
    interpreter = load_interpreter(file, threads)
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], x if tensor["dtype"] == np.float32 else edges.astype(np.int32))
    return interpreter.invoke


def candidates(
    name: str, graph: Graph, threads: int, say: Callable[[str], None]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Calls that run a network's files, and the files' bytes as text."""
    import torch

    from bgnn.converter.api import convert

    wide = graph.name == "power-law"
    x = features(graph, 128 if wide and name != "binsage" else WORDS, np.random.default_rng(1))
    inside = np.ascontiguousarray(graph.edges[:, (graph.edges < PART).all(0)])
    part = torch.from_numpy(x[:PART]), torch.from_numpy(inside)
    sizes = [f"nodes={graph.nodes}", f"edges={graph.edges.shape[1]}"]
    calls, sizes_of = {}, {}
    target = "lce-arm64" if name == "binsage" else "tflite-int8-arm64"
    for what, bits, its_target, kernels in (
        (FLOAT, 32, "tflite-arm64", "stock"), (OWN_FLOAT, 32, "tflite-arm64", "bgnn"),
        (STOCK, 8, target, "stock"), (OWN, 8, target, "bgnn"),
    ):  # fmt: skip
        say(f"converting {what}")
        model = network(name, bits, *part, wide)
        file = convert(model, part, target=its_target, kernels=kernels, fixed_sizes=sizes).model_bytes
        assert file is not None
        calls[what], sizes_of[what] = runner(file, x, graph.edges, threads), f"{len(file):,}"
    return calls, sizes_of


def made(names: list[str], folder: Path | None, nodes: int, edges: int) -> list[Graph]:
    """The graphs by name; the same in every run."""
    found = []
    for name in names:
        if name == "power-law":
            listed = power_law_graph(nodes, edges, np.random.default_rng(0))
            found.append(Graph(name, "power-law graph, dense features", nodes, listed, 9))
        else:
            (cora,) = graphs(["cora"], folder, 0)
            what = cora.what + (", dense features" if name == "cora-dense" else ", bags of words")
            found.append(Graph(name, what, cora.nodes, cora.edges, 25))
    return found


def bench(
    chosen: list[Graph], names: list[str], threads: int, rounds: int | None, folder: Path, say: Callable[[str], None]
) -> None:
    """Times every network on every graph; prints a table for each and one of all, writes JSON beside it."""
    results: list[tuple[str, str, Measurement]] = []
    for graph in chosen:
        for name in names:
            where = f"{name.upper()}, {graph.what}: {graph.nodes:,} nodes, {graph.edges.shape[1]:,} edges"
            say(where)
            calls, sizes = candidates(name, graph, threads, say)
            result = measure(calls, base=FLOAT, rounds=rounds or graph.rounds, threads=threads)
            print_table(result, {"bytes": sizes}, where)
            path = folder / f"{graph.name}-{name}-{threads}.json"
            write_json(result, path, graph=graph.what, nodes=graph.nodes, edges=graph.edges.shape[1])
            results.append((graph.what, name, result))
    summary(results)
    print(f"written: {folder}/")


def summary(results: list[tuple[str, str, Measurement]]) -> None:
    """One line for each network and graph: how many times as fast as the float file on stock kernels."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="against the float file on LiteRT with XNNPACK, in the same round", title_justify="left")
    for heading in ("graph", "network"):
        table.add_column(heading)
    for heading in ("INT8 or binary,\nstock kernels", "fp32,\nbgnn kernels", "INT8 or binary,\nbgnn kernels"):
        table.add_column(heading, justify="right")
    for graph, name, result in results:
        table.add_row(graph, name.upper(), *(ratio(result, FLOAT, what) for what in (STOCK, OWN_FLOAT, OWN)))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="bench_int8_tflite", description=__doc__.partition("\n")[0])
    add: Any = parser.add_argument
    add("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--nodes", type=int, default=10_000, help="of the power-law graph")
    add("--edges", type=int, default=100_000, help="of the power-law graph")
    add("--threads", type=int, default=1)
    add("--rounds", type=int, help="default: 25 on Cora, 9 on the power-law graph")
    add("--planetoid", type=Path, metavar="FOLDER", help="raw file ind.cora.graph")
    add("--output", type=Path, default=Path("out/bench_int8_tflite"), help="folder for JSON")
    given = parser.parse_args(arguments)
    try:
        chosen = made(given.graphs, given.planetoid, given.nodes, given.edges)
        bench(
            chosen, given.networks, given.threads, given.rounds, given.output,
            lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    except BgnnError as error:
        print(f"bench_int8_tflite: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
