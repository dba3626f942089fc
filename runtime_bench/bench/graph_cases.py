"""Graph networks to be measured: layers of Degree-Quant's Tables 4 and 10, and whole INT8 and binary networks.

A layer (GCN, GAT, GIN; 128 features in and out) is converted once and timed on every graph beside what else a user
could run: PyG's own layer, torch.compile's of it, its product with a sparse matrix in PyTorch. INT8 layers take and
give 8-bit codes, as they do inside a network. A file's neighbour tables are made before the timing, as for any graph
that does not change; records say what making them takes ("layout_ms").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bgnn.runtime_bench.bench import graphs
from bgnn.runtime_bench.bench.candidates import CANDIDATES, DELEGATE, LITERT, ONNX, ONNX_OURS
from bgnn.runtime_bench.bench.cases import COMPILED, OWN, PAPERS_ROUTE, ROUTES, STOCK, Eager
from bgnn.runtime_bench.bench.graphs import Graph
from bgnn.runtime_bench.bench.inputs import inputs_for
from bgnn.runtime_bench.bench.measure import Schedule
from bgnn.runtime_bench.bench.running import Subject, conversion_of, file_subject
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.outputs import write_files

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

FEATURES = 128
LAYERS = ("gcn", "gat", "gin")
FLOAT, INT8 = "fp32", "INT8"
PYG, CSR = "PyG eager", "torch CSR"
LARGEST_COPIES = 2.5e9  # bytes of edge tensors of one candidate, which hold several times that; beyond it is left out
_ROWS = {row.name: row for row in CANDIDATES}

# ------------------------------------------------------------------------------------------------------------- layers


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


def quantised_layer(kind: str) -> nn.Module:
    """Degree-Quant's layer behind the quantiser of a layer before, their ranges observed on `example`."""
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
            inside(*example())
    return inside.eval()


@cache
def example() -> tuple[Tensor, Tensor]:
    """A small graph: what conversion observes and verifies on."""
    import torch

    torch.manual_seed(1)
    edges = graphs.power_law(500, 3000, np.random.default_rng(0))
    return torch.randn(500, FEATURES), torch.from_numpy(edges)


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


@cache
def layer_file(kind: str, precision: str, route: str, folder: Path) -> Path:
    """The layer's file, verified on a small graph; INT8 ones then cut down to codes, where the route makes any."""
    from bgnn.converter.api import convert
    from bgnn.converter.onnx.emit import emit

    optimize, kernels = ROUTES[route]
    module, target = (float_layer(kind), "onnx-x86") if precision == FLOAT else (quantised_layer(kind), "onnx-int8-x86")
    done = convert(module, example(), target=target, optimize=optimize, kernels=kernels, name="layer")
    content = done.model_bytes
    assert content is not None
    if precision == INT8 and optimize:
        codes_only(done.graph)
        names = [n.name for n in done.graph.graph.nodes if n.op == "placeholder"]
        content = emit(
            done.graph, name="layer", input_names=names, output_names=["output"], metadata={}, optimize=1,
            kernels=kernels,
        )  # fmt: skip
    path = folder / f"{kind}-{precision}-{'own' if kernels == 'bgnn' else f'O{optimize}'}.onnx"
    write_files({path: content})
    return path


def csr_layer(kind: str, layer: Any, graph: Graph) -> Callable[[Any, Any], Any]:
    """The layer as a product with a sparse matrix in PyTorch. Raises BgnnError for GAT, which has none."""
    import torch
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    if kind == "gat":
        raise BgnnError("attention is no product with one matrix")
    edges = torch.from_numpy(graph.edges)
    weight = torch.ones(edges.shape[1])
    if kind == "gcn":
        edges, weight = gcn_norm(edges, None, graph.nodes)
    matrix = torch.sparse_coo_tensor(edges.flip(0), weight, (graph.nodes, graph.nodes)).coalesce().to_sparse_csr()
    return lambda x, _: matrix @ layer.lin(x) + layer.bias if kind == "gcn" else layer.nn(matrix @ x + x)


@cache
def compiled_layer(kind: str) -> Any:
    """By torch.compile, for graphs of any size."""
    import torch

    return torch.compile(float_layer(kind), dynamic=True)


def layer_subjects(graph: Graph, kind: str, threads: int, schedule: Schedule, folder: Path, say: Any) -> list[Subject]:
    """What can be timed for a layer on a graph; the first is our fp32 file with stock operators."""
    rng = np.random.default_rng(1)
    x, codes = rng.standard_normal((graph.nodes, FEATURES), np.float32), rng.integers(0, 256, (graph.nodes, FEATURES))
    layer, given = float_layer(kind), [x, graph.edges]
    about = {"graph": graph.name, "layer": kind, "nodes": graph.nodes, "edges": graph.edges.shape[1]}
    copies = graph.edges.shape[1] * FEATURES * 4

    def guarded(times: int, make: Callable[[], Any]) -> Any:
        if times * copies > LARGEST_COPIES:
            raise BgnnError(f"its edge tensors would take {times * copies / 1e9:.0f} GB")
        return make()

    def case(precision: str, route: str) -> str:
        return f"{graph.name} {kind.upper()} {precision} {route}"

    found = []
    for route in (STOCK, PAPERS_ROUTE, OWN):
        for precision in (FLOAT, INT8):
            say(f"{case(precision, route)}: converting")
            path = layer_file(kind, precision, route, folder)
            features = codes.astype(np.uint8) if precision == INT8 and route != PAPERS_ROUTE else x
            content, row = path.read_bytes(), _ROWS[ONNX_OURS if ROUTES[route][1] == "bgnn" else ONNX]
            start = time.perf_counter()
            inputs = inputs_for(path, content, {"x": features, "edge_index": graph.edges}, 0)
            how = {**about, "layout_ms": 1e3 * (time.perf_counter() - start)}
            arrays = list(inputs.arrays.values())
            one = file_subject(case(precision, route), row, path, content, arrays, None, threads, schedule, how)
            if route == PAPERS_ROUTE:
                one = Subject(one.case, one.candidate, None, partial(guarded, 3, one.open), one.file_bytes, how)
            found.append(one)
    eager = f"{graph.name} {kind.upper()} {FLOAT}"
    for name, make in (
        (PYG, partial(guarded, 2, partial(Eager, layer, given, threads))),
        (COMPILED, partial(guarded, 2, lambda: Eager.ready(compiled_layer(kind), given, threads))),
        (CSR, lambda: Eager(csr_layer(kind, layer, graph), given, threads)),
    ):
        found.append(Subject(eager, name, None, make, None, about))
    return found


