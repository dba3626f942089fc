"""make_graphs.py FOLDER: graph networks as INT8 or binary TFLite files with our kernels, and the same in float.

Degree-Quant's networks for Cora (Table 5) and a binary GraphSAGE, on part of a graph of Cora's kind: bags of words,
about 4 edges a node. `count.py` runs them on aarch64: integers must give x86's bits, and its instructions count. Ours
also on features without a zero ("no_zeros"), since zeros make their work less.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgnn.converter.api import convert
from bgnn.models.dq.networks import build
from bgnn.models.dq.presets import architecture
from bgnn.models.dq.quantizer import FLOAT_BITS
from bgnn.runtime_bench.runtime.tflite_model import TfliteModel

NODES, EDGES, FEATURES, CLASSES = 256, 1000, 1433, 7


class SAGE(nn.Module):
    """GraphSAGE on means of neighbours, binary (binary GNN paper, Eq. 14-15) or in float."""

    def __init__(self, binary: bool) -> None:
        super().__init__()
        widths = [FEATURES, 64, CLASSES]
        self.binary = binary
        self.norms = nn.ModuleList(nn.BatchNorm1d(2 * width) for width in widths[:-1])
        self.weights = nn.ParameterList(torch.randn(o, 2 * i) for i, o in pairwise(widths))
        self.scales = nn.ParameterList(torch.rand(o) / 4 for o in widths[1:])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Scores f32 `[N, CLASSES]` of x f32 `[N, FEATURES]` and edges int64 `[2, E]`."""
        source, target = edge_index
        count = torch.zeros(x.size(0)).index_add_(0, target, torch.ones(edge_index.size(1))).clamp(min=1)
        for norm, weight, scale in zip(self.norms, self.weights, self.scales, strict=True):
            sums = torch.zeros_like(x).index_add_(0, target, x[source])
            h = norm(torch.cat([x, sums / count[:, None]], 1))
            x = (
                F.linear(torch.sign(h), torch.sign(weight)) * scale
                if self.binary
                else F.linear(h.relu(), weight) * scale
            )
        return x


def sample(seed: int) -> tuple[Tensor, Tensor]:
    """Features f32 `[NODES, FEATURES]`, bags of about 18 words, and edges int64 `[2, EDGES]` in both directions."""
    random = torch.Generator().manual_seed(seed)
    x = (torch.rand(NODES, FEATURES, generator=random) < 18 / FEATURES).float()
    one, other = torch.randint(0, NODES, (2, EDGES // 2), generator=random)
    return x / x.sum(1, keepdim=True).clamp(min=1), torch.stack([torch.cat([one, other]), torch.cat([other, one])])


def network(kind: str, small: bool) -> nn.Module:
    """A network whose quantisers have seen some graphs, or its float twin."""
    torch.manual_seed(0)
    if kind == "sage":
        model: nn.Module = SAGE(small)
    else:
        model = build({**architecture("cora", kind), **({} if small else {"bits": FLOAT_BITS})})
    with torch.no_grad():
        for seed in range(1, 6):
            model.train()(*sample(seed))
    return model.eval()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for kind in ("gcn", "gat", "gin", "sage"):
        for small in (True, False):
            x, edges = sample(0)
            target = "tflite-arm64" if not small else "lce-arm64" if kind == "sage" else "tflite-int8-arm64"
            kernels = "bgnn" if small else "stock"
            done = convert(network(kind, small), (x, edges), target=target, kernels=kernels, verify=False)
            assert done.model_bytes is not None
            name = f"{kind}_{'binary' if kind == 'sage' else 'int8'}" if small else f"{kind}_float"
            model = np.frombuffer(done.model_bytes, np.uint8)
            without = torch.rand(x.shape, generator=torch.Generator().manual_seed(6)) * x.max()
            for features, what in [(x, name), (without, f"{name}_no_zeros")][: 1 + small]:
                inputs = {"x": features.numpy(), "edge_index": edges.numpy()}
                (output,) = TfliteModel(done.model_bytes).run(**inputs).values()
                np.savez(folder / f"graph_{what}.npz", model=model, output=output, **inputs)  # type: ignore[arg-type]
            print(f"{name}: {len(done.model_bytes)} bytes", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
