"""`make bench-accuracy`: trained graph networks on Cora and Citeseer, quantised afterwards and in training.

First float GCN, GAT, SAGE and GIN under `--calibrate`: the accuracy on the test nodes and the logits' relative error,
with ranges as they are chosen and from least to largest. Then Degree-Quant GCN, GAT and GIN, PyTorch's fake-quantised
accuracy beside the ONNX file's: each is converted for stock ONNX Runtime and for this project's operators, and run on
the whole graph; the table also has how many codes were compared with PyTorch's, and how many lie one beside them.
Networks are trained here, or read from `--checkpoints`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgnn.runtime_bench.bench.report import print_table
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from bgnn.converter.calibrate import CalibrationReport

DATASETS, LAYERS, KERNELS = ("cora", "citeseer"), ("gcn", "gat", "sage", "gin"), ("stock", "bgnn")
METHODS = {"fp32": "fp32", "dq8": "dq"}  # the file's name says it


def trained(dataset: str, layer: str, how: str, graph: Data, folder: Path, say: Callable[[str], None]) -> Any:
    """The network of `folder`/dataset_layer_how.pt; where there is none it is trained with seed 0 and written there."""
    from bgnn.models.checkpoint import load_checkpoint, save_checkpoint
    from bgnn.models.dq import presets
    from bgnn.models.dq.example import part_of_graph
    from bgnn.models.dq.training import train_citation

    path = folder / f"{dataset}_{layer}_{how}.pt"
    if path.exists():
        return load_checkpoint(path)
    say(f"training {dataset} {layer}, {how}")
    which = dataset, layer, METHODS[how], 8
    settings, recipe = presets.settings(*which), presets.recipe(*which)
    model = train_citation(settings, recipe, graph, seed=0).model
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model, example=part_of_graph(graph))
    return model


def calibrated(model: Any, graph: Data) -> dict[str, Any]:
    """A float network beside itself under `--calibrate` on its graph, as (accuracy, the logits' relative error).

    With ranges from least to largest, with chosen ones (and, where that mends a large gap, a small module left float),
    and as the report advises, if it warns.
    """
    from bgnn.converter.api import convert
    from bgnn.converter.calibrate import Calibration

    assert graph.x is not None
    assert graph.edge_index is not None
    inputs = graph.x, graph.edge_index
    sample = {"x": graph.x, "edge_index": graph.edge_index, "y": graph.y, "test_mask": graph.test_mask}

    def quantised(**how: Any) -> CalibrationReport:
        found = convert(
            model, inputs, target="onnx-int8-x86", stop_after="traced", verify=False,
            calibration=Calibration((sample,), **how),
        ).report.calibration  # fmt: skip
        assert found is not None
        return found

    widest, chosen = quantised(percentile=0.0), quantised()
    row: dict[str, Any] = {"float": chosen.float_accuracy, "min/max": _figures(widest), "chosen": _figures(chosen)}
    if chosen.spared is not None:
        row["spared"] = chosen.spared.module
    if chosen.relief is None:
        return row
    module = chosen.relief.module
    return row | {"kept": module, "with it": _figures(quantised(keep_float=(module,)))}


def _figures(found: CalibrationReport) -> tuple[float | None, float]:
    return found.quantised_accuracy, found.output_error


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
    heads = ["network", "kernels", "accuracy,\nPyTorch", "accuracy,\nfile", "codes\ncompared", "one\nbeside",
             "nodes of\nanother class", "bytes"]  # fmt: skip
    cells = [
        [
            row["network"], row["kernels"], f"{row['PyTorch']:.3f}", f"{row['file']:.3f}", f"{row['codes']:,}",
            f"{row['beside']:,}", f"{row['other class']:,} of {row['nodes']:,}", f"{row['bytes']:,}",
        ]
        for row in rows
    ]  # fmt: skip
    print_table("Degree-Quant W8A8 networks and the ONNX files made from them", heads, cells)


def print_calibrated(rows: list[dict[str, Any]]) -> None:
    """The table of networks that were quantised after training."""
    cells = []
    for row in rows:
        found = ["{:.3f}, {:.1%}".format(*row[name]) for name in ("min/max", "chosen", "with it") if name in row]
        if "spared" in row:
            found[1] += f" ({row['spared']} float)"
        if "kept" in row:
            found[-1] += f" (--keep-float {row['kept']})"
        cells.append([row["network"], f"{row['float']:.3f}", *found, *[""] * (3 - len(found))])
    heads = ["network", "float", "least to largest", "chosen", "as the report advises"]
    print_table("--calibrate: accuracy, and the logits' relative error", heads, cells)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="bench_accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--root", type=Path, default=Path("data"), help="raw files, else where PyG downloads to")
    parser.add_argument("--checkpoints", type=Path, default=Path("out/bench_accuracy"), help="read, or trained into")
    given = parser.parse_args(arguments)
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    rows, floats = [], []
    try:
        from bgnn.models.dq.data import load_citation

        graphs = {dataset: load_citation(dataset, given.root) for dataset in given.datasets}
        for dataset, graph in graphs.items():
            for layer in given.layers:
                model = trained(dataset, layer, "fp32", graph, given.checkpoints, say)
                say(f"calibrating {dataset} {layer}")
                floats.append({"network": f"{dataset.capitalize()} {layer.upper()}"} | calibrated(model, graph))
        print_calibrated(floats)
        for dataset, graph in graphs.items():
            for layer in (name for name in given.layers if name != "sage"):  # the paper has three
                model = trained(dataset, layer, "dq8", graph, given.checkpoints, say)
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
    (given.checkpoints / "results.json").write_text(json.dumps({"calibrated": floats, "Degree-Quant": rows}, indent=1))
    print(f"written: {given.checkpoints}/results.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
