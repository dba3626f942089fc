"""PyG's k-NN search without pyg-lib, and with one that breaks ties in its own way."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from bgnn.converter import pyg_knn
from bgnn.converter.load import LoadOptions, load


def test_reference() -> None:
    """Nearest first, the lowest index of equals; a graph with fewer points than k has fewer neighbours."""
    x = torch.tensor([[0.0], [1.0], [1.0], [5.0], [0.0], [9.0]])
    ptr = torch.tensor([0, 4, 5, 6])
    edges = pyg_knn.knn(x, x, ptr, ptr, 3)
    assert edges[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5]
    assert edges[1].tolist() == [0, 1, 2, 1, 2, 0, 1, 2, 0, 3, 1, 2, 4, 5]
    assert pyg_knn.knn(x, x[:1], None, None, 2).tolist() == [[0, 0], [0, 4]]
    assert pyg_knn.knn(x[:2], x[:1], None, None, 5).tolist() == [[0, 0], [0, 1]]


def test_cosine() -> None:
    x = torch.tensor([[1.0, 0.0], [5.0, 1.0], [0.0, 1.0]])
    assert pyg_knn.knn(x, x[:1], None, None, 2, True)[1].tolist() == [0, 1]


def test_table_of_edges() -> None:
    """The edges of any search as a table; what is not there is as the reference has it."""
    x, ptr = torch.randn(7, 2), torch.tensor([0, 5, 7])
    table, found = pyg_knn.neighbours(x, x, ptr, ptr, 3)
    edges = pyg_knn.knn(x, x, ptr, ptr, 3)
    shuffled = edges[:, torch.argsort(-edges[0], stable=True)]
    assert not bool(found.all())
    assert torch.equal(pyg_knn.table_of(shuffled, x, x, ptr, ptr, 3), table)


MODEL = """
    import torch
    from torch_geometric.nn import DynamicEdgeConv, EdgeConv, global_max_pool, knn_graph

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            mlp = lambda width: torch.nn.Sequential(torch.nn.Linear(2 * width, 8), torch.nn.ReLU())
            self.first, self.second = EdgeConv(mlp(5)), DynamicEdgeConv(mlp(8), 4)

        def forward(self, x, batch):
            return global_max_pool(self.second(self.first(x, knn_graph(x[:, :3], 4, batch)), batch), batch, 2)
"""

PYG_LIB = """
    import torch
    from . import ops, sampler

    library = torch.library.Library("pyg", "DEF")
    library.define("knn(Tensor x, Tensor y, Tensor? px, Tensor? py, int k, bool cosine, int num_workers) -> Tensor")

    def knn(x, y, ptr_x, ptr_y, k, cosine, num_workers):
        print("searched by pyg_lib")
        rows = []
        for first, last in zip(ptr_x[:-1].tolist(), ptr_x[1:].tolist()):
            for i in range(first, last):
                distance = (x[first:last] - y[i]).pow(2).sum(1)
                order = sorted(range(last - first), key=lambda j: (float(distance[j]), -j))[:k]
                rows += [(i, first + j) for j in reversed(order)]
        return torch.tensor(rows).T.contiguous()

    library.impl("knn", knn, "CPU")
"""

CONVERT = """
    import torch
    from user_model import Net
    from bgnn.converter.api import convert

    torch.manual_seed(0)
    x = torch.randn(20, 5)
    x[2:9, :3] = x[2, :3]
    found = convert(Net().eval(), (x, torch.tensor([0] * 17 + [1] * 3)), target="onnx-x86")
    print([check.turned_rows for check in found.report.checks], torch.ops.pyg.knn.default.name())
"""


def test_a_model_is_built_without_pyg_lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DynamicEdgeConv` asks for pyg-lib when it is made, and the loader has an answer."""
    (tmp_path / "edge_model.py").write_text(textwrap.dedent(MODEL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import edge_model

    pyg_knn.provide()
    torch.save(edge_model.Net().state_dict(), tmp_path / "weights.pt")
    sys.modules["torch_geometric.typing"].WITH_KNN = False
    example = {"x": torch.randn(20, 5), "batch": torch.zeros(20, dtype=torch.int64)}
    loaded = load(tmp_path / "weights.pt", LoadOptions(model="edge_model:Net", example=example))
    assert type(loaded.model).__name__ == "Net"


def test_a_pyg_lib_that_is_installed_is_what_the_model_runs_with(tmp_path: Path) -> None:
    """Its ties, the highest index first, are counted as turned by rounding; the file has the rule."""
    files = {"user_model.py": MODEL, "pyg_lib/__init__.py": PYG_LIB, "pyg_lib/ops.py": "knn = None", "run.py": CONVERT}
    files["pyg_lib/sampler.py"] = "def neighbor_sample(): pass"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "searched by pyg_lib" in done.stdout
    turned = done.stdout.splitlines()[-1]
    assert turned.endswith("pyg::knn"), turned
    assert turned.startswith("["), turned
    assert not turned.startswith("[0,"), turned