# ----------------------------------------------------------------------------------------------------- whole networks

NETWORKS = ("GCN", "GAT", "GIN", "GraphSAGE", "GraphSAGE, l2 and PReLU", "binary GCN")
WORDS, SHARE, CLASSES, HIDDEN, PART = 1433, 0.0127, 7, 256, 600  # of Cora; of binary layers; nodes verified on


def binary_network(name: str, binary: bool, features: int) -> nn.Module:
    """The binary GNN paper's GraphSAGE (Eq. 14-15: a norm, signs, a binary layer, one factor for each channel), and a
    GCN of the same layers before its sums; `binary` False: the same weights and no signs."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            sizes, both = [(features, HIDDEN), (HIDDEN, CLASSES)], 1 if name == "binary GCN" else 2
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
            """Scores f32 `[N, 7]` of x f32 `[N, features]` and edges int64 `[2, E]`."""
            source, target = edge_index
            if name == "binary GCN":
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


def network(name: str, low: bool, x: Tensor, edges: Tensor, wide: bool) -> nn.Module:
    """In eval mode; the ranges of its quantisers, or the statistics of its norms, are the data's. `low`: INT8 or of
    signs, else float."""
    import torch

    from bgnn.models.dq.networks import CitationNet, Settings

    torch.manual_seed(0)
    if name.lower() in LAYERS:
        hidden = (16 if name == "GAT" else 128) if wide else (8 if name == "GAT" else 16)
        signed, bits = bool((x < 0).any()), 8 if low else 32
        model: nn.Module = CitationNet(
            Settings(conv=name.lower(), bits=bits, features=x.shape[1], classes=CLASSES, dropout=0.0,
                     signed_input=signed, hidden=hidden)
        )  # fmt: skip
    else:
        model = binary_network(name, low, x.shape[1])
    with torch.no_grad():
        for _ in range(3 if name.lower() in LAYERS else 30):
            model.train()(x, edges)
    return model.eval()


def features(graph: Graph, dense: bool, width: int) -> np.ndarray:
    """f32 `[nodes, width]`: bags of words, whose rows sum to 1, or normal numbers."""
    rng = np.random.default_rng(1)
    if dense:
        return rng.standard_normal((graph.nodes, width), np.float32)
    words = (rng.random((graph.nodes, width)) < SHARE).astype(np.float32)
    return words / words.sum(1, keepdims=True).clip(1)


def network_subjects(
    graph: Graph, name: str, runtime: str, dense: bool, threads: int, schedule: Schedule, folder: Path, say: Any
) -> list[Subject]:
    """A network's files, float and INT8 or binary, by stock kernels and ours, converted on a part of the graph and run
    on all of it; the first is the float file with stock kernels. TFLite files are made for exactly this graph."""
    import torch

    from bgnn.converter.api import convert

    wide, own = graph.name == "power-law", name.lower() in LAYERS
    x = features(graph, dense, FEATURES if wide and own else WORDS)
    inside = np.ascontiguousarray(graph.edges[:, (graph.edges < PART).all(0)])
    part = torch.from_numpy(x[:PART]), torch.from_numpy(inside)
    tflite = runtime == "TFLite"
    low = INT8 if own else "binary"
    targets = {FLOAT: "tflite-arm64" if tflite else "onnx-x86"}
    targets[low] = ("tflite-int8-arm64" if own else "lce-arm64") if tflite else "onnx-int8-x86"
    sizes = [f"nodes={graph.nodes}", f"edges={graph.edges.shape[1]}"] if tflite else []
    found = []
    for precision, target in targets.items():
        for route in (STOCK, OWN):
            case, kernels = f"{graph.name} {name} {runtime} {precision} {route}", ROUTES[route][1]
            if dense and not wide:
                case = f"dense {case}"
            say(f"{case}: converting")
            path = folder / f"{''.join(c for c in case if c.isalnum())}{'.tflite' if tflite else '.onnx'}"
            model = network(name, precision != FLOAT, *part, wide)
            done = convert(model, part, target=target, kernels=kernels, fixed_sizes=sizes, output=path, name=path.stem)
            report = {"output": path.name, **done.report.to_json()}
            stock = (DELEGATE if target == "lce-arm64" else LITERT) if tflite else ONNX
            # An ONNX file for our kernels may have found no use for them.
            row = _ROWS[stock if kernels == "stock" else DELEGATE if tflite else ONNX_OURS]
            content = path.read_bytes()
            row = row if row.fits(content) else _ROWS[ONNX]
            given = inputs_for(path, content, {"x": x, "edge_index": graph.edges}, 0)
            about = {"graph": graph.name, "nodes": graph.nodes, "edges": graph.edges.shape[1],
                     "conversion": conversion_of(path, report)["conversion"]}  # fmt: skip
            arrays = list(given.arrays.values())
            found.append(file_subject(case, row, path, content, arrays, None, threads, schedule, about))
    return found
