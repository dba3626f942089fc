"""`make bench-int8`: layers of graph networks in INT8 against float32 (Degree-Quant, Tables 4 and 10).

Each layer (GCN, GAT, GIN; 128 features in and out) is converted by this converter and timed on the same graph beside
what else a user could run: PyG's own layer, its product with a sparse matrix in PyTorch, the plain ONNX export. All
candidates of a layer run in interleaved rounds, and a ratio is taken within a round. INT8 layers take and give 8-bit
codes, as they do inside a network. The paper's figures stand beside ours; only ratios can be compared.

Graphs: Cora and Citeseer from their raw files (`--planetoid`), else random graphs of their size; 10,000 generated
molecules in a batch; a power-law graph of Reddit's number of nodes. A file's neighbour tables are made before the
timing, as they are for any graph that does not change; what making them takes stands in the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import pickle
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bgnn.runtime_bench.bench.bench_aggregate import one_operator, power_law_graph
from bgnn.runtime_bench.bench.measure import Measurement, measure, print_table, write_json
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

if TYPE_CHECKING:
    from torch import fx, nn

FEATURES = 128
LAYERS = ("gcn", "gat", "gin")
FLOAT, INT8 = "fp32, ours", "INT8, ours"
OWN_FLOAT, OWN_INT8 = "fp32, bgnn kernels", "INT8, bgnn kernels"
PYG, CSR, EXPORT, INT32 = "fp32, PyG eager", "fp32, torch CSR", "fp32, torch.onnx.export", "INT32 sum, bgnn kernels"

# Degree-Quant, Tables 4 and 10: CPU speedups of W8A8 over fp32. Xeon Gold 6152, 22 cores, PyTorch and SciPy.
PAPER = {
    "zinc": {"gcn": 4.3, "gat": 3.8, "gin": 4.2},
    "reddit": {"gcn": 4.2, "gat": 4.7, "gin": 4.2},
    "cora": {"gin": 1.3},
    "citeseer": {"gin": 1.7},
}
LARGEST_COPIES = 4e9  # bytes of edge tensors that a candidate may make; beyond it is left out, and said so


@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph to measure on: edges int64 [2, E]."""

    name: str
    what: str
    nodes: int
    edges: np.ndarray
    rounds: int


def planetoid(folder: Path, name: str) -> np.ndarray | None:
    """The edges of a citation graph in Planetoid's raw files, both directions; None where they are not there."""
    path = folder / f"ind.{name}.graph"
    if not path.is_file():
        return None
    neighbours = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    pairs = {(int(a), int(b)) for a, others in neighbours.items() for b in others}
    pairs |= {(b, a) for a, b in pairs}
    return np.array(sorted(pairs), dtype=np.int64).T


