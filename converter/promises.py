"""What a model may be made of: an expression for each kind of operation, as users write it.

`python -m bgnn.converter.promises docs/ops.md` converts every expression to every target and writes what came out into
the tables of that file; a test does the same and compares. So a table promises what was tried, and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor, nn

from bgnn.converter.api import convert
from bgnn.converter.errors import ConversionError
from bgnn.converter.pyg_knn import provide

BEGIN, END = "<!-- made by: python -m bgnn.converter.promises docs/ops.md -->", "<!-- end of what is made -->"

# Targets of one format have the same operations of floats: one of each is tried.
FORMATS = {"tflite": "lce-arm64", "onnx": "onnx-int8-x86"}
WORDS = {"tflite": "TFLite targets", "onnx": "ONNX targets"}

# An expression of x and y f32 [2, 12, 8], and of w f32 [8, 8], a parameter; in graph networks x and y are [N, 8] of
# open N. `nn.X(...)(...)` is a module of the model.
BOTH = {
    "signs": [
        "torch.where(x >= 0, 1.0, -1.0)", "torch.sign(x)", "(x >= 0).float() * 2 - 1",
        "(torch.sign(x) - x).detach() + x",
        "F.linear(torch.sign(x), torch.sign(w))",
    ],
    "dense layers": [
        "nn.Linear(8, 5)(x)", "F.linear(x, w)", "x @ w", "torch.einsum('...i,io->...o', x, w)",
        "nn.BatchNorm1d(8)(x.reshape(-1, 8))", "nn.LayerNorm(8)(x)",
    ],
    "activations": [
        "F.relu(x)", "F.relu6(x)", "F.leaky_relu(x, 0.2)", "nn.PReLU()(x)", "torch.tanh(x)", "torch.sigmoid(x)",
        "F.hardtanh(x)", "x.clamp(-1, 1)", "F.elu(x)", "F.selu(x)", "F.celu(x)", "F.gelu(x)",
        "F.gelu(x, approximate='tanh')",
        "F.silu(x)", "F.softplus(x)", "F.hardswish(x)", "F.hardsigmoid(x)", "F.mish(x)", "F.logsigmoid(x)",
        "F.softsign(x)", "F.dropout(x, 0.5, False)",
    ],
    "arithmetic": [
        "x + y", "x - y", "1 - x", "x * y", "x / (y.abs() + 1)", "-x", "x.abs()", "x.exp()", "(x.abs() + 1).log()",
        "torch.log1p(x.abs())", "x.abs().sqrt()", "(x.abs() + 1).rsqrt()", "(x.abs() + 1).reciprocal()", "x ** 2",
        "x ** 3",
        "x.abs() ** 0.7", "torch.maximum(x, y)", "torch.minimum(x, y)", "torch.erf(x)", "torch.sin(x)", "torch.cos(x)",
        "x.floor()", "x.ceil()", "x.round()", "torch.trunc(x)", "x % 2", "torch.atan2(x, y)",
    ],
    "choices": [
        "torch.where(x > y, x, y)", "x.masked_fill(x > 0, 0.5)", "(x > 0) & (y > 0)", "(x > 0) | ~(y > 0)", "x == y",
        "(x > 0).float()",
    ],
    "reductions": [
        "x.max(-1)[0]", "x.amin(-1)", "x.mean(-1)", "x.sum(-1, keepdim=True)", "x.norm(dim=-1)",
        "F.cosine_similarity(x, y, -1)",
        "F.normalize(x, dim=-1)",
        "x.std(-1)", "x.var(-1, unbiased=False)", "F.softmax(x, -1)", "F.log_softmax(x, -1)", "x.logsumexp(-1)",
        "x.argmax(-1)", "x.prod(-1)", "x.cumsum(-1)",
    ],
    "moves": [
        "x.flatten(-2)", "x.reshape(*x.shape[:-1], 4, 2)", "x.unsqueeze(-1)", "x.unsqueeze(0).squeeze(0)",
        "x.transpose(-1, -2)", "torch.cat([x, y], -1)", "torch.stack([x, y], -1)", "x[..., 2:5]", "x[..., ::2]",
        "x.chunk(2, -1)[1]", "x.split([3, 5], -1)[0]", "x.unbind(-1)[0]", "x[..., [0, 3, 3]]", "x.flip(-1)",
        "torch.roll(x, 1, -1)", "x.repeat_interleave(2, -1)", "F.pad(x, (0, 1))",
    ],
}  # fmt: skip

# Of x f32 [2, 12, 8], sizes fixed.
CLOUDS = {
    "dense layers of clouds": [
        "nn.Conv1d(8, 5, 1)(x.transpose(1, 2))", "nn.Conv2d(8, 5, 1)(x.transpose(1, 2)[..., None])",
        "nn.BatchNorm1d(8)(x.transpose(1, 2))", "nn.Conv1d(8, 8, 1, groups=2)(x.transpose(1, 2))",
        "nn.Conv1d(8, 5, 3, padding=1)(x.transpose(1, 2))", "torch.bmm(x, y.transpose(1, 2))",
        "nn.InstanceNorm1d(8)(x.transpose(1, 2))", "nn.GroupNorm(2, 8)(x.transpose(1, 2))",
        "nn.MultiheadAttention(8, 2, batch_first=True)(x, x, x)[0]",
    ],
    "neighbours": [
        "torch.cdist(x, x).topk(3, largest=False)[1].float()",
        "(2 * x @ x.transpose(1, 2) - (x ** 2).sum(-1)[:, :, None] - (x ** 2).sum(-1)[:, None]).topk(3, -1)[1].float()",
        "torch.cdist(x, x).argsort(-1)[..., :3].float()",
        "x[torch.arange(2)[:, None, None], torch.cdist(x, x).topk(3, largest=False)[1]].amax(2)",
        "torch.gather(x, 1, torch.cdist(x, x).topk(3, largest=False)[1][..., :1].expand(-1, -1, 8))",
    ],
    "over points": [
        "x.max(1)[0]", "x.mean(1)", "x.median(1)[0]", "x.sort(1)[0]", "F.adaptive_max_pool1d(x.transpose(1, 2), 1)",
        "F.adaptive_avg_pool1d(x.transpose(1, 2), 1)", "F.max_pool1d(x.transpose(1, 2), 2)", "x.repeat(1, 2, 1)",
        "x.tile(2, 1, 1)",
        "x.expand(3, 2, 12, 8)",
    ],
}  # fmt: skip

# Of x f32 [N, 8], edge_index int64 [2, E] and batch int64 [N]; N and E open. `gnn` is torch_geometric.nn.
GRAPHS = {
    "gathers": [
        "x[edge_index[0]]", "x.index_select(0, edge_index[0])", "x[edge_index[0]] - x[edge_index[1]]",
        "x[edge_index].sum(0)", "x[edge_index.t()].flatten(1)",
    ],
    "sums over edges": [
        "torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])",
        "torch.zeros_like(x).scatter_add(0, edge_index[1][:, None].expand(-1, 8), x[edge_index[0]])",

        "torch.zeros_like(x).scatter_reduce(0, edge_index[1][:, None].expand(-1, 8), x[edge_index[0]], 'amax')",
        "torch.zeros_like(x).index_reduce(0, edge_index[1], x[edge_index[0]], 'mean', include_self=False)",
        "torch.zeros(x.size(0)).index_add(0, edge_index[1], torch.ones(edge_index.size(1)))",
        "torch.bincount(edge_index[1], minlength=x.size(0)).float()",
        "torch.zeros(x.size(0), x.size(0)).index_put((edge_index[1], edge_index[0]), torch.tensor(1.0)) @ x",
        "torch.zeros_like(x).index_put((edge_index[1],), x[edge_index[0]], accumulate=True)",

        "torch.sparse.mm(torch.sparse_coo_tensor(edge_index, x.new_ones(edge_index.size(1)), [x.size(0)] * 2), x)",
    ],
    "layers of PyG": [
        "gnn.GCNConv(8, 5)(x, edge_index)", "gnn.SAGEConv(8, 5)(x, edge_index)",
        "gnn.SAGEConv(8, 5, aggr='max')(x, edge_index)",
        "gnn.GATConv(8, 5, heads=2)(x, edge_index)", "gnn.GATv2Conv(8, 5)(x, edge_index)",
        "gnn.GINConv(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)))(x, edge_index)",
        "gnn.GraphConv(8, 5)(x, edge_index)", "gnn.TransformerConv(8, 5)(x, edge_index)",
        "gnn.TAGConv(8, 5)(x, edge_index)",
        "gnn.ChebConv(8, 5, K=3)(x, edge_index)", "gnn.APPNP(3, 0.1)(x, edge_index)",
        "gnn.SGConv(8, 5, K=2)(x, edge_index)",
        "gnn.EdgeConv(nn.Linear(16, 5))(x, edge_index)", "gnn.DynamicEdgeConv(nn.Linear(16, 5), k=3)(x, batch)",
        "gnn.GatedGraphConv(8, 2)(x, edge_index)", "gnn.ClusterGCNConv(8, 5)(x, edge_index)",
        "gnn.ARMAConv(8, 5)(x, edge_index)",
        "gnn.GENConv(8, 5)(x, edge_index)", "gnn.LEConv(8, 5)(x, edge_index)", "gnn.MFConv(8, 5)(x, edge_index)",
        "gnn.BatchNorm(8)(x)", "gnn.GraphNorm(8)(x, batch)", "gnn.PairNorm()(x)", "gnn.LayerNorm(8)(x)",
        "gnn.InstanceNorm(8)(x)",
        "gnn.JumpingKnowledge('max')([x, x * 2])", "gnn.JumpingKnowledge('lstm', 8, 1)([x, x * 2])",
    ],
    "over each graph": [
        "gnn.global_add_pool(x, batch)", "gnn.global_mean_pool(x, batch)", "gnn.global_max_pool(x, batch)",
        "gnn.AttentionalAggregation(nn.Linear(8, 1))(x, batch)", "gnn.Set2Set(8, 2)(x, batch)",
        "gnn.TopKPooling(8)(x, edge_index, batch=batch)[0]",
    ],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Promise:
    """One expression, tried in a cloud network (`graph` False, sizes fixed) or in a graph network (sizes open)."""

    section: str
    code: str
    graph: bool


def promises() -> Iterator[Promise]:
    """Every expression in every kind of model that it is for."""
    for sections, kinds in ((BOTH, (False, True)), (CLOUDS, (False,)), (GRAPHS, (True,))):
        for section, codes in sections.items():
            yield from (Promise(section, code, graph) for code in codes for graph in kinds)


class Net(nn.Module):
    """What an expression may take beside its inputs: a parameter, and the module that it begins with."""

    def __init__(self, module: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(8, 8))
        if module:
            self.module = eval(module, {"nn": nn, "gnn": torch_geometric.nn})
        for values in self.buffers():  # a norm's statistics as trained ones are
            if values.is_floating_point():
                values.uniform_(0.5, 1.5)
        self.eval()


def network(promise: Promise) -> Net:
    """A model whose forward is the expression, of x, y, and in graph networks edge_index and batch."""
    code, module = promise.code, ""
    if found := re.match(r"g?nn\.[A-Z]\w*\(", code):  # its module ends where this bracket does
        end = found.end()
        while code[found.end() : end].count("(") + 1 != code[found.end() : end].count(")"):
            end += 1
        module, code = code[:end], "self.module" + code[end:]
    names = {"torch": torch, "F": F, "gnn": torch_geometric.nn}
    inputs = "x, y, edge_index, batch" if promise.graph else "x, y"
    exec(f"def forward(self, {inputs}):\n    w = self.w\n    return {code}\n", names)
    provide()  # PyG's layers that search neighbours are made without pyg-lib, too
    kind: type[Net] = type("Network", (Net,), {"forward": names["forward"]})
    return kind(module)


def model_of(promise: Promise) -> tuple[Net, tuple[Tensor, ...]]:
    """The model of an expression and its example inputs."""
    draw = torch.Generator().manual_seed(1)
    if not promise.graph:
        return network(promise), (torch.randn(2, 12, 8, generator=draw), torch.randn(2, 12, 8, generator=draw))
    nodes, edges = 11, 40
    x, y = torch.randn(nodes, 8, generator=draw), torch.randn(nodes, 8, generator=draw)
    return network(promise), (
        x, y, torch.randint(nodes, (2, edges), generator=draw), torch.arange(nodes) * 2 // nodes,
    )  # fmt: skip


def refusal(promise: Promise, format: str) -> str | None:
    """What a conversion to `format` ends in: None where the file is verified, else the line of the error."""
    model, inputs = model_of(promise)
    try:
        convert(model, inputs, target=FORMATS[format])
    except ConversionError as error:
        return str(error)
    return None


def tables(tried: Mapping[Promise, Mapping[str, bool]]) -> str:
    """The tables of docs/ops.md, from what converts to each format."""
    lines: list[str] = []
    for section in [*BOTH, *CLOUDS, *GRAPHS]:
        rows: dict[str, list[Promise]] = {}
        for promise in tried:
            if promise.section == section:
                rows.setdefault(promise.code, []).append(promise)
        graphs_alone = section in GRAPHS
        formats = ["onnx"] if graphs_alone else list(FORMATS)
        lines += [
            "",
            f"| {section} | {' | '.join(WORDS[name] for name in formats)} |",
            "|---" * (len(formats) + 1) + "|",
        ]
        for code, kinds in rows.items():
            cells = []
            for name in formats:
                yes = [tried[kind][name] for kind in kinds if name in tried[kind]]
                some = "clouds" if tried[kinds[0]].get(name) else "graphs"
                cells.append("yes" if all(yes) else "refused" if not any(yes) else f"in {some} only")
            lines.append(f"| `{code.replace('|', chr(92) + '|')}` | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def written(text: str, made: str) -> str:
    """docs/ops.md with its tables made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Tries everything and writes the tables."""
    parser = argparse.ArgumentParser(prog="python -m bgnn.converter.promises", description=tables.__doc__)
    parser.add_argument("file", type=Path, help="the document to write them into")
    path = parser.parse_args().file
    tried: dict[Promise, dict[str, bool]] = {}
    every = list(promises())
    for number, promise in enumerate(every, start=1):
        found = {name: refusal(promise, name) for name in FORMATS if not promise.graph or name == "onnx"}
        tried[promise] = {name: reason is None for name, reason in found.items()}
        for name, reason in found.items():
            if reason is not None:
                print(f"{number} of {len(every)}, {name}: {reason}", file=sys.stderr)
    path.write_text(written(path.read_text(), tables(tried)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
