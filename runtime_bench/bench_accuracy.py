"""`make bench-accuracy`: trained INT8 graph networks, PyTorch's fake-quantised accuracy beside the ONNX file's.

Degree-Quant GCN, GAT and GIN on Cora and Citeseer: each is trained here (or read from `--checkpoints`), converted for
stock ONNX Runtime and for this project's operators, and run on the whole graph. The table has the accuracies on the
test nodes, how many codes were compared with PyTorch's, and how many lie one beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgnn.converter.errors import BgnnError
from bgnn.runtime_bench.onnx_runner import OnnxModel

if TYPE_CHECKING:
    from torch_geometric.data import Data

DATASETS, LAYERS, KERNELS = ("cora", "citeseer"), ("gcn", "gat", "gin"), ("stock", "bgnn")


def trained(dataset: str, layer: str, graph: Data, folder: Path, say: Callable[[str], None]) -> Any:
    """The network of `folder`/dataset_layer_dq8.pt; where there is none it is trained with seed 0 and written there."""
    from bgnn.models.checkpoint import load_checkpoint, save_checkpoint
    from bgnn.models.dq import presets
    from bgnn.models.dq.example import part_of_graph
    from bgnn.models.dq.training import train_citation

    path = folder / f"{dataset}_{layer}_dq8.pt"
    if path.exists():
        return load_checkpoint(path)
    say(f"training {dataset} {layer}, W8A8")
    settings, recipe = presets.settings(dataset, layer, "dq", 8), presets.recipe(dataset, layer, "dq", 8)
    model = train_citation(settings, recipe, graph, seed=0).model
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model, example=part_of_graph(graph))
    return model


def compared(model: Any, graph: Data, kernels: str) -> dict[str, Any]:
    """The file made from a network, beside the network, on the whole graph."""
    import torch

    from bgnn.converter.api import convert

    assert graph.x is not None
    assert graph.edge_index is not None
    done = convert(model, (graph.x, graph.edge_index), target="onnx-int8-x86", kernels=kernels, name="network")
    assert done.model_bytes is not None
    results = OnnxModel(done.model_bytes).run(x=graph.x.numpy(), edge_index=graph.edge_index.numpy())
    theirs = torch.from_numpy(next(iter(results.values()))).argmax(1)
    with torch.no_grad():
        mine = model(graph.x, graph.edge_index).argmax(1)
    check: Any = done.report.checks[-1]
    return {
        "kernels": kernels,
        "PyTorch": _accuracy(mine, graph),
        "file": _accuracy(theirs, graph),
        "codes": check.codes,
        "beside": check.stepped,
        "nodes": len(mine),
        "other class": int((mine != theirs).sum()),
        "bytes": len(done.model_bytes),
    }


def _accuracy(classes: Any, graph: Any) -> float:
    return float((classes == graph.y)[graph.test_mask].float().mean())


def print_results(rows: list[dict[str, Any]]) -> None:
    """The table that a person reads."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Degree-Quant W8A8 networks and the ONNX files made from them", title_justify="left")
    for heading in (
        "network", "kernels", "accuracy,\nPyTorch", "accuracy,\nfile", "codes\ncompared", "one\nbeside",
        "nodes of\nanother class", "bytes",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("network", "kernels") else "right")
    for row in rows:
        table.add_row(
            row["network"], row["kernels"], f"{row['PyTorch']:.3f}", f"{row['file']:.3f}", f"{row['codes']:,}",
            f"{row['beside']:,}", f"{row['other class']:,} of {row['nodes']:,}", f"{row['bytes']:,}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="bench_accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--root", type=Path, default=Path("data"), help="raw files, else where PyG downloads to")
    parser.add_argument("--checkpoints", type=Path, default=Path("out/bench_accuracy"), help="read, or trained into")
    given = parser.parse_args(arguments)
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    rows = []
    try:
        from bgnn.models.dq.data import load_citation

        for dataset in given.datasets:
            graph = load_citation(dataset, given.root)
            for layer in given.layers:
                model = trained(dataset, layer, graph, given.checkpoints, say)
                for kernels in KERNELS:
                    say(f"converting {dataset} {layer}, {kernels} kernels")
                    rows.append(
                        {"network": f"{dataset.capitalize()} {layer.upper()}"} | compared(model, graph, kernels)
                    )
    except (BgnnError, OSError, ValueError) as error:
        print(f"bench_accuracy: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, BgnnError) else 1
    print_results(rows)
    given.checkpoints.mkdir(parents=True, exist_ok=True)
    (given.checkpoints / "results.json").write_text(json.dumps(rows, indent=1))
    print(f"written: {given.checkpoints}/results.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