class _PlainUnpickler(pickle.Unpickler):
    """A dictionary of lists needs one class, and no other is loaded."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "defaultdict"):
            return super().find_class(module, name)
        if name == "list":
            return list
        raise UsageError(f"a graph file that asks for {module}.{name} is not Planetoid's")


def molecules(count: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """A batch of molecule-like graphs (ZINC: 23.2 atoms and 24.9 bonds on average): chains, branches and rings."""
    sizes = rng.normal(23.2, 4.5, count).round().astype(np.int64).clip(6, 38)
    start = np.cumsum(sizes) - sizes
    first = np.repeat(start, sizes)
    atom = np.arange(sizes.sum()) - first
    # Most atoms hang at the one before, some at one a few steps back; rings are closed over 5 bonds.
    back = np.where(rng.random(len(atom)) < 0.75, 1, rng.integers(1, 5, len(atom))).clip(1)
    tree = np.stack([np.arange(len(atom)), first + (atom - back).clip(0)])[:, atom > 0]
    ring = np.flatnonzero((atom >= 5) & (rng.random(len(atom)) < 0.15))
    bonds = np.concatenate([tree, np.stack([ring, ring - 5])], 1)
    return len(atom), np.concatenate([bonds, bonds[::-1]], 1)


def graphs(names: list[str], folder: Path | None, reddit_edges: int) -> list[Graph]:
    """The graphs by name; the same in every run."""
    rng = np.random.default_rng(0)
    made = []
    for name in names:
        if name in ("cora", "citeseer"):
            nodes, count = {"cora": (2708, 10556), "citeseer": (3327, 9104)}[name]
            edges = planetoid(folder, name) if folder is not None else None
            what = name.capitalize()
            if edges is None:
                edges, what = power_law_graph(nodes, count, rng), f"random graph of {what}'s size"
            made.append(Graph(name, what, max(nodes, int(edges.max()) + 1), edges, 25))
        elif name == "zinc":
            nodes, edges = molecules(10_000, rng)
            made.append(Graph(name, "10,000 generated molecules", nodes, edges, 7))
        else:
            nodes = 232_965
            edges = power_law_graph(nodes, reddit_edges, rng)
            made.append(Graph(name, "power-law graph of Reddit's nodes", nodes, edges, 3))
    return made


def float_layer(kind: str) -> nn.Module:
    """PyG's layer, seeded."""
    import torch
    from torch_geometric.nn import GATConv, GCNConv, GINConv

    torch.manual_seed(0)
    if kind == "gcn":
        return GCNConv(FEATURES, FEATURES).eval()
    if kind == "gat":
        return GATConv(FEATURES, FEATURES // 8, heads=8).eval()
    return GINConv(torch.nn.Linear(FEATURES, FEATURES)).eval()


def quantised_layer(kind: str, graph: Graph) -> nn.Module:
    """Degree-Quant's layer behind the quantiser of a layer before, their ranges observed on a part of the graph."""
    import torch

    from bgnn.models.dq import layers
    from bgnn.models.dq.quantizer import Scheme, quantizer

    class Inside(torch.nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.before, self.layer = quantizer(scheme), layer

        def forward(self, x: Any, edge_index: Any) -> Any:
            return self.layer(self.before(x), edge_index)

    torch.manual_seed(0)
    scheme = Scheme()
    if kind == "gcn":
        layer: nn.Module = layers.QuantizedGCN(FEATURES, FEATURES, scheme)
    elif kind == "gat":
        layer = layers.QuantizedGAT(FEATURES, FEATURES // 8, scheme, heads=8)
    else:
        layer = layers.QuantizedGIN(layers.QuantizedLinear(FEATURES, FEATURES, scheme), scheme)
    inside = Inside(layer).train()
    with torch.no_grad():
        for _ in range(3):
            inside(*example(graph))
    return inside.eval()


def example(graph: Graph) -> tuple[Any, Any]:
    """A part of the graph as tensors: what conversion observes and verifies on."""
    import torch

    nodes = min(graph.nodes, 2000)
    edges = graph.edges[:, (graph.edges < nodes).all(0)][:, :20_000]
    return torch.randn(nodes, FEATURES), torch.from_numpy(np.ascontiguousarray(edges))


def codes_only(gm: fx.GraphModule) -> None:
    """Cuts the quantiser of the input and the last dequantiser off: the layer as it is inside a network."""
    import torch

    bgnn = torch.ops.bgnn
    source = next(n for n in gm.graph.nodes if n.op == "placeholder")
    first = [n for n in source.users if n.target is not torch.ops.aten.sym_size.int]
    result = next(n for n in gm.graph.nodes if n.op == "output")
    last = result.args[0][0]
    if [n.target for n in first] != [bgnn.quantize.default] or last.target is not bgnn.dequantize.default:
        raise BgnnError("the layer does not begin and end with one quantiser: it cannot be timed on codes")
    source.meta["val"] = first[0].meta["val"]
    first[0].replace_all_uses_with(source)
    gm.graph.erase_node(first[0])
    result.args = ((last.args[0],),)


def file_of(layer: nn.Module, graph: Graph, target: str, kernels: str) -> bytes:
    """The layer's file, verified on a part of the graph; INT8 ones then cut down to codes."""
    from bgnn.converter.api import convert
    from bgnn.converter.onnx.emit import emit

    done = convert(layer, example(graph), target=target, kernels=kernels, name="layer")
    assert done.model_bytes is not None
    if target == "onnx-x86":
        return done.model_bytes
    codes_only(done.graph)
    names = [n.name for n in done.graph.graph.nodes if n.op == "placeholder"]
    return emit(
        done.graph, name="layer", input_names=names, output_names=["output"], metadata={}, optimize=1, kernels=kernels
    )


def runner(file: bytes, graph: Graph, x: np.ndarray, threads: int) -> tuple[Callable[[], object], float]:
    """A call that runs the file, and the milliseconds that laying out its inputs took."""
    model = OnnxModel(file, threads)
    given = dict(zip(model.input_names, (x, graph.edges), strict=True))
    start = time.perf_counter()
    feeds = model.feeds(**given)
    return partial(model.run_feeds, feeds), (time.perf_counter() - start) * 1e3


def csr_layer(kind: str, layer: Any, graph: Graph, x: Any) -> Callable[[], object]:
    """GCN or GIN as a dense layer and a product with a sparse matrix, which is made before."""
    import torch
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    edges = torch.from_numpy(graph.edges)
    weight = torch.ones(edges.shape[1])
    if kind == "gcn":
        edges, weight = gcn_norm(edges, None, graph.nodes)
    matrix = torch.sparse_coo_tensor(edges.flip(0), weight, (graph.nodes, graph.nodes)).coalesce().to_sparse_csr()

    def run() -> object:
        with torch.no_grad():
            return matrix @ layer.lin(x) + layer.bias if kind == "gcn" else layer.nn(matrix @ x + x)

    return run


def exported(layer: nn.Module, graph: Graph, x: Any, threads: int) -> Callable[[], object]:
    """What torch.onnx.export writes for PyG's layer, on ONNX Runtime; of static shapes where it has no other."""
    import onnxruntime
    import torch

    edges = torch.from_numpy(graph.edges)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(layer, (x, edges), dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    names = [one.name for one in session.get_inputs()]
    feeds = dict(zip(names, (x.numpy(), graph.edges), strict=True))
    return lambda: session.run(None, feeds)


def candidates(kind: str, graph: Graph, threads: int, say: Callable[[str], None]) -> tuple[dict, dict[str, str]]:
    """What can be timed for a layer on a graph, and what laying out its inputs takes, as text."""
    import torch

    from bgnn.runtime_bench.runtime.onnx_ops import register_ops

    torch.set_num_threads(threads)
    rng = np.random.default_rng(1)
    x, codes = rng.standard_normal((graph.nodes, FEATURES), np.float32), rng.integers(0, 256, (graph.nodes, FEATURES))
    layer, tensor, edges = float_layer(kind), torch.from_numpy(x), torch.from_numpy(graph.edges)
    edge_bytes = graph.edges.shape[1] * FEATURES * 4
    calls: dict[str, Callable[[], object]] = {}
    layout: dict[str, str] = {}

    def eager() -> object:
        with torch.no_grad():
            return layer(tensor, edges)

    if 2 * edge_bytes <= LARGEST_COPIES:
        calls[PYG] = eager
    else:
        say(f"{PYG} left out: its edge tensors would take {2 * edge_bytes / 1e9:.0f} GB")
    if kind != "gat":
        calls[CSR] = csr_layer(kind, layer, graph, tensor)
    if 3 * edge_bytes > LARGEST_COPIES:
        say(f"{EXPORT} left out: its edge tensors would take {3 * edge_bytes / 1e9:.0f} GB")
    else:
        try:
            calls[EXPORT] = exported(layer, graph, tensor, threads)
        except Exception as error:  # whatever the exporter raises is its answer
            say(f"{EXPORT} left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
    quantised = quantised_layer(kind, graph)
    for name, module, target, kernels in (
        (FLOAT, layer, "onnx-x86", "stock"), (INT8, quantised, "onnx-int8-x86", "stock"),
        (OWN_FLOAT, layer, "onnx-x86", "bgnn"), (OWN_INT8, quantised, "onnx-int8-x86", "bgnn"),
    ):  # fmt: skip
        say(f"converting {name}")
        features = codes.astype(np.uint8) if target == "onnx-int8-x86" else x
        calls[name], milliseconds = runner(file_of(module, graph, target, kernels), graph, features, threads)
        layout[name] = f"{milliseconds:.1f}" if kernels == "stock" else "in the file"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    register_ops(options)
    count = np.array(graph.nodes)
    sort = onnxruntime.InferenceSession(
        one_operator(
            "CooToCsr", {"self_loops": "none"}, {"e": graph.edges, "n": count}, ["indptr", "sources", "places"]
        ),
        options,
    )
    indptr, sources, _ = sort.run(None, {"e": graph.edges, "n": count})
    wide = {"x": codes.astype(np.int32), "indptr": indptr, "indices": sources}
    control = onnxruntime.InferenceSession(one_operator("AggregateInt32", {}, wide, ["y"]), options)
    calls[INT32] = lambda: control.run(None, wide)
    calls["sorting edges, bgnn kernels"] = lambda: sort.run(None, {"e": graph.edges, "n": count})
    return calls, layout


def bench(
    chosen: list[Graph], kinds: list[str], thread_counts: list[int], rounds: int | None, folder: Path,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Times every layer on every graph; prints a table for each and one of all, writes JSON beside it."""
    ratios: list[tuple[str, str, int, Measurement]] = []
    for graph in chosen:
        for kind in kinds:
            for threads in thread_counts:
                where = f"{kind.upper()}, {graph.what}, {threads} thread{'s' if threads > 1 else ''}"
                say(where)
                calls, layout = candidates(kind, graph, threads, say)
                result = measure(calls, base=FLOAT, rounds=rounds or graph.rounds, threads=threads)
                size = f"{graph.nodes:,} nodes, {graph.edges.shape[1]:,} edges"
                print_table(result, {"tables\nms": layout}, f"{where}: {size}")
                write_json(
                    result, folder / f"{graph.name}-{kind}-{threads}.json",
                    graph=graph.what, nodes=graph.nodes, edges=graph.edges.shape[1], tables_ms=layout,
                )  # fmt: skip
                ratios.append((graph.name, kind, threads, result))
    summary(ratios)
    print(f"written: {folder}/")


def summary(results: list[tuple[str, str, int, Measurement]]) -> None:
    """One line for each layer and graph: how many times as fast INT8 is, beside the paper's figure."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="W8A8 against fp32 in the same round: processor time with one thread, else elapsed time",
        title_justify="left",
    )
    for heading in (
        "graph", "layer", "threads", "stock INT8 /\nour stock fp32", "stock INT8 /\nbest other fp32",
        "bgnn INT8 /\nbest stock fp32", "bgnn INT8 /\nbgnn fp32", "paper",
    ):  # fmt: skip
        table.add_column(heading, justify="right" if "/" in heading else "left")
    for graph, kind, threads, result in results:
        others = best(result, [PYG, CSR, EXPORT])
        stock = best(result, [PYG, CSR, EXPORT, FLOAT])
        paper = PAPER.get(graph, {}).get(kind)
        table.add_row(
            graph, kind.upper(), str(threads), ratio(result, FLOAT, INT8), ratio(result, others, INT8),
            ratio(result, stock, OWN_INT8), ratio(result, OWN_FLOAT, OWN_INT8), f"{paper}" if paper else "",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def best(result: Measurement, names: list[str]) -> str | None:
    """The fastest of some candidates, by its median; None where none was timed."""
    timed = [name for name in names if name in result.timings]
    return min(timed, key=lambda name: result.timings[name].cpu.median) if timed else None


def ratio(result: Measurement, slow: str | None, fast: str) -> str:
    """How many times as fast one candidate is as another: the median over the rounds, and the quartiles.

    With one thread by processor time, which neighbours on the machine disturb less, else by the clock.
    """
    if slow is None:
        return ""
    a, b = result.timings[slow], result.timings[fast]
    pairs = zip(a.cpu_ms, b.cpu_ms, strict=True) if result.threads == 1 else zip(a.wall_ms, b.wall_ms, strict=True)
    low, median, high = np.percentile([a / b for a, b in pairs], [25, 50, 75])
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="bench_int8", description=__doc__.partition("\n")[0])
    names = ("cora", "citeseer", "zinc", "reddit")
    parser.add_argument("--graphs", nargs="+", choices=names, default=list(names))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, help="default: 25 on small graphs, 3 on the largest")
    parser.add_argument("--reddit-edges", type=int, default=10_000_000, help="Reddit itself has 114 million")
    parser.add_argument("--planetoid", type=Path, metavar="FOLDER", help="raw files ind.cora.graph, ind.citeseer.graph")
    parser.add_argument("--output", type=Path, default=Path("out/bench_int8"), help="folder for JSON")
    given = parser.parse_args(arguments)
    try:
        chosen = graphs(given.graphs, given.planetoid, given.reddit_edges)
        bench(
            chosen, given.layers, given.threads, given.rounds, given.output,
            lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    except BgnnError as error:
        print(f"bench_int8: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
